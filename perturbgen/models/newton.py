"""Many small minimisations at once: the latent points of a batch of cells, ten dimensions each.

A few damped Newton steps come near each minimum, whatever the scales of the dimensions are: those
of a DGD differ by a factor of a thousand. They stop at the kinks that rectifiers make, so gradient
steps follow, in the metric of the last curvature, in which all directions are alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

# Of points (rows, dimensions) that belong to these rows of the batch: the loss (rows,) and its
# gradient (rows, dimensions), or its curvature (rows, dimensions, dimensions), positive definite.
Slope = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Curvature = Callable[[Tensor, Tensor], Tensor]

_NEWTON: Final = 8  # steps at most
_KEPT: Final = 3  # steps that a curvature serves: it costs as much as ten of them
_DAMPING, _LEAST_DAMPING = 1e-3, 1e-6
# Adam in standard deviations of the point: 0.7 at first, and coming to rest.
_RATE, _SLOWER, _BETAS = 0.7, 10, (0.9, 0.95)
_CHECKED: Final = 10  # steps after which a row must have gained something
_FREE: Final = 20  # the first ones, long as they are, may lose: rows that rested then ended higher


class Minimum(NamedTuple):
    """Where the searches ended."""

    z: Tensor  # (rows, dimensions)
    loss: Tensor  # (rows,)
    steps: int


def minimise(
    start: Tensor, slope: Slope, curvature: Curvature, *, steps: int, tolerance: float
) -> Minimum:
    """From ``start`` (rows, dimensions) down; the best point that each row has seen.

    At most eight Newton steps and then ``steps`` more; a row rests once ten of them have gained it
    no more than ``tolerance``.
    """
    near = _newton(start.detach(), slope, curvature, tolerance)
    return _glide(near, slope, curvature, steps, tolerance)


def _newton(start: Tensor, slope: Slope, curvature: Curvature, tolerance: float) -> Minimum:
    """Steps of the damped Newton method (Levenberg 1944), none of which raises a row's loss."""
    rows = torch.arange(len(start), device=start.device)
    z = start.clone()
    loss, gradient = slope(z, rows)
    damping, bent, step = torch.full_like(loss, _DAMPING), curvature(z, rows), 0
    for step in range(1, _NEWTON + 1):
        ridge = torch.diag_embed(damping[:, None] * bent.diagonal(dim1=-2, dim2=-1))
        factor = torch.linalg.cholesky(bent + ridge)
        move = -torch.cholesky_solve(gradient[..., None], factor)[..., 0]
        if bool((-0.5 * (gradient * move).sum(-1) <= tolerance).all()):  # what the step promises
            break
        there, ahead = slope(z + move, rows)
        lower = there < loss
        z, loss = torch.where(lower[:, None], z + move, z), torch.where(lower, there, loss)
        gradient = torch.where(lower[:, None], ahead, gradient)
        shorter = damping.clamp(min=0.02) * 8
        damping = torch.where(lower, (damping / 8).clamp(min=_LEAST_DAMPING), shorter)
        if step % _KEPT == 0:
            bent = curvature(z, rows)
    return Minimum(z, loss, step)


def _glide(
    near: Minimum, slope: Slope, curvature: Curvature, steps: int, tolerance: float
) -> Minimum:
    """Adam in the metric of the curvature, on the rows that it still gains something."""
    best, least = near.z.clone(), near.loss.clone()
    rows = torch.arange(len(best), device=best.device)
    z, before = near.z, near.loss
    factor = torch.linalg.cholesky(curvature(z, rows))
    mean, square, step = torch.zeros_like(z), torch.zeros_like(z), 0
    gradient = slope(z, rows)[1] if steps else z
    for step in range(1, steps + 1):
        own = torch.linalg.solve_triangular(factor, gradient[..., None], upper=False)[..., 0]
        mean = mean.lerp(own, 1 - _BETAS[0])
        square = square.lerp(own.square(), 1 - _BETAS[1])
        length = (square / (1 - _BETAS[1] ** step)).sqrt() + 1e-8
        move = mean / (1 - _BETAS[0] ** step) / length * (-_RATE / (1 + (step - 1) / _SLOWER))
        z = z + torch.linalg.solve_triangular(factor.mT, move[..., None], upper=True)[..., 0]
        loss, gradient = slope(z, rows)
        lower = loss < least[rows]
        best[rows] = torch.where(lower[:, None], z, best[rows])
        least[rows] = torch.where(lower, loss, least[rows])
        if step % _CHECKED == 0:
            going = (before - least[rows] > tolerance) | (step <= _FREE)
            if not bool(going.any()):
                break
            before = least[rows]
            if 2 * int(going.sum()) < len(going):  # else a smaller batch is not worth its making
                rows, z, gradient, factor, mean, square, before = (
                    x[going] for x in (rows, z, gradient, factor, mean, square, before)
                )
    return Minimum(best, least, near.steps + step)
