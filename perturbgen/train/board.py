"""What TensorBoard shows of every run; a kind of model adds its own pictures."""

from __future__ import annotations

import errno
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from perturbgen.core.page import PALETTE
from perturbgen.train.settings import LoopSettings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from perturbgen.train.loop import Training

log = logging.getLogger(__name__)


class Board:
    """Scalars of every epoch; now and then pictures; at the end projector and hyper-parameters.

    What is particular to a kind of model is in the classes derived from it.
    """

    weight = "schedule/annealed weight"  # what the weight of the annealed terms is called
    space = "latent"  # what the projector's points are called

    def __init__(self, run: Path, settings: LoopSettings, *, epoch: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.settings = settings
        threading.excepthook = _lost_curves
        # What an interrupted run wrote of this epoch is hidden by what comes now.
        self.writer = SummaryWriter(run, purge_step=epoch or None)

    def epoch(self, training: Training, record: dict[str, Any]) -> None:
        """Show an epoch."""
        unit = training.train.unit
        names = {
            "weight": self.weight,
            "rate": "schedule/learning rate",
            "norm": "speed/gradient norm",
            f"{unit}_per_second": f"speed/{unit} per second",
        }
        withheld = {"epoch", "step"} if training.model.annealed else {"epoch", "step", "weight"}
        for key, value in record.items():
            if key not in withheld:
                self.writer.add_scalar(names.get(key, key), value, record["epoch"])
        if record["epoch"] % self.settings.board.every == 0 or training.finished:
            self.pictures(training, record["epoch"])

    def pictures(self, training: Training, epoch: int) -> None:
        """Figures of an epoch."""

    def add_latents(self, tag: str, points: np.ndarray, labels: pd.DataFrame, epoch: int) -> None:
        """The first two components of points (samples, dimensions), coloured by labels."""
        from matplotlib.figure import Figure

        shown, names = plane(points), list(labels.columns)[:4] or [""]
        across = min(2, len(names))
        down = -(-len(names) // across)
        figure = Figure(figsize=(5.6 * across, 4.4 * down), layout="constrained")
        panels = np.atleast_1d(figure.subplots(down, across)).ravel()
        for axes in panels[len(names) :]:
            axes.set_axis_off()
        for axes, name in zip(panels, names, strict=False):
            values = labels[name].astype(str) if name else pd.Series("cells", labels.index)
            _scatter(axes, shown, values)
            axes.set(title=name, xlabel="first component", ylabel="second component")
        self.writer.add_figure(tag, figure, epoch)

    def projected(self, training: Training) -> tuple[np.ndarray, pd.DataFrame] | None:
        """Points (samples, dimensions) for the projector, and their labels."""
        return None

    def close(self, training: Training) -> None:
        """The projector and the hyper-parameters with the result, of the best model."""
        if training.best_model is not None:
            training.model.load_state_dict(training.best_model)
        training.model.eval()
        found = self.projected(training)
        if found is not None and found[0].shape[1] > 1:  # the projector refuses a line
            points, labels = found
            rows = labels.astype(str).to_numpy().tolist()
            self.writer.add_embedding(points, rows, metadata_header=list(labels), tag=self.space)
        state = training.state
        metrics = {"result/objective": state.best, "result/epoch": float(state.best_epoch)}
        self.writer.add_hparams(_hyper_parameters(self.settings), metrics, run_name=".")
        self.writer.close()

    def chosen(self, n: int) -> np.ndarray:
        """Positions of the samples that are shown, the same all through a run."""
        return np.random.default_rng(self.settings.seed).permutation(n)[: self.settings.board.cells]


def _lost_curves(args: threading.ExceptHookArgs) -> None:
    """A full disk costs curves and pictures only: a warning, and training goes on.

    TensorBoard writes in a thread of its own, whose errors would else be shown as tracebacks.
    """
    if isinstance(args.exc_value, OSError) and args.exc_value.errno in (errno.ENOSPC, errno.EDQUOT):
        log.warning("curves and pictures are lost: %s", args.exc_value.strerror)
    else:
        threading.__excepthook__(args)


def _hyper_parameters(settings: LoopSettings) -> dict[str, str | float | int | bool]:
    """The settings, flat, as TensorBoard wants them, without the data and what is shown."""
    flat: dict[str, str | float | int | bool] = {}
    sections = settings.model_dump(
        mode="json", exclude={"name", "seed", "data", "conditions", "stopping", "board"}
    )
    for section, values in sections.items():
        if not isinstance(values, dict):
            flat[section] = str(values)
            continue
        for name, value in values.items():
            if isinstance(value, dict):
                flat.update({f"{section}.{name}.{key}": str(part) for key, part in value.items()})
            elif value is not None:
                plain = isinstance(value, (int, float, str))
                flat[f"{section}.{name}"] = value if plain else str(value)
    return flat


def plane(latents: np.ndarray) -> np.ndarray:
    """Points (cells, 2): the directions of most variance."""
    centred = latents - latents.mean(axis=0)
    if latents.shape[1] < 2:
        return np.hstack([centred, np.zeros_like(centred)])
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T


def _scatter(axes: Axes, points: np.ndarray, labels: pd.Series, limit: int = 9) -> None:
    """One colour a label; the rarer ones beyond ``limit`` share grey."""
    common = labels.value_counts().index[:limit]
    size = float(np.clip(100 / np.sqrt(max(len(points), 1)), 3, 8))
    look: dict[str, Any] = {"marker": ".", "ls": "", "rasterized": True}
    rest = ~labels.isin(common).to_numpy()
    if rest.any():
        axes.plot(*points[rest].T, ms=size - 1, color="#bbbbbb", label="other", **look)
    for name, colour in zip(sorted(common), PALETTE, strict=False):
        mine = (labels == name).to_numpy()
        axes.plot(*points[mine].T, ms=size, alpha=0.6, color=colour, label=name, **look)
    axes.legend(
        markerscale=12 / size, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)
    )
