"""The seed's baseline: a random forest on pseudobulk counts, then limma."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import scipy.sparse as sp
from pydantic import Field

from perturbgen.baselines.base import Baseline, ConditionList, TrainTable, one_hot
from perturbgen.baselines.features import Components
from perturbgen.baselines.registry import make
from perturbgen.core.config import Settings
from perturbgen.core.errors import ConfigError, SchemaError, shorten, suggest
from perturbgen.core.tables import CONDITION, conditions_of

if TYPE_CHECKING:
    from anndata import AnnData


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
        self._fallback = make("cell_type_mean").fit(table.frame, rng=rng)

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
        self._forest.n_jobs = 1  # threads add up in the order they end, which the last bit shows

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
