"""Corrections of batch effects: fitted on controls, applied to anything."""

from perturbgen.profiles.correct.base import Correction, Pipeline
from perturbgen.profiles.correct.centre import (
    AdditiveEffects,
    Compress,
    ControlScaler,
    NestedCentre,
    SequentialCentroids,
)
from perturbgen.profiles.correct.whiten import Coral, PrincipalComponents, Sphering, pca_cs, tvn

__all__ = [
    "AdditiveEffects",
    "Compress",
    "ControlScaler",
    "Coral",
    "Correction",
    "NestedCentre",
    "Pipeline",
    "PrincipalComponents",
    "SequentialCentroids",
    "Sphering",
    "pca_cs",
    "tvn",
]
