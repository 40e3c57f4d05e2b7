"""Which conditions are asked for, and what may be looked at: nothing of their own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.labels import VEHICLE, conditions_of
from perturbgen.data import require_same_genes
from perturbgen.generate import (
    CellSampler,
    SamplerSettings,
    fit_samplers,
    wanted_conditions,
    well_table,
)

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.train import TrainedRun

log = logging.getLogger(__name__)


def read_wanted(conditions: pd.DataFrame) -> pd.MultiIndex:
    """The conditions of a table with ``cell_type`` and ``compound`` (or ``sm_name``), each once."""
    table = conditions.rename(columns={} if "compound" in conditions else {"sm_name": "compound"})
    wanted = wanted_conditions(table)
    if not len(wanted):
        raise SchemaError("no condition is asked for", expected="rows of cell_type and compound")
    return pd.MultiIndex.from_frame(wanted)


def vehicle_of(cells: AnnData) -> str:
    """The compound that every other is compared with."""
    return str(cells.uns.get("vehicle", VEHICLE))


def in_run_genes(run: TrainedRun, cells: AnnData) -> AnnData:
    """The cells with the run's genes in the run's order."""
    genes = pd.Index(run.card.genes)
    if cells.var_names.equals(genes):
        return cells
    if cells.var_names.is_unique and set(genes) == set(cells.var_names):
        return cells[:, genes].copy()
    # Raises with the genes that differ; what passes has a gene twice.
    require_same_genes(cells, run.card.genes)
    raise SchemaError("the cells name a gene more than once", expected="unique names")


def without(cells: AnnData, wanted: pd.MultiIndex) -> AnnData:
    """The cells of all other conditions: what is to be predicted may not be looked at."""
    withheld = conditions_of(cells.obs).isin(wanted)
    if not withheld.any():
        return cells
    log.info("%d cells of the conditions to predict are withheld from everything", withheld.sum())
    return cells[~withheld].copy()


def make_sampler(
    cells: AnnData, *, seed: int, settings: SamplerSettings | None = None
) -> CellSampler:
    """Forests of cell numbers and depths, fitted on the cells at hand."""
    return fit_samplers(well_table(cells), rng=np.random.default_rng([3, seed]), settings=settings)


def require_unseen_by(sampler: CellSampler, wanted: pd.MultiIndex) -> None:
    """A sampler from elsewhere has not seen the cells of the conditions to predict."""
    seen = wanted[wanted.isin(conditions_of(sampler.table.groups))]
    if len(seen):
        raise SchemaError(
            f"the sampler was fitted on {len(seen)} of the conditions to predict: "
            f"{shorten([' | '.join(key) for key in seen], 3)}",
            expected="samplers that do not know how many of their cells were found",
            fix="leave --samplers out: they are fitted without these conditions, "
            "which takes seconds",
        )
