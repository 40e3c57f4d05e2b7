"""The one place where simulated pseudobulk becomes the table of differential expression that is released."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse, special, stats

from perturbgen.data.vocabulary import VEHICLE

MILLION = 1e6
SMALLEST_VARIANCE = 1e-4


def de_table(counts: sparse.csr_matrix, obs: pd.DataFrame, *, genes: list[str]) -> pd.DataFrame:
    """Signed -log10 p of every (cell_type, sm_name) x gene, each compound against the vehicle of its cell type.

    ``counts`` (samples, genes) are pseudobulk sums, ``obs`` (samples) says ``cell_type`` and ``sm_name``. The statistic
    is Welch's t on log2 counts per million; a compound with a single sample borrows the vehicle's variance.
    """
    tables = []
    for cell_type, samples in obs.reset_index(drop=True).groupby("cell_type", observed=True, sort=True):
        values = log_cpm(counts[samples.index.to_numpy()].toarray())
        vehicle = values[(samples["sm_name"] == VEHICLE).to_numpy()]
        for name in sorted(set(samples["sm_name"]) - {VEHICLE}):
            treated = values[(samples["sm_name"] == name).to_numpy()]
            tables.append(((cell_type, name), signed_log10_p(treated, vehicle)))
    index = pd.MultiIndex.from_tuples([key for key, _ in tables], names=["cell_type", "sm_name"])
    return pd.DataFrame(np.stack([row for _, row in tables]), index=index, columns=genes)


def log_cpm(counts: np.ndarray) -> np.ndarray:
    """log2 counts per million, half a count added, as voom has it; (samples, genes)."""
    return np.log2((counts + 0.5) / (counts.sum(axis=1, keepdims=True) + 1) * MILLION)


def signed_log10_p(treated: np.ndarray, vehicle: np.ndarray) -> np.ndarray:
    """sign(difference) x -log10 p (genes,) of Welch's t between two sets of samples (samples, genes)."""
    difference = treated.mean(axis=0) - vehicle.mean(axis=0)
    spread = np.maximum(vehicle.var(axis=0, ddof=1), SMALLEST_VARIANCE)
    own = np.maximum(treated.var(axis=0, ddof=1), SMALLEST_VARIANCE) if len(treated) > 1 else spread
    a, b = own / len(treated), spread / len(vehicle)
    df = (a + b) ** 2 / (a**2 / max(len(treated) - 1, 1) + b**2 / (len(vehicle) - 1))
    log10_p = (np.log(2) + log_tail(np.abs(difference) / np.sqrt(a + b), df)) / np.log(10)
    return np.sign(difference) * -np.minimum(log10_p, 0)


def log_tail(t: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Log survival function of Student's t; where it underflows, the first term of the incomplete beta's series."""
    with np.errstate(divide="ignore"):
        log_sf = stats.t.logsf(t, df)
        log_square = 2 * np.log(t) - np.log(df)
    far = -np.log(df) - special.betaln(df / 2, 0.5) - df / 2 * np.logaddexp(0, log_square)
    return np.where(np.isfinite(log_sf), log_sf, far)
