"""The measured table that is compared on, and how tables of effects are read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from perturbgen.compare.settings import TableSettings
from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.files import atomic_path
from perturbgen.core.tables import CONDITION, require_columns, require_unique
from perturbgen.de import read_de_table
from perturbgen.evaluate import place


@dataclass(frozen=True)
class Book:
    """All measured rows, conditions x genes; those of ``data.train`` are ``released``.

    ``layout`` (conditions,) says where each was measured, if that was told.

    What is learnt from and compared is within ± ``clip``; which genes respond is seen in the table
    as it is, since a limit makes the strongest genes equal.
    """

    table: pd.DataFrame
    released: np.ndarray
    clip: float | None = None
    layout: np.ndarray | None = None

    @classmethod
    def of(cls, data: TableSettings) -> Book:
        """The rows of ``data.train`` and, where given, of ``data.truth``, with the same genes."""
        train = read_effects(data.find(data.train, "table"), statistic=data.statistic)
        if not data.truth:
            return cls(_complete(train, data.train), np.ones(len(train), bool), data.clip)
        path = data.find(data.truth, "table of withheld rows")
        truth = read_effects(path, statistic=data.statistic)
        odd = [*train.columns.difference(truth.columns), *truth.columns.difference(train.columns)]
        # On the genes in common the scores would be those of another task, and nobody would notice.
        if odd:
            raise SchemaError(
                f"{data.train} and {data.truth} have other genes: {shorten(odd)}",
                expected="the same genes",
            )
        both = pd.concat([train, truth[train.columns]])
        require_unique(both.index, "condition", f"{data.train} with {data.truth}")
        return cls(_complete(both, data.train), np.arange(len(both)) < len(train), data.clip)

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
        # Of what is compared, not of the file: the same table in another format keeps its results.
        found = hashlib.sha256(np.ascontiguousarray(self.table.to_numpy()).tobytes())
        rows = [self.table.index.get_level_values(name) for name in CONDITION]
        for labels in (*rows, self.table.columns):
            found.update("\0".join(map(str, labels)).encode())
        return found.hexdigest()

    def write(self, path: Path) -> Path:
        """Save for the workers."""
        index = self.table.index
        labels = {name: np.array(index.get_level_values(name), str) for name in CONDITION}
        # On disk, for every job would have to pass the table through a pipe.
        if self.layout is not None:
            labels["layout"] = self.layout
        with atomic_path(path) as part:
            np.savez(
                part,
                values=self.table.to_numpy(),
                released=self.released,
                clip=np.nan if self.clip is None else self.clip,
                genes=np.array(self.table.columns, str),
                **labels,  # type: ignore[arg-type]
            )
        return path

    @classmethod
    def read(cls, path: Path) -> Book:
        """What :meth:`write` saved."""
        with np.load(path) as file:
            labels = [file[name].astype(object) for name in CONDITION]
            index = pd.MultiIndex.from_arrays(labels, names=CONDITION)
            genes = pd.Index(file["genes"].astype(object), name="gene")
            table, clip = pd.DataFrame(file["values"], index, genes), float(file["clip"])
            layout = file.get("layout")
            return cls(table, file["released"], None if np.isnan(clip) else clip, layout)


def _complete(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The table as float64, refused where a value is text, missing or infinite."""
    numeric = table.dtypes.map(pd.api.types.is_numeric_dtype).to_numpy(bool)
    text = [str(gene) for gene in table.columns[~numeric]]
    if text or not table.shape[1]:
        wrong = f"columns that are not numbers: {shorten(text)}" if text else "no column of a gene"
        raise SchemaError(
            f"{name} has {wrong}",
            expected="cell_type, compound (or sm_name), and a column of numbers for each gene",
        )
    values = table.astype(np.float64)
    bad = ~np.isfinite(values.to_numpy())
    if bad.any():
        raise SchemaError(
            f"{name} has {int(bad.sum())} values missing or infinite, the first "
            f"{place(bad, values)}",
            expected="a complete table",
            fix="drop these genes or conditions",
        )
    return values


def read_effects(path: Path, *, statistic: str = "signed_log10_p", layer: str = "") -> pd.DataFrame:
    """Conditions (cell_type, compound), each once, x genes, from any DE table."""
    if layer and path.suffix != ".h5ad":
        raise ConfigError(f"{path} has no layers", expected="an .h5ad file", fix="leave layer out")
    table = read_de_table(path, statistic=statistic, layer=layer)
    if table.index.nlevels == 1 and table.index.name == "compound":
        # of all cells together: they are of one type, whichever it is
        kinds = pd.MultiIndex.from_product([["all"], table.index], names=CONDITION)
        table = table.set_axis(kinds, axis=0)
    require_columns(table.index.names, CONDITION, path)
    labels = [table.index.get_level_values(name) for name in CONDITION]
    index = pd.MultiIndex.from_arrays(labels, names=CONDITION)
    # Tables come with further levels (id, SMILES), which are no part of a condition.
    require_unique(index, "condition", path)
    return table.set_axis(index, axis=0)
