"""A contrast's effect and residuals of every gene in one orthonormal basis, and their rotations.

Under the null hypothesis the effect and the residuals are exchangeable by any rotation (Langsrud
2005; Wu et al. 2010).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from perturbgen.core.errors import ConfigError, DesignError
from perturbgen.core.system import spread
from perturbgen.de.gls import BlockedSolver
from perturbgen.de.moderate import Moderation

if TYPE_CHECKING:
    from perturbgen.de.linear import LinearFit

_Array = NDArray[np.float64]
_ROTATIONS = 1000  # at a time
_LARGE_DF = 10_000.0  # beyond it Bailey's formula loses digits


def contrast_effects(fit: LinearFit, position: int, *, correlated: bool = True) -> _Array:
    """Each gene's effect over its unscaled error, then its residual effects (genes, 1 + df).

    The residual effects are those of the Householder reflections of the design with the contrast as
    its last column, as R has them: sums over genes depend on the basis.
    """
    design, logs = fit.design, fit.logs
    weights = fit.weights[position]
    if np.any(weights[design.dropped]):
        what = "the contrast is of a coefficient that others determine"
        raise DesignError(what, fix="a design without that column")
    turn, scale = np.linalg.qr(weights[design.kept][:, None], mode="complete")
    x = design.matrix[:, design.kept] @ turn
    x[:, 0] /= scale[0, 0]
    x = np.roll(x, -1, axis=1)
    samples, rank = x.shape
    effects = np.empty((logs.e.shape[1], samples - rank + 1))
    lower = _cholesky(logs.solver) if correlated else None

    def fill(columns: slice, y: _Array, w: _Array) -> None:
        root = np.sqrt(w).T[:1] if logs.equal else np.sqrt(w).T
        design_of = root[:, :, None] * x
        values = root * y.T
        if lower is not None:
            design_of, values = lower @ design_of, values @ lower.T
        reflected, tau = np.linalg.qr(design_of, mode="raw")
        values = _reflect(np.ascontiguousarray(values), reflected, tau)
        sign = np.sign(reflected[:, rank - 1, rank - 1])
        effects[columns] = values[:, rank - 1 :]
        effects[columns, 0] *= sign

    logs.each_block(fill)
    return effects


def _cholesky(solver: object) -> _Array | None:
    """The inverse of the lower Cholesky factor of the samples' correlations, if there are any."""
    if not isinstance(solver, BlockedSolver):
        return None
    return np.asarray(np.linalg.inv(np.linalg.cholesky(solver.correlations())))


def _reflect(values: _Array, reflected: _Array, tau: _Array) -> _Array:
    """Q'y (genes, samples) by LAPACK's reflections (genes or 1, columns, samples)."""
    for k in range(tau.shape[-1]):
        v = reflected[:, k, k:].copy()
        v[:, 0] = 1
        along = np.einsum("gn,gn->g", np.broadcast_to(v, values[:, k:].shape), values[:, k:])
        values[:, k:] -= (tau[:, k] * along)[:, None] * v
    return values


def hill_z(t: _Array, df: _Array) -> _Array:
    """Normal deviates of t statistics, by Hill's (1970) formula as limma has it."""
    a = df - 0.5
    b = 48 * a * a
    z = a * np.log1p(t / df * t)
    lost = (((-0.4 * z - 3.3) * z - 24) * z - 85.5) / (0.8 * z * z + 100 + b)
    return np.asarray(((lost + z + 3) / b + 1) * np.sqrt(z) * np.sign(t))


def _bailey_z(t: _Array, df: _Array) -> _Array:
    """Normal deviates of t statistics, by Bailey's (1980) formula as limma has it."""
    inner = np.sqrt((df + 19 / 12) * np.log1p(t / (df + 1 / 12) * t))
    return np.asarray((df + 0.125) / (df + 1.125) * inner * np.sign(t))


