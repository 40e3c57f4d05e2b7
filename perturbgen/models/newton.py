"""Many small minimisations at once: the latent points of a batch of cells, ten dimensions each.

The steps are those of a quasi-Newton method (BFGS; Nocedal & Wright 2006, algorithm 6.1) from the
curvature at the start: dimensions of a DGD differ by a factor of a thousand, and a curvature costs
as much as ten losses, so that one has to do. What every step shows of the curvature is kept, also
at the kinks that rectifiers make, where Newton's own steps end (Lewis & Overton 2013).
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol, Self

import torch
from torch import Tensor

_PATIENCE: Final = 3  # steps in turn without a gain after which a row rests
_ENOUGH = 1e-4  # of the promised gain: less is a step too long
_SHORTER = 0.25


class Surface(Protocol):
    """A loss of points (rows, dimensions), of each row its own."""

    def slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (rows,) and its gradient (rows, dimensions)."""

    def of(self, keep: Tensor) -> Self:
        """That of the rows where ``keep``, bool (rows,), says so."""


class Minimum(NamedTuple):
    """Where the searches ended."""

    z: Tensor  # (rows, dimensions)
    loss: Tensor  # (rows,)
    steps: int  # of the row that took most


class _Rows(NamedTuple):
    """The rows that are still going, and what is known of each."""

    number: Tensor  # in the batch
    z: Tensor
    loss: Tensor
    gradient: Tensor
    inverse: Tensor  # of the curvature, as far as it is known
    length: Tensor  # of the next step, 1 unless the last was too long
    idle: Tensor  # steps in turn that gained too little


def minimise(
    start: Tensor, surface: Surface, curvature: Tensor, *, steps: int, tolerance: float
) -> Minimum:
    """From ``start`` (rows, dimensions) down, ``steps`` at most; no step raises a row's loss.

    ``curvature`` (rows, dimensions, dimensions), positive definite, is about the second derivative.
    A row rests once three steps in turn have each gained it less than ``tolerance``, whatever the
    others do: where a row ends does not depend on its company.
    """
    z = start.detach().clone()
    loss, gradient = surface.slope(z)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(curvature))
    n = torch.arange(len(z), device=z.device)
    rows = _Rows(n, z, loss, gradient, inverse, torch.ones_like(loss), torch.zeros_like(n))
    found = Minimum(z.clone(), loss.clone(), 0)
    for _ in range(steps):
        rows = _stepped(rows, surface, tolerance)
        found = found._replace(steps=found.steps + 1)
        found.z[rows.number], found.loss[rows.number] = rows.z, rows.loss
        going = rows.idle < _PATIENCE
        if not bool(going.any()):
            break
        if not bool(going.all()):
            rows, surface = _Rows(*(x[going] for x in rows)), surface.of(going)
    return found


def _stepped(rows: _Rows, surface: Surface, tolerance: float) -> _Rows:
    """Each row one step further, or where it was with a shorter step ahead."""
    move = -(rows.inverse @ rows.gradient[..., None])[..., 0] * rows.length[:, None]
    promise = -(rows.gradient * move).sum(-1)
    loss, gradient = surface.slope(rows.z + move)
    lower = loss <= rows.loss - _ENOUGH * promise  # never where it is no number
    gain = torch.where(lower, rows.loss - loss, 0.0)
    return _Rows(
        rows.number,
        torch.where(lower[:, None], rows.z + move, rows.z),
        torch.where(lower, loss, rows.loss),
        torch.where(lower[:, None], gradient, rows.gradient),
        _learned(rows.inverse, move, gradient - rows.gradient),
        torch.where(lower, 1.0, rows.length * _SHORTER),
        torch.where(gain < tolerance, rows.idle + 1, 0),
    )


def _learned(inverse: Tensor, move: Tensor, change: Tensor) -> Tensor:
    """H' = (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ, ρ = 1/yᵀs, from a move s that changed the gradient
    by y; H where the two do not say that the loss bends upwards.
    """
    product = (move * change).sum(-1)
    scale = move.square().sum(-1).sqrt() * change.square().sum(-1).sqrt()
    upwards = product > 1e-6 * scale
    rho = torch.where(upwards, 1 / product, 0.0)[:, None, None]
    s, y = move[..., None], torch.where(upwards[:, None], change, 0.0)[..., None]
    turn = torch.eye(move.shape[1], device=move.device) - rho * s * y.mT
    return turn @ inverse @ turn.mT + rho * s * s.mT
