"""Thousands of genes as a few dozen components: what the models learn, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from perturbgen.baselines.additive import additive_weights
from perturbgen.baselines.table import Array, Labels, TrainTable, levels, one_hot
from perturbgen.baselines.transforms import Transform, backward, forward

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
    def fit(cls, table: TrainTable, *, count: int, transform: Transform, offset: Offset) -> LowRankTarget:
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
    return additive_weights(table, names, nobody) @ values
