"""Samples that belong together: the correlation within blocks, as limma's ``duplicateCorrelation``.

A gene's correlation is that of a mixed model with one random effect a block, fitted by REML as
statmod's ``mixedModel2Fit`` does: the squares of rotated residuals are gamma distributed with means
s_e^2 + d s_b^2, where d are the squared singular values of the block indicators outside of the
design. Genes share a consensus, the trimmed mean of their correlations in atanh.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.core.errors import ConfigError, DesignError, SchemaError, shorten
from perturbgen.core.system import ONE_BLAS_THREAD
from perturbgen.de.design import Design
from perturbgen.de.gamma import fit_gamma

_Array = NDArray[np.float64]
_Codes = NDArray[np.intp]
Block = pd.Series | Sequence[object] | NDArray[Any]  # a label for each sample
_BLOCK = 256  # genes at a time
_NOTHING = 1e-24  # of a residual variance against the squares of the values
_ZERO = 1e-10  # of an eigenvalue of the block indicators against the largest


@dataclass(frozen=True)
class Correlation:
    """The ``consensus`` correlation of samples of one block, and each gene's own (NaN: none)."""

    consensus: float
    genes: pd.Series

    def __repr__(self) -> str:
        known = int(self.genes.notna().sum())
        return f"Correlation(consensus={self.consensus:.4f}, {known} of {len(self.genes)} genes)"


class _Rotated(NamedTuple):
    """Squared rotated residuals of genes, summed where their expected values are the same.

    ``d`` (genes, terms) are squared singular values, ``number`` (genes, terms) how many residuals
    have each, ``total`` (genes, terms) the sums of their squares.
    """

    d: _Array
    number: _Array
    total: _Array


@ONE_BLAS_THREAD
def duplicate_correlation(
    y: pd.DataFrame | _Array,
    design: Design | pd.DataFrame | _Array,
    block: Block,
    *,
    weights: pd.DataFrame | _Array | None = None,
    trim: float = 0.15,
) -> Correlation:
    """The correlation of samples of one block, of log expressions y (samples, genes).

    ``block`` (samples,) names each sample's block, such as its donor; ``weights`` (samples, genes)
    or (samples,) are voom's or one's own. ``trim`` is cut off either end of the genes' values.
    """
    values = np.asarray(y, dtype=float)
    genes = y.columns if isinstance(y, pd.DataFrame) else pd.RangeIndex(values.shape[1])
    if not isinstance(design, Design):
        design = Design.from_matrix(design)
    if not 0 <= trim < 0.5:
        raise ConfigError(f"trim={trim} is not possible", expected="a share from 0 to 0.5")
    codes = block_codes(block, y.index if isinstance(y, pd.DataFrame) else design.samples)
    _require_blocks(codes, design)
    prior = None if weights is None else as_weights(weights, values.shape)
    rho = _correlations(values, design, codes, prior)
    lowest = 1 / (1 - np.bincount(codes).max()) + 0.01
    own = np.arctanh(np.clip(rho, lowest, 0.99))
    ordered = np.sort(own[~np.isnan(own)])
    if not len(ordered):
        raise DesignError(
            "no gene's correlation can be estimated",
            expected="more samples than coefficients and blocks",
            fix="leave covariates out of the design",
        )
    cut = int(np.floor(len(ordered) * trim))
    consensus = float(np.tanh(ordered[cut : len(ordered) - cut].mean()))
    return Correlation(consensus, pd.Series(np.tanh(own), genes, name="correlation"))


def block_codes(block: Block, samples: pd.Index) -> _Codes:
    """Each sample's block as a number (samples,), in the order of first appearance."""
    given = block.reindex(samples) if isinstance(block, pd.Series) else pd.Series(list(block))
    if len(given) != len(samples):
        what = f"block has {len(given)} entries for {len(samples)} samples"
        raise SchemaError(what, expected="one a sample")
    if given.isna().any():
        absent = samples[given.isna().to_numpy()]
        raise SchemaError(f"block is missing in {len(absent)} samples: {shorten(absent)}")
    return pd.factorize(given)[0].astype(np.intp)


