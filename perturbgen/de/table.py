"""The labelled result of a differential expression analysis, and the tables of other methods."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, InputError, SchemaError, shorten, suggest
from perturbgen.core.export import PARQUET
from perturbgen.core.files import atomic_path, require_file
from perturbgen.core.h5ad import open_h5ad, write_h5ad
from perturbgen.core.tables import (
    CONDITION,
    NAMES,
    open_parquet,
    read_frame,
    reading,
    with_compound,
)
from perturbgen.data import is_gene, name_rank, read_id_map

if TYPE_CHECKING:
    from anndata import AnnData
    from pyarrow.parquet import ParquetFile

    from perturbgen.de.voom import MeanVariance

log = logging.getLogger(__name__)

_METADATA_KEY = b"perturbgen.de"
# what else describes rows in the competition's tables
_DESCRIBING: Final = ("id", "split", "index")

_COUNTED: Final = {"n_cells": "cells", "n_wells": "wells"}
_LEAST_THIRD: Final = 10  # genes
# A doubling between the least and the best expressed genes. In the demo's experiment none of the
# conditions of 50 to 100 cells slants so, and a sixth of those of five cells or fewer.
SLANT: Final = 1.0


@dataclass(frozen=True)
class DETable:
    """Statistics of every condition against its control, each a frame of conditions x genes.

    * ``logfc``: log2 fold change; ``ave_expr``: average log2 CPM;
    * ``t``: moderated t; ``se``: its denominator; ``df``: total degrees of freedom;
    * ``log10_p``: at most 0; ``adj_p``: Benjamini-Hochberg adjusted p;
    * ``conditions``: how many samples each row has, and whether it is a single replicate;
    * ``info``: how the table was made; ``clip``: the limit of ``signed_log10_p`` either way;
    * ``mean_variance``: voom's trend of each fit, for plots; files do not keep it.

    NaN where a gene was filtered out or a contrast is not estimable.
    """

    logfc: pd.DataFrame
    ave_expr: pd.DataFrame
    t: pd.DataFrame
    se: pd.DataFrame
    df: pd.DataFrame
    log10_p: pd.DataFrame
    adj_p: pd.DataFrame
    conditions: pd.DataFrame
    info: Mapping[str, Any] = field(default_factory=dict)
    clip: float | None = None
    mean_variance: Mapping[str, MeanVariance] = field(default_factory=dict, repr=False)

    STATISTICS: ClassVar = ("logfc", "ave_expr", "t", "se", "df", "log10_p", "adj_p")
    DERIVED: ClassVar = ("p", "signed_log10_p")

    def __post_init__(self) -> None:
        for name in self.STATISTICS:
            frame = getattr(self, name)
            same_rows = frame.index.equals(self.conditions.index)
            if not (same_rows and frame.columns.equals(self.logfc.columns)):
                what = f"{name} has other conditions or genes than the rest of the table"
                raise SchemaError(what)

    def __repr__(self) -> str:
        rows, genes = self.logfc.shape
        lines = [f"DETable of {rows:,} conditions x {genes:,} genes"]
        for record in self.strongest(5):
            named = f"{record['condition']} ({record['samples']} samples)"
            lines.append(f"  {named[:70]}: {record['genes']:,} genes with adjusted p below .05")
        return "\n".join([*lines, f"statistics: {', '.join((*self.STATISTICS, *self.DERIVED))}"])

    @property
    def genes(self) -> pd.Index:
        """The genes, in the order of the counts."""
        return self.logfc.columns

    @property
    def p(self) -> pd.DataFrame:
        """Two-sided p; 0 where it underflows (``log10_p`` does not)."""
        return 10.0**self.log10_p

    @property
    def signed_log10_p(self) -> pd.DataFrame:
        """sign(logFC) * -log10 p, within ``clip`` if set: what the competition predicts."""
        values = -np.sign(self.logfc.to_numpy()) * self.log10_p.to_numpy()
        if self.clip is not None:
            np.clip(values, -self.clip, self.clip, out=values)
        return pd.DataFrame(values + 0.0, self.logfc.index, self.genes)  # -0.0 becomes 0.0

    @classmethod
    def require_statistic(cls, name: str) -> None:
        """Refuse a misspelt statistic, even where no file turns out to be a DE table."""
        known = (*cls.STATISTICS, *cls.DERIVED)
        if name not in known:
            fix = f"statistic: {suggest(name, known)}"
            raise ConfigError(f"a DE table has no {name!r}", fix=fix)

    @staticmethod
    def show_label(label: Any) -> str:
        """A condition's label as text."""
        return " | ".join(map(str, label)) if isinstance(label, tuple) else str(label)

    @staticmethod
    def holds(path: Path) -> bool:
        """Whether a parquet file is a DE table, and not a flat one."""
        with open_parquet(path) as file, reading(path, "parquet"):
            return _METADATA_KEY in (file.schema_arrow.metadata or {})

    def select(self, conditions: Iterable[Any]) -> DETable:
        """The table of some conditions, by label."""
        wanted = list(conditions)
        absent = [label for label in wanted if label not in self.conditions.index]
        if absent:
            what = f"the table has no condition {absent[0]!r}"
            raise SchemaError(what, expected=f"one of {len(self.conditions)}")
        parts = {name: getattr(self, name).loc[wanted] for name in (*self.STATISTICS, "conditions")}
        return replace(self, **parts)

    def hits(self, level: float) -> pd.Series:
        """Genes whose adjusted p is below ``level``, by condition, most first."""
        return (self.adj_p < level).sum(axis=1).sort_values(ascending=False, kind="stable")

    def slant(self) -> pd.Series:
        """How an MA cloud slants, by condition: the best expressed third's median log2 fold change
        less that of the least expressed third.

        A cloud lies level where most genes do not respond. It slants where few cells were counted
        (a gene without a count looks reduced, all the more the more it is expressed elsewhere), or
        where library sizes do not compare; then hundreds of genes are significant for no reason of
        their own. NaN with fewer than 30 genes.
        """
        slants = np.full(len(self.conditions), np.nan)
        pairs = zip(self.ave_expr.to_numpy(), self.logfc.to_numpy(), strict=True)
        for row, (expression, effect) in enumerate(pairs):
            tested = np.isfinite(effect)
            third = int(tested.sum()) // 3
            if third >= _LEAST_THIRD:
                ordered = effect[tested][np.argsort(expression[tested], kind="stable")]
                slants[row] = np.median(ordered[-third:]) - np.median(ordered[:third])
        return pd.Series(slants, self.conditions.index, name="slant")

    def enough(self, min_cells: int) -> pd.Series:
        """Whether conditions have so many cells; all of them where nobody counted."""
        if "n_cells" not in self.conditions:
            return pd.Series(True, self.conditions.index)
        return self.conditions["n_cells"] >= min_cells

    def strongest(
        self, number: int, *, level: float = 0.05, min_cells: int = 0
    ) -> list[dict[str, Any]]:
        """Records of the conditions with most genes whose adjusted p is below ``level``.

        Those of fewer than ``min_cells`` cells are left out. ``slants`` flags a cloud that does,
        and is there where one does.
        """
        records, hits = [], self.hits(level)
        strongest = hits[self.enough(min_cells).reindex(hits.index)].head(number)
        slants = self.select(list(strongest.index)).slant()
        flagged = bool((slants.abs() > SLANT).any())
        for label, genes in zip(list(strongest.index), strongest.to_numpy(), strict=True):
            row, effects = self.conditions.loc[label], self.logfc.loc[label]
            counted = {what: name for name, what in _COUNTED.items() if name in row}
            records.append(
                {
                    "condition": self.show_label(label),
                    **{what: int(row[name]) for what, name in counted.items()},
                    "samples": int(row["n_samples"]),
                    "controls": int(row["n_control"]),
                    "genes": int(genes),
                    "up": int(((self.adj_p.loc[label] < level) & (effects > 0)).sum()),
                    "largest |log2 FC|": float(effects.abs().max()),
                }
            )
            if flagged:
                steep = abs(slants[label]) > SLANT
                records[-1]["slants"] = f"{slants[label]:+.1f}" if steep else ""
        return records

    def to_anndata(self) -> AnnData:
        """An AnnData with the statistics as layers, the conditions as obs and no X."""
        from anndata import AnnData

        obs = self.conditions.copy()
        if isinstance(obs.index, pd.MultiIndex):
            obs = obs.reset_index()
            obs.index = pd.Index(["|".join(map(str, key)) for key in self.conditions.index])
        obs.index = obs.index.astype(str)
        names = (*self.STATISTICS, *self.DERIVED)
        layers = {name: getattr(self, name).to_numpy() for name in names}
        keys = list(self.conditions.index.names)
        uns = {"de": json.dumps({"index": keys, "clip": self.clip, "info": dict(self.info)})}
        var = pd.DataFrame(index=self.genes.astype(str))
        return AnnData(obs=obs, var=var, layers=layers, uns=uns)

    @classmethod
    def from_anndata(cls, adata: AnnData) -> DETable:
        """The inverse of :meth:`to_anndata`."""
        if "de" not in adata.uns or not set(cls.STATISTICS) <= set(adata.layers):
            wanted = "one written by DETable.to_anndata"
            raise SchemaError("this AnnData holds no DE table", expected=wanted)
        about = json.loads(adata.uns["de"])
        # anndata makes categories of text, which an index of labels is not
        obs = adata.obs.astype(dict.fromkeys(adata.obs.columns.intersection(about["index"]), str))
        if len(about["index"]) > 1:
            obs = obs.set_index(about["index"])
        obs.index.names = about["index"]
        frames: dict[str, Any] = {
            name: pd.DataFrame(adata.layers[name], obs.index, adata.var_names)
            for name in cls.STATISTICS
        }
        return cls(**frames, conditions=obs, info=about["info"], clip=about["clip"])

    def write(self, path: str | Path) -> Path:
        """Save the table as ``.h5ad``, or otherwise as parquet."""
        path = Path(path)
        if path.suffix == ".h5ad":
            write_h5ad(self.to_anndata(), path, packed=False)
        else:
            with atomic_path(path) as part:
                self._write_parquet(part)
        return path

    @classmethod
    def read(cls, path: str | Path) -> DETable:
        """Load what :meth:`write` saved."""
        path = require_file(path, "DE table")
        if path.suffix != ".h5ad":
            return cls._read_parquet(path)
        return cls.from_anndata(open_h5ad(path))

    def _write_parquet(self, path: Path) -> None:
        """Rows are (statistic, condition), columns genes, one row group a statistic."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        keys = self.conditions.reset_index()
        about = {"index": list(self.conditions.index.names), "conditions": keys.columns.tolist()}
        about |= {"clip": self.clip, "info": dict(self.info)}
        # a row group a statistic: one of them can be read without the others
        writer = None
        for name in self.STATISTICS:
            # labels begin with __, so that a gene of the same name is no label
            labels = {"__statistic": pa.array([name] * len(keys))}
            labels |= {f"__{column}": pa.array(keys[column]) for column in keys.columns}
            values = np.asfortranarray(getattr(self, name).to_numpy())
            genes = {str(gene): pa.array(values[:, j]) for j, gene in enumerate(self.genes)}
            table = pa.table({**labels, **genes})
            table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(about)})
            writer = writer or pq.ParquetWriter(path, table.schema, **PARQUET)
            writer.write_table(table)
        if writer is not None:
            writer.close()

    @classmethod
    def _read_parquet(cls, path: Path) -> DETable:
        with open_parquet(path) as file, reading(path, "parquet"):
            return cls._of_parquet(path, file)

    @classmethod
    def _of_parquet(cls, path: Path, file: ParquetFile) -> DETable:
        metadata = file.schema_arrow.metadata or {}
        if _METADATA_KEY not in metadata:
            raise InputError(f"{path} is no DE table", expected="a file written by perturbgen de")
        about = json.loads(metadata[_METADATA_KEY])
        marked = [f"__{column}" for column in about["conditions"]]
        frames, conditions = {}, pd.DataFrame()
        for i, name in enumerate(cls.STATISTICS):
            frame = file.read_row_group(i).to_pandas()
            labels = frame[marked].set_axis(about["conditions"], axis=1)
            conditions = labels.set_index(about["index"])
            values = frame.drop(columns=["__statistic", *marked])
            frames[name] = values.set_index(conditions.index)
        return cls(**frames, conditions=conditions, info=about["info"], clip=about["clip"])


def read_de_table(
    path: Path,
    *,
    statistic: str = "signed_log10_p",
    layer: str | None = None,
    id_map: Path | None = None,
) -> pd.DataFrame:
    """Conditions x genes from a DE table of ours, a flat parquet or CSV, or a layer of an h5ad.

    ``statistic`` is that of a DE table, ``layer`` one of Open Problems' files (the prediction, or
    limited −log10 p, unless named). Rows are labelled by cell_type and compound, one of them at
    least, or by ids of ``id_map``.
    """
    path = require_file(path, "DE table")
    if path.suffix == ".h5ad":
        return _read_layer(path, statistic, layer, id_map)
    if path.suffix == ".parquet":
        if not DETable.holds(path):
            with open_parquet(path) as file, reading(path, "parquet"):
                return labelled(file.read().to_pandas(), path, id_map)
        return _of_statistic(DETable.read(path), statistic)
    if ".csv" in path.suffixes:
        return labelled(read_frame(path, text=(*CONDITION, *NAMES)), path, id_map)
    raise InputError(f"{path} is no table", expected="a .parquet, .h5ad, .csv or .csv.gz file")


def _read_layer(path: Path, statistic: str, layer: str | None, id_map: Path | None) -> pd.DataFrame:
    """A DE table of ours, or a layer whose obs has the conditions' labels, or ids as names."""
    from perturbgen.data import DE_LAYER

    adata = open_h5ad(path)
    if "de" in adata.uns and not layer:
        return _of_statistic(DETable.from_anndata(adata), statistic)
    chosen = layer or ("prediction" if "prediction" in adata.layers else DE_LAYER)
    if chosen not in adata.layers:
        fix = f"layer: {suggest(chosen, adata.layers)}"
        raise SchemaError(f"{path} has no layer {chosen!r}", fix=fix)
    named = [name for name in (*CONDITION, *NAMES) if name in adata.obs]
    ids = pd.DataFrame({"id": adata.obs_names})
    labels = adata.obs[named].reset_index(drop=True) if named else ids
    values = pd.DataFrame(np.asarray(adata.layers[chosen], float), columns=adata.var_names)
    return labelled(pd.concat([labels, values], axis=1), path, id_map)


