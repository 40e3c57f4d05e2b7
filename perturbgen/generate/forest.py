"""Random forests of wells: what they are told, how they are fitted, and draws from their leaves.

Drawing a tree and then a training row of the query's leaf is drawing with the weights of a quantile
regression forest (Meinshausen 2006): w_i(x) = mean over trees of 1[i in leaf(x)] / size of leaf(x).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from perturbgen.core.config import Settings
from perturbgen.core.folds import deal
from perturbgen.core.labels import CONDITION
from perturbgen.data.covariates import CovariateEncoder
from perturbgen.generate.wells import GROUP, WELL, Reference, covariates, fit_reference

_Floats = NDArray[np.float64]
_ROWS_AT_ONCE: Final = 1 << 14


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


@dataclass(frozen=True)
class Forest:
    """Trees as plain arrays, which can be written to a file that holds no code.

    Node k has ``feature`` (-1 in a leaf), ``threshold``, ``left``, ``right``, ``value``; ``roots``
    (trees,) are first nodes; the training rows of leaf k are ``members[starts[k]:starts[k + 1]]``.
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
        """Training rows (rows, n) drawn from the leaves: a tree, then one of the rows in its leaf.
        """
        drawn = np.empty((len(x), n), np.int32)
        for i in range(0, len(x), _ROWS_AT_ONCE):
            leaves = self.leaves(x[i : i + _ROWS_AT_ONCE])
            tree = rng.integers(leaves.shape[1], size=(len(leaves), n))
            chosen = np.take_along_axis(leaves, tree, axis=1)
            size = self.starts[chosen + 1] - self.starts[chosen]
            member = self.starts[chosen] + (rng.random(chosen.shape) * size).astype(np.int64)
            drawn[i : i + _ROWS_AT_ONCE] = self.members[member]
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
        """All there is, by name; ``Forest(**arrays)`` is the inverse."""
        return dict(vars(self))


