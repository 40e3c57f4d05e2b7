"""One fit of the native backend: counts and a design in, moderated statistics out.

Contrasts of coefficients are taken exactly, or with the approximation of limma's
``contrasts.fit``. ``"exact"`` takes each gene's own weighted covariance: a contrast then has the
same value however the design is coded. ``"limma"`` combines each gene's coefficient standard
errors with the correlations of the *unweighted* design. With voom weights that is an approximation
which depends on the order of the levels: renaming plates changes p-values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from perturbgen.core.errors import ConfigError
from perturbgen.core.system import ONE_BLAS_THREAD, spread
from perturbgen.de.design import Design
from perturbgen.de.moderate import moderate
from perturbgen.de.normalise import METHODS, norm_factors
from perturbgen.de.solver import Solver
from perturbgen.de.tails import log_p_t
from perturbgen.de.voom import LogCounts, MeanVariance

if TYPE_CHECKING:
    from torch import Tensor

_Array = NDArray[np.float64]
_MOST_CORRELATIONS = 250_000_000  # numbers, two gigabytes


@dataclass(frozen=True)
class _Approximation:
    """limma's contrasts: ``weights`` (contrasts, coefficients), and what pairs of those share.

    The variance of a contrast is sum_i c_i^2 u_i^2 + sum_{i<j} 2 c_i c_j r_ij u_i u_j; ``shared``
    (contrasts, pairs) are the 2 c_i c_j r_ij, with the pairs in ``first`` and ``second``.
    """

    weights: csr_matrix
    shared: csr_matrix
    first: NDArray[np.intp]
    second: NDArray[np.intp]

    @classmethod
    def of(cls, weights: _Array, correlation: _Array) -> _Approximation:
        """Of ``weights`` (contrasts, coefficients) and the coefficients' ``correlation``."""
        contrast, first, second = [], [], []
        for k, row in enumerate(weights):
            used = np.flatnonzero(row)
            i, j = np.triu_indices(len(used), 1)
            contrast.append(np.full(len(i), k))
            first.append(used[i])
            second.append(used[j])
        at, i, j = (np.concatenate(parts) for parts in (contrast, first, second))
        values = 2 * weights[at, i] * weights[at, j] * correlation[i, j]
        shared = csr_matrix((values, (at, np.arange(len(at)))), shape=(len(weights), len(at)))
        return cls(csr_matrix(weights), shared, i, j)


@dataclass(frozen=True)
class _Contrasts:
    """What a fit must compute, and how the contrasts follow from it.

    ``functions`` are (functions, groups) and (functions, q) of a basis' coefficients: the contrasts
    themselves for the exact kind; for limma's, coefficients that its ``approximation`` combines.
    """

    functions: tuple[csr_matrix, _Array]
    approximation: _Approximation | None = None

    @classmethod
    def of(
        cls, design: Design, weights: _Array, kind: str, solver: Solver | None = None
    ) -> _Contrasts:
        """Contrasts with ``weights`` (contrasts, columns of the design), 0 on dropped columns."""
        basis = design.basis

        def functions(wanted: _Array) -> tuple[csr_matrix, _Array]:
            on_groups, on_q = basis.functionals(wanted)
            return csr_matrix(on_groups), on_q  # a contrast touches two groups of hundreds

        if kind == "exact":
            return cls(functions(weights))
        columns = np.flatnonzero(weights.any(axis=0))
        coefficients = np.zeros((len(columns), weights.shape[1]))
        coefficients[np.arange(len(columns)), columns] = 1
        covariance = (solver or basis).unscaled_covariance(coefficients)
        scale = np.sqrt(np.diag(covariance))
        correlation = covariance / np.outer(scale, scale)
        return cls(functions(coefficients), _Approximation.of(weights[:, columns], correlation))

    def room_for(self, genes: int) -> tuple[_Array, _Array, _Array]:
        """Arrays for residual SD (genes,), effects and unscaled errors (contrasts, genes)."""
        kind = self.approximation
        size = (self.functions[0] if kind is None else kind.weights).shape[0]
        return np.empty(genes), np.empty((size, genes)), np.empty((size, genes))

    def combine(self, effects: _Array, unscaled: _Array) -> tuple[_Array, _Array]:
        """Effects and unscaled standard errors of the contrasts from those of the functions."""
        limma = self.approximation
        if limma is None:
            return effects, unscaled
        pairs = unscaled[limma.first] * unscaled[limma.second]
        variances = limma.weights.power(2) @ unscaled**2 + limma.shared @ pairs
        return limma.weights @ effects, np.sqrt(variances)


