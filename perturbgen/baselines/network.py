"""The low-rank network: a small MLP from conditions to component scores, with what won the competition and generalised.

Row-wise RMSE as the loss, null noise in the targets, zeroed features, medians over seeds, predictions kept within the
training range, and, where asked for, a second stage on its own predictions (which makes it transductive).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from perturbgen.baselines.base import Array, TrainTable, forward
from perturbgen.baselines.features import FeatureModel, FeatureSettings, Standardise
from perturbgen.baselines.lowrank import LowRankTarget
from perturbgen.core.config import Settings
from perturbgen.core.console import track

_NOISE_DRAWS = 8


class _NetworkSettings(FeatureSettings):
    """The network and its training."""

    hidden: int = Field(256, ge=1, description="units of each of the two hidden layers")
    epochs: int = Field(
        60,
        ge=1,
        description="passes over the training rows; the number is fixed, nothing stops early",
    )
    batch: int = Field(32, ge=2, description="rows of a step")
    rate: float = Field(1e-3, gt=0, description="the largest learning rate of a one-cycle schedule")
    decay: float = Field(1e-2, ge=0, description="weight decay")
    zeroed: float = Field(
        0.3, ge=0, lt=1, description="share of the features that each step sets to zero"
    )
    null_noise: float = Field(
        0.5, ge=0, description="scale of ±log10 U(.001, 1) added to the values; 0 for none"
    )
    seeds: int = Field(5, ge=1, description="networks whose median is taken")
    pseudo_weight: float = Field(
        0.5, gt=0, description="weight of a pseudo-label beside a measured row"
    )


class LowRankNetwork(FeatureModel[_NetworkSettings]):
    """The median of a few small networks, trained on the row-wise RMSE of all genes.

    With orthonormal components the squared error of a row is ‖z − ẑ‖² + r², r what the components leave of the row: the
    loss is that of all genes, and no gene is ever formed.
    """

    settings_class: ClassVar[type[Settings]] = _NetworkSettings

    def _fit_scores(self, features: Array, scores: Array, rng: np.random.Generator) -> None:
        self._standardise = Standardise(features)
        rest = _residual_squares(self.table, self._target, scores)
        draws = _null_noise(self.table, self._target, self.settings.null_noise, rng)
        self._rows = _TrainingRows(
            self._standardise(features), scores, rest, draws, np.ones(len(scores))
        )
        self._seeds = rng.integers(2**31, size=self.settings.seeds).tolist()
        self._networks = _train_networks(
            self._rows, self._seeds, self.settings, len(self.table.genes)
        )

    def _predict_scores(self, features: Array) -> Array:
        return _median_scores(self._networks, self._standardise(features))


class PseudoLabelNetwork(LowRankNetwork):
    """The low-rank network, trained again with its own predictions of the wanted conditions as further rows.

    Transductive: what it predicts for one condition depends on which others are asked for with it.
    """

    def _predict_scores(self, features: Array) -> Array:
        wanted = self._standardise(features)
        first = _median_scores(self._networks, wanted)
        rows = self._rows.extended(wanted, first, weight=self.settings.pseudo_weight)
        return _median_scores(
            _train_networks(rows, self._seeds, self.settings, len(self.table.genes)), wanted
        )


class _TrainingRows:
    """What a network is trained on: features, scores, r² and weight of each row, and draws of noise for the scores."""

    def __init__(
        self, features: Array, scores: Array, rest: Array, draws: Array, weights: Array
    ) -> None:
        self.features, self.scores, self.rest, self.weights = (
            _as_tensor(v) for v in (features, scores, rest, weights)
        )
        self.draws = _as_tensor(draws)

    def extended(self, features: Array, scores: Array, *, weight: float) -> _TrainingRows:
        """With pseudo-labels (conditions, components) as further rows, without noise and with the typical r²."""
        count = len(features)
        still = np.zeros((len(self.draws), count, self.scores.shape[1]))
        return _TrainingRows(
            np.vstack([self.features.numpy(), features]),
            np.vstack([self.scores.numpy(), scores]),
            np.append(self.rest.numpy(), np.full(count, self.rest.median().item())),
            np.concatenate([self.draws.numpy(), still], axis=1),
            np.append(self.weights.numpy(), np.full(count, weight)),
        )


def _residual_squares(table: TrainTable, target: LowRankTarget, scores: Array) -> Array:
    """r² (rows,): the squared length of each transformed row that the components do not hold."""
    whole = (
        forward(table.values, target.transform)
        - target.offset(table.cell_types)
        - target.components.mean
    )
    return np.maximum((whole**2).sum(axis=1) - (scores**2).sum(axis=1), 0)


def _null_noise(
    table: TrainTable, target: LowRankTarget, scale: float, rng: np.random.Generator
) -> Array:
    """Changes of the scores (draws, rows, components) when y becomes y ± ``scale`` · log10 U(.001, 1) in every gene."""
    clean = target.scores(table.values, table.cell_types)
    if not scale:
        return np.zeros((1, *clean.shape))
    draws = np.empty((_NOISE_DRAWS, *clean.shape))
    for i in range(_NOISE_DRAWS):
        signs = rng.integers(0, 2, table.values.shape) * 2 - 1
        noise = signs * np.log10(rng.uniform(0.001, 1, table.values.shape))
        draws[i] = target.scores(table.values + scale * noise, table.cell_types) - clean
    return draws


def _train_networks(
    rows: _TrainingRows, seeds: list[int], settings: _NetworkSettings, genes: int
) -> list[nn.Module]:
    """One network for each seed."""
    return [
        _train_network(rows, seed, settings, genes) for seed in track(seeds, "training networks")
    ]


def _train_network(
    rows: _TrainingRows, seed: int, settings: _NetworkSettings, genes: int
) -> nn.Module:
    """Adam with weight decay on a one-cycle schedule over a fixed number of epochs."""
    generator = torch.Generator().manual_seed(seed)
    network = _build(
        rows.features.shape[1],
        rows.scores.shape[1],
        settings.hidden,
        _scale_of(rows.scores),
        generator,
    )
    steps = max(1, round(len(rows.features) / settings.batch))
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=settings.rate, weight_decay=settings.decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.rate, total_steps=steps * settings.epochs
    )
    for _ in range(settings.epochs):
        noise = rows.draws[int(torch.randint(len(rows.draws), (), generator=generator))]
        for chosen in torch.randperm(len(rows.features), generator=generator).tensor_split(steps):
            shown = _zeroed(rows.features[chosen], settings.zeroed, generator)
            found = network(shown)
            loss = _row_rmse(found, rows.scores[chosen] + noise[chosen], rows.rest[chosen], genes)
            optimiser.zero_grad()
            (loss * rows.weights[chosen]).mean().backward()
            optimiser.step()
            schedule.step()
    return network.eval()


def _row_rmse(predicted: Tensor, scores: Tensor, rest: Tensor, genes: int) -> Tensor:
    """√((‖z − ẑ‖² + r²) / genes) of each row (rows,): its root mean squared error over all genes."""
    return torch.sqrt((((scores - predicted) ** 2).sum(dim=1) + rest) / genes + 1e-12)


def _zeroed(features: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Features of which a random share is zero; the others keep their scale."""
    return features * (torch.rand(features.shape, generator=generator) >= share)


