"""What a comparison says of its roles, its settings and its splits."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.cli import _run
from perturbgen.compare import CompareSettings
from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.evaluate import ScorecardText

from .conftest import CELLS, CLOSED_FORM, Build, Run, additive_table, write_flat

OWN = """
import numpy as np
import pandas as pd
from perturbgen.evaluate import Metric

class Mine:
    random = False
    def fit(self, train, *, rng):
        self.mean = train.mean()
        return self
    def predict(self, conditions):
        return pd.DataFrame([self.mean] * len(conditions), conditions)

SIGNS = Metric("signs", "Signs", "Share of genes that go the right way.",
               lambda t: (np.sign(t.truth.values) == np.sign(t.prediction.values)).mean(axis=1),
               "a half", higher_is_better=True, high=1)
"""


def test_ours_are_baselines_and_what_others_bring_are_methods(
    build: Build, full: pd.DataFrame, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learners of the package were methods beside that of the user, who was to be judged."""
    monkeypatch.chdir(tmp_path)
    Path("brought_compare.py").write_text(OWN)
    write_flat(full, folder / "mine.parquet")
    methods = CLOSED_FORM | {
        "kernel_ridge": {},
        "named": {"baseline": "pls"},
        "ground_truth": {},
        "own": {"baseline": "brought_compare:Mine"},
        "file": {"predictions": "mine.parquet"},
    }
    expected = ("additive", "cell_type_mean", "kernel_ridge", "named")
    assert build(methods=methods).baselines == expected
    assert build(methods=methods, controls={"baselines": ["own"]}).baselines == ("own",)


def test_the_first_sentence_is_about_the_own_method(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("brought_first.py").write_text(OWN)
    own = {"own": {"baseline": "brought_first:Mine"}}
    text = ScorecardText(run(methods=CLOSED_FORM | own | {"bilinear_ridge": {}}).card).markdown()
    assert "own" in text.split("\n")[2].partition(".")[0], "the first sentence"


def test_the_headline_may_be_of_an_own_metric(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("brought_signs.py").write_text(OWN)
    score = {"headline": ["brought_signs:SIGNS"], "resamples": 20}
    card = run(score=score).card
    assert np.isfinite(card.ranking["value"]).all()
    assert card.headline == ("brought_signs:SIGNS",)


def test_a_dry_run_prints_what_is_unset_and_no_keys_of_other_kinds(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A printed split listed every key of every kind, and ``headline`` nowhere."""
    config = tmp_path / "c.toml"
    config.write_text("[splits.cell_types]\n[splits.compounds]\n[methods.additive]\n")
    assert _run(["compare", str(config), "--dry-run"]) == 0
    said = capsys.readouterr().out
    for key in ("headline", "metrics", "baselines"):
        assert f"\n# {key} = ..." in said
    splits = tomllib.loads(said)["splits"]
    assert set(splits["cell_types"]) == {"kind", "cell_types", "rows"}
    assert set(splits["compounds"]) == {"kind", "folds", "rows", "seed"}
    assert said.index("[splits.compounds]") < said.index("# targets = ...")
    config.write_text(said)
    again = CompareSettings.load(config)
    assert again.splits == build(splits={"cell_types": {}, "compounds": {}}).splits


def test_a_key_of_another_kind_is_refused_with_those_of_its_own(build: Build) -> None:
    with pytest.raises(ConfigError, match="makes no use of folds: it uses cell_types, rows"):
        build(splits={"cell_types": {"folds": 4}})


def test_one_compound_cannot_be_divided_but_its_cell_types_can(
    run: Run, folder: Path, full: pd.DataFrame
) -> None:
    one = full[full.index.get_level_values("compound") == "drug 0"]
    write_flat(one, folder / "de_train.parquet")
    with pytest.raises(SchemaError, match="1 compound is known in two cell types") as error:
        run(data={"folder": str(folder)}, splits={"compounds": {}})
    assert 'kind = "cell_types"' in str(error.value)


def test_it_is_said_that_sparse_cell_types_alone_are_tested(
    run: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The competition's table: two cell types have a third of the compounds."""
    found = run(data={"folder": str(folder)}, splits={"compounds": {}})
    (said,) = found.tested
    assert said.startswith("6 of 22 conditions are tested: those of 'B cells', 'Myeloid cells'")
    config = tmp_path / "c.toml"
    config.write_text(f'[data]\nfolder = "{folder}"\n[splits.compounds]\n[methods.additive]\n')
    assert _run(["compare", str(config), "--out", str(tmp_path / "o"), "--no-report"]) == 0
    assert "6 of 22 conditions are tested" in capsys.readouterr().out.replace("\n", " ")
    assert said in (tmp_path / "o" / "scorecard.md").read_text()
    assert run(splits={"cell_types": {}}, out=tmp_path / "p").tested == []


def test_one_compound_in_many_cell_types_has_intervals(run: Run, folder: Path) -> None:
    """As in Kang's data: compounds were resampled, of which there is one, and all was certain."""
    rows = pd.MultiIndex.from_product([CELLS, ["drug 0"]], names=["cell_type", "compound"])
    table = additive_table(rows)
    more = pd.concat([table, table.rename(index=lambda name: f"{name} too", level=0)])
    write_flat(more, folder / "de_train.parquet")
    card = run(
        data={"folder": str(folder)},
        splits={"cell_types": {}},
        methods={"zeros": {}, "gene_mean": {}, "compound_mean": {}},
    ).card
    rows_of = card.table[card.table["metric"] == "mean_rowwise_rmse"]
    assert (rows_of["high"] > rows_of["low"]).all()
