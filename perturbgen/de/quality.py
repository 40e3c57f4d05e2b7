"""How far each sample can be trusted: limma's ``arrayWeights`` (Ritchie et al. 2006).

A sample's variance is a gene's own times exp(Z gamma), the same factor for all genes; the weights
are exp(-Z gamma), with a geometric mean of 1. gamma is found by scoring, towards zero by a prior
worth ``prior_n`` genes: gene by gene in one pass (each gene moves the weights that the next one is
fitted with, so that the order of the genes matters a little), or by REML on all genes until it
converges.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

from perturbgen.core.errors import ConfigError, DesignError
from perturbgen.core.system import ONE_BLAS_THREAD
from perturbgen.de.blocks import as_weights
from perturbgen.de.design import Design

log = logging.getLogger(__name__)

_Array = NDArray[np.float64]
_NOTHING = 1e-15  # a residual variance that says nothing of the samples
_BLOCK = 64  # genes at a time
_CORRECTIONS = 8  # of a step, before the whole system is solved


@ONE_BLAS_THREAD
def array_weights(
    y: pd.DataFrame | _Array,
    design: Design | pd.DataFrame | _Array,
    *,
    weights: pd.DataFrame | _Array | None = None,
    groups: Sequence[object] | None = None,
    prior_n: float = 10,
    method: Literal["auto", "genebygene", "reml"] = "auto",
    iterations: int = 50,
    tolerance: float = 1e-5,
) -> pd.Series:
    """Weights (samples,) of log expressions y (samples, genes).

    ``weights`` are voom's; ``groups`` (samples,) share a variance factor, otherwise each sample has
    its own. ``"auto"`` is ``"reml"`` without weights and ``"genebygene"`` with them, as in limma.
    """
    values = np.array(y, dtype=float)
    samples = y.index if isinstance(y, pd.DataFrame) else pd.RangeIndex(len(values))
    if not isinstance(design, Design):
        design = Design.from_matrix(design)
    if method not in ("auto", "genebygene", "reml"):
        what = f"method={method!r} is unknown"
        raise ConfigError(what, expected="'auto', 'genebygene' or 'reml'")
    if design.df_residual < 2 or values.shape[1] < 2:
        raise DesignError(
            "sample weights need two genes and two residual degrees of freedom: "
            f"{values.shape[1]} genes, {design.df_residual} degrees",
            fix="leave covariates out, or do without sample weights",
        )
    prior = None
    if weights is not None:
        prior = as_weights(weights, values.shape)
        values[prior == 0] = np.nan
        prior = np.where(prior == 0, 1.0, prior)
    values[np.isinf(values)] = np.nan
    if method == "auto":
        whole = prior is None and not np.isnan(values).any()
        method = "reml" if whole else "genebygene"
    effects = _Effects.of(None if groups is None else np.asarray(groups), len(values), prior_n)
    x = design.matrix[:, design.kept]
    if method == "genebygene":
        found = _gene_by_gene(values, x, prior, effects)
    else:
        known = ~np.isnan(values).any(axis=0)
        prior = None if prior is None else prior[:, known]
        found = _reml(values[:, known], x, prior, effects, iterations, tolerance)
    return pd.Series(found, samples, name="sample_weight")


@dataclass(frozen=True)
class _Effects:
    """The variance model: ``z`` (samples, effects), or None for an effect a sample, of sum zero."""

    z: _Array | None
    samples: int
    prior: float

    @classmethod
    def of(cls, groups: NDArray[np.generic] | None, samples: int, prior: float) -> _Effects:
        if prior < 0:
            raise ConfigError(f"prior_n={prior} is not possible", expected="a number of at least 0")
        if groups is None:
            return cls(None, samples, prior)
        if groups.shape != (samples,):
            what = f"groups are {len(groups)} for {samples} samples"
            raise ConfigError(what, expected="one a sample")
        levels, codes = np.unique(groups.astype(str), return_inverse=True)
        if len(levels) < 2:
            raise ConfigError("all samples are in one variance group", expected="at least two")
        z = np.eye(len(levels))[codes][:, :-1] - (codes == len(levels) - 1)[:, None]
        return cls(z - z.mean(axis=0), samples, prior)

    def step(self, information: _Array, score: _Array) -> _Array:
        """Z times the step (samples,), of an information (samples, samples) and a score."""
        if self.z is not None:
            inner = self.z.T @ information @ self.z
            return np.asarray(self.z @ np.linalg.solve(inner, self.z.T @ score))
        # The information takes equal changes to a multiple of themselves (the prior's), so that a
        # score of mean zero gives a step of sum zero: no contrasts are needed.
        moved, failed = lapack.dposv(information, score - score.mean(), lower=1)[1:]
        if failed:
            raise np.linalg.LinAlgError
        return np.asarray(moved - moved.mean())

    @property
    def number(self) -> int:
        """How many effects there are."""
        return int(self.samples - 1 if self.z is None else self.z.shape[1])


def _gene_by_gene(y: _Array, x: _Array, prior: _Array | None, effects: _Effects) -> _Array:
    """One pass over the genes, with a step after each."""
    samples, genes = y.shape
    log_weights = np.zeros(samples)
    information = _Information(samples, effects)
    y = np.ascontiguousarray(y.T)
    seen: NDArray[np.bool_] = np.isfinite(y)
    whole = np.atleast_1d(seen.all(axis=1))
    own = None if prior is None else np.ascontiguousarray(prior.T)
    for g in range(genes):
        w = np.exp(log_weights)
        if own is not None:
            w *= own[g]
        found = _fit_one(y[g], x, w) if whole[g] else _fit_singular(y[g], x, w, seen[g])
        if found is None:
            continue
        share, free, variance = found
        information.add(free)
        log_weights -= information.step(share / variance - free)
    return np.exp(log_weights)


class _Information:
    """What genes have told of the samples' variances so far: sum of diag(h) - h h' / sum(h).

    h (samples,) are a gene's 1 - leverages. They hardly differ from gene to gene, so that the
    matrix is close to D - m m' / sum(m), with m the sum of the h and D = diag(m) + prior: steps are
    found by solving with that and correcting, in a few products instead of a factorisation.
    """

    def __init__(self, samples: int, effects: _Effects) -> None:
        self.effects = effects
        self.matrix = np.asfortranarray(np.eye(samples) * effects.prior)  # its lower triangle
        self.diagonal = self.matrix.ravel(order="K")[:: samples + 1]
        self.total, self.ones = np.zeros(samples), np.ones(samples)

    def add(self, free: _Array) -> None:
        """Another gene's 1 - leverages (samples,)."""
        blas.dsyr(-1.0 / free.dot(self.ones), free, a=self.matrix, lower=1, overwrite_a=1)
        self.diagonal += free
        self.total += free

    def step(self, score: _Array) -> _Array:
        """The change of the log variances (samples,)."""
        if self.effects.z is None:
            score = score - score.dot(self.ones) / len(score)
            near = self.total + self.effects.prior
            slope = self.total / near
            bent = slope.dot(self.ones)
            goal = 1e-26 * score.dot(score)
            moved, left = np.zeros_like(score), score
            for _ in range(_CORRECTIONS):
                change = left / near
                change -= change.dot(self.ones) / bent * slope  # changes sum to zero
                moved += change
                left = blas.dsymv(-1.0, self.matrix, moved, 1.0, score, lower=1)
                if left.dot(left) <= goal:
                    return moved
        full = np.tril(self.matrix)
        return self.effects.step(full + np.tril(full, -1).T, score)


