"""Few numbers in place of many: what the fitted models see of a condition, and what they learn.

They learn a few dozen component scores instead of thousands of genes. They see one-hot labels,
fingerprints, and target encodings strictly out of fold: the compound is described by its rows in
*other* cell types, the cell type by the rows of compounds in *other* folds, which is what is known
of a condition that is to be predicted.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal, TypeVar

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import log_ndtr, ndtri_exp
from scipy.stats import norm

from perturbgen.baselines.base import Baseline, ConditionList, TrainTable, one_hot
from perturbgen.core.config import Settings
from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.stats import deal

_log = logging.getLogger(__name__)

Transform = Annotated[
    Literal["t", "none"],
    Field(description="t: signed log p as t values; none: the values as they are"),
]
Offset = Annotated[
    Literal["none", "mean", "additive"],
    Field(description="taken off each row first: none, mean or additive cell-type effects"),
]
_STATISTICS: Final = ("mean", "median", "sd", "q25", "q75")
_LOG_2, _LOG_10 = np.log(2.0), np.log(10.0)


def forward(values: np.ndarray, transform: Transform) -> np.ndarray:
    """Signed −log10 p as it is modelled; ``t``: t = sign(y) Φ⁻¹(1 − 10^−|y| / 2).

    t is the normal deviate with two-sided p = 10^−|y|. Log p enters as it is, so that y = 300 is
    not infinite. The tails of y, which grow as t², become those of t.
    """
    if transform == "none":
        return values
    return -np.sign(values) * ndtri_exp(-np.abs(values) * _LOG_10 - _LOG_2)


def backward(values: np.ndarray, transform: Transform) -> np.ndarray:
    """The inverse of :func:`forward`: y = sign(t) · −log10(2 Φ(−|t|))."""
    if transform == "none":
        return values
    return -np.sign(values) * (log_ndtr(-np.abs(values)) + _LOG_2) / _LOG_10


@dataclass(frozen=True)
class Components:
    """Y ≈ mean + scores · loadings, ``loadings`` (components, genes) orthonormal."""

    mean: np.ndarray
    loadings: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray, count: int, *, centre: bool = True) -> Components:
        """The leading singular vectors of values (rows, genes), by products of the few rows.

        Each sign is such that the row with the largest score has a positive one, whatever the
        order of the genes.
        """
        mean = values.mean(axis=0) if centre else np.zeros(values.shape[1])
        centred = values - mean
        # Products of 614 rows are small where the covariance of 18,211 genes fills gigabytes.
        squares, vectors = np.linalg.eigh(centred @ centred.T)
        order = np.argsort(squares)[::-1][:count]
        # What is left of a direction without variance is rounding, which division would blow up.
        kept = order[squares[order] > 1e-10 * max(squares.max(), 1e-300)]
        vectors = vectors[:, kept]
        vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(kept))])
        return cls(mean, (vectors / np.sqrt(squares[kept])).T @ centred)

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Scores (rows, components) of values (rows, genes)."""
        return (values - self.mean) @ self.loadings.T

    def values(self, scores: np.ndarray) -> np.ndarray:
        """Values (rows, genes) of scores (rows, components)."""
        return self.mean + scores @ self.loadings


@dataclass(frozen=True)
class LowRankTarget:
    """What a model learns instead of genes: scores of transformed values less a cell type's offset.

    ``offset`` is taken off each row: ``mean`` the mean of the cell type, ``additive`` its effect in
    a least-squares fit with the compounds (fair where a cell type has few and unusual compounds),
    ``none`` nothing.
    """

    transform: Transform
    cell_types: np.ndarray
    offsets: np.ndarray
    components: Components
    lowest: np.ndarray
    highest: np.ndarray

    @classmethod
    def fit(
        cls, table: TrainTable, *, count: int, transform: Transform, offset: Offset
    ) -> LowRankTarget:
        """Offsets, components and ranges of the training rows."""
        names = np.unique(table.cell_types)
        values = forward(table.values, transform)
        hot = one_hot(table.cell_types, names)
        if offset == "none":
            offsets = np.zeros((len(names), values.shape[1]))
        elif offset == "mean":
            offsets = (hot / hot.sum(axis=0)).T @ values
        else:
            average = np.full(len(names), "", dtype=object)  # a compound without a row: the average
            offsets = table.additive_weights(names, average) @ values
        components = Components.fit(values - hot @ offsets, count)
        lowest, highest = table.values.min(axis=0), table.values.max(axis=0)
        return cls(transform, names, offsets, components, lowest, highest)

    def residual(self, values: np.ndarray, cell_types: np.ndarray) -> np.ndarray:
        """Values (rows, genes) as modelled, less offsets; an unknown cell type has the average."""
        offset = one_hot(cell_types, self.cell_types, average=True) @ self.offsets
        return forward(values, self.transform) - offset

    def scores(self, values: np.ndarray, cell_types: np.ndarray) -> np.ndarray:
        """Scores (rows, components) of values (rows, genes)."""
        return self.components.scores(self.residual(values, cell_types))

    def values(self, scores: np.ndarray, cell_types: np.ndarray, *, clip: bool) -> np.ndarray:
        """Values (rows, genes), with ``clip`` within the range of the gene's training values."""
        raw = self.components.values(scores)
        raw += one_hot(cell_types, self.cell_types, average=True) @ self.offsets
        # y grows as t squared, so that a bold t becomes an absurd p: the range of what was measured
        # bounds it.
        found = backward(raw, self.transform)
        return np.clip(found, self.lowest, self.highest, out=found) if clip else found


