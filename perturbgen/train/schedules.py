"""How the weight of a term and the learning rate change while a run goes on; pure functions of the step."""

from __future__ import annotations

import logging
import math

from perturbgen.train.settings import Annealing

log = logging.getLogger(__name__)


def annealed_weight(annealing: Annealing, step: int, steps_per_epoch: int) -> float:
    """The weight at a step (0, 1, ...): ``start`` at first, exactly ``weight`` from the end of the warm-up on."""
    ramp = warmup_steps(annealing, steps_per_epoch)
    if annealing.shape == "constant" or step >= ramp:
        return annealing.weight
    done = step / ramp
    if annealing.shape == "cyclic":
        done = min(1.0, 2 * ((done * annealing.cycles) % 1.0))
    elif annealing.shape == "cosine":
        done = 0.5 - 0.5 * math.cos(math.pi * done)
    return annealing.start + (annealing.weight - annealing.start) * done


def warmup_steps(annealing: Annealing, steps_per_epoch: int) -> int:
    """How many steps the warm-up takes."""
    if annealing.shape == "constant":
        return 0
    return annealing.warmup * (steps_per_epoch if annealing.unit == "epochs" else 1)


def warmup_epochs(annealing: Annealing, steps_per_epoch: int) -> int:
    """How many epochs begin before the warm-up is over."""
    return math.ceil(warmup_steps(annealing, steps_per_epoch) / steps_per_epoch)


def warn_of_long_warmup(annealing: Annealing, steps_per_epoch: int, epochs: int) -> None:
    """A warm-up that outlasts the run means that the full objective is never trained."""
    if warmup_epochs(annealing, steps_per_epoch) >= epochs:
        log.warning(
            "the KL warm-up takes %d steps, the whole run %d: the full objective would never be trained; "
            "shorten it (annealing.warmup) or train longer (training.epochs)",
            warmup_steps(annealing, steps_per_epoch),
            steps_per_epoch * epochs,
        )


def rate_factor(decay: str, step: int, total: int) -> float:
    """What learning rates are multiplied by at a step: 1, or half a cosine from 1 to 0.01."""
    if decay == "constant":
        return 1.0
    return 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(step, total) / total))
