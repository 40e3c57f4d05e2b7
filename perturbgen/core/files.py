"""Reading what must exist, and writing so that a half-written file never bears the final name."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perturbgen.core.errors import InputError, StorageError, shorten


def require_file(path: str | Path, what: str = "file") -> Path:
    """The path, if it is a readable, non-empty file."""
    path = Path(path)
    if not path.exists():
        # What lies beside it shows a misspelt name.
        beside = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        fix = (
            f"the folder holds {shorten(beside)}"
            if beside
            else f"the folder {path.parent} does not exist or is empty"
        )
        raise InputError(f"no {what} at {path}", expected="an existing file", fix=fix)
    if path.is_dir():
        raise InputError(f"{path} is a folder", expected=f"a {what}")
    if path.stat().st_size == 0:
        raise InputError(
            f"{path} is empty (0 bytes)",
            expected=f"a {what}",
            cause="a download or a copy that broke off",
        )
    if not os.access(path, os.R_OK):
        raise InputError(
            f"{path} may not be read", expected=f"a {what}", fix="ask its owner, or chmod +r"
        )
    return path


def check_output(path: str | Path, *suffixes: str, option: str = "--out") -> Path:
    """The path, if a file of such an ending may be written there; asked before any work is done."""
    path = Path(path)
    if path.suffix not in suffixes:
        article = "an" if suffixes[0] == ".h5ad" else "a"
        raise InputError(
            f"{option} {path} is not {article} {' or '.join(suffixes)} file",
            expected=f"a name that ends in {' or '.join(suffixes)}",
            fix=f"{option} {path.with_suffix(suffixes[0])}" if path.name else None,
        )
    if path.is_dir():
        raise InputError(
            f"{path} is a folder", expected="a file to write", fix="choose another name"
        )
    require_writable(path)
    return path


def require_writable(path: str | Path) -> None:
    """What is above ``path`` is a folder that one may write to, as far as it exists."""
    above = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(
            f"cannot write {path}: {above} is a file",
            expected="a folder",
            fix="write somewhere else",
        )
    if not os.access(above, os.W_OK):
        raise StorageError(
            f"cannot write {path}: writing to {above} is not permitted", fix="write somewhere else"
        )


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
        raise StorageError(
            f"cannot write {path}: {what}", fix="free some space, or write somewhere else"
        ) from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes the final name only when the block succeeds.

    A file never takes the place of a folder.
    """
    final = Path(path)
    # The suffix stays the last one (counts.part.h5ad), since many writers look at it.
    part = final.with_name(f"{final.stem}.part{final.suffix}")
    with disk_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        remove(part)
        try:
            yield part
            if final.is_dir():
                if not part.is_dir():
                    raise InputError(
                        f"{final} is a folder",
                        expected="a file to write",
                        fix="choose another name",
                    )
                remove(final)
            part.replace(final)
        except BaseException:  # Ctrl-C, too, leaves nothing half-written
            remove(part)
            raise


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def slug(text: str) -> str:
    """Text fit for a file name, however long it is and whatever script it is in."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:80].strip("-") or "run"
