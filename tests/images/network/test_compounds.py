"""BBBC021 for networks: parts without a common compound or plate, and neighbours that share a
mechanism."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.cli import _run as command
from perturbgen.core.errors import ConfigError, InputError, SchemaError
from perturbgen.images.network import IMAGES
from perturbgen.images.network.evaluate import (
    _matching_rows,
    corrected_wells,
    embed_run,
    evaluate_run,
    matchings,
)
from perturbgen.images.network.fields import Fields
from perturbgen.images.network.recipe import _ImageCard
from perturbgen.images.network.settings import ImageData, ImageSettings
from perturbgen.profiles import Profiles
from perturbgen.simulation.images import ImageLayout, write_bbbc021
from tests.conftest import without_pictures

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="session")
def bbbc021(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bbbc021(
        tmp_path_factory.mktemp("compounds") / "bbbc021",
        layout=ImageLayout(sites=2, shape=(16, 20)),
    )


def settings_of(path: Path, **sections: dict[str, object]) -> ImageSettings:
    base: dict[str, dict[str, object]] = {
        "data": {"path": path},
        "model": {"widths": [4, 8], "embedding": 6},
        "training": {"epochs": 2, "batch_size": 16, "learning_rate": 0.01},
        "board": {"every": 2, "cells": 20},
    }
    return ImageSettings.model_validate(
        {key: {**value, **sections.get(key, {})} for key, value in base.items()}
    )


def fields_of(path: Path, **options: object) -> Fields:
    return Fields.read(ImageData.model_validate({"path": path, "compounds": options}))


@pytest.fixture(scope="session")
def withheld(bbbc021: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that never saw the first of four groups of compounds."""
    settings = settings_of(bbbc021, data={"path": bbbc021, "compounds": {"fold": 0}})
    with without_pictures():
        return IMAGES.train(settings, runs=tmp_path_factory.mktemp("runs"), accelerator="cpu")


def test_no_plate_of_the_validation_is_trained_on(bbbc021: Path) -> None:
    table = fields_of(bbbc021).table
    plates = {str(part): set(rows["plate"]) for part, rows in table.groupby("part")}
    assert plates == {
        "train": {"Week1_22121", "Week2_22121"},
        "validation": {"Week1_22122", "Week2_22122"},
    }
    named = Fields.read(ImageData(path=bbbc021, validation=("Week1_22121",)))
    assert set(named.part("validation").table["plate"]) == {"Week1_22121"}
    assert set(table["experiment"]) == set(table["plate"])
    assert set(fields_of(bbbc021, batch="week").table["experiment"]) == {"Week1", "Week2"}


@pytest.mark.parametrize("fold", range(4))
def test_no_compound_of_the_test_is_trained_on_and_every_mechanism_is_tested(
    bbbc021: Path, fold: int
) -> None:
    table = fields_of(bbbc021, fold=fold).table
    compounds = {str(part): set(rows["compound"].dropna()) for part, rows in table.groupby("part")}
    assert not compounds["test"] & (compounds["train"] | compounds["validation"])
    tested = table[table["part"] == "test"]
    assert set(tested["moa"]) == {"Actin disruptors", "DNA damage", "Eg5 inhibitors"}
    assert tested["compound"].nunique() == 3
    assert (
        tested.groupby("treatment")["replicate"].nunique() == 2
    ).all()  # none of its plates was trained on
    learned = fields_of(bbbc021, fold=fold, label="moa").table
    parts = (
        learned[learned["well_type"] == "treatment"]
        .dropna(subset="compound")
        .groupby("compound")["part"]
    )
    assert (parts.nunique() == 1).all()
    assert set(learned.loc[learned["part"] == "validation", "fold"]) == {(fold + 1) % 4}


def test_every_compound_is_tested_by_one_fold_and_folds_follow_their_seed(bbbc021: Path) -> None:
    def tested(seed: int) -> list[frozenset[str]]:
        tables = (fields_of(bbbc021, fold=fold, seed=seed).table for fold in range(4))
        return [frozenset(table.loc[table["part"] == "test", "compound"]) for table in tables]

    assert sorted(name for names in tested(0) for name in names) == sorted(
        set(fields_of(bbbc021).table["compound"].dropna()) - {"DMSO", "nobody knows"}
    )
    assert tested(0) == tested(0) != tested(1)


def test_classes_are_treatments_compounds_or_mechanisms(bbbc021: Path) -> None:
    everything = fields_of(bbbc021)
    names = everything.class_names(controls=False)
    assert len(names) == 2 * 13
    assert "compound A1 0.003" in names
    assert not [name for name in names if "DMSO" in str(name) or "UNKNOWN" in str(name)]
    assert "DMSO 0" in everything.class_names(controls=True)
    assert len(fields_of(bbbc021, label="compound").class_names(controls=False)) == 13
    mechanisms = fields_of(bbbc021, label="moa", fold=1).class_names(controls=False)
    assert mechanisms == ["Actin disruptors", "DNA damage", "Eg5 inhibitors"]


