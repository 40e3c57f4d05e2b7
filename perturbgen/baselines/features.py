"""What a condition looks like to a model: one-hot labels, target encodings strictly out of fold, fingerprints.

A training row's own target never enters its own features. The compound is described by its rows in *other* cell types,
and the cell type by the rows of compounds in *other* folds: what is known of a condition that is to be predicted.

The shell of the models that learn component scores from features of conditions: they differ in one function.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Final, TypeVar

import numpy as np
import pandas as pd
from pydantic import Field

from perturbgen.baselines.base import (
    Array,
    Baseline,
    Conditions,
    Labels,
    TrainTable,
    Transform,
    levels,
    normal_half_width,
    one_hot,
    tell_fallback,
    unknown,
)
from perturbgen.baselines.lowrank import LowRankTarget, Offset
from perturbgen.core.config import Settings
from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.folds import deal

log = logging.getLogger(__name__)

_STATISTICS: Final = ("mean", "median", "sd", "q25", "q75")


@dataclass(frozen=True)
class TargetEncoding:
    """Statistics of the component scores of the rows that share a label, for training rows and for new conditions.

    ``scores`` (rows, components) of the training rows; ``folds`` (compounds,) gives every compound its fold;
    ``statistics`` are some of mean, median, sd, q25, q75.
    """

    scores: Array
    cell_types: Labels
    compounds: Labels
    folds: dict[str, int]
    statistics: tuple[str, ...] = _STATISTICS

    def by_compound(self, wanted: Conditions) -> Array:
        """Statistics (conditions, statistics x components) of the compound's rows in the other cell types."""
        return self._encode([self._rows_of_compound(c, d) for c, d in _pairs(wanted)])

    def by_cell_type(self, wanted: Conditions) -> Array:
        """Statistics (conditions, statistics x components) of the cell type's rows with compounds of other folds.

        Conditions that were not trained on have no fold, and see all rows of their cell type.
        """
        trained = set(zip(self.cell_types, self.compounds, strict=True))
        keys = [(c, self.folds[d] if (c, d) in trained else -1) for c, d in _pairs(wanted)]
        distinct = sorted(set(keys))
        row_folds = np.array([self.folds[d] for d in self.compounds])
        members = [
            np.flatnonzero((self.cell_types == c) & (row_folds != fold)) for c, fold in distinct
        ]
        encoded = self._encode(members)
        return encoded[[distinct.index(key) for key in keys]]

    def counts(self, wanted: Conditions) -> Array:
        """How many rows (conditions, 1) describe the compound, as log(1 + n)."""
        return np.log1p([[len(self._rows_of_compound(c, d))] for c, d in _pairs(wanted)])

    def _rows_of_compound(self, cell_type: str, compound: str) -> np.ndarray:
        return np.flatnonzero((self.compounds == compound) & (self.cell_types != cell_type))

    def _encode(self, members: list[np.ndarray]) -> Array:
        """Statistics of each set of rows; an empty one is described by all rows."""
        everybody = np.arange(len(self.scores))
        return np.array(
            [_describe(self.scores[m if len(m) else everybody], self.statistics) for m in members]
        )


def _pairs(wanted: Conditions) -> list[tuple[str, str]]:
    """(cell type, compound) of each condition."""
    return list(zip(wanted.cell_types, wanted.compounds, strict=True))


