"""The simulated screen: its files, its determinism, and that what is planted is found."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import ConfigError, InputError
from perturbgen.l1000 import GctxFile, extract
from perturbgen.l1000.connectivity import _cosine
from perturbgen.simulation.screen import screen_anndata, screen_settings, write_screen
from perturbgen.simulation.screen.plates import _simulate_screen


def auc(values: np.ndarray, labels: np.ndarray) -> float:
    """The mean over pairs of a group of the share of other groups' profiles less alike."""
    scores, shares = _cosine(values, values), []
    for i, label in enumerate(labels):
        same = np.flatnonzero((labels == label) & (np.arange(len(labels)) != i))
        others = np.sort(scores[i, labels != label])
        shares.append(np.searchsorted(others, scores[i, same]) / len(others))
    return float(np.concatenate(shares).mean())


@pytest.mark.parametrize("names", ["geo", "lincs2020"])
def test_the_files_are_those_of_cmap_and_extract_to_what_was_drawn(
    tmp_path: Path, names: str
) -> None:
    settings = screen_settings("tiny", overrides=[f"names={names}", "shuffled_genes=true"])
    folder = write_screen(settings, tmp_path / "screen", seed=3)
    memory = screen_anndata(settings, seed=3)
    (matrix,) = folder.glob("*.gctx")
    with GctxFile(matrix) as file:
        assert file.fields("samples") == []
        np.testing.assert_array_equal(file.read(), memory.X)
        assert file.samples.tolist() == memory.obs_names.tolist()
        assert file.genes.tolist() == memory.var_names.tolist()
    table, genes = next(folder.glob("inst*info*")), next(folder.glob("gene*info*"))
    found = extract([matrix], tmp_path / "out", metadata=[table], genes=genes)
    for column in (
        "perturbagen",
        "name",
        "pert_type",
        "role",
        "control",
        "cell_line",
        "time",
        "plate",
        "well",
    ):
        assert found.meta[column].tolist() == memory.obs[column].tolist(), column
    np.testing.assert_allclose(found.meta["dose"], memory.obs["dose"])
    truth = pd.read_csv(folder / "truth.tsv", sep="\t")
    np.testing.assert_allclose(truth["response"], memory.obs["true_response"])
    written = tomllib.loads((folder / "simulation.toml").read_text())
    assert written["seed"] == 3
    assert written["settings"]["design"]["compounds"] == 24


def test_one_seed_one_screen_and_plates_do_not_depend_on_each_other() -> None:
    settings = screen_settings("tiny")
    _, plates = _simulate_screen(settings, seed=1)
    first = next(plates)
    _, again = _simulate_screen(settings, seed=1)
    np.testing.assert_array_equal(next(again).values, first.values)
    _, other = _simulate_screen(settings, seed=2)
    assert not np.array_equal(next(other).values, first.values)


def test_the_design_is_as_asked_for() -> None:
    settings = screen_settings("tiny")
    obs = screen_anndata(settings, seed=0).obs
    design = settings.design
    assert obs["plate"].nunique() == settings.plates == 4
    per_plate = obs.groupby("plate", observed=True)["role"].value_counts().unstack()
    assert (per_plate["control"] == design.vehicle_wells).all()
    assert (per_plate["positive control"] == design.positive_controls * len(design.doses)).all()
    assert (per_plate["treatment"] == design.compounds * len(design.doses)).all()
    assert obs.groupby(["perturbagen", "dose"], observed=True)["well"].nunique().max() == 1, (
        "same well on every plate"
    )
    moved = screen_anndata(
        screen_settings("tiny", overrides=["design.same_wells=false"]), seed=0
    ).obs
    assert moved.groupby(["perturbagen", "dose"], observed=True)["well"].nunique().max() > 1
    many = screen_settings("tiny", overrides=["design.compounds=400"])
    assert many.design.maps == 3
    assert screen_anndata(many, seed=0).obs["perturbagen"].nunique() == 400 + 2 + 1


def test_hairpins_share_mechanisms_with_compounds_and_leave_the_compounds_as_they_were() -> None:
    strong = ["biology.gated_share=0", "biology.own_share=0.1", "biology.strength=3"]
    plain = screen_anndata(screen_settings("tiny", overrides=strong), seed=0).obs
    data = screen_anndata(screen_settings("tiny", overrides=[*strong, "design.genetic=24"]), seed=0)
    hairpins = data.obs[(data.obs["pert_type"] == "trt_sh").to_numpy()]
    assert hairpins["perturbagen"].nunique() == 24
    assert hairpins["perturbagen"].str.startswith("TRCN").all()
    assert hairpins["dose"].isna().all()
    assert set(hairpins["moa"]) == set(data.obs.loc[data.obs["pert_type"] == "trt_cp", "moa"])
    assert (data.obs["pert_type"] == "trt_cp").sum() == (plain["pert_type"] == "trt_cp").sum()
    assert (hairpins["true_response"] > 0).all()
    # A compound at its highest dose finds hairpins of its own mechanism.
    compounds = ((data.obs["pert_type"] == "trt_cp") & (data.obs["dose"] == 10)).to_numpy()
    genetic = (data.obs["pert_type"] == "trt_sh").to_numpy()
    moa = data.obs["moa"].astype(str).to_numpy()
    alike = _cosine(data.X[compounds], data.X[genetic])
    same = moa[compounds][:, None] == moa[genetic]
    assert alike[same].mean() > alike[~same].mean() + 0.1


