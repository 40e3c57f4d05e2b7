"""The verbs end to end on fixtures, and mistakes that end with exit code 2."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from perturbgen import cli
from perturbgen.profiles.imaging.profiles import read_profiles

Capture = pytest.CaptureFixture[str]


def test_check_says_what_is_there_and_draws_it(fixtures: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    picture = tmp_path / "p.png"
    assert (
        cli.run(["images", "check", str(fixtures["rxrx1"]), "--limit", "3", "--picture", str(picture), "--json"]) == 0
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
    assert cli.run(["images", "check", str(tmp_path / "t.csv"), "--json"]) == 2
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["rows with NaN or infinite values"]["found"], rows["rows equal to another row"]["found"]) == (1, 1)
    assert "'b'" in rows["features that never vary"]["found"]


def test_ingest_correct_and_map(fixtures: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    kept, corrected, page = tmp_path / "kept", tmp_path / "corrected", tmp_path / "map.html"
    assert cli.run(["images", "ingest", str(fixtures["rxrx19b"]), "--out", str(kept)]) == 0
    steps = ["--centre", "experiment,plate", "--whiten", "1", "--align", "plate", "--compress"]
    control = ["--control", "disease_condition=healthy"]
    assert cli.run(["images", "correct", str(kept), *control, *steps, "--out", str(corrected)]) == 0
    assert "variance between" in capsys.readouterr().out
    profiles = read_profiles(corrected)
    assert len(profiles) == len(read_profiles(kept))
    healthy = (profiles.meta["disease_condition"] == "healthy").to_numpy()
    assert np.abs(profiles.values[healthy].mean(axis=0)).max() < 0.3
    assert (
        cli.run(
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
def test_umap_draws_the_same_map_twice(fixtures: dict[str, Path]) -> None:
    from perturbgen.profiles.imaging import bbbc021
    from perturbgen.profiles.imaging.maps import draw_map

    profiles = bbbc021.read_profiles(fixtures["bbbc021"])
    one, other = draw_map(profiles, seed=1), draw_map(profiles, seed=1)
    np.testing.assert_array_equal(one.points, other.points)
    assert one.kept_by_map > 0.25


def test_hits_ranks_the_planted_drug_first(fixtures: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "hits.csv"
    assert cli.run(["images", "hits", str(fixtures["rxrx19a"]), "--out", str(out), "--draws", "1000"]) == 0
    table = pd.read_csv(out)
    assert table.groupby("cell_type").head(1)["treatment"].tolist() == ["drug-1", "drug-1"]
    assert "told apart" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["images", "check", "SOURCE", "--picture", "a.jpg"], "a.png"),
        (["images", "correct", "SOURCE", "--control", "compound=DMS", "--out", "OUT"], "no row of"),
        (
            ["images", "correct", "SOURCE", "--control", "compound=DMSO", "--scale", "sdd", "--out", "OUT"],
            "sd, mad, percentile, none",
        ),
        (
            ["images", "correct", "SOURCE", "--control", "compound=DMSO", "--scale", "none", "--out", "OUT"],
            "no correction was asked for",
        ),
        (
            ["images", "correct", "SOURCE", "--control", "compound=DMSO", "--centre", "plat", "--out", "OUT"],
            "did you mean 'plate'?",
        ),
        (["images", "hits", "SOURCE", "--out", "OUT.csv"], "no column 'disease_condition'"),
        (["images", "map", "SOURCE", "--colour", "mao", "--out", "OUT.html"], "did you mean 'moa'?"),
        (["images", "map", "SOURCE", "--method", "tsne", "--out", "OUT.html"], "umap or pca"),
        (["images", "fixture", "rxrx2", "OUT"], "no fixture 'rxrx2'"),
        (["images", "check", "OUT"], "OUT"),
        (["images", "map", "SOURCE", "--nan", "drop", "--out", "OUT.html"], "error, drop-features, drop-rows"),
        (["images", "ingest", "SOURCE", "--out", "SOURCE"], "no profile folder"),
    ],
)
def test_mistakes_end_with_an_explanation(
    arguments: list[str], words: str, fixtures: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    names = {"SOURCE": str(fixtures["bbbc021"]), "OUT": str(tmp_path / "OUT")}
    given = [names.get(part, part.replace("OUT.", f"{tmp_path}/OUT.")) for part in arguments]
    assert cli.run(given) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not (tmp_path / "OUT").exists()
