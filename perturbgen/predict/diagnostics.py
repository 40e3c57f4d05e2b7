"""Whether generated wells are like real ones where limma is sensitive: depth and variance."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbgen.core.errors import shorten
from perturbgen.core.stats import log_cpm

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

_DEPTH: Final = (0.7, 1.4)  # outside, the low-count genes of the fit are ruined
_VARIANCE: Final = (0.5, 2.0)
_FEWEST_COUNTS: Final = 5.0  # mean counts, of genes that are looked at
_FEWEST_GENES: Final = 10


def check_generated(generated: AnnData, real: AnnData, *, control: str) -> pd.DataFrame:
    """Ratios of generated to real samples by cell type: ``depth`` (counts a cell) and ``variance``.

    The variance is that within conditions. Far from that of the controls it means that noise is
    missing (means in place of draws) or too much. Both are warnings with the numbers.
    """
    rows = {}
    for kind, obs in generated.obs.groupby("cell_type"):
        ours, theirs = generated[obs.index], real[real.obs["cell_type"] == kind]
        controls = theirs[theirs.obs["compound"] == control]
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

    Both are freed of the plates' own levels, which are the controls' means.
    """
    mean = np.asarray(controls.X.mean(axis=0)).ravel() if controls.n_obs else np.zeros(0)
    genes = np.flatnonzero(mean >= _FEWEST_COUNTS)
    # A variance within plates needs two controls on one.
    plates = controls.obs["plate"].astype(str)
    if len(genes) < _FEWEST_GENES or (plates.value_counts() < 2).all():
        return float("nan")
    base, ours = _log_cpm_by_plate(controls, genes), _log_cpm_by_plate(generated, genes)
    level = base.groupby(level=0).mean()
    # A plate without controls has no level to be freed of.
    known = ours.index.isin(level.index)
    ours = (ours - level.reindex(ours.index))[known]
    compound = generated.obs["compound"].astype(str).to_numpy()[known]
    ratio = _pooled_variance(ours, compound) / _pooled_variance(base, base.index.to_numpy())
    return float(np.nanmedian(ratio)) if np.isfinite(ratio).any() else float("nan")


def _log_cpm_by_plate(samples: AnnData, genes: np.ndarray) -> pd.DataFrame:
    counts = sp.csr_array(samples.X)
    total = np.asarray(counts.sum(axis=1)).ravel()
    plates = samples.obs["plate"].astype(str).to_numpy()
    return pd.DataFrame(log_cpm(counts[:, genes].toarray(), total), plates)


def _pooled_variance(values: pd.DataFrame, groups: np.ndarray) -> np.ndarray:
    """Variance (genes,) within groups of rows (samples, genes), pooled."""
    table = values.to_numpy()
    codes, names = pd.factorize(groups)
    freedom = len(table) - len(names)
    if freedom <= 0:
        return np.full(table.shape[1], np.nan)
    means = pd.DataFrame(table).groupby(codes).mean().to_numpy()
    return ((table - means[codes]) ** 2).sum(axis=0) / freedom
