"""What varies expression besides the compounds: donors, plates, sequencing libraries, wells, ambient RNA.

The simulated laboratory: everything that is true before a cell is counted, and how to count cells there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from perturbgen.simulate.op3.baseline import (
    Baseline,
    dispersions,
    invent_baseline,
    read_baseline,
    solve_depth,
)
from perturbgen.simulate.op3.counts import (
    Stream,
    count_cells,
    expected_cells,
    group_depths,
    sample_nb_sparse,
    stream,
)
from perturbgen.simulate.op3.effects import (
    Effects,
    Signatures,
    apply_signatures,
    concordance,
    invent_effects,
    level_off,
    read_signatures,
)
from perturbgen.simulate.op3.layout import DONORS, Layout, invent_layout, read_layout
from perturbgen.simulate.op3.settings import CELL_TYPES, ExpressionSettings, SimulationSettings


@dataclass(frozen=True)
class _Noise:
    """Log effects on genes, and the ambient RNA of each sequencing library, all labelled.

    ``donor`` (donor: (cell types, genes)), ``plate`` and ``library`` (name: (genes,)), ``ambient`` (library: profile
    (genes,), adding up to one), ``ambient_share`` (by library).
    """

    donor: dict[str, np.ndarray]
    plate: dict[str, np.ndarray]
    library: dict[str, np.ndarray]
    ambient: dict[str, np.ndarray]
    ambient_share: pd.Series


def _draw_noise(
    groups: pd.DataFrame,
    share: pd.DataFrame,
    settings: ExpressionSettings,
    *,
    rng: np.random.Generator,
) -> _Noise:
    """Effects of every donor, plate and library of the design ``groups`` (well x cell type, with n_cells and depth)."""
    genes = share.shape[1]
    plates, libraries = sorted(groups["plate_name"].unique()), sorted(groups["library_id"].unique())

    def effects(names: list[str], log_sd: float, *shape: int) -> dict[str, np.ndarray]:
        """A log effect of the shape for each name."""
        return {name: rng.normal(0, log_sd, shape).astype(np.float32) for name in names}

    ambient = (
        rng.beta(4, 4 / max(settings.ambient, 1e-9) - 4, len(libraries))
        if settings.ambient
        else 0.0
    )
    return _Noise(
        donor=effects(list(DONORS), settings.donor_log_sd, len(CELL_TYPES), genes),
        plate=effects(plates, settings.plate_log_sd, genes),
        library=effects(libraries, settings.row_log_sd, genes),
        ambient=_ambient_profiles(groups, share),
        ambient_share=pd.Series(ambient, index=libraries),
    )


def _ambient_profiles(groups: pd.DataFrame, share: pd.DataFrame) -> dict[str, np.ndarray]:
    """The average expression of the cells pooled in a library, each cell type weighted by its expected counts."""
    counts = (
        (groups["n_cells"] * groups["depth"])
        .groupby([groups["library_id"], groups["cell_type"]])
        .sum()
    )
    weights = counts.unstack("cell_type")[list(share.index)]
    weights = weights.div(weights.sum(axis=1), axis=0).fillna(1 / len(share))
    return dict(
        zip(weights.index, (weights.to_numpy() @ share.to_numpy()).astype(np.float32), strict=True)
    )


log = logging.getLogger(__name__)


class Chunk(NamedTuple):
    """The cells of one well and cell type: the group's row number, their counts (cells, genes), their first number."""

    group: int
    counts: sparse.csr_array
    first_cell: int


@dataclass(frozen=True)
class World:
    """All that is true. The same settings and seed give the same world.

    ``groups``: one row for each (well, cell type), with ``n_cells``, ``depth``, ``survival``, ``withheld``.
    ``share`` (cell types x genes): baseline expression; ``r`` (genes,): NB sizes; ``depth``: mean counts of a cell.
    """

    settings: SimulationSettings
    seed: int
    layout: Layout
    share: pd.DataFrame
    r: np.ndarray
    depth: float
    effects: Effects
    noise: _Noise
    groups: pd.DataFrame

    @property
    def genes(self) -> list[str]:
        """Gene names, in the order of every file."""
        return list(self.share.columns)

    @property
    def kind(self) -> str:
        """``semi-real`` where real baselines or signatures went in, else ``simulated``."""
        source = self.settings.source
        return "semi-real" if source.baseline or source.signatures else "simulated"

    @cached_property
    def compound_index(self) -> dict[str, int]:
        """The row of each compound in the effects."""
        return {name: i for i, name in enumerate(self.effects.compounds.index)}

    def expected_share(self, cell_type: str, compound: str) -> np.ndarray:
        """Noise-free relative expression (genes,) of a condition, for an average donor and plate, without ambient."""
        i = CELL_TYPES.index(cell_type)
        fold = np.exp2(
            self.effects.log2_fold_change[i, self.compound_index[compound]].astype(float)
        )
        return normalised(self.share.loc[cell_type].to_numpy() * fold)

    def group_share(self, group: int) -> np.ndarray:
        """Relative expression (genes,) in a well and cell type, before what only chance varies there."""
        row = self.groups.iloc[group]
        noise, i = self.noise, CELL_TYPES.index(row["cell_type"])
        log_effect = (
            noise.donor[row["donor_id"]][i]
            + noise.plate[row["plate_name"]]
            + noise.library[row["library_id"]]
        )
        own = normalised(self.expected_share(row["cell_type"], row["sm_name"]) * np.exp(log_effect))
        ambient = float(noise.ambient_share[row["library_id"]])
        return (1 - ambient) * own + ambient * noise.ambient[row["library_id"]]

    def draw(
        self, group: int, *, replicate: int = 0, n_cells: int | None = None
    ) -> sparse.csr_array:
        """Counts (cells, genes) of a well and cell type; another ``replicate`` is another draw of the same truth."""
        row = self.groups.iloc[group]
        n = int(row["n_cells"]) if n_cells is None else n_cells
        rng = stream(self.seed, Stream.COUNTS, group, replicate)
        share = self.group_share(group)
        share = normalised(
            share * np.exp(rng.normal(0, self.settings.expression.well_log_sd, len(share)))
        )
        log_sd = self.settings.depth.cell_log_sd
        size = row["depth"] * np.exp(rng.normal(-(log_sd**2) / 2, log_sd, n))
        return sample_nb_sparse(rng, size=size, share=share, r=self.r)

    def chunks(self, groups: Sequence[int] | None = None) -> Iterator[Chunk]:
        """The cells of the experiment, well by well; what a chunk holds does not depend on which others are drawn."""
        counts = self.groups["n_cells"].to_numpy()
        first = np.concatenate([[0], np.cumsum(counts)])
        for group in range(len(counts)) if groups is None else groups:
            if counts[group]:
                yield Chunk(group, self.draw(group), int(first[group]))


