"""What TensorBoard shows of every run; what is particular to a kind of model is in the classes derived from it."""

from __future__ import annotations

import errno
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perturbgen.train.settings import LoopSettings

if TYPE_CHECKING:
    import pandas as pd

    from perturbgen.train.loop import Training
    from perturbgen.train.state import State

log = logging.getLogger(__name__)


def lost_curves(args: threading.ExceptHookArgs) -> None:
    """What TensorBoard's own thread cannot write for want of space is a warning: the loop says what it cannot write."""
    if isinstance(args.exc_value, OSError) and args.exc_value.errno in (errno.ENOSPC, errno.EDQUOT):
        log.warning("curves and pictures are lost: %s", args.exc_value.strerror)
    else:
        threading.__excepthook__(args)


class Board:
    """Scalars of every epoch; now and then pictures; at the end the projector and the hyper-parameters."""

    weight = "schedule/annealed weight"  # what the weight of the annealed terms is called
    space = "latent"  # what the projector's points are called

    def __init__(self, run: Path, settings: LoopSettings, *, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.settings = settings
        threading.excepthook = lost_curves
        self.writer = SummaryWriter(run, purge_step=step or None)

    def epoch(self, training: Training, record: dict[str, Any]) -> None:
        """Show an epoch."""
        unit = training.train.unit
        names = {"weight": self.weight, "rate": "schedule/learning rate", "norm": "speed/gradient norm",
                 f"{unit}_per_second": f"speed/{unit} per second"}  # fmt: skip
        hidden = {"epoch", "step"} if training.model.annealed else {"epoch", "step", "weight"}
        for key, value in record.items():
            if key not in hidden:
                self.writer.add_scalar(names.get(key, key), value, record["epoch"])
        if record["epoch"] % self.settings.board.every == 0 or training.finished:
            self.pictures(training, record["epoch"])

    def pictures(self, training: Training, epoch: int) -> None:
        """Figures of an epoch."""

    def projected(self, training: Training) -> tuple[np.ndarray, pd.DataFrame] | None:
        """Points (samples, dimensions) for the projector, and their labels."""
        return None

    def close(self, training: Training, state: State) -> None:
        """The projector and the hyper-parameters with the result, of the best model."""
        if training.best_model is not None:
            training.model.load_state_dict(training.best_model)
        training.model.eval()
        found = self.projected(training)
        if found is not None and found[0].shape[1] > 1:  # the projector refuses a line
            points, labels = found
            rows = labels.astype(str).to_numpy().tolist()
            self.writer.add_embedding(points, rows, metadata_header=list(labels), tag=self.space)
        metrics = {"result/objective": state.best, "result/epoch": float(state.best_epoch)}
        self.writer.add_hparams(hyper_parameters(self.settings), metrics, run_name=".")
        self.writer.close()

    def chosen(self, n: int) -> np.ndarray:
        """Positions of the samples that are shown, the same all through a run."""
        return np.random.default_rng(self.settings.seed).permutation(n)[: self.settings.board.cells]


def hyper_parameters(settings: LoopSettings) -> dict[str, str | float | int | bool]:
    """The settings, flat, as TensorBoard wants them; which data and what is shown are left out."""
    flat: dict[str, str | float | int | bool] = {}
    sections = settings.model_dump(mode="json", exclude={"name", "seed", "data", "conditions", "stopping", "board"})
    for section, values in sections.items():
        if not isinstance(values, dict):
            flat[section] = str(values)
            continue
        for name, value in values.items():
            if isinstance(value, dict):
                flat.update({f"{section}.{name}.{key}": str(part) for key, part in value.items()})
            elif value is not None:
                flat[f"{section}.{name}"] = value if isinstance(value, (int, float, str)) else str(value)
    return flat
