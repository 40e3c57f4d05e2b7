"""How many cells of each type every well holds, and how deep they are sequenced.

Exact negative binomial counts at a cost that follows the non-zeros, not the size of the matrix.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from perturbgen.simulate.op3.layout import DONORS, Layout
from perturbgen.simulate.op3.settings import CELL_TYPES, WITHHELD_TYPES, CellSettings, DepthSettings

_DENSE_ABOVE: Final = 0.3

_Floats = NDArray[np.floating]
_Ints = NDArray[np.integer]


class Stream(IntEnum):
    """Independent random streams of one simulation; a number here, once published, keeps its meaning."""

    COMPOUNDS = 0
    LAYOUT = 1
    BASELINE = 2
    EFFECTS = 3
    CELLS = 4
    DEPTH = 5
    NOISE = 6
    COUNTS = 7
    EXCLUDED = 8
    MULTIOME = 9


def stream(seed: int, *key: int) -> np.random.Generator:
    """The generator of one part of a simulation: it depends on the seed and the part, not on what ran before."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(int(k) for k in key)))


def sample_nb_sparse(
    rng: np.random.Generator, *, size: _Floats, share: _Floats, r: _Floats
) -> sparse.csr_array:
    """NB counts (cells, genes) with means ``outer(size, share)`` and NB sizes ``r`` (variance m + m^2/r), as CSR.

    ``size`` (cells,) are positive library sizes, ``share`` (genes,) relative expression, ``r`` (genes,) positive,
    ``inf`` being the Poisson limit. Well expressed genes are drawn as gamma-Poisson, the others as clusters; both are
    exact.
    """
    is_dense = size.sum() * share > _DENSE_ABOVE * len(size)
    dense, rare = np.flatnonzero(is_dense), np.flatnonzero(~is_dense)
    parts = [
        (*_gamma_poisson(rng, size=size, share=share[dense], r=r[dense]), dense),
        (*_clusters(rng, size=size, share=share[rare], r=r[rare]), rare),
    ]
    cell = np.concatenate([part[0] for part in parts])
    gene = np.concatenate([part[3][part[1]] for part in parts])
    count = np.concatenate([part[2] for part in parts])
    matrix = sparse.coo_array((count, (cell, gene)), shape=(len(size), len(share))).tocsr()
    matrix.sort_indices()
    return matrix


def _gamma_poisson(
    rng: np.random.Generator, *, size: _Floats, share: _Floats, r: _Floats
) -> tuple[_Ints, _Ints, _Ints]:
    """Non-zero entries (cell, gene, count): k ~ Poisson(m x Gamma(r, 1/r))."""
    finite = np.where(np.isinf(r), 1.0, r)
    wobble = rng.standard_gamma(finite, size=(len(size), len(share))) / finite
    wobble[:, np.isinf(r)] = 1.0
    counts = rng.poisson(wobble * np.outer(size, share)).astype(np.int32)
    cell, gene = np.nonzero(counts)
    return cell.astype(np.int32), gene.astype(np.int32), counts[cell, gene]


def _clusters(
    rng: np.random.Generator, *, size: _Floats, share: _Floats, r: _Floats
) -> tuple[_Ints, _Ints, _Ints]:
    """Entries (cell, gene, count), to be added up where they repeat, whose sums are NB.

    NB(m, r) is a Poisson(r log(1 + m/r)) number of clusters of logarithmic size with p = m/(m + r) (Quenouille 1949).
    Clusters are proposed as Poisson(m), which is never fewer, and kept with probability log(1 + m/r) / (m/r).
    """
    total = size.sum()
    proposals = rng.poisson(total * share)
    gene = np.repeat(np.arange(len(share), dtype=np.int32), proposals)
    cell = np.searchsorted(np.cumsum(size) / total, rng.random(len(gene)), side="right").astype(
        np.int32
    )
    np.minimum(cell, len(size) - 1, out=cell)
    ratio = size[cell] * (share / r)[gene]
    keep = rng.random(len(gene)) * ratio <= np.log1p(ratio)
    p = ratio[keep] / (1 + ratio[keep])
    return cell[keep], gene[keep], rng.logseries(p).astype(np.int32)


def probability_nonzero(mean: _Floats, r: _Floats) -> _Floats:
    """1 - NB(0; m, r) = 1 - (1 + m/r)^-r, for any shapes that broadcast."""
    return -np.expm1(-r * np.log1p(mean / r))


def expected_cells(
    layout: Layout, settings: CellSettings, *, rng: np.random.Generator
) -> pd.DataFrame:
    """Expected cells of an unharmed well (plates, cell types); a real layout says how plates differ, else chance."""
    plates = (
        layout.wells.drop_duplicates("plate_name").set_index("plate_name")["donor_id"].sort_index()
    )
    proportions = pd.Series(settings.proportions)[list(CELL_TYPES)]
    by_donor = rng.normal(0, settings.donor_log_sd, (len(DONORS), len(CELL_TYPES)))
    by_plate = rng.normal(0, settings.plate_log_sd, (len(plates), len(CELL_TYPES)))
    log_shift = by_donor[[DONORS.index(donor) for donor in plates]] + by_plate
    # The shifts of a cell type average to one, so that its proportion over the experiment is the one asked for.
    shift = np.exp(log_shift) / np.exp(log_shift).mean(axis=0)
    expected = pd.DataFrame(
        shift * proportions.to_numpy(), index=plates.index, columns=list(CELL_TYPES)
    )
    if layout.cells_per_well is not None:
        real = layout.cells_per_well.unstack("cell_type")
        real = real / real.mean() * proportions[list(real.columns)]
        expected[list(real.columns)] = real.loc[expected.index]
    return expected * settings.per_well / proportions.sum()


