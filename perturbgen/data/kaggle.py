"""The competition's cells, from the Kaggle file set to AnnData.

The counts come as one long table of non-zeros (``adata_train.parquet``); it is streamed into CSR, never pivoted.

The competition's small tables: DE values, the rows and genes of a submission.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten, suggest
from perturbgen.core.files import require_file, require_folder
from perturbgen.core.labels import VEHICLE
from perturbgen.core.tables import (
    categorise,
    find_optional,
    find_table,
    open_parquet,
    parquet_errors,
    read_frame,
    read_header,
    rename_obs,
    require_columns,
    require_unique,
    require_values,
)
from perturbgen.data.long_counts import LongCounts, distinct_labels, excluded_keys
from perturbgen.data.schema import KAGGLE_COLUMNS, ORGANISERS_PLATES

if TYPE_CHECKING:
    from anndata import AnnData

_DE_META = ("cell_type", "sm_name", "sm_lincs_id", "SMILES", "control")
_CONDITION = ("cell_type", "compound")


def read_de(path: str | Path) -> pd.DataFrame:
    """``de_train.parquet`` (or the folder holding it): conditions (cell_type, compound) x genes, signed -log10 p."""
    path = _de_path(path)
    with open_parquet(path, columns=_DE_META[:2]) as file, parquet_errors(path):
        names = [name for name in file.schema_arrow.names if name in _DE_META[:2] or is_gene(name)]
        table = file.read(columns=names).to_pandas()
    values = table.set_index(condition_index(table, path)).drop(columns=list(_DE_META[:2]))
    holes = values.isna().to_numpy()
    if holes.any():
        row, gene = divmod(int(holes.argmax()), values.shape[1])
        raise SchemaError(
            f"{path}: {values.index[row]} has no value for gene {values.columns[gene]!r}",
            expected="a complete table",
        )
    return values.rename_axis(columns="gene")


def _read_de_obs(path: str | Path) -> pd.DataFrame:
    """The describing columns of ``de_train.parquet`` (sm_lincs_id, SMILES, control), rows as in :func:`read_de`."""
    path = _de_path(path)
    table = read_frame(path, columns=_DE_META, only=True)
    return table.set_index(condition_index(table, path)).drop(columns=list(_DE_META[:2]))


def _read_train_obs(path: str | Path) -> pd.DataFrame:
    """The describing columns of the training rows from a CSV, indexed as :func:`read_de`."""
    path = Path(path)
    table = read_frame(path, columns=_DE_META, text=_DE_META[:4])
    require_values(table, _DE_META, "sm_name", path)
    return table.set_index(condition_index(table, path)).drop(columns=list(_DE_META[:2]))


def condition_index(table: pd.DataFrame, path: Path) -> pd.MultiIndex:
    """(cell_type, compound) of each row; a condition that occurs twice is an error."""
    index = pd.MultiIndex.from_frame(table[["cell_type", "sm_name"]].astype(str), names=_CONDITION)
    require_unique(index, "condition", path)
    return index


def _de_path(path: str | Path) -> Path:
    """The file itself, where its folder was given."""
    path = Path(path)
    return require_file(path / "de_train.parquet" if path.is_dir() else path, "DE table")


def is_gene(name: str) -> bool:
    """Whether a column of ``de_train.parquet`` is a gene (pandas may have left its index there)."""
    return name not in _DE_META and not name.startswith("__index_level")


def read_id_map(
    path: str | Path,
    *,
    compounds: Iterable[str] | None = None,
    cell_types: Iterable[str] | None = None,
) -> pd.DataFrame:
    """``id_map.csv``: cell_type and compound of each submission row, indexed by id.

    The column order differs between Kaggle and Open Problems; columns are found by name. With ``compounds`` or
    ``cell_types``, a row that names any other is an error.
    """
    path = find_table(path, "id_map.csv")
    table = read_frame(path, columns=["id", "cell_type", "sm_name"], text=("cell_type", "sm_name"))
    require_values(table, ["id", "cell_type", "sm_name"], "id", path)
    require_unique(table["id"], "id", path)
    condition_index(table, path)
    table = table.rename(columns={"sm_name": "compound"}).set_index("id")[list(_CONDITION)]
    for column, known in (("compound", compounds), ("cell_type", cell_types)):
        if known is not None:
            _require_known(table[column], list(known), column, path)
    return table


def _require_known(values: pd.Series, known: list[str], what: str, path: Path) -> None:
    """Every value is among the known ones."""
    unknown = [value for value in values.unique() if value not in set(known)]
    if unknown:
        raise SchemaError(
            f"{path} names unknown {what}s: {shorten(unknown)}",
            expected=f"one of the {len(known)} {what}s of the training data",
            cause="another release of the data, or a misspelt name",
            fix="; ".join(f"{value!r}: {suggest(value, known)}" for value in unknown[:5]),
        )


def _read_sample_submission(path: str | Path) -> tuple[pd.Index, pd.Index]:
    """The ids and the genes of ``sample_submission.csv``, in the file's order."""
    path = find_table(path, "sample_submission.csv")
    genes = _submission_genes(path)
    ids = read_frame(path, columns=["id"], only=True)["id"]
    require_unique(ids, "id", path)
    return pd.Index(ids, name="id"), genes


