"""The seed's random forest: pseudobulk counts of the missing wells, then differential expression of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import scipy.sparse as sp
from pydantic import Field

from perturbgen.baselines.base import Baseline
from perturbgen.baselines.constants import CellTypeMean
from perturbgen.baselines.lowrank import fit_components
from perturbgen.baselines.table import KEY, Array, Conditions, TrainTable, levels, one_hot, tell_fallback
from perturbgen.config import Settings
from perturbgen.errors import ConfigError, SchemaError, shorten, suggest

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)


class PseudobulkForestSettings(Settings):
    """The forest, the wells and the statistics."""

    trees: int = Field(300, ge=1, description="trees of the forest")
    components: int = Field(50, ge=1, description="components of log CPM that are learnt")
    covariates: tuple[str, ...] = Field(("donor", "plate", "row"), description="columns of obs that describe a well")
    design: str = Field("~0 + {group} + donor", description="R formula of the differential expression")
    vehicle: str = Field("", description="the compound all others are compared with; empty: the file says it")
    draw: bool = Field(False, description="draw Poisson counts around the means (the seed did not)")


class PseudobulkForest(Baseline[PseudobulkForestSettings]):
    """A random forest on pseudobulk counts, then limma on its counts beside the real samples of the cell type.

    Of the samples only those of training conditions and of the vehicle are ever used. A wanted condition has the wells
    in which its compound was measured for other cell types. Without such wells, or without vehicle samples of the cell
    type, or where a contrast cannot be estimated, it gets the mean of the cell type (of the compound; of all rows).
    """

    settings_class: ClassVar[type[Settings]] = PseudobulkForestSettings

    def __init__(self, settings: PseudobulkForestSettings | None = None, *, pseudobulk: AnnData) -> None:
        super().__init__(settings)
        self._bulk = pseudobulk
        absent = [c for c in (*KEY, *self.settings.covariates) if c not in pseudobulk.obs]
        if absent:
            fix = suggest(absent[0], pseudobulk.obs.columns)
            raise SchemaError(f"the pseudobulk samples have no column {shorten(absent)}", fix=fix)
        self.vehicle = self.settings.vehicle or str(pseudobulk.uns.get("vehicle", ""))
        if self.vehicle not in set(pseudobulk.obs["compound"].astype(str)):
            raise ConfigError(f"no sample of the vehicle {self.vehicle!r}", fix="set vehicle=NAME of the control")

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        absent = table.genes.difference(self._bulk.var_names)
        if len(absent):
            raise SchemaError(f"the pseudobulk lacks {len(absent)} genes of the training table: {shorten(absent)}")
        obs = self._bulk.obs[[*KEY, *self.settings.covariates]].astype(str)
        labels = pd.MultiIndex.from_frame(obs[list(KEY)])
        kept = labels.isin(table.index) | (obs["compound"] == self.vehicle).to_numpy()
        self._obs = obs[kept]
        self._counts = as_dense(self._bulk[kept, list(table.genes)].X)
        seeds = rng.integers(2**31, size=2)
        self._draws = int(seeds[1])
        self._fit_forest(int(seeds[0]))
        train = pd.DataFrame(table.values, table.index, table.genes, copy=False)
        self._fallback = CellTypeMean().fit(train, rng=rng)

    def _fit_forest(self, seed: int) -> None:
        """log CPM as component scores, and log depth beside them, from one-hot labels of the wells."""
        from sklearn.ensemble import RandomForestRegressor

        depth = self._counts.sum(axis=1)
        log_cpm = np.log1p(self._counts / depth[:, None] * 1e6)
        self._components = fit_components(log_cpm, self.settings.components)
        scores = self._components.scores(log_cpm)
        self._depth_scale = scores.std() / max(float(np.log(depth).std()), 1e-12)  # depth counts as much as a component
        targets = np.column_stack([scores, np.log(depth) * self._depth_scale])
        self._levels = {name: levels(self._obs[name].to_numpy(dtype=object)) for name in self._obs}
        self._forest = RandomForestRegressor(self.settings.trees, max_features=0.5, random_state=seed, n_jobs=-1)
        self._forest.fit(self._features(self._obs), targets)
        self._forest.n_jobs = 1  # threads would add their trees up in any order

    def _features(self, obs: pd.DataFrame) -> Array:
        return np.hstack([one_hot(obs[name].to_numpy(dtype=object), known) for name, known in self._levels.items()])

    def wells(self, wanted: Conditions) -> pd.DataFrame:
        """The samples to predict: each wanted compound in the wells it has, in its wanted cell type."""
        covariates = list(self.settings.covariates)
        places = self._obs[["compound", *covariates]].drop_duplicates()
        asked = pd.DataFrame({"cell_type": wanted.cell_types, "compound": wanted.compounds})
        return asked.merge(places, on="compound")[[*KEY, *covariates]]

    def _predict(self, wanted: Conditions) -> Array:
        controlled = self._obs.loc[self._obs["compound"] == self.vehicle, "cell_type"].unique()
        wells = self.wells(wanted)
        wells = wells[wells["cell_type"].isin(controlled)].reset_index(drop=True)
        result = np.full((len(wanted), len(self.table.genes)), np.nan)
        if len(wells):
            found = self._differential_expression(wells, self._predict_counts(wells))
            result = found.reindex(wanted.index).to_numpy()
        lost = np.isnan(result).any(axis=1)
        tell_fallback(self.name, wanted, lost, "the mean of the cell type")
        if lost.any():
            result[lost] = self._fallback.predict(wanted.index[lost]).to_numpy()
        return result

    def _predict_counts(self, wells: pd.DataFrame) -> Array:
        """Whole counts (wells, genes): the forest's means, or draws around them."""
        found = self._forest.predict(self._features(wells))
        share = np.expm1(self._components.values(found[:, :-1])).clip(0)
        depth = np.exp(found[:, -1] / self._depth_scale)
        means = share / share.sum(axis=1, keepdims=True) * depth[:, None]
        return np.random.default_rng(self._draws).poisson(means) if self.settings.draw else np.rint(means)

    def _differential_expression(self, wells: pd.DataFrame, counts: Array) -> pd.DataFrame:
        """Signed −log10 p of the predicted conditions, against the real vehicle and beside the real samples."""
        from perturbgen.de import limma_table

        asked = pd.MultiIndex.from_frame(wells[list(KEY)])
        real = self._obs["cell_type"].isin(wells["cell_type"].unique()).to_numpy()
        real &= ~pd.MultiIndex.from_frame(self._obs[list(KEY)]).isin(asked)  # a wanted training condition is predicted
        obs = pd.concat([self._obs[real], wells], ignore_index=True)
        obs.index = pd.Index([f"sample {i}" for i in range(len(obs))])
        values = pd.DataFrame(np.vstack([self._counts[real], counts]), obs.index, self.table.genes)
        table = limma_table(
            values, obs, design=self.settings.design, group="compound", control=self.vehicle, by="cell_type"
        )
        return table.signed_log10_p


def as_dense(values: object) -> Array:
    """Counts as an ordinary array of float64."""
    plain: Any = values.toarray() if sp.issparse(values) else values  # type: ignore[attr-defined]
    return np.asarray(plain, dtype=np.float64)
