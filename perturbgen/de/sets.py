"""Sets of genes: limma's ``camera``, ``fry`` and ``roast`` on a fit's contrast.

All three start from each gene's moderated effect; fry and roast, and camera with a correlation that
it estimates, from its residuals in an orthonormal basis, too, which is R's to the last reflection.
"""

from __future__ import annotations

import gzip
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import betaincc, stdtr
from scipy.stats import chi2, rankdata

from perturbgen.core.errors import ConfigError, SchemaError, shorten, suggest
from perturbgen.core.system import ONE_BLAS_THREAD
from perturbgen.de.adjust import adjust_p
from perturbgen.de.moderate import moderate
from perturbgen.de.rotations import contrast_effects, hill_z, rotate_sets

if TYPE_CHECKING:
    from perturbgen.de.linear import LinearFit

log = logging.getLogger(__name__)

_Array = NDArray[np.float64]
_Positions = dict[str, NDArray[np.intp]]
GeneSets = Mapping[str, Sequence[str]]


def read_gmt(path: str | Path) -> dict[str, list[str]]:
    """Gene sets by name from a GMT file: a line a set, of its name, a description and its genes."""
    path = Path(path)
    if not path.is_file():
        raise SchemaError(f"no file {str(path)!r}", expected="a GMT file of gene sets")
    read = gzip.open if path.suffix == ".gz" else open
    with read(path, "rt", encoding="utf-8") as lines:
        rows = [line.rstrip("\r\n").split("\t") for line in lines if line.strip()]
    sets: dict[str, list[str]] = {}
    for number, (name, *rest) in enumerate(rows, 1):
        genes = [gene.strip() for gene in rest[1:] if gene.strip()]
        if not genes:
            raise SchemaError(
                f"set {number} of {path.name}, {name[:60]!r}, has no genes",
                expected="name, description and genes, with tabs between them",
            )
        if name in sets:
            raise SchemaError(f"{path.name} has two sets {name!r}", fix="rename or drop one")
        sets[name] = list(dict.fromkeys(genes))
        if len(sets[name]) < len(genes):
            log.warning("set %r names genes more than once; each counts once", name)
    if not sets:
        raise SchemaError(f"{path.name} holds no gene sets", expected="a line a set")
    return sets


@ONE_BLAS_THREAD
def camera(
    fit: LinearFit,
    sets: GeneSets,
    contrast: str | None = None,
    *,
    correlation: float | None = 0.01,
    use_ranks: bool = False,
    allow_negative: bool = False,
    trend: bool = False,
) -> pd.DataFrame:
    """Do genes of a set respond more than other genes? (Wu & Smyth 2012), a row a set.

    ``correlation`` is that of genes of one set, None to estimate each set's own from the residuals;
    ``use_ranks`` replaces the t-like test by one of ranks.
    """
    position, positions = _contrast(fit, contrast), _match(fit, sets)
    if correlation is not None and not -1 < correlation < 1:
        what = f"correlation={correlation} is out of range"
        raise ConfigError(what, expected="a number between -1 and 1, or None to estimate it")
    effects = contrast_effects(fit, position, correlated=False)
    genes, df = len(effects), effects.shape[1] - 1
    variance = (effects[:, 1:] ** 2).mean(axis=1)
    mean = fit.logs.e.mean(axis=0)
    moderated = moderate(variance, df, mean=mean, trend=trend)
    statistic = effects[:, 0] / np.sqrt(moderated.s2_post)
    if not use_ranks:
        statistic = hill_z(statistic, moderated.df_total)
    scaled = effects[:, 1:] / np.sqrt(np.maximum(variance, 1e-8))[:, None]
    test_df = float(min(df, genes - 2))
    if correlation is not None:
        test_df = np.inf if use_ranks else genes - 2.0
    ranks = rankdata(statistic)
    rows = []
    for inside in positions.values():
        m = len(inside)
        found = np.nan if m < 2 else correlation
        if correlation is None and m > 1:
            inflation = m * float((scaled[inside].mean(axis=0) ** 2).mean())
            found = (inflation - 1) / (m - 1)
        if use_ranks:
            down, up = _rank_sum(ranks, inside, found, test_df, allow_negative)
        else:
            down, up = _shifted(statistic, inside, found, test_df, allow_negative)
        direction = "Down" if down < up else "Up"
        row = {"NGenes": m, "Correlation": found, "Direction": direction}
        rows.append({**row, "PValue": 2 * min(down, up)})
    table = pd.DataFrame(rows, index=pd.Index(list(positions), name="set"))
    if correlation is not None:
        table = table.drop(columns="Correlation")
    table["FDR"] = adjust_p(table["PValue"].to_numpy())
    return table.sort_values("PValue", kind="stable")


