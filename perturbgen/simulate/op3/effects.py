"""What compounds do to expression and to survival: low-rank, partly shared between cell types, heavy-tailed.

Real drug signatures (ranks only) as log-fold changes: the semi-real experiment.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from scipy import stats

from perturbgen.core.errors import InputError, SchemaError, shorten
from perturbgen.core.files import require_file
from perturbgen.core.labels import VEHICLE
from perturbgen.simulate.op3.layout import POSITIVE_CONTROLS
from perturbgen.simulate.op3.settings import CELL_TYPES, EffectSettings

# The positive controls are among the strong compounds, not the most toxic ones: quantiles of the strengths.
_POSITIVE_QUANTILES: Final = {"Belinostat": 0.85, "Dabrafenib": 0.75}
# Hazards of compounds, relative to their mean.
_HAZARD: Final = stats.gamma(2.0, scale=0.5)
# Log-sd of how much more or less a cell type answers to a compound, and dies of it, than others.
_SENSITIVITY: Final = 0.25


@dataclass(frozen=True)
class Effects:
    """True effects.

    ``log2_fold_change`` (cell types, compounds, genes) float32; ``compounds`` (index: sm_name): ``strength`` (sd of
    log2 fold changes), ``mechanism``, ``toxic``; ``survival`` (cell types, compounds): share of the cells that survive.
    """

    log2_fold_change: np.ndarray
    compounds: pd.DataFrame
    survival: pd.DataFrame


def invent_effects(
    compounds: list[str],
    genes: int,
    settings: EffectSettings,
    *,
    rng: np.random.Generator,
    order: pd.Series | None,
) -> Effects:
    """Effects of all compounds; ``order`` (by sm_name, may lack some) says who is strong, else chance does."""
    active = [name for name in compounds if name != VEHICLE]
    strength = _deal_strengths(active, settings, rng=rng, order=order)
    mechanism = pd.Series(rng.integers(settings.programmes, size=len(active)), index=active)
    unit = _unit_effects(mechanism, strength, genes, settings, rng=rng)
    sensitivity = np.exp(rng.normal(0, _SENSITIVITY, (len(CELL_TYPES), len(active), 1)))
    active_effects = unit * (strength.to_numpy()[:, None] * sensitivity).astype(np.float32)
    effects = np.zeros((len(CELL_TYPES), len(compounds), genes), dtype=np.float32)
    effects[:, [compounds.index(name) for name in active]] = active_effects
    survival, toxic = _deal_survival(strength, settings, rng=rng)
    table = pd.DataFrame({"strength": strength, "mechanism": mechanism, "toxic": toxic}).reindex(
        compounds
    )
    table = table.fillna({"strength": 0.0, "mechanism": -1}).astype({"mechanism": int})
    table["toxic"] = table["toxic"].eq(True)
    return Effects(effects, table, survival.reindex(columns=compounds, fill_value=1.0))


def _midpoints(count: int) -> np.ndarray:
    """Probabilities (count,) that cut a distribution into equal parts and stand in the middle of each."""
    return (np.arange(count) + 0.5) / count


def _deal_strengths(
    names: list[str],
    settings: EffectSettings,
    *,
    rng: np.random.Generator,
    order: pd.Series | None = None,
) -> pd.Series:
    """Strengths (index: sm_name): the quantiles of a capped log-normal, dealt in the given order, else by chance.

    They are dealt, not drawn, so that experiments of different seeds are equally strong: a table of differential
    expression is made by its dozen strongest compounds. Those that the order lacks get the largest: the compounds
    without a real signature are those whose effects were too toxic for one to be estimated.
    """
    library = [name for name in names if name not in POSITIVE_CONTROLS]
    quantiles = settings.strength * np.exp(
        settings.strength_log_sd * stats.norm.ppf(_midpoints(len(library)))
    )
    quantiles = np.minimum(quantiles, settings.strength_cap)
    place = pd.Series(rng.permutation(len(library)), index=library)
    if order is not None:
        place = order.reindex(library).fillna(np.inf).rank(method="first").astype(int) - 1
    strength = pd.Series(quantiles[place], index=library)
    positive = {
        name: np.quantile(quantiles, q) for name, q in _POSITIVE_QUANTILES.items() if name in names
    }
    return pd.concat([strength, pd.Series(positive, dtype=float)])[names]


def _unit_effects(
    mechanism: pd.Series,
    strength: pd.Series,
    genes: int,
    settings: EffectSettings,
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """Effects of unit variance over genes (cell types, compounds, genes) float32.

    e = sqrt(1 - own) (sqrt(1 - s) programme + sqrt(s) stress) + sqrt(own) u, where s grows with strength, a programme
    is sqrt(shared) (common to the cell types) + sqrt(1 - shared) (of the cell type), and u is shared in the same way.
    """
    scale = np.exp(rng.normal(0, settings.gene_log_sd, genes))
    programmes = _across_cell_types(settings.programmes, scale, settings, rng=rng)
    stress = _across_cell_types(1, scale, settings, rng=rng)
    own = _across_cell_types(len(mechanism), scale, settings, rng=rng)
    loading = np.eye(settings.programmes)[mechanism.to_numpy()]
    loading = loading + rng.normal(0, 0.25, loading.shape)
    loading /= np.linalg.norm(loading, axis=1, keepdims=True)
    s = settings.stress * strength.rank(pct=True).to_numpy()[:, None] ** 2
    effects = np.empty((len(CELL_TYPES), len(mechanism), genes), dtype=np.float32)
    for i in range(len(CELL_TYPES)):
        common = np.sqrt(1 - s) * (loading @ programmes[i]) + np.sqrt(s) * stress[i]
        unit = np.sqrt(1 - settings.own) * common + np.sqrt(settings.own) * own[i]
        effects[i] = unit / unit.std(axis=1, keepdims=True)
    return effects


def level_off(log2_fold_change: np.ndarray, largest: float) -> np.ndarray:
    """Log2 fold changes that approach +-``largest`` smoothly, small ones unchanged: no gene may take over a cell."""
    return (largest * np.tanh(log2_fold_change / largest)).astype(np.float32)


def _draw_genes(
    count: int, scale: np.ndarray, settings: EffectSettings, *, rng: np.random.Generator
) -> np.ndarray:
    """Heavy-tailed gene effects (count, genes): Student t times what each gene's scale (genes,) allows."""
    return (rng.standard_t(settings.tail_df, (count, len(scale))) * scale).astype(np.float32)