@dataclass(frozen=True)
class FitMethod:
    """How a fit is made; see :func:`perturbgen.de.limma_table`."""

    contrasts: str = "exact"
    robust: bool = False
    trend: bool = False
    normalise: str = "tmm"
    span: float | str = 0.5
    device: str = "cpu"

    def require_known(self) -> None:
        """Refuse unknown words and impossible numbers."""
        allowed: dict[str, tuple[str, tuple[str, ...]]] = {
            "contrasts": (self.contrasts, ("exact", "limma")),
            "normalise": (self.normalise, tuple(METHODS)),
        }
        for name, (value, known) in allowed.items():
            if value not in known:
                words = " or ".join(map(repr, known))
                raise ConfigError(f"{name}={value!r} is unknown", expected=words)
        span = self.span
        if span != "adaptive" and not (isinstance(span, (int, float)) and 0 < span <= 1):
            possible = 'a number in (0, 1], or "adaptive"'
            raise ConfigError(f"span={span!r} is not possible", expected=possible)
        if self.device.partition(":")[0] not in ("cpu", "cuda"):
            raise ConfigError(f"device={self.device!r} is unknown", expected="'cpu' or 'cuda'")


@dataclass(frozen=True)
class FitResult:
    """Statistics of one fit: (contrasts, genes), and (genes,) for what all contrasts share."""

    effects: _Array
    se: _Array
    t: _Array
    log_p: _Array
    df_total: _Array
    ave_expr: _Array
    sigma: _Array
    mean_variance: MeanVariance


@ONE_BLAS_THREAD
def log_counts(counts: _Array, design: Design, method: FitMethod) -> LogCounts:
    """log CPM of counts (samples, genes) and their precisions, by normalised library sizes."""
    return LogCounts.of(counts, library_sizes(counts, design, method), design, span=method.span)


def library_sizes(
    counts: _Array, design: Design, method: FitMethod, own: _Array | None = None
) -> _Array:
    """Normalised library sizes (samples,), of the counts' sums or one's ``own``."""
    sizes = counts.sum(axis=1) if own is None else own
    sizes = sizes * norm_factors(counts, method.normalise, sizes=sizes).to_numpy()
    if design.offset is not None:  # which tells a sample's depth as its library size does
        sizes = (sizes + 1) * 2.0**design.offset - 1
    return np.asarray(sizes)


@ONE_BLAS_THREAD
def fit_genes(
    logs: LogCounts,
    design: Design,
    weights: _Array,
    method: FitMethod,
    tick: Callable[[float], None] | None = None,
) -> tuple[_Array, _Array, _Array]:
    """Residual SD (genes,), effects and unscaled errors of contrasts (contrasts, genes)."""
    # weights that all genes share leave nothing to approximate
    kind = "exact" if logs.equal else method.contrasts
    contrasts = _Contrasts.of(design, weights, kind, logs.solver)
    return _fit_genes(logs, contrasts, device=method.device, tick=tick)


