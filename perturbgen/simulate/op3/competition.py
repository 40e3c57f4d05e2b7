"""The simulated experiment as the competition's own files, with the truth beside them."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
from anndata import AnnData
from scipy import sparse

from perturbgen.core.console import progress
from perturbgen.data import SparseH5ad, write_h5ad
from perturbgen.de import flavour_table
from perturbgen.simulate.op3.counts import Stream
from perturbgen.simulate.op3.settings import CONDITION_KEY
from perturbgen.simulate.op3.world import World


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
        self._writer = pq.ParquetWriter(path, self._schema, store_schema=False, compression="zstd")

    def __enter__(self) -> _LongParquet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def add(self, ids: list[str], counts: sparse.csr_array, totals: np.ndarray) -> None:
        """Append cells: their ids, counts (cells, genes) and true totals (cells,)."""
        cell = np.repeat(np.arange(len(ids), dtype=np.int32), np.diff(counts.indptr))
        normalised = np.log1p(counts.data * (1e6 / totals[cell]))
        columns = [
            pa.DictionaryArray.from_arrays(pa.array(cell), pa.array(ids, pa.string())),
            pa.DictionaryArray.from_arrays(pa.array(counts.indices.astype(np.int32)), self._genes),
            pa.array(counts.data.astype(np.int64)),
            pa.array(normalised),
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
truth_pseudobulk.h5ad  sums of the true counts by plate, well and cell type, withheld ones included
de_truth.parquet       the statistic of de_train.parquet for the rows of id_map.csv: what a \
prediction is scored against

normalized_count is log1p of counts per million. adata_excluded_ids.csv lists entries of \
adata_train.parquet that are
not in the truth and must be removed by the pair obs_id, gene. The multiome files hold RNA only.
"""


def write_competition(world: World, folder: Path) -> None:
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
    pseudobulk = _write_cells(world, folder)
    write_h5ad(pseudobulk, folder / "truth_pseudobulk.h5ad")
    # the organisers' own fit, over released and withheld wells alike
    table = flavour_table(pseudobulk, flavour="kaggle").signed_log10_p.rename_axis(CONDITION_KEY)
    for name, rows in (("de_train", world.train_rows()), ("de_truth", wanted)):
        values = table.reindex(pd.MultiIndex.from_frame(rows[CONDITION_KEY]))
        labelled = pd.concat([rows, values.reset_index(drop=True)], axis=1)
        labelled.to_parquet(folder / f"{name}.parquet", index=False)
    # the seed and the resolved settings, from which load_world rebuilds the world
    about = {"seed": world.seed, "settings": world.settings.model_dump(mode="json")}
    (folder / "simulation.toml").write_text(tomli_w.dumps(about))
    (folder / "README.txt").write_text(_README.format(kind=world.kind))


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
    with _LongParquet(
        path, world.genes, row_group=settings.row_group, gene_column="location"
    ) as file:
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
    obs = world.obs(withheld=True)
    with (
        _LongParquet(folder / "adata_train.parquet", genes, row_group=row_group) as released,
        SparseH5ad(
            folder / "truth_cells.h5ad", obs=obs, var=world.var, uns=world.metadata
        ) as withheld,
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
    pd.DataFrame(excluded, columns=["obs_id", "gene"]).to_csv(
        folder / "adata_excluded_ids.csv", index=False
    )
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
