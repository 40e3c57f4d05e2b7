"""Where the latent points of generated cells come from: the prior, cells of the same type, or control cells."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError, shorten, suggest

if TYPE_CHECKING:
    import torch

    from perturbgen.models import LatentModel

log = logging.getLogger(__name__)

Route = Literal["prior", "posterior", "control"]
_ROUTES: tuple[Route, ...] = get_args(Route)
KEYS: Mapping[Route, tuple[str, ...]] = {
    "posterior": ("cell_type",),
    "control": ("cell_type", "plate"),
}


class Latents(Protocol):
    """A source of latent points."""

    def draw(self, well: pd.Series, codes: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Points (cells, latent) for the cells of a well, whose condition codes are (cells, covariates)."""


@dataclass(frozen=True)
class PriorLatents:
    """N(0, I), or the mixture; where its components belong to a condition's categories, each cell's own component."""

    model: LatentModel

    def draw(self, well: pd.Series, codes: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Points (cells, latent)."""
        import torch

        from perturbgen.models import DGD

        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        model = self.model
        if not isinstance(model, DGD):
            return model.prior_sample(len(codes), generator)
        parts = [_sample_mixture(model.mixture, codes, model.label, generator)]
        if model.covariate_mixture is not None:
            parts.append(
                _sample_mixture(model.covariate_mixture, codes, model.covariate, generator)
            )
        return torch.cat(parts, dim=-1)


def _sample_mixture(
    mixture: Any, codes: torch.Tensor, label: int | None, generator: torch.Generator
) -> torch.Tensor:
    """Points of a mixture, of the components that a covariate names if there is one."""
    component = None if label is None else codes[:, label]
    return mixture.sample(len(codes), component=component, generator=generator)


@dataclass(frozen=True)
class BankLatents:
    """Points of measured cells, (cells, latent), drawn with replacement among those that match a well by ``keys``.

    Where no cell matches all keys, the last key is dropped, with a warning: a plate without controls is served by the
    controls of the other plates. Where no cell type matches, it is an error.
    """

    points: np.ndarray
    labels: pd.DataFrame
    keys: Sequence[str]
    _groups: dict[tuple[str, ...], dict[tuple[str, ...], np.ndarray]] = field(
        default_factory=dict, repr=False
    )

    def draw(self, well: pd.Series, codes: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Points (cells, latent)."""
        import torch

        positions = self.matching(well)
        return torch.from_numpy(
            self.points[positions[rng.integers(len(positions), size=len(codes))]]
        )

    def matching(self, well: pd.Series) -> np.ndarray:
        """Positions of the cells to draw from."""
        for n in range(len(self.keys), 0, -1):
            keys = tuple(self.keys[:n])
            if (
                positions := self.groups(keys).get(tuple(str(well[key]) for key in keys))
            ) is not None:
                return positions
        raise _no_cells(well, self.labels)

    def require(self, wells: pd.DataFrame) -> None:
        """Say before any work is done which wells have nothing to draw from, or less than they should."""
        poor = []
        for _, well in wells.drop_duplicates(list(self.keys)).iterrows():
            self.matching(well)
            values = tuple(str(well[key]) for key in self.keys)
            if values not in self.groups(tuple(self.keys)):
                poor.append(" | ".join(values))
        if poor:
            log.warning(
                "no %s cell for %s: latent points are drawn from all such cells with the same %s",
                "matching",
                shorten(poor),
                " and ".join(self.keys[:-1]),
            )

    def groups(self, keys: tuple[str, ...]) -> dict[tuple[str, ...], np.ndarray]:
        """Positions of the cells for each combination of values."""
        if not len(self.labels):
            return {}
        if keys not in self._groups:
            values = self.labels[list(keys)].astype(str).agg("\t".join, axis=1).to_numpy(object)
            codes, names = pd.factorize(values)
            self._groups[keys] = {
                tuple(name.split("\t")): np.flatnonzero(codes == i) for i, name in enumerate(names)
            }
        return self._groups[keys]


def _no_cells(well: pd.Series, labels: pd.DataFrame) -> SchemaError:
    """The error for a cell type without a cell to take a latent point from."""
    return SchemaError(
        f"no cell of {well['cell_type']!r} has a latent point to start from",
        expected=f"one of {shorten(labels['cell_type'].astype(str).unique())}",
        cause="the file has no such (control) cells",
        fix="use --latent prior",
    )


def require_route(route: str) -> Route:
    """One of the three routes."""
    for known in _ROUTES:
        if route == known:
            return known
    raise ConfigError(
        f"no latent route {route!r}",
        expected=" or ".join(_ROUTES),
        fix=suggest(route, list(_ROUTES)),
    )
