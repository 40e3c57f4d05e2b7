"""The verbs end to end on fixtures, and mistakes that end with exit code 2."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from perturbgen import cli
from perturbgen.images import read_bbbc021
from perturbgen.images.pictures import draw_map
from perturbgen.profiles import read_profiles

Capture = pytest.CaptureFixture[str]


def test_check_says_what_is_there_and_draws_it(
    fixtures: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    picture = tmp_path / "p.png"
    assert (
        cli._run(
            [
                "images",
                "check",
                str(fixtures["rxrx1"]),
                "--limit",
                "3",
                "--picture",
                str(picture),
                "--json",
            ]
        )
        == 0
    )
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out.rsplit("]", 1)[0] + "]")}
    assert rows["groups of siRNAs"]["found"] == "6 6 6 6"
    assert rows["wells with a site missing"]["found"] == 2
    assert rows["channels"]["found"] == "w1, w2, w3, w4, w5, w6"
    assert np.array(Image.open(picture)).ndim == 3


def test_check_of_nan_constant_and_copied_rows_fails(tmp_path: Path, capsys: Capture) -> None:
    table = pd.DataFrame(
        {
            "Metadata_Plate": ["p"] * 4,
            "Metadata_Well": ["A01", "A02", "A03", "A04"],
            "a": [1.0, 1.0, None, 2.0],
            "b": 5.0,
        }
    )
    table.to_csv(tmp_path / "t.csv", index=False)
    assert cli._run(["images", "check", str(tmp_path / "t.csv"), "--json"]) == 2
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    assert (
        rows["rows with NaN or infinite values"]["found"],
        rows["rows equal to another row"]["found"],
    ) == (1, 1)
    assert "'b'" in rows["features that never vary"]["found"]


def test_ingest_correct_and_map(fixtures: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    kept, corrected, page = tmp_path / "kept", tmp_path / "corrected", tmp_path / "map.html"
    assert cli._run(["images", "ingest", str(fixtures["rxrx19b"]), "--out", str(kept)]) == 0
    steps = ["--centre", "experiment,plate", "--whiten", "1", "--align", "plate", "--compress"]
    control = ["--controls", "disease_condition=healthy"]
    assert (
        cli._run(["images", "correct", str(kept), *control, *steps, "--out", str(corrected)]) == 0
    )
    assert "variance between" in capsys.readouterr().out
    profiles = read_profiles(corrected)
    assert len(profiles) == len(read_profiles(kept))
    healthy = (profiles.meta["disease_condition"] == "healthy").to_numpy()
    assert np.abs(profiles.values[healthy].mean(axis=0)).max() < 0.3
    assert (
        cli._run(
            [
                "images",
                "map",
                str(corrected),
                "--colour",
                "disease_condition",
                "--method",
                "pca",
                "--out",
                str(page),
                "--json",
            ]
        )
        == 0
    )
    row = json.loads(capsys.readouterr().out)[0]
    assert 0 < row["kept by map"] <= row["kept by components"] <= 1
    assert "coloured by disease_condition" in page.read_text()


@pytest.mark.slow  # umap-learn compiles for ten seconds and more, whatever the size of the data
@pytest.mark.slow  # numba compiles UMAP
def test_umap_draws_the_same_map_twice(fixtures: dict[str, Path]) -> None:
    profiles = read_bbbc021(fixtures["bbbc021"])
    one, other = draw_map(profiles, seed=1), draw_map(profiles, seed=1)
    np.testing.assert_array_equal(one.points, other.points)
    assert one.kept_by_map > 0.25


def test_tsne_draws_the_same_map_twice(fixtures: dict[str, Path]) -> None:
    pytest.importorskip(
        "openTSNE", reason="openTSNE is not installed, which is an extra: pip install -e '.[maps]'"
    )
    profiles = read_bbbc021(fixtures["bbbc021"])
    one, other = (
        draw_map(profiles, method="tsne", seed=1),
        draw_map(profiles, method="tsne", seed=1),
    )
    np.testing.assert_array_equal(one.points, other.points)
    assert one.kept_by_map > 0.25


@pytest.mark.parametrize(("method", "package"), [("umap", "umap-learn"), ("tsne", "openTSNE")])
def test_a_missing_extra_is_named_with_its_fix(
    method: str,
    package: str,
    fixtures: dict[str, Path],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, {"umap": "umap", "tsne": "openTSNE"}[method], None)
    source, out = str(fixtures["bbbc021"]), tmp_path / "map.html"
    assert cli._run(["images", "map", source, "--method", method, "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert f"{package} is not installed" in error
    assert "pip install" in error
    assert not out.exists()


def cell_painting(tmp_path: Path, **columns: object) -> Path:
    """Two plates of four DMSO wells and eight of four compounds, some columns changed."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "Metadata_Plate": np.repeat(["p1", "p2"], 12),
            "Metadata_Well": [f"A{i:02d}" for i in range(12)] * 2,
            "Metadata_compound": (["DMSO"] * 4 + list("abcd") * 2) * 2,
            "Metadata_dose": 1.0,
        }
    )
    values = pd.DataFrame(rng.normal(size=(24, 5)), columns=[f"Cells_{i}" for i in range(5)])
    pd.concat([table, values], axis=1).assign(**columns).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


