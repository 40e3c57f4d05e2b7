"""Layers between counts and the parameters of their likelihood; random numbers that devices share.

A network's first layer reads counts dense or sparse; its output becomes means that keep to the
cell's depth and dispersions that stay within bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from perturbgen.core.errors import ConfigError
from perturbgen.nn.likelihoods import ShapeError, SparseCounts


class _CountLinear(nn.Module):
    """h = x W + c C + b: ``nn.Linear`` on [x; c] with the counts x (cells, n_in) dense or sparse.

    A sparse batch costs its non-zeros only. The weight is stored (n_in, n_out), a row per gene.
    """

    def __init__(self, n_in: int, n_out: int, *, n_conditions: int = 0) -> None:
        super().__init__()
        # A row per gene: what embedding_bag gathers, so that no batch is ever made dense.
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.empty(n_out))
        self.conditions = nn.Linear(n_conditions, n_out, bias=False) if n_conditions else None
        bound = 1 / math.sqrt(n_in + n_conditions)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor | SparseCounts, conditions: Tensor | None = None) -> Tensor:
        """(cells, n_out) from x and the conditions (cells, n_conditions)."""
        if (conditions is None) != (self.conditions is None):
            raise ShapeError(
                "this layer was built "
                + ("without conditions" if self.conditions is None else "for conditions"),
                expected="conditions (cells, n_conditions) exactly where n_conditions > 0",
            )
        hidden = self._read(x) + self.bias
        return hidden if self.conditions is None else hidden + self.conditions(conditions)

    def _read(self, x: Tensor | SparseCounts) -> Tensor:
        """X W."""
        n_in = x.shape[-1] if isinstance(x, Tensor) else x.n_genes
        if n_in != len(self.weight):
            raise ShapeError(f"{n_in} inputs for a layer built for {len(self.weight)}")
        if isinstance(x, Tensor):
            return x @ self.weight
        return functional.embedding_bag(
            x.columns,
            self.weight,
            x.offsets,
            mode="sum",
            per_sample_weights=x.values.to(self.weight.dtype),
            include_last_offset=True,
        )


class MLP(nn.Module):
    """Linear layers of ``widths`` with an activation between them; the last layer is linear.

    Conditions enter the first layer, as if appended to its input.
    """

    def __init__(
        self,
        n_in: int,
        widths: Sequence[int],
        *,
        n_conditions: int = 0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        layer_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.first = _CountLinear(n_in, widths[0], n_conditions=n_conditions)
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [nn.LayerNorm(width)] if layer_norm else []
            layers.append(activation())
            layers += [nn.Dropout(dropout)] if dropout else []
            layers.append(nn.Linear(width, following))
        self.rest = nn.Sequential(*layers)

    def forward(self, x: Tensor | SparseCounts, conditions: Tensor | None = None) -> Tensor:
        """(cells, widths[-1]) from x (cells, n_in) and conditions (cells, n_conditions)."""
        return self.rest(self.first(x, conditions))


Scaling = Literal["total", "max"]

# r from 1/1100 to 8100. Beyond, the variance m + m²/r tells r from its limit in no cell, and r
# would drift.
_LOG_R_CENTRE, _LOG_R_REACH = 1.0, 8.0
_USUAL_R = 2.0  # where nothing says how a gene varies

# As logarithms: a share that underflows has none.
_SHARES: dict[str, Callable[[Tensor], Tensor]] = {
    "total": partial(functional.log_softmax, dim=-1),
    "max": functional.logsigmoid,
}


def scaled_log_mean(logits: Tensor, size: Tensor, *, scaling: Scaling = "total") -> Tensor:
    """Log means (..., cells, genes) from ``logits`` of that shape and cells' ``size`` (cells,).

    ``total``: m = total counts × softmax(logits), a composition, so that generated cells have the
    depth asked for.
    ``max``: m = largest count × sigmoid(logits), where the depth is whatever the genes add up to.
    """
    if size.ndim != 1 or logits.ndim < 2 or len(size) != logits.shape[-2]:
        raise ShapeError(
            f"sizes of shape {tuple(size.shape)} for logits of shape {tuple(logits.shape)}",
            expected="one size per cell, (cells,), and logits (cells, genes)",
            cause="a column (cells, 1); against a vector it would broadcast to (cells, cells)",
            fix="size.squeeze(-1)",
        )
    share = log_share(logits, scaling=scaling)
    return share + size.to(share.dtype).log()[:, None]


def log_share(logits: Tensor, *, scaling: Scaling = "total") -> Tensor:
    """The log of each gene's part of a cell's size, (..., cells, genes)."""
    if scaling not in _SHARES:
        raise ConfigError(f"scaling {scaling!r}", expected=" or ".join(_SHARES))
    return _SHARES[scaling](logits)


def composition(logits: Tensor, *, scaling: Scaling = "total") -> Tensor:
    """Each gene's share (..., cells, genes) of :func:`scaled_log_mean`'s means, for any size."""
    if scaling == "total":
        return logits.softmax(-1)
    # Sigmoids do not add up to one.
    return functional.normalize(logits.sigmoid(), p=1, dim=-1)


def _bounded_log_r(raw: Tensor) -> Tensor:
    """Log r within [-7, 9], the identity near its centre.

    Smooth, because a gene beyond a clamp has no gradient left and never returns.
    """
    return _LOG_R_CENTRE + _LOG_R_REACH * torch.tanh((raw - _LOG_R_CENTRE) / _LOG_R_REACH)


def _raw_dispersion(r: Tensor | float | None, shape: tuple[int, ...]) -> Tensor:
    """The raw values that ``_bounded_log_r`` maps to the logarithm of r, one or (genes,)."""
    # In numpy: where a model is only to be counted, tensors have no values.
    each = np.asarray(_USUAL_R if r is None else r, np.float64)
    part = (np.log(each) - _LOG_R_CENTRE) / _LOG_R_REACH
    beyond = ~(np.abs(part) < 1)
    if beyond.any():
        raise ConfigError(
            f"a dispersion r of {each[beyond][0]:.3g}", expected="between e^-7 and e^9"
        )
    raw = _LOG_R_CENTRE + _LOG_R_REACH * np.arctanh(part)
    return torch.empty(shape).copy_(torch.from_numpy(np.asarray(raw, np.float32)))


class Dispersion(nn.Module):
    """A learned log r per gene, or per gene and category (cell type); ``r`` at first."""

    def __init__(
        self, n_genes: int, *, n_categories: int | None = None, r: Tensor | float | None = None
    ) -> None:
        super().__init__()
        shape = (n_genes,) if n_categories is None else (n_categories, n_genes)
        self.raw = nn.Parameter(_raw_dispersion(r, shape))

    def forward(self, category: Tensor | None = None) -> Tensor:
        """Log r: (genes,), or (cells, genes) from the category of each cell, int64 (cells,)."""
        if (category is None) != (self.raw.ndim == 1):
            raise ShapeError(
                "the dispersion has "
                + ("no categories" if self.raw.ndim == 1 else f"{len(self.raw)} categories"),
                expected="a category per cell where it has categories, none where it is per gene",
            )
        log_r = _bounded_log_r(self.raw)
        return log_r if category is None else log_r[category]


class PredictedDispersion(nn.Module):
    """A log r per cell and gene, from the decoder's last hidden layer; ``r`` at first."""

    def __init__(self, n_hidden: int, n_genes: int, *, r: Tensor | float | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(n_hidden, n_genes)
        # It starts as a dispersion per gene does, and departs from it where cells call for it.
        nn.init.zeros_(self.linear.weight)
        with torch.no_grad():
            self.linear.bias.copy_(_raw_dispersion(r, (n_genes,)))

    def forward(self, hidden: Tensor) -> Tensor:
        """Log r (cells, genes) from (cells, hidden)."""
        return _bounded_log_r(self.linear(hidden))


class Draws:
    """Standard normals for the cells ``rank``, ``rank + ranks``, ... of a batch of ``total`` cells.

    All of the batch's numbers are drawn and our share is taken, so that two processes use what one
    would have used.
    """

    def __init__(
        self, generator: torch.Generator, *, rank: int = 0, ranks: int = 1, total: int | None = None
    ) -> None:
        self.generator, self.rank, self.ranks, self.total = generator, rank, ranks, total

    def normal(self, cells: int, width: int) -> Tensor:
        """(cells, width), on the generator's device."""
        return self._own(torch.randn, cells, width)

    def uniform(self, cells: int, width: int) -> Tensor:
        """(cells, width) in [0, 1)."""
        return self._own(torch.rand, cells, width)

    def _own(self, function: Callable[..., Tensor], cells: int, width: int) -> Tensor:
        rows, device = self.total or cells, self.generator.device
        # All numbers of the batch are drawn by every process, and each takes its own.
        whole = function(rows, width, generator=self.generator, device=device)
        return whole[self.rank :: self.ranks]
