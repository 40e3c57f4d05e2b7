"""Reading what must exist, and writing so that a half-written file never bears the final name."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from perturbgen.core.errors import InputError, StorageError, shorten

BROKEN: Final = "a download or a copy that broke off"
_ELSEWHERE: Final = "write somewhere else"

_PART: Final = ".part"  # how the name of a folder ends that holds what is being written
_BEFORE: Final = "before"  # in that folder, the folder that is being replaced
LOCK: Final = ".lock"
_YOUNG: Final = 60.0  # seconds


def require_file(path: str | Path, what: str = "file") -> Path:
    """The path, if it is a readable, non-empty file."""
    path = Path(path)
    if not path.exists():
        # What lies beside it shows a misspelt name.
        beside = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        empty = f"the folder {path.parent} does not exist or is empty"
        fix = f"the folder holds {shorten(beside)}" if beside else empty
        raise InputError(f"no {what} at {path}", expected="an existing file", fix=fix)
    wanted = f"a {what}"
    if path.is_dir():
        raise InputError(f"{path} is a folder", expected=wanted)
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes)", expected=wanted, cause=BROKEN)
    if not os.access(path, os.R_OK):
        fix = "ask its owner, or chmod +r"
        raise InputError(f"{path} may not be read", expected=wanted, fix=fix)
    return path


def read_json(path: str | Path, what: str) -> Any:
    """What a JSON file holds; one that is cut or of another kind is named."""
    try:
        return json.loads(require_file(path, what).read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of bytes that are no text
        raise InputError(
            f"{path} is not a whole {what}: {error}", expected="JSON", cause=BROKEN
        ) from None


def check_output(path: str | Path, *suffixes: str, option: str = "--out") -> Path:
    """The path, if a file of such an ending may be written there; asked before any work is done."""
    path = Path(path)
    if path.suffix not in suffixes:
        article, ending = "an" if suffixes[0] == ".h5ad" else "a", " or ".join(suffixes)
        raise InputError(
            f"{option} {path} is not {article} {ending} file",
            expected=f"a name that ends in {ending}",
            fix=f"{option} {path.with_suffix(suffixes[0])}" if path.name else None,
        )
    if path.is_dir():
        raise _is_a_folder(path)
    _refuse_input(path, option=option)
    require_writable(path)
    return path


def _is_a_folder(path: Path) -> InputError:
    return InputError(f"{path} is a folder", expected="a file to write", fix="choose another name")


def require_writable(path: str | Path) -> None:
    """What is above ``path`` is a folder that one may write to, as far as it exists."""
    above = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if not above.is_dir():
        what = f"cannot write {path}: {above} is a file"
        raise InputError(what, expected="a folder", fix=_ELSEWHERE)
    if not os.access(above, os.W_OK):
        what = f"cannot write {path}: writing to {above} is not permitted"
        raise StorageError(what, fix=_ELSEWHERE)


def require_folder(path: str | Path, what: str = "folder") -> Path:
    """The path, if it is a folder."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"no {what} at {path}", expected="an existing folder")
    return path


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into an error that says so."""
    try:
        yield
    except OSError as error:
        # HDF5 wraps the system's error and keeps its words alone.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        if not full and error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            raise
        what = "no space left on the disk" if full else "writing is not permitted"
        fix = f"free some space, or {_ELSEWHERE}"
        raise StorageError(f"cannot write {path}: {what}", fix=fix) from error


_inputs: ContextVar[tuple[Path, ...]] = ContextVar("inputs", default=())


@contextmanager
def protected(inputs: Iterable[str | Path]) -> Iterator[None]:
    """Within the block, nothing writes over one of these files and folders, however it is spelt."""
    token = _inputs.set(tuple(Path(path) for path in inputs))
    try:
        yield
    finally:
        _inputs.reset(token)


def _refuse_input(path: Path, *, option: str = "") -> None:
    """An output that is an input would destroy it; a folder that is replaced, all that it holds."""
    real = Path(os.path.realpath(path))
    for given in _inputs.get():
        # samefile sees hard links, too, and names that differ in case alone on some disks
        same = Path(os.path.realpath(given)) == real
        if same or (given.exists() and path.exists() and given.samefile(path)):
            raise InputError(
                f"{option} {path} is an input of this command".lstrip(),
                expected="another file to write",
                cause="a name that was completed, or a link to the same file",
                fix="choose another name",
            )


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A path on the same disk to write to; it takes the final name only when the block succeeds.

    A file never takes the place of a folder, and nothing that of an input (see :func:`protected`).
    """
    final = Path(path)
    _refuse_input(final)
    require_writable(final)
    with disk_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        with _own_folder(final) as folder:
            part = folder / final.name
            yield part
            if final.is_dir() and not part.is_dir():
                raise _is_a_folder(final)
            if final.is_dir():
                _replace_folder(part, final, folder / _BEFORE)
            else:
                part.replace(final)


