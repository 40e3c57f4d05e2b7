"""The cross-modal experiment on tables, on the published data, and on mistakes."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from paired_fixture import write_paired

QUICK = ("--folds", 4, "--inner", 2, "--permutations", 99, "--draws", 100)


def test_two_tables_make_a_page_and_the_numbers(
    experiment: Callable[[str], Callable[..., int]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tables = write_paired(tmp_path / "tables", compounds=48)
    run, out = experiment("cross_modal"), tmp_path / "out"
    assert run(tables / "images.csv.gz", tables / "l1000.csv.gz", "--out", out, *QUICK) == 0
    assert "find their partner" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    for title in (
        "Retrieval both ways",
        "Is RGCCA worth it?",
        "Strata",
        "Mechanisms",
        "How much is shared",
    ):
        assert title in page
    assert "the planted maps" not in page, "a user's tables have no truth"
    scores = pd.read_csv(out / "scores.csv")
    assert set(scores["method"]) == {
        "Procrustes",
        "regression",
        "PLS",
        "CCA",
        "RGCCA",
        "pairs torn apart",
    }
    assert (scores["n"][scores["stratum"] == "all"] == 48 * 3).all()
    best = scores[(scores["method"] == "RGCCA") & (scores["stratum"] == "both")]
    assert (best["mAP p"] < 0.05).all()


@pytest.mark.data
@pytest.mark.slow  # reads the published sheets and draws the whole page
def test_what_is_published(
    experiment: Callable[[str], Callable[..., int]], tmp_path: Path, real_data: Path
) -> None:
    run = experiment("cross_modal")
    assert run("--published", real_data / "imaging", "--out", tmp_path, *QUICK) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Seventeen genes" in page
    assert "1,140" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.csv"], "one table of profiles only"),
        (["a.csv", "b.csv"], "no table at"),
        (["a.csv", "b.csv", "--published", "x"], "or tables with --published"),
        (["--published", "nowhere"], "no table at"),
    ],
)
def test_mistakes(
    arguments: list[str],
    words: str,
    experiment: Callable[[str], Callable[..., int]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert experiment("cross_modal")(*arguments, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
