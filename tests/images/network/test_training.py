"""A network on images through the one loop: it learns, resumes to the bit, and is asked about wells
three ways."""

from __future__ import annotations

import json
import logging
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from perturbgen.core.errors import ConfigError, InputError, SchemaError
from perturbgen.images.network import IMAGES
from perturbgen.images.network.evaluate import embed_run, evaluate_run
from perturbgen.images.network.feed import ImageBatch, ImageFeed
from perturbgen.images.network.fields import Fields, Vocabulary
from perturbgen.images.network.model import ImageClassifier
from perturbgen.images.network.predict import Predictions
from perturbgen.images.network.recipe import _balanced, _ImageCard, _network_of
from perturbgen.images.network.settings import ImageModelSettings, ImageSettings
from perturbgen.nn.layers import Draws
from perturbgen.train.checkpoint import load_state

pytestmark = pytest.mark.usefixtures("no_pictures")

WORDS = Vocabulary((0, 1, 2), ("A", "B"), ("x", "y"))


def changed(settings: ImageSettings, **sections: dict[str, object]) -> ImageSettings:
    values = settings.model_dump(exclude_unset=True)
    return ImageSettings.model_validate(
        {**values, **{k: {**values.get(k, {}), **v} for k, v in sections.items()}}
    )


def described(settings: ImageSettings) -> _ImageCard:
    return IMAGES.describe(settings, IMAGES.read(settings))


def batch(n: int = 12) -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    number = torch.arange(n)
    images = torch.rand(n, 6, 8, 8, generator=generator)
    return ImageBatch(number, images, number % 4 - 1, number % 2, number % 2)


def small(**options: object) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(ImageModelSettings(widths=(4,), embedding=5, **options), WORDS, 6)  # type: ignore[arg-type]


@pytest.mark.parametrize("adapter", ["stem", "mix", "colours"])
@pytest.mark.parametrize("head", ["softmax", "cosine", "cosface", "arcface"])
def test_every_stem_and_head_gives_probabilities_and_a_gradient(adapter: str, head: str) -> None:
    model = small(adapter=adapter, head=head)
    terms = model(batch(), Draws(torch.Generator()))
    assert terms["cross_entropy"].shape == (12,)
    # unlabelled images count for nothing
    assert terms["cross_entropy"][batch().label < 0].eq(0).all()
    terms["cross_entropy"].sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == []
    torch.testing.assert_close(
        model.log_p(model.embed(batch().images, batch().cell)).exp().sum(dim=1), torch.ones(12)
    )


def test_a_margin_makes_training_harder_and_leaves_prediction_alone() -> None:
    plain, with_margin = small(head="cosine"), small(head="cosface", margin=0.3)
    draws = Draws(torch.Generator())
    for model in (plain, with_margin):
        model.augment = model.augment.model_copy(update={"turn": False})
    known = batch().label >= 0
    easy, hard = (model(batch(), draws)["cross_entropy"][known] for model in (plain, with_margin))
    assert (hard > easy).all()
    z = plain.embed(batch().images, batch().cell)
    torch.testing.assert_close(plain.log_p(z), with_margin.log_p(z))
    torch.testing.assert_close(easy, -plain.log_p(z)[known, batch().label[known]])


def test_the_cell_type_changes_the_embedding_only_where_it_is_read() -> None:
    one = batch()
    for reads in (True, False):
        model = small(cell_type=reads).eval()
        same = torch.equal(model.embed(one.images, one.cell), model.embed(one.images, 1 - one.cell))
        assert same is not reads
    model = small().eval()
    # a cell type never seen has no column
    unknown = model.embed(one.images, torch.full_like(one.cell, -1))
    assert torch.isfinite(unknown).all()


def test_penalties_are_terms_that_are_annealed() -> None:
    for kind, name in (("coral", "coral"), ("dann", "dann")):
        model = small(penalty=kind)
        terms = model(batch(), Draws(torch.Generator()))
        assert model.annealed == (name,)
        assert terms[name].shape == (12,)
        assert terms[name].detach().mean().item() > 0
    assert small().annealed == ()