def as_weights(weights: pd.DataFrame | pd.Series | _Array, shape: tuple[int, ...]) -> _Array:
    """Weights as (samples, genes), from one a sample or one an observation; checked."""
    array = np.asarray(weights, dtype=float)
    if array.shape == shape[:1]:
        array = np.broadcast_to(array[:, None], shape)
    if array.shape != shape:
        raise ConfigError(
            f"weights are {' x '.join(map(str, array.shape))}",
            expected=f"one a sample ({shape[0]}), or samples x genes ({shape[0]} x {shape[1]})",
            cause="genes x samples, or other genes",
        )
    if not np.isfinite(array).all() or (array < 0).any():
        what = "negative" if (array < 0).any() else "missing or infinite"
        raise ConfigError(f"weights hold {what} values", expected="numbers of at least 0")
    return array


def require_correlation(correlation: float, codes: _Codes) -> None:
    """Refuse a correlation that no blocks of these sizes can have."""
    largest = int(np.bincount(codes).max())
    lowest = 1 / (1 - largest) if largest > 1 else -1.0
    if not lowest < correlation < 1:
        raise ConfigError(
            f"correlation={correlation:.4g} is out of range",
            expected=f"a number between {lowest:.3g} and 1, for blocks of up to {largest} samples",
            fix="pass duplicate_correlation(...).consensus",
        )


def _require_blocks(codes: _Codes, design: Design) -> None:
    """limma goes on with a correlation of zero where there is nothing to estimate; here not."""
    sizes = np.bincount(codes)
    if sizes.max() < 2:
        raise DesignError(
            "every block holds one sample: there is no correlation within blocks",
            fix="leave block out",
        )
    indicators = (codes[:, None] == np.arange(len(sizes))).astype(float)
    basis = np.linalg.qr(design.matrix[:, design.kept])[0]
    left = indicators[:, 1:] - basis @ (basis.T @ indicators[:, 1:])
    if len(sizes) < 2 or np.abs(left).max() < 1e-8:
        raise DesignError(
            "the design holds the blocks already (or there is only one)",
            fix="leave the block's column out of the design, or leave block out",
        )


def _correlations(y: _Array, design: Design, codes: _Codes, weights: _Array | None) -> _Array:
    """Each gene's share of the block's variance (genes,), NaN where there is none."""
    rho = np.full(y.shape[1], np.nan)
    seen = np.isfinite(y) if weights is None else np.isfinite(y) & (weights > 0)
    for rows, genes in _patterns(seen):
        blocks = np.unique(codes[rows], return_inverse=True)[1]
        number = int(blocks.max()) + 1 if len(blocks) else 0
        columns = len(design.columns)
        if not (len(rows) > columns + 2 and 1 < number < len(rows) - 1):
            continue
        part = design.matrix[rows]
        x = part[:, Design.from_matrix(part).kept]
        for start in range(0, len(genes), _BLOCK):
            some = genes[start : start + _BLOCK]
            w = None if weights is None else weights[np.ix_(rows, some)]
            rotated = _rotate(y[np.ix_(rows, some)], x, blocks, w)
            residual, between = fit_gamma(rotated.d, rotated.number, rotated.total)
            with np.errstate(invalid="ignore", divide="ignore"):
                rho[some] = between / (residual + between)
            # what rounding leaves of a gene without variance correlates with nothing
            size = (y[np.ix_(rows, some)] ** 2).mean(axis=0) * (1 if w is None else w.mean(axis=0))
            flat = rotated.total.sum(axis=1) <= _NOTHING * size * len(rows)
            rho[some[flat]] = np.nan
    return rho


def _patterns(seen: NDArray[np.bool_]) -> Iterator[tuple[_Codes, _Codes]]:
    """The samples that a gene has, and the genes that have just those."""
    whole = seen.all(axis=0)
    if whole.any():
        yield np.arange(len(seen)), np.flatnonzero(whole)
    partly = np.flatnonzero(~whole)
    if not len(partly):
        return
    kinds, which = np.unique(seen[:, partly].T, axis=0, return_inverse=True)
    for k, kind in enumerate(kinds):
        yield np.flatnonzero(kind), partly[which.ravel() == k]