def _fit_one(y: _Array, x: _Array, w: _Array) -> tuple[_Array, _Array, float] | None:
    """A gene's weighted squared residuals, 1 - leverages, and residual variance."""
    weighted = x.T * w
    gram = weighted @ x
    root, failed = lapack.dpotrf(gram, lower=1)
    if failed or (root.diagonal() ** 2 < 1e-9 * gram.diagonal()).any():
        return _fit_singular(y, x, w, np.ones(len(y), dtype=bool))
    half = lapack.dtrtrs(root, weighted, lower=1)[0]
    residual = y - half.dot(y).dot(half) / w
    share = w * residual * residual
    free = 1 - np.einsum("pn,pn->n", half, half) / w
    variance = float(share.sum()) / (len(y) - len(half))
    return None if variance < _NOTHING else (share, free, variance)


def _fit_singular(
    y: _Array, x: _Array, w: _Array, seen: NDArray[np.bool_]
) -> tuple[_Array, _Array, float] | None:
    """The same of the samples that a gene has, where they may not tell all coefficients apart."""
    if seen.sum() <= 2:
        return None
    y, root = np.where(seen, y, 0.0), np.sqrt(np.where(seen, w, 0.0))
    u, size, _ = np.linalg.svd(root[:, None] * x, full_matrices=False)
    q = u[:, size > 1e-7 * size[0]]
    df = int(seen.sum()) - q.shape[1]
    if df < 2:
        return None
    share = (root * y - q @ (q.T @ (root * y))) ** 2
    variance = float(share.sum()) / df
    free = np.where(seen, 1 - (q**2).sum(axis=1), 0.0)
    return None if variance < _NOTHING else (share, free, variance)


