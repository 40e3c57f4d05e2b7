"""The simulated laboratory: all that is true before a cell is counted, and how cells are counted.

Also what is said of cells and conditions: ids, the competition's obs columns, the rows of its
tables, which conditions are withheld, and what is true of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from perturbgen.data import KAGGLE_COLUMNS
from perturbgen.simulation.op3.cells import (
    Noise,
    Stream,
    cell_ids,
    sample_nb_sparse,
    sample_nb_total,
)
from perturbgen.simulation.op3.effects import Effects
from perturbgen.simulation.op3.layout import Layout
from perturbgen.simulation.op3.settings import (
    CELL_TYPES,
    CONDITION_KEY,
    WITHHELD_TYPES,
    SimulationSettings,
)
from perturbgen.simulation.op3.states import Programmes

# The competition's columns of a cell: where it is, and what was done to it.
_PLACE: Final = ("library_id", "plate_name", "well", "row", "col", "cell_id", "donor_id")
_TREATMENT: Final = ("sm_lincs_id", "sm_name", "SMILES", "dose_uM", "timepoint_hr", "control")
_OBS_COLUMNS: Final = ["obs_id", *_PLACE, "cell_type", *_TREATMENT]
# The multiome's cells are other cells than the experiment's: their numbers begin here.
_FIRST_MULTIOME_CELL: Final = 2**62
# Cells whose states are turned into factors of all genes at once.
_DENSE_CELLS: Final = 1000


class _Chunk(NamedTuple):
    """The cells of one well and cell type: the group's row, their counts (cells, genes), ids."""

    group: int
    counts: sparse.csr_array
    ids: list[str]

    @property
    def total(self) -> sparse.csr_array:
        """The sum of its cells (1, genes): 32 bits hold one well by far, not sums of these."""
        return sparse.csr_array(np.asarray(self.counts.sum(axis=0), dtype=np.int32).reshape(1, -1))


