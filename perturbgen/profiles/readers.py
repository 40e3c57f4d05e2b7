"""One door to files of profiles: what a path holds is recognised by its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError, shorten, suggest
from perturbgen.core.files import read_json, require_file, require_folder
from perturbgen.core.h5ad import open_h5ad, require_sound
from perturbgen.core.tables import read_frame, reading, require_unique
from perturbgen.profiles.table import FEATURES, META, VALUES, Profiles

# The files of an extraction of L1000 matrices.
MATRIX: Final = "profiles.npy"
MANIFEST: Final = "manifest.json"
_PREFIX: Final = "Metadata_"  # of labels, in what CellProfiler, pycytominer and JUMP write
_OURS: Final = {"Metadata_Plate": "plate", "Metadata_Well": "well"}


def read_profiles(path: str | Path, *, key: str | None = None) -> Profiles:
    """Profiles of any file or folder that is not one assay's own; large matrices stay on disk.

    A profile folder, an extraction folder, an h5ad (``key`` is an entry of obsm, or X), or a
    parquet or csv(.gz), of which ``key`` says how the feature columns begin. Without it a table
    with ``Metadata_`` columns is read as Cell Painting's (all other columns are features), any
    other takes its floating-point columns.
    """
    path = Path(path)
    if path.is_dir():
        extracted = (path / MATRIX).exists() or (path / MANIFEST).exists()
        return _read_extraction(path) if extracted else _read_folder(path)
    path = require_file(path, "profiles")
    if path.suffix == ".h5ad":
        return _read_h5ad(path, key)
    if path.suffix in (".parquet", ".csv") or path.name.endswith(".csv.gz"):
        return _read_columns(path, key)
    raise InputError(
        f"{path} is neither .h5ad nor .parquet nor .csv",
        expected="an h5ad with an obsm entry, a parquet or csv table, or a folder of profiles",
    )


def _read_folder(folder: Path) -> Profiles:
    """What :meth:`Profiles.write` saved."""
    meta = read_frame(require_file(folder / META, "table of labels"))
    return Profiles(_map(folder / VALUES), meta, _read_features(folder / FEATURES), str(folder))


def _map(path: Path) -> np.ndarray:
    """A .npy as a memory map."""
    try:
        return np.load(require_file(path, "matrix"), mmap_mode="r")
    except ValueError as error:
        raise InputError(
            f"{path} is damaged or truncated: {error}", cause="a copy that broke off"
        ) from None


def _read_features(path: Path) -> pd.Index:
    """The names of the columns."""
    names = read_json(path, "list of features")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path} holds no list of names", expected='["feature_0", "feature_1"]')
    return pd.Index(names)


def _read_extraction(folder: Path) -> Profiles:
    """What ``perturbgen l1000 extract`` wrote: samples are rows, genes (by Entrez id) features."""
    folder = require_folder(folder, "extraction")
    manifest = read_json(folder / MANIFEST, "manifest")
    # mapped: 1.2 million profiles of 978 genes are 4.7 GB
    matrix = _map(folder / MATRIX)
    if matrix.shape != (manifest["samples"], manifest["genes"]):
        raise InputError(
            f"{folder / MATRIX} is {matrix.shape[0]:,} x {matrix.shape[1]:,}, the manifest says "
            f"{manifest['samples']:,} x {manifest['genes']:,}",
            cause="files of two extractions in one folder",
        )
    samples = read_frame(folder / "samples.parquet").set_index("sample")
    genes = read_frame(folder / "genes.parquet").set_index("gene_id")
    return Profiles(matrix, samples, pd.Index(genes.index.astype(str)), str(folder), genes)


def _read_h5ad(path: Path, key: str | None) -> Profiles:
    """An obsm entry, or X with its genes, and obs; X stays on the disk unless it is asked for."""
    with reading(path, "h5ad"):
        # backed: an embedding is asked for more often than the counts beside it
        adata = open_h5ad(path, backed=True)
        try:
            names = [*adata.obsm, "X"]
            if key not in names:
                raise SchemaError(
                    f"{path} has no embedding {key!r}" if key else f"which embedding of {path}?",
                    expected=f"--key with one of {shorten(names, 12)}",
                    fix=suggest(key, names) if key else None,
                )
            found: Any = adata.X[:] if key == "X" else adata.obsm[key]
            meta, var = adata.obs.copy(), adata.var.copy()
        finally:
            adata.file.close()
    if not len(meta):
        raise InputError(f"{path} has no rows", expected="at least one")
    require_sound(found, f"{path}: {key}")
    # a single column may come without its second dimension
    values = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
    values = values.reshape(len(meta), -1)
    if key == "X":
        return Profiles(values, meta, pd.Index(var.index.astype(str)), str(path), var)
    return Profiles(
        values, meta, pd.Index([f"{key}_{i}" for i in range(values.shape[1])]), str(path)
    )


def _read_columns(path: Path, key: str | None) -> Profiles:
    """A table whose columns are labels and features."""
    table = read_frame(path)
    names = [str(name) for name in table]
    labelled = [name for name in names if name.startswith(_PREFIX)]
    if key:
        features = [name for name in names if name.startswith(key)]
    elif labelled:
        features = [name for name in names if name not in labelled]
    else:
        features = [name for name in names if pd.api.types.is_float_dtype(table[name])]
    words = [name for name in features if not pd.api.types.is_numeric_dtype(table[name])]
    if words or not features:
        found = (
            f"{shorten(words)} is not a number and not {_PREFIX}*"
            if words
            else f"no feature column {key or ''}"
        )
        raise SchemaError(
            f"{path}: {found.strip()}",
            expected=f"labels such as {_PREFIX}Plate, and features that are numbers",
            fix=f"rename labels to {_PREFIX}..., or --key with the start of the features' names; "
            f"the file has {shorten(names, 12)}",
        )
    if len(features) == len(names):
        raise SchemaError(
            f"{path} has no column of labels",
            expected=f"labels such as {_PREFIX}Plate, {_PREFIX}Well",
            fix=f"its columns are {shorten(names)}",
        )
    meta = table.drop(columns=features)
    # embeddings are float32 by nature; measured features keep the digits that they are given with
    dtype: type = np.float32
    if labelled and not key:
        dtype = np.float64
        ours = {ours: table[theirs].astype(str) for theirs, ours in _OURS.items() if theirs in meta}
        meta = meta.assign(**ours)
        if {"plate", "well"} <= set(meta):
            require_unique(meta["plate"] + " " + meta["well"], "well", path)
    return Profiles(table[features].to_numpy(dtype), meta, pd.Index(features), str(path))
