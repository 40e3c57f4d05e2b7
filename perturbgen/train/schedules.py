"""How weights of terms and learning rates change in a run; its optimiser."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perturbgen.train.settings import LoopSettings

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """Weights of annealed terms and factors of learning rates: pure functions of the step."""

    settings: LoopSettings
    steps_per_epoch: int

    def weight(self, step: int) -> float:
        """Of annealed terms at a step (0, 1, ...), exactly the full one after the warm-up."""
        annealing, ramp = self.settings.annealing, self._warmup_steps
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
        annealing = self.settings.annealing
        if annealing.shape == "constant":
            return 0
        return annealing.warmup * (self.steps_per_epoch if annealing.unit == "epochs" else 1)

    @property
    def warmup_epochs(self) -> int:
        """How many epochs begin before the warm-up is over."""
        return math.ceil(self._warmup_steps / self.steps_per_epoch)

    def warn_of_long_warmup(self) -> None:
        """Log a warning where the warm-up outlasts the run."""
        if self.warmup_epochs >= self.settings.training.epochs:
            log.warning(
                "the KL warm-up takes %d steps, the whole run %d: the full objective would never "
                "be trained; shorten it (annealing.warmup) or train longer (training.epochs)",
                self._warmup_steps,
                self.steps_per_epoch * self.settings.training.epochs,
            )

    def rate_factor(self, step: int) -> float:
        """What learning rates are multiplied by at a step: 1, or half a cosine from 1 to 0.01."""
        if self.settings.training.decay == "constant":
            return 1.0
        total = self.settings.training.epochs * self.steps_per_epoch
        return 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(step, total) / total))


def adamw(*groups: tuple[Iterable[torch.nn.Parameter], float, float]) -> torch.optim.Optimizer:
    """AdamW for groups of (parameters, learning rate, weight decay)."""
    import torch

    return torch.optim.AdamW(
        [{"params": list(p), "lr": rate, "weight_decay": decay} for p, rate, decay in groups],
        fused=True,
    )
