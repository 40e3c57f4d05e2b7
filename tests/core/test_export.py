"""What people open in a spreadsheet, and what a changed byte does to a parquet file."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import ConfigError, InputError
from perturbgen.core.export import write_table
from perturbgen.core.tables import read_frame

NAMES = ["=cmd|' /C calc'!A0", "@SUM(A1)", "+a", "-b", "\tc", "\rd"]
HARMLESS = ["DMSO", "-666", "+1.5e3", "-", "-inf", "a=b", ""]


@pytest.mark.parametrize("kind", ["object", "category"])
def test_no_field_of_a_csv_is_a_formula_but_numbers_stay(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [*NAMES, *HARMLESS]
    table = pd.DataFrame({"=name": pd.Series(names).astype(kind), "value": -1.5})
    read = pd.read_csv(write_table(table, tmp_path / "t.csv"), dtype=str, keep_default_na=False)
    assert read["'=name"].tolist() == [*(f"'{name}" for name in NAMES), *HARMLESS]
    assert set(read["value"]) == {"-1.5"}
    assert "would compute 7 names, such as '=name'" in caplog.text


def test_labels_of_rows_are_fields_too(tmp_path: Path) -> None:
    table = pd.DataFrame({"value": [1]}, pd.Index(["=x"], name="name"))
    assert write_table(table, tmp_path / "t.csv", index=True).read_text() == "name,value\n'=x,1\n"


def test_names_are_written_as_they_are_where_that_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = pd.DataFrame({"name": ["=x"]})
    monkeypatch.setenv("PERTURBGEN_CSV_NAMES", "raw")
    assert write_table(table, tmp_path / "t.csv").read_text() == "name\n=x\n"
    assert not caplog.text
    monkeypatch.setenv("PERTURBGEN_CSV_NAMES", "rwa")
    with pytest.raises(ConfigError, match="did you mean 'raw'"):
        write_table(table, tmp_path / "t.csv")


def test_a_changed_byte_of_a_page_is_no_other_number(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=100)
    table = pd.DataFrame({"a": values, "b": ["x"] * 100})
    path = write_table(table, tmp_path / "t.parquet")
    content = bytearray(path.read_bytes())
    content[content.index(values[50:51].tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="CRC checksum"):
        read_frame(path)


def test_a_parquet_that_lacks_bytes_is_told_before_its_pages_are_read(tmp_path: Path) -> None:
    path = write_table(pd.DataFrame({"a": np.arange(100.0)}), tmp_path / "t.parquet")
    content = path.read_bytes()
    path.write_bytes(content[:200] + content[202:])
    # Arrow may take what stands there for the size of a page, and gigabytes of memory
    with pytest.raises(InputError, match="its last column ends at byte"):
        read_frame(path)
