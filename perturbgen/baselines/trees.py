"""Boosted trees and random forests on DE values."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from perturbgen.baselines.base import Baseline, ConditionList, TrainTable, one_hot
from perturbgen.baselines.features import FeatureModel, FeatureSettings
from perturbgen.core.config import Settings
from perturbgen.core.console import track
from perturbgen.core.errors import MissingDependencyError
from perturbgen.core.system import cores
from perturbgen.core.tables import CONDITION

if TYPE_CHECKING:
    import xgboost

_log = logging.getLogger(__name__)

_Device = Literal["auto", "cpu", "cuda"]
# A booster for ten components and a thread for each booster is faster than XGBoost's own threads.
_COLUMNS_AT_ONCE = 10


class _XGBoostSettings(FeatureSettings):
    """The trees."""

    trees: int = Field(300, ge=1, description="trees for each component")
    rate: float = Field(0.05, gt=0, le=1, description="learning rate")
    depth: int = Field(4, ge=1, le=12, description="depth of a tree")
    rows: float = Field(0.8, gt=0, le=1, description="share of the rows that a tree sees")
    columns: float = Field(0.2, gt=0, le=1, description="share of the features that a tree sees")
    leaf: float = Field(3.0, ge=0, description="weight of a leaf, at least")
    penalty: float = Field(1.0, ge=0, description="L2 penalty on leaves")
    bins: int = Field(64, ge=2, description="of a feature; a few hundred rows have no use for more")
    seeds: int = Field(1, ge=1, description="models that are averaged, each with its own draws")
    device: _Device = Field("auto", description="auto takes a GPU where one is present")


class _XGBoost(FeatureModel[_XGBoostSettings]):
    """One set of boosted trees for each component, averaged over seeds."""

    settings_class: ClassVar[type[Settings]] = _XGBoostSettings

    def _fit_scores(
        self, features: np.ndarray, scores: np.ndarray, rng: np.random.Generator
    ) -> None:
        chosen = self.settings
        self._models = [
            BoostedTrees(
                features,
                scores,
                {**self.parameters, "seed": int(seed)},
                trees=chosen.trees,
                device=chosen.device,
            )
            for seed in rng.integers(2**31, size=chosen.seeds)
        ]

    @property
    def parameters(self) -> dict[str, float]:
        """The settings in XGBoost's own words."""
        chosen = self.settings
        return {
            "eta": chosen.rate,
            "max_depth": chosen.depth,
            "subsample": chosen.rows,
            "colsample_bytree": chosen.columns,
            "min_child_weight": chosen.leaf,
            "lambda": chosen.penalty,
            "max_bin": chosen.bins,
        }

    def _predict_scores(self, features: np.ndarray) -> np.ndarray:
        return np.mean([boosted.predict(features) for boosted in self._models], axis=0)


class _PlainSettings(Settings):
    """XGBoost as it comes."""

    trees: int = Field(100, ge=1, description="trees for each gene")
    device: _Device = Field("auto", description="auto takes a GPU where one is present")


class _PlainXGBoost(Baseline[_PlainSettings]):
    """XGBoost out of the box: one-hot labels, raw values, default settings, one model a gene.

    The seed's comparison. It is slow on purpose: nothing is compressed. A label never seen has no
    indicator.
    """

    settings_class: ClassVar[type[Settings]] = _PlainSettings

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        chosen = self.settings
        self._boosted = BoostedTrees(
            self._hot(table), table.values, {}, trees=chosen.trees, device=chosen.device
        )

    def _hot(self, wanted: ConditionList) -> np.ndarray:
        known = (np.unique(self.table.labels(key)) for key in CONDITION)
        return np.hstack(
            [one_hot(wanted.labels(k), u) for k, u in zip(CONDITION, known, strict=True)]
        )

    def _predict(self, wanted: ConditionList) -> np.ndarray:
        self._tell_unknown(
            wanted,
            cell_type="trees that know nothing of the cell type",
            compound="trees that know nothing of the compound",
        )
        return self._boosted.predict(self._hot(wanted))


