"""Thousands of genes as a few dozen components: what the models learn, and the way back.

Cell type plus compound: by least squares, and with both effects shrunk as far as the training rows ask for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from perturbgen.baselines.base import (
    Array,
    Conditions,
    Labels,
    LinearSmoother,
    NoSettings,
    TrainTable,
    Transform,
    backward,
    forward,
    levels,
    one_hot,
    tell_fallback,
    unknown,
)


class Additive(LinearSmoother[NoSettings]):
    """y = cell type + compound, by least squares over the unbalanced table.

    An unknown compound gets the average compound's effect, an unknown cell type the average cell type's.
    """

    def weights(self, wanted: Conditions) -> Array:
        """x X⁺ with x the indicators of the condition."""
        table = self.table
        tell_fallback(
            self.name,
            wanted,
            unknown(wanted.cell_types, table.cell_types),
            "the average cell type's effect",
        )
        tell_fallback(
            self.name,
            wanted,
            unknown(wanted.compounds, table.compounds),
            "the average compound's effect",
        )
        return _additive_weights(table, wanted.cell_types, wanted.compounds)


def _additive_weights(table: TrainTable, cell_types: Labels, compounds: Labels) -> Array:
    """Weights (conditions, rows) of the least-squares fit; a label nobody has stands for the average one."""
    known = levels(table.cell_types), levels(table.compounds)
    design = np.hstack([one_hot(table.cell_types, known[0]), one_hot(table.compounds, known[1])])
    wanted = np.hstack([_average_hot(cell_types, known[0]), _average_hot(compounds, known[1])])
    return wanted @ np.linalg.pinv(design)


def _average_hot(labels: Labels, known: Labels) -> Array:
    """Indicators (labels, known); an unknown label is a bit of everyone."""
    hot = one_hot(labels, known)
    hot[hot.sum(axis=1) == 0] = 1 / len(known)
    return hot


class ShrunkenAdditive(LinearSmoother[NoSettings]):
    """y = mean + cell type + compound with random effects, predicted without bias (BLUP).

    The three variances are moments of the training rows: products of two rows, averaged over genes, are regressed on
    whether they share the cell type or the compound (Haseman & Elston 1972); what is left on the diagonal is noise. An
    unknown compound or cell type has the effect zero, which is what the model expects of it.
    """

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        self.variances = _variance_components(table)
        cell, compound, noise = self.variances
        kernel = self._kernel(table.cell_types, table.compounds)
        kernel[np.diag_indices_from(kernel)] += (
            noise if noise > 0 else 1e-9 * (cell + compound) + 1e-300
        )
        inverse = np.linalg.inv(kernel)
        self._mean = inverse.sum(axis=0) / inverse.sum()
        self._gain = inverse - np.outer(inverse.sum(axis=1), self._mean)

    def _kernel(self, cells: Labels, compounds: Labels) -> Array:
        cell, compound, _ = self.variances
        table = self.table
        same_cell, same_compound = (
            cells[:, None] == table.cell_types,
            compounds[:, None] == table.compounds,
        )
        return cell * same_cell + compound * same_compound

    def weights(self, wanted: Conditions) -> Array:
        """w₀ + k C⁻¹ (I − 1 w₀), w₀ the weights of the generalised least squares mean."""
        lost = [
            unknown(wanted.cell_types, self.table.cell_types),
            unknown(wanted.compounds, self.table.compounds),
        ]
        tell_fallback(self.name, wanted, lost[0], "no effect of the cell type")
        tell_fallback(self.name, wanted, lost[1], "no effect of the compound")
        return self._mean + self._kernel(wanted.cell_types, wanted.compounds) @ self._gain


def _variance_components(table: TrainTable) -> tuple[float, float, float]:
    """Variances, averaged over genes, of the cell types' effects, the compounds' effects and the noise; none negative.

    E[(yᵢ − μ)(yⱼ − μ)] = floor + σ²_cell [same cell type] + σ²_compound [same compound] + σ²_noise [i = j]; the floor
    is there because μ is estimated. No pair of different rows shares both labels, so the regression is three means.
    """
    values, (rows, genes) = table.values, table.values.shape
    mean = values.mean(axis=0)
    squares = float(np.einsum("rg,rg->", values, values) - rows * mean @ mean)
    cell, compound = (
        _same_label(values, mean, labels, squares) for labels in (table.cell_types, table.compounds)
    )
    strangers = _PairSum(
        -squares - cell.total - compound.total, rows * (rows - 1) - cell.pairs - compound.pairs
    )
    between = strangers.mean / genes
    variances = [
        max(pair.mean / genes - between, 0.0) if pair.pairs else 0.0 for pair in (cell, compound)
    ]
    noise = squares / rows / genes - between - sum(variances)
    return variances[0], variances[1], max(noise, 0.0)


class _PairSum(NamedTuple):
    """The sum over ordered pairs of different rows, and genes, of the product of their values; how many pairs."""

    total: float
    pairs: int

    @property
    def mean(self) -> float:
        """Of one pair; 0 where there is none."""
        return self.total / self.pairs if self.pairs else 0.0


def _same_label(values: Array, mean: Array, labels: Labels, squares: float) -> _PairSum:
    """Pairs of rows that share a label: Σ over labels of ‖Σ (y − μ)‖², less ``squares``, which is Σ ‖y − μ‖²."""
    hot = one_hot(labels, levels(labels))
    sizes = hot.sum(axis=0)
    sums = hot.T @ values - np.outer(sizes, mean)
    return _PairSum(float(np.vdot(sums, sums)) - squares, int((sizes * (sizes - 1)).sum()))


Offset = Literal["none", "mean", "additive"]


@dataclass(frozen=True)
class Components:
    """Y ≈ mean + scores · loadings, ``loadings`` (components, genes) orthonormal, ``mean`` (genes,)."""

    mean: Array
    loadings: Array

    def scores(self, values: Array) -> Array:
        """Scores (rows, components) of values (rows, genes)."""
        return (values - self.mean) @ self.loadings.T

    def values(self, scores: Array) -> Array:
        """Values (rows, genes) of scores (rows, components)."""
        return self.mean + scores @ self.loadings


def fit_components(values: Array, count: int, *, centre: bool = True) -> Components:
    """The leading singular vectors of values (rows, genes), through the products of the few rows.

    Each sign is such that the row with the largest score has a positive one, whatever the order of the genes.
    """
    mean = values.mean(axis=0) if centre else np.zeros(values.shape[1])
    centred = values - mean
    squares, vectors = np.linalg.eigh(centred @ centred.T)
    order = np.argsort(squares)[::-1][:count]
    kept = order[squares[order] > 1e-10 * max(squares.max(), 1e-300)]
    vectors = vectors[:, kept]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(kept))])
    return Components(mean, (vectors / np.sqrt(squares[kept])).T @ centred)


@dataclass(frozen=True)
class LowRankTarget:
    """What a model learns instead of the genes: scores of the transformed values without their cell type's offset.

    ``offset`` is taken off each row: ``mean`` the mean of the cell type, ``additive`` its effect in a least-squares fit
    with the compounds (fair where a cell type has few and unusual compounds), ``none`` nothing.
    """

    transform: Transform
    cell_types: Labels
    offsets: Array
    components: Components
    lowest: Array
    highest: Array

    @classmethod
    def fit(
        cls, table: TrainTable, *, count: int, transform: Transform, offset: Offset
    ) -> LowRankTarget:
        """Offsets, components and ranges of the training rows."""
        names = levels(table.cell_types)
        values = forward(table.values, transform)
        offsets = cell_type_offsets(values, table, names, offset)
        residual = values - one_hot(table.cell_types, names) @ offsets
        lowest, highest = table.values.min(axis=0), table.values.max(axis=0)
        return cls(transform, names, offsets, fit_components(residual, count), lowest, highest)

    def offset(self, cell_types: Labels) -> Array:
        """The offsets (rows, genes) of some cell types; an unknown one has the average."""
        hot = one_hot(cell_types, self.cell_types)
        hot[hot.sum(axis=1) == 0] = 1 / len(self.cell_types)
        return hot @ self.offsets

    def scores(self, values: Array, cell_types: Labels) -> Array:
        """Scores (rows, components) of values (rows, genes)."""
        return self.components.scores(forward(values, self.transform) - self.offset(cell_types))

    def values(self, scores: Array, cell_types: Labels, *, clip: bool) -> Array:
        """Values (rows, genes), with ``clip`` within the range of the gene's training values."""
        raw = self.components.values(scores)
        raw += self.offset(cell_types)
        found = backward(raw, self.transform)
        return np.clip(found, self.lowest, self.highest, out=found) if clip else found


def cell_type_offsets(values: Array, table: TrainTable, names: Labels, kind: Offset) -> Array:
    """Offsets (cell types, genes) of values (rows, genes)."""
    if kind == "none":
        return np.zeros((len(names), values.shape[1]))
    if kind == "mean":
        hot = one_hot(table.cell_types, names)
        return (hot / hot.sum(axis=0)).T @ values
    nobody = np.full(len(names), "", dtype=object)  # stands for the average compound
    return _additive_weights(table, names, nobody) @ values
