"""Writing h5ad so that a full disk is an error and not a crash, and a half-written file never has the final name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from perturbgen.files import atomic_path

if TYPE_CHECKING:
    from anndata import AnnData
    from typing_extensions import Buffer


class PatientFile(io.FileIO):
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

    with atomic_path(path) as part, PatientFile(part, "w+") as file:
        try:
            with h5py.File(file, "w") as root:
                write_elem(root, "/", adata, dataset_kwargs={"compression": "gzip", "compression_opts": 1})
        finally:
            file.raise_failure()
