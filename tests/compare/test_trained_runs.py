"""A trained run in the grid: its own prediction, kept by what it depends on, refused where it has
seen the answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from scipy import sparse

from perturbgen.compare import CompareSettings, Comparison, compare, methods, write_outputs
from perturbgen.core.errors import ConfigError, InputError, SchemaError
from perturbgen.core.tables import conditions_of
from perturbgen.data import Split, pseudobulk
from perturbgen.de import flavour_table
from perturbgen.predict import GenerativePredictor, MeasuredExperiment, PredictSettings
from perturbgen.train import RunSettings, load_run
from perturbgen.train import train as train_model
from tests.conftest import without_pictures

from .conftest import states, write_flat

COMPOUNDS = [f"drug {i}" for i in range(4)]
KNOWN = COMPOUNDS[:2]
GENES = [f"g{i:02d}" for i in range(12)]
FAST: dict[str, Any] = {"estimators": ["mean_t"], "replicates": 1}


def make_cells() -> AnnData:
    """Two cell types under every compound, three plates of a donor each, a vehicle in every row."""
    rng = np.random.default_rng(0)
    level = rng.gamma(1, 3, len(GENES)) + 0.3
    effect = {name: np.exp(rng.normal(0, 0.7, len(GENES))) for name in COMPOUNDS} | {"DMSO": 1.0}
    rows, counts = [], []
    for plate in range(3):
        for i, compound in enumerate([*COMPOUNDS, *["DMSO"] * 2]):
            well = f"{'AB'[i % 2]}{i // 2 + 1}"
            for kind, shift in (("NK cells", 0), ("B cells", 5)):
                rows += [
                    (
                        kind,
                        compound,
                        f"plate {plate}",
                        well,
                        f"donor {plate}",
                        well[0],
                        compound == "DMSO",
                    )
                ] * 6
                counts.append(
                    rng.poisson(np.roll(level, shift) * effect[compound], (6, len(GENES)))
                )
    obs = pd.DataFrame(
        rows, columns=["cell_type", "compound", "plate", "well", "donor", "row", "control"]
    )
    obs.index = pd.Index([f"cell {i}" for i in range(len(obs))])
    matrix = sparse.csr_matrix(np.vstack(counts))
    return AnnData(matrix, obs=obs, var=pd.DataFrame(index=GENES), uns={"vehicle": "DMSO"})


def train(folder: Path, data: Path, name: str, **more: str) -> Path:
    base = {
        "name": name,
        "data": {"path": str(data), **more},
        "model": {"latent": 2, "decoder": {"hidden": [4]}},
        "conditions": {"cell_type": {}, "compound": {}, "plate": {}},
        "annealing": {"warmup": 0},
        "training": {"epochs": 1, "batch_size": 64, "threads": 1},
    }
    settings = RunSettings.load(base=base)
    with without_pictures():
        return train_model(settings, runs=str(folder / "runs"), accelerator="cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells and DE tables, B cells with the known compounds only in what is released; a run on each
    file of cells.
    """
    folder = tmp_path_factory.mktemp("trained")
    everything = make_cells()
    table = (
        MeasuredExperiment.of(everything, ["B cells", "NK cells"], vehicle="DMSO", flavour="kaggle")
        .fit()
        .signed_log10_p
    )
    hidden = table.index.isin(pd.MultiIndex.from_product([["B cells"], COMPOUNDS[2:]]))
    table.index.names = ["cell_type", "compound"]
    write_flat(table[~hidden], folder / "de_train.parquet")
    write_flat(table[hidden], folder / "de_truth.parquet")
    obs = everything.obs
    released = ~((obs["cell_type"] == "B cells") & obs["compound"].isin(COMPOUNDS[2:])).to_numpy()
    everything.write_h5ad(folder / "everything.h5ad")
    everything[released].copy().write_h5ad(folder / "released.h5ad")
    for name in ("released", "everything"):
        train(folder, folder / f"{name}.h5ad", name).rename(folder / f"run-{name}")
    return folder


def ran(made: Path, out: Path, run: dict[str, Any] | None = None, **changes: Any) -> Comparison:
    vae = {"run": str(made / "run-released"), "cells": "released.h5ad", "settings": FAST} | (
        run or {}
    )
    base = {
        "data": {"folder": str(made), "truth": "de_truth.parquet"},
        "splits": {"kaggle": {"targets": ["B cells"], "known": KNOWN}},
        "methods": {"zeros": {}, "vae": vae},
        "score": {"resamples": 10},
    }
    return compare(CompareSettings.load(base=base | changes), out, workers=1)


def test_a_run_predicts_what_its_predictor_predicts(made: Path, tmp_path: Path) -> None:
    found = ran(made, tmp_path)
    assert states(found) == {"done": 2}
    train = pd.read_parquet(made / "de_train.parquet").set_index(["cell_type", "sm_name"])
    model = GenerativePredictor(
        load_run(made / "run-released"), read_h5ad(made / "released.h5ad"), PredictSettings(**FAST)
    )
    fitted = model.fit(train, rng=np.random.default_rng(0))
    values = found.predictions()["vae"]
    expected = fitted.predict(values.index.to_frame(index=False)).loc[values.index, values.columns]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert found.card.role("vae") == "method"
    assert states(ran(made, tmp_path, seeds=[0, 1])) == {"cached": 2, "done": 1}, (
        "another seed draws other cells"
    )


