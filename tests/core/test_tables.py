"""Tables that shift, lie or explode are refused, and say why."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest

from perturbgen.core import tables
from perturbgen.core.errors import InputError, SchemaError
from perturbgen.core.tables import conditions_of, read_frame, require_values, with_compound


@pytest.mark.parametrize(
    "rows", ["0,B,acid, formic\n1,B,x\n", "0,B,x,\n", "0,B,a,b,c\n", "0,B,x\n1,B,acid, formic\n"]
)
def test_a_row_with_a_field_more_never_shifts_the_others(tmp_path: Path, rows: str) -> None:
    path = tmp_path / "id_map.csv"
    path.write_text("id,cell_type,sm_name\n" + rows)
    with pytest.raises(InputError, match=r"more fields than the header|Expected 3 fields"):
        read_frame(path)


@pytest.mark.parametrize("cut", ["7", "7,1.5", "7,1.5\r8"])
def test_a_table_that_ends_within_a_row_is_refused(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,x,y\n1,.5,.25\n" + cut)
    with pytest.raises(InputError, match=r"ends within a row: its last one has [12] of 3 fields"):
        read_frame(path)
    # whoever leaves out trailing commas, as Excel does, ends the line
    path.write_text("id,x,y\n1,.5,.25\n" + cut + "\n")
    assert read_frame(path)["y"].isna().any()


@pytest.mark.parametrize(
    "end", ['8,1.5,""', "8,,", "8,1.5,2", '"a\nb",1,', '"a,b\nc"', "", "8,1.5,2\r", "  "]
)
def test_a_last_row_without_an_end_of_line_may_be_whole(tmp_path: Path, end: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,x,y\n1,.5,.25\n" + end)
    assert read_frame(path)["x"].iloc[0] == 0.5


def test_the_last_row_is_found_in_a_table_of_many_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    start = "id,x,y\n1,2,3\n" + "a" * 3_000_000
    path.write_text(start + ",2,3")
    assert read_frame(path)["y"].tolist() == [3, 3]
    path.write_text(start + ",2")
    with pytest.raises(InputError, match="has 2 of 3 fields"):
        read_frame(path)


def test_zeroed_bytes_in_a_table_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,x\n1,2\0\0\n2,3\n")
    with pytest.raises(InputError, match="NUL bytes"):
        read_frame(path)


def test_a_quoted_comma_is_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "id_map.csv"
    path.write_text('id,cell_type,sm_name\n0,B,"acid, formic"\n')
    assert read_frame(path)["sm_name"].tolist() == ["acid, formic"]


def test_a_gzip_file_that_explodes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + b"0,0\n" * 1_000_000))
    assert len(read_frame(path)) == 1_000_000  # below the size that is always read
    monkeypatch.setattr(tables, "_UNPACKED", 1 << 20)
    with pytest.raises(InputError, match="unpacks to more than 200 times its size"):
        read_frame(path)


def test_two_names_of_a_compound_are_one_only_where_they_agree() -> None:
    table = pd.DataFrame({"sm_name": ["a", "b"], "compound": ["a", "b"]})
    assert list(with_compound(table, "t")) == ["compound"]
    assert list(with_compound(table[["sm_name"]], "t")) == ["compound"]
    assert list(with_compound(table[["compound"]], "t")) == ["compound"]
    with pytest.raises(SchemaError, match="compound 'c' and sm_name 'b' in row 1"):
        with_compound(table.assign(compound=["a", "c"]), "t")


@pytest.mark.parametrize("blank", [None, float("nan"), ""])
def test_a_condition_without_a_compound_is_refused(blank: object) -> None:
    table = pd.DataFrame({"cell_type": ["B", "T"], "compound": ["x", blank]})
    with pytest.raises(SchemaError, match="'compound' is missing in 1 rows"):
        require_values(table, ["compound"], "cell_type", "t")
    with pytest.raises(SchemaError, match=r"de\.parquet: 'compound' is missing"):
        conditions_of(table, unique_in="de.parquet")