def test_class_weights_by_hand() -> None:
    weights = _balanced(torch.tensor([0, 0, 0, 1, -1]), 3)
    assert weights.tolist() == [pytest.approx(4 / 9), pytest.approx(4 / 3), 0.0]
    model = small(class_weights=True)
    model.weights.copy_(torch.tensor([1.0, 2.0, 3.0]))
    z = model.embed(batch().images, batch().cell)
    label = batch().label
    plain = -model.log_p(z).gather(1, label.clamp(min=0)[:, None])[:, 0]
    known = label >= 0
    torch.testing.assert_close(
        model.cross_entropy(z, label)[known], plain[known] * (label[known] + 1)
    )


def test_a_run_holds_what_it_needs_and_its_numbers(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [0, 1]
    assert {
        "validation/objective",
        "validation/accuracy",
        "validation/well accuracy",
        "images_per_second",
    } <= set(records[0])
    assert records[1]["train/cross_entropy"] < records[0]["train/cross_entropy"]
    card = _ImageCard.read(trained)
    assert card.classes == tuple(range(8))
    assert card.cells == ("HUVEC", "RPE")
    assert card.channels == (1, 2, 3, 4, 5, 6)
    assert any(path.name.startswith("events") for path in trained.iterdir())


def test_resumed_is_uninterrupted(settings: ImageSettings, trained: Path, tmp_path: Path) -> None:
    short = IMAGES.train(
        changed(settings, training={"epochs": 1}), runs=tmp_path, accelerator="cpu"
    )
    IMAGES.resume(short, ["training.epochs=2"], accelerator="cpu")
    one, two = (load_state(run, "last")["model"] for run in (short, trained))
    assert all(value.equal(two[name]) for name, value in one.items())
    with pytest.raises(ConfigError, match=r"data\.shrink"):
        IMAGES.resume(short, ["data.shrink=2"], accelerator="cpu")


def test_resume_refuses_other_images(settings: ImageSettings, plates: Path, tmp_path: Path) -> None:
    run = IMAGES.train(changed(settings, training={"epochs": 1}), runs=tmp_path, accelerator="cpu")
    table = pd.read_parquet(run / "fields.parquet")
    table.iloc[1:].to_parquet(run / "fields.parquet", index=False)
    with pytest.raises(SchemaError, match="not those that"):
        IMAGES.resume(run, ["training.epochs=2"], accelerator="cpu")


def test_starting_from_a_run_begins_with_its_weights(
    settings: ImageSettings, trained: Path, plates: Path
) -> None:
    tuned = changed(
        settings, data={"path": plates, "cell_types": ["RPE"]}, model={"start": trained}
    )
    card = described(tuned)
    assert card.classes == _ImageCard.read(trained).classes
    assert card.cells == ("HUVEC", "RPE")
    assert card.experiments == ("RPE-01",)
    fields = Fields.read(tuned.data).part("train")
    feed = ImageFeed(fields, card.vocabulary(), tuned, kind=card.image)
    model = _network_of(tuned, card, feed)
    best = load_state(trained, "best")["model"]
    assert all(
        value.equal(best[name]) for name, value in model.state_dict().items() if name != "weights"
    )
    again = changed(tuned, data={"path": plates, "cell_types": [], "validation": ["HUVEC-01"]})
    with pytest.raises(ConfigError, match="1 of experiment that are withheld here: 'HUVEC-01'"):
        described(again)
    sites = changed(tuned, data={"path": plates, "split": "wilds"})
    with pytest.raises(ConfigError, match="of site_id that are withheld here: 'RPE-01_1_"):
        described(sites)
    other = changed(tuned, model={"start": trained, "embedding": 9})
    with pytest.raises(ConfigError, match="has other parameters"):
        _network_of(other, card, feed)


def test_settings_that_contradict_each_other_are_refused(settings: ImageSettings) -> None:
    with pytest.raises(ValueError, match="compares experiments within a batch"):
        changed(settings, model={"penalty": "coral"})
    with pytest.raises(ValueError, match="'margin' is of cosface"):
        changed(settings, model={"margin": 0.5})
    with pytest.raises(ValueError, match="'widths' are of the small backbone"):
        changed(settings, model={"backbone": "resnet18"})


@pytest.mark.parametrize("penalty", ["coral", "dann"])
def test_penalties_train_on_mixed_batches(
    settings: ImageSettings, tmp_path: Path, penalty: str
) -> None:
    run = IMAGES.train(
        changed(
            settings, model={"penalty": penalty}, training={"one_experiment": False, "epochs": 1}
        ),
        runs=tmp_path,
        accelerator="cpu",
    )
    record = json.loads((run / "metrics.jsonl").read_text())
    assert record[f"train/{penalty}"] > 0


def test_statistics_of_an_experiment_take_its_stain_away(trained: Path) -> None:
    run = IMAGES.load(trained)
    fields = Fields.read(run.settings.data).part("test")

    class Brighter(type(run.feed(fields))):  # type: ignore[misc]
        def read(self, field: int) -> np.ndarray:
            return super().read(field) * 3

    plain, bright = run.feed(fields), run.feed(fields)
    bright.__class__ = Brighter
    for kind, holds in (("running", False), ("batch", True), ("own", True)):
        one, two = (Predictions.of(run.model, feed, kind).embedding for feed in (plain, bright))  # type: ignore[arg-type]
        unlike = np.abs(one - two).mean() / one.std()
        assert bool(unlike < 0.05) is holds, (kind, unlike)


def test_a_run_reads_its_images_on_the_device_that_it_lies_on(trained: Path) -> None:
    run = IMAGES.load(trained)
    run.model.to("meta")  # stands for a GPU: any device that is not the cpu's
    part = next(run.feed(Fields.read(run.settings.data).part("test")).once())
    assert {part.images.device.type, part.cell.device.type, run.model.weights.device.type} == {
        "meta"
    }


def test_predictions_are_of_their_fields_whatever_the_batches(trained: Path) -> None:
    run = IMAGES.load(trained)
    fields = Fields.read(run.settings.data).part("test")
    whole = Predictions.of(run.model, run.feed(fields), "running")
    half = Predictions.of(
        run.model, run.feed(fields.where(np.arange(len(fields)) % 2 == 1)), "running"
    )
    np.testing.assert_allclose(whole.embedding[1::2], half.embedding, atol=1e-5)
    np.testing.assert_allclose(np.exp(whole.log_p).sum(axis=1), 1, rtol=1e-5)


def planted(noise: float, labelled: bool = True) -> Predictions:
    """Two experiments of two plates with two wells and two sites; classes 0 to 3, and 9 for the
    controls."""
    rows = []
    for experiment, plate, well, site in product("xy", (1, 2), "CDE", (1, 2)):
        group = (plate - 1 + (experiment == "y")) % 2
        sirna = 9 if well == "C" else 2 * group + "DE".index(well) if labelled else None
        rows.append(
            {
                "well_id": f"{experiment}_{plate}_{well}",
                "site_id": f"{experiment}_{plate}_{well}_{site}",
                "cell_type": "A" if experiment == "x" else "B",
                "experiment": experiment,
                "plate": plate,
                "well_type": "treatment" if well != "C" else "negative_control",
                "sirna_id": sirna,
            }
        )
    table = pd.DataFrame(rows)
    classes = (0, 1, 2, 3, 9)
    log_p = np.full((len(table), 5), -3.0) + noise * np.random.default_rng(0).normal(
        size=(len(table), 5)
    )
    words = Vocabulary(classes, ("A", "B"), ("x", "y"))
    known = words.codes_of(table.fillna({"sirna_id": 0}), "label")
    log_p[np.arange(len(table)), known] += 2
    return Predictions(
        table, np.zeros((len(table), 2), np.float32), log_p.astype(np.float32), words
    )


def test_accuracies_by_decoding_are_apart_and_controls_are_not_asked_about() -> None:
    groups = pd.Series([0, 0, 1, 1], index=pd.Index([0, 1, 2, 3], name="sirna_id"))
    rows = planted(0.0).accuracy_rows(groups)
    assert [(row["of"], row["decoding"], row["n"]) for row in rows] == [
        ("image", "independent", 16),
        ("well", "independent", 8),
        ("well", "plate_group", 8),
        ("well", "assignment", 8),
    ]
    assert all(row["A"] == row["B"] == row["all"] == 1 for row in rows)
    noisy = {(row["of"], row["decoding"]): row["all"] for row in planted(2.0).accuracy_rows(groups)}
    assert noisy["well", "independent"] < noisy["well", "assignment"]
    assert len(planted(0.0).accuracy_rows(None)) == 2
    assert planted(0.0, labelled=False).accuracy_rows(groups) == []


def test_wells_average_their_sites() -> None:
    found = planted(1.0)
    wells, scores = found.wells()
    one = scores.loc["x_1_D"].to_numpy()
    mean = found.log_p[(found.table["well_id"] == "x_1_D").to_numpy()].mean(axis=0)
    np.testing.assert_allclose(one, mean - np.logaddexp.reduce(mean), rtol=1e-5)
    assert wells.loc["x_1_D", "plate"] == 1
    numbers = planted(0.0).numbers()
    assert numbers["accuracy"] == numbers["well accuracy"] == 1
    assert numbers["objective"] == pytest.approx(1.0)  # -(-3 + 2)


def test_evaluate_and_embed_say_what_they_were_asked(trained: Path) -> None:
    run = IMAGES.load(trained)
    rows = evaluate_run(run, part=["test"])
    assert [row["decoding"] for row in rows] == [
        "independent",
        "independent",
        "plate_group",
        "assignment",
    ]
    assert {"HUVEC", "RPE", "all"} <= set(rows[0])
    profiles = embed_run(run, part=["test"])
    assert profiles.values.shape == (len(profiles.meta), 6)
    assert set(profiles.meta["part"]) == {"test"}
    assert len(embed_run(run, part=[])) > len(profiles)
    with pytest.raises(InputError, match="no part 'tets'"):
        evaluate_run(run, part=["tets"])
    with pytest.raises(SchemaError, match="no field of"):
        evaluate_run(run, part=["id_test"])


def test_other_channels_are_refused(trained: Path) -> None:
    run = IMAGES.load(trained)
    fields = Fields.read(run.settings.data)
    fewer = type(fields)(fields.table, fields.files, fields.channels[:5])
    with pytest.raises(SchemaError, match=r"channels 1, 2, 3, 4, 5\n"):
        run.feed(fewer)


def test_a_card_of_another_kind_is_explained(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "images.json").write_text("{}")
    with pytest.raises(InputError, match="does not describe a network"):
        _ImageCard.read(tmp_path)
    text = json.loads((trained / "images.json").read_text())
    (tmp_path / "images.json").write_text(json.dumps({**text, "format": 7}))
    with pytest.raises(InputError, match="has format 7"):
        _ImageCard.read(tmp_path)


def test_without_a_validation_part_the_run_says_so(
    settings: ImageSettings, plates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = changed(settings, data={"path": plates, "cell_types": ["RPE"]}, training={"epochs": 1})
    with caplog.at_level(logging.WARNING):
        run = IMAGES.train(alone, runs=tmp_path, accelerator="cpu")
    assert "no field to validate on" in caplog.text
    assert "train/objective" in json.loads((run / "metrics.jsonl").read_text())
