"""Latent points of generated cells: of the prior, of cells of the type, or of control cells."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, cast, get_args

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError, shorten, suggest
from perturbgen.data import CountStore, CovariateEncoder

if TYPE_CHECKING:
    import torch
    from anndata import AnnData

    from perturbgen.models import CellBatch, LatentModel

log = logging.getLogger(__name__)

Route = Literal["prior", "posterior", "control"]
_ROUTES: Final[tuple[Route, ...]] = get_args(Route)
_KEYS: Final = {"posterior": ("cell_type",), "control": ("cell_type", "plate")}
_MOST_IN_BANK: Final = 5000  # cells of one kind: more would be encoded for nothing


def require_route(route: str) -> Route:
    """One of the three routes."""
    if route not in _ROUTES:
        raise ConfigError(
            f"no latent route {route!r}",
            expected=" or ".join(_ROUTES),
            fix=suggest(route, list(_ROUTES)),
        )
    return route


class Latents(Protocol):
    """A source of latent points."""

    def draw(self, well: pd.Series, codes: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """(cells, latent) for the cells of a well with condition codes (cells, covariates)."""


@dataclass(frozen=True)
class _PriorLatents:
    """N(0, I), or the mixture: of components that belong to categories, each cell's own."""

    model: LatentModel

    def draw(self, well: pd.Series, codes: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Points (cells, latent)."""
        import torch

        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return self.model.prior_sample(len(codes), generator, codes)


@dataclass(frozen=True)
class _BankLatents:
    """Points of measured cells, (cells, latent), drawn among those that match a well by ``keys``.

    Where no cell matches all keys, the last key is dropped, with a warning: a plate without
    controls is served by the controls of the other plates. Where no cell type matches, it is an
    error.
    """

    points: np.ndarray
    labels: pd.DataFrame
    keys: Sequence[str]

    def draw(self, well: pd.Series, codes: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Points (cells, latent)."""
        import torch

        positions, _ = self._matching(well)
        chosen = positions[rng.integers(len(positions), size=len(codes))]
        return torch.from_numpy(self.points[chosen])

    def require(self, wells: pd.DataFrame) -> None:
        """Say, before any work, which wells have nothing to draw from, or less than they should."""
        poor = []
        for _, well in wells.drop_duplicates(list(self.keys)).iterrows():
            _, used = self._matching(well)
            if used < len(self.keys):
                poor.append(" | ".join(str(well[key]) for key in self.keys))
        if poor:
            log.warning(
                "no matching cell for %s: latent points are drawn from all such cells "
                "with the same %s",
                shorten(poor),
                " and ".join(self.keys[:-1]),
            )

    def _matching(self, well: pd.Series) -> tuple[np.ndarray, int]:
        """Positions of the cells to draw from, and how many of the keys they match."""
        for n in range(len(self.keys), 0, -1):
            found = self._positions[n].get("\t".join(str(well[key]) for key in self.keys[:n]))
            if found is not None:
                return found, n
        raise SchemaError(
            f"no cell of {well['cell_type']!r} has a latent point to start from",
            expected=f"one of {shorten(self.labels['cell_type'].astype(str).unique())}",
            cause="the file has no such (control) cells",
            fix="use --latent prior",
        )

    @cached_property
    def _positions(self) -> dict[int, dict[str, np.ndarray]]:
        """Positions of the cells by the values of the first n keys."""
        found: dict[int, Any] = {}
        for n in range(1, len(self.keys) + 1):
            # By text: categories of obs and labels of wells need not have one type.
            text = self.labels[list(self.keys[:n])].astype(str).reset_index(drop=True)
            joined = text.agg("\t".join, axis=1) if len(text) else pd.Series(dtype=str)
            found[n] = joined.groupby(joined).indices
        return found


def make_latents(
    model: LatentModel,
    encoder: CovariateEncoder,
    cells: AnnData,
    wells: pd.DataFrame,
    route: Route,
    *,
    vehicle: str,
    seed: int,
    parts: Callable[[], pd.Series],
) -> Latents:
    """The latent points of these wells by one of the routes, from the posterior of measured cells.

    ``parts()`` says which cell the model was trained or validated on, of which a DGD has learned
    the points.
    """
    if route == "prior":
        return _PriorLatents(model)
    keys, obs = list(_KEYS[route]), cells.obs
    fits = obs["cell_type"].astype(str).isin(wells["cell_type"].unique()).to_numpy()
    if route == "control":
        compound = obs["compound"].astype(str)
        if not (compound == vehicle).any():
            raise SchemaError(
                f"no cell of the vehicle {vehicle!r}", fix=suggest(vehicle, compound.unique())
            )
        fits &= (compound == vehicle).to_numpy()
    rng = np.random.default_rng([4, seed])
    groups = obs[fits].groupby(keys, observed=True).indices
    kept = [
        rng.permutation(where)[:_MOST_IN_BANK]
        # In the order of the labels: the same draws whatever the order of the file.
        for _, where in sorted(groups.items(), key=lambda item: str(item[0]))
    ]
    places = np.flatnonzero(fits)
    chosen = np.sort(places[np.concatenate(kept)] if kept else places[:0])
    points = _latent_points(model, encoder, cells[chosen], seed=seed, parts=parts)
    bank = _BankLatents(points, obs.iloc[chosen][keys].astype(str), keys)
    bank.require(wells)
    return bank


def _latent_points(
    model: LatentModel,
    encoder: CovariateEncoder,
    cells: AnnData,
    *,
    seed: int,
    parts: Callable[[], pd.Series],
) -> np.ndarray:
    """(cells, latent), drawn from each cell's posterior; of a DGD, those that it learned."""
    import torch

    from perturbgen.models import DGD, NBVAE

    if isinstance(model, DGD):
        part = parts()
        order = pd.Index([*part.index[part == "train"], *part.index[part == "validation"]])
        # Representations stand in the order of the training and of the validation store.
        places = order.get_indexer(cells.obs_names.astype(str))
        if (places >= 0).all():
            learned = [model.representations.weight.detach(), model.held_out]
            return torch.cat(learned).cpu().numpy()[places]
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    found = [np.zeros((0, model.n_latent), np.float32)]
    for batch in _read_batches(model, encoder, cells, 512):
        if isinstance(model, NBVAE):
            posterior = model.posterior(batch)
            noise = torch.randn(posterior.mean.shape, generator=generator, device=generator.device)
            z = posterior.at(noise)
        else:  # the points that a DGD learned are modes: so are those of cells that it never saw
            z = model.encode(batch)
        found.append(z.detach().cpu().numpy())
    return np.vstack(found)


def _read_batches(
    model: LatentModel, encoder: CovariateEncoder, cells: AnnData, size: int
) -> Iterator[CellBatch]:
    """The cells in batches that a model reads, on its device."""
    store = CountStore.from_adata(cells.copy())
    store = store.with_covariates(encoder)
    device = next(model.parameters()).device
    return cast("Iterator[CellBatch]", store.to(device).batches(size, dense=False))
