"""Run a simulation: into memory, or as the competition's own files with the truth beside them.

``truth.h5ad`` holds what was programmed: fold changes and means without noise. ``de_truth.parquet``
is what a prediction is scored against, as in the competition: limma on the noisy wells, withheld
ones included.
``write_replicate`` does the experiment once more: the withheld cell types are drawn anew, to see
how well a measurement predicts itself.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, TypedDict, Unpack, overload

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
from anndata import AnnData
from scipy import sparse

from perturbgen.core.console import progress, track
from perturbgen.core.errors import InputError
from perturbgen.core.export import PARQUET, write_table
from perturbgen.core.files import atomic_path, require_file, require_writable
from perturbgen.core.tables import CONDITION
from perturbgen.data import KAGGLE_COLUMNS, SparseH5ad, layout_of, write_h5ad
from perturbgen.de import flavour_table
from perturbgen.simulation.op3.build import build_world
from perturbgen.simulation.op3.cells import Stream
from perturbgen.simulation.op3.settings import (
    CONDITION_KEY,
    WITHHELD_TYPES,
    SimulationSettings,
    preset_settings,
)
from perturbgen.simulation.op3.states import STATES
from perturbgen.simulation.op3.world import World


@dataclass(frozen=True, repr=False)
class SimulatedExperiment:
    """A simulation in memory: ``released`` and ``withheld`` cells, the ``truth``, the ``world``.

    obs has the columns of :mod:`perturbgen.data.schema` and the competition's own.
    """

    released: AnnData
    withheld: AnnData
    truth: AnnData
    world: World

    def cells(self) -> AnnData:
        """The released cells: what a laboratory would hand over, and a model may see."""
        return self.released

    @cached_property
    def conditions(self) -> pd.DataFrame:
        """The withheld conditions, cell_type and compound: what there is to predict."""
        found = self.world.id_map()[CONDITION_KEY]
        return found.set_axis(list(CONDITION), axis=1)

    @cached_property
    def de(self) -> pd.DataFrame:
        """Signed -log10 p, (cell_type, compound) x genes, of what was measured and what was not.

        As in the files: withheld conditions have the rows of de_truth, the others of de_train.
        """
        sums = {chunk.group: chunk.total for chunk in self.world.chunks()}
        table = flavour_table(self.world.samples(sums), flavour="kaggle").signed_log10_p
        rows = pd.concat([self.world.train_rows(), self.world.id_map()])[CONDITION_KEY]
        return table.loc[pd.MultiIndex.from_frame(rows)].rename_axis(CONDITION)

    def __repr__(self) -> str:
        sizes = f"{self.released.n_obs:,} cells x {self.released.n_vars:,} genes"
        types, compounds = (self.released.obs[name].nunique() for name in CONDITION)
        return (
            f"SimulatedExperiment ({self.world.kind}), seed {self.world.seed}\n"
            f"  cells: {sizes}, {types} cell types, {compounds} compounds\n"
            f"  withheld: {self.withheld.n_obs:,} cells of {len(self.conditions)} conditions\n"
            f"  truth: {self.truth.n_obs:,} conditions without noise; de: as they were measured"
        )


class _Options(TypedDict, total=False):
    """Real data that replace invented parts, a TOML file and ``a.b=value`` over the preset."""

    baseline: str | Path | None
    signatures: str | Path | None
    effects: str | Path | None
    layout: str | Path | None
    config: str | Path | None
    overrides: Sequence[str]
    force: bool


@overload
def simulate(
    preset: str | SimulationSettings = "tiny",
    *,
    seed: int = 0,
    out: None = None,
    **options: Unpack[_Options],
) -> SimulatedExperiment: ...


@overload
def simulate(
    preset: str | SimulationSettings = "tiny",
    *,
    seed: int = 0,
    out: str | Path,
    **options: Unpack[_Options],
) -> Path: ...


def simulate(
    preset: str | SimulationSettings = "tiny",
    *,
    seed: int = 0,
    out: str | Path | None = None,
    **options: Unpack[_Options],
) -> SimulatedExperiment | Path:
    """Simulate the OP3 experiment; with ``out``, write the competition's files and return it.

    ``preset`` is ``tiny``, ``small``, ``op3`` or ``op3_2025`` (or settings made before, which
    nothing then changes). ``baseline``, ``signatures``, ``effects`` and ``layout`` name real data
    that replace invented parts; ``config`` is a TOML file, ``overrides`` are ``a.b=value``.
    ``force`` replaces an older simulation at ``out``, which appears only when all of it is written.
    """
    unknown = sorted(set(options) - set(_Options.__annotations__))
    if unknown:
        raise TypeError(f"simulate() got an unexpected keyword argument {unknown[0]!r}")
    if isinstance(preset, SimulationSettings):
        settings = preset
    else:
        settings = preset_settings(
            preset,
            config=options.get("config"),
            overrides=options.get("overrides", ()),
            sources={
                "baseline": options.get("baseline"),
                "signatures": options.get("signatures"),
                "effects": options.get("effects"),
                "layout": options.get("layout"),
            },
        )
    if out is None:
        return _in_memory(build_world(settings, seed=seed))
    out = Path(out)
    _require_replaceable(out, force=options.get("force", False))
    world = build_world(settings, seed=seed)
    with atomic_path(out) as part:
        part.mkdir()
        _write_competition(world, part)
    return out


def _require_replaceable(out: Path, *, force: bool) -> None:
    """Nothing is at ``out``, or ``force`` may replace it: an older simulation, nothing else."""
    require_writable(out)
    if not out.exists():
        return
    if not force:
        raise InputError(
            f"{out} already exists", fix="choose another folder, or --force to replace it"
        )
    # --force on a mistyped folder must not delete what is no simulation
    if not out.is_dir() or (any(out.iterdir()) and not (out / "simulation.toml").exists()):
        raise InputError(
            f"{out} is not replaced, since it holds no simulation.toml: it may be something else",
            expected="a folder that simulate wrote",
            fix="choose another folder, or delete it yourself",
        )


def _in_memory(world: World) -> SimulatedExperiment:
    """Every cell of a world, drawn into memory."""
    counts: dict[bool, list[sparse.csr_array]] = {False: [], True: []}
    for chunk in world.chunks():
        counts[bool(world.groups["withheld"].iat[chunk.group])].append(chunk.counts)

    def cells(withheld: bool) -> AnnData:
        matrix = sparse.csr_matrix(sparse.vstack(counts[withheld]))
        obs = world.obs(withheld=withheld)
        return AnnData(matrix, obs=obs, var=world.var, uns=world.metadata)

    return SimulatedExperiment(cells(False), cells(True), world.truth(), world)


def load_world(folder: str | Path) -> World:
    """The world behind a simulated folder, rebuilt from ``simulation.toml`` to draw from again."""
    values = tomllib.loads(require_file(Path(folder) / "simulation.toml", "simulation").read_text())
    settings = SimulationSettings.load(base=values["settings"])
    return build_world(settings, seed=values["seed"])


def write_replicate(folder: str | Path, *, replicate: int = 1) -> Path:
    """Write ``de_replicate.parquet`` into a simulated folder: the withheld conditions once more.

    Signed -log10 p from wells of other cells and other well effects. Vehicle and positive controls
    are drawn anew, too; plates, donors, numbers of cells and depths are the experiment's own.
    """
    world = load_world(folder)
    groups = world.groups
    chosen = np.flatnonzero(groups["cell_type"].isin(WITHHELD_TYPES) & (groups["n_cells"] > 0))
    sums: dict[int, sparse.csr_array] = {}
    for group in track(chosen.tolist(), "repeating wells"):
        total = np.asarray(world.draw(group, replicate=replicate).sum(axis=0)).reshape(1, -1)
        sums[group] = sparse.csr_array(total)
    table = flavour_table(world.samples(sums), flavour="kaggle").signed_log10_p
    wanted = pd.MultiIndex.from_frame(world.id_map()[CONDITION_KEY])
    table = table[table.notna().all(axis=1) & table.index.isin(wanted)]
    path = Path(folder) / "de_replicate.parquet"
    return write_table(table.rename_axis(index=CONDITION_KEY).reset_index(), path)


class _LongParquet:
    """A long file of non-zero counts; holds at most one row group and one chunk in memory.

    ``normalized_count`` is log1p of counts per million of the cell's true total.
    """

    def __init__(
        self, path: Path, genes: list[str], *, row_group: int, gene_column: str = "gene"
    ) -> None:
        self._genes = pa.array(genes)
        self._names = ("obs_id", gene_column, "count", "normalized_count")
        text = pa.dictionary(pa.int32(), pa.string())
        types = (text, text, pa.int64(), pa.float64())
        self._schema = pa.schema(list(zip(self._names, types, strict=True)))
        self._row_group, self._pending, self._rows = row_group, list[pa.Table](), 0
        # Without the stored Arrow schema, readers see plain strings, as in the real file.
        how = {"compression": "zstd", **PARQUET}
        self._writer = pq.ParquetWriter(path, self._schema, store_schema=False, **how)

    def __enter__(self) -> _LongParquet:
        return self

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def add(self, ids: list[str], counts: sparse.csr_array, totals: np.ndarray) -> None:
        """Append cells: their ids, counts (cells, genes) and true totals (cells,)."""
        cell = np.repeat(np.arange(len(ids), dtype=np.int32), np.diff(counts.indptr))
        columns = [
            pa.DictionaryArray.from_arrays(pa.array(cell), pa.array(ids, pa.string())),
            pa.DictionaryArray.from_arrays(pa.array(counts.indices.astype(np.int32)), self._genes),
            pa.array(counts.data.astype(np.int64)),
            pa.array(np.log1p(counts.data * (1e6 / totals[cell]))),
        ]
        self._pending.append(pa.Table.from_arrays(columns, schema=self._schema))
        self._rows += len(cell)
        if self._rows >= self._row_group:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            table = pa.concat_tables(self._pending).unify_dictionaries().combine_chunks()
            self._writer.write_table(table, row_group_size=max(len(table), 1))
        self._pending, self._rows = [], 0


_README: Final = """This folder is SIMULATED ({kind}); no cell in it was ever measured.

