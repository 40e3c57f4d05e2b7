"""A small network whose first layer reads counts dense or sparse."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from perturbgen.nn.shapes import ShapeError, SparseCounts


class CountLinear(nn.Module):
    """h = x W + c C + b: ``nn.Linear`` on [x; c] with the counts x (cells, n_in) dense or sparse.

    A sparse batch costs its non-zeros only. The weight is stored (n_in, n_out), a row per gene.
    """

    def __init__(self, n_in: int, n_out: int, *, n_conditions: int = 0) -> None:
        super().__init__()
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
                "this layer was built " + ("without conditions" if self.conditions is None else "for conditions"),
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
        self.first = CountLinear(n_in, widths[0], n_conditions=n_conditions)
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [nn.LayerNorm(width)] if layer_norm else []
            layers.append(activation())
            layers += [nn.Dropout(dropout)] if dropout else []
            layers.append(nn.Linear(width, following))
        self.rest = nn.Sequential(*layers)

    def forward(self, x: Tensor | SparseCounts, conditions: Tensor | None = None) -> Tensor:
        """(cells, widths[-1]) from x (cells, n_in), dense or sparse, and the conditions (cells, n_conditions)."""
        return self.rest(self.first(x, conditions))
