"""From a trained run and measured cells to what generates: a plan of wells and a generator of their cells."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten, suggest
from perturbgen.core.labels import VEHICLE
from perturbgen.data.covariates import complete, require_same_genes
from perturbgen.generate import CellSampler, SamplerSettings, fit_samplers, well_table
from perturbgen.generate.cells import CellGenerator, Plan, add_covariates
from perturbgen.generate.latents import (
    KEYS,
    BankLatents,
    Latents,
    PriorLatents,
    Route,
    require_route,
)

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.models import DGD
    from perturbgen.models.base import CellBatch
    from perturbgen.train import TrainedRun

log = logging.getLogger(__name__)

_MOST_IN_BANK = 5000  # cells of one kind whose latent points are looked up
CONDITION = ["cell_type", "compound"]


def vehicle_of(cells: AnnData) -> str:
    """The compound every other is compared with."""
    return str(cells.uns.get("vehicle", VEHICLE))


def in_run_genes(run: TrainedRun, cells: AnnData) -> AnnData:
    """The cells with the run's genes in the run's order."""
    genes = pd.Index(run.card.genes)
    if cells.var_names.equals(genes):
        return cells
    if cells.var_names.is_unique and set(genes) == set(cells.var_names):
        return cells[:, genes].copy()
    require_same_genes(cells, run.card.genes)
    raise SchemaError("the cells name a gene more than once", expected="unique names")


def read_wanted(conditions: pd.DataFrame) -> pd.MultiIndex:
    """The labels of conditions given with columns ``cell_type`` and ``compound`` (or ``sm_name``), each once."""
    table = conditions.rename(columns={} if "compound" in conditions else {"sm_name": "compound"})
    table = pd.DataFrame({name: complete(table, name).astype(str) for name in CONDITION})
    if not len(table):
        raise SchemaError("no condition is asked for", expected="rows of cell_type and compound")
    twice = table[table.duplicated()]
    if len(twice):
        raise SchemaError(
            f"conditions occur twice: {shorten(twice.agg(' | '.join, axis=1))}",
            expected="each once",
        )
    return pd.MultiIndex.from_frame(table)


def labels_of(obs: pd.DataFrame) -> pd.MultiIndex:
    """The condition of each cell or sample."""
    return pd.MultiIndex.from_frame(obs[CONDITION].astype(str))


def without(cells: AnnData, wanted: pd.MultiIndex) -> AnnData:
    """The cells of all other conditions: what is to be predicted may not be looked at."""
    hidden = labels_of(cells.obs).isin(wanted)
    if not hidden.any():
        return cells
    log.info("%d cells of the conditions to predict are left out of everything", hidden.sum())
    return cells[~hidden].copy()


def make_sampler(
    cells: AnnData, *, seed: int, settings: SamplerSettings | None = None
) -> CellSampler:
    """Forests of cell numbers and depths, fitted on the cells at hand."""
    return fit_samplers(well_table(cells), rng=np.random.default_rng([3, seed]), settings=settings)


def require_blind(sampler: CellSampler, wanted: pd.MultiIndex) -> None:
    """A sampler from elsewhere has not seen the cells of the conditions to predict."""
    seen = wanted[wanted.isin(labels_of(sampler.table.groups))]
    if len(seen):
        raise SchemaError(
            f"the sampler was fitted on {len(seen)} of the conditions to predict: "
            f"{shorten([' | '.join(key) for key in seen], 3)}",
            expected="samplers that do not know how many of their cells were found",
            fix="leave --samplers out: they are fitted without these conditions, which takes seconds",
        )


def blinded(sampler: CellSampler, hidden: pd.MultiIndex, *, seed: int) -> CellSampler:
    """The sampler, fitted again without some conditions."""
    known = labels_of(sampler.table.groups).isin(hidden)
    if not known.any():
        return sampler
    return fit_samplers(
        sampler.table.take(~known), rng=np.random.default_rng([3, seed]), settings=sampler.settings
    )


def make_plan(
    run: TrainedRun, cells: AnnData, sampler: CellSampler, wanted: pd.MultiIndex, *, seed: int
) -> tuple[Plan, pd.DataFrame]:
    """The plan of the wanted conditions, and its wells with every covariate that the run is conditioned on."""
    plan = Plan(sampler, wanted.to_frame(index=False), seed)
    wells = add_covariates(plan.wells, cells.obs, run.settings.conditions)
    run.card.covariates.codes(
        wells
    )  # a category that the run cannot express is an error before anything is done
    return plan, wells


def make_generator(
    run: TrainedRun, cells: AnnData, wells: pd.DataFrame, *, latent: str, seed: int
) -> CellGenerator:
    """The run's model with latent points by one of the routes, for these wells."""
    latents = _make_latents(run, cells, wells, require_route(latent), seed=seed)
    return CellGenerator(run.model, pd.Index(run.card.genes), run.card.covariates, latents)


