"""From a network's output to the parameters of a count likelihood: means that keep to the cell's depth, bounded r."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from perturbgen.errors import ConfigError
from perturbgen.nn.shapes import ShapeError

Scaling = Literal["total", "max"]

# r from 1/1100 to 8100. Beyond, the variance m + m²/r tells r from its limit in no cell, and r would drift.
_LOG_R_CENTRE, _LOG_R_REACH = 1.0, 8.0

_SHARES: dict[str, Callable[[Tensor], Tensor]] = {
    "total": partial(functional.log_softmax, dim=-1),
    "max": functional.logsigmoid,
}


def scaled_log_mean(logits: Tensor, size: Tensor, *, scaling: Scaling = "total") -> Tensor:
    """Log means (..., cells, genes) from a decoder's ``logits`` of that shape and each cell's ``size`` (cells,).

    ``total``: m = total counts × softmax(logits), a composition, so that generated cells have the depth asked for.
    ``max``: m = largest count × sigmoid(logits), where the depth is whatever the genes add up to.
    """
    if size.ndim != 1 or logits.ndim < 2 or len(size) != logits.shape[-2]:
        raise ShapeError(
            f"sizes of shape {tuple(size.shape)} for logits of shape {tuple(logits.shape)}",
            expected="one size per cell, (cells,), and logits (cells, genes)",
            cause="a column (cells, 1); against a vector it would broadcast to (cells, cells)",
            fix="size.squeeze(-1)",
        )
    if scaling not in _SHARES:
        raise ConfigError(f"scaling {scaling!r}", expected=" or ".join(_SHARES))
    share = _SHARES[scaling](logits)
    return share + size.to(share.dtype).log()[:, None]


def composition(logits: Tensor, *, scaling: Scaling = "total") -> Tensor:
    """Each gene's share (..., cells, genes) of the means that :func:`scaled_log_mean` gives for any size."""
    if scaling == "total":
        return logits.softmax(-1)
    return functional.normalize(logits.sigmoid(), p=1, dim=-1)


def bounded_log_r(raw: Tensor) -> Tensor:
    """Log r within [-7, 9], the identity near its centre.

    Smooth, because a gene beyond a clamp has no gradient left and never returns.
    """
    return _LOG_R_CENTRE + _LOG_R_REACH * torch.tanh((raw - _LOG_R_CENTRE) / _LOG_R_REACH)


def unbounded_log_r(log_r: float) -> float:
    """The raw value that ``bounded_log_r`` maps to ``log_r``."""
    part = (log_r - _LOG_R_CENTRE) / _LOG_R_REACH
    if not -1 < part < 1:
        raise ConfigError(f"a dispersion r of {math.exp(log_r):.3g}", expected="between e^-7 and e^9")
    return _LOG_R_CENTRE + _LOG_R_REACH * math.atanh(part)


class Dispersion(nn.Module):
    """A learned log r per gene, or per gene and category (cell type)."""

    def __init__(self, n_genes: int, *, n_categories: int | None = None, r: float = 2.0) -> None:
        super().__init__()
        shape = (n_genes,) if n_categories is None else (n_categories, n_genes)
        self.raw = nn.Parameter(torch.full(shape, unbounded_log_r(math.log(r))))

    def forward(self, category: Tensor | None = None) -> Tensor:
        """Log r: (genes,), or (cells, genes) from the category of each cell, int64 (cells,)."""
        if (category is None) != (self.raw.ndim == 1):
            raise ShapeError(
                "the dispersion has " + ("no categories" if self.raw.ndim == 1 else f"{len(self.raw)} categories"),
                expected="a category per cell where it has categories, and none where it is per gene",
            )
        log_r = bounded_log_r(self.raw)
        return log_r if category is None else log_r[category]


class PredictedDispersion(nn.Module):
    """A log r per cell and gene, predicted from the decoder's last hidden layer; it starts at ``r`` everywhere."""

    def __init__(self, n_hidden: int, n_genes: int, *, r: float = 2.0) -> None:
        super().__init__()
        self.linear = nn.Linear(n_hidden, n_genes)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, unbounded_log_r(math.log(r)))

    def forward(self, hidden: Tensor) -> Tensor:
        """Log r (cells, genes) from (cells, hidden)."""
        return bounded_log_r(self.linear(hidden))
