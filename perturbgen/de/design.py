"""The design matrix of a fit, the columns of it that can be estimated, and the basis in which fits are computed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from perturbgen.core.errors import DesignError, shorten
from perturbgen.de.formula import (
    Factor,
    Variable,
    code_terms,
    drop_constant_factors,
    make_factor,
    make_variable,
    parse_formula,
)

log = logging.getLogger(__name__)

_Array = NDArray[np.float64]
_GROUP = "group__"
_ALIASED_TOLERANCE = 1e-7  # what R's lm and qr use


@dataclass(frozen=True)
class Design:
    """A coded design.

    ``matrix`` (samples, columns) has every column that R would make; ``kept`` indexes those that are not combinations
    of earlier ones. ``level_column`` says which column stands for each level of the compared factor (-1 for a level
    that is the reference of treatment coding).
    """

    matrix: _Array
    columns: tuple[str, ...]
    samples: pd.Index
    kept: NDArray[np.intp]
    levels: tuple[str, ...] = ()
    level_column: NDArray[np.intp] | None = None

    @property
    def rank(self) -> int:
        """The number of estimable columns."""
        return len(self.kept)

    @property
    def aliased(self) -> list[str]:
        """The names of the columns that were dropped."""
        dropped = np.setdiff1d(np.arange(len(self.columns)), self.kept)
        return [self.columns[j] for j in dropped]

    @property
    def df_residual(self) -> int:
        """Residual degrees of freedom, the same for every gene."""
        return len(self.matrix) - self.rank

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


def build_design(formula: str, obs: pd.DataFrame, group: pd.Series | None = None) -> Design:
    """The design of a formula over samples; ``{group}`` in it stands for ``group``, which is always a factor."""
    terms = parse_formula(formula.replace("{group}", _GROUP))
    if group is not None:
        _check_group(terms, formula)
    names = list(dict.fromkeys(name for term in terms for name in term))
    variables = {name: make_variable(name, obs) for name in names if name != _GROUP}
    if group is not None:
        variables[_GROUP] = make_factor(_GROUP, group)
    terms = drop_constant_factors(terms, variables)
    coded = list(code_terms(terms, variables, len(obs)))
    matrix = np.hstack([block for _, block, _ in coded]) if coded else np.empty((len(obs), 0))
    columns = tuple(name for _, _, names in coded for name in names)
    levels, level_column = _group_columns(coded, variables)
    design = Design(matrix, columns, obs.index, independent_columns(matrix), levels, level_column)
    if design.aliased:
        log.debug(
            "columns of the design that others determine are dropped: %s", shorten(design.aliased)
        )
    return design


def _check_group(terms: Sequence[tuple[str, ...]], formula: str) -> None:
    """The compared factor must be a term of its own, and be in no interaction."""
    if (_GROUP,) not in terms:
        raise DesignError(
            f"the design {formula!r} does not hold the compared factor", fix="write it as {group}"
        )
    if any(_GROUP in term and len(term) > 1 for term in terms):
        raise DesignError(
            f"{{group}} is in an interaction of {formula!r}, so no single contrast compares two of its levels",
            fix="use by= (one fit a level) or joint=True (the combination is the group) instead",
        )


def _group_columns(
    coded: Sequence[tuple[tuple[str, ...], _Array, list[str]]], variables: Mapping[str, Variable]
) -> tuple[tuple[str, ...], NDArray[np.intp] | None]:
    """The levels of the compared factor and the column of each."""
    factor = variables.get(_GROUP)
    if not isinstance(factor, Factor):
        return (), None
    start = 0
    for term, block, _ in coded:
        if term == (_GROUP,):
            missing = len(factor.levels) - block.shape[1]
            columns = np.concatenate([np.full(missing, -1), start + np.arange(block.shape[1])])
            return factor.levels, columns.astype(np.intp)
        start += block.shape[1]
    raise DesignError(
        "the compared factor has one level in these samples",
        expected="the control and at least one other",
    )


def design_from_matrix(matrix: pd.DataFrame | _Array) -> Design:
    """A design given as numbers, (samples, columns)."""
    frame = matrix if isinstance(matrix, pd.DataFrame) else pd.DataFrame(matrix)
    values = frame.to_numpy(dtype=float)
    if not np.isfinite(values).all():
        raise DesignError("the design matrix holds NaN or infinite values")
    return Design(
        values, tuple(str(c) for c in frame.columns), frame.index, independent_columns(values)
    )


def independent_columns(matrix: _Array, tolerance: float = _ALIASED_TOLERANCE) -> NDArray[np.intp]:
    """Columns (of samples x columns) that are not combinations of earlier ones, as R's limited pivoting finds them.

    A column is dropped where less than ``tolerance`` of its length is left after projecting out the columns before it.
    """
    lengths = np.linalg.norm(matrix, axis=0)
    lead = _disjoint_lead(matrix)
    kept = [j for j in range(lead) if lengths[j] > 0]
    basis = matrix[:, kept] / lengths[kept]
    rest = matrix[:, lead:].copy()
    for _ in range(2):
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


def _disjoint_lead(matrix: _Array) -> int:
    """How many leading columns share no sample, such as the indicators of a first factor: they need no projection."""
    shared = (np.cumsum(matrix != 0, axis=1) > 1).any(axis=0)
    return int(np.argmax(shared)) if shared.any() else matrix.shape[1]


@dataclass(frozen=True)
class Basis:
    """A well-conditioned basis of a design's column space: group indicators and orthonormal nuisance columns.

    Write the kept columns as X = [D Z], with D (samples, groups) disjoint 0/1 indicators given by ``codes`` (-1 where
    a sample is in none), and Z = D A + Q R with Q (samples, q) orthonormal and orthogonal to D. Fits are computed for
    [D Q]; ``groups`` and ``others`` are the columns of the full design that D and Z came from.
    """

    codes: NDArray[np.intp]
    groups: NDArray[np.intp]
    others: NDArray[np.intp]
    means: _Array
    q: _Array
    r: _Array

    def functionals(self, weights: _Array) -> tuple[_Array, _Array]:
        """Linear functions of the design's coefficients as functions of the basis' own.

        ``weights`` (functions, columns of the full design), zero on dropped columns; gives (functions, groups) and
        (functions, q).
        """
        on_groups, on_others = weights[:, self.groups], weights[:, self.others]
        if not len(self.others):
            return on_groups, on_others
        return on_groups, solve_triangular(
            self.r, (on_others - on_groups @ self.means).T, trans="T"
        ).T

    def solve(self, values: _Array) -> _Array:
        """Least-squares coefficients (columns of the full design, k) of values (samples, k); 0 on dropped columns."""
        coefficients = np.zeros((max([*self.groups, *self.others]) + 1, values.shape[1]))
        indicators = self.codes[:, None] == np.arange(len(self.groups))
        on_groups = (indicators / indicators.sum(axis=0)).T @ values
        on_others = (
            solve_triangular(self.r, self.q.T @ values)
            if len(self.others)
            else np.empty((0, values.shape[1]))
        )
        coefficients[self.others] = on_others
        coefficients[self.groups] = on_groups - self.means @ on_others
        return coefficients

    def unscaled_covariance(self, weights: _Array) -> _Array:
        """Covariance (functions, functions) of linear functions under the unweighted design, residual variance 1."""
        on_groups, on_q = self.functionals(weights)
        sizes = np.maximum(np.bincount(self.codes[self.codes >= 0], minlength=len(self.groups)), 1)
        return (on_groups / sizes) @ on_groups.T + on_q @ on_q.T


def make_basis(design: Design) -> Basis:
    """The basis of a design; the compared factor's columns are the indicators where it has some."""
    groups = _indicator_columns(design)
    others = np.setdiff1d(design.kept, groups)
    indicators = design.matrix[:, groups]
    codes = np.where(indicators.any(axis=1), indicators.argmax(axis=1) if len(groups) else 0, -1)
    nuisance = design.matrix[:, others]
    means = (indicators / indicators.sum(axis=0)).T @ nuisance
    centred = nuisance - indicators @ means
    q, r = np.linalg.qr(centred - indicators @ ((indicators / indicators.sum(axis=0)).T @ centred))
    return Basis(codes.astype(np.intp), groups, others, means, q, r)


