"""Measured rows as they are: means, a median, a draw, the nearest rows, none, or the truth."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pandas as pd
import scipy.sparse as sp
from pydantic import Field

from perturbgen.baselines.base import Baseline, ConditionList, LinearSmoother, TrainTable, one_hot
from perturbgen.core.config import Settings
from perturbgen.core.errors import SchemaError, shorten

# Their training values stay in the processor's cache while they are drawn from.
_GENES_AT_ONCE = 256


class _Zeros(LinearSmoother[Settings]):
    """No effect anywhere: what p = 1 for every gene would be."""

    def weights(self, wanted: ConditionList) -> sp.csr_array:
        """No row has weight."""
        return sp.csr_array((len(wanted), len(self.table)))


class _GeneMean(LinearSmoother[Settings]):
    """The mean of each gene over all training rows (Open Problems' ``mean_outcome``)."""

    def weights(self, wanted: ConditionList) -> np.ndarray:
        """Every row has the same weight."""
        return np.full((len(wanted), len(self.table)), 1 / len(self.table))

    def _predict(self, wanted: ConditionList) -> np.ndarray:
        # One row for all, instead of a product with equal weights.
        return np.tile(self.table.values.mean(axis=0), (len(wanted), 1))


class _CompoundMean(LinearSmoother[Settings]):
    """The mean of the compound over its cell types (Open Problems' ``mean_across_compounds``).

    An unknown compound gets the mean of its cell type, where that is unknown too, of all rows.
    """

    def weights(self, wanted: ConditionList) -> sp.csr_array:
        """The rows of the compound."""
        return self._mean_weights(wanted, ("compound", "cell_type"))


class _CellTypeMean(LinearSmoother[Settings]):
    """The mean of the cell type over its compounds.

    Open Problems calls this one ``mean_across_celltypes``: it groups *by* cell type. An unknown
    cell type gets the mean of the compound, where that is unknown too, of all rows.
    """

    def weights(self, wanted: ConditionList) -> sp.csr_array:
        """The rows of the cell type."""
        return self._mean_weights(wanted, ("cell_type", "compound"))


class _CompoundMedian(Baseline[Settings]):
    """The median of the compound over its cell types; fallbacks as for the compound's mean."""

    canonical: ClassVar[bool] = False

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        """Medians are taken when they are asked for."""

    def _predict(self, wanted: ConditionList) -> np.ndarray:
        table = self.table
        weights = self._mean_weights(wanted, ("compound", "cell_type"))
        lost = self._lacks(wanted, "compound")
        result = np.empty((len(wanted), len(table.genes)))
        # There is nothing to take a median of: these get the mean of the cell type, or of all.
        result[lost] = weights[np.flatnonzero(lost)] @ table.values
        for compound in np.unique(wanted.compounds[~lost]):
            rows = table.values[table.compounds == compound]
            result[wanted.compounds == compound] = _median(rows)
        return result


def _median(values: np.ndarray) -> np.ndarray:
    """The median of each column (rows, genes); a sort of a few rows is far faster than NumPy's."""
    ordered = np.sort(values, axis=0)
    half = len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


class _RandomDraw(Baseline[Settings]):
    """Each value drawn from the gene's training values (Open Problems' ``sample``).

    The draws depend on the generator given to ``fit`` and on the condition's place in the request.
    """

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        # Drawn at fitting, so that the same request has the same answer twice.
        self._seed = int(rng.integers(2**63))

    def _predict(self, wanted: ConditionList) -> np.ndarray:
        values = self.table.values
        shape = (len(wanted), values.shape[1])
        rng = np.random.default_rng(self._seed)
        # int32: half the memory of the default for 255 x 18,211 places.
        drawn = rng.integers(len(values), size=shape, dtype=np.int32)
        result = np.empty(shape, values.dtype)
        for start in range(0, shape[1], _GENES_AT_ONCE):
            part = slice(start, start + _GENES_AT_ONCE)
            result[:, part] = np.take_along_axis(values[:, part], drawn[:, part], axis=0)
        return result


class _GroundTruth(Baseline[Settings]):
    """The measured rows: the ceiling of every score. A condition without a truth is an error."""

    canonical: ClassVar[bool] = False

    def __init__(self, settings: Settings | None = None, *, truth: pd.DataFrame) -> None:
        super().__init__(settings)
        self._labels = ConditionList.read(truth.index, "the truth").index
        self._truth = truth

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        absent = [gene for gene in table.genes if gene not in self._truth.columns]
        if absent:
            raise SchemaError(
                f"the truth lacks {len(absent)} genes of the training table: {shorten(absent)}"
            )

    def _predict(self, wanted: ConditionList) -> np.ndarray:
        # By label: the truth may have other rows, in another order.
        at = self._labels.get_indexer(wanted.index)
        if (at < 0).any():
            raise SchemaError(
                f"the truth lacks {int((at < 0).sum())} conditions: {shorten(wanted.names(at < 0))}"
            )
        rows = self._truth.iloc[at].reindex(columns=self.table.genes)
        return TrainTable.of(rows, canonical=False).values


class _NearestReplicate(LinearSmoother[Settings]):
    """The compound's own row in the most similar cell type that has one.

    Two cell types are as similar as the correlation of their rows, on average over the compounds
    measured in both. An unknown cell type takes the one that is most similar to all others; an
    unknown compound gets the mean of its cell type, where that is unknown too, of all rows.
    """

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        self._names = np.unique(table.cell_types)
        self._similar = _cell_type_similarity(table, self._names)

    def weights(self, wanted: ConditionList) -> sp.csr_array:
        """One row each."""
        table = self.table
        weights = self._mean_weights(wanted, ("compound", "cell_type")).tolil()
        place = {name: i for i, name in enumerate(self._names)}
        average = self._similar.mean(axis=0)
        for i, (cell, compound) in enumerate(wanted.index):
            rows = np.flatnonzero((table.compounds == compound) & (table.cell_types != cell))
            rows = rows[np.argsort(table.cell_types[rows])]  # of equals the first by name
            if len(rows):
                similar = self._similar[place[cell]] if cell in place else average
                scores = similar[[place[name] for name in table.cell_types[rows]]]
                weights[i] = 0
                weights[i, int(rows[scores.argmax()])] = 1.0
        return sp.csr_array(weights)

    def _half_width(self, wanted: ConditionList, level: float) -> None:
        # The weights are chosen with the values in view: the formula of fixed ones does not hold.
        return None


def _cell_type_similarity(table: TrainTable, names: np.ndarray) -> np.ndarray:
    """Mean correlation (cell types, cell types) of the rows of shared compounds; 0 without any."""
    # Only the order of the correlations counts, for which single precision will do.
    values = table.values.astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    size = np.linalg.norm(values, axis=1)
    values /= np.where(size > 0, size, 1)[:, None]
    rows: dict[str, dict[str, int]] = {name: {} for name in names}
    for row, (cell, compound) in enumerate(table.index):
        rows[cell][compound] = row
    result = np.zeros((len(names), len(names)))
    for i, one in enumerate(names):
        for j, other in enumerate(names[:i]):
            pairs = [(row, rows[other][c]) for c, row in rows[one].items() if c in rows[other]]
            if pairs:
                left, right = np.array(pairs).T
                products = np.einsum("rg,rg->r", values[left], values[right])
                result[i, j] = result[j, i] = products.mean()
    return result


class _NeighbourSettings(Settings):
    """What counts as a neighbour, and how much."""

    neighbours: int = Field(20, ge=1, description="compounds that are averaged")
    power: float = Field(
        2.0, ge=0, description="a neighbour weighs its correlation to this power; none below zero"
    )
    own: float = Field(
        0.5, ge=0, le=1, description="share of the compound's own mean effect elsewhere"
    )
    shrink: float = Field(
        0.2, ge=0, description="added to the sum of the weights: far neighbours say little"
    )


class _Neighbours(LinearSmoother[_NeighbourSettings]):
    """The cell type's mean + the compound's effect elsewhere + its neighbours' effects here.

    Effects are deviations from the cell type's mean. Two compounds are neighbours by the
    correlation of their effects in the cell types measured for both, the predicted one excluded. An
    unknown compound gets the mean of its cell type, an unknown cell type the mean of the compound,
    where both are unknown, the mean of all rows.
    """

    settings_class: ClassVar[type[Settings]] = _NeighbourSettings
    canonical: ClassVar[bool] = True  # neighbours are ranked, and ties go by the order of the rows

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        hot = one_hot(table.cell_types, np.unique(table.cell_types))
        values = table.values - hot @ ((hot / hot.sum(axis=0)).T @ table.values)
        size = np.linalg.norm(values, axis=1)
        unit = values / np.where(size > 0, size, 1)[:, None]
        self._alike = unit @ unit.T  # (rows, rows)

    def weights(self, wanted: ConditionList) -> np.ndarray:
        """Mean of the cell type + own effect + neighbours' effects, as weights of rows."""
        table = self.table
        weights = np.asarray(self._mean_weights(wanted, ("cell_type", "compound")).toarray())
        unknown, measured = self._lacks(wanted, "compound"), ~self._lacks(wanted, "cell_type")
        self._tell(wanted, unknown & measured, "the mean of the cell type")
        hot = one_hot(table.cell_types, np.unique(table.cell_types))
        # Weights of effects become weights of rows when each row's cell-type mean is taken off.
        centre = np.eye(len(hot)) - hot @ (hot / hot.sum(axis=0)).T
        for i, (cell, compound) in enumerate(wanted.index):
            if measured[i]:
                weights[i] += self._effect(cell, compound) @ centre
        return weights

    def _effect(self, cell: str, compound: str) -> np.ndarray:
        """Weights (rows,) of the effects that are added to the cell type's mean."""
        table, chosen = self.table, self.settings
        own = np.flatnonzero((table.compounds == compound) & (table.cell_types != cell))
        found = np.zeros(len(table))
        if not len(own):
            return found
        here = np.flatnonzero((table.cell_types == cell) & (table.compounds != compound))
        scores = np.array([self._similarity(own, table.compounds[row], cell) for row in here])
        # Stable, so that of equals the first by name is taken.
        best = np.argsort(-scores, kind="stable")[: chosen.neighbours]
        strength = np.where(scores[best] > 0, np.maximum(scores[best], 0) ** chosen.power, 0)
        # The compound's own effect elsewhere and its neighbours' here share one unit of weight.
        found[own] = chosen.own / len(own)
        found[here[best]] = (1 - chosen.own) * strength / max(strength.sum() + chosen.shrink, 1e-12)
        return found

    def _similarity(self, own: np.ndarray, other: str, cell: str) -> float:
        """Mean correlation of two compounds over the cell types, the predicted one excluded."""
        table = self.table
        rows = np.flatnonzero((table.compounds == other) & (table.cell_types != cell))
        same = table.cell_types[own][:, None] == table.cell_types[rows]
        return float(self._alike[np.ix_(own, rows)][same].mean()) if same.any() else 0.0

    def _half_width(self, wanted: ConditionList, level: float) -> None:
        return None  # as for the nearest replicate