class BoostedTrees:
    """Boosted trees for labels (rows, columns): a booster for each few columns, one thread each.

    Threads inside a booster would wait for each other at every split of these few rows. The
    division does not depend on the number of cores, and so neither do the draws.
    """

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        settings: Mapping[str, float],
        *,
        trees: int,
        device: _Device,
    ) -> None:
        place = _pick_device(device)
        starts = range(0, labels.shape[1], _COLUMNS_AT_ONCE)
        blocks = [labels[:, start : start + _COLUMNS_AT_ONCE] for start in starts]
        fixed = {"tree_method": "hist", "verbosity": 0, "objective": "reg:squarederror"}
        parameters = {**fixed, "device": place, "nthread": 1, **settings}

        def work(block: np.ndarray) -> xgboost.Booster:
            import xgboost

            return xgboost.train(parameters, _as_matrix(features, block), num_boost_round=trees)

        # A GPU works on one booster at a time; more would only share its memory.
        with ThreadPoolExecutor(1 if place == "cuda" else cores(as_omp=True)) as pool:
            self._boosters = list(track(pool.map(work, blocks), "boosting", total=len(blocks)))

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Predictions (rows, columns) of all boosters."""
        data = _as_matrix(features)
        # A booster of one column gives a vector, all others a table.
        found = [booster.predict(data).reshape(len(features), -1) for booster in self._boosters]
        return np.hstack(found).astype(np.float64)


def _as_matrix(features: np.ndarray, labels: np.ndarray | None = None) -> xgboost.DMatrix:
    """XGBoost's own matrix; it computes in 32 bits."""
    try:
        import xgboost
    except ImportError as error:
        raise MissingDependencyError(
            "XGBoost is not installed", fix="pip install xgboost"
        ) from error
    answers = None if labels is None else labels.astype(np.float32)
    return xgboost.DMatrix(features.astype(np.float32), answers, nthread=1)


def _pick_device(device: _Device) -> str:
    """The device to compute on; ``auto`` is the GPU where there is one."""
    chosen = device if device != "auto" else ("cuda" if _cuda_present() else "cpu")
    _log.debug("XGBoost computes on %s", chosen)
    return chosen


@lru_cache(maxsize=1)
def _cuda_present() -> bool:
    """Whether XGBoost was built for CUDA and the driver itself finds a device."""
    import xgboost

    if not xgboost.build_info().get("USE_CUDA", False):
        return False
    # Asked of the driver: to import torch for this answer takes seconds.
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )


class _ForestSettings(FeatureSettings):
    """The forest."""

    trees: int = Field(300, ge=1, description="trees of the forest")
    leaf: int = Field(2, ge=1, description="rows in a leaf, at least")
    columns: float = Field(
        0.3, gt=0, le=1, description="share of the features that a split may choose from"
    )


class _RandomForest(FeatureModel[_ForestSettings]):
    """A random forest on DE values; its intervals come from the rows that each tree did not see."""

    settings_class: ClassVar[type[Settings]] = _ForestSettings

    def _fit_scores(
        self, features: np.ndarray, scores: np.ndarray, rng: np.random.Generator
    ) -> None:
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
        # Threads add their trees up in the order they end, which shows in the last bit.
        self._forest.n_jobs = 1
        unseen = self._out_of_bag(features, scores)
        if np.isfinite(unseen).all():  # a handful of trees may have seen every row
            self._keep_residual_sd(unseen)

    def _out_of_bag(self, features: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Mean prediction (rows, components) over the trees that did not see a row, or NaN."""
        total, count = np.zeros_like(scores), np.zeros((len(scores), 1))
        forest = self._forest
        for tree, rows in zip(forest.estimators_, forest.estimators_samples_, strict=True):
            out = np.bincount(rows, minlength=len(scores)) == 0
            total[out] += tree.predict(features[out].astype(np.float32)).reshape(out.sum(), -1)
            count[out] += 1
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

    def _predict_scores(self, features: np.ndarray) -> np.ndarray:
        return np.asarray(self._forest.predict(features)).reshape(len(features), -1)
