"""A random forest as plain arrays: it predicts, and it draws training rows from the leaves a query falls into.

Drawing a tree and then a training row of the query's leaf is drawing with the weights of a quantile regression forest
(Meinshausen 2006): w_i(x) = mean over trees of 1[i in leaf(x)] / size of leaf(x).

What a forest is told of a well and cell type: the covariates, and what is known from its other cell types.

Residuals that are as large as the errors on conditions nobody measured: out of fold, counting noise taken out.

The numbers a sampler of wells depends on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from perturbgen.core.config import Settings
from perturbgen.core.folds import deal
from perturbgen.data.covariates import CovariateEncoder
from perturbgen.generate.wells import CONDITION, GROUP, WELL, Reference, covariates, fit_reference

_Floats = NDArray[np.float64]
_ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Forest:
    """Trees one after the other: node k has ``feature`` (-1 in a leaf), ``threshold``, ``left``, ``right``, ``value``.

    ``roots`` (trees,) are first nodes; the training rows of leaf k are ``members[starts[k]:starts[k + 1]]``.
    """

    roots: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: _Floats
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: _Floats
    members: NDArray[np.int32]
    starts: NDArray[np.int64]

    def leaves(self, x: NDArray[np.float32]) -> NDArray[np.int32]:
        """The leaf of every row in every tree, (rows, trees)."""
        node = np.broadcast_to(self.roots, (len(x), len(self.roots))).copy()
        row = np.broadcast_to(np.arange(len(x))[:, None], node.shape)
        open_ = np.flatnonzero(self.feature[node.ravel()] >= 0)
        flat, rows = node.ravel(), row.ravel()
        while len(open_):
            at = flat[open_]
            goes_left = x[rows[open_], self.feature[at]] <= self.threshold[at]
            flat[open_] = np.where(goes_left, self.left[at], self.right[at])
            open_ = open_[self.feature[flat[open_]] >= 0]
        return flat.reshape(node.shape)

    def predict(self, x: NDArray[np.float32]) -> _Floats:
        """Mean over the trees, (rows,)."""
        parts = [
            self.value[self.leaves(x[i : i + _ROWS_AT_ONCE])].mean(axis=1)
            for i in range(0, len(x), _ROWS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.empty(0)

    def draw_rows(
        self, x: NDArray[np.float32], n: int, *, rng: np.random.Generator
    ) -> NDArray[np.int32]:
        """Training rows (rows, n) drawn from the leaves: a tree, then one of the rows in its leaf."""
        drawn = np.empty((len(x), n), np.int32)
        for i in range(0, len(x), _ROWS_AT_ONCE):
            leaves = self.leaves(x[i : i + _ROWS_AT_ONCE])
            chosen = np.take_along_axis(
                leaves, rng.integers(leaves.shape[1], size=(len(leaves), n)), axis=1
            )
            size = self.starts[chosen + 1] - self.starts[chosen]
            drawn[i : i + _ROWS_AT_ONCE] = self.members[
                self.starts[chosen] + (rng.random(chosen.shape) * size).astype(np.int64)
            ]
        return drawn

    def weights(self, x: NDArray[np.float32]) -> _Floats:
        """w_i(x) for every training row, (rows, training rows), adding up to one."""
        leaves = self.leaves(x)
        total = np.zeros((len(x), int(self.members.max(initial=-1)) + 1))
        for row, own in enumerate(leaves):
            sizes = self.starts[own + 1] - self.starts[own]
            within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            ids = self.members[np.repeat(self.starts[own], sizes) + within]
            np.add.at(total[row], ids, np.repeat(1 / sizes / len(own), sizes))
        return total

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All there is, by name."""
        return dict(vars(self))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Forest:
        """The inverse of :meth:`arrays`."""
        return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})  # type: ignore[arg-type]


