"""How many cells of each type the wells hold, how deep, what varies them, and their counts.

Wells vary by donor, plate, sequencing library (plate row) and its ambient RNA.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from perturbgen.simulation.op3.layout import DONORS, Layout
from perturbgen.simulation.op3.settings import (
    CELL_TYPES,
    CONDITION_KEY,
    WITHHELD_TYPES,
    SimulationSettings,
)

# Mean count from which drawing every entry costs less than drawing the non-zero ones.
_DENSE_ABOVE: Final = 0.3

# The steps of splitmix64 (Steele, Lea, Flood 2014), a bijection of 64-bit integers: no two ids are
# equal, and their order tells nothing of the cells.
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = ((30, np.uint64(0xBF58476D1CE4E5B9)), (27, np.uint64(0x94D049BB133111EB)))

_Floats = NDArray[np.floating]
_Ints = NDArray[np.integer]


class Stream(IntEnum):
    """Independent random streams of a simulation; a published number keeps its meaning."""

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
    WELLS = 10
    STATES = 11

    def rng(self, seed: int, *key: int) -> np.random.Generator:
        """A generator that depends on the seed, the stream and the key, not on what ran before."""
        spawn_key = (int(self), *(int(k) for k in key))
        return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=spawn_key))


def cell_ids(seed: int, first: int, count: int) -> list[str]:
    """Ids (16 hexadecimal digits) of the cells numbered from ``first``."""
    x = np.arange(first, first + count, dtype=np.uint64)
    x = (x + np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]) * _GOLDEN
    for shift, factor in _MIX:
        x = (x ^ (x >> np.uint64(shift))) * factor
    x = x ^ (x >> np.uint64(31))
    return [f"{value:016x}" for value in x.tolist()]


def count_cells(
    layout: Layout, survival: pd.DataFrame, settings: SimulationSettings, *, seed: int
) -> pd.DataFrame:
    """A row for every (well, cell type): the well's columns, n_cells, survival, withheld.

    The number of cells is Poisson around expected x survival (cell types, compounds) x a factor of
    the well x one of the cell type in it.
    """
    expected = _expected_cells(layout, settings, rng=Stream.CELLS.rng(seed))
    rng = Stream.CELLS.rng(seed, 1)
    wells, n = layout.wells, len(layout.wells)
    # Every condition is compared with the vehicle, and the number of cells moves all genes of few
    # counts the same way: vehicle wells that are fuller by chance shift the whole table. So chance
    # may not change the total of a side (vehicle, the rest) of a plate.
    side = wells.groupby(["plate_name", wells["sm_name"] == layout.vehicle]).ngroup().to_numpy()
    by_well = _balanced_factors(rng, settings.cells.well_log_sd, (n, 1), side)
    mix = _balanced_factors(rng, settings.cells.mix_log_sd, (n, len(CELL_TYPES)), side)
    alive = survival.T.loc[wells["sm_name"], list(CELL_TYPES)].to_numpy()
    mean = expected.loc[wells["plate_name"]].to_numpy() * alive * by_well * mix
    cells = _balanced_poisson(rng, mean * ~wells["lost"].to_numpy()[:, None], side)
    groups = wells.loc[wells.index.repeat(len(CELL_TYPES))].reset_index(drop=True)
    groups["cell_type"] = list(CELL_TYPES) * n
    groups["n_cells"], groups["survival"] = cells.ravel(), alive.ravel()
    released = groups["sm_name"].isin([*layout.known, layout.vehicle])
    groups["withheld"] = groups["cell_type"].isin(WITHHELD_TYPES) & ~released
    return _keep_to_real_rows(groups, layout)


def _expected_cells(
    layout: Layout, settings: SimulationSettings, *, rng: np.random.Generator
) -> pd.DataFrame:
    """Expected cells of an unharmed well (plates, cell types).

    A real layout says how plates differ, else chance does.
    """
    cells = settings.cells
    plates = (
        layout.wells.drop_duplicates("plate_name").set_index("plate_name")["donor_id"].sort_index()
    )
    proportions = pd.Series(cells.proportions)[list(CELL_TYPES)]
    by_donor = rng.normal(0, cells.donor_log_sd, (len(DONORS), len(CELL_TYPES)))
    by_plate = rng.normal(0, cells.plate_log_sd, (len(plates), len(CELL_TYPES)))
    shift = np.exp(by_donor[[DONORS.index(donor) for donor in plates]] + by_plate)
    # The shifts of a cell type average to one: its proportion is the one that was asked for.
    shift = shift / shift.mean(axis=0)
    expected = pd.DataFrame(
        shift * proportions.to_numpy(), index=plates.index, columns=list(CELL_TYPES)
    )
    if layout.cells_per_well is not None:
        real = layout.cells_per_well.unstack("cell_type")
        real = real / real.mean() * proportions[list(real.columns)]
        expected[list(real.columns)] = real.loc[expected.index]
    return expected * cells.per_well / proportions.sum()


def _mean_one(rng: np.random.Generator, log_sd: float, names: list[str]) -> dict[str, float]:
    """A log-normal factor of mean one for each name."""
    factors = np.exp(rng.normal(-(log_sd**2) / 2, log_sd, len(names)))
    return dict(zip(names, factors, strict=True))


def _balanced_factors(
    rng: np.random.Generator, log_sd: float, shape: tuple[int, int], side: np.ndarray
) -> np.ndarray:
    """Log-normal factors (wells, n) whose logs have the same mean on each ``side`` (wells,)."""
    logs = pd.DataFrame(rng.normal(0, log_sd, shape))
    balanced = logs - logs.groupby(side).transform("mean")
    return np.exp(balanced.to_numpy() - log_sd**2 / 2)


def _balanced_poisson(rng: np.random.Generator, mean: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Poisson counts (wells, n), given that each ``side`` (wells,) has its expected total."""
    counts = np.zeros(mean.shape, dtype=int)
    for number in np.unique(side):
        here = np.flatnonzero(side == number)
        total = mean[here].sum(axis=0)
        # a side may be without any cell of a type
        share = mean[here] / np.maximum(total, 1e-300)
        # Poisson counts of a known sum are multinomial
        counts[here] = rng.multinomial(np.rint(total).astype(int), share.T).T
    return counts


