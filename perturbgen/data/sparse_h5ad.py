"""An h5ad of sparse counts that grows chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import sparse_dataset, write_elem
from scipy import sparse

from perturbgen.files import require_room


class SparseH5ad:
    """Appends CSR rows to ``X`` of a new file whose obs, var and uns are known beforehand."""

    def __init__(self, path: Path, *, obs: pd.DataFrame, var: pd.DataFrame, uns: Mapping[str, Any]) -> None:
        self._path = path
        require_room(path, int(obs.memory_usage(deep=True).sum() + var.memory_usage(deep=True).sum()))
        AnnData(obs=obs, var=var, uns=dict(uns)).write_h5ad(path)
        self._file = h5py.File(path, "r+")
        if "X" in self._file:
            del self._file["X"]
        empty = sparse.csr_matrix(np.zeros((0, len(var)), dtype=np.int32))
        write_elem(self._file, "X", empty, dataset_kwargs={"chunks": (65536,), "compression": "lzf"})

    def __enter__(self) -> SparseH5ad:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, counts: sparse.csr_array) -> None:
        """Append cells (cells, genes)."""
        require_room(self._path, counts.data.nbytes + counts.indices.nbytes)
        sparse_dataset(self._file["X"]).append(sparse.csr_matrix(counts))
