"""What compounds do to expression and to survival: low-rank, shared in part, heavy-tailed.

Invented, or in the semi-real experiment the log fold changes that real drug signatures (of which
only ranks are published) may stand for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd
from scipy import stats

from perturbgen.core.errors import SchemaError
from perturbgen.core.tables import VEHICLE
from perturbgen.simulation.op3.layout import POSITIVE_CONTROLS
from perturbgen.simulation.op3.settings import CELL_TYPES, SimulationSettings
from perturbgen.simulation.op3.signatures import DrugSignatures

# Quantiles of the strengths: the positive controls are strong, but not the most toxic.
_POSITIVE_QUANTILES: Final = {"Belinostat": 0.85, "Dabrafenib": 0.75}
# Hazards of compounds, relative to their mean.
_HAZARD: Final = stats.gamma(2.0, scale=0.5)
# Log-sd of how much more or less a cell type answers to a compound, and dies of it, than others.
# At .4 the NK quartiles of the table differed by a factor of 1.6 between seeds.
_SENSITIVITY: Final = 0.25


@dataclass(frozen=True)
class Effects:
    """True effects.

    * ``log2_fold_change`` (cell types, compounds, genes), float32;
    * ``compounds`` (index: sm_name): ``strength`` (sd of log2 fold changes), ``mechanism``,
      ``toxic``;
    * ``survival`` (cell types, compounds): share of the cells that survive.
    """

    log2_fold_change: np.ndarray
    compounds: pd.DataFrame
    survival: pd.DataFrame

    @classmethod
    def draw(
        cls,
        compounds: list[str],
        genes: list[str],
        settings: SimulationSettings,
        signatures: DrugSignatures | None,
        measured: pd.Series | None = None,
        *,
        rng: np.random.Generator,
    ) -> Effects:
        """Of all compounds on all genes; real signatures replace invented ones where given.

        ``measured`` are mean square effects of real compounds (index: sm_name), which say how
        strong the compounds are in place of the law in the settings.
        """
        order = signatures.concordance() if signatures else None
        effects = _invent_effects(
            compounds, len(genes), settings, rng=rng, order=order, measured=measured
        )
        if signatures:
            effects = _apply_signatures(effects, signatures, genes, settings)
        answers = np.array([settings.effects.cell_types[name] for name in CELL_TYPES])
        scaled = effects.log2_fold_change * answers.astype(np.float32)[:, None, None]
        levelled = _level_off(scaled, settings.effects.largest_change)
        return replace(effects, log2_fold_change=levelled)


def _level_off(log2_fold_change: np.ndarray, largest: float) -> np.ndarray:
    """Log2 fold changes that approach +-``largest`` smoothly, small ones unchanged."""
    # without a ceiling one gene took over a cell, at log2 fold changes of 20
    return (largest * np.tanh(log2_fold_change / largest)).astype(np.float32)


def _invent_effects(
    compounds: list[str],
    genes: int,
    settings: SimulationSettings,
    *,
    rng: np.random.Generator,
    order: pd.Series | None,
    measured: pd.Series | None = None,
) -> Effects:
    """Effects of all compounds; ``order`` (by sm_name, may lack some) says which are strong."""
    active = [name for name in compounds if name != VEHICLE]
    strength = _deal_strengths(active, settings, rng=rng, order=order, measured=measured)
    mechanism = pd.Series(rng.integers(settings.effects.programmes, size=len(active)), index=active)
    unit = _unit_effects(mechanism, strength, genes, settings, rng=rng)
    sensitivity = np.exp(rng.normal(0, _SENSITIVITY, (len(CELL_TYPES), len(active), 1)))
    active_effects = unit * (strength.to_numpy()[:, None] * sensitivity).astype(np.float32)
    effects = np.zeros((len(CELL_TYPES), len(compounds), genes), dtype=np.float32)
    effects[:, [compounds.index(name) for name in active]] = active_effects
    survival, toxic = _deal_survival(strength, settings, rng=rng)
    table = pd.DataFrame({"strength": strength, "mechanism": mechanism, "toxic": toxic})
    table = table.reindex(compounds).fillna({"strength": 0.0, "mechanism": -1})
    table = table.astype({"mechanism": int})
    table["toxic"] = table["toxic"].eq(True)
    return Effects(effects, table, survival.reindex(columns=compounds, fill_value=1.0))


def _midpoints(count: int) -> np.ndarray:
    """Probabilities (count,) in the middles of equal parts of a distribution."""
    return (np.arange(count) + 0.5) / count


def _deal_strengths(
    names: list[str],
    settings: SimulationSettings,
    *,
    rng: np.random.Generator,
    order: pd.Series | None = None,
    measured: pd.Series | None = None,
) -> pd.Series:
    """Strengths (index: sm_name): the quantiles of a capped log-normal, dealt in the given order.

    Without an order chance deals them. Measured compounds have their own strength instead; where
    none of them is here, their strengths are the quantiles that are dealt.
    """
    if measured is not None:
        strength = _measured_strengths(measured, settings)
        if set(names) & set(strength.index):
            # a compound without a measured effect left too few cells for one: the strongest
            return strength.reindex(names).fillna(strength.max())
    # Dealt, not drawn: a DE table is made by its dozen strongest compounds, so that with drawn
    # strengths three seeds gave tables of a mean of .45, .51 and .16; dealt, of .35, .36 and .39.
    library = [name for name in names if name not in POSITIVE_CONTROLS]
    quantiles = settings.effects.strength * np.exp(
        settings.effects.strength_log_sd * stats.norm.ppf(_midpoints(len(library)))
    )
    quantiles = np.minimum(quantiles, settings.effects.strength_cap)
    if measured is not None:
        quantiles = np.quantile(strength, _midpoints(len(library)))
    place = pd.Series(rng.permutation(len(library)), index=library)
    if order is not None:
        # Compounds without a real signature were too toxic for one to be estimated: the strongest.
        place = order.reindex(library).fillna(np.inf).rank(method="first").astype(int) - 1
    strength = pd.Series(quantiles[place], index=library)
    positive = {
        name: np.quantile(quantiles, q) for name, q in _POSITIVE_QUANTILES.items() if name in names
    }
    return pd.concat([strength, pd.Series(positive, dtype=float)])[names]


def _measured_strengths(measured: pd.Series, settings: SimulationSettings) -> pd.Series:
    """Strengths of real compounds: what their mean square effects have above those of noise."""
    signal, cap = (
        np.sqrt(np.maximum(measured - settings.effects.noise, 0)),
        settings.effects.strength_cap,
    )
    # smoothly: equal strengths would lose which compound kills most
    return pd.Series(cap * np.tanh(settings.effects.scale * signal / cap), measured.index)


def _unit_effects(
    mechanism: pd.Series,
    strength: pd.Series,
    genes: int,
    settings: SimulationSettings,
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """Effects of unit variance over genes (cell types, compounds, genes) float32.

    e = sqrt(1 - own) (sqrt(1 - s) programme + sqrt(s) stress) + sqrt(own) u, where s grows with
    strength, a programme is sqrt(shared) (common to the cell types) + sqrt(1 - shared) (of the cell
    type), and u is shared in the same way.
    """
    about = settings.effects
    scale = np.exp(rng.normal(0, about.gene_log_sd, genes))
    programmes = _across_cell_types(about.programmes, scale, settings, rng=rng)
    stress = _across_cell_types(1, scale, settings, rng=rng)
    own = _across_cell_types(len(mechanism), scale, settings, rng=rng)
    loading = np.eye(about.programmes)[mechanism.to_numpy()]
    # compounds of one mechanism are alike, not equal
    loading = loading + rng.normal(0, 0.25, loading.shape)
    loading /= np.linalg.norm(loading, axis=1, keepdims=True)
    # squared: the stress is that of the strongest compounds, hardly of the median one
    s = about.stress * strength.rank(pct=True).to_numpy()[:, None] ** 2
    effects = np.empty((len(CELL_TYPES), len(mechanism), genes), dtype=np.float32)
    for i in range(len(CELL_TYPES)):
        common = np.sqrt(1 - s) * (loading @ programmes[i]) + np.sqrt(s) * stress[i]
        unit = np.sqrt(1 - about.own) * common + np.sqrt(about.own) * own[i]
        # the size of an effect is its strength's alone
        effects[i] = unit / unit.std(axis=1, keepdims=True)
    return effects


def _across_cell_types(
    count: int, scale: np.ndarray, settings: SimulationSettings, *, rng: np.random.Generator
) -> np.ndarray:
    """Patterns (cell types, count, genes): sqrt(shared) common + sqrt(1 - shared) specific.

    Both are heavy-tailed: Student t times what each gene's ``scale`` (genes,) allows.
    """
    shared = settings.effects.shared

    def draw() -> np.ndarray:
        t = rng.standard_t(settings.effects.tail_df, (count, len(scale)))
        return (t * scale).astype(np.float32)

    common = draw()
    patterns = np.empty((len(CELL_TYPES), *common.shape), dtype=np.float32)
    for i in range(len(CELL_TYPES)):
        patterns[i] = np.sqrt(shared) * common + np.sqrt(1 - shared) * draw()
    return patterns


def _deal_survival(
    strength: pd.Series, settings: SimulationSettings, *, rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.Series]:
    """Share of cells that survive (cell types, compounds), and which compounds are toxic.

    Survival is exp(-hazard x sensitivity): a hazard for the compound, a sensitivity for the
    compound in the cell type. The strongest compounds are the toxic ones.
    """
    toxic = strength.rank(pct=True, method="first") > 1 - settings.effects.toxic_fraction
    # positive controls are measured in every cell type, so that they must leave cells
    toxic &= ~toxic.index.isin(POSITIVE_CONTROLS)
    hazard = _deal_hazards(strength, toxic, settings, rng=rng)
    sensitivity = np.exp(rng.normal(0, _SENSITIVITY, (len(CELL_TYPES), len(strength))))
    frailty = np.array([settings.effects.frailty[name] for name in CELL_TYPES])[:, None]
    alive = np.exp(-hazard.to_numpy() * sensitivity * frailty)
    return pd.DataFrame(alive, index=list(CELL_TYPES), columns=strength.index), toxic


def _deal_hazards(
    strength: pd.Series, toxic: pd.Series, settings: SimulationSettings, *, rng: np.random.Generator
) -> pd.Series:
    """Hazards by compound, dealt as strengths are; of the toxic ones the strongest kills most."""
    about = settings.effects
    killers = strength[toxic].sort_values(kind="stable").index
    mild = rng.permutation(about.mild_toxicity * _HAZARD.ppf(_midpoints(len(strength))))
    hazard = pd.Series(mild, index=strength.index)
    hazard[killers] += about.toxicity * _HAZARD.ppf(_midpoints(len(killers)))
    return hazard


def _apply_signatures(
    effects: Effects, signatures: DrugSignatures, genes: list[str], settings: SimulationSettings
) -> Effects:
    """Effects in which drugs and genes with a real signature follow it, at the dealt strength."""
    compounds = list(effects.compounds.index)
    drugs = [name for name in compounds if name in signatures.drugs]
    known = set(signatures.genes)
    columns = [i for i, name in enumerate(genes) if name in known]
    if not drugs or not columns:
        raise SchemaError(
            "the signatures share no drug or no gene with the experiment",
            expected="the same compound and gene names",
            fix="give --plan (real compound names) and --means (real gene names) too",
        )
    about, named = settings.effects, [genes[i] for i in columns]
    here = np.ix_([compounds.index(name) for name in drugs], columns)
    unit = signatures.unit_effects(drugs, named, rank=about.signature_rank, tail_df=about.tail_df)
    changed = effects.log2_fold_change.copy()
    for i, cell_type in enumerate(CELL_TYPES):
        changed[i][here] = unit[cell_type] * changed[i][here].std(axis=1, keepdims=True)
    table = effects.compounds.assign(real_signature=effects.compounds.index.isin(drugs))
    return Effects(changed, table, effects.survival)
