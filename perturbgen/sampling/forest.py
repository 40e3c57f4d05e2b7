"""A random forest as plain arrays: it predicts, and it draws training rows from the leaves a query falls into.

Drawing a tree and then a training row of the query's leaf is drawing with the weights of a quantile regression forest
(Meinshausen 2006): w_i(x) = mean over trees of 1[i in leaf(x)] / size of leaf(x).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Forest:
    """Trees one after the other: node k has ``feature`` (-1 in a leaf), ``threshold``, ``left``, ``right``, ``value``.

    ``roots`` (trees,) are first nodes; the training rows of leaf k are ``members[starts[k]:starts[k + 1]]``.
    """

    roots: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: Floats
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: Floats
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

    def predict(self, x: NDArray[np.float32]) -> Floats:
        """Mean over the trees, (rows,)."""
        parts = [self.value[self.leaves(x[i : i + ROWS_AT_ONCE])].mean(axis=1) for i in range(0, len(x), ROWS_AT_ONCE)]
        return np.concatenate(parts) if parts else np.empty(0)

    def draw_rows(self, x: NDArray[np.float32], n: int, *, rng: np.random.Generator) -> NDArray[np.int32]:
        """Training rows (rows, n) drawn from the leaves: a tree, then one of the rows in its leaf."""
        drawn = np.empty((len(x), n), np.int32)
        for i in range(0, len(x), ROWS_AT_ONCE):
            leaves = self.leaves(x[i : i + ROWS_AT_ONCE])
            chosen = np.take_along_axis(leaves, rng.integers(leaves.shape[1], size=(len(leaves), n)), axis=1)
            size = self.starts[chosen + 1] - self.starts[chosen]
            drawn[i : i + ROWS_AT_ONCE] = self.members[
                self.starts[chosen] + (rng.random(chosen.shape) * size).astype(np.int64)
            ]
        return drawn

    def weights(self, x: NDArray[np.float32]) -> Floats:
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


def fit_forest(
    x: NDArray[np.float32],
    y: Floats,
    *,
    weights: Floats,
    trees: int,
    leaf: int,
    features: float,
    rng: np.random.Generator,
) -> Forest:
    """scikit-learn's forest on x (rows, features), y (rows,), weights (rows,); every row is a member of its leaves."""
    from sklearn.ensemble import RandomForestRegressor

    model = RandomForestRegressor(
        trees, min_samples_leaf=leaf, max_features=features, random_state=int(rng.integers(2**31)), n_jobs=-1
    )
    model.fit(x, y, sample_weight=weights)
    parts = [estimator.tree_ for estimator in model.estimators_]
    roots = np.cumsum([0, *(part.node_count for part in parts)])
    inner = [part.children_left >= 0 for part in parts]

    def children(name: str) -> NDArray[np.int32]:
        """Node numbers over all trees; those of leaves are never read."""
        return np.concatenate([getattr(part, name) + root for part, root in zip(parts, roots, strict=False)]).astype(
            np.int32
        )

    leaves = model.apply(x) + roots[:-1]
    order = np.argsort(leaves, axis=None, kind="stable")
    return Forest(
        roots=roots[:-1].astype(np.int32),
        feature=np.concatenate([np.where(k, part.feature, -1) for k, part in zip(inner, parts, strict=True)]).astype(
            np.int32
        ),
        threshold=np.concatenate([part.threshold for part in parts]),
        left=children("children_left"),
        right=children("children_right"),
        value=np.concatenate([part.value.ravel() for part in parts]),
        members=(order // len(parts)).astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(np.bincount(leaves.ravel(), minlength=roots[-1]))]),
    )
