"""A matrix on disk that grows row by row and survives an interruption, with what is known of its rows."""

from __future__ import annotations

import io
import json
import os
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np

from perturbgen.errors import InputError
from perturbgen.files import remove
from perturbgen.profiles.l1000.appending import AppendedFile
from perturbgen.profiles.l1000.moments import Moments
from perturbgen.profiles.l1000.profiles import MATRIX

STATE: Final = "unfinished.json"
NORMS: Final = "norms.f32"
SECONDS: Final = 5.0  # between two notes of how far it came


class Growing:
    """Rows appended to ``profiles.npy`` of known final shape, with the moments of the genes and the norms of all rows.

    Writes rather than a memory map, since a full disk must be an error that can be caught.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: str, plan: dict[str, Any]) -> None:
        self.folder, self.shape, self.dtype, self.plan = folder, shape, np.dtype(dtype), plan

    def __enter__(self) -> Growing:
        state = read_state(self.folder)
        self.rows = state["rows"] if state else 0
        self.moments = Moments.from_json(state["moments"]) if state else Moments.empty(self.shape[1])
        header, row_bytes = self.header(), self.shape[1] * self.dtype.itemsize
        with ExitStack() as stack:
            if state is None:
                remove(self.folder / MATRIX)
                (self.folder / MATRIX).write_bytes(header)
            reserve(self.folder / MATRIX, len(header) + self.shape[0] * row_bytes)
            self.matrix = AppendedFile(self.folder / MATRIX, start=len(header) + self.rows * row_bytes)
            stack.callback(self.matrix.close)
            self.norms = stack.enter_context(open(self.folder / NORMS, "r+b" if state else "w+b"))
            self.norms.seek(self.rows * 4)
            self.stack = stack.pop_all()
        self.noted = time.monotonic()
        return self

    def header(self) -> bytes:
        """Of a file of numpy's."""
        about = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, about)
        return stream.getvalue()

    def append(self, values: np.ndarray) -> None:
        """Add rows (samples, genes) of float32."""
        norms = np.sqrt(np.einsum("sg,sg->s", values, values))
        self.matrix.write(np.ascontiguousarray(values, dtype=self.dtype))
        self.norms.write(norms.astype(np.float32).tobytes())
        self.moments.update(values)  # after what may fail, or a resumed run would count these rows twice
        self.rows += len(values)
        if time.monotonic() - self.noted > SECONDS:
            self.note()

    def note(self) -> None:
        """Everything so far is handed over to the disk; only then is it said to be."""
        for handle in (self.matrix, self.norms):
            handle.flush()
        state = {"rows": self.rows, "plan": self.plan, "moments": self.moments.to_json()}
        part = self.folder / f"{STATE}.new"
        part.write_text(json.dumps(state))
        part.replace(self.folder / STATE)
        self.noted = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.note()
        except OSError:
            if kind is None:
                raise  # else the disk is full, which is being said already, and the last note still holds
        finally:
            close_quietly(self.stack, quiet=kind is not None)

    @staticmethod
    def plan_of(folder: Path) -> dict[str, Any] | None:
        """The plan of unfinished work, or None."""
        state = read_state(folder)
        return state["plan"] if state else None

    @staticmethod
    def result(folder: Path) -> tuple[Moments, np.ndarray]:
        """The moments of the genes and the norms of all rows."""
        state = read_state(folder)
        if state is None:
            raise InputError(f"{folder} holds no unfinished work", expected="an extraction in progress")
        return Moments.from_json(state["moments"]), np.fromfile(folder / NORMS, dtype=np.float32)

    @staticmethod
    def forget(folder: Path) -> None:
        """Remove the notes of a finished work."""
        for name in (STATE, NORMS):
            (folder / name).unlink(missing_ok=True)


def reserve(path: Path, size: int) -> None:
    """Ask for the whole file at once: a disk that is too small says so now, and writing is twice as fast."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with open(path, "r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, size)


def read_state(folder: Path) -> dict[str, Any] | None:
    """How far an earlier run came; None where there was none, or where its note or its rows are not whole."""
    path = folder / STATE
    try:
        state = json.loads(path.read_text())
        whole = (folder / NORMS).stat().st_size >= 4 * state["rows"] and (folder / MATRIX).is_file()
    except (OSError, ValueError, KeyError):
        return None
    return state if whole else None


def close_quietly(files: ExitStack, *, quiet: bool) -> None:
    """Close files, whose last bytes may not fit on a full disk."""
    try:
        files.close()
    except OSError:
        if not quiet:
            raise
