"""Any h5ad file of raw counts, its columns translated into our vocabulary; and writing such files.

A column map says which of the file's columns is which of ours. As TOML::

    vehicle = "ctrl"                # the compound every other is compared with
    layer = "counts"                # where the raw counts are, if not in X; "raw" is .raw
    atlas = false                   # true: nothing was perturbed, there is no compound
    combine = "+"                   # B+A is A+B, and A beside the vehicle is A
    genes = "gene_symbol"           # the column of var that names genes, where var has ids

    [columns]                       # ours = theirs
    cell_type = "cluster_id"        # or the cell line
    compound = "group_id"           # the perturbation: a drug, a stimulus, a targeted gene
    sample = "sample_id"            # cells treated together; without it, plate and well say it
    batch = "lane"                  # samples processed together; the same as plate

    [constants]                     # a column the file does not have, the same for every cell
    cell_type = "glioblastoma"

    [join]                          # a column made of several, their values joined by " "
    compound = ["drug", "dose"]

    [extract]                       # the first group of a regular expression in another column
    donor = { column = "sample_id", pattern = "^(?:ctrl|stim)(.+)$" }

    [control]                       # which values are controls; by default the vehicle
    column = "compound"
    values = ["DMSO", "Media"]
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import sparse_dataset, write_elem
from pydantic import Field
from scipy import sparse

from perturbgen.core.config import Settings
from perturbgen.core.errors import ConfigError, SchemaError, shorten, suggest
from perturbgen.core.h5ad import HDF5_VERSIONS, open_h5ad, write_h5ad
from perturbgen.core.tables import CONDITION, require_columns
from perturbgen.data.counts import to_counts
from perturbgen.data.samples import parts_of_label, with_samples
from perturbgen.data.schema import ATLAS, COLUMNS, with_our_columns

_RAW = "raw"
_BATCH = "batch"  # what others call a plate
_OURS = (*COLUMNS, "sample", _BATCH)  # what a column map can name
_MARGIN = 1 << 20  # bytes that a file being written still needs to be closed


class _ExtractRule(Settings):
    """A column of ours as the first group of ``pattern`` in one of theirs."""

    column: str
    pattern: str


class _ControlRule(Settings):
    """Cells whose ``column`` (ours or theirs) holds one of ``values`` are controls."""

    column: str = "compound"
    values: tuple[str, ...]


class _ColumnMap(Settings):
    """How a file's columns become ours; see the head of this file."""

    vehicle: str | None = None  # the compound that all others are compared with
    layer: str | None = None  # where the raw counts are, if not in X; "raw" is raw.X
    atlas: bool = False  # cells that nothing was done to: no vehicle is needed
    combine: str | None = None  # what stands between the perturbations of a combination
    genes: str | None = None  # their column of var with genes' names, beside ids
    columns: dict[str, str] = Field(default_factory=dict)  # our name = "their name"
    constants: dict[str, str | float] = Field(default_factory=dict)  # the same for all cells
    # Our name = several of their columns, whose values are joined: a sample of patient and tissue.
    join: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    extract: dict[str, _ExtractRule] = Field(default_factory=dict)
    control: _ControlRule | None = None


def read_h5ad(
    path: str | Path,
    columns: Mapping[str, str] | str | Path | None = None,
    *,
    layer: str | None = None,
    vehicle: str | None = None,
    checked: bool = True,
) -> AnnData:
    """Raw counts of a file: X in CSR int32, obs with our names beside the originals.

    ``columns`` is ``{ours: theirs}``, or the path of a column map in TOML; without it the file
    already uses our names. ``layer`` and ``vehicle`` win over the map's. A column map is never
    guessed. With ``checked=False`` the counts stay as they are, and columns may be absent: for a
    check that reports everything.
    """
    chosen = _column_map(columns)
    adata = take_layer(open_h5ad(path), layer or chosen.layer, path)
    adata.obs = _translate(adata.obs, chosen, path)
    if chosen.genes is not None:
        adata.var_names = _gene_names(adata.var, chosen.genes, path)
    if chosen.atlas:
        adata.uns[ATLAS] = True
    vehicle = vehicle or chosen.vehicle or adata.uns.get("vehicle")
    if vehicle is not None:
        # Every contrast needs it, so it travels with the data.
        adata.uns["vehicle"] = vehicle
        if "control" not in adata.obs and "compound" in adata.obs:
            adata.obs["control"] = (adata.obs["compound"] == vehicle).to_numpy()
    if checked:
        needed = CONDITION[:1] if adata.uns.get(ATLAS) else CONDITION
        require_columns(adata.obs.columns, needed, f"{path} (after its column map)")
        where = f"layer {layer!r}" if layer else str(path)
        adata.X = to_counts(adata.X, adata.obs_names, adata.var_names, where)
    return adata


