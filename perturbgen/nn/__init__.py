"""Torch building blocks: count likelihoods, scales and dispersions, the mixture prior, networks, margin heads.

The same likelihoods as Pyro distributions are in :mod:`perturbgen.nn.distributions`, apart because Pyro is slow to
import.
"""

from perturbgen.nn.layers import (
    MLP,
    CountLinear,
    Dispersion,
    PredictedDispersion,
    bounded_log_r,
    scaled_log_mean,
)
from perturbgen.nn.likelihoods import (
    ShapeError,
    SparseCounts,
    gaussian_log_prob,
    nb_log_prob,
    nb_log_prob_sparse,
    poisson_log_prob,
    zinb_log_prob,
)
from perturbgen.nn.margins import MarginHead
from perturbgen.nn.mixture import GaussianMixture, Softball

__all__ = [
    "MLP",
    "CountLinear",
    "Dispersion",
    "GaussianMixture",
    "MarginHead",
    "PredictedDispersion",
    "ShapeError",
    "Softball",
    "SparseCounts",
    "bounded_log_r",
    "gaussian_log_prob",
    "nb_log_prob",
    "nb_log_prob_sparse",
    "poisson_log_prob",
    "scaled_log_mean",
    "zinb_log_prob",
]
