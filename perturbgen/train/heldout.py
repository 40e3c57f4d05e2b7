"""A trained model on cells: latent points, likelihood, checks of what it generates, TensorBoard.

What compares generated with real counts is pure functions of arrays; figures are drawn without a
screen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from perturbgen.core.console import track
from perturbgen.core.page import PALETTE
from perturbgen.data import Batch, CountStore
from perturbgen.train.board import Board
from perturbgen.train.feeds import CellFeed
from perturbgen.train.run import Trained
from perturbgen.train.settings import RunSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from perturbgen.models import LatentModel
    from perturbgen.models.base import CellBatch
    from perturbgen.train.loop import Training


@dataclass(frozen=True)
class CellJudge:
    """A trained model asked about the cells of a store."""

    run: Trained
    store: CountStore

    def numbers(self, *, samples: int, seed: int) -> dict[str, Any]:
        """The likelihood of the counts, posterior-predictive checks, and probes of the latents."""
        conditions = self.run.settings.conditions
        likelihood = {**self.likelihood(samples=samples, seed=seed), "samples": samples}
        likelihood["of"] = "normalised data" if self.run.card.kind == "gaussian_vae" else "counts"
        return {
            "run": str(self.run.path),
            "likelihood": likelihood,
            "predictive": self._predictive_row(seed=seed),
            "probes": probe_rows(self.latents(), self.store.obs[list(conditions)], seed=seed),
        }

    def latents(self, *, batch_size: int = 256) -> np.ndarray:
        """Latent points (cells, latent)."""
        batches = self._batches("encoding", batch_size)
        return np.vstack([self.run.model.encode(batch).cpu().numpy() for batch in batches])

    def log_likelihoods(self, *, samples: int, seed: int, batch_size: int = 128) -> np.ndarray:
        """Log p(x | c) of every cell, (cells,), in nats, by importance sampling."""
        import torch

        model = self.run.model
        generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
        parts = [
            model.log_evidence(batch, samples=samples, generator=generator)
            for batch in self._batches("likelihood", batch_size)
        ]
        return np.concatenate([part.cpu().numpy() for part in parts])

    def likelihood(self, *, samples: int, seed: int) -> dict[str, Any]:
        """Mean negative log-likelihood, nats per gene and cell, and its error over cells."""
        log_likelihood = self.log_likelihoods(samples=samples, seed=seed)
        return _likelihood_row(log_likelihood, self.store.n_genes)

    def _batches(self, what: str, size: int) -> Iterable[CellBatch]:
        return track(CellFeed(self.store, size).once(), what, -(-len(self.store) // size))

    def _predictive_row(self, *, seed: int, cells: int = 2000) -> dict[str, float]:
        """Posterior-predictive checks on some of the cells."""
        run, store = self.run, self.store
        chosen = np.random.default_rng(seed).permutation(len(store))[:cells]
        real, generated = _real_and_generated(run.model, store, chosen, seed=seed)
        row = _predictive_numbers(real, generated)
        if run.settings.conditions:
            groups = _condition_texts(store.obs.iloc[chosen], run.settings.conditions)
            row["between_conditions_generated_over_real"] = _between_ratio(real, generated, groups)
        return row


def _likelihood_row(log_likelihood: np.ndarray, n_genes: int) -> dict[str, Any]:
    nll = -log_likelihood / n_genes
    error = float(nll.std(ddof=1) / np.sqrt(len(nll))) if len(nll) > 1 else float("nan")
    return {"cells": len(nll), "nll_per_gene": float(nll.mean()), "standard_error": error}


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
    for name in labels:
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


class CellBoard(Board):
    """Latent space, posterior-predictive figures and gauges of a model of counts."""

    weight = "schedule/KL weight"
    settings: RunSettings

    def pictures(self, training: Training, epoch: int) -> None:
        """Latent space, posterior-predictive figures and the gauges."""
        model, store, _ = _model_and_stores(training)
        positions = self.chosen(len(store))
        latents, labels = self._own(model, store, positions)
        self.add_latents("latent/principal components", latents, labels, epoch)
        active = _active_dimensions(latents)
        self.writer.add_scalar("gauges/active latent dimensions", active, epoch)
        few = positions[:1000]  # their counts are made dense
        real, generated = _real_and_generated(model, store, few, seed=self.settings.seed)
        figure = _predictive_figure(real, generated)
        self.writer.add_figure("predictive/real and generated", figure, epoch)
        for name, value in _predictive_numbers(real, generated).items():
            self.writer.add_scalar(f"predictive/{name.replace('_', ' ')}", value, epoch)
        if self.settings.conditions:
            groups = _condition_texts(store.obs.iloc[few], self.settings.conditions)
            ratio = _between_ratio(real, generated, groups)
            self.writer.add_scalar("gauges/between-condition variance ratio", ratio, epoch)

    def projected(self, training: Training) -> tuple[np.ndarray, pd.DataFrame]:
        """Latent points of some training and validation cells."""
        model, store, validation = _model_and_stores(training)
        latents, labels = self._own(model, store, self.chosen(len(store)))
        labels = labels.assign(split="train")
        if len(validation):
            rows = self.chosen(len(validation))
            batches = CellFeed(validation.subset(rows), 512).once()
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


def _real_and_generated(
    model: LatentModel, store: CountStore, positions: np.ndarray, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Counts (cells, genes) of some cells, and as many drawn for their conditions and sizes."""
    import torch

    from perturbgen.models.base import dense, sizes

    real: list[np.ndarray] = []
    generated: list[np.ndarray] = []
    for batch in _chosen_cells(store, positions, 256):
        generator = torch.Generator(batch.codes.device).manual_seed(seed + len(real))
        size = sizes(batch.counts, model.decoder.scaling)
        real.append(dense(batch.counts).cpu().numpy())
        generated.append(model.sample(batch.codes, size, generator).cpu().numpy())
    return np.vstack(real), np.vstack(generated)


def _condition_texts(obs: pd.DataFrame, columns: Iterable[str]) -> np.ndarray:
    """The condition of each cell as one text, (cells,)."""
    return obs[list(columns)].astype(str).agg(" ".join, axis=1).to_numpy()


def _active_dimensions(latents: np.ndarray) -> int:
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


def _between_ratio(
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


def _predictive_numbers(real: np.ndarray, generated: np.ndarray) -> dict[str, float]:
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
