"""The competition's small tables: DE values, the rows and genes of a submission."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from perturbgen.data.tables import (
    find_optional,
    find_or_self,
    open_parquet,
    parquet_errors,
    read_csv,
    read_header,
    require_columns,
    require_unique,
    require_values,
)
from perturbgen.errors import SchemaError, shorten, suggest
from perturbgen.files import require_file

DE_META = ("cell_type", "sm_name", "sm_lincs_id", "SMILES", "control")
CONDITION = ("cell_type", "compound")


def read_de(path: str | Path) -> pd.DataFrame:
    """``de_train.parquet`` (or the folder holding it): conditions (cell_type, compound) x genes, signed -log10 p."""
    path = de_path(path)
    with open_parquet(path, columns=DE_META[:2]) as file, parquet_errors(path):
        names = [name for name in file.schema_arrow.names if name in DE_META[:2] or is_gene(name)]
        table = file.read(columns=names).to_pandas()
    values = table.set_index(condition_index(table, path)).drop(columns=list(DE_META[:2]))
    holes = values.isna().to_numpy()
    if holes.any():
        row, gene = divmod(int(holes.argmax()), values.shape[1])
        raise SchemaError(
            f"{path}: {values.index[row]} has no value for gene {values.columns[gene]!r}", expected="a complete table"
        )
    return values.rename_axis(columns="gene")


def read_de_obs(path: str | Path) -> pd.DataFrame:
    """The describing columns of ``de_train.parquet`` (sm_lincs_id, SMILES, control), rows as in :func:`read_de`."""
    path = de_path(path)
    with open_parquet(path, columns=DE_META) as file, parquet_errors(path):
        table = file.read(columns=list(DE_META)).to_pandas()
    return table.set_index(condition_index(table, path)).drop(columns=list(DE_META[:2]))


def read_train_obs(path: str | Path) -> pd.DataFrame:
    """The describing columns of the training rows from a CSV, indexed as :func:`read_de`."""
    path = Path(path)
    table = read_csv(path, columns=DE_META, text=DE_META[:4])
    require_values(table, DE_META, "sm_name", path)
    return table.set_index(condition_index(table, path)).drop(columns=list(DE_META[:2]))


def condition_index(table: pd.DataFrame, path: Path) -> pd.MultiIndex:
    """(cell_type, compound) of each row; a condition that occurs twice is an error."""
    index = pd.MultiIndex.from_frame(table[["cell_type", "sm_name"]].astype(str), names=CONDITION)
    require_unique(index, "condition", path)
    return index


def de_path(path: str | Path) -> Path:
    """The file itself, where its folder was given."""
    path = Path(path)
    return require_file(path / "de_train.parquet" if path.is_dir() else path, "DE table")


def is_gene(name: str) -> bool:
    """Whether a column of ``de_train.parquet`` is a gene (pandas may have left its index there)."""
    return name not in DE_META and not name.startswith("__index_level")


def read_id_map(
    path: str | Path, *, compounds: Iterable[str] | None = None, cell_types: Iterable[str] | None = None
) -> pd.DataFrame:
    """``id_map.csv``: cell_type and compound of each submission row, indexed by id.

    The column order differs between Kaggle and Open Problems; columns are found by name. With ``compounds`` or
    ``cell_types``, a row that names any other is an error.
    """
    path = find_or_self(path, "id_map.csv")
    table = read_csv(path, columns=["id", "cell_type", "sm_name"], text=("cell_type", "sm_name"))
    require_values(table, ["id", "cell_type", "sm_name"], "id", path)
    require_unique(table["id"], "id", path)
    condition_index(table, path)
    table = table.rename(columns={"sm_name": "compound"}).set_index("id")[list(CONDITION)]
    for column, known in (("compound", compounds), ("cell_type", cell_types)):
        if known is not None:
            require_known(table[column], list(known), column, path)
    return table


def require_known(values: pd.Series, known: list[str], what: str, path: Path) -> None:
    """Every value is among the known ones."""
    unknown = [value for value in values.unique() if value not in set(known)]
    if unknown:
        raise SchemaError(
            f"{path} names unknown {what}s: {shorten(unknown)}",
            expected=f"one of the {len(known)} {what}s of the training data",
            cause="another release of the data, or a misspelt name",
            fix="; ".join(f"{value!r}: {suggest(value, known)}" for value in unknown[:5]),
        )


def read_sample_submission(path: str | Path) -> tuple[pd.Index, pd.Index]:
    """The ids and the genes of ``sample_submission.csv``, in the file's order."""
    path = find_or_self(path, "sample_submission.csv")
    genes = submission_genes(path)
    ids = read_csv(path, columns=["id"], only=True)["id"]
    require_unique(ids, "id", path)
    return pd.Index(ids, name="id"), genes


def submission_genes(path: Path) -> pd.Index:
    """The genes of a submission file, from its header alone."""
    header = read_header(path)
    require_columns(header, ["id"], path)
    return unique_genes([name for name in header if name != "id"], path)


def read_genes(path: str | Path) -> pd.Index:
    """A list of genes, one a line."""
    path = require_file(path, "gene list")
    return unique_genes([line.strip() for line in path.read_text().splitlines() if line.strip()], path)


def unique_genes(names: list[str], path: Path) -> pd.Index:
    """Gene names as an index; a repeated one is an error."""
    genes = pd.Index(names, dtype=object, name="gene")
    require_unique(genes, "gene", path)
    return genes


def gene_order(folder: str | Path) -> pd.Index | None:
    """The genes in the order of ``sample_submission.csv`` or, where absent, of ``de_train.parquet``; else None."""
    submission = find_optional(folder, "sample_submission.csv")
    if submission is not None:
        return submission_genes(submission)
    path = Path(folder) / "de_train.parquet"
    if not path.exists():
        return None
    with open_parquet(path, columns=DE_META[:2]) as file:
        return unique_genes([name for name in file.schema_arrow.names if is_gene(name)], path)
