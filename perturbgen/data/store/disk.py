"""The store on disk: shuffled blocks of an h5ad or zarr file, read ahead in the background."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from perturbgen.core.errors import InputError, SchemaError, suggest
from perturbgen.core.files import require_file, require_folder
from perturbgen.data.store.base import IntArray
from perturbgen.data.store.memory import MemoryBacking

if TYPE_CHECKING:
    import torch

    from perturbgen.data.store.base import Backing


@dataclass(frozen=True, eq=False)
class DiskBacking:
    """CSR of raw counts (cells, genes) in a file that is opened for each reading only."""

    path: Path
    group: str  # "X" or "layers/name"
    offsets: IntArray  # (cells + 1,)
    shape: tuple[int, int]
    block: int
    buffer: int
    gap: int = 32  # unwanted rows read along rather than skipped: a seek costs about as much

    @classmethod
    def open(cls, path: Path, layer: str | None, block: int, buffer: int) -> DiskBacking:
        """Look at the matrix without reading it."""
        if block < 1 or buffer < 1:
            raise SchemaError(f"block={block}, buffer={buffer}", expected="at least one cell each")
        group = "X" if layer is None else f"layers/{layer}"
        with _open_root(path) as root:
            matrix = _require_csr(root, group, path)
            shape = tuple(int(n) for n in matrix.attrs["shape"])
            return cls(
                path,
                group,
                matrix["indptr"][:].astype(np.int64),
                (shape[0], shape[1]),
                block,
                buffer,
            )

    def window(self, size: int) -> int:
        """How many cells are mixed at a time: the whole batches that fit the buffer, one at least."""
        return max(self.buffer // size, 1) * size

    def order(self, n: int, size: int, rng: np.random.Generator | None) -> IntArray:
        """Blocks of neighbours in random order, their cells mixed within every window."""
        if rng is None:
            return np.arange(n)
        blocks = rng.permutation(-(-n // self.block))
        order = (blocks[:, None] * self.block + np.arange(self.block)).ravel()
        order = order[order < n]
        for start in range(0, n, self.window(size)):
            rng.shuffle(order[start : start + self.window(size)])
        return order

    def parts(
        self, rows: IntArray, size: int, first: int
    ) -> Iterator[tuple[MemoryBacking, IntArray]]:
        """Window by window, the next one being read while the last one is used."""
        step = self.window(size)
        windows = [
            rows[max(start, first) : start + step]
            for start in range(first // step * step, len(rows), step)
        ]
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self.load, windows[0]) if windows else None
            for following in [*windows[1:], None]:
                if ahead is None:
                    return
                ready = ahead.result()
                ahead = reader.submit(self.load, following) if following is not None else None
                yield ready

    def load(self, rows: IntArray) -> tuple[MemoryBacking, IntArray]:
        """The rows of the file in memory, and where each of them is found there."""
        starts, stops = _runs(np.sort(rows), self.gap)
        with _open_root(self.path) as root:
            values, columns = (
                self.read(root[self.group][name], starts, stops) for name in ("data", "indices")
            )
        read = np.concatenate(
            [np.arange(0), *(np.arange(a, b) for a, b in zip(starts, stops, strict=True))]
        )
        offsets = np.concatenate([[0], np.cumsum(np.diff(self.offsets)[read])])
        matrix = sparse.csr_matrix((values, columns, offsets), shape=(len(read), self.shape[1]))
        packed = MemoryBacking.pack(
            matrix, where=f"{self.path}: {self.group}", cells=read, genes=range(self.shape[1])
        )
        return packed, np.searchsorted(read, rows)

    def read(self, dataset: Any, starts: IntArray, stops: IntArray) -> np.ndarray:
        """The part of ``data`` or ``indices`` that belongs to runs of rows, one run after the other."""
        edges = np.stack([self.offsets[starts], self.offsets[stops]], axis=1)
        out = np.empty(int((edges[:, 1] - edges[:, 0]).sum()), dataset.dtype)
        at = 0
        for first, last in edges.tolist():
            out[at : at + last - first] = dataset[first:last]
            at += last - first
        return out

    def to(self, device: torch.device) -> Backing:
        """All of it, read into memory and from there to the device."""
        packed, _ = self.load(np.arange(self.shape[0]))
        return packed.to(device)

    def scipy(self, rows: IntArray) -> sparse.csr_matrix:
        """The rows as CSR int64."""
        packed, local = self.load(rows)
        return packed.scipy(local)


def _runs(rows: IntArray, gap: int) -> tuple[IntArray, IntArray]:
    """Starts and stops of the stretches that sorted rows fall into, gaps of up to ``gap`` rows included."""
    if not len(rows):
        return rows, rows
    breaks = np.flatnonzero(np.diff(rows) > gap + 1)
    return rows[np.concatenate([[0], breaks + 1])], rows[
        np.concatenate([breaks, [len(rows) - 1]])
    ] + 1


@contextmanager
def _open_root(path: Path) -> Iterator[Any]:
    """The root group of an h5ad file or a zarr folder."""
    if path.suffix == ".zarr" or path.is_dir():
        import zarr

        yield zarr.open_group(require_folder(path, "zarr store"), mode="r")
        return
    import h5py

    try:
        file = h5py.File(require_file(path, "h5ad file"), "r")
    except OSError as error:
        raise InputError(
            f"{path} is no readable HDF5 file: {error}", cause="a truncated copy or download"
        ) from None
    with file:
        yield file


def _require_csr(root: Any, group: str, path: Path) -> Any:
    """The group of a CSR matrix."""
    if group not in root:
        layers = list(root["layers"]) if "layers" in root else []
        raise SchemaError(
            f"{path} has no {group}", fix=suggest(group.removeprefix("layers/"), ["X", *layers])
        )
    if (found := root[group].attrs.get("encoding-type")) != "csr_matrix":
        raise InputError(
            f"{path}: {group} is stored as {found or 'an unknown type'}",
            expected="a CSR matrix, whose rows can be read one by one",
            fix="write it once more after adata.X = scipy.sparse.csr_matrix(adata.X), or use CountStore.from_adata",
        )
    return root[group]


def read_labels(path: Path) -> tuple[pd.DataFrame, pd.Index]:
    """obs and the gene names of a file."""
    from anndata.io import read_elem

    with _open_root(path) as root:
        for name in ("obs", "var"):
            if name not in root:
                raise InputError(f"{path} has no {name}", expected="a file that AnnData wrote")
        return read_elem(root["obs"]), read_elem(root["var"]).index
