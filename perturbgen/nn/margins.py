"""One margin softmax: CosFace, ArcFace, sub-center, AdaCos, CurricularFace, hyperbolic.

The loss of a row x with class y among C, cos_j its cosine with class j, s the scale and ψ the
margin function, which makes the own class look farther than it is, so that the loss is small only
when there is room between classes:

    l = −log exp(s ψ(cos_y)) / (exp(s ψ(cos_y)) + Σ_{j≠y} exp(s cos_j))

Other classes come in chunks, and their logits are made again for the gradient: memory is rows x
chunk, and the loss and its gradients are those of the whole. Below, c is the cosine of a row with
its own class, θ its angle, m the margin.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from perturbgen.core.errors import ConfigError
from perturbgen.nn.likelihoods import ShapeError

_Kind = Literal["cosface", "arcface", "adacos", "curricular", "poincare"]
_Weighting = Literal["none", "inverse", "root", "effective"]
_EDGE: Final = 1e-6  # how near to ±1 a cosine may come before the slope of its angle is capped
_AT_ONCE: Final = 1 << 26  # logits that are held at once where no chunk is named: 256 MB
_MEMORY: Final = 0.01  # of CurricularFace's running mean cosine, the weight of a new batch


class MarginHead(nn.Module):
    """Class vectors and the loss of embedded rows; ``head(x, y)`` is (rows,).

    ``x`` (rows, n_features) need not have unit length. The scale is exp of a parameter unless
    ``learn_scale`` is off; AdaCos sets its own. The margin rises by ``margin_rate`` a step (see
    :meth:`advance`) until it is ``margin``, at once if None; with ``rare_margin`` and ``counts``
    (C,), the rarest class has that one and the others lie between. ``centers`` vectors stand for
    each class, the nearest counts (Deng 2020). ``smoothing`` e spreads e of the target over all
    classes, ``focal`` γ weighs a row by (1 − p)^γ, ``weighting`` weighs classes by their counts.
    ``chunk`` classes are scored at once; None takes what fits 256 MB.
    """

    margins: Tensor
    weights: Tensor
    t: Tensor

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        *,
        kind: _Kind = "cosface",
        margin: float = 0.25,
        margin_rate: float | None = None,
        rare_margin: float | None = None,
        easy: bool = False,
        scale: float | None = None,
        learn_scale: bool = True,
        centers: int = 1,
        smoothing: float = 0.0,
        focal: float = 0.0,
        weighting: _Weighting = "none",
        counts: Tensor | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if n_classes < 2:
            raise ConfigError(f"{n_classes} classes", expected="at least two to tell apart")
        if centers < 1 or (chunk is not None and chunk < 1):
            raise ConfigError(f"{centers} centers, chunks of {chunk}", expected="1 or more")
        by_class = rare_margin is not None or weighting != "none"
        if by_class and (counts is None or len(counts) != n_classes):
            raise ConfigError(
                "margins or weights by class need the counts of all classes",
                expected=f"({n_classes},)",
            )
        self.kind, self.easy, self.centers, self.chunk = kind, easy, centers, chunk
        self.smoothing, self.focal, self.margin_rate = smoothing, focal, margin_rate
        # Points of the ball start near its origin, from where all places are near.
        start = 0.1 if kind == "poincare" else 1.0
        self.classes = nn.Parameter(
            torch.randn(n_classes, centers, n_features) * start / math.sqrt(n_features)
        )
        log_scale = torch.tensor(math.log(scale if scale is not None else _fixed_scale(n_classes)))
        learned = learn_scale and kind != "adacos"
        self.log_scale = nn.Parameter(log_scale, requires_grad=learned)
        margins, weights = torch.full((n_classes,), float(margin)), torch.ones(n_classes)
        if rare_margin is not None and counts is not None:
            margins = _class_margins(counts, low=margin, high=rare_margin)
        if weighting != "none" and counts is not None:
            weights = _class_weights(counts, weighting)
        self.register_buffer("margins", margins)
        self.register_buffer("weights", weights)
        self.register_buffer("t", torch.zeros(()))
        self.risen = 1.0 if margin_rate is None else 0.0  # the part of the margin that is asked now

    def advance(self, step: int) -> None:
        """The margin of a step (0, 1, ...): min(m, rate · step)."""
        if self.margin_rate is not None:
            self.risen = min(1.0, self.margin_rate * step / max(float(self.margins.max()), 1e-12))

    @property
    def scale(self) -> Tensor:
        """The positive s."""
        return self.log_scale.exp()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of each row, (rows,), from x (rows, n_features) and its classes y (rows,)."""
        self._require_fit(x, y)
        # bfloat16 has two to three digits: a margin between cosines near 1 would be lost.
        with torch.autocast(x.device.type, enabled=False):
            x, classes = self._placed(x.float()), self._placed(self.classes)
            c = self._own(x, classes, y)
            if self.training and self.kind == "adacos":
                with torch.no_grad():
                    # The scale that this batch is judged by comes from its own angles, as
                    # published.
                    adapted = _dynamic_scale(c, self._others(x, classes, y, None)[0])
                    self.log_scale.copy_(adapted.clamp_min(1.0).log())
            moved = self._moved(c, self.margins[y] * (self.risen if self.training else 1.0))
            if self.training and self.kind == "curricular":
                self.t.lerp_(c.detach().mean(), _MEMORY)
            limit = moved.detach() if self.kind == "curricular" else None
            log_others, sum_others = self._others(x, classes, y, limit)
            return self._loss(self.scale * moved, log_others, sum_others) * self.weights[y]

    def logits(self, x: Tensor) -> Tensor:
        """Scaled similarities (rows, classes) of features to every class, without a margin."""
        return self.scale * self._similarity(self._placed(x), self._placed(self.classes))

    def _moved(self, c: Tensor, m: Tensor) -> Tensor:
        """ψ(c), (rows,): a wider angle, or c − m (CosFace; −d for c in hyperbolic space)."""
        if self.kind == "adacos":  # which has no margin (Zhang 2019)
            return c
        if self.kind in ("arcface", "curricular"):
            return _arcface(c, m, easy=self.easy)
        return c - m

    def _loss(self, own: Tensor, log_others: Tensor, sum_others: Tensor) -> Tensor:
        """Smoothed, focal cross-entropy from the own logit, log Σ exp and Σ of the others."""
        log_all = torch.logaddexp(own, log_others)
        mean = (own + sum_others) / len(self.classes)
        entropy = log_all - (1 - self.smoothing) * own - self.smoothing * mean
        if not self.focal:
            return entropy
        return entropy * (-torch.expm1(own - log_all)).clamp_min(0) ** self.focal

    def _own(self, x: Tensor, classes: Tensor, y: Tensor) -> Tensor:
        """The similarity of each row with its own class, (rows,)."""
        mine = classes[y]  # (rows, centers, features)
        if self.kind == "poincare":
            return -poincare_distance(x[:, None], mine)[:, 0].amin(-1)
        return (mine @ x[:, :, None])[..., 0].amax(-1)

    def _similarity(self, x: Tensor, classes: Tensor) -> Tensor:
        """Cosines, or −distances, with the nearest center of each class, (rows, classes)."""
        n, k, width = classes.shape
        flat = classes.reshape(n * k, width)
        found = -poincare_distance(x, flat) if self.kind == "poincare" else x @ flat.mT
        return found if k == 1 else found.view(len(x), n, k).amax(-1)

    def _others(
        self, x: Tensor, classes: Tensor, y: Tensor, limit: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Log Σ exp and Σ over the logits of all classes but the own, (rows,), chunk by chunk."""
        size = self.chunk or max(1, _AT_ONCE // max(1, len(x) * self.centers))
        if size >= len(classes):
            return self._part(x, classes, y, limit, self.scale)
        parts: list[tuple[Tensor, Tensor]] = []
        for some, first in zip(classes.split(size), range(0, len(classes), size), strict=True):
            inputs = x, some, y - first, limit, self.scale
            # Made again for the gradient; nothing in a chunk is random.
            part = checkpoint(self._part, *inputs, use_reentrant=False, preserve_rng_state=False)
            parts.append(part)
        logs, sums = zip(*parts, strict=True)
        return torch.stack(logs).logsumexp(0), torch.stack(sums).sum(0)

    def _part(
        self, x: Tensor, classes: Tensor, y: Tensor, limit: Tensor | None, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same of one chunk; ``y`` counts from its first class, and may lie outside."""
        found = self._similarity(x, classes)
        if limit is not None:
            found = _curricular(found, limit, self.t)
        own = torch.arange(len(classes), device=y.device) == y[:, None]
        logits = scale * found
        total = logits.masked_fill(own, 0.0).sum(-1) if self.smoothing else logits.new_zeros(len(x))
        # A chunk of the own class only: its log Σ is "nothing", as a number that has a gradient.
        return logits.masked_fill(own, -1e30).logsumexp(-1), total

    def _placed(self, vectors: Tensor) -> Tensor:
        """Vectors of unit length, or points in the ball."""
        return ball(vectors) if self.kind == "poincare" else functional.normalize(vectors, dim=-1)

    def _require_fit(self, x: Tensor, y: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.classes.shape[-1] or y.shape != x.shape[:1]:
            raise ShapeError(
                f"rows of shape {tuple(x.shape)} with labels of shape {tuple(y.shape)}",
                expected=f"(rows, {self.classes.shape[-1]}) and (rows,)",
            )
        if len(y) and not bool(((y >= 0) & (y < len(self.classes))).all()):
            raise ShapeError(
                f"labels from {int(y.min())} to {int(y.max())}",
                expected=f"classes 0 to {len(self.classes) - 1}",
            )


def _arcface(c: Tensor, m: Tensor, *, easy: bool = False) -> Tensor:
    """cos(θ + m) (Deng 2019), both (rows,); with ``easy`` of rows with c > 0 only.

    Beyond θ = π − m, where that would rise again, it goes on as c − m sin m.
    """
    inside = c.clamp(-1 + _EDGE, 1 - _EDGE)
    moved = c * torch.cos(m) - (1 - inside.square()).sqrt() * torch.sin(m)
    if easy:
        return torch.where(c > 0, moved, c)
    return torch.where(c > -torch.cos(m), moved, c - m * torch.sin(m))


def _curricular(cosines: Tensor, c_moved: Tensor, t: Tensor) -> Tensor:
    """CurricularFace (Huang 2020): cos (t + cos) where it exceeds the moved own one."""
    return torch.where(cosines > c_moved[:, None], cosines * (t + cosines), cosines)


def _fixed_scale(n_classes: int) -> float:
    """√2 log(C − 1), AdaCos' scale: the softmax neither saturates nor is flat; 1 at least."""
    return max(1.0, math.sqrt(2) * math.log(max(1, n_classes - 1)))


def _dynamic_scale(c: Tensor, log_others: Tensor) -> Tensor:
    """AdaCos' next scale: log B / cos(min(π/4, median θ)), B the mean of Σ_{j≠y} exp(s cos_j)."""
    log_b = torch.logsumexp(log_others, 0) - math.log(len(log_others))
    angle = torch.acos(c.clamp(-1, 1)).median().clamp(max=math.pi / 4)
    return log_b / torch.cos(angle)


def _class_margins(counts: Tensor, *, low: float, high: float, power: float = 0.25) -> Tensor:
    """Larger margins for rarer classes (GLR 2020, third place), (C,): linear in n^−power."""
    if not bool((counts > 0).all()):
        raise ConfigError(
            "a class has no rows", expected="counts of 1 or more", fix="leave the class out"
        )
    t = counts.double().pow(-power)
    width = t.max() - t.min()
    place = (t - t.min()) / width if width > 0 else torch.full_like(t, 0.5)
    return (low + (high - low) * place).float()


def _class_weights(counts: Tensor, scheme: _Weighting, *, beta: float = 0.999) -> Tensor:
    """1/n, 1/√n or (1 − β)/(1 − β^n) (Cui 2019) for n rows; their mean over rows is 1."""
    n = counts.double()
    raw = {"inverse": 1 / n, "root": n.rsqrt(), "effective": (1 - beta) / (1 - beta**n)}
    weights = raw[scheme]
    return (weights * n.sum() / (weights * n).sum()).float()


def ball(x: Tensor) -> Tensor:
    """Tangent vectors at the origin as points of the Poincaré ball, tanh(|x|) x/|x|."""
    norm = x.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return x * (torch.tanh(norm).clamp(max=1 - 1e-5) / norm)


def poincare_distance(u: Tensor, v: Tensor) -> Tensor:
    """arcosh(1 + 2|u − v|²/((1 − |u|²)(1 − |v|²))) of all pairs of points, (rows, classes).

    As 2 arsinh(|u − v|/√...), which keeps its digits where points are near.
    """
    uu, vv = u.square().sum(-1)[..., :, None], v.square().sum(-1)[..., None, :]
    # All pairs by one product; the clamp keeps the slope of the root finite at 0.
    squares, room = uu - 2 * u @ v.mT + vv, (1 - uu) * (1 - vv)
    return 2 * torch.asinh((squares.clamp_min(1e-12) / room).sqrt())
