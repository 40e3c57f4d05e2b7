"""Real drug signatures, of which only ranks are published: read, denoised, made into effects."""

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
class DrugSignatures:
    """Rank scores ``z`` (cells, drugs, genes), standardised, of measured responses, labelled."""

    z: np.ndarray
    cells: tuple[str, ...]
    drugs: tuple[str, ...]
    genes: tuple[str, ...]

    @classmethod
    def read(cls, path: str | Path) -> DrugSignatures:
        """Signatures from an NPZ with arrays Z, cells, drugs, genes."""
        path, names = require_file(path, "signatures NPZ"), ("cells", "drugs", "genes")
        try:
            with np.load(path, allow_pickle=False) as file:
                missing = [name for name in ("Z", *names) if name not in file.files]
                if missing:
                    raise SchemaError(
                        f"{path} lacks {shorten(missing)}", expected="arrays Z, cells, drugs, genes"
                    )
                labels = {name: tuple(str(x) for x in file[name]) for name in names}
                z = file["Z"]
        except (BadZipFile, ValueError, OSError) as error:
            raise InputError(
                f"{path} is not a readable NPZ file: {error}", cause="a download that broke off"
            ) from None
        expected = tuple(len(labels[name]) for name in names)
        if z.shape != expected or not np.isfinite(z).all():
            raise SchemaError(
                f"{path}: Z has shape {z.shape}, or holds NaN", expected=f"shape {expected}, finite"
            )
        wanted = sorted(set(_SOURCE.values()))
        absent = [name for name in wanted if name not in labels["cells"]]
        if absent:
            raise SchemaError(f"{path} has no cells {shorten(absent)}", expected=", ".join(wanted))
        return cls(z=z, **labels)

    def concordance(self) -> pd.Series:
        """How well a drug's signatures in different cells agree (index: drug)."""
        # the order of the strengths: noise, of a drug without an effect, agrees with nothing
        spread = self.z.std(axis=2, keepdims=True)
        z = self.z / np.where(spread > 0, spread, 1)
        cells, _, genes = z.shape
        total = np.einsum("cdg,cdg->d", z, z)
        summed = z.sum(axis=0)
        between = (np.einsum("dg,dg->d", summed, summed) - total) / (genes * cells * (cells - 1))
        return pd.Series(between, index=list(self.drugs))

    def unit_effects(
        self, drugs: list[str], genes: list[str], *, rank: int, tail_df: float
    ) -> dict[str, np.ndarray]:
        """Effects (drugs, genes) of unit variance in each of the six cell types.

        Signatures are denoised to ``rank`` components, and their order is put on a Student t.
        """
        drug_at, gene_at = ({name: i for i, name in enumerate(x)} for x in (self.drugs, self.genes))
        here = np.ix_([drug_at[name] for name in drugs], [gene_at[name] for name in genes])
        smooth = dict(zip(self.cells, _denoise(self.z, rank), strict=True))
        unit = {name: _heavy_tailed(smooth[name][here], tail_df) for name in set(_SOURCE.values())}
        return {kind: unit[name] for kind, name in _SOURCE.items()}


def _denoise(z: np.ndarray, rank: int) -> np.ndarray:
    """The best approximation of that rank to all signatures (cells, drugs, genes), stacked."""
    stacked = z.reshape(-1, z.shape[2]).astype(np.float64)
    values, vectors = np.linalg.eigh(stacked @ stacked.T)
    leading = vectors[:, np.argsort(values)[::-1][:rank]]
    return (leading @ (leading.T @ stacked)).reshape(z.shape)


def _heavy_tailed(scores: np.ndarray, df: float) -> np.ndarray:
    """Scores mapped row by row, in their order, onto quantiles of Student's t of unit variance."""
    ranks = stats.rankdata(scores, axis=-1)
    # half a rank from either end, where the quantiles are infinite
    return stats.t.ppf((ranks - 0.5) / scores.shape[-1], df) / np.sqrt(df / (df - 2))
