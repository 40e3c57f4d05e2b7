"""Metrics of somebody else among ours: what they break is told with their name.

An extension is a :class:`~perturbgen.evaluate.values.Metric`, or a function that makes one. Its
name here is that by which it was asked for, so that a scorecard finds it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from perturbgen.core.extensions import Extension
from perturbgen.core.stats import Array
from perturbgen.evaluate.values import Metric

_NEEDS: Final = ("tables", "reference", "layout", "cells", "log_probs")


def adopt(extension: Extension) -> Metric:
    """The metric of an extension."""
    found = extension.load()
    if callable(found) and not isinstance(found, Metric):
        with extension.blamed("cannot be made"):
            found = found()
    if not isinstance(found, Metric):
        raise extension.broken(
            f"is of type {type(found).__name__}",
            expected="a perturbgen.evaluate.Metric, or a function that makes one",
        )
    if found.needs not in _NEEDS:
        raise extension.broken(f"needs {found.needs!r}", expected=" or ".join(_NEEDS))
    compute = _Checked(extension, found)
    return replace(found, name=extension.name, compute=compute, code=extension.code)


@dataclass(frozen=True)
class _Checked:
    """Computes a metric, and refuses what is not one number within its range a condition."""

    extension: Extension
    metric: Metric

    def __call__(self, pair: Any) -> Array:
        metric = self.metric
        with self.extension.blamed("fails"), _locked(pair):
            values = np.asarray(metric.compute(pair), float)
        shape = () if metric.needs in ("cells", "log_probs") else (len(pair.truth.given),)
        if values.shape != shape:
            raise self.extension.broken(
                f"gives values of shape {values.shape}", expected=f"{shape}: one number a condition"
            )
        known = values[~np.isnan(values)]  # NaN where a metric says nothing of a condition
        reach = 1e-9 * max(
            1.0, *(abs(end) for end in (metric.low, metric.high) if abs(end) < np.inf)
        )
        odd = known[(known < metric.low - reach) | (known > metric.high + reach) | np.isinf(known)]
        if odd.size:
            beyond = f"below low = {metric.low:g}"
            if np.isinf(odd[0]):
                beyond = "which is infinite"
            elif odd[0] > metric.high:
                beyond = f"above high = {metric.high:g}"
            raise self.extension.broken(
                f"gives {odd[0]:g}, {beyond}",
                expected=f"a number in {metric.low:g} .. {metric.high:g}",
            )
        return values


@contextmanager
def _locked(pair: Any) -> Iterator[None]:
    """Arrays that other metrics use after this one cannot be written to meanwhile."""
    sides = [pair, *(getattr(pair, name) for name in ("truth", "prediction"))]
    owners = [vars(side) for side in sides if hasattr(side, "__dict__")]
    arrays = [
        value for owner in owners for value in owner.values() if isinstance(value, np.ndarray)
    ]
    writeable = [array for array in arrays if array.flags.writeable]
    for array in writeable:
        array.flags.writeable = False
    try:
        yield
    finally:
        for array in writeable:
            array.flags.writeable = True
