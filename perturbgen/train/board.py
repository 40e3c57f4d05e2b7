"""What TensorBoard shows of a run, and what it shows of models of cells beside that.

Figures are drawn without a screen; what compares generated with real counts is pure functions.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from perturbgen.core.page import PALETTE
from perturbgen.train.feeds import CellFeed, cell_batches, chosen_cells
from perturbgen.train.settings import LoopSettings, RunSettings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from perturbgen.data import CountStore
    from perturbgen.models import LatentModel
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


class CellBoard(Board):
    """Latent space, posterior-predictive figures and gauges of a model of counts."""

    weight = "schedule/KL weight"
    settings: RunSettings

    def pictures(self, training: Training, epoch: int) -> None:
        """Latent space, posterior-predictive figures and the gauges."""
        model, store, _ = _opened(training)
        positions = self.chosen(len(store))
        latents, labels = self._own(model, store, positions)
        self.writer.add_figure("latent/principal components", latent_figure(latents, labels), epoch)
        active = active_dimensions(latents)
        self.writer.add_scalar("gauges/active latent dimensions", active, epoch)
        few = positions[:1000]  # their counts are made dense
        real, generated = real_and_generated(model, store, few, seed=self.settings.seed)
        figure = _predictive_figure(real, generated)
        self.writer.add_figure("predictive/real and generated", figure, epoch)
        for name, value in predictive_numbers(real, generated).items():
            self.writer.add_scalar(f"predictive/{name.replace('_', ' ')}", value, epoch)
        if self.settings.conditions:
            groups = joined(store.obs.iloc[few], self.settings.conditions)
            ratio = between_ratio(real, generated, groups)
            self.writer.add_scalar("gauges/between-condition variance ratio", ratio, epoch)

    def projected(self, training: Training) -> tuple[np.ndarray, pd.DataFrame]:
        """Latent points of some training and validation cells."""
        model, store, validation = _opened(training)
        latents, labels = self._own(model, store, self.chosen(len(store)))
        labels = labels.assign(split="train")
        if len(validation):
            rows = self.chosen(len(validation))
            batches = cell_batches(validation.subset(rows), 512)
            latents = np.vstack(
                [latents, *(model.encode(batch).cpu().numpy() for batch in batches)]
            )
            more = self._labels(validation.obs.iloc[rows]).assign(split="validation")
            labels = pd.concat([labels, more])
        return latents, labels

    def _own(
        self, model: LatentModel, store: CountStore, positions: np.ndarray
    ) -> tuple[np.ndarray, pd.DataFrame]:
        """Latent points (cells, latent) of training cells, and their labels."""
        points = [model.own(batch).cpu().numpy() for batch in chosen_cells(store, positions)]
        return np.vstack(points), self._labels(store.obs.iloc[positions])

    def _labels(self, obs: pd.DataFrame) -> pd.DataFrame:
        usual = ("cell_type", "compound", "plate", "donor")
        names = dict.fromkeys([*self.settings.conditions, *self.settings.board.labels, *usual])
        return obs[[name for name in names if name in obs]]


def _opened(training: Training) -> tuple[LatentModel, CountStore, CountStore]:
    """The model, in evaluation mode, and the cells behind the loop's feeds."""
    feeds = cast("CellFeed", training.train), cast("CellFeed", training.validation)
    return cast("LatentModel", training.model.eval()), feeds[0].store, feeds[1].store


def real_and_generated(
    model: LatentModel, store: CountStore, positions: np.ndarray, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Counts (cells, genes) of some cells, and as many drawn for their conditions and sizes."""
    import torch

    from perturbgen.models.base import dense, sizes

    real: list[np.ndarray] = []
    generated: list[np.ndarray] = []
    for batch in chosen_cells(store, positions, 256):
        generator = torch.Generator(batch.codes.device).manual_seed(seed + len(real))
        size = sizes(batch.counts, model.decoder.scaling)
        real.append(dense(batch.counts).cpu().numpy())
        generated.append(model.sample(batch.codes, size, generator).cpu().numpy())
    return np.vstack(real), np.vstack(generated)


def joined(obs: pd.DataFrame, columns: Iterable[str]) -> np.ndarray:
    """The condition of each cell as one text, (cells,)."""
    return obs[list(columns)].astype(str).agg(" ".join, axis=1).to_numpy()


def active_dimensions(latents: np.ndarray) -> int:
    """How many columns of ``latents`` (cells, latent) vary over cells, by more than 0.01.

    Burda et al. 2016, whose threshold it is: the others carry nothing.
    """
    return int((latents.var(axis=0) > 0.01).sum())


def _log_cpm_of_sums(counts: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Log2 CPM (plus 1) of counts (cells, genes) summed by group, (groups, genes), sorted."""
    names, codes = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), counts.shape[1]))
    np.add.at(sums, codes, counts)
    return np.log2(sums / sums.sum(axis=1, keepdims=True).clip(min=1) * 1e6 + 1)


