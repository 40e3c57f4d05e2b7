"""Torch building blocks: count likelihoods, scales and dispersions, the mixture prior, networks, margin heads.

The same likelihoods as Pyro distributions are in :mod:`perturbgen.nn.distributions`, apart because Pyro is slow to
import.
"""

from perturbgen.nn.heads import MarginHead
from perturbgen.nn.likelihoods import (
    gaussian_log_prob,
    nb_log_prob,
    nb_log_prob_sparse,
    poisson_log_prob,
    zinb_log_prob,
)
from perturbgen.nn.mixture import GaussianMixture, Softball
from perturbgen.nn.mlp import MLP, CountLinear
from perturbgen.nn.scale import Dispersion, PredictedDispersion, bounded_log_r, scaled_log_mean
from perturbgen.nn.shapes import ShapeError, SparseCounts

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
