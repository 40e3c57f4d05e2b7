"""The simulated experiment as the competition's own files, with the truth beside them.

Sparse counts as the competition's long parquet (id, gene, count, normalized_count), written in row groups.

The small tables of the competition's file set, as data frames.

Sums of true counts by well and cell type, gathered while the cells go by.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from perturbgen.simulate.op3.counts import Stream, mean_one, sample_nb_sparse, stream
from perturbgen.simulate.op3.labels import (
    KEY,
    all_cells,
    chunk_ids,
    group_obs,
    id_map,
    in_our_words,
    metadata,
    multiome_ids,
    spurious_entries,
    train_rows,
    truth,
)
from perturbgen.simulate.op3.settings import CELL_TYPES
from perturbgen.simulate.op3.world import Chunk, World, normalised

_MILLION: Final = 1e6


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
        normalised = np.log1p(counts.data * (_MILLION / totals[cell]))
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
        """Write what has gathered as one row group."""
        if self._pending:
            table = pa.concat_tables(self._pending).unify_dictionaries().combine_chunks()
            self._writer.write_table(table, row_group_size=max(len(table), 1))
        self._pending, self._rows = [], 0


def _de_tables(world: World, pseudobulk: AnnData) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``de_train`` (labels, then genes) and the withheld rows in ``id_map`` order, from the organisers' fit."""
    table = flavour_table(pseudobulk, flavour="kaggle").signed_log10_p.rename_axis(KEY)
    train, wanted = train_rows(world), id_map(world)
    released = table.reindex(pd.MultiIndex.from_frame(train[KEY])).reset_index(drop=True)
    truth = table.reindex(pd.MultiIndex.from_frame(wanted[KEY])).reset_index(drop=True)
    return pd.concat([train, released], axis=1), pd.concat([wanted, truth], axis=1)


def _sample_submission(world: World) -> pd.DataFrame:
    """The ids to predict with zeros for every gene."""
    ids = id_map(world)["id"]
    return pd.DataFrame(0.0, index=pd.Index(ids, name="id"), columns=world.genes).reset_index()


def _multiome(world: World) -> Iterator[tuple[pd.DataFrame, sparse.csr_array]]:
    """Untreated cells' RNA, by cell type and donor: their obs (obs_id, cell_type, donor_id) and counts."""
    vehicle = world.groups[world.groups["sm_name"] == world.layout.vehicle]
    weights = vehicle.groupby(["cell_type", "donor_id"])["n_cells"].sum()
    rng = stream(world.seed, Stream.MULTIOME)
    cells = rng.multinomial(world.settings.files.multiome_cells, weights / weights.sum())
    ids = multiome_ids(int(cells.sum()), seed=world.seed)
    for (cell_type, donor), count, last in zip(weights.index, cells, np.cumsum(cells), strict=True):
        obs = pd.DataFrame(
            {"obs_id": ids[last - count : last], "cell_type": cell_type, "donor_id": donor}
        )
        yield obs, _untreated(world, cell_type, donor, n=count, rng=rng)


def _untreated(
    world: World, cell_type: str, donor: str, *, n: int, rng: np.random.Generator
) -> sparse.csr_array:
    """Counts (cells, genes) of untreated cells of a donor."""
    share = world.share.loc[cell_type] * np.exp(
        world.noise.donor[donor][CELL_TYPES.index(cell_type)]
    )
    size = world.depth * mean_one(rng, world.settings.depth.cell_log_sd, (n,))
    return sample_nb_sparse(rng, size=size, share=normalised(share.to_numpy()), r=world.r)


class PseudobulkSums:
    """Collects one sample for every group that has cells (spurious entries are never among them).

    A sum is of one well's cells and fits 32 bits by far; sums of these are for the reader to take in 64.
    """

    def __init__(self) -> None:
        self._groups: list[int] = []
        self._rows: list[sparse.csr_array] = []

    def add(self, chunk: Chunk) -> None:
        """Take in a group's cells."""
        total = np.asarray(chunk.counts.sum(axis=0), dtype=np.int32).reshape(1, -1)
        self._groups.append(chunk.group)
        self._rows.append(sparse.csr_array(total))

    def table(self, world: World) -> AnnData:
        """Samples x genes with the competition's columns and ours, ``n_cells`` and ``withheld``."""
        obs = group_obs(world).iloc[self._groups].reset_index(drop=True)
        extra = world.groups.iloc[self._groups].reset_index(drop=True)
        key = obs["plate_name"] + "_" + obs["well"] + "_" + obs["cell_type"]
        obs = in_our_words(obs.assign(obs_id=key)).drop(columns="cell_id")
        obs["n_cells"], obs["withheld"] = extra["n_cells"].to_numpy(), extra["withheld"].to_numpy()
        var = pd.DataFrame(index=pd.Index(world.genes, name="gene"))
        return AnnData(
            sparse.csr_matrix(sparse.vstack(self._rows)), obs=obs, var=var, uns=metadata(world)
        )


