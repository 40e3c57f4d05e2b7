"""Which conditions are asked for, and what may be looked at: nothing of their own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pandas as pd

from perturbgen.core.errors import SchemaError
from perturbgen.core.labels import VEHICLE, conditions_of
from perturbgen.generate import wanted_conditions

if TYPE_CHECKING:
    from anndata import AnnData


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


def without(cells: AnnData, wanted: pd.MultiIndex) -> AnnData:
    """The cells of all other conditions: what is to be predicted may not be looked at."""
    withheld = conditions_of(cells.obs).isin(wanted)
    if not withheld.any():
        return cells
    log.info("%d cells of the conditions to predict are withheld from everything", withheld.sum())
    return cells[~withheld].copy()
