"""What samples and observations weigh: voom's precisions, own weights, quality, blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.core.errors import ConfigError
from perturbgen.core.system import ONE_BLAS_THREAD
from perturbgen.de.blocks import (
    Block,
    as_weights,
    block_codes,
    duplicate_correlation,
    require_correlation,
)
from perturbgen.de.counts import as_matrix
from perturbgen.de.design import Design
from perturbgen.de.gls import BlockedSolver
from perturbgen.de.normalise import as_sizes
from perturbgen.de.quality import array_weights
from perturbgen.de.solver import Solver
from perturbgen.de.trend import Trend
from perturbgen.de.voom import LogCounts, MeanVariance

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Weighting:
    """Weights (samples, genes) or (samples, 1), each sample's block, the blocks' correlation (None:
    to be estimated), and whether samples are weighted by their quality.
    """

    prior: _Array | None = None
    codes: NDArray[np.intp] | None = None
    correlation: float | None = None
    quality: bool = False

    @classmethod
    def of(
        cls,
        samples: pd.Index,
        genes: pd.Index,
        *,
        weights: pd.DataFrame | pd.Series | _Array | None = None,
        block: Block | None = None,
        correlation: float | None = None,
        quality: bool = False,
    ) -> Weighting:
        """Checked; frames and series are joined by their labels."""
        if weights is not None and quality:
            what = "weights of one's own and quality weights are asked for at once"
            raise ConfigError(what, fix="one of the two")
        if block is None and correlation is not None:
            what = f"correlation={correlation} without block"
            raise ConfigError(what, fix="block= names what the correlated samples share")
        prior = None if weights is None else _positive_weights(weights, samples, genes)
        codes = None if block is None else block_codes(block, samples)
        if codes is not None and correlation is not None:
            require_correlation(correlation, codes)
        return cls(prior, codes, correlation, quality)

    def solver(self, design: Design, correlation: float | None) -> Solver:
        """Least squares on a design; generalised where samples are correlated."""
        if self.codes is None or correlation is None:
            return Solver(design)
        return BlockedSolver(design, self.codes, correlation)


def _positive_weights(
    weights: pd.DataFrame | pd.Series | _Array, samples: pd.Index, genes: pd.Index
) -> _Array:
    if isinstance(weights, pd.DataFrame):
        weights = weights.reindex(index=samples, columns=genes)
    elif isinstance(weights, pd.Series):
        weights = weights.reindex(samples)
    checked = as_weights(weights, (len(samples), len(genes)))
    if (checked == 0).any():
        raise ConfigError(
            f"weights hold {int((checked == 0).sum())} zeros",
            cause="a sample or an observation that is to be left out",
            fix="drop those samples, or weigh them little (1e-3)",
        )
    return checked[:, :1] if np.ndim(weights) == 1 else checked


@ONE_BLAS_THREAD
def voom_logs(
    counts: _Array, sizes: _Array, design: Design, weighting: Weighting, *, span: float | str = 0.5
) -> LogCounts:
    """log CPM of counts (samples, genes) and the weights of their final least squares.

    A correlation that is not given is estimated twice, as limma's users are told to: from voom's
    weights of uncorrelated samples, and from those of voom with the first estimate.
    """
    codes, correlation = weighting.codes, weighting.correlation
    logs = _voom_once(counts, sizes, weighting.solver(design, correlation), weighting, span)
    if codes is None or correlation is not None:
        return logs
    for last in (False, True):
        found = duplicate_correlation(logs.e, design, codes, weights=logs.weights).consensus
        solver = weighting.solver(design, found)
        if last:
            return replace(logs, solver=solver, given=logs.weights)
        logs = _voom_once(counts, sizes, solver, weighting, span)
    raise AssertionError


def _voom_once(
    counts: _Array, sizes: _Array, solver: Solver, weighting: Weighting, span: float | str
) -> LogCounts:
    logs = LogCounts.of(counts, sizes, solver, span=span, prior=weighting.prior)
    if weighting.prior is not None:
        return replace(logs, given=logs.weights * weighting.prior)
    if not weighting.quality:
        return logs
    # as voomWithQualityWeights: the second voom knows of the first's sample weights
    first = _quality(logs)
    logs = LogCounts.of(counts, sizes, solver, span=span, prior=first[:, None])
    own = _quality(logs)
    return replace(logs, given=logs.weights * own[:, None], sample_weights=own)


def _quality(logs: LogCounts) -> _Array:
    design = logs.solver.design
    found = array_weights(logs.e, design, weights=logs.weights, method="genebygene")
    return found.to_numpy()


@ONE_BLAS_THREAD
def value_logs(y: _Array, design: Design, weighting: Weighting) -> LogCounts:
    """Log expressions (samples, genes) of equal precision, or of the weighting's."""
    given = np.ones((len(y), 1)) if weighting.prior is None else weighting.prior
    own = array_weights(y, design).to_numpy() if weighting.quality else None
    given = given if own is None else own[:, None]
    correlation, codes = weighting.correlation, weighting.codes
    if codes is not None and correlation is None:
        weights = None if weighting.prior is None and not weighting.quality else given
        whole = None if weights is None else np.broadcast_to(weights, y.shape)
        correlation = duplicate_correlation(y, design, codes, weights=whole).consensus
    solver = weighting.solver(design, correlation)
    none = MeanVariance(np.zeros(1), np.zeros(1), Trend(np.zeros(1), np.zeros(1)))
    logs = LogCounts(y, np.ones(len(y)), solver, none, given=given, sample_weights=own)
    sigma = np.empty(y.shape[1])

    def keep(columns: slice, part: _Array, weights: _Array) -> None:
        sigma[columns] = solver.weighted(part, weights, solver.coefficients).sigma

    logs.each_block(keep)
    mean, root = y.mean(axis=0), np.sqrt(sigma)
    return replace(logs, mean_variance=MeanVariance(mean, root, Trend.lowess(mean, root, span=0.5)))


