"""GCT text: what is read, and what is refused with which reason."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from perturbgen.core.errors import InputError
from perturbgen.l1000 import GctxFile

GCT13 = """#1.3
3\t2\t1\t2
id\tsymbol\ts1\ts2
dose\tna\t0.5\t-666
plate\tna\t1E10\t2E10
g1\tTP53\t1\t2
g2\t-666\t3.5\tNaN
g3\tCD69\t\t#N/A
"""
GCT12 = "#1.2\t\t\t\n2\t2\t\t\nName\tDescription\ta\tb\ng1\tone\t1\t2\ng2\ttwo\t3\t4\t\t\n"


def write(tmp_path: Path, text: str, name: str = "a.gct") -> Path:
    """A text file."""
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    return tmp_path / name


def test_version_1_3(tmp_path: Path) -> None:
    file = GctxFile(write(tmp_path, GCT13))
    assert file.shape == (2, 3)
    np.testing.assert_array_equal(file.read(), [[1, 3.5, np.nan], [2, np.nan, np.nan]])
    assert file.var["symbol"].tolist() == ["TP53", None, "CD69"]
    np.testing.assert_array_equal(file.obs["dose"], [0.5, np.nan])
    assert file.obs["plate"].tolist() == ["1E10", "2E10"], "a plate is no power of ten"
    np.testing.assert_array_equal(
        file.read(genes=["g3", "g1", "g1"], samples=["s2"]), [[np.nan, 2, 2]]
    )


def test_version_1_2_with_the_blank_cells_of_a_spreadsheet(tmp_path: Path) -> None:
    file = GctxFile(write(tmp_path, GCT12))
    assert file.format == "gct 1.2"
    np.testing.assert_array_equal(file.read(), [[1, 3], [2, 4]])
    assert file.var["Description"].tolist() == ["one", "two"]


def test_gzipped_text_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.gct.gz"
    path.write_bytes(gzip.compress(GCT13.replace("\n", "\r\n").encode()))
    assert GctxFile(path).read(genes=["g1"]).tolist() == [[1.0], [2.0]]


def test_latin_1_text(tmp_path: Path) -> None:
    file = GctxFile(write(tmp_path, GCT13.replace("dose\tna\t0.5", "dose\tna\t10 \u00b5M")))
    assert file.obs["dose"].tolist() == ["10 \u00b5M", None]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("g3\tCD69\t\t#N/A\n", "", "8 lines in all; the file holds 7"),
        ("3.5\tNaN", "3.5", "line 7 has 3 cells, the header says 4"),
        ("3.5", "three", "gene 'g2' has 'three' in sample 's1'"),
        ("3\t2\t1\t2", "3\t2\tx\t2", "line 2 is"),
        ("3\t2\t1\t2", "3\t2", "line 2 is"),
        ("id\tsymbol\ts1\ts2", "id\tsymbol\ts1", "3 column names, but line 2 promises 4"),
        ("#1.3", "#1.9", "begins with '#1.9'"),
    ],
)
def test_broken_text_is_refused_with_the_place(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    path = write(tmp_path, GCT13.replace(old, new))
    with pytest.raises(InputError, match="(?s)" + says.replace("'", ".")):
        GctxFile(path).read()


def test_a_broken_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gct.gz"
    path.write_bytes(gzip.compress((GCT13 * 200).encode())[:80])
    with pytest.raises(InputError, match="damaged"):
        GctxFile(path).read()