def test_hits_of_one_stratum_and_one_axis(tmp_path: Path, capsys: Capture) -> None:
    named = (["DMSO"] * 4 + ["a", "=b", "-c", "d"] * 2) * 2
    who = [
        "--healthy",
        "Metadata_compound=DMSO",
        "--diseased",
        "Metadata_compound=a",
        "--treatment",
        "Metadata_compound",
        "--dose",
        "Metadata_dose",
    ]
    whole = ["--centre", "", "--by", "", "--within", "", "--gate", "-1e9", "--draws", "100"]
    arguments = [
        "images",
        "hits",
        str(cell_painting(tmp_path, Metadata_compound=named)),
        *who,
        *whole,
        "--out",
        str(tmp_path / "hits.csv"),
    ]
    assert cli._run(arguments) == 0
    # a spreadsheet computes what begins with = or -
    assert sorted(pd.read_csv(tmp_path / "hits.csv")["treatment"]) == ["'-c", "'=b", "d"]
    said = capsys.readouterr()
    assert "3 treatments" in said.out
    assert "PERTURBGEN_CSV_NAMES=raw" in said.err


def test_a_table_without_usual_columns_is_drawn_all_the_same(
    tmp_path: Path, capsys: Capture
) -> None:
    table = pd.read_csv(cell_painting(tmp_path)).drop(columns=["Metadata_Plate", "Metadata_Well"])
    table.to_csv(tmp_path / "t.csv", index=False)
    out = tmp_path / "map.html"
    assert (
        cli._run(["images", "map", str(tmp_path / "t.csv"), "--method", "pca", "--out", str(out)])
        == 0
    )
    assert "coloured by Metadata_compound" in out.read_text()
    assert "ten nearest neighbours kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("columns", "arguments", "words"),
    [
        (
            {"Cells_0": 1e300},
            ["map", "T", "--method", "pca", "--out", "OUT.html"],
            "NaN or infinite values",
        ),
        ({"Cells_0": 1e300}, ["ingest", "T", "--out", "OUT"], "values beyond 3.4e+38"),
        (
            {"Cells_0": 1e300},
            [
                "correct",
                "T",
                "--controls",
                "Metadata_compound=DMSO",
                "--whiten",
                "1",
                "--out",
                "OUT",
            ],
            "NaN or infinite values",
        ),
        (
            {"Cells_0": np.inf},
            ["evaluate", "T", "--same", "Metadata_compound"],
            "NaN or infinite values",
        ),
        ({f"Cells_{i}": np.nan for i in range(5)}, ["check", "T"], ""),
        (
            {"Metadata_compound": "a"},
            ["evaluate", "T", "--same", "Metadata_compound"],
            "nothing to retrieve",
        ),
        ({"Cells_0": "high"}, ["ingest", "T", "--out", "OUT"], "'Cells_0' is not a number"),
    ],
)
def test_tables_that_cannot_be_used(
    columns: dict[str, object], arguments: list[str], words: str, tmp_path: Path, capsys: Capture
) -> None:
    source = str(cell_painting(tmp_path, **columns))
    names = {"T": source, "OUT": str(tmp_path / "OUT"), "OUT.html": str(tmp_path / "OUT.html")}
    assert cli._run(["images", *(names.get(part, part) for part in arguments)]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "OUT").exists()