def _describe(scores: Array, statistics: tuple[str, ...]) -> Array:
    """Statistics of each component over some rows (rows, components), joined to one vector."""
    found = {"mean": scores.mean(axis=0), "sd": scores.std(axis=0)}
    if set(statistics) - set(found):
        ordered = np.sort(scores, axis=0)
        for name, share in (("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
            found[name] = _quantile(ordered, share)
    return np.concatenate([found[name] for name in statistics])


def _quantile(ordered: Array, share: float) -> Array:
    """The quantile of each column of sorted values, interpolated linearly as NumPy does."""
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def _compound_folds(compounds: Labels, count: int, rng: np.random.Generator) -> dict[str, int]:
    """A fold for every compound, of near-equal sizes, drawn."""
    names = levels(compounds)
    return dict(zip(names, deal(len(names), count, rng).tolist(), strict=True))


@dataclass(frozen=True)
class _Features:
    """Columns for training rows and for new conditions: one-hot, encodings of the first components, fingerprints.

    ``fingerprints`` (compounds, bits) may know compounds that were never measured; ``encoding`` may be absent.
    """

    cell_types: Labels
    compounds: Labels
    encoding: TargetEncoding | None
    fingerprints: pd.DataFrame | None
    hot: bool = True

    @classmethod
    def fit(
        cls,
        table: TrainTable,
        scores: Array,
        *,
        encoded: int,
        statistics: tuple[str, ...] = _STATISTICS,
        folds: int = 5,
        fingerprints: pd.DataFrame | None = None,
        hot: bool = True,
        rng: np.random.Generator,
    ) -> _Features:
        """Learn the labels and the encodings; ``encoded`` = 0 leaves the encodings out."""
        drawn = _compound_folds(table.compounds, folds, rng)
        first = scores[:, :encoded]
        encoding = (
            TargetEncoding(first, table.cell_types, table.compounds, drawn, statistics)
            if encoded
            else None
        )
        return cls(levels(table.cell_types), levels(table.compounds), encoding, fingerprints, hot)

    def matrix(self, wanted: Conditions) -> Array:
        """Features (conditions, columns); labels never seen have no indicator and the encoding of all rows."""
        parts = []
        if self.hot:
            parts += [
                one_hot(wanted.cell_types, self.cell_types),
                one_hot(wanted.compounds, self.compounds),
            ]
        if self.encoding is not None:
            encoding = self.encoding
            parts += [
                encoding.by_compound(wanted),
                encoding.by_cell_type(wanted),
                encoding.counts(wanted),
            ]
        if self.fingerprints is not None:
            parts.append(
                self.fingerprints.reindex(wanted.compounds).fillna(0).to_numpy(dtype=float)
            )
        return np.hstack(parts)


def _fingerprint_table(smiles: pd.Series | None, bits: int) -> pd.DataFrame | None:
    """Morgan fingerprints of the compounds, where any are wanted."""
    if not bits:
        return None
    if smiles is None:
        raise SchemaError(
            "fingerprints are wanted, but no SMILES are given",
            expected="smiles, a Series of SMILES indexed by compound",
            fix="give a table with SMILES (--smiles FILE), or fingerprints=0",
        )
    from perturbgen.data.covariates import morgan_fingerprints

    return morgan_fingerprints(smiles, bits=bits)


def _tell_without_structure(name: str, table: pd.DataFrame | None, compounds: Labels) -> None:
    """Log the compounds whose structure is not known; their bits are all zero."""
    if table is not None:
        absent = [str(c) for c in levels(compounds) if c not in table.index]
        if absent:
            log.warning(
                "%s: %d compounds have no SMILES, their bits are zero: %s",
                name,
                len(absent),
                shorten(absent),
            )


class FeatureSettings(Settings):
    """What the models learn and from what."""

    components: int = Field(60, ge=1, description="components of the genes that are learnt")
    encoded: int = Field(
        30, ge=0, description="of how many of them the target encodings are features; 0 for none"
    )
    transform: Transform = Field(
        "t", description="t: signed log p as t values; none: the values as they are"
    )
    offset: Offset = Field(
        "none", description="taken off each row first: none, mean or additive cell-type effects"
    )
    folds: int = Field(5, ge=2, description="folds of compounds for the out-of-fold encodings")
    fingerprints: int = Field(
        0, ge=0, description="Morgan bits of the compounds (needs SMILES); 0 for none"
    )
    clip: bool = Field(
        True, description="keep predictions within the range of each gene's training values"
    )


_F = TypeVar("F", bound=FeatureSettings)


class FeatureModel(Baseline[_F]):
    """Learns scores (rows, components) from features (rows, columns), and predicts values through the components.

    Labels never seen have no indicator; their encodings are those of all rows, so that an unknown compound gets what
    the model expects of the average one in that cell type.
    """

    settings_class: ClassVar[type[Settings]] = FeatureSettings
    hot: ClassVar[bool] = True

    def __init__(self, settings: _F | None = None, *, smiles: pd.Series | None = None) -> None:
        super().__init__(settings)
        self._fingerprints = _fingerprint_table(smiles, self.settings.fingerprints)
        self._residual_sd: Array | None = None

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        chosen = self.settings
        self._target = LowRankTarget.fit(
            table, count=chosen.components, transform=chosen.transform, offset=chosen.offset
        )
        scores = self._target.scores(table.values, table.cell_types)
        _tell_without_structure(self.name, self._fingerprints, table.compounds)
        self._features = _Features.fit(
            table,
            scores,
            encoded=chosen.encoded,
            folds=chosen.folds,
            fingerprints=self._fingerprints,
            hot=self.hot,
            rng=rng,
        )
        self._fit_scores(self.training_features(), scores, rng)

    def training_features(self) -> Array:
        """Features (rows, columns) of the training rows, none of which holds anything of its own row's values."""
        return self._features.matrix(Conditions(self.table.cell_types, self.table.compounds))

    def _predict(self, wanted: Conditions) -> Array:
        table = self.table
        lost = unknown(wanted.compounds, table.compounds)
        tell_fallback(self.name, wanted, lost, "what is learnt of the average compound")
        lost = unknown(wanted.cell_types, table.cell_types)
        tell_fallback(self.name, wanted, lost, "what is learnt of the average cell type")
        return self._values(self._predict_scores(self._features.matrix(wanted)), wanted)

    def _values(self, scores: Array, wanted: Conditions) -> Array:
        """Values (conditions, genes) of predicted scores."""
        return self._target.values(scores, wanted.cell_types, clip=self.settings.clip)

    def _keep_residual_sd(self, predicted: Array) -> None:
        """Remember the spread (genes,) of the training values around predictions that did not see them."""
        table = self.table
        found = self._values(predicted, Conditions(table.cell_types, table.compounds))
        self._residual_sd = np.sqrt(((table.values - found) ** 2).mean(axis=0))

    def _half_width(self, wanted: Conditions, level: float) -> Array | None:
        return (
            None
            if self._residual_sd is None
            else normal_half_width(self._residual_sd, len(wanted), level)
        )

    @abstractmethod
    def _fit_scores(self, features: Array, scores: Array, rng: np.random.Generator) -> None:
        """Learn scores (rows, components) from features (rows, columns)."""

    @abstractmethod
    def _predict_scores(self, features: Array) -> Array:
        """Scores (conditions, components)."""


class Standardise:
    """Columns with mean 0 and variance 1 on the training rows; constant ones become 0."""

    def __init__(self, features: Array) -> None:
        self._mean = features.mean(axis=0)
        sd = features.std(axis=0)
        self._scale = np.where(sd > 1e-12, sd, np.inf)

    def __call__(self, features: Array) -> Array:
        """The columns, standardised."""
        return (features - self._mean) / self._scale