def _make_latents(
    run: TrainedRun, cells: AnnData, wells: pd.DataFrame, route: Route, *, seed: int
) -> Latents:
    """The source of latent points."""
    if route == "prior":
        return PriorLatents(run.model)
    keys = KEYS[route]
    obs = cells.obs
    fits = obs["cell_type"].astype(str).isin(wells["cell_type"].unique()).to_numpy()
    if route == "control":
        vehicle = vehicle_of(cells)
        is_vehicle = (obs["compound"].astype(str) == vehicle).to_numpy()
        if not is_vehicle.any():
            raise SchemaError(
                f"no cell of the vehicle {vehicle!r}",
                fix=suggest(vehicle, obs["compound"].astype(str).unique()),
            )
        fits &= is_vehicle
    rng = np.random.default_rng([4, seed])
    chosen = np.sort(
        _thinned(obs[fits].groupby(list(keys), observed=True).indices, np.flatnonzero(fits), rng)
    )
    points = _latent_points(run, cells, chosen, seed=seed)
    bank = BankLatents(points, obs.iloc[chosen][list(keys)].astype(str), keys)
    bank.require(wells)
    return bank


def _thinned(
    groups: dict[Any, np.ndarray], places: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Places of at most ``MOST_IN_BANK`` cells of each group."""
    kept = [
        rng.permutation(where)[:_MOST_IN_BANK]
        for _, where in sorted(groups.items(), key=lambda item: str(item[0]))
    ]
    return places[np.concatenate(kept)] if kept else places[:0]


def _latent_points(run: TrainedRun, cells: AnnData, chosen: np.ndarray, *, seed: int) -> np.ndarray:
    """Latent points (chosen, latent): drawn from each cell's posterior; of a DGD, those that it learned."""
    import torch

    from perturbgen.models import DGD
    from perturbgen.models.nbvae import NBVAE

    some = cells[chosen]
    if (
        isinstance(run.model, DGD)
        and (learned := _learned_points(run, run.model, some.obs_names)) is not None
    ):
        return learned
    generator = torch.Generator(next(run.model.parameters()).device).manual_seed(seed)
    parts = []
    for batch in batches_of(run, some, 512):
        z = (
            run.model.propose(batch).sample(generator)[0]
            if isinstance(run.model, NBVAE)
            else run.model.encode(batch)
        )
        parts.append(z.detach().cpu().numpy())
    return np.vstack(parts) if parts else np.zeros((0, run.settings.model.latent), np.float32)


def _learned_points(run: TrainedRun, model: DGD, names: pd.Index) -> np.ndarray | None:
    """A DGD's representations of cells by their names; None unless the run has seen all of them."""
    parts = run.parts()
    order = pd.Index([*parts.index[parts == "train"], *parts.index[parts == "validation"]])
    places = order.get_indexer(names.astype(str))
    if (places < 0).any():
        return None
    return np.vstack(
        [model.representations.weight.detach().cpu().numpy(), model.held_out.cpu().numpy()]
    )[places]


def batches_of(run: TrainedRun, cells: AnnData, size: int) -> Iterator[CellBatch]:
    """The cells in batches that the run's model reads, on its device."""
    from perturbgen.data import CountStore

    store = CountStore.from_adata(cells.copy())
    device = next(run.model.parameters()).device
    store = CountStore.build(store.backing, store.obs, store.var_names, run.card.covariates).to(
        device
    )
    return cast("Iterator[CellBatch]", store.batches(size, dense=False))


def run_fingerprint(path: Path) -> str:
    """A hash of the run's best model: the same name may hold another model tomorrow."""
    from perturbgen.core.files import require_file
    from perturbgen.core.runs import file_hash

    return file_hash(require_file(path / "checkpoint" / "best.pt", "checkpoint"))