@dataclass(frozen=True)
class TargetEncoding:
    """Statistics of the scores of the rows that share a label, for training rows and for new ones.

    ``scores`` (rows, components) of the training rows; ``folds`` gives every compound its fold;
    ``statistics`` are some of mean, median, sd, q25, q75.
    """

    scores: np.ndarray
    rows: ConditionList
    folds: dict[str, int]
    statistics: tuple[str, ...] = _STATISTICS

    def by_compound(self, wanted: ConditionList) -> np.ndarray:
        """Statistics (conditions, statistics x components) of the compound in other cell types."""
        return self._encode([self._rows_of_compound(*label) for label in wanted.index])

    def by_cell_type(self, wanted: ConditionList) -> np.ndarray:
        """Statistics (conditions, statistics x components) of the cell type in other folds.

        Folds, not each row alone: the mean without row i is a falling function of row i itself and
        betrays it. New conditions have no fold, and see all rows of their cell type.
        """
        # Only a row that was trained on could betray itself; what is new may use all that is known.
        trained = set(self.rows.index)
        keys = [(cell, self.folds[d] if (cell, d) in trained else -1) for cell, d in wanted.index]
        distinct = sorted(set(keys))
        fold_of_row = np.array([self.folds[d] for d in self.rows.compounds])
        cells = self.rows.cell_types
        members = [np.flatnonzero((cells == c) & (fold_of_row != fold)) for c, fold in distinct]
        return self._encode(members)[[distinct.index(key) for key in keys]]

    def counts(self, wanted: ConditionList) -> np.ndarray:
        """How many rows (conditions, 1) describe the compound, as log(1 + n)."""
        return np.log1p([[len(self._rows_of_compound(*label))] for label in wanted.index])

    def _rows_of_compound(self, cell_type: str, compound: str) -> np.ndarray:
        found = (self.rows.compounds == compound) & (self.rows.cell_types != cell_type)
        return np.flatnonzero(found)

    def _encode(self, members: list[np.ndarray]) -> np.ndarray:
        """Statistics of each set of rows; an empty one is described by all rows."""
        # A label without rows is the average label, here as in every other baseline.
        everything = np.arange(len(self.scores))
        rows = [some if len(some) else everything for some in members]
        return np.array([_row_statistics(self.scores[some], self.statistics) for some in rows])


