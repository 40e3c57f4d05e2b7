"""Both backends on the same genes: how far apart are their numbers?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.de.checks import as_matrix
from perturbgen.de.table import STATISTICS, DETable
from perturbgen.errors import ConfigError


def choose_genes(counts: Any, number: int, layer: str | None = None) -> list[str]:
    """Genes spread evenly over the range of total counts, the most expressed one among them."""
    if number < 10:
        raise ConfigError(f"{number} genes are too few to compare on", expected="at least 10: voom needs a trend")
    values, _, genes = as_matrix(counts, layer)
    order = np.argsort(-values.sum(axis=0), kind="stable")
    chosen: NDArray[np.intp] = order[np.linspace(0, len(order) - 1, min(number, len(order))).astype(int)]
    return [genes[j] for j in np.sort(chosen)]


def compare_backends(make_table: Callable[[str], DETable]) -> list[dict[str, Any]]:
    """The largest differences between the tables that ``make_table`` makes with each backend."""
    native, through_r = make_table("native"), make_table("r")
    return [difference(name, getattr(native, name), getattr(through_r, name)) for name in STATISTICS]


def difference(name: str, native: pd.DataFrame, through_r: pd.DataFrame) -> dict[str, Any]:
    """The largest absolute and relative difference of one statistic, and where it is."""
    gap = (native - through_r).abs()
    largest = float(np.nanmax(gap.to_numpy()))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = gap.to_numpy() / np.abs(through_r.to_numpy())
    i, j = (int(k) for k in np.unravel_index(int(np.nanargmax(gap.to_numpy())), gap.shape))
    label = native.index[i]
    return {
        "statistic": name,
        "largest difference": largest,
        "relative": float(np.nanmax(np.where(gap.to_numpy() == 0, 0, share))),
        "condition": " | ".join(label) if isinstance(label, tuple) else str(label),
        "gene": str(native.columns[j]),
    }
