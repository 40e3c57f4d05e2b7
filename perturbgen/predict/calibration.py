"""Measured conditions that are predicted as if nobody had measured them.

Replicates are counted and factors fitted on them. Beside them the route without limma: how likely a
model finds cells that it never saw, under their compound and without it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbgen.core.console import track
from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.labels import CONDITION, conditions_of
from perturbgen.generate import read_batches
from perturbgen.predict.conditions import in_run_genes, vehicle_of

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.de import DETable
    from perturbgen.train import TrainedRun

log = logging.getLogger(__name__)


def calibration_conditions(
    run: TrainedRun, obs: pd.DataFrame, real: DETable, kinds: list[str], *, control: str
) -> pd.MultiIndex:
    """The measured conditions of the cell types that the run did not train on; all if there are none.

    All of them flatter: a model knows the conditions that it was trained on better than others, and
    factors fitted there are too large. That is a warning. The vehicle and positive controls are no
    calibration conditions.
    """
    answered = real.t.index[real.t.notna().any(axis=1)]
    answered = answered[answered.get_level_values(0).isin(kinds)]  # a joint fit has other types, too
    labels = conditions_of(obs)
    controls = {control}
    if "control" in obs:
        flagged = obs["control"].astype(str).str.lower().isin(["true", "1"]).to_numpy()
        controls |= set(labels.get_level_values(1)[flagged])
    usual = ~answered.get_level_values(1).isin(sorted(controls)) & answered.isin(labels)
    chosen = answered[usual]
    require_measured(kinds, chosen.get_level_values(0))
    measured = pd.MultiIndex.from_tuples(sorted(chosen), names=CONDITION)
    withheld = measured[~measured.isin(trained_conditions(run, obs))]
    if set(withheld.get_level_values(0)) == set(kinds):
        return withheld
    log.warning(
        "%s was trained on the measured conditions of %s: factors fitted on them are too large",
        run.path,
        shorten(kinds),
    )
    return measured


def require_measured(kinds: Iterable[str], found: Iterable[str]) -> None:
    """Refuse cell types of which no compound was found to be measured."""
    known = set(found)
    absent = [kind for kind in kinds if kind not in known]
    if absent:
        raise SchemaError(
            f"no compound was measured in {shorten(absent)}",
            expected="one or more measured conditions of every cell type, "
            "for standard errors or to calibrate on",
            fix="use the estimator mean_t with a number of replicates: "
            "--estimator mean_t --replicates 10",
        )


def trained_conditions(run: TrainedRun, obs: pd.DataFrame) -> pd.MultiIndex:
    """The conditions of the cells that the run was trained on."""
    parts = run.parts()
    trained = obs.index.astype(str).isin(parts.index[parts == "train"].astype(str))
    return conditions_of(obs[trained]).unique()


def withheld_likelihood(
    run: TrainedRun,
    cells: AnnData,
    *,
    samples: int = 32,
    most: int = 50,
    seed: int = 0,
    vehicle: str | None = None,
) -> pd.DataFrame:
    """For each condition: ``cells``, ``nll`` in nats per gene and cell, ``gain`` of knowing the compound.

    log p(x | c) of withheld cells, integrated over the latent space by importance sampling; the
    gain is what it exceeds the same under the vehicle by, in nats a cell. At most ``most`` cells of
    a condition are looked at.
    """
    cells = in_run_genes(run, cells)
    rng = np.random.default_rng([5, seed])
    order = pd.Series(rng.permutation(cells.n_obs), conditions_of(cells.obs))
    cells = cells[order.groupby(level=[0, 1]).rank().to_numpy() <= most].copy()
    under = _log_likelihoods(run, cells, samples=samples, seed=seed)
    untreated = cells.copy()
    untreated.obs["compound"] = vehicle or vehicle_of(cells)
    without = _log_likelihoods(run, untreated, samples=samples, seed=seed)
    columns = {"nll": -under / cells.n_vars, "gain": under - without}
    table = pd.DataFrame(columns, conditions_of(cells.obs)).groupby(level=[0, 1])
    return table.mean().assign(cells=table.size())[["cells", "nll", "gain"]]


def _log_likelihoods(run: TrainedRun, cells: AnnData, *, samples: int, seed: int) -> np.ndarray:
    """Log p(x | c) of every cell, (cells,), in nats."""
    import torch

    from perturbgen.models import log_evidence

    generator = torch.Generator(next(run.model.parameters()).device).manual_seed(seed)
    batches = read_batches(run.model, run.card.covariates, cells, 128)
    parts = [
        log_evidence(run.model, batch, samples=samples, generator=generator)
        for batch in track(batches, "likelihood", -(-cells.n_obs // 128))
    ]
    return torch.cat(parts).cpu().numpy()