def _fit_forest(
    x: NDArray[np.float32],
    y: _Floats,
    weights: _Floats,
    settings: SamplerSettings,
    rng: np.random.Generator,
) -> Forest:
    """scikit-learn's forest on x (rows, features), y (rows,), weights (rows,).

    Every row is a member of its leaves, not those of a bootstrap sample alone.
    """
    from sklearn.ensemble import RandomForestRegressor

    model = RandomForestRegressor(
        settings.trees,
        min_samples_leaf=settings.leaf,
        max_features=settings.features,
        random_state=int(rng.integers(2**31)),
        n_jobs=-1,
    )
    model.fit(x, y, sample_weight=weights)
    parts = [estimator.tree_ for estimator in model.estimators_]
    roots = np.cumsum([0, *(part.node_count for part in parts)])

    def children(name: str) -> NDArray[np.int32]:
        """Node numbers over all trees; those of leaves are never read."""
        shifted = [getattr(part, name) + root for part, root in zip(parts, roots, strict=False)]
        return np.concatenate(shifted).astype(np.int32)

    feature = [np.where(part.children_left >= 0, part.feature, -1) for part in parts]
    leaves = model.apply(x) + roots[:-1]
    order = np.argsort(leaves, axis=None, kind="stable")
    return Forest(
        roots=roots[:-1].astype(np.int32),
        feature=np.concatenate(feature).astype(np.int32),
        threshold=np.concatenate([part.threshold for part in parts]),
        left=children("children_left"),
        right=children("children_right"),
        value=np.concatenate([part.value.ravel() for part in parts]),
        members=(order // len(parts)).astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(np.bincount(leaves.ravel(), minlength=roots[-1]))]),
    )


_ONE_HOT: Final = (*CONDITION, *WELL, "row", "column", "donor", "library", "control")
_MAY_BE_NEW: Final = ("compound", "well", "column", "row")
_PRIOR: Final = 1.0  # cells, so that ratios of nothing are one
_PRIOR_DEPTH: Final = 20.0  # cells of no depth effect


@dataclass(frozen=True)
class FeatureMaker:
    """Turns conditions into features; holds what is known of the measured wells.

    ``known`` has a row for each measured group: its labels, ``n_cells``, ``expected`` cells,
    ``depth_sum`` (cells x deviation of their mean log library from the reference).
    """

    encoder: CovariateEncoder
    reference: Reference
    known: pd.DataFrame

    @classmethod
    def fit(cls, groups: pd.DataFrame) -> FeatureMaker:
        """From the groups of a :class:`WellTable`."""
        columns = [name for name in _ONE_HOT if name in groups]
        new = [name for name in _MAY_BE_NEW if name in columns]
        encoder = CovariateEncoder.fit(groups, columns, unknown=new)
        return cls.of(encoder, fit_reference(groups), groups)

    @classmethod
    def of(
        cls, encoder: CovariateEncoder, reference: Reference, groups: pd.DataFrame
    ) -> FeatureMaker:
        """With an encoder and a reference fitted before."""
        deviation = groups["log_library"].to_numpy() - reference.expected_depth(groups)
        n = groups["n_cells"]
        known = groups[[*GROUP, "compound", "n_cells"]].assign(
            expected=reference.expected_cells(groups),
            depth_sum=np.where(n > 0, n * np.nan_to_num(deviation), 0.0),
        )
        return cls(encoder, reference, known)

    def features(self, conditions: pd.DataFrame) -> np.ndarray:
        """Features (conditions, features) float32: one-hot covariates, then what is known.

        What is known of a row never includes the row itself, or a forest would be told in training
        what it is to foretell: only *other* cell types of its well and of its compound.
        """
        labels = covariates(conditions)
        expected = self.reference.expected_cells(labels)
        well = self._others(labels, WELL, GROUP)
        compound = self._others(labels, ["compound"], list(CONDITION))
        known = [
            np.log(expected),
            _log_ratio(well),
            np.log(well["n_cells"] + _PRIOR),
            _log_ratio(compound),
            well["depth_sum"] / (well["n_cells"] + _PRIOR_DEPTH),
            compound["depth_sum"] / (compound["n_cells"] + _PRIOR_DEPTH),
        ]
        numbers = np.stack(known, axis=1).astype(np.float32)
        return np.hstack([self.encoder.features(labels), numbers])

    def _others(self, labels: pd.DataFrame, whole: list[str], own: list[str]) -> pd.DataFrame:
        """Sums over the known rows that share ``whole`` with a condition, less those that share
        ``own``.
        """
        values = ["n_cells", "expected", "depth_sum"]
        all_, own_ = (_lookup(self.known.groupby(by)[values].sum(), labels) for by in (whole, own))
        return all_ - own_


def _lookup(sums: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``sums`` for the labels, zero where there is none."""
    names = list(sums.index.names)
    key = pd.MultiIndex.from_frame(labels[names]) if len(names) > 1 else pd.Index(labels[names[0]])
    return sums.reindex(key).fillna(0.0).set_axis(labels.index)


def _log_ratio(sums: pd.DataFrame) -> np.ndarray:
    """Log of found over expected cells (rows,)."""
    ratio = (sums["n_cells"] + _PRIOR) / (sums["expected"].clip(lower=0) + _PRIOR)
    return np.log(ratio.to_numpy())


# Spread that wells have beyond counting (log scale), for weighting them only: what is drawn is
# measured.
_USUAL_SPREAD: Final = 0.2


def condition_folds(
    groups: pd.DataFrame, folds: int, *, rng: np.random.Generator
) -> NDArray[np.int64]:
    """A fold for each row. Conditions stay whole; those in many wells (controls), always measured,
    are dealt by well.

    A condition is in many wells where it has more than twice as many as the median one.
    """
    condition, _ = pd.factorize(pd.MultiIndex.from_frame(groups[list(CONDITION)]), sort=True)
    size = np.bincount(condition)[condition]
    many = size > 2 * np.median(size)
    unit = np.where(many, condition.max() + 1 + np.arange(len(groups)), condition)
    units, unit = np.unique(unit, return_inverse=True)
    return deal(len(units), folds, rng)[unit]


def fit_out_of_fold(
    x: NDArray[np.float32],
    y: _Floats,
    weights: _Floats,
    fold: NDArray[np.int64],
    *,
    settings: SamplerSettings,
    rng: np.random.Generator,
) -> tuple[Forest, _Floats]:
    """A forest of all rows, and predictions (rows,) of forests that saw nothing of a row's fold."""
    predicted = np.empty(len(y))
    for i in range(settings.folds):
        out = fold == i
        if out.any():
            part = _fit_forest(x[~out], y[~out], weights[~out], settings, rng)
            predicted[out] = part.predict(x[out])
    return _fit_forest(x, y, weights, settings, rng), predicted


def noise_weights(noise: _Floats) -> _Floats:
    """Weights (rows,) of observations whose counting noise has this variance."""
    return 1 / (_USUAL_SPREAD**2 + noise)


def deconvolve(residual: _Floats, noise: _Floats) -> _Floats:
    """Residuals (rows,) shrunk to the spread they would have without noise of these variances
    (rows,).

    e x sqrt(s2 / (s2 + noise)), where s2 is the spread beyond noise: the weighted mean of
    e^2 - noise, never negative. A draw adds the counting noise again.
    """
    weights = noise_weights(noise) ** 2
    spread = max(float((weights * (residual**2 - noise)).sum() / weights.sum()), 0.0)
    return residual * np.sqrt(spread / (spread + noise)) if spread else np.zeros_like(residual)