def _across_cell_types(
    count: int, scale: np.ndarray, settings: EffectSettings, *, rng: np.random.Generator
) -> np.ndarray:
    """Patterns (cell types, count, genes): sqrt(shared) x a common one + sqrt(1 - shared) x one of the cell type."""
    common = _draw_genes(count, scale, settings, rng=rng)
    patterns = np.empty((len(CELL_TYPES), *common.shape), dtype=np.float32)
    for i in range(len(CELL_TYPES)):
        specific = _draw_genes(count, scale, settings, rng=rng)
        patterns[i] = np.sqrt(settings.shared) * common + np.sqrt(1 - settings.shared) * specific
    return patterns


def _deal_survival(
    strength: pd.Series, settings: EffectSettings, *, rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.Series]:
    """Share of cells surviving (cell types, compounds), and who is toxic: the strongest compounds.

    Survival is exp(-hazard x sensitivity): a hazard for the compound, a sensitivity for the compound in the cell type.
    """
    toxic = strength.rank(pct=True, method="first") > 1 - settings.toxic_fraction
    toxic[[name for name in POSITIVE_CONTROLS if name in toxic.index]] = False
    hazard = _deal_hazards(strength, toxic, settings, rng=rng)
    sensitivity = np.exp(rng.normal(0, _SENSITIVITY, (len(CELL_TYPES), len(strength))))
    alive = np.exp(-hazard.to_numpy() * sensitivity)
    return pd.DataFrame(alive, index=list(CELL_TYPES), columns=strength.index), toxic


def _deal_hazards(
    strength: pd.Series, toxic: pd.Series, settings: EffectSettings, *, rng: np.random.Generator
) -> pd.Series:
    """Hazards by compound, dealt as strengths are: a mild one to anyone, and of the toxic the strongest kills most."""
    killers = strength[toxic].sort_values(kind="stable").index
    mild = rng.permutation(settings.mild_toxicity * _HAZARD.ppf(_midpoints(len(strength))))
    hazard = pd.Series(mild, index=strength.index)
    hazard[killers] += settings.toxicity * _HAZARD.ppf(_midpoints(len(killers)))
    return hazard


# The signatures are of merged cell types: one T cell signature serves the three T types.
_SOURCE: Final = {
    "NK cells": "nk",
    "T cells CD4+": "t",
    "T cells CD8+": "t",
    "T regulatory cells": "t",
    "B cells": "b",
    "Myeloid cells": "myeloid",
}