def _keep_to_real_rows(groups: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """With a real layout, conditions it has keep at least a cell, and those it lacks lose all."""
    if layout.train_rows is None or layout.id_map is None:
        return groups
    listed = pd.concat([layout.train_rows, layout.id_map])[CONDITION_KEY]
    is_real = pd.MultiIndex.from_frame(groups[CONDITION_KEY]).isin(pd.MultiIndex.from_frame(listed))
    vehicle = (groups["sm_name"] == layout.vehicle).to_numpy()
    groups.loc[~is_real & ~vehicle, "n_cells"] = 0
    total = groups.groupby(CONDITION_KEY)["n_cells"].transform("sum")
    empty = groups[(total == 0) & is_real & ~groups["lost"]]
    groups.loc[empty.drop_duplicates(CONDITION_KEY).index, "n_cells"] = 1
    return groups


def mean_depths(
    groups: pd.DataFrame, base: float, settings: SimulationSettings, *, seed: int
) -> pd.Series:
    """Mean library size of a group's cells.

    base x cell type x plate x sequencing library x survival^power.
    """
    rng, depth = Stream.DEPTH.rng(seed, 1), settings.depth
    by_plate = _mean_one(rng, depth.plate_log_sd, sorted(groups["plate_name"].unique()))
    by_library = _mean_one(rng, depth.library_log_sd, sorted(groups["library_id"].unique()))
    return (
        base
        * groups["cell_type"].map(depth.cell_types)
        * groups["plate_name"].map(by_plate)
        * groups["library_id"].map(by_library)
        * groups["survival"] ** depth.toxic_power
    )


@dataclass(frozen=True)
class Noise:
    """Log effects on genes, and the ambient RNA of each sequencing library, all labelled.

    ``donor`` (donor: (cell types, genes)), ``plate`` and ``library`` (name: (genes,)), ``ambient``
    (library: profile (genes,), adding up to one), ``ambient_share`` (by library), ``vehicle``
    (genes,): what all wells of the vehicle have in common.
    """

    donor: dict[str, np.ndarray]
    plate: dict[str, np.ndarray]
    library: dict[str, np.ndarray]
    ambient: dict[str, np.ndarray]
    ambient_share: pd.Series
    vehicle: np.ndarray

    @classmethod
    def draw(
        cls, groups: pd.DataFrame, share: pd.DataFrame, settings: SimulationSettings, *, seed: int
    ) -> Noise:
        """Effects of every donor, plate and library of ``groups``, with n_cells and depth."""
        rng, expression, genes = Stream.NOISE.rng(seed), settings.expression, share.shape[1]
        libraries = sorted(groups["library_id"].unique())

        def effects(names: list[str], log_sd: float, *shape: int) -> dict[str, np.ndarray]:
            return {name: rng.normal(0, log_sd, shape).astype(np.float32) for name in names}

        # Ambient RNA is what the cells pooled in a library spill: their average expression, each
        # cell type weighted by its expected counts.
        counts = groups["n_cells"] * groups["depth"]
        counts = counts.groupby([groups["library_id"], groups["cell_type"]]).sum()
        weights = counts.unstack("cell_type")[list(share.index)]
        weights = weights.div(weights.sum(axis=1), axis=0).fillna(1 / len(share))
        profiles = (weights.to_numpy() @ share.to_numpy()).astype(np.float32)
        mean = expression.ambient
        return cls(
            # the order of the draws is the order of these lines: it decides every later number
            ambient_share=pd.Series(
                rng.beta(4, 4 / max(mean, 1e-9) - 4, len(libraries)) if mean else 0.0,
                index=libraries,
            ),
            donor=effects(list(DONORS), expression.donor_log_sd, len(CELL_TYPES), genes),
            plate=effects(sorted(groups["plate_name"].unique()), expression.plate_log_sd, genes),
            library=effects(libraries, expression.row_log_sd, genes),
            ambient=dict(zip(weights.index, profiles, strict=True)),
            # a stream of its own, so that no other number depends on whether it is drawn
            vehicle=Stream.WELLS.rng(seed).normal(0, expression.vehicle_log_sd, genes),
        )


def sample_nb_sparse(
    rng: np.random.Generator,
    *,
    size: _Floats,
    share: _Floats,
    r: _Floats,
    tilt: _Floats | None = None,
) -> sparse.csr_array:
    """NB counts (cells, genes), CSR, of means ``outer(size, share)`` and variance m + m^2/r.

    ``size`` (cells,) are positive library sizes, ``share`` (genes,) relative expression, ``r``
    (genes,) positive NB sizes, ``inf`` being the Poisson limit; ``tilt`` (genes, cells) is the log
    of what multiplies each mean. Well expressed genes are drawn as gamma-Poisson, the others as
    clusters; both are exact.
    """
    is_dense = size.sum() * share > _DENSE_ABOVE * len(size)
    dense, rare = np.flatnonzero(is_dense), np.flatnonzero(~is_dense)
    parts = []
    for draw, genes in ((_gamma_poisson, dense), (_clusters, rare)):
        part = None if tilt is None else tilt[genes]
        parts.append((*draw(rng, size=size, share=share[genes], r=r[genes], tilt=part), genes))
    cell = np.concatenate([part[0] for part in parts])
    gene = np.concatenate([part[3][part[1]] for part in parts])
    count = np.concatenate([part[2] for part in parts])
    matrix = sparse.coo_array((count, (cell, gene)), shape=(len(size), len(share))).tocsr()
    matrix.sort_indices()
    return matrix


def sample_nb_total(
    rng: np.random.Generator, *, size: _Floats, share: _Floats, r: _Floats
) -> _Ints:
    """The sum (genes,) of the cells that :func:`sample_nb_sparse` would draw, drawn directly.

    It is drawn as NB with the mean and the variance of that sum: with S and Q the sums of ``size``
    and of its squares, S p and S p + Q p^2 / r, which is the NB of size r S^2 / Q. Where all cells
    are of one size the law itself is the same.
    """
    total, squares = size.sum(), (size**2).sum()
    if not total:
        return np.zeros(len(share), dtype=np.int32)
    shape = np.minimum(r * (total**2 / squares), 1e12)  # beyond, no gamma differs from its mean
    mean = rng.standard_gamma(shape) * (total * share / shape)
    return rng.poisson(mean).astype(np.int32)


def _gamma_poisson(
    rng: np.random.Generator, *, size: _Floats, share: _Floats, r: _Floats, tilt: _Floats | None
) -> tuple[_Ints, _Ints, _Ints]:
    """Non-zero entries (cell, gene, count): k ~ Poisson(m x Gamma(r, 1/r))."""
    # infinite over infinite would be NaN
    finite = np.where(np.isinf(r), 1.0, r)
    wobble = rng.standard_gamma(finite, size=(len(size), len(share))) / finite
    wobble[:, np.isinf(r)] = 1.0
    if tilt is not None:
        wobble *= np.exp(tilt).T
    counts = rng.poisson(wobble * np.outer(size, share)).astype(np.int32)
    cell, gene = np.nonzero(counts)
    return cell.astype(np.int32), gene.astype(np.int32), counts[cell, gene]


def _clusters(
    rng: np.random.Generator, *, size: _Floats, share: _Floats, r: _Floats, tilt: _Floats | None
) -> tuple[_Ints, _Ints, _Ints]:
    """Entries (cell, gene, count), to be added up where they repeat, whose sums are NB.

    NB(m, r) is a Poisson(r log(1 + m/r)) number of clusters of logarithmic size with p = m/(m + r)
    (Quenouille 1949). Clusters are proposed as Poisson(m), which is never fewer, and kept with
    probability log(1 + m/r) / (m/r). With a tilt they are proposed at each gene's largest one.
    """
    peak = tilt.max(axis=1, initial=-np.inf) if tilt is not None else np.zeros(len(share))
    # for all cells of a gene at once: the cost follows the counts, not cells x genes
    proposals = rng.poisson(size.sum() * share * np.exp(peak))
    gene = np.repeat(np.arange(len(share), dtype=np.int32), proposals)
    cell = _owners(rng.random(len(gene)), size)
    if tilt is not None:
        # 32 bits number the genes and cells of a well
        below = (peak[:, None] - tilt).ravel()[gene * len(size) + cell]
        # exp(-below) is the chance of an exponential number to be larger
        kept = rng.standard_exponential(len(gene), dtype=np.float32) >= below
        cell, gene, below = cell[kept], gene[kept], below[kept]
    ratio = size[cell] * (share / r)[gene]
    if tilt is not None:
        ratio *= np.exp(peak[gene] - below)
    keep = rng.random(len(gene)) * ratio <= np.log1p(ratio)
    p = ratio[keep] / (1 + ratio[keep])
    return cell[keep], gene[keep], rng.logseries(p).astype(np.int32)


def _owners(places: _Floats, size: _Floats) -> _Ints:
    """The cell in whose part of 0 to 1, as wide as its ``size`` (cells,), each place lies."""
    if not len(size):
        return np.zeros(0, np.int32)
    ends = np.cumsum(size) / size.sum()
    # a binary search costs five times as much: here most places find their cell at once
    steps = 32 * len(size)
    first = np.searchsorted(ends, np.arange(steps) / steps, side="right").astype(np.int32)
    # the last end may round to just below one, and the last cell would be overrun
    ends[-1] = 1.0
    cell = np.minimum(first, len(size) - 1)[(places * steps).astype(np.int32)]
    late = np.flatnonzero(places >= ends[cell])
    while len(late):
        cell[late] += 1
        late = late[places[late] >= ends[cell[late]]]
    return cell