It has the files of the NeurIPS 2023 "Open Problems - Single-Cell Perturbations" competition, \
made by
`perturbgen simulate` with the settings and the seed in simulation.toml. What only a simulation \
knows:

truth.h5ad             every cell type x compound: programmed log2 fold changes (logFC), \
noise-free means (mean)
truth_cells.h5ad       the withheld cells (B and Myeloid of all but the known compounds)
truth_states.parquet   every cell's cycle_phase (radians; empty: at rest), activation, \
maturation, subtype
truth_pseudobulk.h5ad  sums of the true counts by plate, well and cell type, withheld ones included
de_truth.parquet       the statistic of de_train.parquet for the rows of id_map.csv: what a \
prediction is scored against
conditions.csv         of every condition its cells and layout (the same plates and row have the \
same one), to score by

normalized_count is log1p of counts per million. adata_excluded_ids.csv lists entries of \
adata_train.parquet that are
not in the truth and must be removed by the pair obs_id, gene. The multiome files hold RNA only.
"""


def _write_competition(world: World, folder: Path) -> None:
    """Write the whole file set into an existing, empty folder."""
    # the order of ids tells nothing of the wells
    obs = world.competition_obs(withheld=False).sort_values("obs_id")
    obs.to_csv(folder / "adata_obs_meta.csv", index=False)
    wanted = world.id_map()
    wanted.to_csv(folder / "id_map.csv", index=False)
    zeros = pd.DataFrame(0.0, index=pd.Index(wanted["id"], name="id"), columns=world.genes)
    zeros.reset_index().to_csv(folder / "sample_submission.csv", index=False)
    _write_multiome(world, folder)
    write_h5ad(world.truth(), folder / "truth.h5ad")
    if world.programmes is not None:
        states = pd.concat([world.obs(withheld=part)[list(STATES)] for part in (False, True)])
        states.reset_index().to_parquet(folder / "truth_states.parquet", index=False)
    pseudobulk = _write_cells(world, folder)
    write_h5ad(pseudobulk, folder / "truth_pseudobulk.h5ad")
    # the organisers' own fit, over released and withheld wells alike
    table = flavour_table(pseudobulk, flavour="kaggle").signed_log10_p.rename_axis(CONDITION_KEY)
    for name, rows in (("de_train", world.train_rows()), ("de_truth", wanted)):
        values = table.reindex(pd.MultiIndex.from_frame(rows[CONDITION_KEY]))
        labelled = pd.concat([rows, values.reset_index(drop=True)], axis=1)
        write_table(labelled, folder / f"{name}.parquet")
    _conditions(world).to_csv(folder / "conditions.csv", index=False)
    # the seed and the resolved settings, from which load_world rebuilds the world
    about = {"seed": world.seed, "settings": world.settings.model_dump(mode="json")}
    (folder / "simulation.toml").write_text(tomli_w.dumps(about))
    (folder / "README.txt").write_text(_README.format(kind=world.kind))


def _conditions(world: World) -> pd.DataFrame:
    """Cells and layout of every condition."""
    groups = world.groups.rename(columns=KAGGLE_COLUMNS)
    found = groups.groupby(list(CONDITION))["n_cells"].sum().reset_index()
    return found.assign(layout=found["compound"].map(layout_of(groups)))


def _write_multiome(world: World, folder: Path) -> None:
    """The untreated cells' RNA, by cell type and donor."""
    var = pd.DataFrame(
        {"location": world.genes, "gene_id": world.genes, "feature_type": "Gene Expression"}
    )
    var.to_csv(folder / "multiome_var_meta.csv", index=False)
    vehicle = world.groups[world.groups["sm_name"] == world.layout.vehicle]
    weights = vehicle.groupby(["cell_type", "donor_id"])["n_cells"].sum()
    settings, rng = world.settings.files, Stream.MULTIOME.rng(world.seed)
    cells = rng.multinomial(settings.multiome_cells, weights / weights.sum())
    ids = world.multiome_ids(int(cells.sum()))
    labels, path = [], folder / "multiome_train.parquet"
    parts = zip(weights.index, cells, np.cumsum(cells), strict=True)
    row_group = settings.row_group
    with _LongParquet(path, world.genes, row_group=row_group, gene_column="location") as file:
        for (cell_type, donor), count, last in parts:
            counts = world.draw_untreated(cell_type, donor, n=count, rng=rng)
            obs = {"obs_id": ids[last - count : last], "cell_type": cell_type, "donor_id": donor}
            file.add(obs["obs_id"], counts, _totals(counts))
            labels.append(pd.DataFrame(obs))
    pd.concat(labels).sort_values("obs_id").to_csv(folder / "multiome_obs_meta.csv", index=False)


