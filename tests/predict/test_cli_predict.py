"""The two verbs as they are typed."""

import json
import re

import pandas as pd
import pytest

from perturbgen.cli import _run as command
from tests.predict.conftest import GENES, make_experiment, wanted_table


@pytest.fixture
def folder(vae, experiment_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = wanted_table().rename(columns={"compound": "sm_name"}).rename_axis("id").reset_index()
    ids.to_csv("id_map.csv", index=False)
    pd.DataFrame(0.0, ids["id"], GENES).to_csv("sample_submission.csv")
    (tmp_path / "cells.h5ad").symlink_to(experiment_file)
    (tmp_path / "run").symlink_to(vae.path)
    return tmp_path


FILES = ["--cells", "cells.h5ad", "--conditions", "id_map.csv"]


def test_generate_writes_and_completes(folder, capsys):
    arguments = ["generate", "run", *FILES, "--out", "made", "--latent", "prior", "--json"]
    assert command([*arguments, "--replicates", "1"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert command([*arguments, "--replicates", "2"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert both[0] == first[0]
    assert [row["cells"] > 0 for row in both] == [True, True]
    assert command([*arguments, "--seed", "5"]) == 2
    assert "holds another generation: seed was 0, and is 5 now" in capsys.readouterr().err
    (folder / "cells.h5ad").unlink()
    make_experiment(per_well=6).write_h5ad("cells.h5ad")
    assert command([*arguments, "--replicates", "3"]) == 2
    assert "holds another generation: cells was 'sha256:" in capsys.readouterr().err


def test_a_mistake_leaves_the_folder_to_the_corrected_command(folder, capsys):
    arguments = ["generate", "run", "--cells", "cells.h5ad", "--out", "made", "--latent", "prior"]
    wanted_table().assign(cell_type="Martian").to_csv("wrong.csv", index=False)
    assert command([*arguments, "--conditions", "wrong.csv"]) == 2
    assert not (folder / "made").exists()
    wanted_table().assign(compound=["drug 3", None, "drug 5"]).to_csv("gap.csv", index=False)
    assert command([*arguments, "--conditions", "gap.csv"]) == 2
    assert "gap.csv: 'compound' is missing in 1 rows (cell_type 'B')" in capsys.readouterr().err
    assert command([*arguments, "--conditions", "id_map.csv"]) == 0
    capsys.readouterr()
    assert command([*arguments, "--conditions", "id_map.csv", "--seed", str(2**32)]) == 2
    assert "4294967295" in capsys.readouterr().err


def test_predict_to_a_submission_that_is_valid(folder, capsys):
    make_experiment(everything=True).write_h5ad("all.h5ad")
    arguments = [
        "predict",
        "run",
        *FILES,
        "--out",
        "p.parquet",
        "--replicates",
        "1",
        "--withheld",
        "all.h5ad",
    ]
    assert command([*arguments, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert row["replicates"] == 1
    assert row["withheld_nll_per_gene"] > 0
    assert row["factors B"].count(".") == 5
    like = ["--id-map", "id_map.csv", "--like", "sample_submission.csv"]
    assert command(["submit", "p.parquet", *like, "--out", "submission.csv"]) == 0
    assert command(["check-submission", "submission.csv", *like]) == 0


def test_an_ensemble_of_two_estimators(folder, capsys):
    """One command each: predictions with those of the measured conditions, the measured ones, the
    sum.
    """
    for name in ("shrunk", "shrunk_plug_in"):
        arguments = [
            "--estimator",
            name,
            "--replicates",
            "1",
            "--calibration-out",
            f"{name}_known.parquet",
        ]
        assert command(["predict", "run", *FILES, "--out", f"{name}.parquet", *arguments]) == 0
    known = pd.read_parquet("shrunk_known.parquet").set_index(["cell_type", "sm_name"])
    truth = known * 2 + pd.read_parquet("shrunk_plug_in_known.parquet").set_index(
        ["cell_type", "sm_name"]
    )
    truth.reset_index().to_parquet("measured.parquet")
    members = [
        f"{letter}={name}.parquet,{name}_known.parquet"
        for letter, name in (("a", "shrunk"), ("b", "shrunk_plug_in"))
    ]
    capsys.readouterr()
    assert (
        command(
            ["ensemble", *members, "--truth", "measured.parquet", "--out", "sum.parquet", "--json"]
        )
        == 0
    )
    row = json.loads(capsys.readouterr().out)[0]
    assert row["weight a"] == pytest.approx(2, abs=1e-3)
    assert row["weight b"] == pytest.approx(1, abs=1e-3)
    parts = [
        pd.read_parquet(f"{name}.parquet").set_index(["cell_type", "sm_name"])
        for name in ("shrunk", "shrunk_plug_in")
    ]
    summed = pd.read_parquet("sum.parquet").set_index(["cell_type", "sm_name"])
    pd.testing.assert_frame_equal(summed, 2 * parts[0] + parts[1], atol=1e-2)
    for wrong, words in (
        (["a=shrunk.parquet"], "NAME=PREDICTIONS,CALIBRATION"),
        ([members[0], members[0]], "a name stands twice"),
        ([members[0], "b=nothing.parquet,nothing.parquet"], "nothing.parquet"),
        (
            ["a=shrunk.parquet,shrunk.parquet"],
            "measured.parquet does not have 3 conditions of shrunk.parquet",
        ),
    ):
        assert (
            command(["ensemble", *wrong, "--truth", "measured.parquet", "--out", "sum.parquet"])
            == 2
        )
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "nowhere", *FILES, "--out", "x"], "no run directory at nowhere"),
        (
            ["generate", "run", *FILES, "--out", "x", "--latent", "dreams"],
            "no latent route 'dreams'",
        ),
        (["generate", "run", *FILES, "--out", "cells.h5ad"], "cells.h5ad"),
        (
            ["generate", "run", *FILES, "--out", "x", "--samplers", "nothing.npz"],
            "no sampler at nothing.npz",
        ),
        (
            ["generate", "run", "--cells", "cells.h5ad", "--conditions", "none.csv", "--out", "x"],
            "none.csv",
        ),
        (["predict", "run", *FILES, "--out", "p.csv"], "parquet"),
        (["predict", "run", *FILES, "--out", "p.parquet", "--estimator", "mean_p"], "mean_t"),
        (
            ["predict", "run", *FILES, "--out", "p.parquet", "--replicates", "0"],
            "auto, or a whole number",
        ),
        (["predict", "run", *FILES, "--out", "p.parquet", "--flavour", "vanilla"], "kaggle"),
        (
            ["predict", "run", *FILES, "--out", "p.parquet", "--calibration-run", "x"],
            "no run directory at x",
        ),
        (
            [
                "predict",
                "run",
                *FILES,
                "--out",
                "p.parquet",
                "--estimator",
                "mean_t",
                "--replicates",
                "1",
                "--calibration-out",
                "k.parquet",
            ],
            "calibrates on nothing",
        ),
    ],
)
def test_mistakes_are_explained(folder, capsys, arguments, words):
    assert command(arguments) == 2
    error = capsys.readouterr().err
    assert re.search(words, error), error
    assert "Traceback" not in error