_README = """This folder is SIMULATED ({kind}); no cell in it was ever measured.

It has the files of the NeurIPS 2023 "Open Problems - Single-Cell Perturbations" competition, made by
`perturbgen simulate` with the settings and the seed in simulation.toml. What only a simulation knows:

truth.h5ad             every cell type x compound: programmed log2 fold changes (logFC), noise-free means (mean)
truth_cells.h5ad       the withheld cells (B and Myeloid of all but the known compounds)
truth_pseudobulk.h5ad  sums of the true counts by plate, well and cell type, withheld ones included
de_truth.parquet       the statistic of de_train.parquet for the rows of id_map.csv: what a prediction is scored against

normalized_count is log1p of counts per million. adata_excluded_ids.csv lists entries of adata_train.parquet that are
not in the truth and must be removed by the pair obs_id, gene. The multiome files hold RNA only.
"""


def write_competition(world: World, folder: Path) -> None:
    """Write the whole file set into an existing, empty folder."""
    _write_labels(world, folder)
    _write_multiome(world, folder)
    write_h5ad(truth(world), folder / "truth.h5ad")
    pseudobulk = _write_cells(world, folder)
    write_h5ad(pseudobulk, folder / "truth_pseudobulk.h5ad")
    de_train, de_truth = _de_tables(world, pseudobulk)
    de_train.to_parquet(folder / "de_train.parquet", index=False)
    de_truth.to_parquet(folder / "de_truth.parquet", index=False)
    (folder / "simulation.toml").write_text(_simulation_toml(world))
    (folder / "README.txt").write_text(_README.format(kind=world.kind))


def _simulation_toml(world: World) -> str:
    """The seed and the resolved settings, from which :func:`perturbgen.simulate.load_world` rebuilds the world."""
    return tomli_w.dumps({"seed": world.seed, "settings": world.settings.model_dump(mode="json")})


def _write_cells(world: World, folder: Path) -> AnnData:
    """Draw every cell once: the released ones to parquet, the withheld ones to h5ad, the sums are returned."""
    sums, excluded = PseudobulkSums(), []
    row_group = world.settings.files.row_group
    with (
        _LongParquet(folder / "adata_train.parquet", world.genes, row_group=row_group) as released,
        _withheld_file(world, folder / "truth_cells.h5ad") as withheld,
        progress("simulating cells", int(world.groups["n_cells"].sum())) as tick,
    ):
        for chunk in world.chunks():
            sums.add(chunk)
            if world.groups["withheld"].iat[chunk.group]:
                withheld.add(chunk.counts)
            else:
                spurious = spurious_entries(world, chunk)
                ids = chunk_ids(world, chunk)
                released.add(ids, sparse.csr_array(chunk.counts + spurious), _totals(chunk.counts))
                excluded += _pairs(spurious, ids, world.genes)
            tick(chunk.counts.shape[0])
    pd.DataFrame(excluded, columns=["obs_id", "gene"]).to_csv(
        folder / "adata_excluded_ids.csv", index=False
    )
    return sums.table(world)


def _withheld_file(world: World, path: Path) -> SparseH5ad:
    """The file of the withheld cells, their labels already in it."""
    obs = in_our_words(all_cells(world, withheld=True))
    var = pd.DataFrame(index=pd.Index(world.genes, name="gene"))
    return SparseH5ad(path, obs=obs, var=var, uns=metadata(world))


def _totals(counts: sparse.csr_array) -> np.ndarray:
    """Counts of each cell (cells,), at least one."""
    return np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)


def _pairs(entries: sparse.csr_array, ids: list[str], genes: list[str]) -> list[tuple[str, str]]:
    """The (obs_id, gene) of every stored entry."""
    cells, columns = entries.nonzero()
    return [(ids[cell], genes[gene]) for cell, gene in zip(cells, columns, strict=True)]


def _write_labels(world: World, folder: Path) -> None:
    """The obs table (by id, as the real one), the rows to predict, and an example of a submission."""
    obs = all_cells(world, withheld=False).sort_values("obs_id")
    obs.to_csv(folder / "adata_obs_meta.csv", index=False)
    id_map(world).to_csv(folder / "id_map.csv", index=False)
    _sample_submission(world).to_csv(folder / "sample_submission.csv", index=False)


def _write_multiome(world: World, folder: Path) -> None:
    """The untreated cells' RNA."""
    var = pd.DataFrame(
        {"location": world.genes, "gene_id": world.genes, "feature_type": "Gene Expression"}
    )
    var.to_csv(folder / "multiome_var_meta.csv", index=False)
    labels, path = [], folder / "multiome_train.parquet"
    row_group = world.settings.files.row_group
    with _LongParquet(path, world.genes, row_group=row_group, gene_column="location") as file:
        for obs, counts in _multiome(world):
            file.add(obs["obs_id"].tolist(), counts, _totals(counts))
            labels.append(obs)
    pd.concat(labels).sort_values("obs_id").to_csv(folder / "multiome_obs_meta.csv", index=False)