def count_cells(
    layout: Layout,
    expected: pd.DataFrame,
    survival: pd.DataFrame,
    settings: CellSettings,
    *,
    seed: int,
) -> pd.DataFrame:
    """One row for every (well, cell type): its well's columns, ``cell_type``, ``n_cells``, ``survival``, ``withheld``.

    The number of cells is Poisson around expected x survival x a factor of the well x one of the cell type in it, but
    for what chance would do to all vehicle wells of a plate at once. Every condition is compared with the vehicle, and
    the number of cells moves all genes of few counts the same way: fuller vehicle wells would shift the whole table.
    """
    rng = stream(seed, Stream.CELLS, 1)
    wells, n = layout.wells, len(layout.wells)
    side = wells.groupby(["plate_name", wells["sm_name"] == layout.vehicle]).ngroup().to_numpy()
    by_well = _balanced_factors(rng, settings.well_log_sd, (n, 1), side)
    mix = _balanced_factors(rng, settings.mix_log_sd, (n, len(CELL_TYPES)), side)
    alive = survival.T.loc[wells["sm_name"], list(CELL_TYPES)].to_numpy()
    mean = expected.loc[wells["plate_name"]].to_numpy() * alive * by_well * mix
    cells = _balanced_poisson(rng, mean * ~wells["lost"].to_numpy()[:, None], side)
    groups = wells.loc[wells.index.repeat(len(CELL_TYPES))].reset_index(drop=True)
    groups["cell_type"] = list(CELL_TYPES) * n
    groups["n_cells"], groups["survival"] = cells.ravel(), alive.ravel()
    groups["withheld"] = _is_withheld(groups, layout)
    return _keep_to_real_rows(groups, layout)


def mean_one(rng: np.random.Generator, log_sd: float, shape: tuple[int, ...]) -> np.ndarray:
    """Log-normal factors of that log-sd and mean one."""
    return np.exp(rng.normal(-(log_sd**2) / 2, log_sd, shape))


def _balanced_factors(
    rng: np.random.Generator, log_sd: float, shape: tuple[int, int], side: np.ndarray
) -> np.ndarray:
    """Factors (wells, n) as of :func:`mean_one`, but their logs have the same mean on each ``side`` (wells,)."""
    logs = pd.DataFrame(rng.normal(0, log_sd, shape))
    balanced = logs - logs.groupby(side).transform("mean")
    return np.exp(balanced.to_numpy() - log_sd**2 / 2)


def _balanced_poisson(rng: np.random.Generator, mean: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Poisson counts (wells, n) given that each ``side`` (wells,) has its expected total: those are multinomial."""
    counts = np.zeros(mean.shape, dtype=int)
    for number in np.unique(side):
        here = np.flatnonzero(side == number)
        total = mean[here].sum(axis=0)
        share = mean[here] / np.maximum(total, 1e-300)
        counts[here] = rng.multinomial(np.rint(total).astype(int), share.T).T
    return counts


def _is_withheld(groups: pd.DataFrame, layout: Layout) -> pd.Series:
    """Whether a condition is kept back as the truth: B and Myeloid cells of all but the known compounds."""
    vehicle_or_known = groups["sm_name"].isin([*layout.known, layout.vehicle])
    return groups["cell_type"].isin(WITHHELD_TYPES) & ~vehicle_or_known


def _keep_to_real_rows(groups: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """With a real layout, conditions it has keep at least a cell, and those it lacks lose all of theirs."""
    if layout.train_rows is None or layout.id_map is None:
        return groups
    listed = pd.concat([layout.train_rows, layout.id_map])[["cell_type", "sm_name"]]
    real = pd.MultiIndex.from_frame(listed)
    key = pd.MultiIndex.from_frame(groups[["cell_type", "sm_name"]])
    vehicle = (groups["sm_name"] == layout.vehicle).to_numpy()
    groups.loc[~key.isin(real) & ~vehicle, "n_cells"] = 0
    total = groups.groupby(["cell_type", "sm_name"])["n_cells"].transform("sum")
    empty = groups[(total == 0) & key.isin(real) & ~groups["lost"]]
    groups.loc[empty.drop_duplicates(["cell_type", "sm_name"]).index, "n_cells"] = 1
    return groups


def group_depths(
    groups: pd.DataFrame, base: float, settings: DepthSettings, *, seed: int
) -> pd.Series:
    """Mean library size of a group's cells: base x cell type x plate x sequencing library x survival^power."""
    rng = stream(seed, Stream.DEPTH, 1)
    plates, libraries = sorted(groups["plate_name"].unique()), sorted(groups["library_id"].unique())
    by_plate = dict(zip(plates, mean_one(rng, settings.plate_log_sd, (len(plates),)), strict=True))
    by_library = dict(
        zip(libraries, mean_one(rng, settings.library_log_sd, (len(libraries),)), strict=True)
    )
    return (
        base
        * groups["cell_type"].map(settings.cell_types)
        * groups["plate_name"].map(by_plate)
        * groups["library_id"].map(by_library)
        * groups["survival"] ** settings.toxic_power
    )