def _shifted(
    statistic: _Array, inside: NDArray[np.intp], found: float | None, df: float, negative: bool
) -> tuple[float, float]:
    """p down and up of the set's mean against the others', inflated for its correlation."""
    genes, m = len(statistic), len(inside)
    others = genes - m
    inflation = 1.0 if m < 2 or found is None else 1 + (m - 1) * found
    if not negative:
        inflation = max(1.0, inflation)
    if not others:
        return np.nan, np.nan
    delta = genes / others * (statistic[inside].mean() - statistic.mean())
    pooled = (genes - 1) * statistic.var(ddof=1) - delta**2 * m * others / genes
    t = delta / np.sqrt(pooled / (genes - 2) * (inflation / m + 1 / others))
    return float(stdtr(df, t)), float(stdtr(df, -t))


def _rank_sum(
    ranks: _Array, inside: NDArray[np.intp], found: float | None, df: float, negative: bool
) -> tuple[float, float]:
    """p down and up of Wilcoxon's test with correlated ranks in the set (Barry et al. 2008)."""
    n, m = len(ranks), len(inside)
    others = n - m
    rho = 0.0 if m < 2 or found is None else found if negative else max(0.0, found)
    u = m * others + m * (m + 1) / 2 - ranks[inside].sum()
    if rho == 0 or m == 1:
        variance = m * others * (n + 1) / 12
    else:
        variance = np.arcsin(1) + np.arcsin(0.5) * (others - 1)
        variance += np.arcsin(rho / 2) * (m - 1) * (others - 1)
        variance += np.arcsin((rho + 1) / 2) * (m - 1)
        variance *= m * others / 2 / np.pi
    ties = np.unique(ranks, return_counts=True)[1]
    if len(ties) < n:
        variance *= 1 - (ties * (ties + 1.0) * (ties - 1.0)).sum() / (n * (n + 1) * (n - 1))
    centre, scale = m * others / 2, np.sqrt(variance)
    # R's Inf degrees of freedom are the normal distribution, as scipy's are
    return float(stdtr(df, -(u - 0.5 - centre) / scale)), float(
        stdtr(df, (u + 0.5 - centre) / scale)
    )


@ONE_BLAS_THREAD
def fry(
    fit: LinearFit,
    sets: GeneSets,
    contrast: str | None = None,
    *,
    standardize: Literal["posterior.sd", "residual.sd", "p2", "none"] = "posterior.sd",
    trend: bool = False,
    robust: bool = False,
    sort: Literal["directional", "mixed", "none"] = "directional",
) -> pd.DataFrame:
    """Do genes of a set respond at all? roast with infinitely many rotations, a row a set.

    ``PValue`` is of one direction, ``PValue.Mixed`` of responses either way.
    """
    position, positions = _contrast(fit, contrast), _match(fit, sets)
    effects = contrast_effects(fit, position)
    scaled = effects / np.sqrt(_robust_variance(fit, effects, standardize, trend, robust))[:, None]
    df = effects.shape[1] - 1
    rows = []
    for inside in positions.values():
        part = scaled[inside]
        mean = part.mean(axis=0)
        t = mean[0] / np.sqrt((mean[1:] ** 2).mean())
        p = 2 * float(stdtr(df, -abs(t)))
        direction = "Down" if t < 0 else "Up"
        mixed = p if len(inside) == 1 else _mixed_p(part)
        rows.append(
            {"NGenes": len(inside), "Direction": direction, "PValue": p, "PValue.Mixed": mixed}
        )
    return _ordered(pd.DataFrame(rows, index=pd.Index(list(positions), name="set")), sort)


def _robust_variance(
    fit: LinearFit, effects: _Array, standardize: str, trend: bool, robust: bool
) -> _Array:
    """Each gene's variance without its largest effect, which may be the response itself."""
    known = ("posterior.sd", "residual.sd", "p2", "none")
    if standardize not in known:
        what = f"standardize={standardize!r} is unknown"
        raise ConfigError(what, fix=suggest(standardize, known))
    if standardize == "none":
        return np.ones(len(effects))
    df = effects.shape[1] - 1
    nodes, node_weights = np.polynomial.legendre.leggauss(128)
    nodes = (nodes + 1) / 2
    largest = float(((df + 1) * nodes**df * chi2.ppf(nodes, 1) * node_weights / 2).sum())
    squares = effects**2
    variance = (squares.sum(axis=1) - squares.max(axis=1)) / (df + 1 - largest)
    mean = fit.logs.e.mean(axis=0)
    if standardize == "residual.sd":
        return np.asarray(variance)
    if standardize == "p2":
        return moderate(variance, 0.92 * df, mean=mean, robust=robust, trend=trend).s2_post
    residual = squares[:, 1:].mean(axis=1)
    prior = moderate(residual, df, mean=mean, robust=robust, trend=trend).prior
    infinite = np.isinf(prior.df)
    weight = np.where(infinite, 0.0, prior.df)
    blended = (0.92 * df * variance + weight * prior.scale) / (0.92 * df + weight)
    return np.where(infinite, prior.scale, blended)


