"""Predictors of somebody else behind the shell of ours: what they break is told with their name.

A class (or a function that makes an object) with ``fit(train, *, rng)`` and ``predict(conditions)``
will do. The parameters of the class are its settings. It may say of itself, as attributes, what it
``needs`` and ``uses`` beside the table ("smiles", "truth", "pseudobulk"), and that it is not
``random``: without a word it is fitted once for every seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pandas as pd

from perturbgen.baselines.base import Baseline, ConditionList, Predictor, TrainTable
from perturbgen.core.config import Settings
from perturbgen.core.errors import shorten
from perturbgen.core.extensions import Extension, settings_of


def baseline_settings(kind: Any, extension: Extension) -> type[Settings]:
    """The class of its settings: its own, or one made of the parameters it is called with."""
    own = getattr(kind, "settings_class", None)
    if isinstance(own, type) and issubclass(own, Settings):
        return own
    if not callable(kind):
        raise extension.broken(
            "is nothing to make a predictor with", expected="a class, or a function"
        )
    return settings_of(kind, without=(*asked_for(kind, "needs"), *asked_for(kind, "uses")))


def asked_for(kind: Any, what: str) -> tuple[str, ...]:
    """What it ``needs`` or ``uses`` beside the table."""
    return tuple(getattr(kind, what, ()))


def has_intervals(kind: Any) -> bool:
    """Whether its ``predict_interval`` works."""
    if isinstance(kind, type) and issubclass(kind, Baseline):
        return kind._half_width is not Baseline._half_width
    return callable(getattr(kind, "predict_interval", None))


class Foreign(Baseline[Any]):
    """A predictor of an extension, given copies to learn from, whose answers are checked."""

    canonical = False  # it gets the rows as they are

    def __init__(
        self, extension: Extension, kind: Any, settings: Settings, parts: Mapping[str, Any]
    ) -> None:
        super().__init__(settings)
        self.extension, self.inner = extension, made(extension, kind, settings, parts)

    @property
    def name(self) -> str:
        """How it was asked for."""
        return self.extension.name

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        with self.extension.blamed("fails to fit"):
            # A copy: other methods learn from the same table after it.
            found = self.inner.fit(table.frame.copy(), rng=rng)
        if isinstance(found, Predictor):
            self.inner = found

    def _predict(self, wanted: ConditionList) -> np.ndarray:
        with self.extension.blamed("fails to predict"):
            found = self.inner.predict(wanted.index)
        return self._checked(found, wanted)

    def predict_interval(
        self, conditions: pd.MultiIndex | pd.DataFrame, *, level: float = 0.9
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Lower and upper ends of where a new measurement lies with probability ``level``."""
        if not has_intervals(type(self.inner)):
            return super().predict_interval(conditions, level=level)
        wanted, inner = ConditionList.read(conditions), cast("Any", self.inner)
        with self.extension.blamed("fails to predict intervals"):
            lower, upper = inner.predict_interval(wanted.index, level=level)
        ends = (self._checked(end, wanted) for end in (lower, upper))
        low, high = (pd.DataFrame(end, wanted.index, self.table.genes) for end in ends)
        return low, high

    def _checked(self, found: Any, wanted: ConditionList) -> np.ndarray:
        """The values (conditions, genes) by label; what is not as promised is an error."""
        wrong = wrong_answer(found, wanted.index, self.table.genes)
        if wrong:
            raise self.extension.broken(
                wrong, expected="a DataFrame of finite numbers, conditions x genes"
            )
        return found.loc[wanted.index, self.table.genes].to_numpy(float)


def made(
    extension: Extension, kind: Any, settings: Settings, parts: Mapping[str, Any]
) -> Predictor:
    """The predictor, not fitted yet."""
    with extension.blamed("cannot be made"):
        if isinstance(kind, type) and issubclass(kind, Baseline):
            found: Any = kind(settings, **parts)
        else:
            found = kind(**dict(settings), **parts)
    if not isinstance(found, Predictor):
        raise extension.broken(
            f"makes something of type {type(found).__name__}",
            expected="an object with fit(train, *, rng) and predict(conditions)",
        )
    return found


def wrong_answer(found: Any, wanted: pd.MultiIndex, genes: pd.Index) -> str:
    """What is wrong with a prediction, in words; nothing where it can be used."""
    if not isinstance(found, pd.DataFrame):
        return f"predicts a value of type {type(found).__name__}"
    for labels, there, what in (
        (wanted, found.index, "conditions"),
        (genes, found.columns, "genes"),
    ):
        if there.has_duplicates:
            return f"predicts {what} twice: {_some(there[there.duplicated()])}"
        if there.nlevels != labels.nlevels:
            return f"labels {what} otherwise than asked: {_some(there)}"
        absent = labels[~labels.isin(there)]
        if len(absent):
            return f"misses {len(absent)} of {len(labels)} {what}: {_some(absent)}"
    try:
        values = found.loc[wanted, genes].to_numpy(float)
    except (TypeError, ValueError):
        return "predicts values that are no numbers"
    wrong = ~np.isfinite(values)
    if wrong.any():
        row, gene = divmod(int(wrong.argmax()), values.shape[1])
        label = " | ".join(map(str, wanted[row]))
        return (
            f"predicts {int(wrong.sum())} values that are missing or infinite, "
            f"the first of gene {genes[gene]!r} in {label}"
        )
    return ""


def _some(labels: pd.Index) -> str:
    texts = (" | ".join(map(str, key)) if isinstance(key, tuple) else key for key in labels)
    return shorten(texts, 3)
