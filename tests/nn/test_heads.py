"""Margin heads: golden by hand, equal to pytorch-metric-learning, chunks equal to the whole."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from perturbgen.core.errors import ConfigError
from perturbgen.nn.likelihoods import ShapeError
from perturbgen.nn.margins import (
    MarginHead,
    _arcface,
    _class_margins,
    _class_weights,
    _curricular,
    _dynamic_scale,
    _fixed_scale,
    ball,
    poincare_distance,
)

KINDS = ("cosface", "arcface", "adacos", "curricular", "poincare")


def rows(n=12, width=5, classes=7, seed=0):
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=draws)
    return x.requires_grad_(), torch.randint(classes, (n,), generator=draws)


def head(kind="cosface", *, classes=7, width=5, seed=1, **options) -> MarginHead:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MarginHead(width, classes, kind=kind, **options)


def test_cosface_by_hand():
    made = head(classes=2, width=2, margin=0.3, scale=2.0)
    made.classes.data = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    loss = made(torch.tensor([[6.0, 8.0]]), torch.tensor([0]))
    own, other = math.exp(2 * (0.6 - 0.3)), math.exp(2 * 0.8)
    assert loss.item() == pytest.approx(-math.log(own / (own + other)), rel=1e-6)


def test_smoothing_focal_and_weights_by_hand():
    counts = torch.tensor([1, 3])
    made = head(
        classes=2,
        width=2,
        margin=0.0,
        scale=2.0,
        smoothing=0.2,
        focal=2.0,
        weighting="inverse",
        counts=counts,
    )
    made.classes.data = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    p = math.exp(1.2) / (math.exp(1.2) + math.exp(1.6))
    entropy = -0.9 * math.log(p) - 0.1 * math.log(1 - p)
    loss = made(torch.tensor([[0.6, 0.8]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(2.0 * (1 - p) ** 2 * entropy, rel=1e-5)


@pytest.mark.parametrize("m", [0.25, 0.5])
def test_the_arc_margin_is_the_cosine_of_the_wider_angle_and_never_rises(m):
    c = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    moved = _arcface(c, torch.tensor(m, dtype=torch.float64))
    usual = c > -math.cos(m)
    expected = torch.cos(torch.acos(c[usual]) + m)
    torch.testing.assert_close(moved[usual], expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(moved[usual][1:-1], expected[1:-1], atol=1e-9, rtol=0)
    assert (moved.diff() > 0).all()
    easy = _arcface(c, torch.tensor(m, dtype=torch.float64), easy=True)
    assert torch.equal(easy[c <= 0], c[c <= 0])


def test_curricular_scales_hard_classes_only():
    found = _curricular(torch.tensor([[0.5, 0.1]]), torch.tensor([0.3]), torch.tensor(0.2))
    torch.testing.assert_close(found, torch.tensor([[0.5 * 0.7, 0.1]]))


def test_the_adaptive_scale_by_hand():
    c = torch.tensor([0.9, 0.5, 0.8])
    b = torch.tensor([2.0, 4.0, 6.0])
    assert _dynamic_scale(c, b.log()).item() == pytest.approx(
        math.log(4) / math.cos(math.acos(0.8))
    )
    low = _dynamic_scale(torch.tensor([0.1, 0.2, 0.3]), b.log())
    assert low.item() == pytest.approx(math.log(4) / math.cos(math.pi / 4))
    assert _fixed_scale(36_000) == pytest.approx(math.sqrt(2) * math.log(35_999))


def test_curricular_and_adacos_follow_their_batches_in_training_only():
    x, y = rows()
    made = head("curricular", margin=0.5)
    own = (functional.normalize(x, dim=1) * functional.normalize(made.classes[y][:, 0], dim=1)).sum(
        1
    )
    made(x, y)
    assert made.t.item() == pytest.approx(0.01 * own.mean().item(), rel=1e-5)
    made.eval()(x, y)
    assert made.t.item() == pytest.approx(0.01 * own.mean().item(), rel=1e-5)
    ada = head("adacos")
    before = ada.scale.item()
    ada.eval()(x, y)
    assert ada.scale.item() == before == pytest.approx(_fixed_scale(7))
    ada.train()(x, y)
    assert ada.scale.item() != before


@pytest.mark.parametrize("name", ["cosface", "arcface", "sub-center"])
def test_equal_to_pytorch_metric_learning(name):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    x, y = rows(40, 6, 9)
    centers = 3 if name == "sub-center" else 1
    kind = "cosface" if name == "cosface" else "arcface"
    made = head(
        kind, classes=9, width=6, margin=0.35, scale=16.0, learn_scale=False, centers=centers
    )
    theirs = {
        "cosface": lambda: losses.CosFaceLoss(9, 6, margin=0.35, scale=16),
        "arcface": lambda: losses.ArcFaceLoss(9, 6, margin=math.degrees(0.35), scale=16),
        "sub-center": lambda: losses.SubCenterArcFaceLoss(
            num_classes=9, embedding_size=6, margin=math.degrees(0.35), scale=16, sub_centers=3
        ),
    }[name]()
    theirs.W.data = made.classes.detach().reshape(-1, 6).T.clone()
    expected = theirs(x, y)
    found = made(x, y).mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    ours, other = (
        torch.autograd.grad(found, (x, made.classes)),
        torch.autograd.grad(expected, (x, theirs.W)),
    )
    torch.testing.assert_close(ours[0], other[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours[1].reshape(-1, 6).T, other[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("centers", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 3, 6])
def test_chunks_give_the_loss_and_gradients_of_the_whole(kind, centers, chunk):
    x, y = rows()
    options = {"centers": centers, "smoothing": 0.1, "focal": 1.5}
    found = []
    for size in (chunk, None):
        made = head(kind, chunk=size, **options)
        loss = made(x, y).sum()
        wanted = [x, made.classes, *([made.log_scale] if made.log_scale.requires_grad else [])]
        found.append((loss, *torch.autograd.grad(loss, wanted)))
    for one, other in zip(*found, strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_memory_is_that_of_a_chunk():
    """Of 20,000 classes the largest tensor that the graph keeps is as large as the class vectors,
    not the logits.
    """
    x, y = rows(256, 4, 20_000)
    made = head(classes=20_000, width=4, chunk=100)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.append(t.numel()), t)[1], lambda t: t
    ):
        made(x, y)
    assert max(kept) <= 20_000 * 4 < 256 * 20_000


@pytest.mark.parametrize("kind", KINDS)
def test_every_head_learns_separable_classes(kind):
    draws = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 4
    x = torch.nn.functional.one_hot(y, 6).float() * 2 + 0.3 * torch.randn(60, 6, generator=draws)
    made = head(kind, classes=4, width=6, margin=0.2)
    optimiser = torch.optim.Adam(made.parameters(), lr=0.05)
    first = made(x, y).mean().item()
    for _ in range(150):
        optimiser.zero_grad()
        made(x, y).mean().backward()
        optimiser.step()
    scores = made._similarity(made._placed(x), made._placed(made.classes))
    assert (scores.argmax(1) == y).all()
    assert made(x, y).mean().item() < first


def test_the_margin_rises_linearly_and_stays():
    made = head(margin=0.25, margin_rate=2e-4)
    for step, expected in ((0, 0.0), (625, 0.125), (1250, 0.25), (9999, 0.25)):
        made.advance(step)
        assert made.risen * 0.25 == pytest.approx(expected)
    x, y = rows()
    made.advance(0)
    no_margin = head(margin=0.0)
    torch.testing.assert_close(made(x, y), no_margin(x, y))
    made.advance(1250)
    assert (made(x, y) > no_margin(x, y)).all()


def test_margins_and_weights_by_class():
    counts = torch.tensor([1, 16, 81])
    margins = _class_margins(counts, low=0.05, high=0.5)
    place = (1 / 2 - 1 / 3) / (1 - 1 / 3)
    torch.testing.assert_close(margins, torch.tensor([0.5, 0.05 + 0.45 * place, 0.05]))
    torch.testing.assert_close(
        _class_margins(torch.tensor([4, 4]), low=0.2, high=0.4), torch.tensor([0.3, 0.3])
    )
    for scheme in ("inverse", "root", "effective"):
        weights = _class_weights(counts, scheme)
        assert (weights * counts).sum().item() == pytest.approx(98, rel=1e-5)
        assert (weights.diff() < 0).all()
    torch.testing.assert_close(_class_weights(counts, "inverse") * counts, torch.full((3,), 98 / 3))


def test_the_hyperbolic_distance_by_hand():
    u, v = torch.tensor([[0.0, 0.0], [0.5, 0.0]]), torch.tensor([[0.5, 0.0]])
    expected = torch.tensor([[np.arccosh(1 + 2 * 0.25 / 0.75)], [0.0]], dtype=torch.float32)
    torch.testing.assert_close(poincare_distance(u, v), expected, atol=1e-5, rtol=1e-5)
    pairs = poincare_distance(u[:, None], torch.stack([v, v]))  # one pair a row
    torch.testing.assert_close(pairs[:, 0], expected, atol=1e-5, rtol=1e-5)
    assert ball(torch.tensor([[1e4, 0.0]])).norm() < 1
    far = torch.tensor([[40.0, 0.0], [-40.0, 0.0]], requires_grad=True)
    poincare_distance(ball(far), ball(far)).sum().backward()
    assert torch.isfinite(far.grad).all()


def test_rows_on_their_class_and_zero_rows_have_finite_gradients():
    for kind in KINDS:
        made = head(kind, classes=3, width=2)
        made.classes.data = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[-1.0, 0.0]]])
        x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], requires_grad=True)
        made(x, torch.tensor([0, 0, 1])).sum().backward()
        assert torch.isfinite(x.grad).all(), kind
        assert torch.isfinite(made.classes.grad).all(), kind


def test_what_does_not_fit_is_explained():
    x, y = rows()
    with pytest.raises(ShapeError, match="labels from"):
        head()(x, y + 7)
    with pytest.raises(ShapeError, match=r"\(rows, 5\)"):
        head()(x[:, :4], y)
    with pytest.raises(ConfigError, match="1 classes"):
        head(classes=1)
    with pytest.raises(ConfigError, match="counts of all classes"):
        head(weighting="root")
    with pytest.raises(ConfigError, match="has no rows"):
        head(rare_margin=0.5, counts=torch.tensor([0, 1, 1, 1, 1, 1, 1]))
