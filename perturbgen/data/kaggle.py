"""The competition's file set: its cells as AnnData, its DE values, and the rows to predict.

The counts come as one long table of non-zeros (``adata_train.parquet``); it is streamed into CSR,
never pivoted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten, suggest
from perturbgen.core.files import require_file, require_folder
from perturbgen.core.tables import (
    CONDITION,
    NAMES,
    VEHICLE,
    conditions_of,
    find_optional,
    find_table,
    open_parquet,
    read_frame,
    read_header,
    reading,
    require_columns,
    require_unique,
    require_values,
    with_compound,
)
from perturbgen.data.counts import LongTable, distinct_labels
from perturbgen.data.schema import KAGGLE_COLUMNS, with_our_columns

if TYPE_CHECKING:
    from anndata import AnnData

_logger = logging.getLogger(__name__)

# The released plate names are permuted against those that the organisers' own DE used:
# compute_de.ipynb of github.com/openproblems-bio/neurips-2023-scripts.
ORGANISERS_PLATES: Final = {
    f"plate_{released}": f"plate_{theirs}" for released, theirs in enumerate((2, 3, 1, 4, 0, 5))
}
_DE_META = ("cell_type", "sm_name", "sm_lincs_id", "SMILES", "control")
_NUMBERS = ("dose_uM", "control")


def read_de(path: str | Path) -> pd.DataFrame:
    """``de_train.parquet``, or that of a folder: conditions x genes, signed -log10 p."""
    path = Path(path)
    path = require_file(path / "de_train.parquet" if path.is_dir() else path, "DE table")
    labels = list(_DE_META[:2])
    with open_parquet(path, columns=labels) as file, reading(path, "parquet"):
        names = [name for name in file.schema_arrow.names if name in labels or is_gene(name)]
        table = file.read(columns=names).to_pandas()
    index = conditions_of(table, compound="sm_name", unique_in=path)
    values = table.set_index(index).drop(columns=labels)
    holes = values.isna().to_numpy()
    if holes.any():
        row, gene = divmod(int(holes.argmax()), values.shape[1])
        what = f"{path}: {values.index[row]} has no value for gene {values.columns[gene]!r}"
        raise SchemaError(what, expected="a complete table")
    return values.rename_axis(columns="gene")


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

    With ``compounds`` or ``cell_types``, a row that names any other is an error.
    """
    path = find_table(path, "id_map.csv")
    # By name: Kaggle and Open Problems order the columns differently.
    names = ["id", "cell_type", "sm_name"]
    table = read_frame(path, columns=names, text=names[1:])
    require_values(table, names, "id", path)
    require_unique(table["id"], "id", path)
    conditions_of(table, compound="sm_name", unique_in=path)
    table = table.rename(columns=NAMES).set_index("id")[list(CONDITION)]
    for column, allowed in (("compound", compounds), ("cell_type", cell_types)):
        if allowed is None:
            continue
        known = list(allowed)
        unknown = [value for value in table[column].unique() if value not in set(known)]
        if unknown:
            raise SchemaError(
                f"{path} names unknown {column}s: {shorten(unknown)}",
                expected=f"one of the {len(known)} {column}s of the training data",
                cause="another release of the data, or a misspelt name",
                fix="; ".join(f"{value!r}: {suggest(value, known)}" for value in unknown[:5]),
            )
    return table


def read_conditions(path: str | Path) -> pd.DataFrame:
    """Conditions to predict: ``id_map.csv`` or its folder, or a table of cell_type and compound."""
    path = find_table(path, "id_map.csv")
    table = with_compound(read_frame(path, text=(*CONDITION, *NAMES)), path)
    require_columns(table.columns, CONDITION, path)
    for column, other in (CONDITION, CONDITION[::-1]):
        require_values(table, [column], other, path)
    return table[list(CONDITION)]


def read_competition(
    folder: str | Path, *, excluded: bool = True, organisers_plates: bool = False
) -> AnnData:
    """The competition's cells: raw counts in CSR int32, obs with our names beside the originals.

    Reads ``adata_train.parquet`` and ``adata_obs_meta.csv``; the pairs of
    ``adata_excluded_ids.csv``, where that file is present, are dropped (pairs of cell and gene,
    not whole cells; ``excluded=False`` keeps them). Rows follow ``adata_obs_meta.csv``. Genes
    follow ``sample_submission.csv`` or ``de_train.parquet``, where present, else they are sorted by
    name. ``organisers_plates=True`` renames ``plate`` as the organisers' own DE did; ``plate_name``
    keeps the released names.
    """
    from anndata import AnnData

    folder = require_folder(folder, "folder of competition files")
    path = require_file(folder / "adata_train.parquet", "table of counts")
    obs = _read_obs(folder)
    if organisers_plates:
        unknown = sorted(set(obs["plate"].unique()) - set(ORGANISERS_PLATES))
        if unknown:
            raise SchemaError(
                f"plates {shorten(unknown)} have no organisers' name",
                expected=f"the released names {shorten(ORGANISERS_PLATES, 6)}",
                fix="leave organisers_plates off",
            )
        obs["plate"] = obs["plate"].astype(str).map(ORGANISERS_PLATES).astype("category")
    genes = _gene_order(folder)
    # The long table has no order of its own.
    genes = distinct_labels(path, "gene") if genes is None else genes
    pairs = _read_excluded(folder, obs.index, genes) if excluded else None
    counts = LongTable(path, obs.index, genes, excluded=pairs).read()
    var = pd.DataFrame(index=pd.Index(genes, name="gene"))
    # ``control`` in obs cannot say which compound is the vehicle: it flags positive controls, too.
    return AnnData(X=counts, obs=obs, var=var, uns={"vehicle": VEHICLE})


