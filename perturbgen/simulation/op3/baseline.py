"""Baseline expression: invented, or real means turned back into shares of a cell's counts.

Also the simulator's parameters estimated from real cells of one kind, to check its assumptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq

from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.files import require_file
from perturbgen.core.tables import read_frame, read_header, require_unique
from perturbgen.simulation.op3.settings import CELL_TYPES, SimulationSettings

# Of a gene that was measured, but never seen in a cell type: a hundredth of a count per million.
_SMALLEST_SHARE: Final = 1e-8


def make_baseline(
    settings: SimulationSettings,
    *,
    names: Sequence[str] | None,
    preferred: Sequence[str],
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Baseline shares (cell types x genes) of the genes to simulate, rows adding up to one.

    Invented, with the layout's gene ``names`` where their number fits; or the best expressed ones
    of a real table, the ``preferred`` first, in the table's order.
    """
    count = settings.expression.genes
    if not settings.source.baseline:
        share = _invent_baseline(settings, rng=rng)
        return share.set_axis(list(names), axis=1) if names and len(names) == count else share
    share = _read_baseline(settings.source.baseline, rng=rng) ** settings.expression.baseline_power
    if settings.expression.subset == "random":
        kept = share.iloc[:, _spread_subset(share.mean().to_numpy(), count, rng=rng)]
        return kept.div(kept.sum(axis=1), axis=0)
    rank = pd.DataFrame(
        {"real": share.columns.isin(list(preferred)), "mean": share.mean().to_numpy()}
    )
    chosen = rank.sort_values(["real", "mean"], ascending=False).index[:count].sort_values()
    kept = share.iloc[:, chosen]
    return kept.div(kept.sum(axis=1), axis=0)


def _spread_subset(mean: np.ndarray, count: int, *, rng: np.random.Generator) -> np.ndarray:
    """``count`` of the genes, in their order: one at random of each of as many equal ranges."""
    # with plain chance the few genes that hold most of the counts made every subset another one
    if count >= len(mean):
        return np.arange(len(mean))
    order = np.argsort(mean, kind="stable")
    edges = np.linspace(0, len(mean), count + 1).astype(int)
    return np.sort(order[rng.integers(edges[:-1], edges[1:])])


def _invent_baseline(settings: SimulationSettings, *, rng: np.random.Generator) -> pd.DataFrame:
    """Log-normal expression, cell types around it, and markers ten times higher in one of them."""
    expression, genes = settings.expression, settings.expression.genes
    common = rng.normal(0, expression.gene_log_sd, genes)
    log_share = common + rng.normal(0, expression.cell_type_log_sd, (len(CELL_TYPES), genes))
    markers = np.flatnonzero(rng.random(genes) < expression.marker_fraction)
    log_share[rng.integers(len(CELL_TYPES), size=len(markers)), markers] += np.log(10)
    share = np.exp(log_share)
    share /= share.sum(axis=1, keepdims=True)
    names = [f"GENE{i + 1:05d}" for i in range(genes)]
    return pd.DataFrame(share, index=list(CELL_TYPES), columns=names)


def _read_baseline(path: str | Path, *, rng: np.random.Generator) -> pd.DataFrame:
    """Real means of log1p(counts per million), cell types x genes, as shares.

    A gene that is zero in every cell type was not measured there: see :func:`_lend_to_absent`.
    """
    path = require_file(path, "baseline CSV")
    known, absent = _shares_of_table(path, path.stat().st_mtime_ns)
    share = _lend_to_absent(known.to_numpy(), absent=absent, rng=rng)
    share /= share.sum(axis=1, keepdims=True)
    return pd.DataFrame(share, index=known.index, columns=known.columns)


