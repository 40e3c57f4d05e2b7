"""Reading and writing h5ad files, and any HDF5 file, so that a damaged one cannot do harm.

HDF5 is C: over a file that was damaged in certain places it never returns, or takes the process
with it. So a child process goes through a file before this one does. And what is written here
carries checksums wherever HDF5 has them.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from perturbgen.core.errors import InputError
from perturbgen.core.files import atomic_path, require_file
from perturbgen.core.tables import reading

if TYPE_CHECKING:
    import h5py
    from anndata import AnnData
    from typing_extensions import Buffer

# From this version of the format on (HDF5 1.10, 2016), headers and lists of chunks have checksums.
HDF5_VERSIONS: Final = ("v110", "latest")
_CHECKSUM: Final = "crc32"  # of the text in a dataset, which HDF5 keeps where it checks nothing
_TEXTS: Final = 1 << 20  # read at once
_SPARSE: Final = "a sparse matrix whose indices lie within its shape"
_SECONDS: Final = 2  # of a processor, for a file of any size
_BYTES_A_SECOND: Final = 10 << 20


def open_hdf5(path: Path) -> h5py.File:
    """An HDF5 file to read, once it is known that HDF5 gets through it and that all is in it."""
    import h5py

    about = path.stat()
    _require_whole(path, about.st_ino, about.st_size, about.st_mtime_ns)
    return h5py.File(path, "r")


# A store on disk is opened for every buffer: what did not change is not gone through again.
@lru_cache
def _require_whole(path: Path, *_state: int) -> None:
    import h5py

    _survey(path)
    with h5py.File(path, "r") as file:
        try:
            for name, item in _items(file):
                _check_item(name, item, path)
        # what h5py says of a group that it cannot open; ours is none of these
        except (KeyError, RuntimeError, ValueError) as error:
            raise _damaged(path, str(error).strip("'")) from None


def open_h5ad(path: str | Path, *, backed: bool = False) -> AnnData:
    """The file in memory, or its matrices on disk; repeated ids pass: the schema names them."""
    import anndata

    path = require_file(path, "h5ad file")
    with reading(path, "h5ad"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names are not unique")
        warnings.filterwarnings("ignore", message=".*was written without encoding metadata")
        with open_hdf5(path) as file:
            for name in ("obs", "var"):  # anndata would make one up, without labels
                if name not in file:
                    raise InputError(f"{path} has no {name}", expected="a file that AnnData wrote")
        adata = anndata.read_h5ad(path, backed="r" if backed else None)
    if not backed:
        raw = {} if adata.raw is None else {"raw/X": adata.raw.X}
        named = {"X": adata.X, **raw, **adata.layers, **adata.obsm, **adata.varm}
        for name, matrix in {**named, **adata.obsp, **adata.varp}.items():
            require_sound(matrix, f"{path}: {name}")
    return adata


def require_sound(matrix: Any, where: str) -> None:
    """A sparse matrix names only rows and columns that it has; others pass.

    Compiled kernels read and write where its indices say, so it is asked before any sees it.
    """
    if getattr(matrix, "format", None) not in ("csr", "csc"):
        return
    try:
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise _damaged(where, str(error), _SPARSE) from None


def _damaged(where: str | Path, what: str, expected: str = "a whole HDF5 file") -> InputError:
    return InputError(
        f"{where} is damaged: {what}",
        expected=expected,
        cause="bytes that changed in a copy or a download, or a program that wrote it wrongly",
        fix="fetch or write the file again",
    )


def _items(file: h5py.File) -> Iterator[tuple[str, Any]]:
    """Every group and dataset by its name; None for what lies in another file."""
    import h5py

    groups: list[h5py.Group] = [file]
    seen: set[int] = set()
    while groups:
        group = groups.pop()
        place = h5py.h5o.get_info(group.id).addr
        if place in seen:  # a damaged or made-up file may hold itself, without end
            continue
        seen.add(place)
        yield group.name, group
        for name in group:
            link = group.get(name, getlink=True)
            # a soft link leads to what is looked at anyway
            if isinstance(link, h5py.SoftLink):
                continue
            item = None if isinstance(link, h5py.ExternalLink) else group[name]
            if isinstance(item, h5py.Group):
                groups.append(item)
            else:
                yield f"{group.name.rstrip('/')}/{name}", item


def _check_item(name: str, item: Any, path: Path) -> None:
    """It is in this file, and a sparse matrix has as many entries as its rows say."""
    import h5py

    if item is None or (isinstance(item, h5py.Dataset) and (item.external or item.is_virtual)):
        raise InputError(
            f"{path}: {name} lies in another file",
            expected="a file that holds all of its data",
            fix="write it once more with the program that made it",
        )
    sparse = ("csr_matrix", "csc_matrix")
    if isinstance(item, h5py.Group) and item.attrs.get("encoding-type") in sparse:
        _check_lengths(item, path)


def _check_lengths(group: Any, path: Path) -> None:
    # scipy cuts off what lies behind the last row, without a word
    data, indices, ends = (len(group[name]) for name in ("data", "indices", "indptr"))
    last = int(group["indptr"][-1]) if ends else -1
    if not data == indices == last:
        found = f"{data:,} values, {indices:,} indices, and rows that end at {last:,}"
        raise _damaged(f"{path}: {group.name.strip('/')}", found, _SPARSE)


def _survey(path: Path) -> None:
    """A child process gets through the file, and finds the texts that were written.

    On Linux only: elsewhere what was forked may not use the system's libraries.
    """
    if sys.platform != "linux":
        return
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        _survey_in_child(path, write_end)
    os.close(write_end)
    try:
        with os.fdopen(read_end) as pipe:
            changed = pipe.read()
    finally:
        if sys.exc_info()[0]:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise _damaged(path, "HDF5 fails over it")
    if changed:
        raise _damaged(path, f"{changed} is not the text that was written")


def _survey_in_child(path: Path, pipe: int) -> NoReturn:
    import resource

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        # processor time, since a slow disk is no damage
        seconds = _SECONDS + path.stat().st_size // _BYTES_A_SECOND
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.write(pipe, _changed_text(path).encode())
    finally:
        # what Python can raise is raised, and explained, where the file is read
        os._exit(0)


def _changed_text(path: Path) -> str:
    """Visit all that can lead HDF5 astray; the name of a text that is not what was written."""
    import h5py

    with h5py.File(path, "r") as file:
        for name, item in _items(file):
            with suppress(Exception):  # attributes that h5py cannot read are none of our business
                dict(item.attrs)
            if not isinstance(item, h5py.Dataset):
                continue
            if item.chunks:
                item.id.get_num_chunks()
            if item.dtype.hasobject:
                found = _checksum(item)
                if item.attrs.get(_CHECKSUM, found) != found:
                    return name
    return ""


def _checksum(texts: h5py.Dataset) -> int:
    """The CRC of what is kept outside of the dataset, piece by piece."""
    if texts.shape is None:
        return 0
    if not texts.ndim:
        return zlib.crc32(bytes(texts[()]))
    found = 0
    for start in range(0, len(texts), _TEXTS):
        piece = texts[start : start + _TEXTS].ravel()
        found = zlib.crc32(b"\0".join(map(bytes, piece)) + b"\0", found)
    return found


def write_h5ad(adata: AnnData, path: str | Path, *, packed: bool = True) -> None:
    """Write an h5ad file, under its final name only when it is whole.

    ``packed`` by gzip (level 1), which suits counts; real numbers hardly shrink.
    """
    from anndata.io import write_elem

    # level 0 packs nothing, but has gzip's checksum
    compression = {"compression": "gzip", "compression_opts": int(packed)}
    with atomic_path(path) as part:
        with _patient(part, "w") as root:
            write_elem(root, "/", adata, dataset_kwargs=compression)
        # once all is on the disk: what could not be written would be read as zeros
        with _patient(part, "r+") as root:
            _sign(root)


def _sign(root: h5py.File) -> None:
    """Give every text its checksum."""
    import h5py

    for _, item in _items(root):
        if isinstance(item, h5py.Dataset) and h5py.check_string_dtype(item.dtype):
            item.attrs[_CHECKSUM] = _checksum(item)


@contextmanager
def _patient(path: Path, mode: Literal["w", "r+"]) -> Iterator[h5py.File]:
    """An HDF5 file to write, whose disk may turn out to be full."""
    import h5py

    with _PatientFile(path, "w+" if mode == "w" else mode) as file:
        try:
            with h5py.File(file, mode, libver=HDF5_VERSIONS) as root:
                yield root
        finally:
            if file.failure is not None:
                raise file.failure


class _PatientFile(io.FileIO):
    """A file that remembers the first failure to write, and ignores what follows.

    HDF5 crashes the interpreter when a flush fails while it closes a file, so it must never see one
    fail.
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