def test_settings_that_do_not_go_together_are_refused(bbbc021: Path, plates: Path) -> None:
    for options, message in (
        ({"label": "moa"}, "set data.compounds.fold"),
        ({"fold": 4}, "fold 4 of 4"),
        ({"folds": 5}, "no effect without 'fold'"),
    ):
        with pytest.raises(ValueError, match=message):
            fields_of(bbbc021, **options)
    with pytest.raises(InputError, match=r"data\.split has no effect"):
        Fields.read(ImageData(path=bbbc021, split="wilds"))
    with pytest.raises(InputError, match=r"data\.compounds has no effect"):
        fields_of(plates, fold=0)
    with pytest.raises(SchemaError, match="no plate 'Week1_1'"):
        Fields.read(ImageData(path=bbbc021, validation=("Week1_1",)))
    with pytest.raises(SchemaError, match="names plates"):
        Fields.read(
            ImageData.model_validate(
                {
                    "path": bbbc021,
                    "validation": ["Week1_22121"],
                    "compounds": {"label": "moa", "fold": 0},
                }
            )
        )


def test_the_real_tables_without_images_and_with_some(
    bbbc021: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(bbbc021, tmp_path / "copy", ignore=shutil.ignore_patterns("Week2"))
    with caplog.at_level(logging.WARNING):
        fields = Fields.read(ImageData(path=folder))
    assert "fields left out for want of an image" in caplog.text
    assert set(fields.table["week"]) == {"Week1"}
    shutil.rmtree(folder / "Week1")
    with pytest.raises(InputError, match="none of the images that the tables"):
        Fields.read(ImageData(path=folder))


def described(settings: ImageSettings) -> _ImageCard:
    return IMAGES.describe(settings, IMAGES.read(settings))


def planted(noise: float) -> Profiles:
    """Wells of four compounds of two mechanisms in two weeks, and DMSO: a mechanism is a direction
    of four."""
    rows, values = [], []
    rng = np.random.default_rng(0)
    for week, (compound, moa) in enumerate(
        [("a", "M"), ("b", "M"), ("c", "N"), ("d", "N"), ("DMSO", "DMSO")] * 2
    ):
        name = compound if moa == "DMSO" else f"{compound}{week // 5}"
        for well in range(3):
            keys = {"plate": f"W{week // 5}", "well": f"{compound}{well}", "week": f"W{week // 5}"}
            rows.append(
                keys
                | {
                    "compound": name,
                    "concentration": "1",
                    "moa": moa,
                    "cell_type": "X",
                    "part": "train",
                }
            )
            values.append(np.eye(4)["MN".find(moa)] * (moa != "DMSO") + noise * rng.normal(size=4))
    return Profiles(np.array(values), pd.DataFrame(rows), pd.Index([f"f{i}" for i in range(4)]))


def test_new_compounds_are_asked_alone_and_never_answer_for_each_other() -> None:
    wells = planted(0.01)
    whole = matchings(wells)
    assert {name: str(found) for name, found in whole.items()} == {"NSC": "8/8", "NSCB": "8/8"}
    found = matchings(wells, withheld=["a0", "c1"])
    assert list(found) == ["NSC of new compounds", "NSCB of new compounds"]
    for name in found:
        assert sorted(found[name].table["compound"]) == ["a0", "c1"]
        assert not set(found[name].table["neighbour"]) & {"a0", "c1"}
        assert found[name].correct == 2
    alone = matchings(wells, withheld=["a0", "b0", "a1", "b1"])["NSC of new compounds"]
    assert str(alone) == "0/4"  # all compounds of a mechanism are away: nobody can match


def test_the_same_week_is_no_neighbour() -> None:
    table = matchings(planted(0.01))["NSCB"].table
    assert (table["compound"].str[-1] != table["neighbour"].str[-1]).all()
    noise = matchings(planted(30.0))["NSC"]
    assert noise.correct < noise.total


def test_wells_are_corrected_by_the_vehicle_and_need_it() -> None:
    wells = corrected_wells(planted(0.1))
    assert set(wells) == {"raw", "z + TVN", "z in each plate + TVN"}
    scaled = wells["z + TVN"]
    dmso = scaled.values[(scaled.meta["compound"] == "DMSO").to_numpy()]
    np.testing.assert_allclose(dmso.mean(axis=0), 0, atol=1e-6)
    treated = planted(0.1)
    with pytest.raises(SchemaError, match="no DMSO well"):
        corrected_wells(treated.where((treated.meta["compound"] != "DMSO").to_numpy()))


def test_rows_ask_about_what_was_withheld_where_it_was() -> None:
    fields = planted(0.01)
    rows = _matching_rows(fields, ("train",))
    assert {row["decoding"] for row in rows} >= {"NSC, raw", "NSCB, z + TVN"}
    assert all(row["n"] == 8 and row["X"] == row["all"] for row in rows)
    part = np.where(fields.meta["compound"] == "a0", "test", "train")
    some = Profiles(fields.values, fields.meta.assign(part=part), fields.features)
    assert {row["n"] for row in _matching_rows(some, ("test",))} == {1}
    assert "NSC of new compounds, raw" in {row["decoding"] for row in _matching_rows(some, ())}
    assert _matching_rows(some, ("train",)) == []


def test_a_run_without_some_compounds_is_asked_about_them(withheld: Path) -> None:
    card = _ImageCard.read(withheld)
    assert card.label == "treatment"
    assert card.channels == (1, 2, 4)
    assert len(card.classes) == 2 * 10
    run = IMAGES.load(withheld)
    rows = {(row["of"], row["decoding"]): row for row in evaluate_run(run, part=("test",))}
    assert ("well", "independent") not in rows  # their treatments are no classes
    assert rows["treatment", "NSC of new compounds, raw"]["n"] == 6
    accuracies = evaluate_run(run, part=("validation",))
    assert {row["of"] for row in accuracies} == {"image", "well"}
    profiles = embed_run(run, part=())
    assert {"compound", "concentration", "moa", "week", "fold", "part"} <= set(profiles.meta)
    assert len(profiles) == len(fields_of(run.settings.data.path).table)


def test_mechanisms_are_named_for_new_compounds(bbbc021: Path, tmp_path: Path) -> None:
    settings = settings_of(
        bbbc021, data={"path": bbbc021, "compounds": {"fold": 1, "label": "moa"}}
    )
    run = IMAGES.load(IMAGES.train(settings, runs=tmp_path, accelerator="cpu"))
    rows = {(row["of"], row["decoding"]): row for row in evaluate_run(run, part=("test",))}
    assert rows["well", "independent"]["n"] == 3 * 2 * 2  # compounds, concentrations, replicates
    with pytest.raises(SchemaError, match="images whose labels are treatment"):
        run.feed(fields_of(bbbc021, fold=1))


def test_a_run_of_rxrx1_is_no_start_for_bbbc021(trained: Path, bbbc021: Path) -> None:
    settings = settings_of(bbbc021, model={"start": trained})
    with pytest.raises(ConfigError, match="tells sirna_id apart, these images treatment"):
        described(settings)


def test_a_start_that_was_trained_on_withheld_compounds_is_refused(
    bbbc021: Path, withheld: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """``withheld`` has not seen group 0: a start for itself, none for group 1, whose compounds it
    was trained on."""

    def start(before: Path, fold: int | None) -> ImageSettings:
        return settings_of(
            bbbc021, data={"path": bbbc021, "compounds": {"fold": fold}}, model={"start": before}
        )

    same, other, every = start(withheld, 0), start(withheld, 1), start(withheld, None)
    assert described(same).classes == _ImageCard.read(withheld).classes
    described(every)  # withholds plates only, the same as the start
    away = sorted(set(Fields.read(other.data).part("test").table["compound"]))
    with pytest.raises(
        ConfigError, match=f"{len(away)} of compound that are withheld here: '{away[0]}'"
    ) as caught:
        described(other)
    assert "withhold the same in both runs" in str(caught.value)
    plates = other.model_copy(update={"data": ImageData(path=bbbc021, validation=("Week1_22121",))})
    with pytest.raises(ConfigError, match="1 of experiment that are withheld here: 'Week1_22121'"):
        described(plates)

    second = IMAGES.train(every, runs=tmp_path, accelerator="cpu")  # has seen group 0, too
    with pytest.raises(ConfigError, match="of compound that are withheld here"):
        described(start(second, 0))
    third = IMAGES.train(start(withheld, 0), runs=tmp_path, accelerator="cpu")
    assert described(start(third, 0)).label == "treatment"
    (third / "config.toml").write_text(
        (third / "config.toml").read_text().replace(str(withheld), str(second))
    )
    with pytest.raises(
        ConfigError, match="of compound that are withheld here"
    ):  # by the run before the run before
        described(start(third, 0))
    shutil.rmtree(second)
    described(start(third, 0))
    assert "what that was trained on is not known" in caplog.text


def test_commands_read_bbbc021(
    bbbc021: Path, withheld: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["images", "evaluate", str(withheld), "--turns", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["of"] for row in rows} == {"treatment"}
    out = tmp_path / "all.profiles"
    assert command(["images", "embed", str(withheld), "--out", str(out), "--json"]) == 0
    corrected = [
        "images",
        "correct",
        str(out),
        "--controls",
        "compound=DMSO",
        "--whiten",
        "1",
        "--out",
        str(tmp_path / "tvn"),
    ]
    assert command([*corrected, "--json"]) == 0
    capsys.readouterr()
    assert command(["images", "evaluate", str(out), "--turns", "--same", "moa"]) == 2
    assert "--turns has no effect" in capsys.readouterr().err
