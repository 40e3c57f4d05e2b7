"""Corrections of batch effects in profiles of any assay, images or L1000, fitted on controls."""

from perturbgen.profiles.correct.base import Correction, Pipeline
from perturbgen.profiles.correct.build import (
    batch_predictability,
    correct_to,
    correction,
    rows_to_fit,
)
from perturbgen.profiles.correct.steps import (
    Compress,
    ControlScaler,
    Coral,
    NestedCentre,
    PrincipalComponents,
    Sphering,
    tvn,
)
