"""Raw counts with their labels, delivered in labelled batches and never dense as a whole.

Three backings stand behind one interface: compact CSR in memory, a file read block by block
(``disk``) and CSR resident on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten, suggest
from perturbgen.data.backing import Backing, IntArray, MemoryBacking, SparseRows
from perturbgen.data.covariates import CovariateEncoder
from perturbgen.data.disk import DiskBacking

if TYPE_CHECKING:
    import torch
    from anndata import AnnData
    from scipy import sparse


class Batch(NamedTuple):
    """Some cells of a store."""

    # int64 (cells,): positions in the store that yielded the batch
    index: torch.Tensor  # type: ignore[assignment]
    counts: torch.Tensor | SparseRows  # float32 (cells, genes), or their non-zeros
    codes: torch.Tensor  # int64 (cells, covariates), the columns of the encoder's `categorical`


@dataclass(frozen=True, eq=False)
class CountStore:
    """Cells x genes of raw counts, with labels.

    Make one with :meth:`from_adata` (memory) or :meth:`open` (disk), send it to a GPU with
    :meth:`to`.
    """

    backing: Backing
    rows: IntArray  # (cells,): which rows of the backing are ours
    obs: pd.DataFrame  # (cells, ...)
    var_names: pd.Index
    codes: IntArray  # (cells, covariates)

    @classmethod
    def from_adata(
        cls, adata: AnnData, covariates: CovariateEncoder | None = None, *, layer: str | None = None
    ) -> CountStore:
        """A store in memory: 4 bytes a non-zero where counts and genes fit 16 bits."""
        if layer is not None and layer not in adata.layers:
            raise SchemaError(f"no layer {layer!r}", fix=suggest(layer, adata.layers))
        matrix = adata.X if layer is None else adata.layers[layer]
        where = "X" if layer is None else f"layer {layer!r}"
        cells, genes = adata.obs_names, adata.var_names
        backing = MemoryBacking.pack(matrix, where=where, cells=cells, genes=genes)
        return _all_rows(backing, adata.obs, adata.var_names).with_covariates(covariates)

    @classmethod
    def open(
        cls,
        path: str | Path,
        covariates: CovariateEncoder | None = None,
        *,
        layer: str | None = None,
        block: int = 128,
        buffer: int = 8192,
    ) -> CountStore:
        """A store on disk, h5ad or zarr, whose counts are CSR; only the labels are read now.

        A shuffled epoch reads ``block`` neighbouring cells at a time in random order, and mixes the
        cells of every ``buffer``; memory holds two buffers, one in use and one being read.
        """
        opened = DiskBacking.open(Path(path), layer, block, buffer)
        return _all_rows(*opened).with_covariates(covariates)

    def __repr__(self) -> str:
        kind = type(self.backing).__name__.removesuffix("Backing").lower()
        return f"CountStore({len(self):,} cells x {self.n_genes:,} genes, {kind})"

    def with_covariates(self, covariates: CovariateEncoder | None) -> CountStore:
        """The same cells, their labels encoded anew."""
        none = np.empty((len(self), 0), np.int64)
        return replace(self, codes=covariates.codes(self.obs) if covariates else none)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_genes(self) -> int:
        """How many genes."""
        return len(self.var_names)

    def subset(self, cells: Sequence[Any] | np.ndarray | pd.Index | pd.Series) -> CountStore:
        """The cells of a mask, of positions or of obs names; the counts themselves are shared."""
        take = self._positions(np.asarray(cells))
        return replace(self, rows=self.rows[take], obs=self.obs.iloc[take], codes=self.codes[take])

    def _positions(self, cells: np.ndarray) -> IntArray:
        """Positions (cells,) from a mask, positions or obs names."""
        if len(cells) == 0:
            return np.empty(0, np.int64)
        if cells.dtype == bool:
            if len(cells) != len(self):
                raise SchemaError(f"a mask of {len(cells):,} for a store of {len(self):,} cells")
            return np.flatnonzero(cells)
        if cells.dtype.kind in "iu":
            low, high = cells.min(), cells.max()
            if low < 0 or high >= len(self):
                raise SchemaError(f"positions {low} to {high} in a store of {len(self):,} cells")
            return cells.astype(np.int64)
        found = self.obs.index.get_indexer(pd.Index(cells))
        if (found < 0).any():
            raise SchemaError(f"cells that the store does not have: {shorten(cells[found < 0])}")
        return found.astype(np.int64)

    def to(self, device: str | torch.device) -> CountStore:
        """The same store on a device: ``cuda`` holds CSR, ``cpu`` reads a file into memory."""
        import torch

        return replace(self, backing=self.backing.to(torch.device(device)))

    def counts(self) -> sparse.csr_matrix:
        """The counts as a scipy matrix (cells, genes), in the store's order."""
        return self.backing.scipy(self.rows)

    def batches(
        self,
        size: int,
        *,
        rng: np.random.Generator | None = None,
        dense: bool = True,
        skip: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> Iterator[Batch]:
        """Every cell once, in batches of ``size``: shuffled by ``rng``, else in stored order.

        The order depends on the generator alone: with a generator seeded by ``[seed, epoch]`` a
        run that stopped after ``k`` batches goes on with ``skip=k``. Of ``ranks`` processes each
        takes the cells ``rank``, ``rank + ranks``, ... of every batch, and a last batch of fewer
        cells than processes is left out. Batches may be kept: their memory is reused only once they
        are let go.
        """
        import torch

        if size % ranks:
            what = f"batches of {size} cells cannot be shared by {ranks} processes"
            raise SchemaError(what, fix="a multiple of it")
        if size < 1:
            raise SchemaError(f"a batch of {size} cells", expected="at least one cell a batch")
        if skip < 0:
            wanted = "how many batches were already seen, 0 or more"
            raise SchemaError(f"skip={skip}", expected=wanted)
        order = _shared(self.backing.order(len(self), size, rng), size, rank, ranks)
        size //= ranks
        # Skipped in the order, not by reading: resuming late in an epoch costs nothing.
        done = skip * size
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for resident, local in self.backing.parts(self.rows[order], size, done):
                for start in range(0, len(local), size):
                    rows = local[start : start + size]
                    index = order[done : done + len(rows)]
                    done += len(rows)
                    yield Batch(
                        index=torch.from_numpy(index).to(resident.device),
                        counts=resident.dense(rows, pool) if dense else resident.sparse(rows),
                        codes=torch.from_numpy(self.codes[index]).to(resident.device),
                    )


def _all_rows(backing: Backing, obs: pd.DataFrame, var_names: pd.Index) -> CountStore:
    """All rows of a backing, no covariate of them encoded yet."""
    codes = np.empty((len(obs), 0), np.int64)
    return CountStore(backing, np.arange(len(obs)), obs, pd.Index(var_names), codes)


def _shared(order: IntArray, size: int, rank: int, ranks: int) -> IntArray:
    """What one of several processes takes of an epoch: every ``ranks``-th cell of each batch."""
    last = len(order) % size
    if ranks > 1 and last < ranks:
        # Some process would have no cell of it, and a step waits for the gradients of each.
        order = order[: len(order) - last]
    place = np.arange(len(order)) % size
    return order[place % ranks == rank]
