"""Corrections of batch effects: fitted on controls, applied to anything."""

from perturbgen.profiles.correct.base import Correction, Pipeline
from perturbgen.profiles.correct.build import (
    batch_predictability,
    correct_to,
    correction,
    fitted_rows,
    marked,
    rows_to_fit,
    well_labels,
)
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
    "batch_predictability",
    "correct_to",
    "correction",
    "fitted_rows",
    "marked",
    "pca_cs",
    "rows_to_fit",
    "tvn",
    "well_labels",
]
