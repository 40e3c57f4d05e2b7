"""Random forests as plain arrays: how they are fitted, and draws from their leaves.

Drawing a tree and then a training row of the query's leaf is drawing with the weights of a quantile
regression forest (Meinshausen 2006): w_i(x) = mean over trees of 1[i in leaf(x)] / size of leaf(x).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from perturbgen.core.config import Settings

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
    ``slope`` (features,), where there is one, adds a line to the trees.
    """

    roots: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: _Floats
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: _Floats
    members: NDArray[np.int32]
    starts: NDArray[np.int64]
    slope: _Floats = field(default_factory=lambda: np.empty(0))

    def leaves(self, x: NDArray[np.float32]) -> NDArray[np.int32]:
        """The leaf of every row in every tree, (rows, trees)."""
        # All rows and trees go down a level at once; those in leaves are left behind.
        node = np.tile(self.roots, len(x))
        row = np.repeat(np.arange(len(x)), len(self.roots))
        open_ = np.flatnonzero(self.feature[node] >= 0)
        while len(open_):
            at = node[open_]
            goes_left = x[row[open_], self.feature[at]] <= self.threshold[at]
            node[open_] = np.where(goes_left, self.left[at], self.right[at])
            open_ = open_[self.feature[node[open_]] >= 0]
        return node.reshape(len(x), len(self.roots))

    def predict(self, x: NDArray[np.float32]) -> _Floats:
        """Mean over the trees, (rows,)."""
        parts = [
            self.value[self.leaves(x[i : i + _ROWS_AT_ONCE])].mean(axis=1)
            for i in range(0, len(x), _ROWS_AT_ONCE)
        ]
        mean = np.concatenate(parts) if parts else np.empty(0)
        return mean + x @ self.slope if len(self.slope) else mean

    def draw_rows(
        self, x: NDArray[np.float32], n: int, *, rng: np.random.Generator
    ) -> NDArray[np.int32]:
        """Training rows (rows, n) drawn from the leaves: a tree, then a row of its leaf."""
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

    @classmethod
    def line(cls, slope: _Floats, rows: int) -> Self:
        """No tree but a leaf of all training rows: where they are too few to be told apart."""
        none = np.zeros(1, np.int32)
        return cls(
            roots=none,
            feature=none - 1,
            threshold=np.zeros(1),
            left=none,
            right=none,
            value=np.zeros(1),
            members=np.arange(rows, dtype=np.int32),
            starts=np.array([0, rows], np.int64),
            slope=slope,
        )

    @classmethod
    def fit(
        cls,
        x: NDArray[np.float32],
        y: _Floats,
        weights: _Floats,
        settings: SamplerSettings,
        rng: np.random.Generator,
    ) -> Self:
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

        # scikit-learn marks leaves by -2 in ``feature``; children tell them safely.
        feature = [np.where(part.children_left >= 0, part.feature, -1) for part in parts]
        leaves = model.apply(x) + roots[:-1]
        # Rows of one leaf stand together, in order, so that a leaf is a slice.
        order = np.argsort(leaves, axis=None, kind="stable")
        return cls(
            roots=roots[:-1].astype(np.int32),
            feature=np.concatenate(feature).astype(np.int32),
            threshold=np.concatenate([part.threshold for part in parts]),
            left=children("children_left"),
            right=children("children_right"),
            value=np.concatenate([part.value.ravel() for part in parts]),
            members=(order // len(parts)).astype(np.int32),
            starts=np.cumsum([0, *np.bincount(leaves.ravel(), minlength=roots[-1])]),
        )

    @classmethod
    def fit_out_of_fold(
        cls,
        x: NDArray[np.float32],
        y: _Floats,
        weights: _Floats,
        fold: NDArray[np.int64],
        settings: SamplerSettings,
        rng: np.random.Generator,
    ) -> tuple[Self, _Floats]:
        """A forest of all rows; predictions (rows,) of forests that saw nothing of a row's fold."""
        predicted = np.empty(len(y))
        for i in range(settings.folds):
            # A fold may be empty where conditions are few.
            out = fold == i
            if out.any():
                part = cls.fit(x[~out], y[~out], weights[~out], settings, rng)
                predicted[out] = part.predict(x[out])
        return cls.fit(x, y, weights, settings, rng), predicted