# 18,211 columns take seconds to parse, and a search builds hundreds of worlds
@lru_cache(maxsize=2)
def _shares_of_table(path: Path, modified: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Shares (cell types x genes) before anything is lent, and which genes are absent (genes,).

    ``modified`` tells versions of the file apart.

    The mean of a logarithm is not the logarithm of the mean: a gene seen in 3 % of the cells has a
    small mean but a large value where it is seen. The share is the one whose counts, at the depth
    that makes all shares add up to one, have the given mean (counts taken as NB with size 2).
    """
    table = read_frame(path)
    table = table.set_index(table.columns[0])
    require_unique(table.index, "row", path)
    require_unique(pd.Index(read_header(path)), "gene", path)
    missing = [name for name in CELL_TYPES if name not in table.index]
    if missing:
        raise SchemaError(
            f"{path} has no row for {shorten(missing)}",
            expected=f"rows {', '.join(CELL_TYPES)}, a column for each gene",
            fix=f"rename its rows; found {shorten(table.index)}",
        )
    # by rows, of which there are six: by columns it takes seconds for 18,211 genes
    rows = table.loc[list(CELL_TYPES)].T.apply(pd.to_numeric, errors="coerce")
    values = rows.to_numpy(dtype=float).T
    if not np.isfinite(values).all() or values.min() < 0:
        raise SchemaError(
            f"{path} holds negative or missing means, or text",
            expected="means of log1p(counts per million)",
        )
    share = np.maximum([_shares_of_log_means(row) for row in values], _SMALLEST_SHARE)
    names = table.columns.astype(str)
    return pd.DataFrame(share, index=list(CELL_TYPES), columns=names), (values == 0).all(axis=0)


def _lend_to_absent(
    share: np.ndarray, *, absent: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Shares (cell types, genes) in which each absent gene has those of one of the rarer genes."""
    # The competition's multiome lacks 2,631 of its genes. Their published SD in NK cells is that of
    # the third of the measured genes with the smallest means; without any count they would all be
    # alike, and vary three times as much.
    measured = np.flatnonzero(~absent)
    order = np.argsort(share[:, measured].mean(axis=0), kind="stable")
    rarer = measured[order][: max(1, len(measured) // 3)]
    lent = share.copy()
    lent[:, absent] = share[:, rng.choice(rarer, size=int(absent.sum()))]
    return lent


# 1.6 million probabilities, the same for every cell type
@cache
def _nb_laws(size: float = 2.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means (laws,), counts from 1 on (counts,), and NB probabilities of them (laws, counts)."""
    # from 1 on, since a count of 0 adds nothing to a mean of log1p
    mean, count = np.geomspace(1e-6, 1e3, 400), np.arange(1, 4000)
    pmf = np.asarray(stats.nbinom.pmf(count, size, (size / (size + mean))[:, None]))
    return mean, count, pmf


def _shares_of_log_means(log_means: np.ndarray) -> np.ndarray:
    """Shares (genes,) whose NB counts have these means of log1p(1e6 x count / depth).

    The depth is solved for: the counts of a cell add up to it.
    """
    mean, count, pmf = _nb_laws()

    def counts_at(depth: float) -> np.ndarray:
        expected = pmf @ np.log1p(1e6 * count / depth)
        return np.interp(
            log_means, np.concatenate([[0.0], expected]), np.concatenate([[0.0], mean])
        )

    def surplus(log_depth: float) -> float:
        return float(np.log(max(counts_at(np.exp(log_depth)).sum(), 1e-9)) - log_depth)

    low, high = np.log(50), np.log(1e5)
    if not surplus(low) > 0 > surplus(high):
        raise SchemaError(
            "no depth between 50 and 100,000 counts a cell fits the baseline means",
            expected="means of log1p(counts per million) of a whole transcriptome",
            cause="few genes, or means of another scale",
        )
    log_depth = brentq(surplus, low, high, xtol=1e-3)
    counts = counts_at(np.exp(log_depth))
    return counts / counts.sum()


def solve_depth(
    share: pd.DataFrame,
    weights: pd.Series,
    settings: SimulationSettings,
    *,
    rng: np.random.Generator,
) -> tuple[float, np.ndarray]:
    """Mean counts of a cell of relative depth one, and NB sizes r (genes,).

    The depth is the one at which the wanted share of the entries is zero, cell types weighted. The
    sizes go with it: 1/r = (floor + slope / mean count, capped) x a scatter of the gene.
    """
    expression, wanted = settings.expression, settings.depth.zero_fraction
    # drawn once, so that the share of zeros changes smoothly with the depth that is tried
    scatter = np.exp(rng.normal(0, expression.dispersion_log_sd, share.shape[1]))
    average = share.to_numpy().mean(axis=0)

    def sizes(depth: float) -> np.ndarray:
        mean = np.maximum(average * depth, 1e-9)
        trend = expression.dispersion_floor + expression.dispersion_slope / mean
        return 1 / (np.minimum(trend, expression.dispersion_cap) * scatter)

    def surplus(log_depth: float) -> float:
        depth = np.exp(log_depth)
        return _zero_fraction(share, depth, sizes(depth), weights, settings) - wanted

    low, high = np.log(1.0), np.log(1e6)
    if not surplus(low) > 0 > surplus(high):
        raise ConfigError(
            f"no depth between 1 and 1,000,000 counts a cell has {wanted:.0%} zeros",
            fix="--set depth.zero_fraction=0.9",
        )
    depth = float(np.exp(brentq(surplus, low, high, xtol=1e-3)))
    return depth, sizes(depth)


def _zero_fraction(
    share: pd.DataFrame,
    depth: float,
    r: np.ndarray,
    weights: pd.Series,
    settings: SimulationSettings,
) -> float:
    """Expected share of zeros at a mean depth, by quadrature over log-normal library sizes."""
    log_sd = settings.depth.cell_log_sd
    # nine nodes: the integrand is smooth, and one evaluation costs a pass over all genes
    nodes, quadrature = np.polynomial.hermite_e.hermegauss(9)
    sizes = np.exp(log_sd * nodes - log_sd**2 / 2)
    zeros = 0.0
    for cell_type, weight in weights.items():
        name = str(cell_type)
        mean = depth * settings.depth.cell_types[name] * np.outer(sizes, share.loc[name])
        detected = _probability_nonzero(mean, r).mean(axis=1)
        zeros += weight / weights.sum() * (1 - float(detected @ quadrature) / quadrature.sum())
    return zeros


def _probability_nonzero(mean: np.ndarray, r: np.ndarray) -> np.ndarray:
    """1 - NB(0; m, r) = 1 - (1 + m/r)^-r, for any shapes that broadcast."""
    # keeps its digits where the mean is tiny
    return -np.expm1(-r * np.log1p(mean / r))
