"""The competition's cells, from the Kaggle file set to AnnData.

The counts come as one long table of non-zeros (``adata_train.parquet``); it is streamed into CSR, never pivoted.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbgen.data.kaggle_tables import gene_order
from perturbgen.data.long_counts import LongCounts, distinct_labels, excluded_keys
from perturbgen.data.tables import (
    categorise,
    find_optional,
    find_table,
    read_csv,
    rename_obs,
    require_unique,
    require_values,
)
from perturbgen.data.vocabulary import KAGGLE_COLUMNS, ORGANISERS_PLATES, VEHICLE
from perturbgen.errors import SchemaError, shorten
from perturbgen.files import require_file, require_folder

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

TEXT = ("obs_id", "library_id", "plate_name", "well", "row", "cell_id", "donor_id", "cell_type", "sm_name")
TEXT_OPTIONAL = ("sm_lincs_id", "SMILES")
GENE_EXPRESSION = "Gene Expression"


def read_competition(folder: str | Path, *, excluded: bool = True, organisers_plates: bool = False) -> AnnData:
    """The competition's cells: raw counts in CSR int32, obs with our names beside the originals.

    Reads ``adata_train.parquet`` and ``adata_obs_meta.csv``; the pairs of ``adata_excluded_ids.csv``, where that file
    is present, are left out (pairs of cell and gene, not whole cells; ``excluded=False`` keeps them). Rows follow
    ``adata_obs_meta.csv``. Genes follow ``sample_submission.csv`` or ``de_train.parquet``, where present, else they are
    sorted by name. ``organisers_plates=True`` renames ``plate`` as the organisers' own DE did; ``plate_name`` keeps the
    released names.
    """
    from anndata import AnnData

    folder = require_folder(folder, "folder of competition files")
    path = require_file(folder / "adata_train.parquet", "table of counts")
    obs = read_obs(folder)
    if organisers_plates:
        obs["plate"] = rename_plates(obs["plate"])
    genes = gene_order(folder)
    genes = distinct_labels(path, "gene") if genes is None else genes
    pairs = read_excluded(folder, obs.index, genes) if excluded else np.empty(0, np.int64)
    counts = LongCounts(path, rows=obs.index, columns=genes, excluded=pairs).read()
    var = pd.DataFrame(index=pd.Index(genes, name="gene"))
    return AnnData(X=counts, obs=obs, var=var, uns={"vehicle": VEHICLE})


def read_obs(folder: str | Path) -> pd.DataFrame:
    """``adata_obs_meta.csv`` indexed by obs_id, with our column names added."""
    path = find_table(folder, "adata_obs_meta.csv")
    meta = read_csv(path, columns=["obs_id", *KAGGLE_COLUMNS], text=(*TEXT, *TEXT_OPTIONAL))
    require_unique(meta["obs_id"], "obs_id", path)
    require_values(meta, [name for name in KAGGLE_COLUMNS if name != "dose_uM"], "obs_id", path)
    if not pd.api.types.is_bool_dtype(meta["control"]):
        raise SchemaError(
            f"{path}: 'control' holds {shorten(meta['control'].unique())}", expected="True or False in every row"
        )
    if not pd.api.types.is_numeric_dtype(meta["dose_uM"]):
        words = meta.loc[pd.to_numeric(meta["dose_uM"], errors="coerce").isna(), "dose_uM"].dropna()
        raise SchemaError(f"{path}: 'dose_uM' holds {shorten(words.unique())}", expected="a number in every row")
    columns = {ours: theirs for theirs, ours in KAGGLE_COLUMNS.items() if ours != theirs}
    return rename_obs(meta.set_index("obs_id"), columns)


def rename_plates(plates: pd.Series) -> pd.Series:
    """Released plate names to those that the organisers' DE used."""
    unknown = sorted(set(plates.unique()) - set(ORGANISERS_PLATES))
    if unknown:
        raise SchemaError(
            f"plates {shorten(unknown)} have no organisers' name",
            expected=f"the released names {shorten(ORGANISERS_PLATES, 6)}",
            fix="leave organisers_plates off",
        )
    return plates.astype(str).map(ORGANISERS_PLATES).astype("category")


def read_excluded(folder: str | Path, cells: pd.Index, genes: pd.Index) -> np.ndarray:
    """The (cell, gene) pairs of ``adata_excluded_ids.csv`` as sorted keys; none where there is no such file."""
    path = find_optional(folder, "adata_excluded_ids.csv")
    if path is None:
        logger.info("no adata_excluded_ids.csv: every count is kept")
        return np.empty(0, np.int64)
    names = ["obs_id", "gene"]
    pairs = read_csv(path, columns=names, text=names, may_be_empty=True)[names]
    keys = excluded_keys(pairs, cells, genes)
    logger.info("%s excluded (cell, gene) pairs are left out", f"{len(keys):,}")
    unknown = len(pairs.drop_duplicates()) - len(keys)
    if unknown:
        logger.warning("%s of the excluded pairs name an unknown cell or gene", f"{unknown:,}")
    return keys


def read_multiome(folder: str | Path, *, features: str = GENE_EXPRESSION) -> AnnData:
    """The untreated multiome cells: raw counts of one feature type (``Gene Expression`` or ``Peaks``) in CSR int32.

    Rows follow ``multiome_obs_meta.csv``, columns ``multiome_var_meta.csv``.
    """
    from anndata import AnnData

    folder = require_folder(folder, "folder of competition files")
    path = require_file(folder / "multiome_train.parquet", "table of counts")
    obs = read_multiome_obs(folder)
    var = read_multiome_var(folder)
    wanted = (var["feature_type"] == features).to_numpy()
    if not wanted.any():
        raise SchemaError(
            f"multiome_var_meta.csv has no feature of type {features!r}",
            expected=f"one of {shorten(var['feature_type'].unique())}",
        )
    target = np.where(wanted, np.cumsum(wanted) - 1, -1).astype(np.int32)
    counts = LongCounts(path, rows=obs.index, columns=var.index, column_key="location", target=target).read()
    return AnnData(X=counts, obs=obs, var=var[wanted])


def read_multiome_obs(folder: str | Path) -> pd.DataFrame:
    """``multiome_obs_meta.csv`` indexed by obs_id."""
    path = find_table(folder, "multiome_obs_meta.csv")
    needed = ["obs_id", "cell_type", "donor_id"]
    meta = read_csv(path, columns=needed, text=needed)
    require_unique(meta["obs_id"], "obs_id", path)
    require_values(meta, needed, "obs_id", path)
    return rename_obs(meta.set_index("obs_id"), {"donor": "donor_id"})


def read_multiome_var(folder: str | Path) -> pd.DataFrame:
    """``multiome_var_meta.csv`` indexed by location."""
    path = find_table(folder, "multiome_var_meta.csv")
    meta = read_csv(path, columns=["location", "feature_type"], text=("location", "gene_id", "feature_type"))
    require_unique(meta["location"], "location", path)
    return categorise(meta.set_index("location"))
