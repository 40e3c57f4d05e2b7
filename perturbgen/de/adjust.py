"""p values adjusted for many tests, as R's ``p.adjust`` has them."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from perturbgen.core.errors import ConfigError

_Array = NDArray[np.float64]
_METHODS: Final = ("BH", "BY", "holm", "bonferroni", "none")


def adjust_p(p: _Array, method: str = "BH") -> _Array:
    """Adjusted p (tests,): BH (or fdr), BY, holm, bonferroni or none."""
    name, n = _known(method), len(p)
    if name == "none" or not n:
        return p.copy()
    if name == "bonferroni":
        return np.minimum(1.0, p * n)
    ranks, result = np.arange(1, n + 1), np.empty(n)
    order = np.argsort(p, kind="stable")
    if name == "holm":
        running = np.maximum.accumulate(p[order] * (n + 1 - ranks))
    else:
        share = n / ranks * (float((1 / ranks).sum()) if name == "BY" else 1.0)
        running = np.minimum.accumulate((p[order] * share)[::-1])[::-1]
    result[order] = np.minimum(1.0, running)
    return result


def share_of_level(significant: int, tests: int, method: str = "BH") -> float:
    """What of the level is left for each test once so many were significant, as in limma."""
    name = _known(method)
    if name == "none":
        return 1.0
    if name == "bonferroni":
        return 1 / tests
    if name == "holm":
        return 1 / (tests - significant + 1)
    share = significant / tests
    return share / float((1 / np.arange(1, tests + 1)).sum()) if name == "BY" else share


def _known(method: str) -> str:
    found = {name.lower(): name for name in _METHODS} | {"fdr": "BH"}
    if method.lower() not in found:
        what = f"adjust={method!r} is unknown"
        raise ConfigError(what, expected=", ".join(_METHODS))
    return found[method.lower()]
