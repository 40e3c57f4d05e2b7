"""The recommender: what did the compounds that act alike elsewhere do in this cell type?"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from perturbgen.baselines.base import (
    Array,
    Conditions,
    LinearSmoother,
    TrainTable,
    levels,
    one_hot,
    tell_fallback,
    unknown,
)
from perturbgen.baselines.constants import first_known
from perturbgen.baselines.lowrank import cell_type_offsets
from perturbgen.core.config import Settings


class _NeighbourSettings(Settings):
    """Who counts as a neighbour, and how much."""

    neighbours: int = Field(20, ge=1, description="compounds that are averaged")
    power: float = Field(
        2.0, ge=0, description="a neighbour weighs its correlation to this power; none below zero"
    )
    own: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the compound's own mean effect in the other cell types",
    )
    shrink: float = Field(
        0.2, ge=0, description="added to the sum of the weights: far neighbours say little"
    )


class Neighbours(LinearSmoother[_NeighbourSettings]):
    """The cell type's mean, plus the compound's own mean effect elsewhere, plus its neighbours' effects here.

    Effects are deviations from the cell type's mean. Two compounds are neighbours by the correlation of their effects
    in the cell types measured for both, the predicted one left out. An unknown compound gets the mean of its cell type,
    an unknown cell type the mean of the compound, where both are unknown, the mean of all rows.
    """

    settings_class: ClassVar[type[Settings]] = _NeighbourSettings
    canonical: ClassVar[bool] = True  # neighbours are ranked

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        names = levels(table.cell_types)
        values = table.values - one_hot(table.cell_types, names) @ cell_type_offsets(
            table.values, table, names, "mean"
        )
        size = np.linalg.norm(values, axis=1)
        unit = values / np.where(size > 0, size, 1)[:, None]
        self._alike = unit @ unit.T  # (rows, rows)

    def weights(self, wanted: Conditions) -> Array:
        """Mean of the cell type + own effect + neighbours' effects, as weights of rows."""
        table = self.table
        weights = np.asarray(
            first_known(table, wanted, ("cell_type", "compound"), self.name).toarray()
        )
        lost = unknown(wanted.compounds, table.compounds) & ~unknown(
            wanted.cell_types, table.cell_types
        )
        tell_fallback(self.name, wanted, lost, "the mean of the cell type")
        hot = one_hot(table.cell_types, levels(table.cell_types))
        centre = (
            np.eye(len(hot)) - hot @ (hot / hot.sum(axis=0)).T
        )  # takes each row's cell-type mean off
        for i, (cell, compound) in enumerate(zip(wanted.cell_types, wanted.compounds, strict=True)):
            if (table.cell_types == cell).any():
                weights[i] += self._effect(cell, compound) @ centre
        return weights

    def _effect(self, cell: str, compound: str) -> Array:
        """Weights (rows,) of the effects that are added to the cell type's mean."""
        table, chosen = self.table, self.settings
        own = np.flatnonzero((table.compounds == compound) & (table.cell_types != cell))
        found = np.zeros(len(table.values))
        if not len(own):
            return found
        here = np.flatnonzero((table.cell_types == cell) & (table.compounds != compound))
        scores = np.array([self._similarity(own, table.compounds[row], cell) for row in here])
        best = np.argsort(-scores, kind="stable")[: chosen.neighbours]
        strength = np.where(scores[best] > 0, np.maximum(scores[best], 0) ** chosen.power, 0)
        found[own] = chosen.own / len(own)
        found[here[best]] = (1 - chosen.own) * strength / max(strength.sum() + chosen.shrink, 1e-12)
        return found

    def _similarity(self, own: np.ndarray, other: str, cell: str) -> float:
        """Mean correlation of two compounds over the cell types, other than the predicted one, that have both."""
        table = self.table
        rows = np.flatnonzero((table.compounds == other) & (table.cell_types != cell))
        same = table.cell_types[own][:, None] == table.cell_types[rows]
        return float(self._alike[np.ix_(own, rows)][same].mean()) if same.any() else 0.0

    def _half_width(self, wanted: Conditions, level: float) -> None:
        return None  # the weights are chosen with the values in view
