"""Embeddings from files: an obsm entry of an h5ad, or the feature columns of a parquet table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError, shorten, suggest
from perturbgen.core.files import require_file
from perturbgen.core.tables import h5ad_errors, read_frame

_Array = np.ndarray[Any, Any]


def read_vectors(path: str | Path, key: str | None = None) -> tuple[_Array, pd.DataFrame]:
    """(rows, features) numbers and the rows' labels.

    ``key`` is an obsm entry of an h5ad (or X), or what a parquet's feature columns begin with; without it they are all
    columns of floating-point numbers.
    """
    path = require_file(path, "embedding")
    if path.suffix == ".h5ad":
        return _read_obsm(path, key)
    if path.suffix == ".parquet":
        return _read_features(path, key)
    raise InputError(
        f"{path} is neither .h5ad nor .parquet",
        expected="an h5ad with an obsm entry, or a parquet table",
    )


def _read_obsm(path: Path, key: str | None) -> tuple[_Array, pd.DataFrame]:
    """An obsm entry and obs; X stays on the disk unless it is asked for."""
    import anndata

    with h5ad_errors(path):
        adata = anndata.read_h5ad(path, backed="r")
        try:
            names = [*adata.obsm, "X"]
            if key not in names:
                raise SchemaError(
                    f"{path} has no embedding {key!r}" if key else f"which embedding of {path}?",
                    expected=f"--key with one of {shorten(names, 12)}",
                    fix=suggest(key, names) if key else None,
                )
            values = adata.X[:] if key == "X" else adata.obsm[key]
            obs = adata.obs.copy()
        finally:
            adata.file.close()
    if not len(obs):
        raise InputError(f"{path} has no rows", expected="at least one")
    values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    return values.reshape(len(obs), -1), obs


def _read_features(path: Path, key: str | None) -> tuple[_Array, pd.DataFrame]:
    """The feature columns and the others."""
    table = read_frame(path)
    floating = [name for name in table if pd.api.types.is_float_dtype(table[name])]
    chosen = [name for name in table if str(name).startswith(key)] if key else floating
    text = [name for name in chosen if not pd.api.types.is_numeric_dtype(table[name])]
    if not chosen or text:
        found = (
            f"columns {shorten(text)} are no numbers"
            if text
            else f"no feature column {key or ''}".strip()
        )
        raise SchemaError(
            f"{path}: {found}",
            expected="columns of numbers, named alike",
            fix=f"--key with the start of their names; the file has {shorten(table, 12)}",
        )
    return table[chosen].to_numpy(np.float32), table.drop(columns=chosen)
