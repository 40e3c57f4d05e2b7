"""Any h5ad file of raw counts, its columns translated into our vocabulary.

A column map says which of the file's columns is which of ours. As TOML::

    vehicle = "ctrl"                # the compound every other is compared with
    layer = "counts"                # where the raw counts are, if not in X; "raw" is the file's .raw

    [columns]                       # ours = theirs
    cell_type = "cluster_id"
    compound = "group_id"

    [constants]                     # a column the file does not have, the same for every cell
    cell_type = "glioblastoma"

    [extract]                       # part of another column: the first group of a regular expression
    donor = { column = "sample_id", pattern = "^(?:ctrl|stim)(.+)$" }

    [control]                       # which values of which column are controls; by default the vehicle's cells
    column = "compound"
    values = ["DMSO", "Media"]

Writing h5ad so that a full disk is an error and not a crash, and a half-written file never has the final name.

An h5ad of sparse counts that grows chunk by chunk.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import sparse_dataset, write_elem
from pydantic import Field
from scipy import sparse

from perturbgen.core.config import Settings, load_settings
from perturbgen.core.errors import ConfigError, InputError, SchemaError, shorten, suggest
from perturbgen.core.files import atomic_path, require_file, require_room
from perturbgen.core.tables import BROKEN, categorise, rename_obs, require_columns
from perturbgen.data.counts import to_counts
from perturbgen.data.schema import COLUMNS, REQUIRED

if TYPE_CHECKING:
    from typing_extensions import Buffer

RAW: Final = "raw"


class _Extract(Settings):
    """A column of ours as the first group of ``pattern`` in one of theirs."""

    column: str
    pattern: str


class _Control(Settings):
    """Cells whose ``column`` (ours or theirs) holds one of ``values`` are controls."""

    column: str = "compound"
    values: tuple[str, ...]


class _ColumnMap(Settings):
    """How a file's columns become ours; see the head of this file."""

    vehicle: str | None = None
    layer: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    constants: dict[str, str | float] = Field(default_factory=dict)
    extract: dict[str, _Extract] = Field(default_factory=dict)
    control: _Control | None = None


def read_h5ad(
    path: str | Path,
    columns: Mapping[str, str] | str | Path | _ColumnMap | None = None,
    *,
    layer: str | None = None,
    vehicle: str | None = None,
) -> AnnData:
    """A file of raw counts: X in CSR int32, obs with our names beside the originals, ``uns["vehicle"]``.

    ``columns`` is ``{ours: theirs}``, a :class:`ColumnMap` or the path of one in TOML; without it the file already uses
    our names. ``layer`` and ``vehicle`` win over the map's. A column map is never guessed.
    """
    adata = load_h5ad(path, columns, layer=layer, vehicle=vehicle)
    require_columns(adata.obs.columns, REQUIRED, f"{path} (after its column map)")
    where = f"layer {layer!r}" if layer else str(path)
    adata.X = to_counts(adata.X, adata.obs_names, adata.var_names, where)
    return adata


def load_h5ad(
    path: str | Path,
    columns: Mapping[str, str] | str | Path | _ColumnMap | None = None,
    *,
    layer: str | None = None,
    vehicle: str | None = None,
) -> AnnData:
    """As :func:`read_h5ad`, but the counts stay unchecked and ids may repeat, for a check that reports everything."""
    chosen = _column_map(columns)
    adata = take_layer(open_h5ad(path), layer or chosen.layer, path)
    adata.obs = _translate(adata.obs, chosen, path)
    vehicle = vehicle or chosen.vehicle or adata.uns.get("vehicle")
    if vehicle is not None:
        adata.uns["vehicle"] = vehicle
        if "control" not in adata.obs and "compound" in adata.obs:
            adata.obs["control"] = (adata.obs["compound"] == vehicle).to_numpy()
    return adata


def _column_map(columns: Mapping[str, str] | str | Path | _ColumnMap | None) -> _ColumnMap:
    """A column map from any of the forms it is given in; names that are not ours are an error."""
    if isinstance(columns, _ColumnMap):
        chosen = columns
    elif columns is None or isinstance(columns, Mapping):
        chosen = _ColumnMap(columns=dict(columns or {}))
    else:
        chosen = load_settings(_ColumnMap, columns, fix='for example: [columns] compound = "drug"')
    for name in (*chosen.columns, *chosen.constants, *chosen.extract):
        if name not in COLUMNS:
            raise ConfigError(
                f"a column map names {name!r}, which is none of our columns: {suggest(name, COLUMNS)}",
                expected=f"any of {shorten(COLUMNS, 12)}",
                fix="write ours = theirs; a column left out keeps its own name",
            )
    return chosen


def open_h5ad(path: str | Path) -> AnnData:
    """The file in memory; repeated ids pass, since the schema names them."""
    import anndata

    path = require_file(path, "h5ad file")
    with h5ad_errors(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names are not unique")
        warnings.filterwarnings("ignore", message=".*was written without encoding metadata")
        return anndata.read_h5ad(path)


@contextmanager
def h5ad_errors(path: Path) -> Iterator[None]:
    """Turn what h5py and anndata say of a broken file into an error of ours."""
    # anndata raises this for an element it does not know (a newer or a damaged file), and does not export it.
    from anndata._io.specs.registry import IORegistryError

    try:
        yield
    except (
        OSError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        IORegistryError,
    ) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path} is not a readable h5ad file: {first_line}",
            expected="an AnnData file (HDF5)",
            cause=f"another format under this name, or {BROKEN}",
            fix="compare its size with the source's, or open it with h5ls",
        ) from None


