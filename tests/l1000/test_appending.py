"""Appending past the page cache writes what a plain file would, from any byte on."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from perturbgen.l1000 import growing as appending
from perturbgen.l1000.growing import _AppendedFile


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "_BLOCK", 1 << 14)


def pieces(seed: int = 0, count: int = 60) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [rng.bytes(int(size)) for size in rng.integers(0, 5000, count)]


@pytest.mark.parametrize("direct", [True, False])
def test_pieces_of_any_size_end_up_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    if not direct:
        monkeypatch.setattr(appending, "_open_direct", lambda _: None)
    file = _AppendedFile(tmp_path / "a")
    for i, piece in enumerate(pieces()):
        file.write(piece)
        if i % 7 == 0:
            file.flush()
            assert (tmp_path / "a").read_bytes() == b"".join(pieces()[: i + 1])
    file.flush()
    file.close()
    assert (tmp_path / "a").read_bytes() == b"".join(pieces())


@pytest.mark.parametrize("start", [0, 1, 4096, 16383, 16384, 40_000])
def test_it_goes_on_from_any_byte_and_overwrites_what_is_beyond(tmp_path: Path, start: int) -> None:
    before, after = np.random.default_rng(1).bytes(70_000), np.random.default_rng(2).bytes(50_000)
    (tmp_path / "a").write_bytes(before)
    file = _AppendedFile(tmp_path / "a", start=start)
    assert file.size == start
    file.write(after)
    file.flush()
    file.close()
    assert (tmp_path / "a").read_bytes() == before[:start] + after + before[start + len(after) :]


def test_a_file_that_is_too_short_to_go_on_with_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises(ValueError, match="ends before byte 4"):
        _AppendedFile(tmp_path / "a", start=4)


def test_a_file_system_that_refuses_direct_writes_gets_usual_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _AppendedFile(tmp_path / "a")
    file.direct = file.direct if file.direct is not None else os.open(tmp_path / "a", os.O_WRONLY)
    refused, put = file.direct, appending._put

    def refusing(handle: int, *rest: object) -> None:
        if handle == refused:
            raise OSError(errno.EINVAL, "Invalid argument")
        put(handle, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(appending, "_put", refusing)
    for piece in pieces():
        file.write(piece)
    file.flush()
    assert file.direct is None
    file.close()
    assert (tmp_path / "a").read_bytes() == b"".join(pieces())


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = _AppendedFile(tmp_path / "a")
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        file.write(bytes(20_000))
    file.close()
