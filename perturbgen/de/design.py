"""The design matrix of a fit, its estimable columns, and the basis that fits are computed in."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from perturbgen.core.errors import DesignError, shorten
from perturbgen.de.formula import model_matrix, offset_of

log = logging.getLogger(__name__)

_Array = NDArray[np.float64]
_ALIASED_TOLERANCE = 1e-7  # what R's lm and qr use


@dataclass(frozen=True)
class Design:
    """A coded design.

    ``matrix`` (samples, columns) has every column that R would make; ``kept`` indexes those that
    are not combinations of earlier ones. ``level_column`` says which column stands for each level
    of the compared factor (-1 for a level that is the reference of treatment coding). ``offset``
    (samples,) is the formula's, in log2, if it has one; ``factors`` has the levels of every factor.
    """

    matrix: _Array
    columns: tuple[str, ...]
    samples: pd.Index
    kept: NDArray[np.intp]
    levels: tuple[str, ...] = ()
    level_column: NDArray[np.intp] | None = None
    offset: _Array | None = None
    factors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def from_formula(
        cls, formula: str, obs: pd.DataFrame, group: pd.Series | None = None
    ) -> Design:
        """The design of an R formula over samples; ``{group}`` in it stands for ``group``."""
        coded = model_matrix(formula, obs, group)
        kept = _independent_columns(coded.matrix)
        design = cls(
            coded.matrix,
            coded.columns,
            obs.index,
            kept,
            coded.levels,
            coded.level_column,
            offset_of(formula, obs),
            coded.factors,
        )
        if design.aliased:
            # plates nested in donors, say: no mistake, so no warning
            words = "columns of the design that others determine are dropped: %s"
            log.debug(words, shorten(design.aliased))
        return design

    @classmethod
    def from_matrix(cls, matrix: pd.DataFrame | _Array) -> Design:
        """A design given as numbers, (samples, columns)."""
        frame = matrix if isinstance(matrix, pd.DataFrame) else pd.DataFrame(matrix)
        values = frame.to_numpy(dtype=float)
        if not np.isfinite(values).all():
            raise DesignError("the design matrix holds NaN or infinite values")
        columns = tuple(str(column) for column in frame.columns)
        return cls(values, columns, frame.index, _independent_columns(values))

    @property
    def rank(self) -> int:
        """The number of estimable columns."""
        return len(self.kept)

    @property
    def aliased(self) -> list[str]:
        """The names of the columns that were dropped."""
        return [self.columns[j] for j in self.dropped]

    @property
    def dropped(self) -> NDArray[np.intp]:
        """The columns that are combinations of earlier ones."""
        return np.setdiff1d(np.arange(len(self.columns)), self.kept)

    @property
    def df_residual(self) -> int:
        """Residual degrees of freedom, the same for every gene."""
        return len(self.matrix) - self.rank

    def require_df(self) -> None:
        """Refuse a design that leaves nothing to estimate a variance from."""
        if self.df_residual <= 0:
            raise DesignError(
                f"no residual degrees of freedom: {len(self.matrix)} samples, "
                f"{self.rank} coefficients",
                expected="more samples than coefficients",
                cause="no level of the design is replicated",
                fix="leave covariates out, or add replicates",
            )

    def contrast(self, level: str, control: str) -> _Array:
        """The coefficients (columns,) of ``level`` minus ``control``."""
        if self.level_column is None:
            raise DesignError("this design has no compared factor", fix="build it with group=")
        weights = np.zeros(len(self.columns))
        for name, sign in ((level, 1.0), (control, -1.0)):
            column = self.level_column[self.levels.index(name)]
            if column >= 0:
                weights[column] += sign
        return weights

    def estimable(self, weights: _Array) -> NDArray[np.bool_]:
        """Which linear functions (functions, columns) no choice of dropped columns changes.

        They are those in the row space of the design: with X = X_kept B, the weights must equal
        weights_kept B.
        """
        if not len(self.dropped):
            return np.ones(len(weights), dtype=bool)
        return np.asarray(~self._disagreeing(weights)[0].any(axis=1))

    def _disagreeing(self, weights: _Array) -> tuple[NDArray[np.bool_], _Array]:
        """Which dropped columns (functions, dropped) have other weights than what they are made of.

        And what that is: the dropped columns as combinations (columns, dropped) of the kept ones.
        """
        dropped = self.dropped
        combination = self.basis.solve(self.matrix[:, dropped])
        expected = weights[:, self.kept] @ combination[self.kept]
        # a tolerance relative to the coefficients: covariates may have any unit
        largest = np.maximum(np.abs(combination).max(axis=0), 1)
        size = np.abs(weights).max(axis=1, keepdims=True) * largest
        wrong: NDArray[np.bool_] = np.abs(weights[:, dropped] - expected) > 1e-8 * size
        return wrong, combination

    def explain(self, weights: _Array) -> str:
        """Why a linear function (columns,) is not estimable: which columns are confounded."""
        wrong, combination = self._disagreeing(weights[None])
        j = int(np.flatnonzero(wrong[0])[0])
        column = combination[:, j]
        parts = [
            f"{'-' if column[k] < 0 else '+'} "
            f"{'' if abs(abs(column[k]) - 1) < 1e-6 else f'{abs(column[k]):.3g} '}{self.columns[k]}"
            for k in np.flatnonzero(np.abs(column) > 1e-6)
        ]
        shown = " ".join(parts[:6]) + (" ..." if len(parts) > 6 else "")
        name = self.columns[self.dropped[j]]
        return f"in these samples {name} is {shown.removeprefix('+ ') or 'nothing but zeros'}"

    @cached_property
    def basis(self) -> _Basis:
        """The basis of the column space, with the compared factor's columns as its indicators."""
        groups = self._indicator_columns()
        others = np.setdiff1d(self.kept, groups)
        indicators = self.matrix[:, groups]
        first = indicators.argmax(axis=1) if len(groups) else 0
        codes = np.where(indicators.any(axis=1), first, -1)
        averages = (indicators / indicators.sum(axis=0)).T
        nuisance = self.matrix[:, others]
        means = averages @ nuisance
        centred = nuisance - indicators @ means
        # centred twice: one pass leaves a share of a covariate that is large against its spread
        q, r = np.linalg.qr(centred - indicators @ (averages @ centred))
        return _Basis(codes.astype(np.intp), groups, others, means, q, r)

    def _indicator_columns(self) -> NDArray[np.intp]:
        """Kept 0/1 columns that share no sample: the compared factor's first, then others."""
        kept = set(self.kept)
        levels = () if self.level_column is None else self.level_column
        taken = np.zeros(len(self.matrix), dtype=bool)
        chosen = []
        for j in dict.fromkeys([*(j for j in levels if j in kept), *self.kept]):
            column = self.matrix[:, j]
            if np.isin(column, (0.0, 1.0)).all() and not (taken & (column > 0)).any():
                chosen.append(j)
                taken |= column > 0
        return np.array(sorted(chosen), dtype=np.intp)


