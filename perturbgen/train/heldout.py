"""A trained model on cells: latent points, likelihood, checks of what it generates, TensorBoard.

What compares generated with real counts looks at arrays alone; figures are drawn without a screen.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import numpy as np
import pandas as pd

from perturbgen.core.console import track
from perturbgen.core.page import PALETTE
from perturbgen.core.system import keep_freed_memory
from perturbgen.data import Batch, CountStore
from perturbgen.train.board import Board
from perturbgen.train.feeds import CellFeed
from perturbgen.train.gauges import LatentSpace, active_dimensions
from perturbgen.train.settings import RunSettings

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure
    from scipy import sparse

    from perturbgen.models import CellBatch, LatentModel
    from perturbgen.train.loop import Training
    from perturbgen.train.run import Trained


log = logging.getLogger(__name__)

_KEPT = 1 << 30  # bytes
_GAUGED = 500  # cells of the gauges of every epoch
_PICTURED = 1000  # whose counts are made dense


@dataclass(frozen=True)
class CellJudge:
    """A trained model asked about the cells of a store."""

    run: Trained[RunSettings, LatentModel, Any]
    store: CountStore

    def numbers(self, *, samples: int, seed: int) -> dict[str, Any]:
        """The likelihood of the counts, posterior-predictive checks, and probes of the latents."""
        from perturbgen.models import GaussianVAE

        keep_freed_memory(_KEPT)
        run, store, conditions = self.run, self._placed, list(self.run.settings.conditions)
        latents = self.latents()
        likelihood = {
            **self.likelihood(samples=samples, seed=seed, points=latents),
            "samples": samples,
        }
        real = isinstance(run.model, GaussianVAE)
        likelihood["of"] = "normalised data" if real else "counts"
        # Of some cells: the counts of all, made dense, would fill the memory.
        chosen = np.random.default_rng(seed).permutation(len(store))[:2000]
        predictive = _Predictive.of(run.model, store, chosen, conditions, seed=seed)
        row = predictive.numbers()
        if conditions:
            row["between_conditions_generated_over_real"] = predictive.between_ratio()
        return {
            "run": str(run.path),
            "likelihood": likelihood,
            "predictive": row,
            "probes": probe_rows(latents, store.obs[conditions], seed=seed),
        }

    def latents(self, *, batch_size: int = 256) -> np.ndarray:
        """Latent points (cells, latent)."""
        keep_freed_memory(_KEPT)  # a decoding's arrays are wanted again at once
        return _encoded(self.run.model, self._batches("encoding", batch_size))

    def log_likelihoods(
        self, *, samples: int, seed: int, batch_size: int = 256, points: np.ndarray | None = None
    ) -> np.ndarray:
        """Log p(x | c) of every cell, (cells,), in nats, by importance sampling.

        ``points`` are the cells' latent points where they are known: those of a DGD are a search.
        """
        import torch

        model = self.run.model
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(seed)
        parts = []
        for batch in self._batches("likelihood", batch_size):
            own = None if points is None else points[batch.index.cpu().numpy()]
            z = None if own is None else torch.from_numpy(own).to(device)
            found = model.log_evidence(batch, samples=samples, generator=generator, points=z)
            parts.append(found.cpu().numpy())
        return np.concatenate(parts)

    def likelihood(
        self, *, samples: int, seed: int, points: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Mean negative log-likelihood, nats per gene and cell, and its error over cells."""
        nll = -self.log_likelihoods(samples=samples, seed=seed, points=points) / self.store.n_genes
        error = float(nll.std(ddof=1) / np.sqrt(len(nll))) if len(nll) > 1 else float("nan")
        return {"cells": len(nll), "nll_per_gene": float(nll.mean()), "standard_error": error}

    def _batches(self, what: str, size: int) -> Iterable[CellBatch]:
        return track(CellFeed(self._placed, size).once(), what, -(-len(self.store) // size))

    @cached_property
    def _placed(self) -> CountStore:
        """The cells where the model is."""
        device = next(self.run.model.parameters()).device
        return self.store if device.type == "cpu" else self.store.to(device)


def _encoded(model: LatentModel, batches: Iterable[CellBatch]) -> np.ndarray:
    return np.vstack([model.encode(batch).cpu().numpy() for batch in batches])


def probe_rows(
    latents: np.ndarray, labels: pd.DataFrame, *, seed: int, cells: int = 5000
) -> list[dict[str, Any]]:
    """How well a linear classifier reads each label from latent points (cells, latent).

    Accuracy in cross-validation, beside that of always naming the most common value. A model that
    is given a condition should keep little of it in its latent space.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    chosen = np.random.default_rng(seed).permutation(len(latents))[:cells]
    rows = []
    for name in track(list(labels), "probing the latent points"):
        values = labels[name].astype(str).to_numpy()[chosen]
        names, counts = np.unique(values, return_counts=True)
        enough = counts >= 5  # one for each of the five folds
        if enough.sum() < 2:
            continue
        common = np.isin(values, names[enough])
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        accuracy = cross_val_score(probe, latents[chosen][common], values[common], cv=folds).mean()
        majority = float(counts.max() / counts[enough].sum())
        rows.append({"label": name, "accuracy": float(accuracy), "most_common_alone": majority})
    return rows


def _chosen_cells(store: CountStore, positions: np.ndarray, size: int = 512) -> Iterator[CellBatch]:
    """Batches of some cells of a store, numbered as in that store."""
    import torch

    where = torch.from_numpy(positions)
    for batch in store.subset(positions).batches(size, dense=False):
        index = where[batch.index.cpu()].to(batch.index.device)
        yield cast("CellBatch", Batch(index, batch.counts, batch.codes))


def drawn_like(model: LatentModel, store: CountStore, *, seed: int) -> sparse.csr_matrix:
    """Counts (cells, genes) of as many cells, drawn for the store's conditions and sizes."""
    import torch
    from scipy import sparse

    from perturbgen.models import sizes

    parts: list[sparse.csr_matrix] = []
    for batch in CellFeed(store, 256).once():
        generator = torch.Generator(batch.codes.device).manual_seed(seed + len(parts))
        size = sizes(batch.counts, model.decoder.scaling)
        with torch.no_grad():
            counts = model.sample(batch.codes, size, generator)
        parts.append(sparse.csr_matrix(counts.cpu().numpy().astype(np.int32)))
    return sparse.vstack(parts, format="csr")


class CellBoard(Board):
    """Latent space, posterior-predictive figures and gauges of a model of counts."""

    weight = "schedule/KL weight"
    settings: RunSettings

    def __init__(self, run: Path, settings: RunSettings, *, epoch: int = 0) -> None:
        super().__init__(run, settings, epoch=epoch)
        self._kl: dict[int, float | None] = {}

    def epoch(self, training: Training, record: dict[str, Any]) -> None:
        """Show an epoch, the gauges with it: a collapse is seen when it happens."""
        epoch = int(record["epoch"])
        self._kl[epoch] = record.get("validation/kl", record.get("train/kl"))
        model, store, _ = _model_and_stores(training)
        positions = self.chosen(len(store))[:_GAUGED]
        latents, _ = self._own(model, store, positions)
        active = active_dimensions(model, latents)
        self.writer.add_scalar("gauges/active latent dimensions", active, epoch)
        if conditions := list(self.settings.conditions):
            seed = self.settings.seed
            predictive = _Predictive.of(model, store, positions, conditions, seed=seed)
            ratio = predictive.between_ratio()
            self.writer.add_scalar("gauges/between-condition variance ratio", ratio, epoch)
        super().epoch(training, record)

    def pictures(self, training: Training, epoch: int) -> None:
        """Latent space and posterior-predictive figures."""
        model, store, _ = _model_and_stores(training)
        positions = self.chosen(len(store))
        latents, labels = self._own(model, store, positions)
        self.add_latents("latent/principal components", latents, labels, epoch)
        few = positions[:_PICTURED]
        conditions, seed = list(self.settings.conditions), self.settings.seed
        predictive = _Predictive.of(model, store, few, conditions, seed=seed)
        self.writer.add_figure("predictive/real and generated", predictive.figure(), epoch)
        for name, value in predictive.numbers().items():
            self.writer.add_scalar(f"predictive/{name.replace('_', ' ')}", value, epoch)

    def results(self, training: Training) -> dict[str, float]:
        """What the best model's latent space holds; a collapsed one is said in the log, too."""
        model, store, _ = _model_and_stores(training)
        latents, _ = self._own(model, store, self.chosen(len(store)))
        kl = self._kl.get(training.state.best_epoch)
        space = LatentSpace(active_dimensions(model, latents), latents.shape[1], kl)
        space.write(self.run)
        if told := space.sentence():
            log.warning("%s", told)
        return {"result/active latent dimensions": float(space.active)}

    def projected(self, training: Training) -> tuple[np.ndarray, pd.DataFrame]:
        """Latent points of some training and validation cells."""
        model, store, validation = _model_and_stores(training)
        latents, labels = self._own(model, store, self.chosen(len(store)))
        labels = labels.assign(split="train")
        if len(validation):
            rows = self.chosen(len(validation))
            encoded = _encoded(model, CellFeed(validation.subset(rows), 512).once())
            latents = np.vstack([latents, encoded])
            more = self._labels(validation.obs.iloc[rows]).assign(split="validation")
            labels = pd.concat([labels, more])
        return latents, labels

    def _own(
        self, model: LatentModel, store: CountStore, positions: np.ndarray
    ) -> tuple[np.ndarray, pd.DataFrame]:
        """Latent points (cells, latent) of training cells, and their labels."""
        points = [model.own(batch).cpu().numpy() for batch in _chosen_cells(store, positions)]
        return np.vstack(points), self._labels(store.obs.iloc[positions])

    def _labels(self, obs: pd.DataFrame) -> pd.DataFrame:
        usual = ("cell_type", "compound", "plate", "donor")
        names = dict.fromkeys([*self.settings.conditions, *self.settings.board.labels, *usual])
        return obs[[name for name in names if name in obs]]


def _model_and_stores(training: Training) -> tuple[LatentModel, CountStore, CountStore]:
    """The model, in evaluation mode, and the cells behind the loop's feeds."""
    feeds = cast("CellFeed", training.train), cast("CellFeed", training.validation)
    return cast("LatentModel", training.model.eval()), feeds[0].store, feeds[1].store


class _Predictive(NamedTuple):
    """Counts (cells, genes) of some cells, and as many drawn for their conditions and sizes."""

    real: np.ndarray
    generated: np.ndarray
    groups: np.ndarray  # the condition of each cell as one text, (cells,)

    @classmethod
    def of(
        cls,
        model: LatentModel,
        store: CountStore,
        positions: np.ndarray,
        conditions: list[str],
        *,
        seed: int,
    ) -> Self:
        """Of the cells at some positions of a store."""
        import torch

        from perturbgen.models import dense, sizes

        real: list[np.ndarray] = []
        generated: list[np.ndarray] = []
        for batch in _chosen_cells(store, positions, 256):
            generator = torch.Generator(batch.codes.device).manual_seed(seed + len(real))
            size = sizes(batch.counts, model.decoder.scaling)
            real.append(dense(batch.counts).cpu().numpy())
            generated.append(model.sample(batch.codes, size, generator).cpu().numpy())
        obs = store.obs.iloc[positions][conditions].astype(str)
        groups = obs.agg(" ".join, axis=1).to_numpy() if conditions else np.zeros(0)
        return cls(np.vstack(real), np.vstack(generated), groups)

    def between_ratio(self, n_genes: int = 1000) -> float:
        """Variance between conditions of generated over that of real counts.

        Of log2 CPM (plus 1) of sums by condition, in the most counted genes. Near 0 the decoder
        ignores its conditions; sampling noise lifts both sides alike when both are counts.
        """
        genes = np.argsort(-self.real.sum(axis=0), kind="stable")[:n_genes]
        names, codes = np.unique(self.groups, return_inverse=True)

        def variance(counts: np.ndarray) -> float:
            sums = np.zeros((len(names), len(genes)))
            np.add.at(sums, codes, counts[:, genes])
            log_cpm = np.log2(sums / sums.sum(axis=1, keepdims=True).clip(min=1) * 1e6 + 1)
            return float(log_cpm.var(axis=0).sum())

        ours, theirs = variance(self.generated), variance(self.real)
        return ours / theirs if theirs > 0 else float("nan")

    def numbers(self) -> dict[str, float]:
        """How far generated counts are from real ones; 0 at best, 1 for the ratio."""
        real, generated = self.real, self.generated
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

    def figure(self) -> Figure:
        """Variances, zeros and library sizes of both."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        figure = Figure(figsize=(13, 4), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        sides = {"real": self.real, "generated": self.generated}
        points: dict[str, Any] = {
            "marker": ".",
            "ls": "",
            "ms": 2,
            "alpha": 0.4,
            "rasterized": True,
        }
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