@dataclass(frozen=True)
class World:
    """All that is true. The same settings and seed give the same world.

    * ``groups``: a row for each (well, cell type): ``n_cells``, ``depth``, ``survival``,
      ``withheld``;
    * ``share`` (cell types x genes): baseline expression;
    * ``r`` (genes,): NB sizes;
    * ``depth``: mean counts of a cell;
    * ``programmes``: the states of cells, where they have any.
    """

    settings: SimulationSettings
    seed: int
    layout: Layout
    share: pd.DataFrame
    r: np.ndarray
    depth: float
    effects: Effects
    noise: Noise
    groups: pd.DataFrame
    programmes: Programmes | None

    @property
    def genes(self) -> list[str]:
        """Gene names, in the order of every file."""
        return list(self.share.columns)

    @property
    def var(self) -> pd.DataFrame:
        """A table of the genes that says no more than their names."""
        return pd.DataFrame(index=pd.Index(self.genes, name="gene"))

    @property
    def kind(self) -> str:
        """``semi-real`` where real baselines, signatures or effects went in, else ``simulated``."""
        source = self.settings.source
        return (
            "semi-real" if source.baseline or source.signatures or source.effects else "simulated"
        )

    @property
    def metadata(self) -> dict[str, str | int | float]:
        """What every simulated file says of itself."""
        return {
            "kind": self.kind,
            "vehicle": self.layout.vehicle,
            "seed": self.seed,
            "mean_depth": self.depth,
            "settings": self.settings.to_toml(),
        }

    @cached_property
    def compound_index(self) -> dict[str, int]:
        """The row of each compound in the effects."""
        return {name: i for i, name in enumerate(self.effects.compounds.index)}

    def expected_share(self, cell_type: str, compound: str) -> np.ndarray:
        """Noise-free relative expression (genes,) for an average donor and plate, no ambient."""
        i = CELL_TYPES.index(cell_type)
        log2_fold = self.effects.log2_fold_change[i, self.compound_index[compound]]
        return _normalised(self.share.loc[cell_type].to_numpy() * np.exp2(log2_fold.astype(float)))

    def group_share(self, group: int) -> np.ndarray:
        """Relative expression (genes,) in a well and cell type, before what varies by chance."""
        row = self.groups.iloc[group]
        noise, library = self.noise, row["library_id"]
        donor = noise.donor[row["donor_id"]][CELL_TYPES.index(row["cell_type"])]
        log_effect = donor + noise.plate[row["plate_name"]] + noise.library[library]
        if row["sm_name"] == self.layout.vehicle:
            log_effect = log_effect + noise.vehicle
        expected = self.expected_share(row["cell_type"], row["sm_name"])
        own = _normalised(expected * np.exp(log_effect))
        ambient = float(noise.ambient_share[library])
        return (1 - ambient) * own + ambient * noise.ambient[library]

    def draw(
        self, group: int, *, replicate: int = 0, n_cells: int | None = None
    ) -> sparse.csr_array:
        """Counts (cells, genes) of a well and cell type; a ``replicate`` is another draw of it."""
        rng, share, size = self._before_counting(group, replicate, n_cells)
        states = Stream.STATES.rng(self.seed, group, replicate)
        cell_type = str(self.groups["cell_type"].iat[group])
        return self._count(rng, cell_type, size=size, share=share, states=states)

    def _count(
        self,
        rng: np.random.Generator,
        cell_type: str,
        *,
        size: np.ndarray,
        share: np.ndarray,
        states: np.random.Generator,
    ) -> sparse.csr_array:
        """Counts (cells, genes) of cells of these sizes; their states have their own stream."""
        programmes = self.programmes
        if programmes is None:
            return sample_nb_sparse(rng, size=size, share=share, r=self.r)
        r = programmes.r[CELL_TYPES.index(cell_type)]
        scores = programmes.scores(cell_type, len(size), rng=states)
        parts = []
        # what multiplies the means is dense: of all cells of an atlas it would fill the memory
        for i in range(0, max(len(size), 1), _DENSE_CELLS):
            here = slice(i, i + _DENSE_CELLS)
            tilt = programmes.tilt(cell_type, scores[here])
            parts.append(sample_nb_sparse(rng, size=size[here], share=share, r=r, tilt=tilt))
        return sparse.csr_array(sparse.vstack(parts))

    def draw_total(self, group: int, *, replicate: int = 0) -> sparse.csr_array:
        """The sum (1, genes) of a well and cell type, without its cells: a hundredth of the time.

        The well's effects and its cells' depths are those of :meth:`draw`; the counts are others.
        """
        rng, share, size = self._before_counting(group, replicate)
        r = self.r
        if self.programmes is not None:
            r = self.programmes.total_r[CELL_TYPES.index(self.groups["cell_type"].iat[group])]
        total = sample_nb_total(rng, size=size, share=share, r=r)
        return sparse.csr_array(total.reshape(1, -1))

    def _before_counting(
        self, group: int, replicate: int, n_cells: int | None = None
    ) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
        """The generator of a draw, the share of every gene in it, and the depth of every cell."""
        row = self.groups.iloc[group]
        n = int(row["n_cells"]) if n_cells is None else n_cells
        rng = Stream.COUNTS.rng(self.seed, group, replicate)
        log_effect = rng.normal(0, self.settings.expression.well_log_sd, len(self.r))
        log_effect += self._well_effect(group, replicate)
        share = _normalised(self.group_share(group) * np.exp(log_effect))
        return rng, share, row["depth"] * self._cell_factors(n, rng=rng)

    def _well_effect(self, group: int, replicate: int) -> np.ndarray | float:
        """Log effects (genes,) that all cell types of a well have in common: they are one tube."""
        about, varies = self.settings.expression, self.settings.effects.well_log_sd
        log_effect: np.ndarray | float = 0.0
        # a well's groups are neighbours; the streams are the well's own, so that they agree
        key = (group // len(CELL_TYPES), replicate)
        if about.tube_log_sd:
            rng = Stream.WELLS.rng(self.seed, *key)
            log_effect = rng.normal(0, about.tube_log_sd, len(self.r))
        row = self.groups.iloc[group]
        if varies and row["sm_name"] != self.layout.vehicle:
            factor = np.exp(Stream.WELLS.rng(self.seed, *key, 1).normal(-(varies**2) / 2, varies))
            i, j = CELL_TYPES.index(row["cell_type"]), self.compound_index[row["sm_name"]]
            log_effect += (factor - 1) * np.log(2) * self.effects.log2_fold_change[i, j]
        return log_effect

    def draw_untreated(
        self, cell_type: str, donor: str, *, n: int, rng: np.random.Generator
    ) -> sparse.csr_array:
        """Counts (cells, genes) of untreated cells of a donor, on no plate and in no library."""
        log_effect = self.noise.donor[donor][CELL_TYPES.index(cell_type)]
        share = self.share.loc[cell_type] * np.exp(log_effect)
        size = self.depth * self._cell_factors(n, rng=rng)
        share = _normalised(share.to_numpy())
        return self._count(rng, cell_type, size=size, share=share, states=rng)

    def _cell_factors(self, n: int, *, rng: np.random.Generator) -> np.ndarray:
        """How much deeper than their mean cells are sequenced (n,): log-normal, of mean one."""
        log_sd = self.settings.depth.cell_log_sd
        # the mean of a log-normal lies half its variance above the median
        return np.exp(rng.normal(-(log_sd**2) / 2, log_sd, n))

    def chunks(self, groups: Sequence[int] | None = None) -> Iterator[_Chunk]:
        """The cells of the experiment, well by well.

        What a chunk holds does not depend on which others are drawn.
        """
        counts, first = self.groups["n_cells"].to_numpy(), self._first_cells
        for group in range(len(counts)) if groups is None else groups:
            if counts[group]:
                ids = cell_ids(self.seed, int(first[group]), int(counts[group]))
                yield _Chunk(group, self.draw(group), ids)

    @property
    def _first_cells(self) -> np.ndarray:
        """The number of the first cell of each group (groups,)."""
        return np.concatenate([[0], np.cumsum(self.groups["n_cells"])])[:-1]

    def multiome_ids(self, count: int) -> list[str]:
        """Ids of the multiome's cells."""
        return cell_ids(self.seed, _FIRST_MULTIOME_CELL, count)

    def _group_obs(self) -> pd.DataFrame:
        """What all cells of a group have in common, one row a group."""
        table = self.groups.join(self.layout.compounds, on="sm_name")
        table = table.assign(cell_id="PBMC", timepoint_hr=24)
        return table[_OBS_COLUMNS[1:]]

    def competition_obs(self, *, withheld: bool) -> pd.DataFrame:
        """The released or the withheld cells in the competition's columns, in the order drawn."""
        counts, first = self.groups["n_cells"].to_numpy(), self._first_cells
        chosen = np.flatnonzero((self.groups["withheld"] == withheld) & (counts > 0))
        obs = self._group_obs().iloc[np.repeat(chosen, counts[chosen])].reset_index(drop=True)
        ids = [cell_ids(self.seed, int(first[group]), int(counts[group])) for group in chosen]
        obs.insert(0, "obs_id", [name for part in ids for name in part])
        return obs[_OBS_COLUMNS]

    def obs(self, *, withheld: bool) -> pd.DataFrame:
        """As :meth:`competition_obs`, indexed by ``obs_id``, with our columns and states added."""
        obs = _with_our_columns(self.competition_obs(withheld=withheld))
        return obs if self.programmes is None else obs.join(self._states(self.programmes, withheld))

    def _states(self, programmes: Programmes, withheld: bool) -> pd.DataFrame:
        """The states of the released or the withheld cells, by ``obs_id``."""
        chosen = (self.groups["withheld"] == withheld) & (self.groups["n_cells"] > 0)
        keys = self.groups.loc[chosen, ["n_cells", *CONDITION_KEY]]
        first, parts = self._first_cells, []
        for group, n, cell_type, compound in keys.itertuples(name=None):
            rng = Stream.STATES.rng(self.seed, group, 0)
            part = programmes.table(cell_type, compound, programmes.scores(cell_type, n, rng=rng))
            ids = cell_ids(self.seed, int(first[group]), n)
            parts.append(part.set_axis(pd.Series(ids, name="obs_id"), axis=0))
        return pd.concat(parts)

    def samples(self, sums: Mapping[int, sparse.csr_array]) -> AnnData:
        """Pseudobulk samples x genes from the sums of groups, (1, genes) by the group's row.

        obs has the competition's columns and ours, ``n_cells`` and ``withheld``.
        """
        groups = list(sums)
        obs = self._group_obs().iloc[groups].reset_index(drop=True)
        key = obs["plate_name"] + "_" + obs["well"] + "_" + obs["cell_type"]
        obs = _with_our_columns(obs.assign(obs_id=key)).drop(columns="cell_id")
        for name in ("n_cells", "withheld"):
            obs[name] = self.groups[name].to_numpy()[groups]
        matrix = sparse.csr_matrix(sparse.vstack(list(sums.values())))
        return AnnData(matrix, obs=obs, var=self.var, uns=self.metadata)

    def _conditions(self) -> pd.DataFrame:
        """Every cell type x compound, vehicle included: cells, donors, withheld, its effect."""
        index = pd.MultiIndex.from_product([CELL_TYPES, self.effects.compounds.index])
        table = index.to_frame(index=False, name=CONDITION_KEY)
        alive = self.groups[self.groups["n_cells"] > 0].groupby(CONDITION_KEY)
        for part in (
            alive["n_cells"].sum(),
            alive["donor_id"].nunique().rename("n_donors"),
            self.groups.groupby(CONDITION_KEY)["withheld"].first(),
        ):
            table = table.join(part, on=CONDITION_KEY)
        table = table.fillna({"n_cells": 0, "n_donors": 0})
        table = table.join(self.effects.compounds, on="sm_name")
        survival = self.effects.survival.rename_axis(index="cell_type", columns="sm_name").stack()
        table = table.join(pd.Series(survival, name="survival"), on=CONDITION_KEY)
        if self.programmes is not None:
            moved = self.programmes.moved.rename_axis(index="cell_type", columns="sm_name").stack()
            table = table.join(pd.Series(moved, name="activation"), on=CONDITION_KEY)
        about = self.layout.compounds[["sm_lincs_id", "SMILES", "control"]]
        table = table.join(about, on="sm_name")
        return table.astype({"n_cells": int, "n_donors": int, "withheld": bool})

    def train_rows(self) -> pd.DataFrame:
        """The rows of ``de_train``: measured conditions with cells, the vehicle excepted.

        In the real order where there is one.
        """
        columns = [*CONDITION_KEY, "sm_lincs_id", "SMILES", "control"]
        if self.layout.train_rows is not None:
            return self.layout.train_rows[columns]
        table = self._conditions()
        measured = ~table["withheld"] & (table["n_cells"] > 0)
        rows = table[measured & (table["sm_name"] != self.layout.vehicle)]
        return rows.sort_values(["sm_name", "cell_type"])[columns].reset_index(drop=True)

    def id_map(self) -> pd.DataFrame:
        """The rows to predict: id, cell_type, sm_name; withheld conditions with cells.

        B cells before Myeloid, by compound, or the real order where there is one.
        """
        if self.layout.id_map is not None:
            return self.layout.id_map[["id", *CONDITION_KEY]]
        table = self._conditions()
        withheld = table[table["withheld"] & (table["n_cells"] > 0)]
        parts = [withheld[withheld["cell_type"] == name] for name in WITHHELD_TYPES]
        rows = pd.concat([part.sort_values("sm_name") for part in parts])[CONDITION_KEY]
        return rows.reset_index(drop=True).rename_axis("id").reset_index()

    def truth(self) -> AnnData:
        """What is true of every condition: layers ``logFC`` (log2) and ``mean`` (CPM).

        ``mean`` is noise-free, for an average donor and plate and without ambient RNA; it adds up
        to a million, so that its ratio to the vehicle's differs from ``logFC`` by one constant in a
        condition.
        """
        obs = self._conditions()
        log2_fold_change = self.effects.log2_fold_change.reshape(len(obs), len(self.genes))
        mean = np.empty_like(log2_fold_change)
        for i, key in enumerate(zip(obs["cell_type"], obs["sm_name"], strict=True)):
            mean[i] = 1e6 * self.expected_share(*key)
        obs.index = pd.Index(obs["cell_type"] + "|" + obs["sm_name"], name="condition")
        layers = {"logFC": log2_fold_change, "mean": mean}
        uns = {**self.metadata, "unit": "log2, CPM"}
        return AnnData(obs=obs, var=self.var.assign(nb_size=self.r), layers=layers, uns=uns)


def _normalised(values: np.ndarray) -> np.ndarray:
    return values / values.sum()


def _with_our_columns(obs: pd.DataFrame) -> pd.DataFrame:
    obs = obs.set_index("obs_id")
    renamed = {theirs: ours for theirs, ours in KAGGLE_COLUMNS.items() if theirs != ours}
    return obs.assign(**{ours: obs[theirs] for theirs, ours in renamed.items()})