def _rotate(y: _Array, x: _Array, codes: _Codes, weights: _Array | None) -> _Rotated:
    """The residuals' squares by the eigenvalues of G = Z'(I - QQ')Z, with Z the block indicators.

    Within blocks of one size s, G = s I - B'B with B = Q'Z of few rows: all but that many
    eigenvalues are s, so that the problem left is as small as the design. statmod scales y and x by
    the roots of the weights, and not Z; so does this.
    """
    if weights is None:
        q = np.linalg.qr(x)[0][None]
    else:
        root = np.sqrt(weights)
        y = root * y
        q = np.linalg.qr(root.T[:, :, None] * x)[0]
    genes, rank = y.shape[1], q.shape[2]
    on_q = np.matmul(q.transpose(0, 2, 1), y.T[:, :, None])
    residual = y.T - np.matmul(q, on_q)[:, :, 0]
    # twice, as rounding leaves a share of what was projected out
    residual -= np.matmul(q, np.matmul(q.transpose(0, 2, 1), residual[:, :, None]))[:, :, 0]
    indicators = (codes[:, None] == np.arange(codes.max() + 1)).astype(float)
    sums = residual @ indicators  # (genes, blocks)
    beside = np.matmul(q.transpose(0, 2, 1), indicators)  # B, (genes or 1, rank, blocks)
    sizes = indicators.sum(axis=0)
    parts = [_reduce(beside, sums, sizes == size, float(size)) for size in np.unique(sizes)]
    small = np.concatenate([part.beside for part in parts], axis=2)
    diagonal = np.concatenate([np.full(part.beside.shape[2], part.size) for part in parts])
    gram = -np.matmul(small.transpose(0, 2, 1), small)
    gram[:, np.arange(len(diagonal)), np.arange(len(diagonal))] += diagonal
    values, vectors = np.linalg.eigh(gram)
    small_sums = np.concatenate([part.inside for part in parts], axis=1)
    on_vectors = np.matmul(small_sums[:, None, :], vectors)[:, 0]
    return _gather(values, on_vectors, parts, (residual**2).sum(axis=1), len(y) - rank, genes)


class _Reduced(NamedTuple):
    """Blocks of one ``size``: B and Z'r in the small subspace, and what is left outside of it."""

    size: float
    beside: _Array
    inside: _Array
    outside: _Array
    number: int


def _reduce(beside: _Array, sums: _Array, these: NDArray[np.bool_], size: float) -> _Reduced:
    b, r = beside[:, :, these], sums[:, these]
    rank, number = b.shape[1:]
    if number <= rank:
        return _Reduced(size, b, r, np.zeros(len(r)), 0)
    basis = np.linalg.qr(b.transpose(0, 2, 1))[0]  # (genes or 1, blocks of this size, rank)
    inside = np.matmul(r[:, None, :], basis)[:, 0]
    left = r - np.matmul(basis, inside[:, :, None])[:, :, 0]
    return _Reduced(size, np.matmul(b, basis), inside, (left**2).sum(axis=1), number - rank)


def _gather(
    values: _Array, on_vectors: _Array, parts: list[_Reduced], squares: _Array, df: int, genes: int
) -> _Rotated:
    """All terms of the gamma model: small eigenvalues, whole sizes, and d = 0."""
    values = np.broadcast_to(values, on_vectors.shape)
    positive = values > _ZERO * max(part.size for part in parts)
    d = np.where(positive, values, 0.0)
    total = np.where(positive, on_vectors**2 / np.where(positive, values, 1.0), 0.0)
    whole = [part for part in parts if part.number]
    shape = (genes, len(whole))
    d = np.hstack([d, np.broadcast_to([part.size for part in whole], shape)])
    outside = np.column_stack([part.outside / part.size for part in whole]) if whole else d[:, :0]
    total = np.hstack([total, outside])
    number = np.hstack(
        [positive.astype(float), np.broadcast_to([float(part.number) for part in whole], shape)]
    )
    rest = df - number.sum(axis=1)
    left = np.maximum(squares - total.sum(axis=1), 0.0) * (rest > 0)
    return _Rotated(
        np.column_stack([d, np.zeros(genes)]),
        np.column_stack([number, rest]),
        np.column_stack([total, left]),
    )