@dataclass(frozen=True)
class _Voom:
    """log2 counts per million ``e`` and their precisions ``weights``, both samples x genes.

    ``sample_weights`` (samples,) are part of the weights, where quality weights were asked for.
    """

    e: pd.DataFrame
    weights: pd.DataFrame
    library_size: pd.Series
    mean_variance: MeanVariance
    sample_weights: pd.Series | None = None


@ONE_BLAS_THREAD
def voom(
    counts: pd.DataFrame | _Array,
    design: Design | pd.DataFrame | _Array,
    *,
    norm_factors: pd.Series | _Array | None = None,
    sizes: pd.Series | _Array | None = None,
    weights: pd.DataFrame | pd.Series | _Array | None = None,
    block: Block | None = None,
    correlation: float | None = None,
    quality: bool = False,
    span: float | str = 0.5,
) -> _Voom:
    """log2 CPM and weights of counts (samples, genes) under a design.

    ``norm_factors`` (samples,) scale the library sizes, 1 by default; ``sizes`` (samples,) are
    other ones than the sums of the counts. ``weights`` of samples or of observations are taken into
    account by the fits behind the trend, as is the ``correlation`` of samples of one ``block``. As
    in R the result's weights are the trend's alone, but with ``quality`` (``array_weights`` in
    two passes, as ``voomWithQualityWeights``), where they hold the samples' own. ``span`` is the
    lowess span, or ``"adaptive"``.
    """
    values, samples, genes = as_matrix(counts)
    if not isinstance(design, Design):
        design = Design.from_matrix(design)
    library = values.sum(axis=1) if sizes is None else as_sizes(sizes, samples)
    if norm_factors is not None:
        library = library * as_sizes(norm_factors, samples, "norm_factors")
    if block is not None and correlation is None:
        what = "voom with block= needs the correlation of its samples"
        raise ConfigError(what, fix="correlation=duplicate_correlation(...).consensus")
    weighting = Weighting.of(
        samples, genes, weights=weights, block=block, correlation=correlation, quality=quality
    )
    logs = voom_logs(values, library, design, weighting, span=span)
    plain = replace(logs, given=None).weights if weighting.prior is not None else logs.weights
    own = logs.sample_weights
    return _Voom(
        pd.DataFrame(logs.e, samples, genes),
        pd.DataFrame(plain, samples, genes),
        pd.Series(logs.sizes, samples, name="library_size"),
        logs.mean_variance,
        None if own is None else pd.Series(own, samples, name="sample_weight"),
    )
