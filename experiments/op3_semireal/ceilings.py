"""What the true effects of the simulation would score: how far a perfect model of the means could
get.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbgen.predict import MeasuredExperiment, plug_in_t

if TYPE_CHECKING:
    from anndata import AnnData

CEILINGS = ("true effects", "true effects of the other cell types")
SCALES = np.arange(0.05, 2, 0.05)


def ceilings(
    folder: Path, cells: AnnData, truth: pd.DataFrame, *, vehicle: str
) -> dict[str, pd.DataFrame]:
    """True log fold changes over the errors of real conditions: of the cell type itself, and of the
    other types' mean.

    Each times the single factor that fits the withheld conditions best: a bound, not a method.
    """
    from anndata import read_h5ad

    kinds = sorted(truth.index.get_level_values(0).unique())
    effects = read_effects(read_h5ad(folder / "truth.h5ad")).loc[:, truth.columns]
    others = effects[~effects.index.get_level_values(0).isin(kinds)].groupby(level=1).mean()
    of_others = others.loc[truth.index.get_level_values(1)].set_axis(truth.index)
    found = dict(zip(CEILINGS, (effects.loc[truth.index], of_others), strict=True))
    measured = MeasuredExperiment.of(cells, kinds, vehicle=vehicle, flavour="kaggle").measured
    return {name: best_scaled(plug_in_t(logfc, measured), truth) for name, logfc in found.items()}


def read_effects(adata: AnnData) -> pd.DataFrame:
    """True log2 fold changes, conditions x genes."""
    index = pd.MultiIndex.from_frame(
        adata.obs[["cell_type", "sm_name"]].astype(str), names=["cell_type", "compound"]
    )
    return pd.DataFrame(np.asarray(adata.layers["logFC"]), index, adata.var_names)


def best_scaled(values: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """The values times the factor with the least mean over rows of the RMSE."""
    values = values.loc[truth.index, truth.columns].fillna(0.0)
    errors = [
        float(np.sqrt(((scale * values - truth) ** 2).mean(axis=1)).mean()) for scale in SCALES
    ]
    return values * SCALES[int(np.argmin(errors))]
