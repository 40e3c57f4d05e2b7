"""What varies expression besides the compounds: donors, plates, sequencing libraries, wells, ambient RNA."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from perturbgen.simulate.layout import DONORS
from perturbgen.simulate.settings import CELL_TYPES, ExpressionSettings


@dataclass(frozen=True)
class Noise:
    """Log effects on genes, and the ambient RNA of each sequencing library, all labelled.

    ``donor`` (donor: (cell types, genes)), ``plate`` and ``library`` (name: (genes,)), ``ambient`` (library: profile
    (genes,), adding up to one), ``ambient_share`` (by library).
    """

    donor: dict[str, np.ndarray]
    plate: dict[str, np.ndarray]
    library: dict[str, np.ndarray]
    ambient: dict[str, np.ndarray]
    ambient_share: pd.Series


def draw_noise(
    groups: pd.DataFrame, share: pd.DataFrame, settings: ExpressionSettings, *, rng: np.random.Generator
) -> Noise:
    """Effects of every donor, plate and library of the design ``groups`` (well x cell type, with n_cells and depth)."""
    genes = share.shape[1]
    plates, libraries = sorted(groups["plate_name"].unique()), sorted(groups["library_id"].unique())

    def effects(names: list[str], log_sd: float, *shape: int) -> dict[str, np.ndarray]:
        """A log effect of the shape for each name."""
        return {name: rng.normal(0, log_sd, shape).astype(np.float32) for name in names}

    ambient = rng.beta(4, 4 / max(settings.ambient, 1e-9) - 4, len(libraries)) if settings.ambient else 0.0
    return Noise(
        donor=effects(list(DONORS), settings.donor_log_sd, len(CELL_TYPES), genes),
        plate=effects(plates, settings.plate_log_sd, genes),
        library=effects(libraries, settings.row_log_sd, genes),
        ambient=ambient_profiles(groups, share),
        ambient_share=pd.Series(ambient, index=libraries),
    )


def ambient_profiles(groups: pd.DataFrame, share: pd.DataFrame) -> dict[str, np.ndarray]:
    """The average expression of the cells pooled in a library, each cell type weighted by its expected counts."""
    counts = (groups["n_cells"] * groups["depth"]).groupby([groups["library_id"], groups["cell_type"]]).sum()
    weights = counts.unstack("cell_type")[list(share.index)]
    weights = weights.div(weights.sum(axis=1), axis=0).fillna(1 / len(share))
    return dict(zip(weights.index, (weights.to_numpy() @ share.to_numpy()).astype(np.float32), strict=True))
