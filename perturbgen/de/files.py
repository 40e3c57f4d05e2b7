"""Tables of differential expression as conditions x genes, from any file that a method may leave behind."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.data.kaggle_tables import is_gene, read_id_map
from perturbgen.data.tables import open_parquet, parquet_errors, read_csv
from perturbgen.de.table import DERIVED, METADATA_KEY, STATISTICS, DETable
from perturbgen.errors import ConfigError, InputError, SchemaError, suggest
from perturbgen.files import require_file

logger = logging.getLogger(__name__)

LABELS: Final = ("cell_type", "compound")
NAMES: Final = {"sm_name": "compound"}  # Kaggle's and Open Problems' word
DESCRIBING: Final = ("id", "split", "index")  # beside what the competition's tables describe rows by


def read_table(
    path: Path, *, statistic: str = "signed_log10_p", layer: str | None = None, id_map: Path | None = None
) -> pd.DataFrame:
    """Conditions x genes from a DE table of ours, a flat parquet or CSV, or a layer of an h5ad.

    ``statistic`` is that of a DE table, ``layer`` one of Open Problems' files (the prediction, or limited −log10 p,
    unless named). Rows are labelled by cell_type and compound, one of them at least, or by ids of ``id_map``.
    """
    path = require_file(path, "DE table")
    if path.suffix == ".h5ad":
        return read_layer(path, statistic, layer, id_map)
    if path.suffix == ".parquet":
        return read_parquet(path, statistic, id_map)
    if ".csv" in path.suffixes:
        return labelled(read_csv(path, text=(*LABELS, *NAMES)), path, id_map)
    raise InputError(f"{path} is no table", expected="a .parquet, .h5ad, .csv or .csv.gz file")


def read_parquet(path: Path, statistic: str, id_map: Path | None) -> pd.DataFrame:
    """A DE table of ours, or a flat one."""
    with open_parquet(path) as file, parquet_errors(path):
        if METADATA_KEY not in (file.schema_arrow.metadata or {}):
            return labelled(file.read().to_pandas(), path, id_map)
    return of_statistic(DETable.read(path), statistic)


def read_layer(path: Path, statistic: str, layer: str | None, id_map: Path | None) -> pd.DataFrame:
    """A DE table of ours, or a layer of conditions x genes whose obs has their labels, or their ids as names."""
    from perturbgen.data.h5ad import open_h5ad
    from perturbgen.data.openproblems import LAYER

    adata = open_h5ad(path)
    if "de" in adata.uns and not layer:
        return of_statistic(DETable.from_anndata(adata), statistic)
    chosen = layer or ("prediction" if "prediction" in adata.layers else LAYER)
    if chosen not in adata.layers:
        raise SchemaError(f"{path} has no layer {chosen!r}", fix=f"layer: {suggest(chosen, adata.layers)}")
    named = [name for name in (*LABELS, *NAMES) if name in adata.obs]
    labels = adata.obs[named].reset_index(drop=True) if named else pd.DataFrame({"id": adata.obs_names})
    values = pd.DataFrame(np.asarray(adata.layers[chosen], float), columns=adata.var_names)
    return labelled(pd.concat([labels, values], axis=1), path, id_map)


def require_statistic(name: str) -> None:
    """A DE table has this statistic; a misspelt one is told even where no file is such a table."""
    known = (*STATISTICS, *DERIVED)
    if name not in known:
        raise ConfigError(f"a DE table has no {name!r}", fix=f"statistic: {suggest(name, known)}")


def of_statistic(table: DETable, statistic: str) -> pd.DataFrame:
    """One statistic of a DE table, on the genes that were tested somewhere."""
    require_statistic(statistic)
    frame: pd.DataFrame = getattr(table, statistic)
    tested = frame.notna().any()
    if not tested.all():
        logger.warning("%s genes that were filtered out of the DE table are no part of it", f"{(~tested).sum():,}")
    index = condition_index(frame.index.to_frame(index=False).rename(columns=NAMES))
    return frame.loc[:, tested].set_axis(index, axis=0).rename_axis(columns="gene")


def labelled(table: pd.DataFrame, path: Path, id_map: Path | None = None) -> pd.DataFrame:
    """A flat table with its conditions as index: from its own columns or index, or from its ids and an id map."""
    table = table.reset_index() if any(table.index.names) else table
    table = table.rename(columns={old: new for old, new in NAMES.items() if new not in table})
    named = [name for name in LABELS if name in table]
    if not named and "id" not in table:
        raise SchemaError(
            f"{path} says nothing of its conditions",
            expected="columns cell_type and compound (or sm_name), or id with an id map",
        )
    unnamed = table[named].isna().any(axis=1)
    if unnamed.any():
        raise SchemaError(
            f"{path}: {int(unnamed.sum())} rows without a cell type or compound, the first is row {unnamed.argmax()}",
            expected="a label in every row",
        )
    index = condition_index(table[named]) if named else index_of_ids(table["id"], path, id_map)
    genes = [name for name in table if name not in (*LABELS, *DESCRIBING) and is_gene(str(name))]
    return table[genes].set_axis(index, axis=0).rename_axis(columns="gene")


def condition_index(labels: pd.DataFrame) -> pd.Index:
    """Labels of conditions (a column each) as text."""
    text = labels.astype(str)
    return pd.MultiIndex.from_frame(text) if text.shape[1] > 1 else pd.Index(text.iloc[:, 0])


def index_of_ids(ids: pd.Series, path: Path, id_map: Path | None) -> pd.Index:
    """The conditions of a submission's rows."""
    if id_map is None:
        raise SchemaError(f"the rows of {path} are ids", expected="their conditions, too", fix="--id-map id_map.csv")
    conditions = read_id_map(id_map)
    known = dict(zip(conditions.index.astype(str), conditions.itertuples(index=False, name=None), strict=True))
    unknown = [name for name in ids.astype(str) if name not in known]
    if unknown:
        raise SchemaError(f"{path} has {len(unknown)} ids that {id_map} does not know, the first {unknown[0]!r}")
    return pd.MultiIndex.from_tuples([known[name] for name in ids.astype(str)], names=LABELS)
