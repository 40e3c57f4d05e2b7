"""Corrections of batch effects: fitted on controls, applied to anything."""

from perturbgen.profiles.imaging.correct.base import Correction, Pipeline
from perturbgen.profiles.imaging.correct.centre import AdditiveEffects, NestedCentre, SequentialCentroids
from perturbgen.profiles.imaging.correct.scale import Compress, ControlScaler
from perturbgen.profiles.imaging.correct.whiten import Coral, PrincipalComponents, Sphering, pca_cs, tvn

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