def rotate_sets(
    effects: _Array,
    moderated: Moderation,
    sets: list[NDArray[np.intp]],
    statistic: str,
    rotations: int,
    rng: np.random.Generator,
) -> list[dict[str, object]]:
    """The shares of responding genes and the p of every set, from rotations that all share."""
    if statistic not in ("mean", "floormean", "mean50", "msq"):
        what = f"statistic={statistic!r} is unknown"
        raise ConfigError(what, expected="'mean', 'floormean', 'mean50' or 'msq'")
    df = effects.shape[1] - 1
    prior = moderated.prior
    z = _bailey_z(effects[:, 0] / np.sqrt(moderated.s2_post), np.minimum(df + prior.df, _LARGE_DF))
    turned = rng.normal(size=(rotations, df + 1))
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    rows: list[dict[str, object]] = [{} for _ in sets]

    def fill(numbers: range) -> None:
        for i in numbers:
            inside = sets[i]
            observed = _statistics(z[inside][:, None], statistic)[:, 0]
            counts = np.zeros(4)
            for start in range(0, rotations, _ROTATIONS):
                part = turned[start : start + _ROTATIONS]
                drawn = _rotated_z(effects[inside], part, prior.scale[inside], prior.df[inside], df)
                found = _statistics(drawn, statistic)
                counts[:2] += [(found[:2] > one).sum() for one in observed[:2]]
                counts[2:] += (found[2:] > observed[2:, None]).sum(axis=1)
            rows[i] = _row(z[inside], counts, statistic, rotations)

    spread(fill, len(sets), step=1, size=effects.size * rotations // max(len(effects), 1))
    return rows


def _row(z: _Array, counts: _Array, statistic: str, rotations: int) -> dict[str, object]:
    if statistic == "mean":
        counts[2] = counts[:2].min()
    p = (counts + 1) / (np.array([2, 2, 1, 1]) * rotations + 1)
    active = np.sqrt(2)
    return {
        "NGenes": len(z),
        "PropDown": float((z < -active).mean()),
        "PropUp": float((z > active).mean()),
        "Direction": "Up" if p[1] < p[0] else "Down",
        "PValue": float(p[2]),
        "PValue.Mixed": float(p[3]),
    }


def _rotated_z(
    effects: _Array, rotations: _Array, scale: _Array, prior_df: _Array, df: int
) -> _Array:
    """Moderated deviates (genes, rotations) after rotations of the effects (genes, 1 + df)."""
    drawn = effects @ rotations.T
    variance = ((effects**2).sum(axis=1, keepdims=True) - drawn**2) / df
    infinite = np.isinf(prior_df)
    weight = np.where(infinite, 0.0, prior_df)[:, None]
    blended = (weight * scale[:, None] + df * variance) / (weight + df)
    blended[infinite] = scale[infinite, None]
    return _bailey_z(drawn / np.sqrt(blended), np.minimum(df + prior_df, _LARGE_DF)[:, None])


def _statistics(z: _Array, kind: str) -> _Array:
    """Set statistics down, up, either and mixed (4, rotations) of deviates (genes, rotations)."""
    if kind == "mean":
        up = z.mean(axis=0)
        return np.array([-up, up, np.abs(up), np.abs(z).mean(axis=0)])
    if kind == "mean50":
        half = (len(z) + 1) // 2
        ordered, large = np.sort(z, axis=0), np.sort(np.abs(z), axis=0)
        down, up = -ordered[:half].mean(axis=0), ordered[-half:].mean(axis=0)
        return np.array([down, up, np.maximum(down, up), large[-half:].mean(axis=0)])
    if kind == "msq":
        down, up = (np.maximum(one, 0) ** 2 for one in (-z, z))
        mixed = (z**2).mean(axis=0)
    else:
        down, up = np.maximum(-z, 0), np.maximum(z, 0)
        mixed = np.maximum(np.abs(z), norm.isf(0.25)).mean(axis=0)
    sides = down.mean(axis=0), up.mean(axis=0)
    return np.array([*sides, np.maximum(*sides), mixed])
