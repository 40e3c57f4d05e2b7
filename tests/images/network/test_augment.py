"""Changes of images that no label depends on: flips, windows, rectangles of others, and answers
over all turns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from perturbgen.images.network import IMAGES
from perturbgen.images.network.feed import ImageBatch, _standardised
from perturbgen.images.network.fields import Fields, Vocabulary
from perturbgen.images.network.model import (
    ImageClassifier,
    _all_turns,
    _augmented,
    _cutmix,
    _zoomed,
)
from perturbgen.images.network.predict import Predictions
from perturbgen.images.network.settings import AugmentSettings, ImageModelSettings
from perturbgen.nn.layers import Draws


def draws(seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed))


def test_all_turns_are_the_eight_of_a_square_and_the_four_of_a_rectangle() -> None:
    square = torch.arange(4.0).view(1, 1, 2, 2)
    found = {tuple(view.flatten().tolist()) for view in _all_turns(square)}
    assert len(found) == 8
    assert (2, 0, 3, 1) in found  # a quarter turn
    assert len(_all_turns(torch.zeros(1, 1, 2, 3))) == 4


def test_a_window_is_enlarged_where_it_lies() -> None:
    ramp = torch.linspace(0, 1, 64).repeat(64, 1)[None, None].repeat(3, 1, 1, 1)
    place = torch.tensor([[0.5, 0.5], [0.0, 0.5], [1.0, 0.5]])
    out = _zoomed(ramp, torch.tensor([0.0, 0.5, 0.5]), place)
    torch.testing.assert_close(out[0], ramp[0], atol=1e-5, rtol=0)
    assert out[1].max().item() == pytest.approx(0.5, abs=0.02)  # the left half
    assert out[2].min().item() == pytest.approx(0.5, abs=0.02)  # the right half
    images = torch.rand(4, 3, 8, 8)
    assert not _augmented(images, AugmentSettings(turn=False, zoom=0.5), draws()).equal(images)


def test_cutmix_says_whose_pixels_there_are() -> None:
    n = 64
    images = torch.arange(float(n)).view(n, 1, 1, 1).expand(n, 2, 12, 10).contiguous()
    mixed, other, share = _cutmix(images, torch.arange(n), 0.7, draws())
    for i in range(n):
        foreign = mixed[i, 0] != i
        if other[i] == i:
            continue
        assert foreign.float().mean().item() == pytest.approx(share[i].item())
        assert set(mixed[i].unique().tolist()) <= {float(i), float(other[i])}
        rows, columns = foreign.any(dim=1), foreign.any(dim=0)
        assert foreign.sum() == rows.sum() * columns.sum()  # one rectangle
    assert sorted(other.tolist()) == list(range(n))
    assert 0.15 < (share == 0).float().mean().item() < 0.5  # three in ten stay whole
    assert _cutmix(images, torch.arange(n), 0.0, draws())[0].equal(images)


def test_a_mixed_image_counts_for_both_labels_by_area() -> None:
    words = Vocabulary((0, 1), ("A",), ("x",))
    torch.manual_seed(0)
    model = ImageClassifier(
        ImageModelSettings(widths=(4,), embedding=3),
        words,
        1,
        augment=AugmentSettings(turn=False, cutmix=1.0),
    )
    images = torch.rand(6, 1, 8, 8)
    zero = torch.zeros(6, dtype=torch.long)
    label = torch.tensor([0, 1, 0, 1, 0, -1])
    found = model(ImageBatch(torch.arange(6), images, label, zero, zero), draws(5))["cross_entropy"]
    mixed, other, share = _cutmix(images, label, 1.0, draws(5))
    z = model.embed(mixed, zero)
    by_hand = (1 - share) * model.cross_entropy(z, label) + share * model.cross_entropy(z, other)
    torch.testing.assert_close(found, by_hand)
    model.eval()
    plain = model(ImageBatch(torch.arange(6), images, label, zero, zero), draws(5))["cross_entropy"]
    torch.testing.assert_close(plain, model.cross_entropy(model.embed(images, zero), label))


def test_answers_over_all_turns_do_not_depend_on_how_an_image_lies(trained: Path) -> None:
    run = IMAGES.load(trained)
    fields = Fields.read(run.settings.data).part("test")

    class Turned(type(run.feed(fields))):  # type: ignore[misc]
        def read(self, field: int) -> np.ndarray:
            return super().read(field).transpose(0, 2, 1)[:, ::-1].copy()

    plain, turned = run.feed(fields), run.feed(fields)
    turned.__class__ = Turned
    for turns, same in ((False, False), (True, True)):
        one, two = (
            Predictions.of(run.model, feed, "running", turns=turns) for feed in (plain, turned)
        )
        assert np.allclose(one.embedding, two.embedding, atol=1e-4) is same
        np.testing.assert_allclose(np.exp(one.log_p).sum(axis=1), 1, rtol=1e-5)


def test_standardising_by_hand_and_of_an_empty_channel() -> None:
    image = np.array([[[1, 3], [1, 3]], [[5, 5], [5, 5]]], np.float32)
    assert _standardised(image).tolist() == [[[-1, 1], [-1, 1]], [[0, 0], [0, 0]]]
    assert _standardised(1e-3 * image)[0].flatten().tolist() == pytest.approx([-1, 1, -1, 1])