def _write_cells(world: World, folder: Path) -> AnnData:
    """Draw every cell once: released ones to parquet, withheld ones to h5ad, sums are returned."""
    sums: dict[int, sparse.csr_array] = {}
    excluded: list[tuple[str, str]] = []
    genes, row_group = world.genes, world.settings.files.row_group
    path, obs = folder / "truth_cells.h5ad", world.obs(withheld=True)
    with (
        _LongParquet(folder / "adata_train.parquet", genes, row_group=row_group) as released,
        SparseH5ad(path, obs=obs, var=world.var, uns=world.metadata) as withheld,
        progress("simulating cells", int(world.groups["n_cells"].sum())) as tick,
    ):
        for chunk in world.chunks():
            sums[chunk.group] = chunk.total
            if world.groups["withheld"].iat[chunk.group]:
                withheld.add(chunk.counts)
            else:
                spurious = _spurious_entries(world, chunk.group, chunk.counts)
                counts = sparse.csr_array(chunk.counts + spurious)
                # by true totals: removing the excluded entries leaves true normalised counts
                released.add(chunk.ids, counts, _totals(chunk.counts))
                places = zip(*spurious.nonzero(), strict=True)
                excluded += [(chunk.ids[cell], genes[gene]) for cell, gene in places]
            tick(chunk.counts.shape[0])
    pairs = pd.DataFrame(excluded, columns=["obs_id", "gene"])
    pairs.to_csv(folder / "adata_excluded_ids.csv", index=False)
    return world.samples(sums)


def _spurious_entries(world: World, group: int, counts: sparse.csr_array) -> sparse.csr_array:
    """Counts (cells, genes) that the released file has in error, where the true count is zero."""
    rng = Stream.EXCLUDED.rng(world.seed, group)
    cells, genes = counts.shape
    tries = rng.poisson(world.settings.files.excluded_rate * counts.nnz)
    # two errors at one place would add up to one entry
    flat = np.unique(rng.integers(cells * genes, size=tries))
    # cell x genes + gene of every stored entry: 64-bit integers, since 32 overflow
    cell = np.repeat(np.arange(cells, dtype=np.int64), np.diff(counts.indptr))
    flat = flat[~np.isin(flat, cell * genes + counts.indices, assume_unique=True)]
    count = rng.integers(1, 4, size=len(flat)).astype(np.int32)
    return sparse.coo_array((count, np.divmod(flat, genes)), shape=(cells, genes)).tocsr()


def _totals(counts: sparse.csr_array) -> np.ndarray:
    """Counts of each cell (cells,), at least one."""
    # totals are divided by, and a cell may have no counts
    return np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