def read_multiome(folder: str | Path, *, features: str = "Gene Expression") -> AnnData:
    """The untreated multiome cells: raw counts of genes or of ``Peaks`` in CSR int32.

    Rows follow ``multiome_obs_meta.csv``, columns ``multiome_var_meta.csv``.
    """
    from anndata import AnnData

    folder = require_folder(folder, "folder of competition files")
    path = require_file(folder / "multiome_train.parquet", "table of counts")
    obs_path = find_table(folder, "multiome_obs_meta.csv")
    var_path = find_table(folder, "multiome_var_meta.csv")
    needed = ["obs_id", "cell_type", "donor_id"]
    obs = read_frame(obs_path, columns=needed, text=needed)
    require_unique(obs["obs_id"], "obs_id", obs_path)
    require_values(obs, needed, "obs_id", obs_path)
    obs = with_our_columns(obs.set_index("obs_id"), {"donor": "donor_id"})
    needed = ["location", "feature_type"]
    var = read_frame(var_path, columns=needed, text=[*needed, "gene_id"])
    require_unique(var["location"], "location", var_path)
    var = with_our_columns(var.set_index("location"), {})
    wanted = (var["feature_type"] == features).to_numpy()
    if not wanted.any():
        known = shorten(var["feature_type"].unique())
        what = f"{var_path.name} has no feature of type {features!r}"
        raise SchemaError(what, expected=f"one of {known}")
    counts = LongTable(path, obs.index, var.index, "location", wanted).read()
    return AnnData(X=counts, obs=obs, var=var[wanted])


def _read_obs(folder: Path) -> pd.DataFrame:
    """``adata_obs_meta.csv`` indexed by obs_id, with our column names added."""
    path = find_table(folder, "adata_obs_meta.csv")
    text = ["cell_id", "sm_lincs_id", "SMILES", *(KAGGLE_COLUMNS.keys() - _NUMBERS)]
    meta = read_frame(path, columns=["obs_id", *KAGGLE_COLUMNS], text=["obs_id", *text])
    require_unique(meta["obs_id"], "obs_id", path)
    require_values(meta, [name for name in KAGGLE_COLUMNS if name != "dose_uM"], "obs_id", path)
    if not pd.api.types.is_bool_dtype(meta["control"]):
        what = f"{path}: 'control' holds {shorten(meta['control'].unique())}"
        raise SchemaError(what, expected="True or False in every row")
    if not pd.api.types.is_numeric_dtype(meta["dose_uM"]):
        words = meta.loc[pd.to_numeric(meta["dose_uM"], errors="coerce").isna(), "dose_uM"].dropna()
        what = f"{path}: 'dose_uM' holds {shorten(words.unique())}"
        raise SchemaError(what, expected="a number in every row")
    columns = {ours: theirs for theirs, ours in KAGGLE_COLUMNS.items() if ours != theirs}
    return with_our_columns(meta.set_index("obs_id"), columns)


def _gene_order(folder: Path) -> pd.Index | None:
    """The genes as ``sample_submission.csv`` or else ``de_train.parquet`` orders them, if there."""
    path = find_optional(folder, "sample_submission.csv")
    if path is not None:
        header = read_header(path)
        require_columns(header, ["id"], path)
        names = [name for name in header if name != "id"]
    else:
        path = folder / "de_train.parquet"
        if not path.exists():
            return None
        with open_parquet(path, columns=_DE_META[:2]) as file:
            names = [name for name in file.schema_arrow.names if is_gene(name)]
    genes = pd.Index(names, dtype=object, name="gene")
    require_unique(genes, "gene", path)
    return genes


def _read_excluded(folder: Path, cells: pd.Index, genes: pd.Index) -> np.ndarray | None:
    """The pairs of ``adata_excluded_ids.csv`` as sorted keys ``cell * genes + gene``."""
    path = find_optional(folder, "adata_excluded_ids.csv")
    if path is None:
        _logger.info("no adata_excluded_ids.csv: every count is kept")
        return None
    # Whole cells must stay: it is counts of single genes that the organisers' own DE did not see.
    names = ["obs_id", "gene"]
    pairs = read_frame(path, columns=names, text=names, may_be_empty=True)[names]
    # a file cut within a line would keep counts that the rest of it excludes
    require_values(pairs, ["gene"], "obs_id", path)
    cell = cells.get_indexer(pd.Index(pairs["obs_id"], dtype=object))
    gene = genes.get_indexer(pd.Index(pairs["gene"], dtype=object))
    known = (cell >= 0) & (gene >= 0)
    keys = np.unique(cell[known].astype(np.int64) * len(genes) + gene[known])
    _logger.info("%s excluded (cell, gene) pairs are dropped", f"{len(keys):,}")
    unknown = len(pairs.drop_duplicates()) - len(keys)
    if unknown:
        _logger.warning("%s of the excluded pairs name an unknown cell or gene", f"{unknown:,}")
    return keys
