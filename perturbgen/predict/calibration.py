"""What is generated in which experiment: the wanted wells, and twins of measured ones.

The twins are predicted as if nobody had measured them: replicates are counted and factors fitted on
them. Beside them stands a judgement without limma: how likely a model finds cells that it never
saw, under their compound and without it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.tables import CONDITION, conditions_of
from perturbgen.data import CountStore
from perturbgen.generate import CellSampler
from perturbgen.predict.experiment import MeasuredExperiment, PredictSettings
from perturbgen.predict.wells import Wells, vehicle_of, without
from perturbgen.train import CellJudge

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.de import DETable
    from perturbgen.train import TrainedRun

log = logging.getLogger(__name__)

_TWIN: Final = " (generated)"  # ends the compound of measured wells that are generated, too


@dataclass(frozen=True)
class Task:
    """What is generated in which experiment: wanted wells, and twins of measured ones."""

    experiment: MeasuredExperiment
    wanted: Wells
    twins: Wells | None

    @classmethod
    def of(
        cls,
        run: TrainedRun,
        cells: AnnData,
        wanted: pd.MultiIndex,
        settings: PredictSettings,
        *,
        sampler: CellSampler | None = None,
        calibration_run: TrainedRun | None = None,
    ) -> Self:
        """Everything that the estimators need, all bad input found on the way."""
        # Of the cells at hand, which are without those of the wanted conditions.
        sampler = sampler or CellSampler.of(cells, seed=settings.seed)
        sampler.require_unseen(wanted)
        vehicle = vehicle_of(cells)
        options: dict[str, Any] = {"latent": settings.latent, "seed": settings.seed}
        ours = Wells.of(run, cells, sampler, wanted, **options)
        if settings.anchors:
            ours.require_compound()
        kinds = sorted(wanted.get_level_values("cell_type").unique())
        recipe = {"flavour": settings.flavour, "design": settings.design}
        experiment = MeasuredExperiment.of(cells, kinds, vehicle=vehicle, **recipe)
        samples = experiment.real.obs
        found = set(samples.loc[samples["compound"] == vehicle, "cell_type"])
        absent = [kind for kind in kinds if kind not in found]
        if absent:
            raise SchemaError(
                f"no well of the vehicle {vehicle!r} has cells of type {shorten(absent)}",
                expected="real controls of every cell type to predict, which the DE compares with",
            )
        if settings.needs_measured:
            _require_measured(kinds, samples.loc[samples["compound"] != vehicle, "cell_type"])
        if not settings.calibrates:
            return cls(experiment, ours, None)
        twin_run, real = calibration_run or run, experiment.measured
        twin_conditions = _calibration_conditions(twin_run, cells.obs, real, kinds, vehicle=vehicle)
        others = twin_run.in_genes(cells)
        if settings.latent == "posterior":
            # A latent point of a twin's own cell would tell of its compound.
            others = without(others, twin_conditions)
        # Wells that this run never saw are drawn by a sampler that never saw them either: cell
        # numbers that it has seen it foretells better (RMSE of their logarithms .336, and .402 of
        # unseen ones).
        trained = trained_conditions(twin_run, cells.obs)
        untrained = twin_conditions[~twin_conditions.isin(trained)]
        fair = sampler.without(untrained, seed=settings.seed)
        twins = Wells.of(twin_run, others, fair, twin_conditions, suffix=_TWIN, **options)
        return cls(experiment, ours, twins)

    @property
    def genes(self) -> pd.Index:
        """All genes."""
        return self.experiment.real.var_names

    @property
    def groups(self) -> list[Wells]:
        """All that is generated."""
        return [self.wanted] if self.twins is None else [self.wanted, self.twins]

    @property
    def conditions(self) -> pd.MultiIndex:
        """Their labels, those of twins with a suffix."""
        first, *rest = (group.conditions for group in self.groups)
        return first.append(rest) if rest else first

    @property
    def truth(self) -> pd.DataFrame:
        """The measured signed -log10 p of the twins' conditions, under the twins' labels."""
        assert self.twins is not None
        twin_conditions = pd.MultiIndex.from_frame(self.twins.plan.conditions)
        measured = self.experiment.measured.signed_log10_p.loc[twin_conditions]
        return measured.set_axis(self.twins.conditions).fillna(0.0)


def _calibration_conditions(
    run: TrainedRun, obs: pd.DataFrame, real: DETable, kinds: list[str], *, vehicle: str
) -> pd.MultiIndex:
    """The cell types' measured conditions that the run was not trained on; else all.

    All of them flatter: a model knows the conditions that it was trained on better than others, and
    factors fitted there are too large. That is a warning. The vehicle and positive controls are no
    calibration conditions.
    """
    answered = real.t.index[real.t.notna().any(axis=1)]
    # A joint fit has other types, too.
    answered = answered[answered.get_level_values(0).isin(kinds)]
    labels = conditions_of(obs)
    # Positive controls have strong effects that usual compounds have not.
    controls = {vehicle}
    if "control" in obs:
        flagged = obs["control"].astype(str).str.lower().isin(["true", "1"]).to_numpy()
        controls |= set(labels.get_level_values(1)[flagged])
    usual = ~answered.get_level_values(1).isin(sorted(controls)) & answered.isin(labels)
    chosen = answered[usual]
    _require_measured(kinds, chosen.get_level_values(0))
    measured = pd.MultiIndex.from_tuples(sorted(chosen), names=CONDITION)
    untrained = measured[~measured.isin(trained_conditions(run, obs))]
    # Factors are fitted by cell type: each needs a condition.
    if set(untrained.get_level_values(0)) == set(kinds):
        return untrained
    log.warning(
        "%s was trained on the measured conditions of %s: factors fitted on them are too large "
        "(--calibration-run names a run that has not seen them; split --kind calibration)",
        run.path,
        shorten(kinds),
    )
    return measured


def _require_measured(kinds: Iterable[str], found: Iterable[str]) -> None:
    """Refuse cell types of which no compound was found to be measured."""
    measured = set(found)
    absent = [kind for kind in kinds if kind not in measured]
    if absent:
        raise SchemaError(
            f"no compound was measured in {shorten(absent)}",
            expected="one or more measured conditions of every cell type, "
            "for standard errors or to calibrate on",
            fix="use the estimator mean_t with a number of replicates: "
            "--estimator mean_t --replicates 10",
        )


def trained_conditions(run: TrainedRun, obs: pd.DataFrame) -> pd.MultiIndex:
    """The conditions of the cells that the run was trained on."""
    parts = run.parts()
    trained = obs.index.astype(str).isin(parts.index[parts == "train"].astype(str))
    return conditions_of(obs[trained]).unique()


def withheld_likelihood(
    run: TrainedRun,
    cells: AnnData,
    *,
    samples: int = 32,
    most: int = 50,
    seed: int = 0,
    vehicle: str | None = None,
) -> pd.DataFrame:
    """By condition: ``cells``, ``nll`` in nats per gene and cell, ``gain`` of the compound.

    log p(x | c) of withheld cells, integrated over the latent space by importance sampling; the
    gain is what it exceeds the same under the vehicle by, in nats a cell. At most ``most`` cells of
    a condition are looked at.
    """
    cells = run.in_genes(cells)
    rng = np.random.default_rng([5, seed])
    # Some cells of each condition, since importance sampling decodes each of them many times.
    order = pd.Series(rng.permutation(cells.n_obs), conditions_of(cells.obs))
    cells = cells[order.groupby(level=[0, 1]).rank().to_numpy() <= most].copy()
    under = _log_likelihoods(run, cells, samples=samples, seed=seed)
    untreated = cells.copy()
    # The same cells under another label: what the model makes of the compound, nothing else.
    untreated.obs["compound"] = vehicle or vehicle_of(cells)
    under_vehicle = _log_likelihoods(run, untreated, samples=samples, seed=seed)
    columns = {"nll": -under / cells.n_vars, "gain": under - under_vehicle}
    table = pd.DataFrame(columns, conditions_of(cells.obs)).groupby(level=[0, 1])
    return table.mean().assign(cells=table.size())[["cells", "nll", "gain"]]


def _log_likelihoods(run: TrainedRun, cells: AnnData, *, samples: int, seed: int) -> np.ndarray:
    """Log p(x | c) of every cell, (cells,), in nats."""
    store = CountStore.from_adata(cells.copy()).with_covariates(run.card.covariates)
    store = store.to(next(run.model.parameters()).device)
    return CellJudge(run, store).log_likelihoods(samples=samples, seed=seed)
