import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perturbgen.core.errors import InputError, StorageError
from perturbgen.core.files import (
    atomic_path,
    check_output,
    only_writer,
    protected,
    require_file,
    require_folder,
)


def test_a_finished_file_takes_the_final_name(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "deep" / "a.csv") as part:
        assert part.suffix == ".csv"
        part.write_text("x")
        assert not (tmp_path / "deep" / "a.csv").exists()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.csv"]


def test_a_file_never_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").touch()
    with pytest.raises(InputError, match="is a folder"), atomic_path(tmp_path / "data") as part:
        part.write_text("x")
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == [
        "data",
        "data/precious",
    ]


def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    final = tmp_path / "a.csv"
    final.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(final) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.csv": "old"}


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with atomic_path(tmp_path / "run") as part:
            part.mkdir()
            (part / name).touch()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["second"]


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "no space left"), (errno.EACCES, "not permitted")]
)
def test_a_full_disk_is_said_plainly_and_nothing_is_left(
    tmp_path: Path, code: int, words: str
) -> None:
    with pytest.raises(StorageError, match=words), atomic_path(tmp_path / "a.csv") as part:
        part.write_text("half")
        raise OSError(code, "boom")
    assert list(tmp_path.iterdir()) == []


def test_other_os_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="boom"), atomic_path(tmp_path / "a.csv"):
        raise OSError(errno.EIO, "boom")


def test_a_missing_file_shows_what_is_beside_it(tmp_path: Path) -> None:
    (tmp_path / "counts.h5ad").write_text("x")
    with pytest.raises(InputError, match=r"counts\.h5ad"):
        require_file(tmp_path / "count.h5ad")


def test_an_empty_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="0 bytes"):
        require_file(tmp_path / "empty")
    with pytest.raises(InputError, match="is a folder"):
        require_file(tmp_path)
    with pytest.raises(InputError, match="no folder at"):
        require_folder(tmp_path / "empty")


def test_a_users_own_part_file_is_left_alone(tmp_path: Path) -> None:
    mine = [tmp_path / name for name in ("a.part.csv", "a.csv.part", ".part")]
    for path in mine:
        path.write_text("mine")
    with atomic_path(tmp_path / "a.csv") as part:
        part.write_text("x")
    assert [path.read_text() for path in mine] == ["mine"] * 3
    assert len(list(tmp_path.iterdir())) == 4


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.csv") as first, atomic_path(tmp_path / "a.csv") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a.csv").read_text() == "first"  # the last to finish
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    with atomic_path(tmp_path / f"{'n' * 251}.csv") as part:
        part.write_text("x")
    assert (tmp_path / f"{'n' * 251}.csv").exists()


WRITES = """
import sys, time
from perturbgen.core.files import atomic_path, only_writer
with {block} as part:
    {work}
    print("ready", flush=True)
    time.sleep(60)
"""


def started(block: str, work: str = "pass") -> "subprocess.Popen[str]":
    """A process that is in the block."""
    code = WRITES.format(block=block, work=work)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path) -> None:
    final = tmp_path / "a.csv"
    process = started(f"atomic_path({str(final)!r})", "part.write_text('half')")
    (left,) = tmp_path.iterdir()
    hour_ago = time.time() - 3600
    os.utime(left, (hour_ago, hour_ago))
    for alive in (True, False):
        if not alive:
            end(process)
        with atomic_path(final) as part:
            part.write_text("whole")
        # the folder of a process that is alive is its own, however old it is
        assert left.exists() == alive
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_a_folder_comes_back_that_a_killed_process_had_taken_away(tmp_path: Path) -> None:
    final = tmp_path / "run"
    final.mkdir()
    (final / "old").touch()
    code = f"""
import os, pathlib
from perturbgen.core.files import atomic_path
rename = pathlib.Path.rename
def dying(self, target):
    os._exit(9) if self.name == "run" and str(target) == {str(final)!r} else rename(self, target)
pathlib.Path.rename = dying
with atomic_path({str(final)!r}) as part:
    part.mkdir()
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    assert not final.exists()
    os.utime(left, (0, 0))
    with pytest.raises(KeyboardInterrupt), atomic_path(final):
        raise KeyboardInterrupt
    assert [path.name for path in final.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_second_writer_is_told_who_holds_a_folder(tmp_path: Path) -> None:
    process = started(f"only_writer({str(tmp_path / 'run')!r})")
    try:
        with (
            pytest.raises(StorageError, match=f"process {process.pid} on") as caught,
            only_writer(tmp_path / "run"),
        ):
            pass
        assert caught.value.exit_code == 1
    finally:
        end(process)
    with only_writer(tmp_path / "run"):  # a crash frees it
        pass
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("how", ["same", "dots", "symlink", "hard link", "linked folder"])
def test_an_input_is_never_written_over(tmp_path: Path, how: str) -> None:
    source = tmp_path / "data" / "counts.csv"
    source.parent.mkdir()
    source.write_text("precious")
    out = {
        "same": source,
        "dots": source.parent / ".." / "data" / "counts.csv",
        "symlink": tmp_path / "link.csv",
        "hard link": tmp_path / "hard.csv",
        "linked folder": tmp_path / "folder" / "counts.csv",
    }[how]
    if how == "symlink":
        out.symlink_to(source)
    elif how == "hard link":
        out.hardlink_to(source)
    elif how == "linked folder":
        out.parent.symlink_to(source.parent)
    with protected([source]):
        with pytest.raises(InputError, match="is an input of this command"):
            check_output(out, ".csv")
        with pytest.raises(InputError, match="is an input"), atomic_path(out) as part:
            part.write_text("x")
    assert source.read_text() == "precious"
    with atomic_path(out) as part:  # protected only while the command runs
        part.write_text("x")


def test_a_folder_with_an_input_in_it_is_not_replaced(tmp_path: Path) -> None:
    source = tmp_path / "data" / "counts.csv"
    source.parent.mkdir()
    source.write_text("precious")
    with (
        protected([source]),
        pytest.raises(InputError, match=r"counts\.csv, an input"),
        atomic_path(source.parent) as part,
    ):
        part.mkdir()
    assert source.read_text() == "precious"
