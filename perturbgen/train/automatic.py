"""What settings leave to us: precision and threads by the machine, the length by the data.

It is decided once, said in the log, and stored with the run in place of ``auto``: a run goes on as
it began, on whatever machine.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Final, TypeVar

from perturbgen.core.system import choose_device, cores, fast_bf16

if TYPE_CHECKING:
    from perturbgen.train.settings import Annealing, LoopSettings, LoopTraining

log = logging.getLogger(__name__)

_S = TypeVar("_S", bound="LoopSettings")

_STEPS: Final = 30_000  # of a run whose length is left to us
_LONGEST: Final = 400  # epochs
_WARMUP: Final = 20  # epochs of a warm-up that is left to us, at most; and a quarter of the run


def fit_machine(training: LoopTraining, *, accelerator: str, ranks: int = 1) -> LoopTraining:
    """The settings with a precision and a number of threads that suit this machine."""
    update: dict[str, Any] = {}
    device = _device_of(accelerator)
    if training.precision == "auto":
        fast, why = fast_bf16(device)
        update["precision"] = "bf16-mixed" if fast else "32-true"
        if not int(os.environ.get("LOCAL_RANK", 0)):  # the first process speaks for all
            log.info("training in %s: %s", "bfloat16" if fast else "float32", why)
    if training.threads is None:
        # as many processes as ranks share the cores
        update["threads"] = max(1, cores(as_omp=True) // ranks)
    return training.model_copy(update=update)


def say_precision(training: LoopTraining, *, accelerator: str) -> None:
    """Say where a run goes on in a precision that this machine would not have chosen."""
    fast, why = fast_bf16(_device_of(accelerator))
    if training.precision == "bf16-mixed" and not fast:
        log.warning(
            "this run began in bfloat16 and goes on in it, so that it stays the same run; "
            "that is slow here: %s",
            why,
        )
    elif training.precision == "32-true" and fast:
        log.info("this run began in float32 and goes on in it, so that it stays the same run")
    if (training.threads or 1) > cores():
        log.warning(
            "this run began with %d threads, and this process may use %d cores: "
            "--set training.threads=%d is faster, and may change the last digits",
            training.threads,
            cores(),
            cores(),
        )


def _device_of(accelerator: str) -> str:
    """The kind of device that Lightning takes for an accelerator."""
    if accelerator == "auto":
        return choose_device()
    return "cuda" if accelerator in ("gpu", "cuda") and choose_device() == "cuda" else "cpu"


def fit_length(settings: _S, n: int, unit: str) -> _S:
    """The settings with a number of epochs for ``n`` training samples, and a warm-up that fits."""
    training = settings.training
    per_epoch = max(1, -(-n // training.batch_size))
    if training.epochs == "auto":
        enough = max(training.least_epochs(settings), round(_STEPS / per_epoch))
        training = training.model_copy(update={"epochs": min(_LONGEST, enough)})
        log.info(
            "%d epochs of %d steps for %s %s (training.epochs says another number)",
            training.length,
            per_epoch,
            f"{n:,}",
            unit,
        )
    update: dict[str, Any] = {"training": training}
    if settings.anneals:
        warmup = _fit_warmup(settings.annealing, training.length, per_epoch)
        update["annealing"] = settings.annealing.model_copy(update={"warmup": warmup})
    return settings.model_copy(update=update)


def _fit_warmup(annealing: Annealing, epochs: int, per_epoch: int) -> int:
    """The length of a warm-up, in its own unit, that leaves half of the run at full weight."""
    each = 1 if annealing.unit == "epochs" else per_epoch
    asked = annealing.warmup
    if isinstance(asked, str):
        return min(_WARMUP, epochs // 4) * each
    if annealing.shape == "constant" or asked < epochs * each:
        return asked
    log.warning(
        "a warm-up of %d %s would outlast the run of %d epochs: it takes half of the run, %d, so "
        "that the full objective is trained as well",
        asked,
        annealing.unit,
        epochs,
        epochs * each // 2,
    )
    return epochs * each // 2


def taken_over(settings: _S, found: _S) -> _S:
    """The settings, with what they leave to us as a run has it."""
    training, annealing = settings.training, settings.annealing
    update = {
        name: getattr(found.training, name)
        for name in ("precision", "threads", "epochs")
        if getattr(training, name) in ("auto", None)
    }
    training = training.model_copy(update=update)
    warmup = annealing.warmup
    too_long = annealing.unit == "epochs" and isinstance(warmup, int) and warmup >= training.length
    if warmup == "auto" or too_long:
        warmup = found.annealing.warmup
    annealing = annealing.model_copy(update={"warmup": warmup})
    return settings.model_copy(update={"training": training, "annealing": annealing})