def between_ratio(
    real: np.ndarray, generated: np.ndarray, groups: np.ndarray, *, n_genes: int = 1000
) -> float:
    """Variance between conditions of generated over that of real counts (cells, genes).

    Of the most counted genes. Near 0 the decoder ignores its conditions; sampling noise lifts both
    sides alike when both are counts.
    """
    genes = np.argsort(-real.sum(axis=0), kind="stable")[:n_genes]
    ours, theirs = (
        _log_cpm_of_sums(counts[:, genes], groups).var(axis=0).sum() for counts in (generated, real)
    )
    return float(ours / theirs) if theirs > 0 else float("nan")


def predictive_numbers(real: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    """How far generated counts (cells, genes) are from real ones; 0 at best, 1 for the ratio."""
    seen = real.mean(axis=0) > 0

    def log_ratio(ours: np.ndarray, theirs: np.ndarray) -> float:
        return float(np.abs(np.log2((ours[seen] + 1e-3) / (theirs[seen] + 1e-3))).mean())

    zeros = (generated == 0).mean(axis=0) - (real == 0).mean(axis=0)
    depth = np.median(generated.sum(axis=1)) / max(np.median(real.sum(axis=1)), 1.0)
    return {
        "mean_abs_log2_ratio_of_means": log_ratio(generated.mean(axis=0), real.mean(axis=0)),
        "mean_abs_log2_ratio_of_variances": log_ratio(generated.var(axis=0), real.var(axis=0)),
        "mean_abs_difference_of_zero_fractions": float(np.abs(zeros[seen]).mean()),
        "ratio_of_median_library_sizes": float(depth),
    }


def _predictive_figure(real: np.ndarray, generated: np.ndarray) -> Figure:
    """Real against generated counts (cells, genes): variances, zeros, library sizes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    sides = {"real": real, "generated": generated}
    points: dict[str, Any] = {"marker": ".", "ls": "", "ms": 2, "alpha": 0.4, "rasterized": True}
    for (name, counts), colour in zip(sides.items(), PALETTE, strict=False):
        mean, variance = counts.mean(axis=0), counts.var(axis=0)
        left.loglog(mean[mean > 0], variance[mean > 0], color=colour, label=name, **points)
    left.plot(left.get_xlim(), left.get_xlim(), "k--", lw=1, label="Poisson")
    left.set(xlabel="mean count of a gene", ylabel="variance", title="Mean and variance")
    left.legend(loc="upper left", markerscale=6, frameon=False)
    zeros = [(counts == 0).mean(axis=0) for counts in sides.values()]
    middle.plot(*zeros, color=PALETTE[0], **points)
    middle.plot([0, 1], [0, 1], "k--", lw=1)
    middle.set(xlabel="share of zeros of a gene, real", ylabel="generated", title="Zeros")
    libraries = [counts.sum(axis=1) for counts in sides.values()]
    fewest, most = min(x.min() for x in libraries), max(x.max() for x in libraries)
    bins = np.geomspace(max(1, fewest), most + 1, 40)
    right.hist(libraries, bins=bins, label=list(sides), color=list(PALETTE[:2]))
    right.set(xscale="log", xlabel="counts of a cell", ylabel="cells", title="Library size")
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    right.xaxis.set_minor_formatter(NullFormatter())
    right.legend(loc="upper right", frameon=False)
    return figure


def latent_figure(latents: np.ndarray, labels: pd.DataFrame) -> Figure:
    """The first two components of latent points (cells, latent), coloured by labels."""
    from matplotlib.figure import Figure

    points = plane(latents)
    names = list(labels.columns)[:4] or [""]
    across = min(2, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(5.6 * across, 4.4 * down), layout="constrained")
    panels = np.atleast_1d(figure.subplots(down, across)).ravel()
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, names, strict=False):
        values = labels[name].astype(str) if name else pd.Series("cells", labels.index)
        _scatter(axes, points, values)
        axes.set(title=name, xlabel="first component", ylabel="second component")
    return figure


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