def test_z_scores_are_those_of_a_plate() -> None:
    data = screen_anndata(screen_settings("tiny"), seed=0)
    for plate in data.obs["plate"].unique():
        values = data.X[data.obs["plate"] == plate]
        np.testing.assert_allclose(np.median(values, axis=0), 0, atol=1e-5)


def test_dose_and_replicates_tell_and_controls_do_not() -> None:
    data = screen_anndata(screen_settings("tiny", overrides=["biology.gated_share=0"]), seed=0)
    treated = data.obs["role"].eq("treatment").to_numpy()
    assert data.obs["true_response"][data.obs["control"]].eq(0).all()
    high = treated & (data.obs["dose"] == 10).to_numpy()
    low = treated & (data.obs["dose"] == 1).to_numpy()
    assert data.obs["true_response"][high].mean() > 1.5 * data.obs["true_response"][low].mean()
    labels = data.obs["perturbagen"].astype(str).to_numpy()
    assert auc(data.X[high], labels[high]) > auc(data.X[low], labels[low]) > 0.52
    assert auc(
        data.X[treated], np.random.default_rng(0).permutation(labels[treated])
    ) == pytest.approx(0.5, abs=0.03)


def test_position_effects_show_at_the_edge() -> None:
    quiet = ["noise.nuisance=0", "biology.state=0", "noise.position=3"]
    data = screen_anndata(screen_settings("tiny", overrides=quiet), seed=0)
    controls = data[data.obs["control"].to_numpy()]
    edge = controls.obs["well"].str[0].isin(["A", "P"]) | controls.obs["well"].str[1:].isin(
        ["01", "24"]
    )
    assert auc(controls.X, np.where(edge, "edge", "inside")) > 0.6
    flat = screen_anndata(
        screen_settings("tiny", overrides=[*quiet[:2], "noise.position=0"]), seed=0
    )
    controls = flat[flat.obs["control"].to_numpy()]
    assert auc(controls.X, np.where(edge, "edge", "inside")) == pytest.approx(0.5, abs=0.03)


def test_the_gated_mechanism_is_lost_to_cosine_and_a_non_linear_step_brings_it_back() -> None:
    overrides = [
        "biology.gated_share=1",
        "genes=978",
        "design.compounds=60",
        "design.positive_controls=0",
    ]
    data = screen_anndata(screen_settings("tiny", overrides=overrides), seed=0)
    chosen = (data.obs["role"].eq("treatment") & (data.obs["dose"] == 10)).to_numpy()
    labels, values = data.obs["perturbagen"].astype(str).to_numpy()[chosen], data.X[chosen]
    programme = data.uns["state_programme"]
    state = np.sign(values @ programme)
    assert (state == data.obs["true_state"][chosen]).mean() > 0.98, (
        "the state is to be seen in its programme"
    )
    without = values - np.outer(values @ programme / (programme @ programme), programme)
    assert auc(without, labels) < 0.56
    assert auc(state[:, None] * without, labels) > 0.65


def test_an_existing_folder_is_replaced_only_with_force_and_only_if_simulated(
    tmp_path: Path,
) -> None:
    settings = screen_settings("tiny", overrides=["genes=20"])
    folder = write_screen(settings, tmp_path / "a", seed=0)
    with pytest.raises(InputError, match="--force"):
        write_screen(settings, folder, seed=0)
    write_screen(settings, folder, seed=1, force=True)
    assert tomllib.loads((folder / "simulation.toml").read_text())["seed"] == 1
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="is no simulated screen"):
        write_screen(settings, tmp_path / "b", seed=0, force=True)
    assert (tmp_path / "b" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("design.cell_lines=['A_B']", "without '_'"),
        ("design.vehicle_wells=383", "do not hold"),
        ("design.compound=3", "did you mean 'compounds'"),
        ("names=clue", "geo"),
    ],
)
def test_settings_that_cannot_be_are_refused(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        screen_settings("tiny", overrides=[override])


def test_an_unknown_preset_has_a_near_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        screen_settings("tini")
