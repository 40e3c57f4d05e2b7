"""What TensorBoard shows of a network on images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from perturbgen.images.network import IMAGES, ImageRun
from perturbgen.images.network.fields import Fields
from perturbgen.images.network.predict import Predictions, _confusion_figure, _exposed, _image_grid
from perturbgen.images.pictures import sheet


def test_pictures_show_every_class_and_the_chosen_fields(trained: Path) -> None:
    run: ImageRun = IMAGES.load(trained)
    feed = run.feed(Fields.read(run.settings.data).part("validation"))
    found = Predictions.of(run.model, feed, "batch")
    axes = _confusion_figure(found).axes[0]
    shown = np.asarray(axes.images[0].get_array())
    assert shown.shape == (8, 8)
    np.testing.assert_allclose(shown.sum(axis=1), 1)
    grid = _image_grid(found, feed, np.arange(5))
    # 16 pixels enlarged ten times under two lines
    assert grid.shape == (2 * (160 + 2 * 18 + 4), 4 * (160 + 4), 3)
    assert grid.dtype == np.uint8
    assert grid[36:196, :160].any()


def test_bright_fields_are_darkened_alike_and_dark_ones_left() -> None:
    field = np.zeros((6, 10, 10), np.uint8)
    field[:, :5] = 255  # every channel beyond its display range
    bright, dim = _exposed([field, field // 16])
    assert bright[:5].max() == 255
    assert bright[:5].min() < 255  # the sum of six colours is no longer white
    alone = _exposed([field // 16])[0]
    assert dim.max() < alone.max() <= 255
    assert not bright[5:].any()


def test_pictures_stand_side_by_side_under_their_words() -> None:
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    found = sheet([picture] * 5, [["name"]] * 5)
    assert found.shape == (2 * (18 + 2 + 4), 4 * (3 + 4), 3)
    np.testing.assert_array_equal(found[18:20, 7:10], picture)
    np.testing.assert_array_equal(found[42:44, :3], picture)
    assert not found[24:, 7:].any(), "the last row is filled up with black"


def test_the_run_shows_them_and_names_the_points_of_its_projector(trained: Path) -> None:
    assert (trained / "projector_config.pbtxt").read_text().count("embedding") >= 1
    labels = next(trained.glob("*/embedding/metadata.tsv")).read_text().splitlines()[0].split("\t")
    assert labels[:3] == ["sirna_id", "cell_type", "experiment"]
