"""How weights of terms and learning rates change in a run; optimisers and their gradients."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perturbgen.train.settings import Annealing, LoopTraining

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """Weights of annealed terms and factors of learning rates: pure functions of the step."""

    annealing: Annealing
    training: LoopTraining
    steps_per_epoch: int

    def weight(self, step: int) -> float:
        """Of annealed terms at a step (0, 1, ...), exactly the full one after the warm-up."""
        annealing, ramp = self.annealing, self._warmup_steps
        if step >= ramp:
            return annealing.weight
        done = step / ramp
        if annealing.shape == "cyclic":
            done = min(1.0, 2 * ((done * annealing.cycles) % 1.0))
        elif annealing.shape == "cosine":
            done = 0.5 - 0.5 * math.cos(math.pi * done)
        return annealing.start + (annealing.weight - annealing.start) * done

    @property
    def _warmup_steps(self) -> int:
        if self.annealing.shape == "constant":
            return 0
        each = self.steps_per_epoch if self.annealing.unit == "epochs" else 1
        return self.annealing.warmup * each

    @property
    def warmup_epochs(self) -> int:
        """How many epochs begin before the warm-up is over."""
        return math.ceil(self._warmup_steps / self.steps_per_epoch)

    def warn_of_long_warmup(self) -> None:
        """Log a warning where the warm-up outlasts the run."""
        if self.warmup_epochs >= self.training.epochs:
            log.warning(
                "the KL warm-up takes %d steps, the whole run %d: the full objective would never "
                "be trained; shorten it (annealing.warmup) or train longer (training.epochs)",
                self._warmup_steps,
                self.steps_per_epoch * self.training.epochs,
            )

    def rate_factor(self, step: int) -> float:
        """What learning rates are multiplied by at a step: 1, or half a cosine from 1 to 0.01."""
        if self.training.decay == "constant":
            return 1.0
        total = self.training.epochs * self.steps_per_epoch
        return 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(step, total) / total))


def adamw(*groups: tuple[Iterable[torch.nn.Parameter], float, float]) -> torch.optim.Optimizer:
    """AdamW for groups of (parameters, learning rate, weight decay)."""
    import torch

    return torch.optim.AdamW(
        [{"params": list(p), "lr": rate, "weight_decay": decay} for p, rate, decay in groups],
        fused=True,
    )


def share_row_gradients(fabric: Fabric, model: torch.nn.Module, samples: int) -> None:
    """Average, over processes, the sparse gradients of representations that a batch touched.

    ``samples`` is the largest number of rows that a process has.
    """
    import torch

    for parameter in model.parameters():
        if parameter.grad is None or not parameter.grad.is_sparse or fabric.world_size == 1:
            continue
        # Only the touched rows travel, padded to one length. Every process then makes the same
        # step, so the tables stay equal and one checkpoint holds them all.
        grad = parameter.grad.coalesce()
        rows = torch.zeros(samples, dtype=torch.int64, device=grad.device)
        values = torch.zeros(samples, parameter.shape[1], device=grad.device)
        rows[: grad._nnz()], values[: grad._nnz()] = grad.indices()[0], grad.values()
        all_rows = torch.as_tensor(fabric.all_gather(rows)).reshape(1, -1)
        all_values = torch.as_tensor(fabric.all_gather(values)).flatten(0, 1)
        used = all_values.abs().sum(-1) > 0  # without the padding
        mean = all_values[used] / fabric.world_size
        parameter.grad = torch.sparse_coo_tensor(
            all_rows[:, used], mean, parameter.shape, check_invariants=False
        )
