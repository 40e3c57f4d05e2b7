"""What TensorBoard shows of every run; what is particular to a kind of model is in the classes derived from it.

Figures for TensorBoard, drawn without a screen.

Numbers that say whether a model uses what it was given: pure functions of arrays.
"""

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
    from matplotlib.figure import Figure

    from perturbgen.train.loop import Training
    from perturbgen.train.state import State

log = logging.getLogger(__name__)


def _lost_curves(args: threading.ExceptHookArgs) -> None:
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
        threading.excepthook = _lost_curves
        self.writer = SummaryWriter(run, purge_step=step or None)

    def epoch(self, training: Training, record: dict[str, Any]) -> None:
        """Show an epoch."""
        unit = training.train.unit
        names = {
            "weight": self.weight,
            "rate": "schedule/learning rate",
            "norm": "speed/gradient norm",
            f"{unit}_per_second": f"speed/{unit} per second",
        }
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
        self.writer.add_hparams(_hyper_parameters(self.settings), metrics, run_name=".")
        self.writer.close()

    def chosen(self, n: int) -> np.ndarray:
        """Positions of the samples that are shown, the same all through a run."""
        return np.random.default_rng(self.settings.seed).permutation(n)[: self.settings.board.cells]


def _hyper_parameters(settings: LoopSettings) -> dict[str, str | float | int | bool]:
    """The settings, flat, as TensorBoard wants them; which data and what is shown are left out."""
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
                flat[f"{section}.{name}"] = (
                    value if isinstance(value, (int, float, str)) else str(value)
                )
    return flat


_ACTIVE = (
    0.01  # variance over cells from which a latent dimension counts as used (Burda et al. 2016)
)


def active_dimensions(latents: np.ndarray) -> int:
    """How many columns of ``latents`` (cells, latent) vary over cells."""
    return int((latents.var(axis=0) > _ACTIVE).sum())


def _log_cpm_of_sums(counts: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Log2 CPM (plus 1) of counts (cells, genes) summed by group, (groups, genes), groups in sorted order."""
    names, codes = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), counts.shape[1]))
    np.add.at(sums, codes, counts)
    return np.log2(sums / sums.sum(axis=1, keepdims=True).clip(min=1) * 1e6 + 1)


def between_ratio(
    real: np.ndarray, generated: np.ndarray, groups: np.ndarray, *, n_genes: int = 1000
) -> float:
    """Variance between conditions of generated over that of real counts (cells, genes), on the most counted genes.

    Near 0 the decoder ignores its conditions; sampling noise lifts both sides alike when both are counts.
    """
    genes = np.argsort(-real.sum(axis=0), kind="stable")[:n_genes]
    between = [
        _log_cpm_of_sums(counts[:, genes], groups).var(axis=0).sum() for counts in (real, generated)
    ]
    return float(between[1] / between[0]) if between[0] > 0 else float("nan")


def _mean_variance(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each gene's mean and variance, (genes,) both."""
    return counts.mean(axis=0), counts.var(axis=0)


def _zero_fraction(counts: np.ndarray) -> np.ndarray:
    """Share of cells without a count of each gene, (genes,)."""
    return (counts == 0).mean(axis=0)


def predictive_table(real: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    """How far generated counts (cells, genes) are from real ones: each number 0 (or a correlation of 1) at best."""
    seen = real.mean(axis=0) > 0
    (mean, variance), (mean_generated, variance_generated) = (
        _mean_variance(real),
        _mean_variance(generated),
    )

    def log_ratio(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        return np.log2((ours[seen] + 1e-3) / (theirs[seen] + 1e-3))

    return {
        "mean_abs_log2_ratio_of_means": float(np.abs(log_ratio(mean_generated, mean)).mean()),
        "mean_abs_log2_ratio_of_variances": float(
            np.abs(log_ratio(variance_generated, variance)).mean()
        ),
        "mean_abs_difference_of_zero_fractions": float(
            np.abs(_zero_fraction(generated) - _zero_fraction(real))[seen].mean()
        ),
        "ratio_of_median_library_sizes": float(
            np.median(generated.sum(axis=1)) / max(np.median(real.sum(axis=1)), 1.0)
        ),
    }


_REAL, _GENERATED = PALETTE[0], PALETTE[1]


def predictive_figure(real: np.ndarray, generated: np.ndarray) -> Figure:
    """Real against generated counts (cells, genes): variances, zeros, library sizes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for counts, name, colour in ((real, "real", _REAL), (generated, "generated", _GENERATED)):
        mean, variance = _mean_variance(counts)
        seen = mean > 0
        left.loglog(
            mean[seen],
            variance[seen],
            ".",
            ms=2,
            alpha=0.4,
            color=colour,
            label=name,
            rasterized=True,
        )
    left.plot(left.get_xlim(), left.get_xlim(), "k--", lw=1, label="Poisson")
    left.set(xlabel="mean count of a gene", ylabel="variance", title="Mean and variance")
    left.legend(loc="upper left", markerscale=6, frameon=False)
    middle.plot(
        _zero_fraction(real),
        _zero_fraction(generated),
        ".",
        ms=2,
        alpha=0.4,
        color=_REAL,
        rasterized=True,
    )
    middle.plot([0, 1], [0, 1], "k--", lw=1)
    middle.set(xlabel="share of zeros of a gene, real", ylabel="generated", title="Zeros")
    libraries = [counts.sum(axis=1) for counts in (real, generated)]
    bins = np.geomspace(
        max(1, min(x.min() for x in libraries)), max(x.max() for x in libraries) + 1, 40
    )
    right.hist(libraries, bins=bins, label=["real", "generated"], color=[_REAL, _GENERATED])
    right.set(xscale="log", xlabel="counts of a cell", ylabel="cells", title="Library size")
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    right.xaxis.set_minor_formatter(NullFormatter())
    right.legend(loc="upper right", frameon=False)
    return figure


def latent_figure(latents: np.ndarray, labels: pd.DataFrame) -> Figure:
    """The first two principal components of latent points (cells, latent), coloured by each column of labels."""
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
        _scatter(
            axes,
            points,
            labels[name].astype(str) if name else pd.Series("cells", range(len(points))),
        )
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
    rest = ~labels.isin(common).to_numpy()
    size = float(np.clip(100 / np.sqrt(max(len(points), 1)), 3, 8))
    if rest.any():
        axes.plot(
            *points[rest].T, ".", ms=size - 1, color="#bbbbbb", label="other", rasterized=True
        )
    for name, colour in zip(sorted(common), PALETTE, strict=False):
        mine = (labels == name).to_numpy()
        axes.plot(
            *points[mine].T, ".", ms=size, alpha=0.6, color=colour, label=name, rasterized=True
        )
    axes.legend(
        markerscale=12 / size, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)
    )