def take_layer(adata: AnnData, layer: str | None, path: str | Path) -> AnnData:
    """The data with the named layer in X (``raw`` is ``.raw``, with its own genes)."""
    names = [*adata.layers, *([_RAW] if adata.raw is not None else [])]
    hint = f"--layer with one of {shorten(names)}" if names else "the file holds no other matrix"
    if layer is None:
        if adata.X is None:
            raise SchemaError(f"{path} has no X", expected="raw counts", fix=hint)
        return adata
    if layer == _RAW and adata.raw is not None:
        # .raw has genes of its own, so it is another table and not a layer.
        raw = adata.raw.to_adata()
        raw.uns["vehicle"] = adata.uns.get("vehicle")
        return raw
    if layer not in adata.layers:
        what = f"{path} has no layer {layer!r}"
        raise SchemaError(what, expected="the layer of raw counts", fix=hint)
    adata.X = adata.layers.pop(layer)
    return adata


def _column_map(columns: Mapping[str, str] | str | Path | None) -> _ColumnMap:
    """A column map from any of the forms it is given in; names that are not ours are an error."""
    if columns is None or isinstance(columns, Mapping):
        chosen = _ColumnMap(columns=dict(columns or {}))
    else:
        chosen = _ColumnMap.load(columns, fix='for example: [columns] compound = "drug"')
    # A misspelt name of ours would otherwise add a column that nothing reads.
    for name in (*chosen.columns, *chosen.constants, *chosen.extract, *chosen.join):
        if name not in _OURS:
            near = suggest(name, _OURS)
            raise ConfigError(
                f"a column map names {name!r}, which is none of our columns: {near}",
                expected=f"any of {shorten(_OURS, 12)}",
                fix="write ours = theirs; a column left out keeps its own name",
            )
    return chosen


def our_obs(
    obs: pd.DataFrame, columns: Mapping[str, str] | str | Path | None, path: str | Path
) -> pd.DataFrame:
    """The obs of the file ``path`` with our columns beside theirs, as :func:`read_h5ad` has it."""
    return _translate(obs, _column_map(columns), path)


def _translate(obs: pd.DataFrame, chosen: _ColumnMap, path: str | Path) -> pd.DataFrame:
    """Our columns added to obs, as the map declares them, and a sample for every cell."""
    joined = [name for names in chosen.join.values() for name in names]
    theirs = [*chosen.columns.values(), *(rule.column for rule in chosen.extract.values()), *joined]
    require_columns(obs.columns, dict.fromkeys(theirs), path)
    renamed = with_our_columns(obs, chosen.columns).assign(**chosen.constants)
    for ours, rule in chosen.extract.items():
        renamed[ours] = _extract_column(obs[rule.column], rule, ours)
    for ours, names in chosen.join.items():
        renamed[ours] = _joined(obs[list(names)], chosen.vehicle)
    if chosen.combine is not None and "compound" in renamed:
        renamed["compound"] = _combined(renamed["compound"], chosen.combine, chosen.vehicle)
    if any(_BATCH in part for part in (chosen.columns, chosen.constants, chosen.extract)):
        renamed["plate"] = renamed[_BATCH]
    if (control := chosen.control) is not None:
        require_columns(renamed.columns, [control.column], path)
        values = renamed[control.column]
        known = [str(value) for value in values.unique()]
        absent = [value for value in control.values if value not in known]
        if absent:
            raise SchemaError(
                f"[control] {control.column} never holds {shorten(absent)}",
                expected="values of the file",
                fix=suggest(absent[0], known),
            )
        renamed["control"] = values.astype(str).isin(control.values).to_numpy()
    renamed = with_our_columns(renamed, {})
    return renamed if renamed.empty else with_samples(_as_labels(renamed))


def _joined(parts: pd.DataFrame, vehicle: str | None) -> pd.Series:
    """Values joined by blanks; the vehicle, whose dose means nothing, keeps its own name."""
    # by combination: millions of cells have some thousands of them
    codes = parts.groupby(list(parts), observed=True, sort=True, dropna=False).ngroup().to_numpy()
    _, first = np.unique(codes, return_index=True)
    rows = (map(_label, row) for row in parts.iloc[first].itertuples(index=False))
    labels = [row[0] if row[0] == vehicle else " ".join(row) for row in map(list, rows)]
    return pd.Series(pd.Categorical(np.array(labels, object)[codes]), parts.index)


