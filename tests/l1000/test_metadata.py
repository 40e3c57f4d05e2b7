"""Tables of GEO and of LINCS2020 in one schema."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.l1000 import unify
from perturbgen.l1000.metadata import _from_ids, _read_arrow, read_metadata
from perturbgen.l1000.schema import _ROLES, _dose, _hours, core_id, level_of

from .conftest import INST


def roles(codes: list[str | None]) -> list[str | None]:
    """The roles of perturbation types."""
    found = unify(pd.DataFrame({"pert_type": codes}))
    assert found["control"].tolist() == found["role"].eq("control").tolist()
    return found["role"].astype(object).where(found["role"].notna(), None).tolist()


TO_2020 = {"inst_id": "sample_id", "pert_iname": "cmap_name", "cell_id": "cell_iname"}


@pytest.mark.parametrize(
    ("code", "control"),
    [
        *((code, role == "control") for code, role in _ROLES.items()),
        ("TRT_CP", False),
        ("ctl_untrt.cns ", True),
        ("CTL_VEHICLE", True),
        ("ctl_new", True),
        ("trt_new", False),
    ],
)
def test_controls_follow_the_table_and_not_the_prefix(code: str, control: bool) -> None:
    assert roles([code]) == ["control"] if control else roles([code]) != ["control"]


def test_the_consensus_of_a_seed_is_a_control_and_a_positive_control_is_neither() -> None:
    assert roles(["trt_sh.css", "trt_sh.cgs", "trt_poscon"]) == [
        "control",
        "treatment",
        "positive control",
    ]


def test_an_unknown_type_is_said_to_be_unknown(caplog: pytest.LogCaptureFixture) -> None:
    assert roles(["trt_new", "ctl_new", None]) == ["treatment", "control", None]
    assert "'ctl_new', 'trt_new'" in caplog.text


def test_one_schema_from_geo() -> None:
    table = unify(pd.DataFrame(INST).set_index("inst_id"))
    assert table["perturbagen"].tolist() == [
        "DMSO",
        "BRD-K12345678",
        "BRD-K12345678",
        "BRD-A00000001",
        "TRCN0000001",
    ]
    np.testing.assert_array_equal(table["dose"], [np.nan, 10, 0.5, 3.33, np.nan])
    assert table["dose_unit"].tolist()[1:4] == ["uM"] * 3
    assert table["time"].tolist() == [24, 24, 24, 24, 96]
    assert table["role"].tolist() == [
        "control",
        "treatment",
        "treatment",
        "positive control",
        "treatment",
    ]
    assert table["control"].tolist() == [True, False, False, False, False]
    assert table["pert_type"].tolist()[2] == "trt_cp"
    assert table.index.tolist() == INST["inst_id"]


def test_lincs2020_and_the_older_names_of_plates_give_the_same() -> None:
    geo = unify(pd.DataFrame(INST).drop(columns="inst_id"))
    new = pd.DataFrame(INST).rename(columns=TO_2020).drop(columns="sample_id")
    pd.testing.assert_frame_equal(unify(new), geo)
    old = (
        pd.DataFrame(INST)
        .rename(columns={"rna_plate": "det_plate", "rna_well": "det_well"})
        .drop(columns="inst_id")
    )
    pd.testing.assert_frame_equal(unify(old), geo)


def test_a_missing_dose_comes_from_the_text() -> None:
    table = pd.DataFrame(
        {
            "pert_id": ["a"] * 4,
            "pert_idose": ["10 \u00b5M", "500 nM", "-666", "1 ng/mL"],
            "pert_itime": "6 h",
        }
    )
    found = unify(table)
    np.testing.assert_array_equal(found["dose"], [10, 0.5, np.nan, 1])
    assert (
        found["dose_unit"].tolist() == ["uM", "uM", np.nan, "ng/mL"] or found["dose_unit"].isna()[2]
    )
    assert found["time"].tolist() == [6] * 4
    assert found["role"].isna().all()


@pytest.mark.parametrize(
    ("value", "unit", "text", "dose"),
    [
        ("10.0", "um", None, (10.0, "uM")),
        (10, "uM", None, (10.0, "uM")),
        ("500", "nM", None, (0.5, "uM")),
        ("1", "mM", None, (1000.0, "uM")),
        ("3", "\u03bcM", None, (3.0, "uM")),
        ("3", "<b5>M", None, (3.0, "uM")),
        ("3", "\u00c2\u00b5M", None, (3.0, "uM")),
        ("2", "uL", None, (2.0, "uL")),
        ("1|1", "um|um", None, (1.0, "uM")),
    ],
)
def test_doses(value: object, unit: object, text: object, dose: tuple[float, str]) -> None:
    assert _dose(value, unit, text) == dose


def test_doses_of_replicates_that_differ_and_times_of_unknown_units_are_missing() -> None:
    assert np.isnan(_dose("1|2", "um", None)[0])
    assert np.isnan(_dose("-666", "um", "-666")[0])
    assert _hours(120.0, "min", None) == (2,)
    assert _hours(24.0, None, None) == (24,)
    assert np.isnan(_hours(1.0, "weeks", None)[0])


@pytest.mark.parametrize(
    ("pert_id", "core"),
    [
        ("BRD-K12345678-001-02-3", "BRD-K12345678"),
        ("BRD-K12345678", "BRD-K12345678"),
        ("brd-k12345678-300-11-2", "BRD-K12345678"),
        ("TRCN0000009476", "TRCN0000009476"),
        ("DMSO", "DMSO"),
        (None, None),
        (float("nan"), None),
    ],
)
def test_canonical_ids(pert_id: object, core: str | None) -> None:
    assert core_id(pert_id) == core


def test_levels_are_told_by_the_ids() -> None:
    assert level_of(["LJP005_A375_24H_X1_B19:A03"] * 3) == "samples"
    assert (
        level_of(["CPC006_A375_6H:BRD-K56343971-001-02-3:10", "CGS001_HEPG2_96H:MECP2:1.5"])
        == "signatures"
    )
    assert (
        level_of(["LJP005_A375_24H:DMSO:-666", "CGS001_HEPG2_96H:TRCN0000009476:-666"])
        == "signatures"
    )
    assert level_of(["a", "b"]) == "unknown"


def test_ids_say_where_a_sample_was() -> None:
    found = _from_ids(["LJP005_A375_24H_X1_B19:A03", "REP.A001_MCF7_6H_X2.A2_B22:P24", "nonsense"])
    assert found["plate"].dropna().tolist() == ["LJP005_A375_24H_X1", "REP.A001_MCF7_6H_X2.A2"]
    assert found["cell_line"].dropna().tolist() == ["A375", "MCF7"]
    assert found["time"].tolist()[:2] == [24, 6]
    assert found["well"].dropna().tolist() == ["A03", "P24"]
    assert found.iloc[2].drop("control").isna().all()


def test_tables_are_read_gzipped_in_latin_1_and_with_quotes(
    inst_info: Callable[..., Path], tmp_path: Path
) -> None:
    path = inst_info(encoding="latin-1")
    assert _read_arrow(path).to_pandas()["pert_dose_unit"].tolist()[3] == "\u00b5M"
    zipped = tmp_path / "t.txt.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    pd.testing.assert_frame_equal(_read_arrow(zipped).to_pandas(), _read_arrow(path).to_pandas())
    quoted = tmp_path / "genes.txt"
    quoted.write_text('gene_id\tgene_symbol\tnote\n1\tA1BG\t""\n2\tNAT2\t"a ""b"""\n')
    assert _read_arrow(quoted).to_pandas()["note"].tolist()[1] == 'a "b"'
    assert _read_arrow(quoted).to_pandas()["note"].isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\tb\n", "no rows"),
        ("inst_id\tpert_id\nx\ty\nz\n", "cannot be read as a tab-separated table"),
        ("inst_id\tpert_id\nx\ty\nx\tz\n", "1 ids occur more than once: 'x'"),
        ("pert_id\tmoa\nx\ty\n", "describes perturbagens, not samples"),
        ("gene\tvalue\nx\ty\n", "none of the id columns"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "t.txt"
    path.write_text(text)
    with pytest.raises((InputError, SchemaError), match=says):
        read_metadata(path)


def test_a_download_that_broke_off_is_refused(
    inst_info: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "t.txt.gz"
    rng = np.random.default_rng(0)
    noise = "\n".join("\t".join(map(str, row)) for row in rng.random((2000, 3)))
    path.write_bytes(gzip.compress(f"inst_id\tb\tc\n{noise}\n".encode())[:20_000])
    with pytest.raises(InputError, match=r"cannot be read|more than once"):
        read_metadata(path)


def test_signatures_are_told_from_samples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "sig_info.txt"
    path.write_text(
        "sig_id\tpert_id\tpert_type\tdistil_id\ttas\nCPC_A375_6H:x:1\tx\ttrt_cp\ta|b\t-666\n"
    )
    found = read_metadata(path)
    assert found.kind == "signatures"
    assert found.table["members"].tolist() == ["a|b"]
    assert "tas" not in found.table