def _fit_forest(
    x: NDArray[np.float32],
    y: _Floats,
    *,
    weights: _Floats,
    trees: int,
    leaf: int,
    features: float,
    rng: np.random.Generator,
) -> Forest:
    """scikit-learn's forest on x (rows, features), y (rows,), weights (rows,); every row is a member of its leaves."""
    from sklearn.ensemble import RandomForestRegressor

    model = RandomForestRegressor(
        trees,
        min_samples_leaf=leaf,
        max_features=features,
        random_state=int(rng.integers(2**31)),
        n_jobs=-1,
    )
    model.fit(x, y, sample_weight=weights)
    parts = [estimator.tree_ for estimator in model.estimators_]
    roots = np.cumsum([0, *(part.node_count for part in parts)])
    inner = [part.children_left >= 0 for part in parts]

    def children(name: str) -> NDArray[np.int32]:
        """Node numbers over all trees; those of leaves are never read."""
        return np.concatenate(
            [getattr(part, name) + root for part, root in zip(parts, roots, strict=False)]
        ).astype(np.int32)

    leaves = model.apply(x) + roots[:-1]
    order = np.argsort(leaves, axis=None, kind="stable")
    return Forest(
        roots=roots[:-1].astype(np.int32),
        feature=np.concatenate(
            [np.where(k, part.feature, -1) for k, part in zip(inner, parts, strict=True)]
        ).astype(np.int32),
        threshold=np.concatenate([part.threshold for part in parts]),
        left=children("children_left"),
        right=children("children_right"),
        value=np.concatenate([part.value.ravel() for part in parts]),
        members=(order // len(parts)).astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(np.bincount(leaves.ravel(), minlength=roots[-1]))]),
    )


_ONE_HOT: Final = (
    "cell_type",
    "compound",
    "plate",
    "well",
    "row",
    "column",
    "donor",
    "library",
    "control",
)
_MAY_BE_NEW: Final = ("compound", "well", "column", "row")
_KNOWN: Final = (
    "log expected cells",
    "well: cells",
    "well: log cells",
    "compound: cells",
    "well: depth",
    "compound: depth",
)
_PRIOR: Final = 1.0  # cells, so that ratios of nothing are one
_PRIOR_DEPTH: Final = 20.0  # cells of no depth effect


@dataclass(frozen=True)
class FeatureMaker:
    """Turns conditions into features; holds what is known of the measured wells.

    ``known`` has a row for each measured group: its labels, ``n_cells``, ``expected`` cells, ``depth_sum`` (cells x
    deviation of their mean log library from the reference).
    """

    encoder: CovariateEncoder
    reference: Reference
    known: pd.DataFrame

    @classmethod
    def fit(cls, groups: pd.DataFrame) -> FeatureMaker:
        """From the groups of a :class:`WellTable`."""
        columns = [name for name in _ONE_HOT if name in groups]
        encoder = CovariateEncoder.fit(
            groups, columns, unknown=[name for name in _MAY_BE_NEW if name in columns]
        )
        return cls.of(encoder, fit_reference(groups), groups)

    @classmethod
    def of(
        cls, encoder: CovariateEncoder, reference: Reference, groups: pd.DataFrame
    ) -> FeatureMaker:
        """With an encoder and a reference fitted before."""
        deviation = groups["log_library"].to_numpy() - reference.expected_depth(groups)
        known = groups[[*GROUP, "compound", "n_cells"]].assign(
            expected=reference.expected_cells(groups),
            depth_sum=np.where(
                groups["n_cells"] > 0, groups["n_cells"] * np.nan_to_num(deviation), 0.0
            ),
        )
        return cls(encoder, reference, known)

    @property
    def names(self) -> list[str]:
        """A name for each feature."""
        return [*self.encoder.feature_names, *_KNOWN]

    def features(self, conditions: pd.DataFrame) -> np.ndarray:
        """Features (conditions, features) float32: one-hot covariates, then ``KNOWN``.

        What is known of a row never includes the row itself: only *other* cell types of its well and of its compound.
        """
        labels = covariates(conditions)
        expected = self.reference.expected_cells(labels)
        well = self.others(labels, WELL, GROUP)
        compound = self.others(labels, ["compound"], CONDITION)
        told = np.stack(
            [
                np.log(expected),
                _log_ratio(well),
                np.log(well["n_cells"] + _PRIOR),
                _log_ratio(compound),
                well["depth_sum"] / (well["n_cells"] + _PRIOR_DEPTH),
                compound["depth_sum"] / (compound["n_cells"] + _PRIOR_DEPTH),
            ],
            axis=1,
        )
        return np.hstack([self.encoder.features(labels), told.astype(np.float32)])

    def others(self, labels: pd.DataFrame, whole: list[str], own: list[str]) -> pd.DataFrame:
        """Sums over the known rows that share ``whole`` with a condition, less those that share ``own``."""
        values = ["n_cells", "expected", "depth_sum"]
        return _lookup(self.known.groupby(whole)[values].sum(), labels) - _lookup(
            self.known.groupby(own)[values].sum(), labels
        )


def _lookup(sums: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``sums`` for the labels, zero where there is none."""
    names = list(sums.index.names)
    key = pd.MultiIndex.from_frame(labels[names]) if len(names) > 1 else pd.Index(labels[names[0]])
    return sums.reindex(key).fillna(0.0).set_axis(labels.index)


def _log_ratio(sums: pd.DataFrame) -> np.ndarray:
    """Log of found over expected cells (rows,)."""
    ratio = (sums["n_cells"] + _PRIOR) / (sums["expected"].clip(lower=0) + _PRIOR)
    return np.log(ratio.to_numpy())


class SamplerSettings(Settings):
    """Size and shape of the two forests."""

    trees: int = Field(200, ge=1, description="trees of each forest")
    leaf: int = Field(10, ge=1, description="fewest training wells in a leaf")
    features: float = Field(
        0.3, gt=0, le=1, description="share of the features that each split may choose from"
    )
    folds: int = Field(
        5, ge=2, description="folds of conditions whose residuals are taken out of fold"
    )


# Spread that wells have beyond counting (log scale), for weighting them only: what is drawn is measured.
_USUAL_SPREAD: Final = 0.2


def condition_folds(
    groups: pd.DataFrame, folds: int, *, rng: np.random.Generator
) -> NDArray[np.int64]:
    """A fold for each row. Conditions stay whole; those in many wells (controls), always measured, are dealt by well.

    A condition is in many wells where it has more than twice as many as the median one.
    """
    condition, _ = pd.factorize(pd.MultiIndex.from_frame(groups[CONDITION]), sort=True)
    size = np.bincount(condition)[condition]
    many = size > 2 * np.median(size)
    unit = np.where(many, condition.max() + 1 + np.arange(len(groups)), condition)
    units, unit = np.unique(unit, return_inverse=True)
    return deal(len(units), folds, rng)[unit]


def out_of_fold(
    x: NDArray[np.float32],
    y: _Floats,
    weights: _Floats,
    fold: NDArray[np.int64],
    *,
    settings: SamplerSettings,
    rng: np.random.Generator,
) -> tuple[Forest, _Floats]:
    """A forest of all rows, and predictions (rows,) of forests that saw nothing of a row's fold."""
    options = {
        "trees": settings.trees,
        "leaf": settings.leaf,
        "features": settings.features,
        "rng": rng,
    }
    predicted = np.empty(len(y))
    for i in range(settings.folds):
        out = fold == i
        if out.any():
            part = _fit_forest(x[~out], y[~out], weights=weights[~out], **options)  # type: ignore[arg-type]
            predicted[out] = part.predict(x[out])
    return _fit_forest(x, y, weights=weights, **options), predicted  # type: ignore[arg-type]


def precision(noise: _Floats) -> _Floats:
    """Weights (rows,) of observations whose counting noise has this variance."""
    return 1 / (_USUAL_SPREAD**2 + noise)


def deconvolve(residual: _Floats, noise: _Floats) -> _Floats:
    """Residuals (rows,) shrunk to the spread they would have without noise of these variances (rows,).

    e x sqrt(s2 / (s2 + noise)), where s2 is the spread beyond noise: the weighted mean of e^2 - noise, never negative.
    """
    weights = precision(noise) ** 2
    spread = max(float((weights * (residual**2 - noise)).sum() / weights.sum()), 0.0)
    return residual * np.sqrt(spread / (spread + noise)) if spread else np.zeros_like(residual)