def _mixed_p(part: _Array) -> float:
    """p of the sum of squared effects (genes of a set, effects) among rotations, by its moments."""
    size = np.linalg.svd(part, compute_uv=False) ** 2
    d, last = len(size), size[-1]
    width = size[0] - last
    if width <= 0:
        return 1.0
    observed = ((part[:, 0] ** 2).sum() - last) / width
    mean = (size.sum() / d - last) / width
    beta = (d - 1) / d / d / (d / 2 + 1)
    variance = beta * ((size**2).sum() - (size.sum() ** 2 - (size**2).sum()) / (d - 1)) / width**2
    total = mean * (1 - mean) / variance - 1
    alpha = total * mean
    return float(betaincc(alpha, total - alpha, np.clip(observed, 0, 1)))


@ONE_BLAS_THREAD
def roast(
    fit: LinearFit,
    sets: GeneSets,
    contrast: str | None = None,
    *,
    rng: np.random.Generator,
    statistic: Literal["mean", "floormean", "mean50", "msq"] = "mean",
    rotations: int = 1999,
    trend: bool = False,
    robust: bool = False,
    sort: Literal["directional", "mixed", "none"] = "directional",
) -> pd.DataFrame:
    """Do genes of a set respond at all? By random rotations of residuals, a row a set.

    As limma's ``mroast``; all sets share the rotations, so that a set's p depends on no other set.
    """
    if rotations < 1:
        raise ConfigError(f"rotations={rotations} is not possible", expected="at least 1")
    position, positions = _contrast(fit, contrast), _match(fit, sets)
    effects = contrast_effects(fit, position)
    mean = fit.logs.e.mean(axis=0)
    variance = (effects[:, 1:] ** 2).mean(axis=1)
    df = effects.shape[1] - 1
    moderated = moderate(variance, df, mean=mean, robust=robust, trend=trend)
    rows = rotate_sets(effects, moderated, list(positions.values()), statistic, rotations, rng)
    table = pd.DataFrame(rows, index=pd.Index(list(positions), name="set"))
    return _ordered(table, sort, middle=0.5 / (rotations + 1))


def _ordered(table: pd.DataFrame, sort: str, *, middle: float = 0.0) -> pd.DataFrame:
    """With adjusted p, limma's order of rows; ``middle`` is half a step of rotations' p."""
    for name in ("", ".Mixed"):
        p = table[f"PValue{name}"].to_numpy()
        table[f"FDR{name}"] = np.maximum(adjust_p(p - middle), p) if middle else adjust_p(p)
    keys = {"directional": ("PValue", "PValue.Mixed"), "mixed": ("PValue.Mixed", "PValue")}
    if sort not in (*keys, "none"):
        what = f"sort={sort!r} is unknown"
        raise ConfigError(what, expected="'directional', 'mixed' or 'none'")
    last = [name for name in table if name not in ("FDR", "PValue.Mixed", "FDR.Mixed")]
    table = table[[*last, "FDR", "PValue.Mixed", "FDR.Mixed"]]
    if sort == "none":
        return table
    first, second = keys[sort]
    by = [table[second].to_numpy(), -table["NGenes"].to_numpy(), table[first].to_numpy()]
    if "PropUp" in table:
        up, down = table["PropUp"].to_numpy(), table["PropDown"].to_numpy()
        by.insert(2, -(up + down if sort == "mixed" else np.maximum(up, down)))
    return table.iloc[np.lexsort(by)]


def _contrast(fit: LinearFit, contrast: str | None) -> int:
    if contrast is None and len(fit.names) == 1:
        return 0
    if contrast in fit.names:
        return fit.names.index(str(contrast))
    what = "several contrasts" if contrast is None else f"no contrast {contrast!r}"
    fix = f"contrast=, one of {shorten(fit.names)}"
    raise ConfigError(f"the fit has {what}", fix=fix)


def _match(fit: LinearFit, sets: GeneSets) -> _Positions:
    """The positions of each set's genes; sets without any are left out with a warning."""
    if not isinstance(sets, Mapping) or not sets:
        what = "gene sets are no mapping of names to genes" if sets else "there are no gene sets"
        raise SchemaError(what, fix="read_gmt(path), or {'name': ['CD69', ...]}")
    place = {str(gene): i for i, gene in enumerate(fit.genes)}
    found: _Positions = {}
    for name, genes in sets.items():
        if isinstance(genes, str):
            what = f"set {name!r} is one text"
            raise SchemaError(what, expected="a list of genes")
        inside = sorted({place[str(gene)] for gene in genes if str(gene) in place})
        if inside:
            found[str(name)] = np.array(inside, dtype=np.intp)
    if not found:
        theirs = shorten(dict.fromkeys(str(g) for genes in sets.values() for g in genes), 3)
        raise SchemaError(
            f"no gene set shares a gene with the fit: sets have {theirs}, "
            f"the fit {shorten(map(str, fit.genes), 3)}",
            cause="symbols in one and accessions in the other, or another species",
            fix="name the genes alike",
        )
    lost = [str(name) for name in sets if str(name) not in found]
    if lost:
        log.warning("%d sets share no gene with the fit: %s", len(lost), shorten(lost))
    return found