def test_a_run_is_kept_by_its_parameters_its_cells_and_its_settings(
    made: Path, tmp_path: Path
) -> None:
    ran(made, tmp_path)
    moved = tmp_path / "elsewhere"
    (made / "run-released").rename(moved)
    try:
        assert states(ran(made, tmp_path, {"run": str(moved)})) == {"cached": 2}, (
            "the name of the run does not matter"
        )
    finally:
        moved.rename(made / "run-released")
    assert states(ran(made, tmp_path, {"settings": FAST | {"replicates": 2}})) == {
        "cached": 1,
        "done": 1,
    }
    other = {"run": str(made / "run-released"), "cells": "more.h5ad"}
    more = read_h5ad(made / "released.h5ad")
    more.obs["note"] = "another file"
    more.write_h5ad(made / "more.h5ad")
    assert states(ran(made, tmp_path, other)) == {"cached": 1, "done": 1}


def test_code_that_generates_is_code_that_a_run_depends_on(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(made, tmp_path)
    real = methods._code_version
    monkeypatch.setattr(
        methods, "_code_version", lambda rooms: "new" if "predict" in rooms else real(rooms)
    )
    found = ran(made, tmp_path)
    assert found.jobs.set_index("method")["state"].to_dict() == {"zeros": "cached", "vae": "done"}


def test_a_run_that_has_seen_the_answers_is_refused_before_anything_is_fitted(
    made: Path, tmp_path: Path
) -> None:
    seen = {"run": str(made / "run-everything"), "cells": "everything.h5ad"}
    with pytest.raises(
        ConfigError, match=r"trained on 2 of the 2 conditions that kaggle .* 'B cells \| drug 2'"
    ):
        ran(made, tmp_path / "out", seen)
    with pytest.raises(ConfigError, match="trained on 2 of the 2 conditions"):
        ran(made, tmp_path / "out", {"calibration_run": seen["run"], "cells": "everything.h5ad"})
    with pytest.raises(
        SchemaError, match=r"trained on .* cells that .*released\.h5ad does not hold"
    ):
        ran(made, tmp_path / "out", {"run": seen["run"]})
    with pytest.raises(ConfigError, match="conditions that compounds"):
        ran(made, tmp_path / "out", splits={"compounds": {"targets": ["B cells"], "folds": 2}})
    assert not (tmp_path / "out").exists()


def test_cells_of_withheld_conditions_beside_an_honest_run_are_not_looked_at(
    made: Path, tmp_path: Path
) -> None:
    honest = ran(made, tmp_path / "a")
    beside = ran(made, tmp_path / "b", {"cells": "everything.h5ad"})
    pd.testing.assert_frame_equal(honest.predictions()["vae"], beside.predictions()["vae"])


def test_the_report_says_what_the_run_has_seen(made: Path, tmp_path: Path) -> None:
    found = ran(made, tmp_path)
    about = found.card.info["trained runs"]["vae"]
    assert about["conditions seen in training"] == 2 * len(COMPOUNDS) - 2 + 2, (
        "the vehicle's two among them"
    )
    assert about["of those withheld"] == 0
    write_outputs(found, tmp_path / "out", title="runs")
    text = (tmp_path / "out" / "report.html").read_text()
    assert "trained runs.vae.parameters" in text
    assert about["parameters"] in text
    assert json.dumps(about)


def test_the_report_says_that_a_runs_latent_space_is_empty(made: Path, tmp_path: Path) -> None:
    run = made / ran(made, tmp_path / "a").card.info["trained runs"]["vae"]["run"]
    (run / "latent.json").write_text('{"active": 0, "dimensions": 4, "kl": 0.01}')
    try:
        found = ran(made, tmp_path / "b")
    finally:
        (run / "latent.json").unlink()
    written = write_outputs(found, tmp_path / "out", title="runs")
    sentence = "vae: none of the 4 latent dimensions is active"
    assert sentence in written[0].read_text()
    assert f'<p class="warning">{sentence}' in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"cells": ""}, "a run needs cells"),
        ({"baseline": "zeros"}, "not two of them"),
        ({"settings": {"seed": 3}}, "seeds = "),
        ({"settings": {"estimators": ["mean_t", "plug_in"]}}, "a method for each estimator"),
        ({"settings": {"replicate": 3}}, "did you mean 'replicates'"),
        ({"settings": {"latent": "posteriro"}}, "latent"),
    ],
)
def test_a_wrong_setting_of_a_run_is_told(
    made: Path, tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        ran(made, tmp_path / "out", changed)
    assert not (tmp_path / "out").exists()


def test_a_missing_run_or_file_of_cells_is_told(made: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for changed, words in (
        ({"run": "nowhere"}, "no run directory at .*nowhere"),
        ({"run": str(tmp_path / "empty")}, "no description of a trained model at"),
        ({"cells": "no.h5ad"}, "no file of cells at"),
    ):
        with pytest.raises(InputError, match=words):
            ran(made, tmp_path / "out", changed)
    with pytest.raises(ConfigError, match="cells, columns and calibration_run belong to a run"):
        ran(made, tmp_path / "out", methods={"zeros": {"cells": "released.h5ad"}})


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with columns of other names and genes that hardly anybody expresses: a run, its
    column map, a split of cells' conditions, and the table of flavour op3.
    """
    folder = tmp_path_factory.mktemp("filtered")
    cells = make_cells()
    counts = cells.X.toarray()
    counts[:, :3] = np.random.default_rng(1).poisson(0.01, counts[:, :3].shape)
    cells.X = sparse.csr_matrix(counts)
    sums = pseudobulk(cells, by=["plate", "well", "cell_type"])
    table = flavour_table(sums, flavour="op3", control="DMSO").signed_log10_p
    table.index.names = ["cell_type", "compound"]
    assert table[GENES[:3]].isna().all(axis=None), "the filter bites"
    assert table.notna().all().sum() > 2
    write_flat(table.dropna(axis=1), folder / "de_train.parquet")
    labels = conditions_of(cells.obs).unique()
    withheld = labels.isin([("B cells", name) for name in COMPOUNDS[2:]])
    parts = pd.Series(np.where(withheld, "test", "train").astype(object), labels)
    Split(parts, "by hand").write(folder / "split.csv")
    cells.obs = cells.obs.rename(columns={"cell_type": "Type", "compound": "Drug"})
    del cells.uns["vehicle"]
    cells.write_h5ad(folder / "cells.h5ad")
    (folder / "columns.toml").write_text(
        'vehicle = "DMSO"\n[columns]\ncell_type = "Type"\ncompound = "Drug"\n'
    )
    train(
        folder,
        folder / "cells.h5ad",
        "own",
        columns=str(folder / "columns.toml"),
        split=str(folder / "split.csv"),
    )
    return folder


@pytest.mark.parametrize("estimator", ["mean_t", "anchored_t", "plug_in", "shrunk"])
def test_a_run_in_flavour_op3_predicts_the_genes_that_the_filter_left(
    filtered: Path, tmp_path: Path, estimator: str
) -> None:
    """Nothing here is a stand-in: the run is trained, its cells are read by its column map, and the
    split that it was trained with names the vehicle, which is in no table.
    """
    settings = {"estimators": [estimator], "replicates": 2, "flavour": "op3", "levels": 1}
    run = {"run": str(filtered / "runs" / "0001-own-s0"), "cells": "cells.h5ad"}
    asked = CompareSettings.load(
        base={
            "data": {"folder": str(filtered), "clip": 4.0},
            "splits": {"theirs": {"kind": "file", "file": "split.csv", "test": ["test"]}},
            "methods": {"zeros": {}, "vae": {**run, "settings": settings}},
            "score": {"resamples": 10},
        }
    )
    found = compare(asked, tmp_path, workers=1)
    assert states(found) == {"done": 2}, found.jobs["error"].tolist()
    values = found.predictions()["vae"]
    kept = pd.read_parquet(filtered / "de_train.parquet").columns[2:]
    assert set(values.columns) <= set(GENES[3:])
    assert set(values.columns) == set(kept) & set(GENES)
    assert len(values) == 2
    assert np.isfinite(values.to_numpy()).all()
    if estimator != "shrunk":  # one epoch deserves to be shrunk to nothing
        assert (values.abs() > 0).any(axis=None)


def test_cells_of_other_names_need_a_column_map(filtered: Path, tmp_path: Path) -> None:
    from perturbgen.predict import RunFiles

    elsewhere = tmp_path / "copy.h5ad"
    elsewhere.write_bytes((filtered / "cells.h5ad").read_bytes())
    run = filtered / "runs" / "0001-own-s0"
    with pytest.raises(SchemaError, match="cell_type"):
        RunFiles(run, elsewhere).seen()
    mapped = RunFiles(run, elsewhere, columns=filtered / "columns.toml")
    assert ("B cells", "drug 0") in mapped.seen()
    assert ("B cells", "drug 3") not in mapped.seen()


def test_a_table_with_genes_that_the_run_does_not_know_is_refused(made: Path) -> None:
    run = load_run(made / "run-released")
    predictor = GenerativePredictor(run, read_h5ad(made / "released.h5ad"))
    index = pd.MultiIndex.from_tuples([("NK cells", "drug 0")])
    predictor.fit(pd.DataFrame(0.0, index, GENES[3:]), rng=np.random.default_rng(0))
    with pytest.raises(SchemaError, match="genes that the run does not know: 'other'"):
        predictor.fit(pd.DataFrame(0.0, index, ["g00", "other"]), rng=np.random.default_rng(0))