def take_layer(adata: AnnData, layer: str | None, path: str | Path) -> AnnData:
    """The data with the named layer in X (``raw`` is ``.raw``, with its own genes)."""
    if layer is None:
        if adata.X is None:
            raise SchemaError(f"{path} has no X", expected="raw counts", fix=_layer_hint(adata))
        return adata
    if layer == RAW and adata.raw is not None:
        raw = adata.raw.to_adata()
        raw.uns["vehicle"] = adata.uns.get("vehicle")
        return raw
    if layer not in adata.layers:
        raise SchemaError(
            f"{path} has no layer {layer!r}",
            expected="the layer of raw counts",
            fix=_layer_hint(adata),
        )
    adata.X = adata.layers.pop(layer)
    return adata


def _layer_hint(adata: AnnData) -> str:
    """Which layers a file offers."""
    names = [*adata.layers, *([RAW] if adata.raw is not None else [])]
    return f"--layer with one of {shorten(names)}" if names else "the file holds no other matrix"


def _translate(obs: pd.DataFrame, chosen: _ColumnMap, path: str | Path) -> pd.DataFrame:
    """Our columns added to obs, as the map declares them."""
    theirs = [*chosen.columns.values(), *(rule.column for rule in chosen.extract.values())]
    require_columns(obs.columns, dict.fromkeys(theirs), path)
    renamed = rename_obs(obs, chosen.columns).assign(**chosen.constants)
    for ours, rule in chosen.extract.items():
        renamed[ours] = _extract(obs[rule.column], rule, ours)
    if chosen.control is not None:
        require_columns(renamed.columns, [chosen.control.column], path)
        renamed["control"] = _control_cells(renamed[chosen.control.column], chosen.control)
    return categorise(renamed)


def _extract(values: pd.Series, rule: _Extract, ours: str) -> Any:
    """The first group of the rule's pattern in each value; a value that does not match is an error."""
    try:
        groups = re.compile(rule.pattern).groups
    except re.error as error:
        raise ConfigError(
            f"[extract] {ours}: {rule.pattern!r} is no regular expression: {error}"
        ) from None
    if groups != 1:
        raise ConfigError(
            f"[extract] {ours}: {rule.pattern!r} has {groups} groups", expected="exactly one (...)"
        )
    found = values.astype(str).str.extract(rule.pattern, expand=False)
    if found.isna().any():
        raise SchemaError(
            f"[extract] {ours}: {rule.pattern!r} does not match {rule.column} {shorten(values[found.isna()].unique())}",
            expected="a match in every row",
        )
    return found


def _control_cells(values: pd.Series, rule: _Control) -> Any:
    """Whether each cell is a control; a declared value that never occurs is an error."""
    known = [str(value) for value in values.unique()]
    absent = [value for value in rule.values if value not in known]
    if absent:
        raise SchemaError(
            f"[control] {rule.column} never holds {shorten(absent)}",
            expected="values of the file",
            fix=suggest(absent[0], known),
        )
    return values.astype(str).isin(rule.values).to_numpy()


class _PatientFile(io.FileIO):
    """A file that remembers the first failure to write, ignores what follows, and tells when it is asked.

    HDF5 crashes the interpreter when a flush fails while it closes a file, so it must never see one fail.
    """

    failure: OSError | None = None

    def write(self, data: Buffer) -> int:
        """Write, or remember why that was impossible."""
        view = memoryview(data).cast("B")
        done = 0
        try:
            while self.failure is None and done < len(view):
                done += super().write(view[done:])
        except OSError as error:
            self.failure = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the size, or remember why that was impossible."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0

    def readinto(self, buffer: Buffer) -> int:
        """Read back; what could not be written reads as zeros."""
        view = memoryview(buffer).cast("B")
        found = super().readinto(view) or 0
        view[found:] = bytes(len(view) - found)
        return len(view)

    def raise_failure(self) -> None:
        """Raise what went wrong, if anything did."""
        if self.failure is not None:
            raise self.failure


def write_h5ad(adata: AnnData, path: str | Path) -> None:
    """Write an h5ad file (gzip, level 1), under its final name only when it is whole."""
    import h5py
    from anndata.io import write_elem

    with atomic_path(path) as part, _PatientFile(part, "w+") as file:
        try:
            with h5py.File(file, "w") as root:
                write_elem(
                    root, "/", adata, dataset_kwargs={"compression": "gzip", "compression_opts": 1}
                )
        finally:
            file.raise_failure()


class SparseH5ad:
    """Appends CSR rows to ``X`` of a new file whose obs, var and uns are known beforehand."""

    def __init__(
        self, path: Path, *, obs: pd.DataFrame, var: pd.DataFrame, uns: Mapping[str, Any]
    ) -> None:
        self._path = path
        require_room(
            path, int(obs.memory_usage(deep=True).sum() + var.memory_usage(deep=True).sum())
        )
        AnnData(obs=obs, var=var, uns=dict(uns)).write_h5ad(path)
        self._file = h5py.File(path, "r+")
        if "X" in self._file:
            del self._file["X"]
        empty = sparse.csr_matrix(np.zeros((0, len(var)), dtype=np.int32))
        write_elem(
            self._file, "X", empty, dataset_kwargs={"chunks": (65536,), "compression": "lzf"}
        )

    def __enter__(self) -> SparseH5ad:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, counts: sparse.csr_array) -> None:
        """Append cells (cells, genes)."""
        require_room(self._path, counts.data.nbytes + counts.indices.nbytes)
        sparse_dataset(self._file["X"]).append(sparse.csr_matrix(counts))
