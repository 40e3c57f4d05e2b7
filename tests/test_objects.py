"""The model as an object: trained, asked and kept with cells in memory."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import perturbgen as pg
from perturbgen.core.errors import ConfigError, PerturbgenError, SchemaError

QUICK = {"decoder": {"hidden": [8]}, "encoder": [8], "latent": 3}


@pytest.fixture(scope="module")
def cells() -> AnnData:
    smaller = ["expression.genes=60", "cells.per_well=30", "plate.rows=2"]
    return pg.simulate("tiny", overrides=smaller).cells()


@pytest.fixture(scope="module")
def model(cells: AnnData) -> pg.CellModel:
    made = pg.NBVAE(cells, conditions=["cell_type", "compound", "plate"], **QUICK)
    return made.train(epochs=2, accelerator="cpu", threads=1, annealing={"warmup": 1})


@pytest.fixture(scope="module")
def wanted(cells: AnnData) -> pd.DataFrame:
    treated = cells.obs.loc[~cells.obs["control"].astype(bool), ["cell_type", "compound"]]
    return treated.astype(str).drop_duplicates().head(3)


def test_the_object_says_what_it_is(cells: AnnData, model: pg.CellModel) -> None:
    assert "not trained yet" in repr(pg.NBVAE(cells, **QUICK))
    assert "trained: 2 epochs" in repr(model)
    assert f"compound ({cells.obs['compound'].nunique()})" in repr(model)
    assert len(repr(model).splitlines()) < 10


def test_it_knows_what_a_command_would(cells: AnnData, model: pg.CellModel, tmp_path: Path) -> None:
    from perturbgen.train import CellJudge

    pg.write_h5ad(cells, tmp_path / "cells.h5ad")
    store = model.run.open_cells(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(model.latent(), CellJudge(model.run, store).latents())
    assert model.latent(cells[:7]).shape == (7, 3)


def test_generated_cells_are_those_of_the_folder_of_replicates(
    cells: AnnData, model: pg.CellModel, wanted: pd.DataFrame, tmp_path: Path
) -> None:
    from perturbgen.generate import CellSampler, ReplicateFolder
    from perturbgen.predict import Wells, read_wanted, without

    found = model.generate(wanted)
    asked = read_wanted(wanted)
    measured = without(cells, asked)
    sampler = CellSampler.of(measured, seed=0)
    wells = Wells.of(model.run, measured, sampler, asked, latent="control", seed=0)
    folder = ReplicateFolder(tmp_path / "generated", {"of": "this"})
    [path] = folder.write(wells.generator, wells.plan, wells.wells, replicates=1)
    written = pg.read_h5ad(path)
    assert (found.X != written.X).nnz == 0
    assert list(found.obs_names) == list(written.obs_names)
    assert set(found.obs["compound"]) <= set(wanted["compound"])
    assert "vehicle" in cells.uns, "the user's cells stay as they were"


def test_de_is_predicted_with_the_settings_of_the_command(
    model: pg.CellModel, wanted: pd.DataFrame
) -> None:
    found = model.predict_de(wanted, estimator="mean_t", replicates=1)
    assert list(found.index) == sorted(map(tuple, wanted.to_numpy())) or len(found) == len(wanted)
    assert np.isfinite(found.to_numpy()).all()
    with pytest.raises(ConfigError, match="replicate"):
        model.predict_de(wanted, replicats=1)
    several = model.predict_de(wanted, estimator=["mean_t", "plug_in"], replicates=1)
    assert list(several) == ["mean_t", "plug_in"]
    pd.testing.assert_frame_equal(several["mean_t"], found)


def test_what_is_remembered_is_told_beside_its_score(
    model: pg.CellModel, wanted: pd.DataFrame, tmp_path: Path
) -> None:
    found = model.predict_de(wanted, estimator="mean_t", replicates=1)  # trained on all of them
    assert found.attrs["remembered"] == len(wanted)
    scores = pg.score(found * 0.5, {"mine": found}, resamples=5)
    said = f"mine was trained on {len(wanted)} of its {len(wanted)} conditions"
    assert said in repr(scores)
    assert said in scores.report(tmp_path / "report.html").read_text()


def test_what_is_saved_is_what_is_loaded(
    cells: AnnData, model: pg.CellModel, wanted: pd.DataFrame, tmp_path: Path
) -> None:
    model.save(tmp_path / "mine")
    again = pg.NBVAE.load(tmp_path / "mine", cells)
    np.testing.assert_array_equal(again.latent(), model.latent())
    with pytest.raises(SchemaError, match="without cells"):
        pg.NBVAE.load(tmp_path / "mine").latent()
    with pytest.raises(ConfigError, match="kind 'nbvae'"):
        pg.DGD.load(tmp_path / "mine")


def test_a_short_training_has_a_short_warm_up(cells: AnnData) -> None:
    model = pg.NBVAE(cells, **QUICK).train(epochs=4, accelerator="cpu", threads=1)
    assert model.run.settings.annealing.warmup == 1
    given = pg.NBVAE(cells, **QUICK).train(4, annealing={"warmup": 3}, accelerator="cpu", threads=1)
    assert given.run.settings.annealing.warmup == 3


def test_a_model_of_another_package_is_asked_for_by_its_kind(
    cells: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "docs" / "example_package"))
    kind = "perturbgen_example:FreeBits"
    made = pg.CellModel(cells, kind=kind, settings={"free": 1.0}, **QUICK)
    made.train(1, accelerator="cpu", threads=1).save(tmp_path / "mine")
    again = pg.CellModel.load(tmp_path / "mine", cells)
    np.testing.assert_array_equal(again.latent(cells[:5]), made.latent(cells[:5]))
    assert again.run.model.free == 1.0
    assert kind in repr(again)
    with pytest.raises(ConfigError, match="'fre': did you mean 'free'"):
        pg.CellModel(cells, kind=kind, settings={"fre": 1.0})
    with pytest.raises(ConfigError, match="kind=''"):
        pg.CellModel(cells)
    with pytest.raises(ConfigError, match="NBVAE with kind"):
        pg.NBVAE(cells, kind=kind)


def test_mistakes_are_told_before_training(cells: AnnData) -> None:
    with pytest.raises(SchemaError, match="no column 'celltype'"):
        pg.NBVAE(cells, conditions=["celltype"])
    with pytest.raises(ConfigError, match="did you mean 'latent'"):
        pg.NBVAE(cells, latnt=3)
    with pytest.raises(PerturbgenError, match="has not been trained"):
        pg.NBVAE(cells).latent()
    with pytest.raises(ConfigError, match="encoder"):
        pg.DGD(cells, encoder=[8])


def test_the_vehicle_can_be_named(cells: AnnData) -> None:
    own = AnnData(cells.X, obs=cells.obs, var=cells.var)
    vehicle = str(cells.uns["vehicle"])
    assert pg.NBVAE(own, vehicle=vehicle)._own_cells(None).uns["vehicle"] == vehicle
    assert "vehicle" not in own.uns


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_the_readmes_lines_run_as_they_stand(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    exec(blocks[number], {})
