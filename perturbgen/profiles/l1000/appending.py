"""Bytes appended to a large file, past the page cache where the system can.

A result of gigabytes would fill the page cache with pages that nobody reads soon, and on a virtual machine every page
that is touched for the first time costs more than its writing. Here whole blocks go from one reused buffer to the disk.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Any, Final

BLOCK: Final = 4 << 20  # bytes handed over at once; a multiple of every disk's sectors


class AppendedFile:
    """A file that is continued from byte ``start``; what lies beyond is overwritten.

    ``flush`` brings everything to the file; before that up to a block is in memory only.
    """

    def __init__(self, path: Path, *, start: int = 0) -> None:
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.direct = open_direct(path)
        self.buffer = mmap.mmap(-1, BLOCK)  # begins on a page, as direct writes must
        self.base = start // BLOCK * BLOCK
        self.filled = start - self.base
        found = os.pread(self.handle, self.filled, self.base)
        if len(found) < self.filled:
            os.close(self.handle)
            raise ValueError(f"{path} ends before byte {start:,}")
        self.buffer[: self.filled] = found

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.base + self.filled

    def write(self, data: Any) -> None:
        """Append the bytes of a buffer."""
        view = memoryview(data).cast("B")
        while len(view):
            part = view[: BLOCK - self.filled]
            self.buffer[self.filled : self.filled + len(part)] = part
            self.filled += len(part)
            view = view[len(part) :]
            if self.filled == BLOCK:
                self.put_block()

    def put_block(self) -> None:
        """The full buffer, directly; as usual where the file system refuses that after all."""
        if self.direct is not None:
            try:
                put(self.direct, self.buffer, BLOCK, self.base)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self.stop_direct()
        if self.direct is None:
            put(self.handle, self.buffer, BLOCK, self.base)
        self.base, self.filled = self.base + BLOCK, 0

    def flush(self) -> None:
        """Everything so far is in the file."""
        put(self.handle, self.buffer, self.filled, self.base)

    def stop_direct(self) -> None:
        """Write through the page cache from now on."""
        if self.direct is not None:
            os.close(self.direct)
            self.direct = None

    def close(self) -> None:
        """Let go of the file; does not flush."""
        self.stop_direct()
        os.close(self.handle)
        self.buffer.close()


def open_direct(path: Path) -> int | None:
    """A handle for writing past the page cache; None where the system or the file system has none."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    except (AttributeError, OSError):
        return None


def put(handle: int, buffer: mmap.mmap, size: int, place: int) -> None:
    """The first bytes of a buffer to a place of a file."""
    with memoryview(buffer) as view:
        done = 0
        while done < size:
            done += os.pwrite(handle, view[done:size], place + done)
