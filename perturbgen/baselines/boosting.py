"""Boosted trees: on components of t-transformed values with out-of-fold encodings, and out of the box."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from perturbgen.baselines.base import Baseline
from perturbgen.baselines.featured import FeatureModel, FeatureSettings
from perturbgen.baselines.table import Array, Conditions, TrainTable, levels, one_hot, tell_fallback, unknown
from perturbgen.config import Settings
from perturbgen.console import track
from perturbgen.de.parallel import workers
from perturbgen.errors import MissingDependencyError

if TYPE_CHECKING:
    import xgboost

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]
COLUMNS_AT_ONCE = 10


class XGBoostSettings(FeatureSettings):
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
    device: Device = Field("auto", description="auto takes a GPU where one is present")


class XGBoost(FeatureModel[XGBoostSettings]):
    """One set of boosted trees for each component, averaged over seeds."""

    settings_class: ClassVar[type[Settings]] = XGBoostSettings

    def _fit_scores(self, features: Array, scores: Array, rng: np.random.Generator) -> None:
        chosen = self.settings
        runs = [self.parameters(int(seed)) for seed in rng.integers(2**31, size=chosen.seeds)]
        self._models = [boost_all(features, scores, run, trees=chosen.trees, device=chosen.device) for run in runs]

    def parameters(self, seed: int) -> dict[str, float]:
        """The settings in XGBoost's own words."""
        chosen = self.settings
        return {
            "eta": chosen.rate, "max_depth": chosen.depth, "subsample": chosen.rows, "colsample_bytree": chosen.columns,
            "min_child_weight": chosen.leaf, "lambda": chosen.penalty, "max_bin": chosen.bins, "seed": seed,
        }  # fmt: skip

    def _predict_scores(self, features: Array) -> Array:
        return np.mean([predict_all(boosters, features) for boosters in self._models], axis=0)


class PlainSettings(Settings):
    """XGBoost as it comes."""

    trees: int = Field(100, ge=1, description="trees for each gene")
    device: Device = Field("auto", description="auto takes a GPU where one is present")


class PlainXGBoost(Baseline[PlainSettings]):
    """XGBoost out of the box: one-hot cell type and compound, the raw values, default settings, one model a gene.

    The seed's comparison. It is slow on purpose: nothing is compressed. A label never seen has no indicator.
    """

    settings_class: ClassVar[type[Settings]] = PlainSettings

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        self._levels = levels(table.cell_types), levels(table.compounds)
        features = self._hot(Conditions(table.cell_types, table.compounds))
        self._boosters = boost_all(features, table.values, {}, trees=self.settings.trees, device=self.settings.device)

    def _hot(self, wanted: Conditions) -> Array:
        return np.hstack([one_hot(wanted.cell_types, self._levels[0]), one_hot(wanted.compounds, self._levels[1])])

    def _predict(self, wanted: Conditions) -> Array:
        for labels, known, what in zip(
            (wanted.cell_types, wanted.compounds), self._levels, ("cell type", "compound"), strict=True
        ):
            tell_fallback(self.name, wanted, unknown(labels, known), f"trees that know nothing of the {what}")
        return predict_all(self._boosters, self._hot(wanted))


def boost_all(
    features: Array, labels: Array, settings: Mapping[str, float], *, trees: int, device: Device
) -> list[xgboost.Booster]:
    """Boosted trees for labels (rows, columns): a booster for each few columns, one thread each.

    Threads inside of a booster would wait for each other at every split of these few rows. The division does not
    depend on the number of cores, and so neither do the draws.
    """
    place = pick_device(device)
    blocks = [labels[:, start : start + COLUMNS_AT_ONCE] for start in range(0, labels.shape[1], COLUMNS_AT_ONCE)]

    def work(block: Array) -> xgboost.Booster:
        return boost(as_matrix(features, block), settings, trees=trees, device=place)

    with ThreadPoolExecutor(1 if place == "cuda" else workers()) as pool:
        return list(track(pool.map(work, blocks), "boosting", total=len(blocks)))


def predict_all(boosters: list[xgboost.Booster], features: Array) -> Array:
    """Predictions (rows, columns) of all boosters."""
    data = as_matrix(features)
    return np.hstack([booster.predict(data).reshape(len(features), -1) for booster in boosters]).astype(np.float64)


def boost(data: xgboost.DMatrix, settings: Mapping[str, float], *, trees: int, device: str) -> xgboost.Booster:
    """Boosted trees, one set for each column of the labels."""
    import xgboost

    fixed = {"tree_method": "hist", "verbosity": 0, "objective": "reg:squarederror", "device": device, "nthread": 1}
    return xgboost.train({**fixed, **settings}, data, num_boost_round=trees)


def as_matrix(features: Array, labels: Array | None = None) -> xgboost.DMatrix:
    """XGBoost's own matrix; it computes in 32 bits."""
    try:
        import xgboost
    except ImportError as error:
        raise MissingDependencyError("XGBoost is not installed", fix="pip install xgboost") from error
    return xgboost.DMatrix(
        features.astype(np.float32), None if labels is None else labels.astype(np.float32), nthread=1
    )


def pick_device(device: Device) -> str:
    """The device to compute on; ``auto`` is the GPU where there is one."""
    chosen = device if device != "auto" else ("cuda" if cuda_present() else "cpu")
    log.debug("XGBoost computes on %s", chosen)
    return chosen


@lru_cache(maxsize=1)
def cuda_present() -> bool:
    """Whether XGBoost was built for CUDA and the driver finds a device (asked of the driver itself)."""
    import xgboost

    if not xgboost.build_info().get("USE_CUDA", False):
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