def gene_correlations(
    logs: LogCounts, design: Design, weights: _Array, method: FitMethod
) -> _Array:
    """Correlations (genes, contrasts, contrasts) of contrasts' errors under each gene's weights.

    Of two contrasts of unit variance they are what the variance of their sum has over two, halved:
    the fit of sums needs no other solver.
    """
    scale = np.sqrt(np.diag(design.basis.unscaled_covariance(weights)))
    first, second = np.triu_indices(len(weights), 1)
    genes = logs.e.shape[1]
    if genes * (len(weights) ** 2 + len(first)) > _MOST_CORRELATIONS:
        what = f"an exact F of {len(weights)} contrasts and {genes:,} genes needs too much memory"
        raise ConfigError(what, fix='fewer contrasts, or contrasts="limma"')
    unit = weights / scale[:, None]
    asked = np.concatenate([unit, unit[first] + unit[second]])
    variances = fit_genes(logs, design, asked, replace(method, contrasts="exact"))[2] ** 2
    own, sums = variances[: len(unit)], variances[len(unit) :]
    shared = (sums - own[first] - own[second]) / 2 / np.sqrt(own[first] * own[second])
    found = np.ones((genes, len(unit), len(unit)))
    found[:, first, second] = found[:, second, first] = shared.T
    return found


@ONE_BLAS_THREAD
def fit_native(
    counts: _Array,
    design: Design,
    weights: _Array,
    method: FitMethod,
    tick: Callable[[float], None] | None = None,
) -> FitResult:
    """limma-voom of counts (samples, genes) with contrast ``weights`` (contrasts, columns)."""
    logs = log_counts(counts, design, method)
    sigma, effects, unscaled = fit_genes(logs, design, weights, method, tick)
    ave_expr = logs.e.mean(axis=0)
    moderated = moderate(
        sigma**2, design.df_residual, mean=ave_expr, robust=method.robust, trend=method.trend
    )
    df = moderated.df_total
    se, t, log_p = test_effects(effects, unscaled, np.sqrt(moderated.s2_post), df)
    return FitResult(effects, se, t, log_p, df, ave_expr, sigma, logs.mean_variance)


def _fit_genes(
    logs: LogCounts,
    contrasts: _Contrasts,
    *,
    device: str = "cpu",
    tick: Callable[[float], None] | None = None,
) -> tuple[_Array, _Array, _Array]:
    """Residual SD (genes,), effects and unscaled standard errors (contrasts, genes)."""
    if device != "cpu":
        return _fit_genes_on(device, logs, contrasts, tick)
    sigma, effects, unscaled = contrasts.room_for(logs.e.shape[1])

    def fit(columns: slice, y: _Array, weights: _Array) -> None:
        fitted = logs.solver.weighted(y, weights, contrasts.functions)
        sigma[columns] = fitted.sigma
        found = contrasts.combine(fitted.effects, fitted.unscaled)
        effects[:, columns], unscaled[:, columns] = found

    logs.each_block(fit, done=tick)
    return sigma, effects, unscaled


def _fit_genes_on(
    device: str, logs: LogCounts, contrasts: _Contrasts, tick: Callable[[float], None] | None = None
) -> tuple[_Array, _Array, _Array]:
    """The same on a torch device."""
    fitter = _TorchFitter(logs, contrasts.functions, device)
    genes = logs.e.shape[1]
    sigma, effects, unscaled = contrasts.room_for(genes)
    for start in range(0, genes, fitter.block):
        columns = slice(start, min(start + fitter.block, genes))
        sigma[columns], raw, scale = fitter.fit(logs.e[:, columns])
        effects[:, columns], unscaled[:, columns] = contrasts.combine(raw, scale)
        if tick is not None:
            tick(columns.stop - start)
    return sigma, effects, unscaled


def test_effects(
    effects: _Array, unscaled: _Array, sd: _Array, df: _Array
) -> tuple[_Array, _Array, _Array]:
    """Standard errors, t and natural log p (contrasts, genes); ``sd`` and ``df`` are (genes,)."""
    se, t, log_p = (np.empty_like(effects) for _ in range(3))
    # with one df for all genes a row at a time stays in the cache; with several they are gone
    # through once a block
    shared, step = (float(df[0]), 1) if (df == df[0]).all() else (df, 64)

    def fill(rows: range) -> None:
        part = slice(rows.start, rows.stop)
        np.multiply(unscaled[part], sd, out=se[part])
        with np.errstate(invalid="ignore", divide="ignore"):
            np.divide(effects[part], se[part], out=t[part])
        log_p[part] = log_p_t(t[part], shared, total=effects.size)

    spread(fill, len(effects), step=step, size=effects.size)
    return se, t, log_p


