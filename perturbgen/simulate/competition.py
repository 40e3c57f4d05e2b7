"""The simulated experiment as the competition's own files, with the truth beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import tomli_w
from anndata import AnnData
from scipy import sparse

from perturbgen.console import progress
from perturbgen.data.h5ad_writer import write_h5ad
from perturbgen.data.sparse_h5ad import SparseH5ad
from perturbgen.simulate.cells import all_cells, chunk_ids, in_our_words, spurious_entries
from perturbgen.simulate.conditions import id_map, metadata, truth
from perturbgen.simulate.long_parquet import LongParquet
from perturbgen.simulate.pseudobulk import PseudobulkSums
from perturbgen.simulate.tables import de_tables, multiome, sample_submission
from perturbgen.simulate.world import World

README = """This folder is SIMULATED ({kind}); no cell in it was ever measured.

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
    write_labels(world, folder)
    write_multiome(world, folder)
    write_h5ad(truth(world), folder / "truth.h5ad")
    pseudobulk = write_cells(world, folder)
    write_h5ad(pseudobulk, folder / "truth_pseudobulk.h5ad")
    de_train, de_truth = de_tables(world, pseudobulk)
    de_train.to_parquet(folder / "de_train.parquet", index=False)
    de_truth.to_parquet(folder / "de_truth.parquet", index=False)
    (folder / "simulation.toml").write_text(simulation_toml(world))
    (folder / "README.txt").write_text(README.format(kind=world.kind))


def simulation_toml(world: World) -> str:
    """The seed and the resolved settings, from which :func:`perturbgen.simulate.load_world` rebuilds the world."""
    return tomli_w.dumps({"seed": world.seed, "settings": world.settings.model_dump(mode="json")})


def write_cells(world: World, folder: Path) -> AnnData:
    """Draw every cell once: the released ones to parquet, the withheld ones to h5ad, the sums are returned."""
    sums, excluded = PseudobulkSums(), []
    row_group = world.settings.files.row_group
    with (
        LongParquet(folder / "adata_train.parquet", world.genes, row_group=row_group) as released,
        withheld_file(world, folder / "truth_cells.h5ad") as withheld,
        progress("simulating cells", int(world.groups["n_cells"].sum())) as tick,
    ):
        for chunk in world.chunks():
            sums.add(chunk)
            if world.groups["withheld"].iat[chunk.group]:
                withheld.add(chunk.counts)
            else:
                spurious = spurious_entries(world, chunk)
                ids = chunk_ids(world, chunk)
                released.add(ids, sparse.csr_array(chunk.counts + spurious), totals(chunk.counts))
                excluded += pairs(spurious, ids, world.genes)
            tick(chunk.counts.shape[0])
    pd.DataFrame(excluded, columns=["obs_id", "gene"]).to_csv(folder / "adata_excluded_ids.csv", index=False)
    return sums.table(world)


def withheld_file(world: World, path: Path) -> SparseH5ad:
    """The file of the withheld cells, their labels already in it."""
    obs = in_our_words(all_cells(world, withheld=True))
    var = pd.DataFrame(index=pd.Index(world.genes, name="gene"))
    return SparseH5ad(path, obs=obs, var=var, uns=metadata(world))


def totals(counts: sparse.csr_array) -> np.ndarray:
    """Counts of each cell (cells,), at least one."""
    return np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)


def pairs(entries: sparse.csr_array, ids: list[str], genes: list[str]) -> list[tuple[str, str]]:
    """The (obs_id, gene) of every stored entry."""
    cells, columns = entries.nonzero()
    return [(ids[cell], genes[gene]) for cell, gene in zip(cells, columns, strict=True)]


def write_labels(world: World, folder: Path) -> None:
    """The obs table (by id, as the real one), the rows to predict, and an example of a submission."""
    obs = all_cells(world, withheld=False).sort_values("obs_id")
    obs.to_csv(folder / "adata_obs_meta.csv", index=False)
    id_map(world).to_csv(folder / "id_map.csv", index=False)
    sample_submission(world).to_csv(folder / "sample_submission.csv", index=False)


def write_multiome(world: World, folder: Path) -> None:
    """The untreated cells' RNA."""
    var = pd.DataFrame({"location": world.genes, "gene_id": world.genes, "feature_type": "Gene Expression"})
    var.to_csv(folder / "multiome_var_meta.csv", index=False)
    labels, path = [], folder / "multiome_train.parquet"
    row_group = world.settings.files.row_group
    with LongParquet(path, world.genes, row_group=row_group, gene_column="location") as file:
        for obs, counts in multiome(world):
            file.add(obs["obs_id"].tolist(), counts, totals(counts))
            labels.append(obs)
    pd.concat(labels).sort_values("obs_id").to_csv(folder / "multiome_obs_meta.csv", index=False)
