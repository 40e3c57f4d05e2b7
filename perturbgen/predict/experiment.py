"""The experiment that generated wells join: its settings, its real samples, the fit of it all."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
from pydantic import Field, model_validator

from perturbgen.core.config import Settings
from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.stats import log_cpm
from perturbgen.core.tables import CONDITION, conditions_of
from perturbgen.data import groups_of, pseudobulk
from perturbgen.de import FLAVOURS, flavour_table, limma_table, usual_design
from perturbgen.generate import WELL, Route
from perturbgen.predict.wells import Wells

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.de import DETable

Estimator = Literal["mean_t", "anchored_t", "plug_in", "shrunk", "shrunk_mean", "shrunk_plug_in"]

log = logging.getLogger(__name__)

_DEPTH: Final = (0.7, 1.4)  # outside, the low-count genes of the fit are ruined
_VARIANCE: Final = (0.5, 2.0)
_FEWEST_COUNTS: Final = 5.0  # mean counts, of genes that are looked at
_FEWEST_GENES: Final = 10
_KAGGLE: Final = {"donor", "plate", "row"}  # what that flavour's design asks for
_REPLICATES: Final = 10  # where nothing says when they are enough


class PredictSettings(Settings):
    """How a prediction is made."""

    estimators: tuple[Estimator, ...] = ("shrunk",)
    # None: until the calibration conditions gain no more, ``most`` at the most
    replicates: Annotated[int, Field(ge=1)] | None = None
    most: Annotated[int, Field(ge=1)] = 20
    latent: Route = "control"
    # None: the design, or where there is none either, "kaggle" for cells that have what it asks for
    # (donor, plate, row), and for others the group with whatever else tells samples apart
    flavour: Literal["kaggle", "op3"] | None = None
    design: str | None = None
    levels: Annotated[int, Field(ge=1)] = 5  # of expression, each with a factor of its own
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def one_recipe(self) -> PredictSettings:
        """A design or a flavour, whose design is its own."""
        if self.design is not None and self.flavour is not None:
            raise ValueError(f"design and flavour {self.flavour!r}: a flavour has its own design")
        if self.design is not None and "{group}" not in self.design:
            raise ValueError(
                f'design {self.design!r} does not have {{group}}, such as "~0 + {{group}} + donor"'
            )
        return self

    def feasible(self, obs: pd.DataFrame, wanted: pd.MultiIndex, *, vehicle: str) -> Self:
        """These settings, or where nothing measured can calibrate them, some that need nothing.

        Nothing can where a cell type to predict has no other compound than the vehicle and those
        that are asked for.
        """
        labels = conditions_of(obs).unique()
        other = ~labels.isin(wanted) & (labels.get_level_values(1) != vehicle)
        kinds = wanted.get_level_values(0).unique()
        alone = kinds[~kinds.isin(labels[other].get_level_values(0))]
        if not self.needs_measured or alone.empty:
            return self
        chosen: dict[str, Any] = {"estimators": ("anchored_t",)}
        chosen["replicates"] = self.replicates or _REPLICATES
        log.info(
            "no other compound was measured in %s, which could say how far to trust the model: "
            "estimator anchored_t, %d replicates",
            shorten(alone, 3),
            chosen["replicates"],
        )
        return self.model_copy(update=chosen)

    def needs(self, *names: Estimator) -> bool:
        """Whether one of the estimators is among these."""
        return any(name in names for name in self.estimators)

    @property
    def draws(self) -> bool:
        """Whether replicates are drawn."""
        return self.needs("mean_t", "anchored_t", "shrunk", "shrunk_mean")

    @property
    def anchors(self) -> bool:
        """Whether vehicle wells are generated beside those of the compounds."""
        return self.needs("anchored_t", "shrunk")

    @property
    def shrinks(self) -> bool:
        """Whether predictions are shrunk."""
        return self.needs("shrunk", "shrunk_mean", "shrunk_plug_in")

    @property
    def calibrates(self) -> bool:
        """Whether measured conditions are generated beside the wanted ones."""
        return self.shrinks or (self.replicates is None and self.draws)

    @property
    def needs_measured(self) -> bool:
        """Whether measured compounds of the same types are needed, for errors or calibration."""
        return self.calibrates or self.needs("plug_in")


@dataclass(frozen=True)
class MeasuredExperiment:
    """Real samples (plate x well x cell type), what is true of every well, and the fit."""

    real: AnnData
    well_obs: pd.DataFrame
    vehicle: str
    flavour: str | None
    design: str | None = None

    @classmethod
    def of(
        cls,
        cells: AnnData,
        kinds: Sequence[str],
        *,
        vehicle: str,
        flavour: str | None,
        design: str | None = None,
    ) -> MeasuredExperiment:
        """Of the measured cells of some cell types, of all where the flavour fits them jointly.

        Generated wells get the labels of their well's other cells.
        """
        # From all cells, before types are chosen: a wanted type may have none in a well.
        _, well_obs = groups_of(cells.obs, WELL)
        # of one type alone, it is constant in a well, too, and is yet no label of it
        well_obs = well_obs.drop(columns="cell_type", errors="ignore")
        if flavour is None and design is None and set(well_obs) >= _KAGGLE:
            flavour = "kaggle"
        joint = flavour is not None and FLAVOURS[flavour].get("joint", False)
        fitted = joint | cells.obs["cell_type"].astype(str).isin(kinds).to_numpy()
        real = pseudobulk(cells[fitted], by=[*WELL, "cell_type"])
        columns = [name for name in (*well_obs, "cell_type", "n_cells") if name in real.obs]
        real.obs = _as_text(real.obs[columns])
        return cls(real, _as_text(well_obs), vehicle, flavour, design)

    def clipped(self, values: pd.DataFrame) -> pd.DataFrame:
        """Signed -log10 p within the flavour's limit, as what is measured is."""
        # The benchmark limits what was measured, and predictions are compared with that.
        limit = None if self.flavour is None else FLAVOURS[self.flavour]["clip"]
        return values if limit is None else values.clip(-limit, limit)

    @cached_property
    def measured(self) -> DETable:
        """The fit of the real samples alone."""
        return self.fit()

    def fit(self, *samples: AnnData, **options: Any) -> DETable:
        """The fit of the real samples and others; ``options`` are those of ``flavour_table``."""
        from anndata import AnnData

        everything = [self.real, *samples]
        counts = sp.vstack([sp.csr_array(part.X) for part in everything], format="csr")
        obs = pd.concat([part.obs for part in everything])
        joined = AnnData(counts, obs=obs, var=pd.DataFrame(index=self.real.var_names))
        if self.flavour is not None:
            return flavour_table(joined, flavour=self.flavour, control=self.vehicle, **options)
        asked: dict[str, Any] = {"group": "compound", "control": self.vehicle, "by": "cell_type"}
        design = self.design or usual_design(obs, **asked)
        log.debug("design %s", design)
        return limma_table(joined, design=design, **asked, **options)

    def draw(self, wells: Wells, *, replicate: int) -> AnnData:
        """Generated samples of a replicate."""
        sums, cells = wells.generator.drawn_sums(wells.plan, wells.wells, replicate=replicate)
        return self.samples(wells, sums, cells)

    def require_estimable(self, table: DETable, drawn: AnnData) -> None:
        """Refuse a design under which no condition of some drawn samples can be compared.

        Where some can, the others are a warning: they have no answer, and are predicted as 0.
        """
        conditions = conditions_of(drawn.obs).unique()
        answered = table.t.index[table.t.notna().any(axis=1)]
        known = conditions[conditions.isin(answered)]
        lost = conditions.difference(known)
        if lost.empty:
            return
        design = self.design or (f"of flavour {self.flavour}" if self.flavour else "chosen here")
        # Of a column whose levels have one compound each nothing is left to compare.
        obs = pd.concat([self.real.obs, drawn.obs])
        inside = [name for name in obs if name not in (*CONDITION, "n_cells")]
        pairs = {name: obs[[name, "compound"]].drop_duplicates() for name in inside}
        alike = [
            str(name)
            for name, pair in pairs.items()
            if re.search(rf"\b{re.escape(str(name))}\b", design)
            and not pair[name].duplicated().any()
        ]
        what = f"design {design}: {len(lost)} of {len(conditions)} conditions cannot be compared"
        names = shorten([" | ".join(key) for key in lost], 3)
        cause = "a column that tells compounds apart, or no samples left to know an error from"
        if alike:
            cause = f"each value of {shorten(alike)} has samples of one compound alone"
        if known.empty:
            raise SchemaError(
                f"{what} with {self.vehicle!r}: {names}",
                expected="columns whose values have samples of compounds and of the vehicle",
                cause=cause,
                fix='another --design, such as "~0 + {group}", or none: then one is chosen',
            )
        log.warning("%s, and are predicted as 0: %s (%s)", what, names, cause)

    def check(self, generated: AnnData) -> pd.DataFrame:
        """Whether generated samples are like the real ones where limma is sensitive, by cell type.

        The ratios of generated to real ``depth`` (counts a cell) and ``variance``.
        """
        return _check_generated(generated, self.real, vehicle=self.vehicle)

    def samples(self, group: Wells, sums: sp.csr_array | np.ndarray, cells: np.ndarray) -> AnnData:
        """Samples of sums (wells, genes), labelled as their wells; none where no cell is."""
        from anndata import AnnData

        # A donor that lost its cells is missing from a real experiment, too.
        keep = np.flatnonzero((cells > 0) & (np.asarray(sums.sum(axis=1)).ravel() > 0))
        wells = group.wells.iloc[keep]
        place = [*WELL, "cell_type"]
        own = wells[place].astype(str).reset_index(drop=True)
        obs = own.merge(self.well_obs, on=WELL, how="left", validate="many_to_one")
        obs["compound"] = wells["compound"].astype(str).to_numpy() + group.suffix
        obs["n_cells"] = cells[keep]
        obs.index = pd.Index(
            obs[place].agg("|".join, axis=1)
            + "|"
            + wells["compound"].astype(str).to_numpy()
            + f"|generated{group.suffix}"
        )
        obs = obs[[name for name in self.real.obs if name in obs]]
        genes = pd.DataFrame(index=group.generator.genes)
        made = AnnData(sp.csr_array(sums[keep]), obs=obs, var=genes)
        if made.var_names.equals(self.real.var_names):
            return made
        # A calibration run may have its genes in another order.
        return made[:, self.real.var_names].copy()