class _TorchFitter:
    """Least squares on one basis; what all blocks of genes share lies on the device.

    ``functions`` are (functions, groups) and (functions, q) of the basis' coefficients.
    """

    block = 2048  # genes at a time, whose (genes, q, groups) arrays fit the device together

    def __init__(self, logs: LogCounts, functions: tuple[csr_matrix, _Array], device: str) -> None:
        import torch

        if device.startswith("cuda") and not torch.cuda.is_available():
            what = f"device={device!r}, but torch finds no CUDA device"
            raise ConfigError(what, fix='device="cpu"')

        def put(values: _Array) -> Tensor:
            # float32 would lose the digits that R's numbers are compared to
            return torch.as_tensor(np.ascontiguousarray(values), dtype=torch.float64, device=device)

        solver, trend = logs.solver, logs.mean_variance.trend
        self.put, self.df_residual = put, solver.df_residual
        self.q = put(solver.q)
        self.indicators = put((solver.codes == np.arange(solver.groups)[:, None]).astype(float))
        self.group_sizes = self.indicators.sum(1, keepdim=True)
        self.knots, self.heights = put(trend.x), put(trend.y)
        self.depth = put(np.log2(logs.sizes + 1) - np.log2(1e6))[:, None]
        by_group, by_q = functions
        self.by_group, self.by_q = put(by_group.toarray()), put(by_q)

    def fit(self, e: _Array) -> tuple[_Array, _Array, _Array]:
        """Residual SD (genes,), effects and unscaled errors (functions, genes) of log CPM."""
        import torch

        y = self.put(e)
        fitted = self.predict(self.indicators @ y / self.group_sizes, self.q.T @ y)
        w = self.precision(fitted + self.depth)
        mass = self.indicators @ w
        cross = torch.einsum("dn,nq,ng->gqd", self.indicators, self.q, w)
        ratio = cross / mass.T[:, None, :]
        schur = torch.einsum("nq,np,ng->gqp", self.q, self.q, w) - ratio @ cross.transpose(1, 2)
        means = self.indicators @ (w * y) / mass
        right = (self.q.T @ (w * y)).T - (cross @ means.T[:, :, None])[:, :, 0]
        root = torch.linalg.cholesky(schur)
        on_q = torch.cholesky_solve(right[:, :, None], root)[:, :, 0].T
        on_groups = means - torch.einsum("gqd,qg->dg", ratio, on_q)
        sigma = ((w * (y - self.predict(on_groups, on_q)) ** 2).sum(0) / self.df_residual).sqrt()
        shifted = self.by_q.T - torch.einsum("gqd,md->gqm", ratio, self.by_group)
        spread = torch.linalg.solve_triangular(root, shifted, upper=False)
        variances = self.by_group**2 @ (1 / mass) + (spread**2).sum(1).T
        effects = self.by_group @ on_groups + self.by_q @ on_q
        return sigma.cpu().numpy(), effects.cpu().numpy(), variances.sqrt().cpu().numpy()

    def predict(self, on_groups: Tensor, on_q: Tensor) -> Tensor:
        """Fitted values (samples, genes)."""
        return self.indicators.T @ on_groups + self.q @ on_q

    def precision(self, fitted: Tensor) -> Tensor:
        """voom's weights at fitted log2 counts."""
        import torch

        place = fitted.clamp(self.knots[0], self.knots[-1]).contiguous()
        right = torch.searchsorted(self.knots, place).clamp(1, len(self.knots) - 1)
        left = right - 1
        share = (place - self.knots[left]) / (self.knots[right] - self.knots[left])
        return (self.heights[left] + share * (self.heights[right] - self.heights[left])) ** -4
