"""Whether intervals around predictions hold what they promise."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from perturbgen.errors import SchemaError
from perturbgen.evaluate.align import align
from perturbgen.evaluate.rowwise import Array

Intervals = Mapping[float, tuple[pd.DataFrame, pd.DataFrame]]


def coverage(truth: Array, lower: Array, upper: Array) -> Array:
    """Share of a row's true values within their intervals, ends included (conditions,)."""
    return ((truth >= lower) & (truth <= upper)).mean(axis=1)


def calibration(truth: pd.DataFrame, intervals: Intervals) -> pd.DataFrame:
    """Coverage and mean width of a method's intervals: rows (nominal level, condition).

    ``intervals`` gives for every nominal level, say 0.9, a lower and an upper table, labelled as the truth (both may
    have more conditions and genes).
    """
    parts = []
    for level, (lower, upper) in sorted(intervals.items()):
        if not 0 < level < 1:
            raise SchemaError(f"an interval of level {level}", expected="a nominal coverage between 0 and 1")
        true, low = align(truth, lower, genes="truth", rows="truth", name=f"the lower ends at {level:g}")
        _, high = align(truth, upper, genes="truth", rows="truth", name=f"the upper ends at {level:g}")
        crossed = (low > high).to_numpy()
        if crossed.any():
            raise SchemaError(f"{int(crossed.sum())} lower ends at {level:g} are above their upper ends")
        found = coverage(true.to_numpy(), low.to_numpy(), high.to_numpy())
        width = (high - low).to_numpy().mean(axis=1)
        parts.append(pd.DataFrame({"coverage": found, "width": width}, index=true.index))
    if not parts:
        raise SchemaError("no intervals were given", expected="{0.9: (lower, upper)}")
    return pd.concat(dict(zip(sorted(intervals), parts, strict=True)), names=["nominal"])