def _submission_genes(path: Path) -> pd.Index:
    """The genes of a submission file, from its header alone."""
    header = read_header(path)
    require_columns(header, ["id"], path)
    return _unique_genes([name for name in header if name != "id"], path)


def read_genes(path: str | Path) -> pd.Index:
    """A list of genes, one a line."""
    path = require_file(path, "gene list")
    return _unique_genes(
        [line.strip() for line in path.read_text().splitlines() if line.strip()], path
    )


def _unique_genes(names: list[str], path: Path) -> pd.Index:
    """Gene names as an index; a repeated one is an error."""
    genes = pd.Index(names, dtype=object, name="gene")
    require_unique(genes, "gene", path)
    return genes


def _gene_order(folder: str | Path) -> pd.Index | None:
    """The genes in the order of ``sample_submission.csv`` or, where absent, of ``de_train.parquet``; else None."""
    submission = find_optional(folder, "sample_submission.csv")
    if submission is not None:
        return _submission_genes(submission)
    path = Path(folder) / "de_train.parquet"
    if not path.exists():
        return None
    with open_parquet(path, columns=_DE_META[:2]) as file:
        return _unique_genes([name for name in file.schema_arrow.names if is_gene(name)], path)


_logger = logging.getLogger(__name__)

_TEXT = (
    "obs_id",
    "library_id",
    "plate_name",
    "well",
    "row",
    "cell_id",
    "donor_id",
    "cell_type",
    "sm_name",
)
_TEXT_OPTIONAL = ("sm_lincs_id", "SMILES")
_GENE_EXPRESSION = "Gene Expression"


def read_competition(
    folder: str | Path, *, excluded: bool = True, organisers_plates: bool = False
) -> AnnData:
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
    obs = _read_obs(folder)
    if organisers_plates:
        obs["plate"] = _rename_plates(obs["plate"])
    genes = _gene_order(folder)
    genes = distinct_labels(path, "gene") if genes is None else genes
    pairs = _read_excluded(folder, obs.index, genes) if excluded else np.empty(0, np.int64)
    counts = LongCounts(path, rows=obs.index, columns=genes, excluded=pairs).read()
    var = pd.DataFrame(index=pd.Index(genes, name="gene"))
    return AnnData(X=counts, obs=obs, var=var, uns={"vehicle": VEHICLE})


