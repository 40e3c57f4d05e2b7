"""Conditions of a cell (cell type, compound, plate, donor, ...) as one vector of features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from perturbgen.core.errors import ConfigError
from perturbgen.nn.layers import Draws

_Encoding = Literal["onehot", "embedding", "descriptors", "label"]


@dataclass(frozen=True)
class Covariate:
    """One covariate: how many categories, and how they become features.

    ``onehot`` gives a feature per category, ``embedding`` learns ``width`` of them, ``descriptors``
    maps what is known of each category, (categories, descriptors), linearly to ``width``: a
    category never seen has features too. A ``label`` is no feature: it only chooses a component of
    a mixture or a dispersion. With probability ``dropout`` a training cell's category is withheld
    (zeros), so that the model also knows the marginal.
    """

    name: str
    categories: int
    encoding: _Encoding = "onehot"
    width: int = 16
    dropout: float = 0.0
    descriptors: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.descriptors is not None) != (self.encoding == "descriptors"):
            raise ConfigError(
                f"covariate {self.name!r}: encoding {self.encoding!r} with"
                f"{'out' if self.descriptors is None else ''} descriptors",
                fix='give descriptors exactly where the encoding is "descriptors"',
            )
        if self.descriptors is not None and len(self.descriptors) != self.categories:
            raise ConfigError(
                f"covariate {self.name!r}: {len(self.descriptors)} descriptors "
                f"for {self.categories} categories"
            )

    def layer(self) -> nn.Module:
        """The module from codes (cells,) to features (cells, n_features)."""
        if self.encoding in ("onehot", "label"):
            return _OneHot(self.n_features)
        if self.encoding == "embedding":
            return nn.Embedding(self.categories, self.width)
        assert self.descriptors is not None
        return _Described(self.descriptors, self.width)

    @property
    def n_features(self) -> int:
        """How many features it takes."""
        return {"onehot": self.categories, "label": 0}.get(self.encoding, self.width)


class _OneHot(nn.Module):
    """A feature per category; none at all for a label."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, codes: Tensor) -> Tensor:
        """(cells, features) of 0 and 1."""
        if not self.features:
            return torch.empty(len(codes), 0, device=codes.device)
        return functional.one_hot(codes, self.features).float()


class _Described(nn.Module):
    """Descriptors of categories, standardised, mapped linearly."""

    def __init__(self, descriptors: Tensor, width: int) -> None:
        super().__init__()
        values = descriptors.float()
        spread = values.std(0, correction=0)
        self.table: Tensor
        self.register_buffer(
            "table", (values - values.mean(0)) / torch.where(spread > 0, spread, 1.0)
        )
        self.linear = nn.Linear(values.shape[1], width)

    def forward(self, codes: Tensor) -> Tensor:
        """(cells, width)."""
        return self.linear(self.table[codes])


class Conditions(nn.Module):
    """All covariates side by side: codes (cells, covariates) -> features (cells, ``width``)."""

    def __init__(self, covariates: Sequence[Covariate]) -> None:
        super().__init__()
        self.names = tuple(covariate.name for covariate in covariates)
        self.dropout = tuple(covariate.dropout for covariate in covariates)
        self.sizes = tuple(covariate.categories for covariate in covariates)
        self.width = sum(covariate.n_features for covariate in covariates)
        self.layers = nn.ModuleList(covariate.layer() for covariate in covariates)

    def forward(self, codes: Tensor) -> Tensor | None:
        """Features; a code of −1 gives zeros. None where there are none at all."""
        if not self.width:
            return None
        known = (codes >= 0).unsqueeze(-1)
        parts = [
            layer(codes[:, i].clamp(min=0))
            * known[:, i]  # the first category stands in for a withheld one
            for i, layer in enumerate(self.layers)
        ]
        return torch.cat(parts, dim=-1)

    def withhold(self, codes: Tensor, draws: Draws) -> Tensor:
        """Codes with categories withheld at random, each covariate with its own probability."""
        # No number is drawn where none is used.
        if not any(self.dropout):
            return codes
        chance = torch.tensor(self.dropout, device=codes.device)
        return codes.masked_fill(draws.uniform(len(codes), len(self.dropout)) < chance, -1)
