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
from perturbgen.core.h5ad import open_hdf5, require_sound
from perturbgen.data.backing import Backing, IntArray, MemoryBacking

if TYPE_CHECKING:
    import torch

_GAP = 32  # unwanted rows read along rather than skipped: a seek costs about as much


@dataclass(frozen=True, eq=False)
class DiskBacking:
    """CSR of raw counts (cells, genes) in a file that is opened for each reading only."""

    path: Path
    group: str  # "X" or "layers/name"
    offsets: IntArray  # (cells + 1,)
    shape: tuple[int, int]
    block: int  # neighbouring cells that stay together when an epoch is shuffled
    buffer: int  # cells that are mixed at a time

    @classmethod
    def open(
        cls, path: Path, layer: str | None, block: int, buffer: int
    ) -> tuple[DiskBacking, pd.DataFrame, pd.Index]:
        """The matrix, which is looked at without being read, obs, and the gene names."""
        from anndata.io import read_elem

        with _open_root(path) as root:
            for name in ("obs", "var"):
                if name not in root:
                    raise InputError(f"{path} has no {name}", expected="a file that AnnData wrote")
            obs, genes = read_elem(root["obs"]), read_elem(root["var"]).index
            if block < 1 or buffer < 1:
                what = f"block={block}, buffer={buffer}"
                raise SchemaError(what, expected="at least one cell each")
            group = "X" if layer is None else f"layers/{layer}"
            matrix = _require_csr(root, group, path)
            cells, width = (int(n) for n in matrix.attrs["shape"])
            offsets = matrix["indptr"][:].astype(np.int64)
            # columns are looked at when they are read
            entries = {*(matrix[name].shape[0] for name in ("data", "indices")), int(offsets[-1])}
            sizes = (len(offsets) - 1, len(obs), len(genes)) == (cells, cells, width)
            rising = offsets[0] == 0 and (np.diff(offsets) >= 0).all()
            if not sizes or len(entries) > 1 or not rising:
                raise InputError(
                    f"{path}: {group} is damaged: its shape, indptr and entries do not agree",
                    fix="fetch or write the file again",
                )
        return cls(path, group, offsets, (cells, width), block, buffer), obs, genes

    def order(self, n: int, size: int, rng: np.random.Generator | None) -> IntArray:
        """Blocks of neighbours in random order, their cells mixed within every window."""
        if rng is None:
            return np.arange(n)
        blocks = rng.permutation(-(-n // self.block))
        order = (blocks[:, None] * self.block + np.arange(self.block)).ravel()
        order = order[order < n]
        window = self._window(size)
        for start in range(0, n, window):
            rng.shuffle(order[start : start + window])
        return order

    def parts(
        self, rows: IntArray, size: int, first: int
    ) -> Iterator[tuple[MemoryBacking, IntArray]]:
        """Window by window, the next one being read while the last one is used."""
        step = self._window(size)
        # Windows begin where they began in the whole epoch, so that one that is resumed reads the
        # same.
        starts = range(first // step * step, len(rows), step)
        windows = [rows[max(start, first) : start + step] for start in starts]
        if not windows:
            return
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._load, windows[0])
            for following in windows[1:]:
                ready = ahead.result()
                ahead = reader.submit(self._load, following)
                yield ready
            yield ahead.result()

    def to(self, device: torch.device) -> Backing:
        """All of it, read into memory and from there to the device."""
        packed, _ = self._load(np.arange(self.shape[0]))
        return packed.to(device)

    def scipy(self, rows: IntArray) -> sparse.csr_matrix:
        """The rows as CSR int64."""
        packed, local = self._load(rows)
        return packed.scipy(local)

    def _window(self, size: int) -> int:
        """How many cells are mixed at a time: the batches that fit the buffer, one at least."""
        return max(self.buffer // size, 1) * size

    def _load(self, rows: IntArray) -> tuple[MemoryBacking, IntArray]:
        """The rows of the file in memory, and where each of them is found there."""
        starts, stops = _stretches(np.sort(rows))
        edges = np.stack([self.offsets[starts], self.offsets[stops]], axis=1).tolist()
        with _open_root(self.path) as root:
            group = root[self.group]
            values, columns = (_read_pieces(group[name], edges) for name in ("data", "indices"))
        stretches = (np.arange(a, b) for a, b in zip(starts, stops, strict=True))
        read = np.concatenate([np.arange(0), *stretches])
        offsets = np.concatenate([[0], np.cumsum(np.diff(self.offsets)[read])])
        matrix = sparse.csr_matrix((values, columns, offsets), shape=(len(read), self.shape[1]))
        require_sound(matrix, f"{self.path}: {self.group}")
        packed = MemoryBacking.pack(
            matrix, where=f"{self.path}: {self.group}", cells=read, genes=range(self.shape[1])
        )
        return packed, np.searchsorted(read, rows)


def _stretches(rows: IntArray) -> tuple[IntArray, IntArray]:
    """Starts and stops of the stretches that sorted rows fall into, small gaps included."""
    if not len(rows):
        return rows, rows
    breaks = np.flatnonzero(np.diff(rows) > _GAP + 1)
    starts = rows[np.concatenate([[0], breaks + 1])]
    return starts, rows[np.concatenate([breaks, [len(rows) - 1]])] + 1


def _read_pieces(dataset: Any, edges: list[list[int]]) -> np.ndarray:
    """The pieces of ``data`` or ``indices`` between edges (pieces, 2), one after the other."""
    out = np.empty(sum(stop - start for start, stop in edges), dataset.dtype)
    at = 0
    for start, stop in edges:
        out[at : at + stop - start] = dataset[start:stop]
        at += stop - start
    return out


@contextmanager
def _open_root(path: Path) -> Iterator[Any]:
    """The root group of an h5ad file or a zarr folder."""
    if path.suffix == ".zarr" or path.is_dir():
        import zarr

        yield zarr.open_group(require_folder(path, "zarr store"), mode="r")
        return
    try:
        file = open_hdf5(require_file(path, "h5ad file"))
    except OSError as error:
        what = f"{path} is no readable HDF5 file: {error}"
        raise InputError(what, cause="a truncated copy or download") from None
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
            fix="write it once more after adata.X = scipy.sparse.csr_matrix(adata.X), "
            "or use CountStore.from_adata",
        )
    return root[group]