def _reml(
    y: _Array, x: _Array, prior: _Array | None, effects: _Effects, iterations: int, tolerance: float
) -> _Array:
    """Scoring on all genes at once until the step says that no more is to gain."""
    if prior is None:
        y = y[:, _squares(y, np.linalg.qr(x)[0]).sum(axis=0) / (len(y) - x.shape[1]) >= _NOTHING]
    samples, genes = y.shape
    if genes < 2:
        return np.ones(samples)
    w, before = np.ones(samples), np.inf
    total = genes + effects.prior
    for _ in range(iterations):
        information, score = (_moments if prior is None else _moments_weighted)(y, x, w, prior)
        information += effects.prior * np.eye(samples)
        score += effects.prior * (w - 1)
        try:
            step = effects.step(information, score)
        except np.linalg.LinAlgError:
            step = np.full(samples, np.nan)
        # limma divides by the number of genes once more where they have weights
        gain = float(score @ step) / total / effects.number
        gain /= 1 if prior is None else total
        if np.isnan(gain) or (prior is None and gain >= before):
            log.warning("sample weights: the tolerance cannot be reached, stopped at %.2g", before)
            return w
        before = gain
        with np.errstate(over="ignore"):
            moved = w * np.exp(-step)
        if not np.isfinite(moved).all():
            log.warning("sample weights diverge, stopped at %.2g", gain)
            return w
        w = moved
        if gain < tolerance:
            return w
    log.warning("sample weights have not converged in %d iterations", iterations)
    return w


def _squares(y: _Array, q: _Array) -> _Array:
    return np.asarray((y - q @ (q.T @ y)) ** 2)


def _moments(y: _Array, x: _Array, w: _Array, _: _Array | None) -> tuple[_Array, _Array]:
    """Information (samples, samples) and score (samples,) of genes that share one design."""
    samples, genes = y.shape
    root = np.sqrt(w)[:, None]
    q = np.linalg.qr(root * x)[0]
    share = _squares(root * y, q)
    share /= share.sum(axis=0) / (samples - x.shape[1])
    hat = q @ q.T
    h = np.diag(hat)
    full = np.diag(1 - 2 * h) + hat**2
    rows = full.sum(axis=1)
    score = share.sum(axis=1) - genes * (1 - h)
    return genes * (full - np.outer(rows, rows / rows.sum())), score


def _moments_weighted(
    y: _Array, x: _Array, w: _Array, prior: _Array | None
) -> tuple[_Array, _Array]:
    """The same of genes with weights of their own."""
    samples, genes = y.shape
    information, score = np.zeros((samples, samples)), np.zeros(samples)
    for start in range(0, genes, _BLOCK):
        columns = slice(start, start + _BLOCK)
        own = w[:, None] * (1.0 if prior is None else prior[:, columns])
        root = np.sqrt(own).T
        q = np.linalg.qr(root[:, :, None] * x)[0]
        values = root * y[:, columns].T
        on_q = np.matmul(q.transpose(0, 2, 1), values[:, :, None])
        share = (values - np.matmul(q, on_q)[:, :, 0]) ** 2
        variance = share.sum(axis=1) / (samples - x.shape[1])
        hat = np.matmul(q, q.transpose(0, 2, 1))
        h = np.einsum("gnn->gn", hat).copy()
        full = hat**2
        np.einsum("gnn->gn", full)[:] += 1 - 2 * h
        rows = full.sum(axis=2)
        information += full.sum(axis=0) - rows.T @ (rows / rows.sum(axis=1, keepdims=True))
        told = variance > _NOTHING
        score += (share[told] / variance[told, None] - (1 - h[told])).sum(axis=0)
    return information, score
