"""Networks from a profile to an embedding, (rows, n_in) to (rows, n_out).

TabNet (Arik and Pfister 2021): steps that each look at a sparse choice of the features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from perturbgen.core.errors import ConfigError, suggest


def _sparsemax(z: Tensor) -> Tensor:
    """The nearest point of the simplex to each row (Martins and Astudillo 2016), mostly zeros."""
    ordered = z.sort(dim=-1, descending=True).values
    rank = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
    above = ordered.cumsum(-1) - 1
    # How many entries stay positive: the last whose value exceeds what all before it share.
    size = (rank * ordered > above).sum(-1, keepdim=True)
    return (z - above.gather(-1, size - 1) / size).clamp_min(0)


class _GhostNorm(nn.Module):
    """Batch norm over small parts of a batch, as if it were smaller."""

    def __init__(self, width: int, *, part: int = 128) -> None:
        super().__init__()
        self.norm, self.part = nn.BatchNorm1d(width, momentum=0.05), part

    def forward(self, x: Tensor) -> Tensor:
        """(rows, width)."""
        if not self.training or len(x) < 2 * self.part:
            return self.norm(x)
        return torch.cat([self.norm(some) for some in x.chunk(len(x) // self.part)])


class _Gated(nn.Module):
    """Linear, norm, gate: GLU(norm(W x)), with a layer that may be shared by all steps."""

    def __init__(self, layer: nn.Linear, width: int) -> None:
        super().__init__()
        self.layer, self.norm = layer, _GhostNorm(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, width)."""
        return functional.glu(self.norm(self.layer(x)), dim=-1)


class _TabNet(nn.Module):
    """``steps`` of feature selection: each masks the features by what is left of their allowance.

    A feature used in one step may be used less in later ones (``relax`` 1: once; more: again). Each
    step reads ``width`` numbers for the embedding and ``width`` for the next mask.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        width: int = 64,
        steps: int = 3,
        relax: float = 1.3,
        shared: int = 2,
    ) -> None:
        super().__init__()
        self.relax, self.width, both = relax, width, 2 * width
        sizes = [n_in, *[both] * (shared - 1)]
        # Shared by all steps; each step has norms of its own over them.
        common = [nn.Linear(size, 2 * both, bias=False) for size in sizes]
        self.norm = nn.BatchNorm1d(n_in)
        self.readers = nn.ModuleList()
        for _ in range(steps + 1):
            own = _Gated(nn.Linear(both, 2 * both), both)
            self.readers.append(nn.ModuleList([*(_Gated(part, both) for part in common), own]))
        self.masks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, n_in), _GhostNorm(n_in)) for _ in range(steps)
        )
        self.out = nn.Linear(width, n_out)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, n_out)."""
        x = self.norm(x)
        allowance = torch.ones_like(x)
        attention = self._read(0, x)[:, self.width :]
        total = x.new_zeros(len(x), self.width)
        for step, choose in enumerate(self.masks, start=1):
            mask = _sparsemax(choose(attention) * allowance)
            allowance = allowance * (self.relax - mask)
            read = self._read(step, mask * x)
            total = total + read[:, : self.width].relu()
            attention = read[:, self.width :]
        return self.out(total)

    def _read(self, step: int, x: Tensor) -> Tensor:
        """(rows, 2 width), layers after the first added to what was before."""
        layers = list(self.readers[step].children())
        hidden = layers[0](x)
        for layer in layers[1:]:
            # √½ keeps the variance of a sum of two.
            hidden = (hidden + layer(hidden)) * math.sqrt(0.5)
        return hidden


def _selu_linear(n_in: int, n_out: int) -> nn.Linear:
    """A layer for SELU: weights of variance 1/n_in, with which SELU keeps mean 0 and variance 1."""
    layer = nn.Linear(n_in, n_out)
    nn.init.normal_(layer.weight, 0.0, 1 / math.sqrt(n_in))
    nn.init.zeros_(layer.bias)
    return layer


class _DenselyConnected(nn.Module):
    """Donner 2018: ``depth`` SELU layers of width ``growth``, each reading all that is before it.

    h_i = SELU(b_i + W_i [x; h_1; ...; h_{i-1}]), out = b + W [x; h_1; ...; h_depth]. Nothing is
    ever concatenated: a layer adds its part to all that come after it as soon as it is known, so
    that the activations kept for the gradient are rows x (n_in + 2 depth x growth), not quadratic
    in depth.
    """

    def __init__(self, n_in: int, n_out: int, *, depth: int = 64, growth: int = 16) -> None:
        super().__init__()
        self.depth, self.growth, self.n_in = depth, growth, n_in
        following = [(depth - i) * growth + n_out for i in range(depth + 1)]
        self.bias = nn.Parameter(torch.zeros(following[0]))
        self.first = nn.Parameter(torch.empty(following[0], n_in))
        self.rest = nn.ParameterList(
            nn.Parameter(torch.empty(width, growth)) for width in following[1:]
        )
        with torch.no_grad():
            # Variance 1 / what the reading layer reads in all: layer i the input and i · growth.
            layer = torch.arange(depth + 1).repeat_interleave(growth)[: following[0] - n_out]
            fan = torch.cat([n_in + growth * layer, torch.full((n_out,), n_in + growth * depth)])
            for part in (self.first, *self.rest):
                part.normal_().div_(fan[-len(part) :].float().sqrt()[:, None])

    def forward(self, x: Tensor) -> Tensor:
        """(rows, n_out)."""
        ahead = functional.linear(x, self.first, self.bias)
        for weight in self.rest:
            # A copy of this layer's share, or the gradient would keep the whole of what is ahead.
            hidden = functional.selu(ahead[:, : self.growth].contiguous())
            ahead = ahead[:, self.growth :] + functional.linear(hidden, weight)
        return ahead


