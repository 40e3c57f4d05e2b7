"""Predictions that need no model: nothing, means, medians, a random draw, the truth itself."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbgen.baselines.base import Baseline, ConditionList, LinearSmoother, TrainTable
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
        rows = len(self.table)
        return np.full((len(wanted), rows), 1 / rows)

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


class CellTypeMean(LinearSmoother[Settings]):
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
