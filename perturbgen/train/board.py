"""What TensorBoard shows of every run; a kind of model adds its own pictures."""

from __future__ import annotations

import errno
import logging
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

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

        self.settings, self.run = settings, run
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
        results = self.results(training)
        found = self.projected(training)
        if found is not None and found[0].shape[1] > 1:  # the projector refuses a line
            self._project(*found, training.state.best_epoch)
        state = training.state
        metrics = {"result/objective": state.best, "result/epoch": float(state.best_epoch)}
        self.writer.add_hparams(_hyper_parameters(self.settings), metrics | results, run_name=".")
        self.writer.close()

    def results(self, training: Training) -> dict[str, float]:
        """More numbers of the best model for the table of hyper-parameters."""
        return {}

    def _project(self, points: np.ndarray, labels: pd.DataFrame, epoch: int) -> None:
        """Points into the projector, and as a UMAP, which takes a browser minutes."""
        shown = _in_few_colours(labels.astype(str))
        rows = shown.to_numpy().tolist()
        self.writer.add_embedding(points, rows, metadata_header=list(shown), tag=self.space)
        if not self.settings.board.umap:
            return
        flat = _umap_of(points[:_MAPPED], seed=self.settings.seed)
        if flat is not None:
            about = {"metadata": rows[:_MAPPED], "metadata_header": list(shown)}
            self.writer.add_embedding(flat, **about, tag=f"{self.space} UMAP")
            self.add_latents(f"{self.space}/UMAP", flat, labels[:_MAPPED], epoch)

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
    """What runs differ in: settings that are not the defaults, flat, as TensorBoard wants them.

    The data and what is shown are left out. A few are always there, so that a table of runs has
    them in every row; of others an empty place is the default.
    """
    left_out = {"name", "seed", "data", "conditions", "stopping", "board"}
    every = _flat(settings.model_dump(mode="json", exclude=left_out))
    changed = _flat(settings.model_dump(mode="json", exclude=left_out, exclude_defaults=True))
    return {name: every[name] for name in every if name in changed or name in _ALWAYS}


_ALWAYS: Final = ("model.kind", "model.latent", "training.learning_rate", "training.batch_size")


def _flat(sections: dict[str, Any]) -> dict[str, str | float | int | bool]:
    flat: dict[str, str | float | int | bool] = {}
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


_MAPPED: Final = 2000  # points of a UMAP: 4 s, where 5000 take half a minute
_COLOURS: Final = 50  # the projector colours a column of at most so many values


def _in_few_colours(labels: pd.DataFrame) -> pd.DataFrame:
    """Labels, and beside each of too many values for the projector's colours one of the commonest.

    The others are ``other`` there, so that a map can be coloured by compound at all.
    """
    columns = {}
    for name, values in labels.items():
        columns[str(name)] = values
        if values.nunique() > _COLOURS:
            common = values.value_counts().index[: _COLOURS - 1]
            columns[f"{name} (top {_COLOURS - 1})"] = values.where(values.isin(common), "other")
    return pd.DataFrame(columns)


def _umap_of(points: np.ndarray, *, seed: int) -> np.ndarray | None:
    """A UMAP (cells, 2) of points; None where umap-learn is absent, or points are few."""
    from importlib.util import find_spec

    if len(points) < 200 or find_spec("umap") is None:
        return None
    with warnings.catch_warnings():
        # umap-learn says when imported that it has no Tensorflow, and at every call that a fixed
        # seed means one thread
        warnings.simplefilter("ignore")
        import torch
        from umap import UMAP

        # numba's threads, once they run, are torch's, too, whose last digits depend on their number
        threads = torch.get_num_threads()
        found: np.ndarray = UMAP(random_state=seed).fit_transform(points)
        torch.set_num_threads(threads)
    return found


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
