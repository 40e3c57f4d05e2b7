"""Estimators of a condition's signed -log10 p from what a generator says, none of which averages p.

One replicate of even a perfect generator is barely better than zeros: its t is the true one plus the noise that a real
experiment has, and so is the t it is compared with. Averaging t over replicates takes the first noise out. A mean of
p is ruled by its largest one: a single weak replicate hides an effect.

How a prediction is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from perturbgen.core.config import Settings
from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.de import DETable, log_p_t
from perturbgen.generate.latents import Route


def signed_log10_p(t: pd.DataFrame, df: pd.DataFrame) -> pd.DataFrame:
    """sign(t) x -log10 p of t with df degrees of freedom, all conditions x genes; NaN stays NaN."""
    if not (t.index.equals(df.index) and t.columns.equals(df.columns)):
        raise SchemaError(
            "t and df are of other conditions or genes",
            fix="join them by label: df.reindex_like(t)",
        )
    values = np.empty(t.shape)
    for i, (row, degrees) in enumerate(zip(t.to_numpy(float), df.to_numpy(float), strict=True)):
        values[i] = -np.sign(row) * log_p_t(row, degrees) / np.log(10)
    return pd.DataFrame(values + 0.0, t.index, t.columns)


def average_t(tables: Sequence[DETable]) -> pd.DataFrame:
    """Signed -log10 p of the mean t over replicates, with their mean degrees of freedom, conditions x genes.

    Rows and columns are those of the first table; the others are joined by label. A replicate without an answer (a well
    that drew no cells) is left out where it has none.
    """
    if not tables:
        raise ConfigError("no replicate to average", expected="one or more DE tables")
    first = tables[0].t
    t, df = Mean(first), Mean(first)
    for table in tables:
        t.add(table.t)
        df.add(table.df.where(table.t.notna()))
    return signed_log10_p(t.value(), df.value())


class Mean:
    """A running mean of frames, by label, of what is not missing: memory does not grow with the replicates."""

    def __init__(self, like: pd.DataFrame) -> None:
        self._like = like
        self._sum, self._count = np.zeros(like.shape), np.zeros(like.shape, int)

    def add(self, frame: pd.DataFrame) -> None:
        """Take in a frame with the same labels, in any order."""
        require_same(self._like.index, frame.index, "conditions")
        require_same(self._like.columns, frame.columns, "genes")
        values = frame.loc[self._like.index, self._like.columns].to_numpy(float)
        self._sum += np.nan_to_num(values, nan=0.0)
        self._count += ~np.isnan(values)

    def value(self) -> pd.DataFrame:
        """The mean; NaN where nothing was."""
        mean = np.divide(
            self._sum, self._count, out=np.full(self._sum.shape, np.nan), where=self._count > 0
        )
        return pd.DataFrame(mean, self._like.index, self._like.columns)


def require_same(expected: pd.Index, found: pd.Index, what: str) -> None:
    """Both name the same, each once, in any order."""
    absent, extra = expected.difference(found), found.difference(expected)
    if len(absent) or len(extra) or not found.is_unique:
        raise SchemaError(
            f"replicates have other {what}: {shorten(absent) or 'none'} missing, {shorten(extra) or 'none'} new",
            expected="every replicate of the same design",
        )


class _Error(NamedTuple):
    """Standard errors and their degrees of freedom, conditions x genes."""

    se: pd.DataFrame
    df: pd.DataFrame


def plug_in_t(logfc: pd.DataFrame, se: pd.DataFrame, df: pd.DataFrame) -> pd.DataFrame:
    """Signed -log10 p of a noise-free log fold change over the standard error that real replicates have.

    All are conditions x genes, joined by label to ``logfc``. Where the error is unknown (NaN), so is the result. Where
    counts are below one in a well, limma estimates smaller changes than the noise-free one: shrink by expression level.
    """
    parts = []
    for name, frame in (("se", se), ("df", df)):
        require_same(logfc.index, frame.index, f"conditions ({name})")
        require_same(logfc.columns, frame.columns, f"genes ({name})")
        parts.append(frame.loc[logfc.index, logfc.columns])
    if (parts[0] <= 0).to_numpy().any():
        raise SchemaError(
            "a standard error is zero or negative", expected="positive numbers, or NaN"
        )
    return signed_log10_p(logfc / parts[0], parts[1])


def usual_error(measured: DETable, conditions: pd.MultiIndex) -> _Error:
    """The standard errors to expect of conditions (cell_type, compound): the median over the measured ones, by gene.

    ``measured`` holds real replicates only; its first index level is the cell type.
    """
    kinds = measured.se.index.get_level_values(0)
    wanted = conditions.get_level_values(0)
    absent = wanted.unique().difference(kinds)
    if len(absent):
        raise SchemaError(
            f"no measured condition of cell type {shorten(absent)}", expected="one or more of each"
        )
    return _Error(
        *(
            frame.groupby(kinds).median().loc[wanted].set_axis(conditions)
            for frame in (measured.se, measured.df)
        )
    )


def has_converged(scores: Sequence[float], *, tolerance: float = 0.005, patience: int = 2) -> bool:
    """Whether more replicates are in vain: the last ``patience`` scores bettered the best before by too little.

    ``scores`` (lower is better) are of growing numbers of replicates, on withheld conditions that were measured; too
    little is less than ``tolerance`` of the best score.
    """
    if patience < 1 or tolerance < 0:
        raise ConfigError(
            f"tolerance {tolerance}, patience {patience}", expected="0 or more, 1 or more"
        )
    if not np.isfinite(list(scores)).all():
        raise ConfigError(f"a score is no number: {list(scores)}", expected="finite scores")
    if len(scores) <= patience:
        return False
    before = min(scores[:-patience])
    return min(scores[-patience:]) > before - tolerance * abs(before)


Estimator = Literal["mean_t", "anchored_t", "plug_in", "shrunk", "shrunk_plug_in"]
REPLICATED: Final = ("mean_t", "anchored_t", "shrunk")
ANCHORED: Final = ("anchored_t", "shrunk")
CALIBRATED: Final = ("shrunk", "shrunk_plug_in")


class PredictSettings(Settings):
    """How a prediction is made."""

    estimators: tuple[Estimator, ...] = ("shrunk",)
    replicates: Annotated[int, Field(ge=1)] | None = (
        None  # None: until the calibration conditions gain no more
    )
    most: Annotated[int, Field(ge=1)] = 20  # replicates, where their number is not given
    latent: Route = "control"
    flavour: Literal["kaggle", "op3"] = "kaggle"
    levels: Annotated[int, Field(ge=1)] = 5  # of expression, each with a factor of its own
    seed: Annotated[int, Field(ge=0)] = 0

    def needs(self, names: tuple[str, ...]) -> bool:
        """Whether one of the estimators is among these."""
        return any(name in names for name in self.estimators)

    @property
    def calibrates(self) -> bool:
        """Whether measured conditions are generated beside the wanted ones."""
        return self.needs(CALIBRATED) or (self.replicates is None and self.needs(REPLICATED))

    @property
    def needs_measured(self) -> bool:
        """Whether measured compounds of the same cell types are needed, for standard errors or to calibrate on."""
        return self.calibrates or self.needs(("plug_in",))