def _as_text(obs: pd.DataFrame) -> pd.DataFrame:
    """Labels as text, so that those of real and of generated samples join."""
    return obs.astype({name: str for name in obs.columns if name != "n_cells"})


def _check_generated(generated: AnnData, real: AnnData, *, vehicle: str) -> pd.DataFrame:
    """Ratios of generated to real samples by cell type: ``depth`` (counts a cell) and ``variance``.

    The variance is that within conditions. Far from that of the controls it means that noise is
    missing (means in place of draws) or too much. Both are warnings with the numbers.
    """
    rows = {}
    for kind, obs in generated.obs.groupby("cell_type"):
        ours, theirs = generated[obs.index], real[real.obs["cell_type"] == kind]
        controls = theirs[theirs.obs["compound"] == vehicle]
        rows[str(kind)] = {
            "depth": _depth_per_cell(ours) / _depth_per_cell(theirs),
            "variance": _variance_ratio(ours, controls),
        }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["depth", "variance"])
    table = table.rename_axis("cell_type")
    for name, (low, high) in (("depth", _DEPTH), ("variance", _VARIANCE)):
        bad = table[name][~table[name].between(low, high) & table[name].notna()]
        if len(bad):
            found = shorten([f"{kind} {value:.2f}" for kind, value in bad.items()])
            log.warning("generated over real %s is outside [%g, %g]: %s", name, low, high, found)
    return table