class _SelfNormalising(nn.Module):
    """Plain layers with SELU between them; alpha-dropout keeps mean and variance."""

    def __init__(
        self, n_in: int, n_out: int, *, widths: Sequence[int] = (512, 256), dropout: float = 0.0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in pairwise((n_in, *widths)):
            layers += [_selu_linear(before, width), nn.SELU()]
            # Plain dropout would change the mean and variance that SELU keeps.
            layers += [nn.AlphaDropout(dropout)] if dropout else []
        self.layers = nn.Sequential(*layers, _selu_linear((n_in, *widths)[-1], n_out))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, n_out)."""
        return self.layers(x)


class _ThreeStage(nn.Module):
    """Three stages of batch norm, dropout and a weight-normed layer; leaky rectifiers between."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        width: int = 1024,
        dropout: tuple[float, float, float] = (0.15, 0.3, 0.25),
    ) -> None:
        super().__init__()
        first, second, third = dropout
        self.layers = nn.Sequential(
            nn.BatchNorm1d(n_in),
            nn.Dropout(first),
            weight_norm(nn.Linear(n_in, width)),
            nn.LeakyReLU(0.01),
            nn.BatchNorm1d(width),
            nn.Dropout(second),
            nn.Linear(width, width),
            nn.LeakyReLU(0.01),
            nn.BatchNorm1d(width),
            nn.Dropout(third),
            weight_norm(nn.Linear(width, n_out)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(rows, n_out)."""
        return self.layers(x)


class _SoftOrdering(nn.Module):
    """An order of the genes is learned, then convolutions along it (lish-moa, second place).

    ``channels`` x ``places`` signals are made of the profile; two of the convolutions are skipped
    by a product.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        channels: int = 256,
        places: int = 16,
        pooled: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        # Pooling cuts the places evenly, and the last maximum halves what is left.
        if places % pooled or pooled < 4:
            raise ConfigError(
                f"{places} places pooled to {pooled}", expected="a multiple, and 4 or more pooled"
            )
        self.channels, self.places = channels, places
        wide = 2 * channels
        self.order = nn.Sequential(
            nn.BatchNorm1d(n_in),
            nn.Dropout(dropout),
            weight_norm(nn.Linear(n_in, channels * places)),
            nn.CELU(0.06),
        )
        self.widen = self._stage(channels, wide, 5, dropout)
        self.pool = nn.AvgPool1d(places // pooled)
        self.keep = nn.Sequential(
            self._stage(wide, wide, 3, dropout), self._stage(wide, wide, 3, dropout)
        )
        self.gate = self._stage(wide, wide, 5, dropout)
        self.shrink = nn.MaxPool1d(4, 2, padding=1)
        self.out = nn.Sequential(
            nn.BatchNorm1d(wide * (pooled // 2)), nn.Linear(wide * (pooled // 2), n_out)
        )

    @staticmethod
    def _stage(n_in: int, n_out: int, width: int, dropout: float) -> nn.Sequential:
        """Batch norm, dropout, a weight-normed convolution and a rectifier."""
        convolution = weight_norm(nn.Conv1d(n_in, n_out, width, padding=width // 2))
        return nn.Sequential(nn.BatchNorm1d(n_in), nn.Dropout(dropout), convolution, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(rows, n_out)."""
        ordered = self.order(x).view(len(x), self.channels, self.places)
        signal = self.pool(self.widen(ordered))
        signal = self.keep(signal)
        return self.out(self.shrink(signal * self.gate(signal)).flatten(1))


_ENCODERS: Final[dict[str, Callable[..., nn.Module]]] = {
    "dense": _DenselyConnected,
    "mlp": _SelfNormalising,
    "three_stage": _ThreeStage,
    "soft_ordering": _SoftOrdering,
    "tabnet": _TabNet,
}


def make_encoder(kind: str, n_in: int, n_out: int, **options: Any) -> nn.Module:
    """An encoder by name."""
    if kind not in _ENCODERS:
        raise ConfigError(
            f"no encoder {kind!r}", expected=", ".join(_ENCODERS), fix=suggest(kind, _ENCODERS)
        )
    return _ENCODERS[kind](n_in, n_out, **options)