def _of_statistic(table: DETable, statistic: str) -> pd.DataFrame:
    """One statistic of a DE table, on the genes that were tested somewhere."""
    table.require_statistic(statistic)
    frame: pd.DataFrame = getattr(table, statistic)
    tested = frame.notna().any()
    if not tested.all():
        count = f"{(~tested).sum():,}"
        log.warning("%s genes that were filtered out of the DE table are no part of it", count)
    estimable = frame.notna().any(axis=1).to_numpy()
    if not estimable.all():
        lost = [table.show_label(label) for label in frame.index[~estimable]]
        log.warning("%d conditions have no estimable contrast: %s", len(lost), shorten(lost, 3))
    frame = frame.loc[estimable, tested]
    labels = frame.index.to_frame(index=False)
    # A table that was made by other columns: what was compared is the compound, and what it was
    # fitted apart by the cell type, whatever they are called.
    names = CONDITION if labels.shape[1] == 2 else CONDITION[1:]
    if labels.shape[1] <= 2:
        labels = labels.set_axis(list(names), axis=1)
    index = _condition_index(labels)
    return frame.set_axis(index, axis=0).rename_axis(columns="gene")


def labelled(table: pd.DataFrame, path: Path, id_map: Path | None = None) -> pd.DataFrame:
    """A flat table with its conditions as index: from columns, its index, or ids and an id map."""
    table = table.reset_index() if any(table.index.names) else table
    table = with_compound(table, path)
    if written := [name for name in table if str(name).startswith("Unnamed: ")]:
        raise SchemaError(
            f"{path} has a column without a name ({written[0]}): the index that pandas wrote",
            expected="columns of conditions and genes",
            fix="table.to_csv(file, index=False)",
        )
    _require_renamed(table, path)
    named = [name for name in CONDITION if name in table]
    if not named and "id" not in table:
        raise SchemaError(
            f"{path} says nothing of its conditions",
            expected="columns cell_type and compound (or sm_name), or id with an id map",
        )
    unnamed = table[named].isna().any(axis=1)
    if unnamed.any():
        raise SchemaError(
            f"{path}: {int(unnamed.sum())} rows without a cell type or compound, "
            f"the first is row {unnamed.argmax()}",
            expected="a label in every row",
        )
    index = _condition_index(table[named]) if named else _index_of_ids(table["id"], path, id_map)
    others = (*CONDITION, *_DESCRIBING)
    genes = [name for name in table if name not in others and is_gene(str(name))]
    return table[genes].set_axis(index, axis=0).rename_axis(columns="gene")


