"""Torch building blocks: count likelihoods, dispersions, networks, the mixture prior, margin heads.

The same likelihoods as Pyro distributions are in :mod:`perturbgen.nn.distributions`, apart because
Pyro is slow to import.
"""

from perturbgen.nn.encoders import make_encoder
from perturbgen.nn.layers import MLP, Dispersion, Draws, PredictedDispersion, scaled_log_mean
from perturbgen.nn.likelihoods import (
    ShapeError,
    SparseCounts,
    gaussian_log_prob,
    nb_log_prob,
    nb_log_prob_sparse,
    zinb_log_prob,
)
from perturbgen.nn.margins import MarginHead, ball, poincare_distance
from perturbgen.nn.mixture import GaussianMixture
from perturbgen.nn.vision import ChannelMix, ColourMap, backbone, own_statistics, resized
