"""Predictions that need no model: nothing, means, medians, a random draw, another cell type's row, the truth itself."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbgen.baselines.base import (
    Array,
    Baseline,
    Conditions,
    Labels,
    LinearSmoother,
    NoSettings,
    TrainTable,
    levels,
    numeric,
    one_hot,
    read_conditions,
    tell_fallback,
    unknown,
)
from perturbgen.core.errors import SchemaError, shorten

_IN_CACHE = 256  # genes whose training values are drawn from while they are in the cache


class Zeros(LinearSmoother[NoSettings]):
    """No effect anywhere: what p = 1 for every gene would be."""

    def weights(self, wanted: Conditions) -> sp.csr_array:
        """No row has weight."""
        return sp.csr_array((len(wanted), len(self.table.values)))


class GeneMean(LinearSmoother[NoSettings]):
    """The mean of each gene over all training rows (Open Problems' ``mean_outcome``)."""

    def weights(self, wanted: Conditions) -> Array:
        """Every row has the same weight."""
        rows = len(self.table.values)
        return np.full((len(wanted), rows), 1 / rows)

    def _predict(self, wanted: Conditions) -> Array:
        return np.tile(self.table.values.mean(axis=0), (len(wanted), 1))


class CompoundMean(LinearSmoother[NoSettings]):
    """The mean of the compound over the cell types it was measured in (Open Problems' ``mean_across_compounds``).

    An unknown compound gets the mean of its cell type, where that is unknown too, the mean of all rows.
    """

    def weights(self, wanted: Conditions) -> sp.csr_array:
        """The rows of the compound."""
        return first_known(self.table, wanted, ("compound", "cell_type"), self.name)


class CellTypeMean(LinearSmoother[NoSettings]):
    """The mean of the cell type over its compounds.

    Open Problems calls this one ``mean_across_celltypes``: it groups *by* cell type. An unknown cell type gets the mean
    of the compound, where that is unknown too, the mean of all rows.
    """

    def weights(self, wanted: Conditions) -> sp.csr_array:
        """The rows of the cell type."""
        return first_known(self.table, wanted, ("cell_type", "compound"), self.name)


class CompoundMedian(Baseline[NoSettings]):
    """The median of the compound over the cell types it was measured in; fallbacks as for the compound's mean."""

    canonical: ClassVar[bool] = False

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        """Medians are taken when they are asked for."""

    def _predict(self, wanted: Conditions) -> Array:
        table = self.table
        weights = first_known(table, wanted, ("compound", "cell_type"), self.name)
        known = ~unknown(wanted.compounds, table.compounds)
        result = np.empty((len(wanted), len(table.genes)))
        result[~known] = weights[np.flatnonzero(~known)] @ table.values
        for compound in levels(wanted.compounds[known]):
            result[wanted.compounds == compound] = _middle(
                table.values[table.compounds == compound]
            )
        return result


def _middle(values: Array) -> Array:
    """The median of each column (rows, genes); sorting a few rows beats a general median by far."""
    ordered = np.sort(values, axis=0)
    half = len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


class RandomDraw(Baseline[NoSettings]):
    """Each gene of each condition drawn from the gene's training values (Open Problems' ``sample``).

    The draws depend on the generator given to ``fit`` and on the position of the condition in the request.
    """

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        self._seed = int(rng.integers(2**63))

    def _predict(self, wanted: Conditions) -> Array:
        table = self.table
        shape = (len(wanted), len(table.genes))
        drawn = np.random.default_rng(self._seed).integers(
            len(table.values), size=shape, dtype=np.int32
        )
        result = np.empty(shape, table.values.dtype)
        for start in range(0, shape[1], _IN_CACHE):
            part = slice(start, start + _IN_CACHE)
            result[:, part] = np.take_along_axis(table.values[:, part], drawn[:, part], axis=0)
        return result


class NearestReplicate(LinearSmoother[NoSettings]):
    """The compound's own row in the most similar cell type that has one.

    Two cell types are as similar as the correlation of their rows, on average over the compounds measured in both. An
    unknown cell type takes the one that is most similar to all others; an unknown compound gets the mean of its cell
    type, where that is unknown too, the mean of all rows.
    """

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        self._names = levels(table.cell_types)
        self._similar = _cell_type_similarity(table, self._names)

    def weights(self, wanted: Conditions) -> sp.csr_array:
        """One row each."""
        table = self.table
        weights = first_known(table, wanted, ("compound", "cell_type"), self.name).tolil()
        rank = {name: self._similar[i] for i, name in enumerate(self._names)}
        average = self._similar.mean(axis=0)
        place = {name: i for i, name in enumerate(self._names)}
        for i, (cell, compound) in enumerate(zip(wanted.cell_types, wanted.compounds, strict=True)):
            rows = np.flatnonzero((table.compounds == compound) & (table.cell_types != cell))
            rows = rows[np.argsort(table.cell_types[rows])]  # the first by name of equals
            if len(rows):
                scores = rank.get(cell, average)[[place[name] for name in table.cell_types[rows]]]
                weights[i] = 0
                weights[i, int(rows[scores.argmax()])] = 1.0
        return sp.csr_array(weights)

    def _half_width(self, wanted: Conditions, level: float) -> None:
        return None  # the weights are chosen with the values in view, so the formula of fixed weights does not hold


def _cell_type_similarity(table: TrainTable, names: Labels) -> Array:
    """Mean correlation (cell types, cell types) of the rows of the compounds that two cell types share; 0 for none."""
    values = table.values.astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    size = np.linalg.norm(values, axis=1)
    values /= np.where(size > 0, size, 1)[:, None]
    result = np.zeros((len(names), len(names)))
    place: list[dict[str, int]] = [{} for _ in names]
    for row, (cell, compound) in enumerate(zip(table.cell_types, table.compounds, strict=True)):
        place[list(names).index(cell)][compound] = row
    for i in range(len(names)):
        for j in range(i):
            pairs = [
                (row, place[j][compound])
                for compound, row in place[i].items()
                if compound in place[j]
            ]
            if pairs:
                left, right = np.array(pairs).T
                result[i, j] = result[j, i] = np.einsum(
                    "rg,rg->r", values[left], values[right]
                ).mean()
    return result


class GroundTruth(Baseline[NoSettings]):
    """The measured rows themselves: the ceiling of every score. A condition without a truth is an error."""

    canonical: ClassVar[bool] = False

    def __init__(self, settings: NoSettings | None = None, *, truth: pd.DataFrame) -> None:
        super().__init__(settings)
        self._labels = read_conditions(truth.index, "the truth").index
        self._truth = truth

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        absent = [gene for gene in table.genes if gene not in self._truth.columns]
        if absent:
            raise SchemaError(
                f"the truth lacks {len(absent)} genes of the training table: {shorten(absent)}"
            )

    def _predict(self, wanted: Conditions) -> Array:
        at = self._labels.get_indexer(wanted.index)
        if (at < 0).any():
            raise SchemaError(
                f"the truth lacks {int((at < 0).sum())} conditions: {shorten(wanted.names(at < 0))}"
            )
        return numeric(self._truth.iloc[at].reindex(columns=self.table.genes))


def first_known(
    table: TrainTable, wanted: Conditions, order: tuple[str, str], name: str
) -> sp.csr_array:
    """Mean weights (conditions, rows) over the rows that share the first label, else the second, else over all rows."""
    labels = {"cell_type": table.cell_types, "compound": table.compounds}
    asked = {"cell_type": wanted.cell_types, "compound": wanted.compounds}
    lost = [unknown(asked[key], labels[key]) for key in order]
    first, second = (_group_weights(labels[key], asked[key]) for key in order)
    tell_fallback(name, wanted, lost[0] & ~lost[1], f"the mean of the {order[1].replace('_', ' ')}")
    tell_fallback(name, wanted, lost[0] & lost[1], "the mean of all training rows")
    rows = len(table.values)
    everything = np.full((int((lost[0] & lost[1]).sum()), rows), 1 / rows)
    result = (
        sp.diags_array((~lost[0]).astype(float)) @ first
        + sp.diags_array(lost[0].astype(float)) @ second
    )
    if not len(everything):
        return sp.csr_array(result)
    scatter = sp.csr_array(np.eye(len(wanted))[:, lost[0] & lost[1]])
    return sp.csr_array(result + scatter @ sp.csr_array(everything))


def _group_weights(labels: Labels, asked: Labels) -> sp.csr_array:
    """Mean weights (conditions, rows) over the rows that bear the label asked for; none where nobody bears it."""
    known = levels(labels)
    member = sp.csr_array(
        one_hot(labels, known) / np.maximum(one_hot(labels, known).sum(axis=0), 1)
    )
    return sp.csr_array(sp.csr_array(one_hot(asked, known)) @ member.T)
