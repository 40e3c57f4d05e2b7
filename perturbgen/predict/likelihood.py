"""The route without limma: how likely a model holds cells that it never saw, under their compound and without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbgen.console import track
from perturbgen.predict.source import batches_of, in_run_genes, labels_of, vehicle_of

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.train import TrainedRun


def withheld_likelihood(
    run: TrainedRun, cells: AnnData, *, samples: int = 32, most: int = 50, seed: int = 0, vehicle: str | None = None
) -> pd.DataFrame:
    """For each condition: ``cells``, ``nll`` in nats per gene and cell, and ``gain`` of knowing the compound.

    log p(x | c) of withheld cells, integrated over the latent space by importance sampling; the gain is what it exceeds
    the same under the vehicle by, in nats a cell. At most ``most`` cells of a condition are looked at.
    """
    cells = some_of_each(in_run_genes(run, cells), most, np.random.default_rng([5, seed]))
    under = log_likelihoods(run, cells, samples=samples, seed=seed)
    untreated = cells.copy()
    untreated.obs["compound"] = vehicle or vehicle_of(cells)
    without = log_likelihoods(run, untreated, samples=samples, seed=seed)
    table = pd.DataFrame({"nll": -under / cells.n_vars, "gain": under - without}, labels_of(cells.obs)).groupby(
        level=[0, 1]
    )
    return table.mean().assign(cells=table.size())[["cells", "nll", "gain"]]


def some_of_each(cells: AnnData, most: int, rng: np.random.Generator) -> AnnData:
    """At most so many cells of each condition."""
    order = pd.Series(rng.permutation(cells.n_obs), labels_of(cells.obs))
    rank = order.groupby(level=[0, 1]).rank().to_numpy()
    return cells[rank <= most].copy()


def log_likelihoods(run: TrainedRun, cells: AnnData, *, samples: int, seed: int) -> np.ndarray:
    """Log p(x | c) of every cell, (cells,), in nats."""
    import torch

    from perturbgen.models import log_evidence

    generator = torch.Generator(next(run.model.parameters()).device).manual_seed(seed)
    batches = track(batches_of(run, cells, 128), "likelihood", -(-cells.n_obs // 128))
    parts = [log_evidence(run.model, batch, samples=samples, generator=generator) for batch in batches]
    return torch.cat(parts).cpu().numpy()