def _row_statistics(scores: np.ndarray, statistics: tuple[str, ...]) -> np.ndarray:
    """Statistics of each component over some rows (rows, components), joined to one vector."""
    found = {"mean": scores.mean(axis=0), "sd": scores.std(axis=0)}
    if set(statistics) - set(found):
        # One sort serves the three quantiles of thousands of small sets; np.quantile sorts anew.
        ordered = np.sort(scores, axis=0)
        for name, share in (("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
            at = share * (len(ordered) - 1)
            low = int(at)
            high = min(low + 1, len(ordered) - 1)
            found[name] = ordered[low] + (at - low) * (ordered[high] - ordered[low])
    return np.concatenate([found[name] for name in statistics])


@dataclass(frozen=True)
class _Features:
    """Columns of conditions: one-hot labels, encodings of the first components, fingerprints.

    ``fingerprints`` (compounds, bits) may know compounds that were never measured; ``encoding`` may
    be absent.
    """

    cell_types: np.ndarray
    compounds: np.ndarray
    encoding: TargetEncoding | None
    fingerprints: pd.DataFrame | None
    hot: bool = True

    @classmethod
    def fit(
        cls,
        table: TrainTable,
        scores: np.ndarray,
        *,
        encoded: int,
        statistics: tuple[str, ...] = _STATISTICS,
        folds: int = 5,
        fingerprints: pd.DataFrame | None = None,
        hot: bool = True,
        rng: np.random.Generator,
    ) -> _Features:
        """Learn the labels and the encodings; ``encoded`` = 0 leaves the encodings out."""
        compounds = np.unique(table.compounds)
        drawn = dict(zip(compounds, deal(len(compounds), folds, rng).tolist(), strict=True))
        encoding = TargetEncoding(scores[:, :encoded], table, drawn, statistics)
        known = np.unique(table.cell_types), compounds
        return cls(*known, encoding if encoded else None, fingerprints, hot)

    def matrix(self, wanted: ConditionList) -> np.ndarray:
        """Features (conditions, columns); an unknown label has the encoding of all rows."""
        parts = []
        if self.hot:
            parts.append(one_hot(wanted.cell_types, self.cell_types))
            parts.append(one_hot(wanted.compounds, self.compounds))
        if self.encoding is not None:
            parts += [self.encoding.by_compound(wanted), self.encoding.by_cell_type(wanted)]
            parts += [self.encoding.counts(wanted)]
        if self.fingerprints is not None:
            bits = self.fingerprints.reindex(wanted.compounds).fillna(0)
            parts.append(bits.to_numpy(dtype=float))
        return np.hstack(parts)


class FeatureSettings(Settings):
    """What the models learn and from what."""

    components: int = Field(60, ge=1, description="components of the genes that are learnt")
    encoded: int = Field(
        30, ge=0, description="of how many of them the target encodings are features; 0 for none"
    )
    # The tails of signed log p grow as t squared, and squared errors would see little else.
    transform: Transform = "t"
    offset: Offset = "none"
    folds: int = Field(5, ge=2, description="folds of compounds for the out-of-fold encodings")
    fingerprints: int = Field(
        0, ge=0, description="Morgan bits of the compounds (needs SMILES); 0 for none"
    )
    clip: bool = Field(
        True, description="keep predictions within the range of each gene's training values"
    )


_F = TypeVar("_F", bound=FeatureSettings)


class FeatureModel(Baseline[_F]):
    """Learns scores (rows, components) from features (rows, columns), predicts values through them.

    Labels never seen have no indicator; their encodings are those of all rows, so that an unknown
    compound gets what the model expects of the average one in that cell type.
    """

    settings_class: ClassVar[type[Settings]] = FeatureSettings
    hot: ClassVar[bool] = True
    standardised: ClassVar[bool] = False  # columns of mean 0 and variance 1; constant ones are 0

    def __init__(self, settings: _F | None = None, *, smiles: pd.Series | None = None) -> None:
        super().__init__(settings)
        self._fingerprints: pd.DataFrame | None = None
        self._residual_sd: np.ndarray | None = None
        bits = self.settings.fingerprints
        if bits and smiles is None:
            raise SchemaError(
                "fingerprints are wanted, but no SMILES are given",
                expected="smiles, a Series of SMILES indexed by compound",
                fix="give a table with SMILES (--smiles FILE), or fingerprints=0",
            )
        if bits and smiles is not None:
            from perturbgen.data import morgan_fingerprints

            self._fingerprints = morgan_fingerprints(smiles, bits=bits)

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        chosen = self.settings
        self._target = LowRankTarget.fit(
            table, count=chosen.components, transform=chosen.transform, offset=chosen.offset
        )
        scores = self._target.scores(table.values, table.cell_types)
        bits = self._fingerprints
        absent = [] if bits is None else np.setdiff1d(table.compounds, bits.index).tolist()
        if absent:  # said at the fit: zeros for bits are a prediction of their own, not an error
            text = "%s: %d compounds have no SMILES, their bits are zero: %s"
            _log.warning(text, self.name, len(absent), shorten(absent))
        self._features = _Features.fit(
            table,
            scores,
            encoded=chosen.encoded,
            folds=chosen.folds,
            fingerprints=bits,
            hot=self.hot,
            rng=rng,
        )
        features = self._features.matrix(table)
        sd = features.std(axis=0)
        # A constant column says nothing: divided by infinity it is zero.
        self._centre, self._scale = features.mean(axis=0), np.where(sd > 1e-12, sd, np.inf)
        self._fit_scores(self.features(table), scores, rng)

    def features(self, wanted: ConditionList) -> np.ndarray:
        """Features (conditions, columns); no training row's hold anything of its own values."""
        features = self._features.matrix(wanted)
        return (features - self._centre) / self._scale if self.standardised else features

    def _predict(self, wanted: ConditionList) -> np.ndarray:
        self._tell_unknown(
            wanted,
            cell_type="what is learnt of the average cell type",
            compound="what is learnt of the average compound",
        )
        return self._values(self._predict_scores(self.features(wanted)), wanted)

    def _values(self, scores: np.ndarray, wanted: ConditionList) -> np.ndarray:
        return self._target.values(scores, wanted.cell_types, clip=self.settings.clip)

    def _keep_residual_sd(self, predicted: np.ndarray) -> None:
        """Remember the spread (genes,) of the rows around scores predicted without seeing them."""
        found = self._values(predicted, self.table)
        self._residual_sd = np.sqrt(((self.table.values - found) ** 2).mean(axis=0))

    def _half_width(self, wanted: ConditionList, level: float) -> np.ndarray | None:
        sd = self._residual_sd
        if sd is None:
            return None
        return np.broadcast_to(norm.ppf((1 + level) / 2) * sd, (len(wanted), len(sd)))

    @abstractmethod
    def _fit_scores(
        self, features: np.ndarray, scores: np.ndarray, rng: np.random.Generator
    ) -> None:
        """Learn scores (rows, components) from features (rows, columns)."""

    @abstractmethod
    def _predict_scores(self, features: np.ndarray) -> np.ndarray:
        """Scores (conditions, components)."""
