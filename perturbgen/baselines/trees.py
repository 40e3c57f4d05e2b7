"""Boosted trees and random forests, on DE values; and the seed's forest on pseudobulk counts."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from pydantic import Field

from perturbgen.baselines.base import Baseline, ConditionList, TrainTable, one_hot
from perturbgen.baselines.constants import CellTypeMean
from perturbgen.baselines.features import Components, FeatureModel, FeatureSettings
from perturbgen.core.config import Settings
from perturbgen.core.console import track
from perturbgen.core.errors import (
    ConfigError,
    MissingDependencyError,
    SchemaError,
    shorten,
    suggest,
)
from perturbgen.core.system import cores
from perturbgen.core.tables import CONDITION, conditions_of

if TYPE_CHECKING:
    import xgboost
    from anndata import AnnData

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


class _PseudobulkForestSettings(Settings):
    """The forest, the wells and the statistics."""

    trees: int = Field(300, ge=1, description="trees of the forest")
    components: int = Field(50, ge=1, description="components of log CPM that are learnt")
    covariates: tuple[str, ...] = Field(
        ("donor", "plate", "row"), description="columns of obs that describe a well"
    )
    design: str = Field(
        "~0 + {group} + donor", description="R formula of the differential expression"
    )
    vehicle: str = Field(
        "", description="the compound all others are compared with; empty: the file says it"
    )
    draw: bool = Field(False, description="draw Poisson counts around the means (the seed did not)")


class _PseudobulkForest(Baseline[_PseudobulkForestSettings]):
    """A random forest on pseudobulk counts, then limma on these beside the measured samples.

    Of the samples only those of training conditions and of the vehicle are ever used. A wanted
    condition has the wells in which its compound was measured for other cell types. Without such
    wells, or without vehicle samples of the cell type, or where a contrast cannot be estimated, it
    gets the mean of the cell type (of the compound; of all rows).
    """

    settings_class: ClassVar[type[Settings]] = _PseudobulkForestSettings

    def __init__(
        self, settings: _PseudobulkForestSettings | None = None, *, pseudobulk: AnnData
    ) -> None:
        super().__init__(settings)
        self._bulk = pseudobulk
        absent = [c for c in (*CONDITION, *self.settings.covariates) if c not in pseudobulk.obs]
        if absent:
            fix = suggest(absent[0], pseudobulk.obs.columns)
            raise SchemaError(f"the pseudobulk samples have no column {shorten(absent)}", fix=fix)
        self.vehicle = self.settings.vehicle or str(pseudobulk.uns.get("vehicle", ""))
        if self.vehicle not in set(pseudobulk.obs["compound"].astype(str)):
            raise ConfigError(
                f"no sample of the vehicle {self.vehicle!r}", fix="set vehicle=NAME of the control"
            )

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        absent = table.genes.difference(self._bulk.var_names)
        if len(absent):
            raise SchemaError(
                f"the pseudobulk lacks {len(absent)} genes of the training table: {shorten(absent)}"
            )
        obs = self._bulk.obs[[*CONDITION, *self.settings.covariates]].astype(str)
        kept = conditions_of(obs).isin(table.index) | (obs["compound"] == self.vehicle).to_numpy()
        self._obs = obs[kept]
        counts: Any = self._bulk[kept, list(table.genes)].X
        is_sparse: bool = sp.issparse(counts)
        self._counts = np.asarray(counts.toarray() if is_sparse else counts, np.float64)
        seeds = rng.integers(2**31, size=2)
        self._draws = int(seeds[1])
        self._fit_forest(int(seeds[0]))
        train = pd.DataFrame(table.values, table.index, table.genes, copy=False)
        self._fallback = CellTypeMean().fit(train, rng=rng)

    def _fit_forest(self, seed: int) -> None:
        """log CPM as component scores, and log depth, from one-hot labels of the wells."""
        from sklearn.ensemble import RandomForestRegressor

        depth = self._counts.sum(axis=1)
        log_cpm = np.log1p(self._counts / depth[:, None] * 1e6)
        self._components = Components.fit(log_cpm, self.settings.components)
        scores = self._components.scores(log_cpm)
        # Scaled, so that the forest's splits mind depth as much as a component.
        self._depth_scale = scores.std() / max(float(np.log(depth).std()), 1e-12)
        targets = np.column_stack([scores, np.log(depth) * self._depth_scale])
        self._levels = {
            name: np.unique(self._obs[name].to_numpy(dtype=object)) for name in self._obs
        }
        self._forest = RandomForestRegressor(
            self.settings.trees, max_features=0.5, random_state=seed, n_jobs=-1
        )
        self._forest.fit(self._features(self._obs), targets)
        self._forest.n_jobs = 1  # as for the forest on DE values

    def _features(self, obs: pd.DataFrame) -> np.ndarray:
        known = self._levels.items()
        return np.hstack(
            [one_hot(obs[name].to_numpy(dtype=object), names) for name, names in known]
        )

    def _wells(self, wanted: ConditionList) -> pd.DataFrame:
        """Each wanted compound in the wells it was measured in, in its wanted cell type."""
        covariates = list(self.settings.covariates)
        places = self._obs[["compound", *covariates]].drop_duplicates()
        asked = wanted.index.to_frame(index=False)
        return asked.merge(places, on="compound")[[*CONDITION, *covariates]]

    def _predict(self, wanted: ConditionList) -> np.ndarray:
        controlled = self._obs.loc[self._obs["compound"] == self.vehicle, "cell_type"].unique()
        wells = self._wells(wanted)
        wells = wells[wells["cell_type"].isin(controlled)].reset_index(drop=True)
        result = np.full((len(wanted), len(self.table.genes)), np.nan)
        if len(wells):
            found = self._differential_expression(wells, self._predict_counts(wells))
            result = found.reindex(wanted.index).to_numpy()
        lost = np.isnan(result).any(axis=1)
        self._tell(wanted, lost, "the mean of the cell type")
        if lost.any():
            result[lost] = self._fallback.predict(wanted.index[lost]).to_numpy()
        return result

    def _predict_counts(self, wells: pd.DataFrame) -> np.ndarray:
        """Whole counts (wells, genes): the forest's means, or draws around them."""
        found = self._forest.predict(self._features(wells))
        share = np.expm1(self._components.values(found[:, :-1])).clip(0)
        depth = np.exp(found[:, -1] / self._depth_scale)
        means = share / share.sum(axis=1, keepdims=True) * depth[:, None]
        if self.settings.draw:
            return np.random.default_rng(self._draws).poisson(means)
        return np.rint(means)

    def _differential_expression(self, wells: pd.DataFrame, counts: np.ndarray) -> pd.DataFrame:
        """Signed −log10 p of the predicted wells, against the real vehicle, beside real samples."""
        from perturbgen.de import limma_table

        real = self._obs["cell_type"].isin(wells["cell_type"].unique()).to_numpy()
        # A training condition that is wanted is predicted, too, so its samples are out.
        real &= ~conditions_of(self._obs).isin(conditions_of(wells))
        obs = pd.concat([self._obs[real], wells], ignore_index=True)
        obs.index = pd.Index([f"sample {i}" for i in range(len(obs))])
        values = pd.DataFrame(np.vstack([self._counts[real], counts]), obs.index, self.table.genes)
        table = limma_table(
            values,
            obs,
            design=self.settings.design,
            group="compound",
            control=self.vehicle,
            by="cell_type",
        )
        return table.signed_log10_p