def normalised(values: np.ndarray) -> np.ndarray:
    """Values divided by their sum."""
    return values / values.sum()


def build_world(settings: SimulationSettings, *, seed: int) -> World:
    """Decide everything but the counts."""
    layout = _make_layout(settings, seed=seed)
    settings = _agree_with_layout(settings, layout)
    signatures = read_signatures(settings.source.signatures) if settings.source.signatures else None
    share = _make_share(settings, layout, signatures, seed=seed)
    effects = _make_effects(settings, layout, signatures, genes=list(share.columns), seed=seed)
    expected = expected_cells(layout, settings.cells, rng=stream(seed, Stream.CELLS))
    groups = count_cells(layout, expected, effects.survival, settings.cells, seed=seed)
    scatter = np.exp(
        stream(seed, Stream.NOISE, 1).normal(
            0, settings.expression.dispersion_log_sd, share.shape[1]
        )
    )
    released = groups[~groups["withheld"]].groupby("cell_type")["n_cells"].sum()
    depth = solve_depth(
        share,
        weights=released,
        depth=settings.depth,
        expression=settings.expression,
        scatter=scatter,
    )
    groups["depth"] = group_depths(groups, depth, settings.depth, seed=seed)
    noise = _draw_noise(groups, share, settings.expression, rng=stream(seed, Stream.NOISE))
    r = dispersions(share, depth=depth, settings=settings.expression, scatter=scatter)
    return World(settings, seed, layout, share, r, depth, effects, noise, groups)


def _make_layout(settings: SimulationSettings, *, seed: int) -> Layout:
    """The real layout, where a folder is given, else an invented one."""
    rng = stream(seed, Stream.LAYOUT)
    if settings.source.layout:
        return read_layout(settings.source.layout, rng=rng)
    return invent_layout(settings.plate, rng=rng)


def _agree_with_layout(settings: SimulationSettings, layout: Layout) -> SimulationSettings:
    """Settings whose plates are those of the layout: a real one decides, whatever the preset says."""
    wells = layout.wells
    found = {
        "rows": wells["row"].nunique(),
        "compound_columns": wells["col"].nunique() - 3,
        "known_compounds": len(layout.known) - 2,
        "lost_wells": int(wells["lost"].sum()),
    }
    if found != settings.plate.model_dump() and settings.source.layout:
        log.info("the layout decides: %s", ", ".join(f"{k} = {v}" for k, v in found.items()))
    return settings.model_copy(update={"plate": settings.plate.model_copy(update=found)})


def _make_share(
    settings: SimulationSettings, layout: Layout, signatures: Signatures | None, *, seed: int
) -> pd.DataFrame:
    """Baseline shares (cell types x genes) of the genes to simulate."""
    rng = stream(seed, Stream.BASELINE)
    if not settings.source.baseline:
        invented: Baseline = invent_baseline(settings.expression, rng=rng)
        named = (
            layout.genes
            if layout.genes and len(layout.genes) == settings.expression.genes
            else None
        )
        return invented.share.set_axis(list(named), axis=1) if named else invented.share
    share = read_baseline(settings.source.baseline, rng=rng).share
    return _choose_genes(
        share, settings.expression.genes, preferred=signatures.genes if signatures else ()
    )


def _choose_genes(share: pd.DataFrame, count: int, *, preferred: Sequence[str]) -> pd.DataFrame:
    """The ``count`` best expressed genes, those with a signature first, in the table's order; rows add up to one."""
    rank = pd.DataFrame(
        {"real": share.columns.isin(list(preferred)), "mean": share.mean().to_numpy()}
    )
    chosen = rank.sort_values(["real", "mean"], ascending=False).index[:count].sort_values()
    kept = share.iloc[:, chosen]
    return kept.div(kept.sum(axis=1), axis=0)


def _make_effects(
    settings: SimulationSettings,
    layout: Layout,
    signatures: Signatures | None,
    *,
    genes: list[str],
    seed: int,
) -> Effects:
    """Invented effects, replaced by real signatures where there are some."""
    order = concordance(signatures) if signatures else None
    compounds = list(layout.compounds.index)
    rng = stream(seed, Stream.EFFECTS)
    effects = invent_effects(compounds, len(genes), settings.effects, rng=rng, order=order)
    if signatures:
        effects = apply_signatures(effects, signatures, genes, settings.effects)
    return replace(
        effects,
        log2_fold_change=level_off(effects.log2_fold_change, settings.effects.largest_change),
    )
