"""From a latent point and conditions to the distribution of a cell's counts; shared by the VAE and the DGD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from perturbgen.nn import MLP, Dispersion, PredictedDispersion, scaled_log_mean
from perturbgen.nn.scale import Scaling, composition

DispersionKind = Literal["gene", "gene-category", "predicted"]


class CountParameters(NamedTuple):
    """Log mean (..., cells, genes) and log dispersion r, which broadcasts into it, of negative binomial counts."""

    log_mean: Tensor
    log_r: Tensor


class CountDecoder(nn.Module):
    """p(x | z, c) = NB(mean = size × softmax(f(z, c)), r): layers of ``hidden`` widths, then one unit per gene.

    ``share`` (genes,) is each gene's part of all counts, where the last layer's bias starts. With ``additive`` the
    conditions act on the log means directly, too: a linear term beside the network.
    """

    def __init__(
        self,
        n_latent: int,
        hidden: Sequence[int],
        n_genes: int,
        *,
        n_conditions: int = 0,
        share: Tensor | None = None,
        scaling: Scaling = "total",
        dispersion: DispersionKind = "gene",
        n_categories: int | None = None,
        additive: bool = False,
        layer_norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.scaling, self.dispersion_kind = scaling, dispersion
        self.trunk = MLP(n_latent, hidden, n_conditions=n_conditions, layer_norm=layer_norm, dropout=dropout)
        last = [nn.LayerNorm(hidden[-1])] if layer_norm else []
        self.activation = nn.Sequential(*last, nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(hidden[-1], n_genes)
        self.additive = nn.Linear(n_conditions, n_genes, bias=False) if additive and n_conditions else None
        if self.additive is not None:
            nn.init.zeros_(self.additive.weight)
        if share is not None:
            self._start_at(share)
        self.dispersion: nn.Module = (
            PredictedDispersion(hidden[-1], n_genes)
            if dispersion == "predicted"
            else Dispersion(n_genes, n_categories=n_categories if dispersion == "gene-category" else None)
        )

    def forward(
        self, z: Tensor, features: Tensor | None, size: Tensor, category: Tensor | None = None
    ) -> CountParameters:
        """Of latent points (..., cells, latent), condition features (cells, n_conditions) and sizes (cells,).

        ``category`` (cells,) int64 chooses the dispersion where it is per gene and category. Features and category of
        length 1 are those of all cells.
        """
        hidden = self.activation(self.trunk(z, features))
        logits = self._logits(hidden, features)
        log_mean = scaled_log_mean(logits.float(), size, scaling=self.scaling)
        return CountParameters(log_mean, self._log_r(hidden, category))

    def composition(self, z: Tensor, features: Tensor | None, category: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Each gene's share of a cell's counts (..., cells, genes), and log r: nothing that needs a size."""
        hidden = self.activation(self.trunk(z, features))
        return composition(self._logits(hidden, features).float(), scaling=self.scaling), self._log_r(hidden, category)

    def _logits(self, hidden: Tensor, features: Tensor | None) -> Tensor:
        """Before they are scaled, (..., cells, genes); conditions that all cells share are one more bias."""
        if self.additive is None or features is None:
            return self.head(hidden)
        shift = self.additive(features)
        if len(shift) == 1:
            return functional.linear(hidden, self.head.weight, self.head.bias + shift[0])
        return self.head(hidden) + shift

    def _log_r(self, hidden: Tensor, category: Tensor | None) -> Tensor:
        if self.dispersion_kind == "predicted":
            return self.dispersion(hidden).float()
        return self.dispersion(category if self.dispersion_kind == "gene-category" else None)

    @torch.no_grad()
    def _start_at(self, share: Tensor) -> None:
        """Let the last layer begin at the genes' mean shares; those of a sigmoid have their largest at ½."""
        share = share.float().clamp(min=1e-12)
        log_share = (share / share.sum()).log()
        self.head.bias.copy_(log_share if self.scaling == "total" else (log_share - log_share.max()).clamp(min=-20))
        self.head.weight.mul_(0.1)
