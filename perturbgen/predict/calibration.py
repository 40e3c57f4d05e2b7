"""Measured conditions on which replicates are counted and factors fitted, as if nobody had measured them.

The route without limma: how likely a model holds cells that it never saw, under their compound and without it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbgen.core.console import track
from perturbgen.core.errors import SchemaError, shorten
from perturbgen.predict.conditions import batches_of, in_run_genes, labels_of, vehicle_of

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.de import DETable
    from perturbgen.train import TrainedRun

log = logging.getLogger(__name__)


def calibration_conditions(
    run: TrainedRun, obs: pd.DataFrame, real: DETable, kinds: list[str], *, control: str
) -> pd.MultiIndex:
    """The measured conditions of the cell types that the run did not train on; all measured ones if there are none.

    The latter flatters: a model knows the conditions that it was trained on better than those it was not, and factors
    fitted there are too large. It is a warning.
    """
    measured = _usable(obs, real, kinds, control=control)
    withheld = measured[~measured.isin(trained_conditions(run, obs))]
    if set(withheld.get_level_values(0)) == set(kinds):
        return withheld
    log.warning(
        "%s was trained on the measured conditions of %s: factors fitted on them are too large",
        run.path,
        shorten(kinds),
    )
    return measured


def _usable(obs: pd.DataFrame, real: DETable, kinds: list[str], *, control: str) -> pd.MultiIndex:
    """Measured conditions of the cell types with an answer, the vehicle and positive controls aside."""
    answered = real.t.index[real.t.notna().any(axis=1)]
    labels = labels_of(obs)
    controls = {control}
    if "control" in obs:
        flagged = obs["control"].astype(str).str.lower().isin(["true", "1"]).to_numpy()
        controls |= set(labels.get_level_values(1)[flagged])
    answered = answered[
        answered.get_level_values(0).isin(kinds)
    ]  # a joint fit has other cell types, too
    chosen = answered[~answered.get_level_values(1).isin(sorted(controls)) & answered.isin(labels)]
    absent = [kind for kind in kinds if kind not in set(chosen.get_level_values(0))]
    if absent:
        raise nothing_measured(absent)
    return pd.MultiIndex.from_tuples(sorted(chosen), names=["cell_type", "compound"])


def nothing_measured(kinds: list[str]) -> SchemaError:
    """The error for cell types without a measured compound."""
    return SchemaError(
        f"no compound was measured in {shorten(kinds)}",
        expected="one or more measured conditions of every cell type, for standard errors or to calibrate on",
        fix="use the estimator mean_t with a number of replicates: --estimator mean_t --replicates 10",
    )


def trained_conditions(run: TrainedRun, obs: pd.DataFrame) -> pd.MultiIndex:
    """The conditions of the cells that the run was trained on."""
    parts = run.parts()
    trained = obs.index.astype(str).isin(parts.index[parts == "train"].astype(str))
    return labels_of(obs[trained]).unique()


def mrrmse(prediction: pd.DataFrame, truth: pd.DataFrame) -> float:
    """Mean over conditions of the root mean square error over genes, joined by label."""
    difference = prediction.loc[truth.index, truth.columns].to_numpy() - truth.to_numpy()
    return float(np.sqrt((difference**2).mean(axis=1)).mean())


def withheld_likelihood(
    run: TrainedRun,
    cells: AnnData,
    *,
    samples: int = 32,
    most: int = 50,
    seed: int = 0,
    vehicle: str | None = None,
) -> pd.DataFrame:
    """For each condition: ``cells``, ``nll`` in nats per gene and cell, and ``gain`` of knowing the compound.

    log p(x | c) of withheld cells, integrated over the latent space by importance sampling; the gain is what it exceeds
    the same under the vehicle by, in nats a cell. At most ``most`` cells of a condition are looked at.
    """
    cells = _some_of_each(in_run_genes(run, cells), most, np.random.default_rng([5, seed]))
    under = _log_likelihoods(run, cells, samples=samples, seed=seed)
    untreated = cells.copy()
    untreated.obs["compound"] = vehicle or vehicle_of(cells)
    without = _log_likelihoods(run, untreated, samples=samples, seed=seed)
    table = pd.DataFrame(
        {"nll": -under / cells.n_vars, "gain": under - without}, labels_of(cells.obs)
    ).groupby(level=[0, 1])
    return table.mean().assign(cells=table.size())[["cells", "nll", "gain"]]


def _some_of_each(cells: AnnData, most: int, rng: np.random.Generator) -> AnnData:
    """At most so many cells of each condition."""
    order = pd.Series(rng.permutation(cells.n_obs), labels_of(cells.obs))
    rank = order.groupby(level=[0, 1]).rank().to_numpy()
    return cells[rank <= most].copy()


def _log_likelihoods(run: TrainedRun, cells: AnnData, *, samples: int, seed: int) -> np.ndarray:
    """Log p(x | c) of every cell, (cells,), in nats."""
    import torch

    from perturbgen.models import log_evidence

    generator = torch.Generator(next(run.model.parameters()).device).manual_seed(seed)
    batches = track(batches_of(run, cells, 128), "likelihood", -(-cells.n_obs // 128))
    parts = [
        log_evidence(run.model, batch, samples=samples, generator=generator) for batch in batches
    ]
    return torch.cat(parts).cpu().numpy()