@contextmanager
def staged(folder: str | Path) -> Iterator[Path]:
    """A folder to write several files to; they come to ``folder`` together, or none of them."""
    final = Path(folder)
    require_writable(final / "files")
    with disk_errors(final):
        final.mkdir(parents=True, exist_ok=True)
        with _own_folder(final / "files") as part:
            yield part
            written = sorted(path for path in part.iterdir() if path.name[0] != ".")
            for path in written:
                _refuse_input(final / path.name)
            for path in written:
                path.replace(final / path.name)


def _replace_folder(part: Path, final: Path, before: Path) -> None:
    """Put a folder at the place of another, which goes only once the new one is there."""
    for given in _inputs.get():
        if Path(os.path.realpath(given)).is_relative_to(os.path.realpath(final)):
            raise InputError(
                f"{final} holds {given}, an input of this command",
                expected="a folder to write that holds no input",
                fix="choose another name",
            )
    final.rename(before)
    try:
        part.rename(final)
    except BaseException:
        before.rename(final)
        raise


@contextmanager
def _own_folder(final: Path) -> Iterator[Path]:
    """A folder beside ``final`` that no other process writes to and that is gone afterwards.

    A fixed name could be a user's own file, and two processes would write to one.
    """
    mark = f".{hashlib.sha256(final.name.encode(errors='surrogateescape')).hexdigest()[:8]}-"
    _sweep(final, mark)
    with TemporaryDirectory(
        prefix=mark, suffix=_PART, dir=final.parent, ignore_cleanup_errors=True
    ) as name:
        handle = os.open(name, os.O_RDONLY)
        try:
            # held as long as the process lives: what is not held is what a killed process left
            _lock(handle)
            yield Path(name)
        finally:
            os.close(handle)


def _sweep(final: Path, mark: str) -> None:
    """Remove what killed processes left of earlier attempts at the same file."""
    for left in final.parent.glob(f"{mark}*{_PART}"):
        with suppress(OSError):
            # a young one may be of a process that is about to lock it
            if time.time() - left.stat().st_mtime < _YOUNG:
                continue
            handle = os.open(left, os.O_RDONLY)
            try:
                if _lock(handle):
                    # killed between two renames: the folder that was to be replaced comes back
                    if (left / _BEFORE).exists() and not final.exists():
                        (left / _BEFORE).rename(final)
                    shutil.rmtree(left)
            finally:
                os.close(handle)


def _lock(handle: int) -> bool:
    """Hold an open file or folder until it is closed; False where another process holds it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a network disk without locks, where nobody may assume anything
        return False
    return True


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Hold a folder that only one process may write to; a second one is told who holds it.

    The system frees the lock when its process ends, in whatever way it ends.
    """
    path = Path(folder) / LOCK
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _open_lock(path)
    try:
        about = f"process {os.getpid()} on {platform.node()}: {' '.join(sys.argv)}"
        os.ftruncate(handle, 0)
        os.pwrite(handle, about.encode(errors="surrogateescape"), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _open_lock(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 4096, 0).decode(errors="replace") or "another process"
            os.close(handle)
            raise StorageError(
                f"{path.parent} is being written by {holder}",
                expected="one process at a time",
                fix="wait until it has ended, or choose another folder",
            ) from None
        except OSError as error:
            # a disk without locks: better unguarded than no work at all
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                os.close(handle)
                raise
            return handle
        # whoever held it before may have removed the file while we waited for nothing
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def slug(text: str) -> str:
    """Text fit for a file name, however long it is and whatever script it is in."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:80].strip("-") or "run"
