"""CountStore: raw counts with their labels, delivered in labelled batches and never dense as a whole.

Three backings stand behind one interface: compact CSR in memory (``store_memory``), a file read block by block
(``store_disk``) and CSR resident on a GPU (``store_device``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten, suggest
from perturbgen.data.covariates import CovariateEncoder

if TYPE_CHECKING:
    import torch
    from anndata import AnnData
    from scipy import sparse

IntArray = np.ndarray[Any, np.dtype[np.int64]]


class SparseRows(NamedTuple):
    """The non-zeros of a batch, cell after cell; cell ``i`` owns ``offsets[i]`` up to ``offsets[i + 1]``.

    As it is, it is the input of ``torch.nn.functional.embedding_bag(columns, weight, offsets, mode="sum",
    per_sample_weights=values, include_last_offset=True)``: a first layer that reads the sparse batch.
    """

    values: torch.Tensor  # float32 (non-zeros,)
    columns: torch.Tensor  # int64 (non-zeros,): the gene of each
    offsets: torch.Tensor  # int64 (cells + 1,)
    n_genes: int

    def rows(self) -> torch.Tensor:
        """The cell of each non-zero, int64 (non-zeros,)."""
        import torch

        cells = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return torch.repeat_interleave(cells, self.offsets.diff(), output_size=len(self.values))

    def dense(self) -> torch.Tensor:
        """The same counts, float32 (cells, genes)."""
        out = self.values.new_zeros(len(self.offsets) - 1, self.n_genes)
        out.view(-1)[self.rows() * self.n_genes + self.columns] = self.values
        return out


class Batch(NamedTuple):
    """Some cells of a store."""

    index: torch.Tensor  # type: ignore[assignment]  # int64 (cells,): positions in the store that yielded the batch
    counts: torch.Tensor | SparseRows  # float32 (cells, genes), or their non-zeros
    codes: torch.Tensor  # int64 (cells, covariates), the columns of the encoder's `categorical`


class _Resident(Protocol):
    """Rows of counts at hand, in memory or on a device."""

    @property
    def device(self) -> torch.device:
        """Where its batches are made."""

    def dense(self, rows: IntArray, pool: ThreadPoolExecutor) -> torch.Tensor:
        """Float32 (cells, genes), with threads to share the work."""

    def sparse(self, rows: IntArray) -> SparseRows:
        """Their non-zeros."""


class Backing(Protocol):
    """Where the rows of a store live."""

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes."""

    def order(self, n: int, size: int, rng: np.random.Generator | None) -> IntArray:
        """The positions 0..n-1 in the order of one epoch of batches of ``size``."""

    def parts(self, rows: IntArray, size: int, first: int) -> Iterator[tuple[_Resident, IntArray]]:
        """The rows from ``first`` on, in parts of whole batches: each resident, with where its rows are found there."""

    def to(self, device: torch.device) -> Backing:
        """The same rows, resident there."""

    def scipy(self, rows: IntArray) -> sparse.csr_matrix:
        """The rows as CSR int64 or float32."""


