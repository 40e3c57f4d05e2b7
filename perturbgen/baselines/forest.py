"""A random forest from labels and out-of-fold encodings to component scores of DE values."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from perturbgen.baselines.featured import FeatureModel, FeatureSettings
from perturbgen.baselines.table import Array
from perturbgen.config import Settings


class ForestSettings(FeatureSettings):
    """The forest."""

    trees: int = Field(300, ge=1, description="trees of the forest")
    leaf: int = Field(2, ge=1, description="rows in a leaf, at least")
    columns: float = Field(0.3, gt=0, le=1, description="share of the features that a split may choose from")


class RandomForest(FeatureModel[ForestSettings]):
    """A random forest on DE values; its intervals come from the rows that each tree did not see."""

    settings_class: ClassVar[type[Settings]] = ForestSettings

    def _fit_scores(self, features: Array, scores: Array, rng: np.random.Generator) -> None:
        from sklearn.ensemble import RandomForestRegressor

        chosen = self.settings
        self._forest = RandomForestRegressor(
            n_estimators=chosen.trees,
            min_samples_leaf=chosen.leaf,
            max_features=chosen.columns,
            random_state=int(rng.integers(2**31)),
            n_jobs=-1,
        )
        self._forest.fit(features, scores)
        self._forest.n_jobs = 1  # threads add their trees up in whatever order they end, which shows in the last bit
        unseen = self._out_of_bag(features, scores)
        if np.isfinite(unseen).all():  # a handful of trees may have seen every row
            self._keep_residual_sd(unseen)

    def _out_of_bag(self, features: Array, scores: Array) -> Array:
        """Each row's mean prediction (rows, components) over the trees that did not see it; NaN where all did."""
        total, count = np.zeros_like(scores), np.zeros(len(scores))
        for tree, rows in zip(self._forest.estimators_, self._forest.estimators_samples_, strict=True):
            out = np.bincount(rows, minlength=len(scores)) == 0
            total[out] += tree.predict(features[out].astype(np.float32)).reshape(out.sum(), -1)
            count += out
        return np.divide(total, count[:, None], out=np.full_like(total, np.nan), where=count[:, None] > 0)

    def _predict_scores(self, features: Array) -> Array:
        return np.asarray(self._forest.predict(features)).reshape(len(features), -1)
