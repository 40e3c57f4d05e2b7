"""Margins and scales of the softmax losses that learn embeddings: functions of cosines (research notes, section 3.1).

c is the cosine of a row with its own class, θ its angle, m the margin. A margin makes the own class look farther than
it is, so that the loss is small only when there is room between classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from perturbgen.errors import ConfigError

Kind = Literal["cosface", "arcface", "adacos", "curricular", "poincare"]
EDGE = 1e-6  # how near to ±1 a cosine may come before the slope of its angle is capped


def cosface(c: Tensor, m: Tensor) -> Tensor:
    """c − m (Wang 2018; Donner 2018), both (rows,)."""
    return c - m


def arcface(c: Tensor, m: Tensor, *, easy: bool = False) -> Tensor:
    """Cos(θ + m) (Deng 2019), both (rows,).

    Beyond θ = π − m, where that would rise again, it goes on as c − m sin m; with ``easy`` the margin is asked of rows
    with c > 0 only.
    """
    inside = c.clamp(-1 + EDGE, 1 - EDGE)
    moved = c * torch.cos(m) - (1 - inside.square()).sqrt() * torch.sin(m)
    if easy:
        return torch.where(c > 0, moved, c)
    return torch.where(c > -torch.cos(m), moved, c - m * torch.sin(m))


def unmoved(c: Tensor, m: Tensor) -> Tensor:
    """C itself: AdaCos has no margin (Zhang 2019)."""
    return c


def moved_by(kind: Kind, *, easy: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """The margin function of a loss by name; the one of poincare takes −d for c."""
    if kind in ("arcface", "curricular"):
        return lambda c, m: arcface(c, m, easy=easy)
    return unmoved if kind == "adacos" else cosface


def curricular(cosines: Tensor, c_moved: Tensor, t: Tensor) -> Tensor:
    """CurricularFace (Huang 2020): other classes nearer than the moved own one weigh cos (t + cos); (rows, classes)."""
    return torch.where(cosines > c_moved[:, None], cosines * (t + cosines), cosines)


def fixed_scale(n_classes: int) -> float:
    """√2 log(C − 1): AdaCos' scale, at which the softmax neither saturates nor stays flat; 1 at least."""
    return max(1.0, math.sqrt(2) * math.log(max(1, n_classes - 1)))


def dynamic_scale(c: Tensor, log_others: Tensor) -> Tensor:
    """AdaCos' next scale: log B / cos(min(π/4, median θ)), B the batch's mean of Σ_{j≠y} exp(s cos_j); a scalar."""
    log_b = torch.logsumexp(log_others, 0) - math.log(len(log_others))
    angle = torch.acos(c.clamp(-1, 1)).median().clamp(max=math.pi / 4)
    return log_b / torch.cos(angle)


def class_margins(counts: Tensor, *, low: float, high: float, power: float = 0.25) -> Tensor:
    """Larger margins for rarer classes (GLR 2020, third place): linear in n^−power from ``low`` to ``high``, (C,)."""
    if not bool((counts > 0).all()):
        raise ConfigError("a class has no rows", expected="counts of 1 or more", fix="leave the class out")
    t = counts.double().pow(-power)
    width = t.max() - t.min()
    place = (t - t.min()) / width if width > 0 else torch.full_like(t, 0.5)
    return (low + (high - low) * place).float()


def class_weights(counts: Tensor, scheme: Literal["inverse", "root", "effective"], *, beta: float = 0.999) -> Tensor:
    """Weights of classes with so many rows: 1/n, 1/√n or (1 − β)/(1 − β^n) (Cui 2019); their mean over rows is 1."""
    n = counts.double()
    raw = {"inverse": lambda: 1 / n, "root": lambda: n.rsqrt(), "effective": lambda: (1 - beta) / (1 - beta**n)}
    weights = raw[scheme]()
    return (weights * n.sum() / (weights * n).sum()).float()


def ball(x: Tensor) -> Tensor:
    """Tangent vectors at the origin as points of the Poincaré ball, tanh(|x|) x/|x|; the edge itself is not reached."""
    norm = x.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return x * (torch.tanh(norm).clamp(max=1 - 1e-5) / norm)


def poincare_distance(u: Tensor, v: Tensor) -> Tensor:
    """Arcosh(1 + 2|u − v|²/((1 − |u|²)(1 − |v|²))) of all pairs, (rows, classes), of points in the ball.

    As 2 arsinh(|u − v|/√...), which keeps its digits where points are near.
    """
    uu, vv = u.square().sum(-1)[..., :, None], v.square().sum(-1)[..., None, :]
    squares, room = uu - 2 * u @ v.mT + vv, (1 - uu) * (1 - vv)
    return 2 * torch.asinh((squares.clamp_min(1e-12) / room).sqrt())