def test_one_feature_makes_no_map(tmp_path: Path, capsys: Capture) -> None:
    table = pd.read_csv(cell_painting(tmp_path)).drop(columns=[f"Cells_{i}" for i in range(1, 5)])
    table.to_csv(tmp_path / "t.csv", index=False)
    assert (
        cli._run(["images", "map", str(tmp_path / "t.csv"), "--out", str(tmp_path / "map.html")])
        == 2
    )
    assert "24 rows of 1 features make no map" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not a whole list"), ("5", "no list of names"), ("[1]", "no list of names")],
)
def test_a_profile_folder_with_a_broken_list_of_features(
    text: str, words: str, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "ours"
    assert cli._run(["images", "ingest", str(cell_painting(tmp_path)), "--out", str(folder)]) == 0
    (folder / "features.json").write_text(text)
    assert cli._run(["images", "check", str(folder)]) == 2
    assert words in capsys.readouterr().err


def test_hits_ranks_the_planted_drug_first(
    fixtures: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "hits.csv"
    assert (
        cli._run(["images", "hits", str(fixtures["rxrx19a"]), "--out", str(out), "--draws", "1000"])
        == 0
    )
    table = pd.read_csv(out)
    assert table.groupby("cell_type").head(1)["treatment"].tolist() == ["drug-1", "drug-1"]
    assert "told apart" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["images", "check", "SOURCE", "--picture", "a.jpg"], "a.png"),
        (
            ["images", "correct", "SOURCE", "--controls", "compound=DMS", "--out", "OUT"],
            "no row of",
        ),
        (
            [
                "images",
                "correct",
                "SOURCE",
                "--controls",
                "compound=DMSO",
                "--scale",
                "sdd",
                "--out",
                "OUT",
            ],
            "sd, mad, percentile, none",
        ),
        (
            [
                "images",
                "correct",
                "SOURCE",
                "--controls",
                "compound=DMSO",
                "--scale",
                "none",
                "--out",
                "OUT",
            ],
            "no correction was asked for",
        ),
        (
            [
                "images",
                "correct",
                "SOURCE",
                "--controls",
                "compound=DMSO",
                "--centre",
                "plat",
                "--out",
                "OUT",
            ],
            "did you mean 'plate'?",
        ),
        (["images", "hits", "SOURCE", "--out", "OUT.csv"], "no column 'disease_condition'"),
        (
            ["images", "map", "SOURCE", "--colour", "mao", "--out", "OUT.html"],
            "did you mean 'moa'?",
        ),
        (
            ["images", "map", "SOURCE", "--method", "tsme", "--out", "OUT.html"],
            "did you mean 'tsne'?",
        ),
        (["images", "fixture", "rxrx2", "OUT"], "no fixture 'rxrx2'"),
        (["images", "check", "OUT"], "OUT"),
        (
            ["images", "map", "SOURCE", "--nan", "drop", "--out", "OUT.html"],
            "error, drop-features, drop-rows",
        ),
        (["images", "ingest", "SOURCE", "--out", "SOURCE"], "no profile folder"),
    ],
)
def test_mistakes_end_with_an_explanation(
    arguments: list[str], words: str, fixtures: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    names = {"SOURCE": str(fixtures["bbbc021"]), "OUT": str(tmp_path / "OUT")}
    given = [names.get(part, part.replace("OUT.", f"{tmp_path}/OUT.")) for part in arguments]
    assert cli._run(given) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not (tmp_path / "OUT").exists()
