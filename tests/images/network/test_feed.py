"""The feed: every image once, one experiment a batch, decoded elsewhere and never far ahead; and
augmentations."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.images.fields import read_field
from perturbgen.images.network import feed as feeding
from perturbgen.images.network.feed import ImageFeed, _mean_of_squares
from perturbgen.images.network.fields import Fields, Vocabulary
from perturbgen.images.network.model import _augmented, _turned
from perturbgen.images.network.settings import AugmentSettings, ImageData, ImageSettings
from perturbgen.nn.layers import Draws

WORDS = Vocabulary(tuple(range(8)), ("HUVEC", "RPE"), ("HUVEC-01", "RPE-01"))


@pytest.fixture(scope="module")
def fields(plates: Path) -> Fields:
    return Fields.read(ImageData(path=plates))


def make(fields: Fields, *, ahead: int = 2, one_experiment: bool = True) -> ImageFeed:
    training = {"batch_size": 7, "one_experiment": one_experiment}
    values = {"seed": 3, "data": {"path": ".", "ahead": ahead}, "training": training}
    return ImageFeed(fields, WORDS, ImageSettings.model_validate(values))


def test_an_epoch_reads_every_image_once_and_not_on_this_thread(
    fields: Fields, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()
    threads = set()

    def counting(files: dict[int, Path], channels: list[int]) -> np.ndarray:
        seen.update(str(path) for path in files.values())
        threads.add(threading.current_thread())
        return read_field(files, channels)

    monkeypatch.setattr(feeding, "read_field", counting)
    indices = torch.cat([batch.index for batch in make(fields).epoch(0)])
    assert sorted(indices.tolist()) == list(range(len(fields)))
    assert set(seen.values()) == {1}
    assert len(seen) == 6 * len(fields)
    assert threading.current_thread() not in threads


def test_no_more_than_the_batches_ahead_are_decoded(
    fields: Fields, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, read = make(fields, ahead=1), []
    inner = feed.read
    monkeypatch.setattr(feed, "read", lambda i: (read.append(i), inner(i))[1])
    used = 0
    for batch in feed.epoch(0):
        used += len(batch.index)
        assert len(read) <= used + 7  # one batch of at most seven ahead of what was used
    assert used == len(read) == len(fields)


def test_a_batch_holds_one_experiment_and_its_labels(fields: Fields) -> None:
    feed = make(fields)
    assert feed.steps(1) == len(feed.plan(0)) == len(list(feed.epoch(1)))
    for number, batch in enumerate(feed.epoch(1)):
        rows = fields.table.iloc[batch.index.numpy()]
        assert rows["experiment"].nunique() == 1
        assert feed.total(number) == len(rows) <= 7
        known = rows["sirna_id"].to_numpy() < 8
        assert batch.label.numpy()[known].tolist() == rows["sirna_id"].to_numpy()[known].tolist()
        assert (batch.label.numpy()[~known] == -1).all()
        assert batch.experiment.tolist() == [
            WORDS.experiments.index(e) if e in WORDS.experiments else -1 for e in rows["experiment"]
        ]
        first = read_field(fields.files[int(batch.index[0])], list(fields.channels))
        np.testing.assert_allclose(batch.images[0].numpy(), first / 255, rtol=1e-6)


def test_mixed_batches_mix_and_parts_are_equal(fields: Fields) -> None:
    mixed = [
        fields.table.iloc[rows]["experiment"].nunique()
        for rows in make(fields, one_experiment=False).plan(0)
    ]
    assert np.mean(mixed) > 2
    sizes = {len(rows) for rows in make(fields, one_experiment=False).plan(0)}
    assert max(sizes) - min(sizes) <= 1


def test_the_order_is_that_of_seed_and_epoch_and_can_be_entered_anywhere(fields: Fields) -> None:
    feed = make(fields)
    whole = [batch.index.tolist() for batch in feed.epoch(2)]
    assert [batch.index.tolist() for batch in feed.epoch(2, skip=3)] == whole[3:]
    assert whole != [batch.index.tolist() for batch in feed.epoch(3)]
    shares = [
        [batch.index.tolist() for batch in feed.epoch(2, rank=rank, ranks=2)] for rank in (0, 1)
    ]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [
        sorted(batch) for batch in whole
    ]
    assert sorted(i for batch in feed.once() for i in batch.index.tolist()) == list(
        range(len(fields))
    )


def test_a_feed_that_is_left_early_leaves_no_thread_behind(fields: Fields) -> None:
    stream = make(fields).epoch(0)
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_parts_of_both_splits(plates: Path) -> None:
    def experiments(**options: object) -> dict[str, set[str]]:
        table = Fields.read(ImageData(path=plates, **options)).table  # type: ignore[arg-type]
        return {str(part): set(rows["experiment"]) for part, rows in table.groupby("part")}

    assert experiments() == {
        "train": {"HUVEC-01", "RPE-01"},
        "validation": {"HUVEC-02"},
        "test": {"HUVEC-03", "RPE-02"},
    }
    wilds = experiments(split="wilds")
    assert wilds["train"] == wilds["id_test"] == {"HUVEC-01", "HUVEC-02", "RPE-01"}
    assert experiments(validation=["RPE-01"])["validation"] == {"RPE-01"}
    assert experiments(cell_types=["RPE"]) == {"train": {"RPE-01"}, "test": {"RPE-02"}}


def test_classes_are_the_treatments_of_training_and_controls_if_asked(fields: Fields) -> None:
    assert fields.class_names(controls=False) == list(range(8))
    assert fields.class_names(controls=True) == list(range(10))


def test_the_kaggle_layout_gives_the_same_fields(tmp_path: Path) -> None:
    from perturbgen.simulation.images import write_rxrx1

    two, kaggle = (
        Fields.read(ImageData(path=write_rxrx1(tmp_path / layout, size=8, sirnas=1, layout=layout)))
        for layout in ("2020", "kaggle")
    )
    assert two.table["site_id"].tolist() == kaggle.table["site_id"].tolist()
    tested = (kaggle.table["part"] == "test") & (kaggle.table["well_type"] == "treatment")
    assert kaggle.table.loc[tested, "sirna_id"].isna().all()
    rest = ~tested.to_numpy()
    assert (
        two.table["sirna_id"][rest].tolist() == kaggle.table["sirna_id"][rest].astype(int).tolist()
    )


def test_bad_images_are_explained(
    plates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "bad"
    shutil.copytree(plates, root)
    first = root / "images" / "HUVEC-01" / "Plate1"
    (first / "B03_s1_w4.png").unlink()
    fields = Fields.read(ImageData(path=root))
    assert "left out for want of an image" in caplog.text
    assert "HUVEC-01_1_B03_1" not in fields.table["site_id"].tolist()
    cut_short = first / "B04_s1_w2.png"
    cut_short.write_bytes(cut_short.read_bytes()[:60])
    with pytest.raises(InputError, match=r"B04_s1_w2\.png cannot be read"):
        list(make(fields).epoch(0))
    for channel in range(1, 7):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(first / f"B04_s1_w{channel}.png")
    with pytest.raises(SchemaError, match=r"(8 x 8|16 x 16).*(16 x 16|8 x 8)"):
        list(make(fields).epoch(0))
    with pytest.raises(SchemaError, match="no cell type 'HEK'"):
        Fields.read(ImageData(path=plates, cell_types=("HEK",)))
    with pytest.raises(SchemaError, match="no experiment 'HUVEC-9'"):
        Fields.read(ImageData(path=plates, validation=("HUVEC-9",)))


def test_sixteen_bits_have_the_same_range(tmp_path: Path, fields: Fields) -> None:
    files = {}
    for channel in fields.channels:
        files[channel] = tmp_path / f"w{channel}.tif"
        Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(files[channel])
    deep = Fields(fields.table.iloc[:1], (files,), fields.channels)
    assert next(make(deep).once()).images.unique().tolist() == [1.0]


def test_shrinking_takes_means_of_squares() -> None:
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    assert _mean_of_squares(image, 2).tolist() == [[[2.5, 4.5], [10.5, 12.5]]]
    assert _mean_of_squares(np.zeros((2, 5, 7), np.float32), 2).shape == (2, 2, 3)
    with pytest.raises(SchemaError, match="cannot be shrunk by 9"):
        _mean_of_squares(image, 9)


def test_turning_permutes_pixels_of_each_image_by_itself() -> None:
    images = torch.arange(24.0).view(2, 1, 2, 6).repeat(1, 3, 1, 1)
    square = torch.arange(8.0).view(2, 1, 2, 2)
    choices = torch.tensor([[True, False, False], [False, True, True]])
    assert _turned(square, choices)[:, 0].tolist() == [[[2, 3], [0, 1]], [[5, 7], [4, 6]]]
    assert _turned(images, choices).shape == images.shape  # not square: no diagonal
    assert _turned(square, torch.zeros(2, 3, dtype=torch.bool)).equal(square)


def test_augmentation_is_that_of_its_draws() -> None:
    images = torch.rand(4, 6, 8, 8)
    strong = AugmentSettings(gain=0.2, offset=0.1, noise=0.05)

    def drawn(seed: int) -> torch.Tensor:
        return _augmented(images, strong, Draws(torch.Generator().manual_seed(seed)))

    assert drawn(1).equal(drawn(1))
    assert not drawn(1).equal(drawn(2))
    assert _augmented(images, AugmentSettings(turn=False), Draws(torch.Generator())).equal(images)
    gain = _augmented(
        torch.ones(500, 2, 1, 1), AugmentSettings(turn=False, gain=0.2), Draws(torch.Generator())
    )
    assert gain.std().item() == pytest.approx(0.2, rel=0.1)
    assert gain[:, 0].equal(gain[:, 1]) is False  # a factor for each channel


def test_unknown_labels_have_no_number() -> None:
    table = pd.DataFrame(
        {
            "sirna_id": [1, 99, None],
            "cell_type": ["RPE", "HEK", "RPE"],
            "experiment": ["x", "RPE-01", "x"],
        }
    )
    codes = WORDS.codes(table)
    assert codes["label"].tolist() == [1, -1, -1]
    assert codes["cell"].tolist() == [1, -1, 1]
    assert codes["experiment"].tolist() == [-1, 1, -1]
