"""Empirical Bayes moderation of residual variances, with an intensity trend or robustly if asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perturbgen.de.prior import Prior, fit_prior
from perturbgen.de.robust import robust_prior
from perturbgen.errors import DesignError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moderation:
    """Posterior variances ``s2_post`` and total degrees of freedom ``df_total``, both (genes,), and the prior."""

    s2_post: Array
    df_total: Array
    prior: Prior


def moderate(variance: Array, df: float, *, mean: Array, robust: bool = False, trend: bool = False) -> Moderation:
    """Squeeze residual variances (genes,) with ``df`` each towards a prior estimated from all of them.

    ``mean`` (genes,) are the average log expressions that ``trend`` follows; ``robust`` gives outlying genes less
    prior (Phipson et al. 2016). The total df never exceed those of all genes together.
    """
    if df <= 0:
        raise DesignError("no residual degrees of freedom: there are as many coefficients as samples")
    covariate = mean if trend else None
    prior = robust_prior(variance, df, covariate) if robust else fit_prior(variance, df, covariate)
    s2_post = squeeze(variance, df, prior)
    df_total = np.minimum(df + prior.df, df * len(variance))
    return Moderation(s2_post, df_total, prior)


def squeeze(variance: Array, df: float, prior: Prior) -> Array:
    """Posterior means: (df s^2 + df_0 s_0^2) / (df + df_0)."""
    infinite = np.isinf(prior.df)
    weight = np.where(infinite, 0.0, prior.df)
    return np.where(infinite, prior.scale, (df * variance + weight * prior.scale) / (df + weight))