@dataclass(frozen=True, eq=False)
class CountStore:
    """Cells x genes of raw counts, with labels.

    Make one with :meth:`from_adata` (memory) or :meth:`open` (disk), send it to a GPU with :meth:`to`.
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
        """A store in memory. It keeps a compact copy (4 bytes a non-zero where counts and genes fit 16 bits)."""
        from perturbgen.data.store.memory import MemoryBacking

        if layer is not None and layer not in adata.layers:
            raise SchemaError(f"no layer {layer!r}", fix=suggest(layer, adata.layers))
        matrix, where = (
            (adata.X, "X") if layer is None else (adata.layers[layer], f"layer {layer!r}")
        )
        backing = MemoryBacking.pack(
            matrix, where=where, cells=adata.obs_names, genes=adata.var_names
        )
        return cls.build(backing, adata.obs, adata.var_names, covariates)

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
        """A store on disk: an h5ad file or a zarr folder whose counts are CSR; only the labels are read now.

        A shuffled epoch reads ``block`` neighbouring cells at a time in random order, and mixes the cells of every
        ``buffer``; memory holds two buffers, one in use and one being read.
        """
        from perturbgen.data.store.disk import DiskBacking, read_labels

        obs, var_names = read_labels(Path(path))
        return cls.build(
            DiskBacking.open(Path(path), layer, block, buffer), obs, var_names, covariates
        )

    @classmethod
    def build(
        cls,
        backing: Backing,
        obs: pd.DataFrame,
        var_names: pd.Index,
        covariates: CovariateEncoder | None,
    ) -> CountStore:
        """All rows of a backing, with the codes of their covariates."""
        codes = covariates.codes(obs) if covariates else np.empty((len(obs), 0), np.int64)
        return cls(backing, np.arange(len(obs)), obs, pd.Index(var_names), codes)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_genes(self) -> int:
        """How many genes."""
        return len(self.var_names)

    def subset(self, cells: Sequence[Any] | np.ndarray | pd.Index | pd.Series) -> CountStore:
        """The cells named by a mask, by positions or by their obs names; the counts themselves are shared."""
        take = self.positions(np.asarray(cells))
        return replace(self, rows=self.rows[take], obs=self.obs.iloc[take], codes=self.codes[take])

    def positions(self, cells: np.ndarray) -> IntArray:
        """Positions (cells,) from a mask, positions or obs names."""
        if len(cells) == 0:
            return np.empty(0, np.int64)
        if cells.dtype == bool:
            if len(cells) != len(self):
                raise SchemaError(f"a mask of {len(cells):,} for a store of {len(self):,} cells")
            return np.flatnonzero(cells)
        if cells.dtype.kind in "iu":
            if cells.min() < 0 or cells.max() >= len(self):
                raise SchemaError(
                    f"positions {cells.min()} to {cells.max()} in a store of {len(self):,} cells"
                )
            return cells.astype(np.int64)
        found = self.obs.index.get_indexer(pd.Index(cells))
        if (found < 0).any():
            raise SchemaError(f"cells that the store does not have: {shorten(cells[found < 0])}")
        return found.astype(np.int64)

    def to(self, device: str | torch.device) -> CountStore:
        """The same store resident on a device: ``cuda`` puts CSR there, ``cpu`` reads a file into memory."""
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
        """Every cell once, in batches of ``size`` (the last may be smaller): shuffled by ``rng``, else in stored order.

        The order depends on the generator alone: with ``rng=epoch_rng(seed, epoch)`` a run that stopped after ``k``
        batches goes on with ``skip=k``. Of ``ranks`` processes each takes the cells ``rank``, ``rank + ranks``, ... of
        every batch, and a last batch of fewer cells than processes is left out. Batches may be kept: their memory is
        reused only once they are let go.
        """
        import torch

        if size % ranks:
            raise SchemaError(
                f"batches of {size} cells cannot be shared by {ranks} processes",
                fix="a multiple of it",
            )
        if size < 1:
            raise SchemaError(f"a batch of {size} cells", expected="at least one cell a batch")
        if skip < 0:
            raise SchemaError(
                f"skip={skip}", expected="how many batches were already seen, 0 or more"
            )
        order = _shared(self.backing.order(len(self), size, rng), size, rank, ranks)
        size //= ranks
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


def _shared(order: IntArray, size: int, rank: int, ranks: int) -> IntArray:
    """The part of an epoch's order that one of several processes takes: every ``ranks``-th cell of each batch."""
    if len(order) % size < ranks:
        order = order[: len(order) - len(order) % size] if ranks > 1 else order
    place = np.arange(len(order)) % size
    return order[place % ranks == rank]


def epoch_rng(seed: int, epoch: int) -> np.random.Generator:
    """The generator of one epoch, a pure function of the two numbers."""
    return np.random.default_rng([seed, epoch])