class _Scaled(nn.Module):
    """A network whose outputs are in units of each component's spread."""

    def __init__(self, network: nn.Module, scale: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", scale)

    def forward(self, features: Tensor) -> Tensor:
        """Scores (rows, components)."""
        return self.network(features) * self.scale


def _build(
    columns: int, components: int, hidden: int, scale: Tensor, generator: torch.Generator
) -> nn.Module:
    """Two hidden layers; every weight comes from the generator."""
    layers = nn.Sequential(
        nn.Linear(columns, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, components),
    )
    for layer in layers:
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            with torch.no_grad():
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.zero_()
    return _Scaled(layers, scale)


def _scale_of(scores: Tensor) -> Tensor:
    """The root mean square of each component (components,), bounded below by a hundredth of the largest."""
    size = (scores**2).mean(dim=0).sqrt()
    return size.clamp_min(0.01 * float(size.max())).clamp_min(1e-6)


def _median_scores(networks: list[nn.Module], features: Array) -> Array:
    """The median over networks of their scores (conditions, components)."""
    with torch.no_grad():
        found = np.stack([network(_as_tensor(features)).numpy() for network in networks])
    return np.median(found, axis=0).astype(np.float64)


def _as_tensor(values: Array) -> Tensor:
    """The values in 32 bits."""
    return torch.as_tensor(np.asarray(values, dtype=np.float32))
