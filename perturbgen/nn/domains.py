"""Against batch effects in networks: the batch's own statistics, and penalties on features that tell batches apart.

AdaBN (Li et al. 2018) estimates the statistics of batch normalisation anew on each experiment. CORAL (Sun and Saenko
2016) punishes differences of means and covariances between domains; DANN (Ganin et al. 2016) features from which a
second classifier can read the domain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, features: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def reversed_gradient(features: Tensor) -> Tensor:
    """The features themselves, whose gradient is turned round: what reads them learns, what makes them unlearns."""
    return _Reversal.apply(features)


class DomainHead(nn.Module):
    """A classifier of domains behind a reversed gradient: -log p(domain), (samples,)."""

    def __init__(self, features: int, domains: int, *, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, domains))

    def forward(self, features: Tensor, domain: Tensor) -> Tensor:
        """Cross entropy (samples,) of the domains (samples,) read from features (samples, features)."""
        return functional.cross_entropy(self.layers(reversed_gradient(features)), domain, reduction="none")


def coral(features: Tensor, domain: Tensor) -> Tensor:
    """Mean over pairs of domains of mean |mu_i - mu_j|^2 + mean |C_i - C_j|^2, a scalar; 0 with one domain.

    ``features`` (samples, features), ``domain`` (samples,). Domains with one sample are left out.
    """
    moments = []
    for value in torch.unique(domain):
        rows = features[domain == value]
        if len(rows) > 1:
            moments.append((rows.mean(dim=0), torch.cov(rows.T)))
    pairs = [
        (mean - other).square().mean() + (covariance - spread).square().mean()
        for i, (mean, covariance) in enumerate(moments)
        for other, spread in moments[:i]
    ]
    return torch.stack(pairs).mean() if pairs else features.sum() * 0


def norms(network: nn.Module) -> list[_BatchNorm]:
    """The layers of batch normalisation."""
    return [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]


@contextmanager
def own_statistics(network: nn.Module, show: Callable[[], None]) -> Iterator[None]:
    """Within the block, batch normalisation uses the statistics of the images that ``show`` sends through the network.

    The statistics of training come back after it. Nothing is learned from labels, and no weight changes.
    """
    layers = norms(network)
    kept = [(layer, layer.momentum, {k: v.clone() for k, v in layer.state_dict().items()}) for layer in layers]
    was_training = network.training
    try:
        network.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches, not a moving one
            layer.train()
        with torch.no_grad():
            show()
        network.eval()
        yield
    finally:
        for layer, momentum, state in kept:
            layer.momentum = momentum
            layer.load_state_dict(state)
        network.train(was_training)


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Within the block, batch normalisation uses each batch's own statistics and remembers none of them."""
    layers = norms(network)
    was_training = network.training
    network.eval()
    tracked = [layer.track_running_stats for layer in layers]
    statistics = [(layer.running_mean, layer.running_var) for layer in layers]
    try:
        for layer in layers:
            layer.running_mean, layer.running_var = None, None
        yield
    finally:
        for layer, (mean, variance), track in zip(layers, statistics, tracked, strict=True):
            layer.running_mean, layer.running_var, layer.track_running_stats = mean, variance, track
        network.train(was_training)