def _combined(labels: pd.Series, between: str, vehicle: str | None) -> pd.Series:
    """Each combination under one name: parts in order, joined by "+", without the vehicle."""
    known = labels.astype("category")
    parts = {
        name: parts_of_label(str(name), vehicle, between=between) for name in known.cat.categories
    }
    return known.map({name: "+".join(sorted(own)) for name, own in parts.items()}).astype(
        "category"
    )


def _gene_names(var: pd.DataFrame, column: str, path: str | Path) -> pd.Index:
    """Genes by a column of var; the id where that has no name, and beside one of several genes."""
    require_columns(var.columns, [column], f"var of {path}")
    ids = var.index.astype(str).to_series()
    names = pd.Series(var[column].astype(object).to_numpy(), ids.index)
    names = names.where(names.notna() & (names.astype(str).str.strip() != ""), ids).astype(str)
    twice = names.duplicated(keep=False)
    return pd.Index(names.where(~twice, names + " (" + ids + ")"))


def genes_of(
    columns: Mapping[str, str] | str | Path | None, path: str | Path
) -> tuple[pd.Index | None, str | None]:
    """What a column map makes of a file's genes (None: as they are), and the layer that it names.

    For stores that leave the counts on disk; ``.raw`` is none of them.
    """
    chosen = _column_map(columns)
    if chosen.genes is None:
        return None, chosen.layer
    adata = open_h5ad(path, backed=True)
    names = _gene_names(adata.var, chosen.genes, path)
    adata.file.close()
    return names, chosen.layer


def _label(value: object) -> str:
    """A value as a label: numbers as one writes them, 10 and not 10.0."""
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _as_labels(obs: pd.DataFrame) -> pd.DataFrame:
    """Labels that are numbers as text: cluster 3 is a name, which other tables are joined by."""
    numbers = [
        name
        for name in _OURS
        if name in obs and name not in ("dose", "control") and _is_number(obs[name])
    ]
    return obs.assign(**{name: obs[name].map(_label).astype("category") for name in numbers})


def _is_number(values: pd.Series) -> bool:
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.cat.categories.to_series()
    return bool(pd.api.types.is_numeric_dtype(values)) and not bool(values.isna().any())


def _extract_column(values: pd.Series, rule: _ExtractRule, ours: str) -> Any:
    """The first group of the rule's pattern in each value; one that does not match is an error."""
    named = f"[extract] {ours}: {rule.pattern!r}"
    try:
        groups = re.compile(rule.pattern).groups
    except re.error as error:
        raise ConfigError(f"{named} is no regular expression: {error}") from None
    if groups != 1:
        raise ConfigError(f"{named} has {groups} groups", expected="exactly one (...)")
    found = values.astype(str).str.extract(rule.pattern, expand=False)
    if found.isna().any():
        what = f"{named} does not match {rule.column} {shorten(values[found.isna()].unique())}"
        raise SchemaError(what, expected="a match in every row")
    return found


class SparseH5ad:
    """Appends CSR rows to ``X`` of a new file whose obs, var and uns are known beforehand."""

    def __init__(
        self, path: Path, *, obs: pd.DataFrame, var: pd.DataFrame, uns: Mapping[str, Any]
    ) -> None:
        self._path = path
        _require_disk_space(path, sum(int(t.memory_usage(deep=True).sum()) for t in (obs, var)))
        # X is made by hand: anndata's own would be written whole, and could not grow.
        write_h5ad(AnnData(obs=obs, var=var, uns=dict(uns)), path)
        self._file = h5py.File(path, "r+", libver=HDF5_VERSIONS)
        if "X" in self._file:
            del self._file["X"]
        empty = sparse.csr_matrix(np.zeros((0, len(var)), dtype=np.int32))
        chunked = {"chunks": (65536,), "compression": "lzf", "fletcher32": True}
        write_elem(self._file, "X", empty, dataset_kwargs=chunked)

    def __enter__(self) -> SparseH5ad:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, counts: sparse.csr_array) -> None:
        """Append cells (cells, genes)."""
        _require_disk_space(self._path, counts.data.nbytes + counts.indices.nbytes)
        sparse_dataset(self._file["X"]).append(sparse.csr_matrix(counts))


def _require_disk_space(path: Path, size: int) -> None:
    """There is room for ``size`` more bytes."""
    # HDF5 cannot close a file on a full disk, and takes the process with it.
    if shutil.disk_usage(path.parent).free < 2 * size + _MARGIN:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