@dataclass(frozen=True)
class Signatures:
    """Standardised rank scores ``z`` (cells, drugs, genes) of measured responses, and their labels."""

    z: np.ndarray
    cells: tuple[str, ...]
    drugs: tuple[str, ...]
    genes: tuple[str, ...]


def read_signatures(path: str | Path) -> Signatures:
    """Signatures from an NPZ with arrays Z, cells, drugs, genes."""
    path = require_file(path, "signatures NPZ")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ("Z", "cells", "drugs", "genes") if name not in file.files]
            if missing:
                raise SchemaError(
                    f"{path} lacks {shorten(missing)}", expected="arrays Z, cells, drugs, genes"
                )
            labels = {
                name: tuple(str(x) for x in file[name]) for name in ("cells", "drugs", "genes")
            }
            z = file["Z"]
    except (BadZipFile, ValueError, OSError) as error:
        raise InputError(
            f"{path} is not a readable NPZ file: {error}", cause="a download that broke off"
        ) from None
    expected = (len(labels["cells"]), len(labels["drugs"]), len(labels["genes"]))
    if z.shape != expected or not np.isfinite(z).all():
        raise SchemaError(
            f"{path}: Z has shape {z.shape}, or holds NaN", expected=f"shape {expected}, finite"
        )
    absent = sorted(set(_SOURCE.values()) - set(labels["cells"]))
    if absent:
        raise SchemaError(
            f"{path} has no cells {shorten(absent)}",
            expected=", ".join(sorted(set(_SOURCE.values()))),
        )
    return Signatures(z=z, **labels)


def concordance(signatures: Signatures) -> pd.Series:
    """How well a drug's signatures in different cells agree (index: drug); noise agrees with nothing."""
    spread = signatures.z.std(axis=2, keepdims=True)
    z = signatures.z / np.where(spread > 0, spread, 1)
    cells, _, genes = z.shape
    total = np.einsum("cdg,cdg->d", z, z)
    summed = z.sum(axis=0)
    between = (np.einsum("dg,dg->d", summed, summed) - total) / (genes * cells * (cells - 1))
    return pd.Series(between, index=list(signatures.drugs))


def _denoise(z: np.ndarray, rank: int) -> np.ndarray:
    """The best approximation of that rank of all signatures (cells, drugs, genes), stacked over cells and drugs."""
    stacked = z.reshape(-1, z.shape[2]).astype(np.float64)
    values, vectors = np.linalg.eigh(stacked @ stacked.T)
    leading = vectors[:, np.argsort(values)[::-1][:rank]]
    return (leading @ (leading.T @ stacked)).reshape(z.shape)


def _heavy_tailed(scores: np.ndarray, df: float) -> np.ndarray:
    """Scores mapped, row by row and keeping their order, onto the quantiles of Student's t, at unit variance."""
    ranks = stats.rankdata(scores, axis=-1)
    return stats.t.ppf((ranks - 0.5) / scores.shape[-1], df) / np.sqrt(df / (df - 2))


def apply_signatures(
    effects: Effects, signatures: Signatures, genes: list[str], settings: EffectSettings
) -> Effects:
    """Effects in which the drugs and genes with a real signature follow it, at the strength the drug was dealt."""
    compounds = list(effects.compounds.index)
    drugs = [name for name in compounds if name in signatures.drugs]
    gene_at = {name: i for i, name in enumerate(signatures.genes)}
    columns = [i for i, name in enumerate(genes) if name in gene_at]
    if not drugs or not columns:
        raise SchemaError(
            "the signatures share no drug or no gene with the experiment",
            expected="the same compound and gene names",
            fix="give --layout (real compound names) and --baseline (real gene names) too",
        )
    smooth = _denoise(signatures.z, settings.signature_rank)[
        ..., [gene_at[genes[i]] for i in columns]
    ]
    smooth = smooth[:, [signatures.drugs.index(name) for name in drugs]]
    here = np.ix_([compounds.index(name) for name in drugs], columns)
    changed = effects.log2_fold_change.copy()
    for i, cell_type in enumerate(CELL_TYPES):
        unit = _heavy_tailed(smooth[signatures.cells.index(_SOURCE[cell_type])], settings.tail_df)
        changed[i][here] = unit * changed[i][here].std(axis=1, keepdims=True)
    table = effects.compounds.assign(real_signature=effects.compounds.index.isin(drugs))
    return Effects(changed, table, effects.survival)