def _depth_per_cell(samples: AnnData) -> float:
    return float(samples.X.sum() / max(samples.obs["n_cells"].sum(), 1))


def _variance_ratio(generated: AnnData, controls: AnnData) -> float:
    """Median over genes of the ratio of variances of log2 CPM, generated to controls.

    Both are freed of the plates' own levels, which are the controls' means, and set against the
    counts that a sample has of a gene: a sample of few cells varies more, and vehicle samples have
    many.
    """
    enough = [_mean_counts(samples) >= _FEWEST_COUNTS for samples in (controls, generated)]
    genes = np.flatnonzero(enough[0] & enough[1])
    # A variance within plates needs two controls on one.
    plates = controls.obs["plate"].astype(str)
    if len(genes) < _FEWEST_GENES or (plates.value_counts() < 2).all():
        return float("nan")
    base, ours = _log_cpm_by_plate(controls, genes), _log_cpm_by_plate(generated, genes)
    level = base.groupby(level=0).mean()
    # A plate without controls has no level to be freed of.
    known = ours.index.isin(level.index)
    ours = (ours - level.reindex(ours.index))[known]
    compound = generated.obs["compound"].astype(str).to_numpy()
    expected = _expected_counts(generated, genes, compound)[known]
    own = _pooled_variance(ours, compound[known], expected)
    plate = base.index.to_numpy()
    ratio = own / _pooled_variance(base, plate, _expected_counts(controls, genes, plate))
    return float(np.nanmedian(ratio)) if np.isfinite(ratio).any() else float("nan")


def _mean_counts(samples: AnnData) -> np.ndarray:
    return np.asarray(samples.X.mean(axis=0)).ravel() if samples.n_obs else np.zeros(samples.n_vars)


def _expected_counts(samples: AnnData, genes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Counts (samples, genes) if all samples of a group were alike but for their depth."""
    counts = pd.DataFrame(sp.csr_array(samples.X)[:, genes].toarray())
    total = pd.Series(np.asarray(samples.X.sum(axis=1)).ravel(), dtype=float)
    share = counts.groupby(groups).transform("sum").div(total.groupby(groups).transform("sum"), 0)
    return share.mul(total, 0).to_numpy()


def _log_cpm_by_plate(samples: AnnData, genes: np.ndarray) -> pd.DataFrame:
    counts = sp.csr_array(samples.X)
    total = np.asarray(counts.sum(axis=1)).ravel()
    plates = samples.obs["plate"].astype(str).to_numpy()
    return pd.DataFrame(log_cpm(counts[:, genes].toarray(), total), plates)


def _pooled_variance(values: pd.DataFrame, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted variance (genes,) within groups of rows (samples, genes), pooled."""
    table = values.to_numpy()
    codes, names = pd.factorize(groups)
    freedom = len(table) - len(names)
    if freedom <= 0:
        return np.full(table.shape[1], np.nan)
    means = pd.DataFrame(table).groupby(codes).mean().to_numpy()
    return (weights * (table - means[codes]) ** 2).sum(axis=0) / freedom