def _read_obs(folder: str | Path) -> pd.DataFrame:
    """``adata_obs_meta.csv`` indexed by obs_id, with our column names added."""
    path = find_table(folder, "adata_obs_meta.csv")
    meta = read_frame(path, columns=["obs_id", *KAGGLE_COLUMNS], text=(*_TEXT, *_TEXT_OPTIONAL))
    require_unique(meta["obs_id"], "obs_id", path)
    require_values(meta, [name for name in KAGGLE_COLUMNS if name != "dose_uM"], "obs_id", path)
    if not pd.api.types.is_bool_dtype(meta["control"]):
        raise SchemaError(
            f"{path}: 'control' holds {shorten(meta['control'].unique())}",
            expected="True or False in every row",
        )
    if not pd.api.types.is_numeric_dtype(meta["dose_uM"]):
        words = meta.loc[pd.to_numeric(meta["dose_uM"], errors="coerce").isna(), "dose_uM"].dropna()
        raise SchemaError(
            f"{path}: 'dose_uM' holds {shorten(words.unique())}", expected="a number in every row"
        )
    columns = {ours: theirs for theirs, ours in KAGGLE_COLUMNS.items() if ours != theirs}
    return rename_obs(meta.set_index("obs_id"), columns)


def _rename_plates(plates: pd.Series) -> pd.Series:
    """Released plate names to those that the organisers' DE used."""
    unknown = sorted(set(plates.unique()) - set(ORGANISERS_PLATES))
    if unknown:
        raise SchemaError(
            f"plates {shorten(unknown)} have no organisers' name",
            expected=f"the released names {shorten(ORGANISERS_PLATES, 6)}",
            fix="leave organisers_plates off",
        )
    return plates.astype(str).map(ORGANISERS_PLATES).astype("category")


def _read_excluded(folder: str | Path, cells: pd.Index, genes: pd.Index) -> np.ndarray:
    """The (cell, gene) pairs of ``adata_excluded_ids.csv`` as sorted keys; none where there is no such file."""
    path = find_optional(folder, "adata_excluded_ids.csv")
    if path is None:
        _logger.info("no adata_excluded_ids.csv: every count is kept")
        return np.empty(0, np.int64)
    names = ["obs_id", "gene"]
    pairs = read_frame(path, columns=names, text=names, may_be_empty=True)[names]
    keys = excluded_keys(pairs, cells, genes)
    _logger.info("%s excluded (cell, gene) pairs are left out", f"{len(keys):,}")
    unknown = len(pairs.drop_duplicates()) - len(keys)
    if unknown:
        _logger.warning("%s of the excluded pairs name an unknown cell or gene", f"{unknown:,}")
    return keys


def _read_multiome(folder: str | Path, *, features: str = _GENE_EXPRESSION) -> AnnData:
    """The untreated multiome cells: raw counts of one feature type (``Gene Expression`` or ``Peaks``) in CSR int32.

    Rows follow ``multiome_obs_meta.csv``, columns ``multiome_var_meta.csv``.
    """
    from anndata import AnnData

    folder = require_folder(folder, "folder of competition files")
    path = require_file(folder / "multiome_train.parquet", "table of counts")
    obs = _read_multiome_obs(folder)
    var = _read_multiome_var(folder)
    wanted = (var["feature_type"] == features).to_numpy()
    if not wanted.any():
        raise SchemaError(
            f"multiome_var_meta.csv has no feature of type {features!r}",
            expected=f"one of {shorten(var['feature_type'].unique())}",
        )
    target = np.where(wanted, np.cumsum(wanted) - 1, -1).astype(np.int32)
    counts = LongCounts(
        path, rows=obs.index, columns=var.index, column_key="location", target=target
    ).read()
    return AnnData(X=counts, obs=obs, var=var[wanted])


def _read_multiome_obs(folder: str | Path) -> pd.DataFrame:
    """``multiome_obs_meta.csv`` indexed by obs_id."""
    path = find_table(folder, "multiome_obs_meta.csv")
    needed = ["obs_id", "cell_type", "donor_id"]
    meta = read_frame(path, columns=needed, text=needed)
    require_unique(meta["obs_id"], "obs_id", path)
    require_values(meta, needed, "obs_id", path)
    return rename_obs(meta.set_index("obs_id"), {"donor": "donor_id"})


def _read_multiome_var(folder: str | Path) -> pd.DataFrame:
    """``multiome_var_meta.csv`` indexed by location."""
    path = find_table(folder, "multiome_var_meta.csv")
    meta = read_frame(
        path, columns=["location", "feature_type"], text=("location", "gene_id", "feature_type")
    )
    require_unique(meta["location"], "location", path)
    return categorise(meta.set_index("location"))
