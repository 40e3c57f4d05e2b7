"""Scales that signed −log10 p values can be modelled on."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.special import log_ndtr, ndtri_exp

from perturbgen.baselines.table import Array

Transform = Literal["t", "none"]
LOG_2, LOG_10 = np.log(2.0), np.log(10.0)


def to_t(signed: Array) -> Array:
    """The normal deviate with two-sided p = 10^−|y| and the sign of y: t = sign(y) Φ⁻¹(1 − 10^−|y| / 2).

    Log p enters as it is, so that y = 300 is no infinity. The tails of y, which grow as t², become those of t.
    """
    return -np.sign(signed) * ndtri_exp(-np.abs(signed) * LOG_10 - LOG_2)


def from_t(t: Array) -> Array:
    """The inverse: y = sign(t) · −log10(2 Φ(−|t|))."""
    return -np.sign(t) * (log_ndtr(-np.abs(t)) + LOG_2) / LOG_10


def forward(values: Array, transform: Transform) -> Array:
    """The values on the scale that is modelled."""
    return to_t(values) if transform == "t" else values


def backward(values: Array, transform: Transform) -> Array:
    """The values on the scale of the table."""
    return from_t(values) if transform == "t" else values
