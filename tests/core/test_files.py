import errno
from pathlib import Path

import pytest

from perturbgen.core.errors import InputError, StorageError
from perturbgen.core.files import atomic_path, require_file, require_folder


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