def _independent_columns(matrix: _Array, tolerance: float = _ALIASED_TOLERANCE) -> NDArray[np.intp]:
    """Columns that are not combinations of earlier ones, as R's limited pivoting finds them.

    A column is dropped where less than ``tolerance`` of its length is left after projecting out the
    columns before it.
    """
    lengths = np.linalg.norm(matrix, axis=0)
    # leading columns that share no sample, such as the indicators of a first factor of hundreds of
    # levels, are orthogonal as they are: only the columns after them need projecting
    shared = (np.cumsum(matrix != 0, axis=1) > 1).any(axis=0)
    lead = int(np.argmax(shared)) if shared.any() else matrix.shape[1]
    kept = [j for j in range(lead) if lengths[j] > 0]
    basis = matrix[:, kept] / lengths[kept]
    rest = matrix[:, lead:].copy()
    for _ in range(2):  # once more for what rounding left of the first projection
        rest -= basis @ (basis.T @ rest)
    found: list[_Array] = []
    for j in range(rest.shape[1]):
        left = rest[:, j]
        length = np.linalg.norm(left)
        if length <= tolerance * lengths[lead + j]:
            continue
        kept.append(lead + j)
        direction = left / length
        for previous in found:
            direction -= previous * (previous @ direction)
        direction /= np.linalg.norm(direction)
        found.append(direction)
        rest[:, j + 1 :] -= np.outer(direction, direction @ rest[:, j + 1 :])
    return np.array(kept, dtype=np.intp)


@dataclass(frozen=True)
class _Basis:
    """A well-conditioned basis of a design: group indicators and orthonormal nuisance columns.

    Write the kept columns as X = [D Z], with D (samples, groups) disjoint 0/1 indicators given by
    ``codes`` (-1 where a sample is in none), and Z = D A + Q R with Q (samples, q) orthonormal and
    orthogonal to D; ``means`` are A. Fits are computed for [D Q]; ``groups`` and ``others`` are the
    columns of the full design that D and Z came from.
    """

    codes: NDArray[np.intp]
    groups: NDArray[np.intp]
    others: NDArray[np.intp]
    means: _Array
    q: _Array
    r: _Array

    def functionals(self, weights: _Array) -> tuple[_Array, _Array]:
        """Linear functions of the design's coefficients as functions of the basis' own.

        ``weights`` (functions, columns of the full design), zero on dropped columns; gives
        (functions, groups) and (functions, q).
        """
        on_groups, on_others = weights[:, self.groups], weights[:, self.others]
        if not len(self.others):
            return on_groups, on_others
        on_q = solve_triangular(self.r, (on_others - on_groups @ self.means).T, trans="T").T
        return on_groups, on_q

    def solve(self, values: _Array) -> _Array:
        """Least-squares coefficients (columns of the design, k) of values (samples, k)."""
        coefficients = np.zeros((max([*self.groups, *self.others]) + 1, values.shape[1]))
        indicators = self.codes[:, None] == np.arange(len(self.groups))
        on_groups = (indicators / indicators.sum(axis=0)).T @ values
        on_others: _Array = np.empty((0, values.shape[1]))
        if len(self.others):
            on_others = solve_triangular(self.r, self.q.T @ values)
        coefficients[self.others] = on_others
        coefficients[self.groups] = on_groups - self.means @ on_others
        return coefficients

    def unscaled_covariance(self, weights: _Array) -> _Array:
        """Covariance (functions, functions) under the unweighted design, residual variance 1."""
        on_groups, on_q = self.functionals(weights)
        sizes = np.maximum(np.bincount(self.codes[self.codes >= 0], minlength=len(self.groups)), 1)
        return (on_groups / sizes) @ on_groups.T + on_q @ on_q.T
