"""The table that is compared on, and tables of predictions, from any file that holds one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from perturbgen.compare.settings import DataSettings
from perturbgen.core.errors import ConfigError, InputError, SchemaError, shorten
from perturbgen.core.files import atomic_path, require_file
from perturbgen.core.labels import CONDITION
from perturbgen.core.tables import read_frame, require_columns, require_unique
from perturbgen.de import read_de_table as read_any
from perturbgen.de.table import NAMES
from perturbgen.evaluate import place


@dataclass(frozen=True)
class Book:
    """All measured rows, conditions x genes; ``released`` (conditions,) are those of ``data.train``.

    What is learnt from and compared is within ± ``clip``; which genes respond is seen in the table as it is.
    """

    table: pd.DataFrame
    released: np.ndarray
    clip: float | None = None

    @property
    def conditions(self) -> pd.MultiIndex:
        """The labels of the rows."""
        return cast("pd.MultiIndex", self.table.index)

    def rows(self, positions: np.ndarray) -> pd.DataFrame:
        """Some rows (positions,), limited."""
        return self.limit(self.table.iloc[positions])

    def limit(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table of conditions x genes within ± ``clip``."""
        return table if self.clip is None else table.clip(-self.clip, self.clip)

    @property
    def hash(self) -> str:
        """Of values and labels."""
        found = hashlib.sha256(np.ascontiguousarray(self.table.to_numpy()).tobytes())
        for labels in (
            *(self.table.index.get_level_values(name) for name in CONDITION),
            self.table.columns,
        ):
            found.update("\0".join(map(str, labels)).encode())
        return found.hexdigest()

    def write(self, path: Path) -> Path:
        """Save for the workers."""
        index = self.table.index
        with atomic_path(path) as part:
            np.savez(
                part,
                values=self.table.to_numpy(),
                released=self.released,
                clip=np.nan if self.clip is None else self.clip,
                genes=np.array(self.table.columns, str),
                **{name: np.array(index.get_level_values(name), str) for name in CONDITION},  # type: ignore[arg-type]
            )
        return path

    @classmethod
    def read(cls, path: Path) -> Book:
        """What :meth:`write` saved."""
        with np.load(path) as file:
            index = pd.MultiIndex.from_arrays(
                [file[name].astype(object) for name in CONDITION], names=CONDITION
            )
            genes = pd.Index(file["genes"].astype(object), name="gene")
            clip = float(file["clip"])
            return cls(
                pd.DataFrame(file["values"], index, genes),
                file["released"],
                None if np.isnan(clip) else clip,
            )


def read_book(data: DataSettings) -> Book:
    """The rows of ``data.train`` and, where given, of ``data.truth``, on the genes that both must have."""
    train = read_table(find(data, data.train, "table"), statistic=data.statistic)
    if not data.truth:
        return Book(_complete(train, data.train), np.ones(len(train), bool), data.clip)
    truth = read_table(find(data, data.truth, "table of withheld rows"), statistic=data.statistic)
    if set(train.columns) != set(truth.columns):
        absent, extra = (
            train.columns.difference(truth.columns),
            truth.columns.difference(train.columns),
        )
        raise SchemaError(
            f"{data.train} and {data.truth} have other genes: {shorten([*absent, *extra])}",
            expected="the same genes",
        )
    both = pd.concat([train, truth[train.columns]])
    require_unique(both.index, "condition", f"{data.train} with {data.truth}")
    return Book(_complete(both, data.train), np.arange(len(both)) < len(train), data.clip)


def _complete(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The table as float64, refused where a value is text, missing or infinite."""
    text = [
        str(gene) for gene, kind in table.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)
    ]
    if text or not table.shape[1]:
        raise SchemaError(
            f"{name} has columns that are not numbers: {shorten(text)}"
            if text
            else f"{name} has no column of a gene",
            expected="cell_type, compound (or sm_name), and a column of numbers for each gene",
        )
    values = table.astype(np.float64)
    wrong = ~np.isfinite(values.to_numpy())
    if wrong.any():
        raise SchemaError(
            f"{name} has {int(wrong.sum())} values missing or infinite, the first {place(wrong, values)}",
            expected="a complete table",
            fix="drop these genes or conditions",
        )
    return values


def find(data: DataSettings, name: str, what: str) -> Path:
    """A file of the data folder, or from the working directory."""
    inside = Path(data.folder) / name
    if data.folder and not Path(data.folder).is_dir():
        raise InputError(
            f"no data folder at {data.folder}",
            expected="an existing folder",
            fix="perturbgen simulate FOLDER makes one; --data FOLDER names another",
        )
    return (
        inside if inside.exists() else require_file(name if Path(name).exists() else inside, what)
    )


def read_table(path: Path, *, statistic: str = "signed_log10_p", layer: str = "") -> pd.DataFrame:
    """Conditions (cell_type, compound), each once, x genes, from any table of differential expression."""
    if layer and path.suffix != ".h5ad":
        raise ConfigError(f"{path} has no layers", expected="an .h5ad file", fix="leave layer out")
    table = read_any(path, statistic=statistic, layer=layer)
    require_columns(table.index.names, CONDITION, path)
    index = pd.MultiIndex.from_arrays(
        [table.index.get_level_values(name) for name in CONDITION], names=CONDITION
    )
    require_unique(index, "condition", path)
    return table.set_axis(index, axis=0)


def read_conditions(path: Path) -> pd.DataFrame:
    """What is known of conditions, to stratify by: labelled rows."""
    table = read_frame(path, text=(*CONDITION, *NAMES)).rename(columns=NAMES)
    require_columns(table.columns, CONDITION, path)
    return table.set_index(list(CONDITION))


def read_ladder(path: Path) -> list[dict[str, Any]]:
    """Rungs of an oracle ladder: rows with prediction and ratio."""
    if path.suffix == ".json":
        try:
            table = pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path} is no table in JSON: {error}", expected="a list of rows"
            ) from None
    else:
        table = read_frame(path)
    require_columns(table.columns, ["prediction", "ratio"], path)
    ratio = pd.to_numeric(table["ratio"], errors="coerce")
    wrong = table["prediction"][~np.isfinite(ratio)]
    if len(wrong):
        raise SchemaError(
            f"{path}: no ratio for {shorten(wrong)}", expected="a number in every row"
        )
    return [
        {str(key): value for key, value in row.items()}
        for row in table.assign(ratio=ratio).to_dict("records")
    ]