def _require_renamed(table: pd.DataFrame, path: Path) -> None:
    """No column of text says, by another usual word, which condition a row is of."""
    words, known = [], (*CONDITION, *_DESCRIBING)
    kinds = table.dtypes.drop([name for name in known if name in table])
    text = [str(name) for name, kind in kinds.items() if not pd.api.types.is_numeric_dtype(kind)]
    for ours in CONDITION:
        ranks = {name: name_rank(name, ours) for name in text}
        usual = {name: rank for name, rank in ranks.items() if rank is not None}
        if ours not in table and usual:
            words.append(f"rename {min(usual, key=lambda name: usual[name])} to {ours}")
    if words:
        raise SchemaError(
            f"{path} has columns of text among its genes: {shorten(text)}",
            expected="cell_type and compound (or sm_name), or one of them, and numbers",
            fix=" and ".join(words),
        )


def _condition_index(labels: pd.DataFrame) -> pd.Index:
    """Labels of conditions (a column each) as text."""
    text = labels.astype(str)
    return pd.MultiIndex.from_frame(text) if text.shape[1] > 1 else pd.Index(text.iloc[:, 0])


def _index_of_ids(ids: pd.Series, path: Path, id_map: Path | None) -> pd.Index:
    """The conditions of a submission's rows."""
    if id_map is None:
        what, fix = f"the rows of {path} are ids", "--id-map id_map.csv"
        raise SchemaError(what, expected="their conditions, too", fix=fix)
    known = read_id_map(id_map).rename(index=str)
    rows = ids.astype(str)
    unknown = rows[~rows.isin(known.index)].tolist()
    if unknown:
        raise SchemaError(
            f"{path} has {len(unknown)} ids that {id_map} does not know, the first {unknown[0]!r}"
        )
    return pd.MultiIndex.from_frame(known.loc[rows.tolist()])
