"""Real drug signatures (ranks only) as log-fold changes: the semi-real experiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from scipy import stats

from perturbgen.errors import InputError, SchemaError, shorten
from perturbgen.files import require_file
from perturbgen.simulate.effects import Effects
from perturbgen.simulate.settings import CELL_TYPES, EffectSettings

# The signatures are of merged cell types: one T cell signature serves the three T types.
SOURCE: Final = {
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
                raise SchemaError(f"{path} lacks {shorten(missing)}", expected="arrays Z, cells, drugs, genes")
            labels = {name: tuple(str(x) for x in file[name]) for name in ("cells", "drugs", "genes")}
            z = file["Z"]
    except (BadZipFile, ValueError, OSError) as error:
        raise InputError(f"{path} is not a readable NPZ file: {error}", cause="a download that broke off") from None
    expected = (len(labels["cells"]), len(labels["drugs"]), len(labels["genes"]))
    if z.shape != expected or not np.isfinite(z).all():
        raise SchemaError(f"{path}: Z has shape {z.shape}, or holds NaN", expected=f"shape {expected}, finite")
    absent = sorted(set(SOURCE.values()) - set(labels["cells"]))
    if absent:
        raise SchemaError(f"{path} has no cells {shorten(absent)}", expected=", ".join(sorted(set(SOURCE.values()))))
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


def denoise(z: np.ndarray, rank: int) -> np.ndarray:
    """The best approximation of that rank of all signatures (cells, drugs, genes), stacked over cells and drugs."""
    stacked = z.reshape(-1, z.shape[2]).astype(np.float64)
    values, vectors = np.linalg.eigh(stacked @ stacked.T)
    leading = vectors[:, np.argsort(values)[::-1][:rank]]
    return (leading @ (leading.T @ stacked)).reshape(z.shape)


def heavy_tailed(scores: np.ndarray, df: float) -> np.ndarray:
    """Scores mapped, row by row and keeping their order, onto the quantiles of Student's t, at unit variance."""
    ranks = stats.rankdata(scores, axis=-1)
    return stats.t.ppf((ranks - 0.5) / scores.shape[-1], df) / np.sqrt(df / (df - 2))


def apply_signatures(effects: Effects, signatures: Signatures, genes: list[str], settings: EffectSettings) -> Effects:
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
    smooth = denoise(signatures.z, settings.signature_rank)[..., [gene_at[genes[i]] for i in columns]]
    smooth = smooth[:, [signatures.drugs.index(name) for name in drugs]]
    here = np.ix_([compounds.index(name) for name in drugs], columns)
    changed = effects.log2_fold_change.copy()
    for i, cell_type in enumerate(CELL_TYPES):
        unit = heavy_tailed(smooth[signatures.cells.index(SOURCE[cell_type])], settings.tail_df)
        changed[i][here] = unit * changed[i][here].std(axis=1, keepdims=True)
    table = effects.compounds.assign(real_signature=effects.compounds.index.isin(drugs))
    return Effects(changed, table, effects.survival)
