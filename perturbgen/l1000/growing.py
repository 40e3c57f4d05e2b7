"""A matrix on disk that grows row by row and survives an interruption.

With it grow the norms of its rows and the moments of its genes (Welford's update, Chan's merge).
"""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from perturbgen.core.errors import InputError
from perturbgen.core.files import LOCK, remove
from perturbgen.profiles.readers import MANIFEST, MATRIX

log = logging.getLogger(__name__)


@dataclass
class _Moments:
    """Counts, means and squared deviations of finite values (genes,); ``missing`` counts others."""

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray
    missing: np.ndarray

    @classmethod
    def empty(cls, genes: int) -> _Moments:
        """Before any block."""
        return cls(*np.zeros((4, genes)))

    def update(self, values: np.ndarray) -> None:
        """Add a block (samples, genes)."""
        # sums of a million rows lose their digits in single precision
        exact = values.astype(np.float64)
        total = exact.sum(axis=0)
        count = np.full(values.shape[1], float(len(values)))
        # the sum tells whether any value is missing; masks are made only then
        if not np.isfinite(total).all():
            finite = np.isfinite(exact)
            count = finite.sum(axis=0).astype(float)
            exact[~finite] = 0
            total = exact.sum(axis=0)
        mean = total / np.maximum(count, 1)
        exact -= mean
        # else a missing value would count as one that lies at 0
        if not (count == len(values)).all():
            exact[~finite] = 0
        squares = np.square(exact, out=exact).sum(axis=0)
        # Chan, Golub and LeVeque: M2 = M2a + M2b + d² na nb / n, d = mb - ma
        both = np.maximum(self.count + count, 1)
        gap = mean - self.mean
        self.squares = self.squares + squares + gap**2 * self.count * count / both
        self.mean = self.mean + gap * count / both
        self.count, self.missing = self.count + count, self.missing + (len(values) - count)

    @property
    def sd(self) -> np.ndarray:
        """Standard deviations (n - 1); NaN for a gene with fewer than two values."""
        freedom = np.where(self.count > 1, self.count - 1, np.nan)
        return np.sqrt(np.maximum(self.squares, 0) / freedom)

    def to_json(self) -> dict[str, list[float]]:
        """As lists, exactly."""
        return {name: values.tolist() for name, values in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> _Moments:
        """What :meth:`to_json` gave."""
        return cls(**{name: np.array(part, dtype=float) for name, part in values.items()})


_STATE: Final = "unfinished.json"
_NORMS: Final = "norms.f32"
_SECONDS: Final = 5.0  # between two notes of how far it came


class Growing:
    """Rows appended to ``profiles.npy`` of known final shape, with gene moments and row norms.

    Writes rather than a memory map, since a full disk must be an error that can be caught.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int], dtype: str, plan: dict[str, Any]
    ) -> None:
        self.folder, self.shape, self.dtype, self.plan = folder, shape, np.dtype(dtype), plan

    def __enter__(self) -> Growing:
        state = _read_state(self.folder)
        self.rows, self.moments = 0, _Moments.empty(self.shape[1])
        if state is not None:
            self.rows, self.moments = state["rows"], _Moments.from_json(state["moments"])
        path, row_bytes = self.folder / MATRIX, self.shape[1] * self.dtype.itemsize
        if state is None:
            remove(path)
            # makes the header, of the final shape; no value is written through the map
            np.lib.format.open_memmap(path, "w+", self.dtype, self.shape)
        with ExitStack() as stack:
            self.matrix = stack.enter_context(open(path, "r+b"))
            np.lib.format.read_magic(self.matrix)
            np.lib.format.read_array_header_1_0(self.matrix)
            start = self.matrix.tell()
            # a disk that is too small says so now, and writing is twice as fast
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(self.matrix.fileno(), 0, start + self.shape[0] * row_bytes)
            # rows that were written after the last note are written again
            self.matrix.seek(start + self.rows * row_bytes)
            self.norms = stack.enter_context(open(self.folder / _NORMS, "r+b" if state else "w+b"))
            self.norms.seek(self.rows * 4)
            self.stack = stack.pop_all()
        self.noted = time.monotonic()
        if state is None:
            self.note()  # at once: it tells this folder from one that is not ours
        return self

    def append(self, values: np.ndarray) -> None:
        """Add rows (samples, genes) of float32."""
        norms = np.sqrt(np.einsum("sg,sg->s", values, values))
        self.matrix.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self.norms.write(norms.astype(np.float32).tobytes())
        # after what may fail, or a resumed run would count these rows twice
        self.moments.update(values)
        self.rows += len(values)
        if time.monotonic() - self.noted > _SECONDS:
            self.note()

    def note(self) -> None:
        """Everything so far is handed over to the disk; only then is it said to be."""
        self.matrix.flush()
        self.norms.flush()
        state = {"rows": self.rows, "plan": self.plan, "moments": self.moments.to_json()}
        part = self.folder / f"{_STATE}.new"
        part.write_text(json.dumps(state))
        # renamed, since a stop in the middle of writing must leave the older note
        part.replace(self.folder / _STATE)
        self.noted = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # where the disk is full, that is being said already, and the last note still holds
        with nullcontext() if kind is None else suppress(OSError), self.stack:
            self.note()

    @staticmethod
    def owns(folder: Path) -> bool:
        """Whether a folder is empty, or holds work of ours."""
        if not folder.is_dir():
            return False
        names = {path.name for path in folder.iterdir()} - {LOCK}
        return not names or bool(names & {_STATE, MANIFEST})

    @staticmethod
    def start_anew(folder: Path, plan: dict[str, Any]) -> None:
        """Empty the folder if it holds unfinished work of another plan."""
        state = _read_state(folder)
        if state is None or state["plan"] == plan:
            return
        log.warning("%s holds unfinished work on other files or options; starting anew", folder)
        for path in folder.iterdir():
            if path.name != LOCK:
                remove(path)

    @staticmethod
    def result(folder: Path) -> tuple[_Moments, np.ndarray]:
        """The moments of the genes and the norms of all rows."""
        state = _read_state(folder)
        if state is None:
            raise InputError(
                f"{folder} holds no unfinished work", expected="an extraction in progress"
            )
        return _Moments.from_json(state["moments"]), np.fromfile(folder / _NORMS, dtype=np.float32)

    @staticmethod
    def forget(folder: Path) -> None:
        """Remove the notes of a finished work."""
        for name in (_STATE, _NORMS):
            (folder / name).unlink(missing_ok=True)


def _read_state(folder: Path) -> dict[str, Any] | None:
    """How far an earlier run came; None where there was none, or its note or rows are broken."""
    try:
        state = json.loads((folder / _STATE).read_text())
        # longer is no fault: rows follow the note until the next one
        norms = (folder / _NORMS).stat().st_size
        whole = norms >= 4 * state["rows"] and (folder / MATRIX).is_file()
    except (OSError, ValueError, KeyError):
        return None
    return state if whole else None