def _indicator_columns(design: Design) -> NDArray[np.intp]:
    """Kept 0/1 columns that share no sample: the compared factor's first, then any others that fit."""
    preferred = (
        []
        if design.level_column is None
        else [j for j in design.level_column if j in set(design.kept)]
    )
    taken = np.zeros(len(design.matrix), dtype=bool)
    chosen = []
    for j in dict.fromkeys([*preferred, *design.kept]):
        column = design.matrix[:, j]
        if np.isin(column, (0.0, 1.0)).all() and not (taken & (column > 0)).any():
            chosen.append(j)
            taken |= column > 0
    return np.array(sorted(chosen), dtype=np.intp)


def estimable(design: Design, weights: _Array) -> NDArray[np.bool_]:
    """Which linear functions (functions, columns) have a value that no choice of dropped columns changes.

    They are those in the row space of the design: with X = X_kept B, the weights must equal weights_kept B.
    """
    dropped = np.setdiff1d(np.arange(design.matrix.shape[1]), design.kept)
    if not len(dropped):
        return np.ones(len(weights), dtype=bool)
    combination = make_basis(design).solve(design.matrix[:, dropped])
    expected = weights[:, design.kept] @ combination[design.kept]
    size = np.abs(weights).max(axis=1, keepdims=True) * np.maximum(
        np.abs(combination).max(axis=0), 1
    )
    return (np.abs(weights[:, dropped] - expected) <= 1e-8 * size).all(axis=1)
