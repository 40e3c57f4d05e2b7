"""Numbers that say whether a model uses what it was given: pure functions of arrays."""

from __future__ import annotations

import numpy as np

ACTIVE = 0.01  # variance over cells from which a latent dimension counts as used (Burda et al. 2016)


def active_dimensions(latents: np.ndarray) -> int:
    """How many columns of ``latents`` (cells, latent) vary over cells."""
    return int((latents.var(axis=0) > ACTIVE).sum())


def log_cpm_of_sums(counts: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Log2 CPM (plus 1) of counts (cells, genes) summed by group, (groups, genes), groups in sorted order."""
    names, codes = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), counts.shape[1]))
    np.add.at(sums, codes, counts)
    return np.log2(sums / sums.sum(axis=1, keepdims=True).clip(min=1) * 1e6 + 1)


def between_ratio(real: np.ndarray, generated: np.ndarray, groups: np.ndarray, *, n_genes: int = 1000) -> float:
    """Variance between conditions of generated over that of real counts (cells, genes), on the most counted genes.

    Near 0 the decoder ignores its conditions; sampling noise lifts both sides alike when both are counts.
    """
    genes = np.argsort(-real.sum(axis=0), kind="stable")[:n_genes]
    between = [log_cpm_of_sums(counts[:, genes], groups).var(axis=0).sum() for counts in (real, generated)]
    return float(between[1] / between[0]) if between[0] > 0 else float("nan")


def mean_variance(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each gene's mean and variance, (genes,) both."""
    return counts.mean(axis=0), counts.var(axis=0)


def zero_fraction(counts: np.ndarray) -> np.ndarray:
    """Share of cells without a count of each gene, (genes,)."""
    return (counts == 0).mean(axis=0)


def predictive_table(real: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    """How far generated counts (cells, genes) are from real ones: each number 0 (or a correlation of 1) at best."""
    seen = real.mean(axis=0) > 0
    (mean, variance), (mean_generated, variance_generated) = mean_variance(real), mean_variance(generated)

    def log_ratio(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        return np.log2((ours[seen] + 1e-3) / (theirs[seen] + 1e-3))

    return {
        "mean_abs_log2_ratio_of_means": float(np.abs(log_ratio(mean_generated, mean)).mean()),
        "mean_abs_log2_ratio_of_variances": float(np.abs(log_ratio(variance_generated, variance)).mean()),
        "mean_abs_difference_of_zero_fractions": float(
            np.abs(zero_fraction(generated) - zero_fraction(real))[seen].mean()
        ),
        "ratio_of_median_library_sizes": float(
            np.median(generated.sum(axis=1)) / max(np.median(real.sum(axis=1)), 1.0)
        ),
    }
