"""Corrections of batch effects: fitted on controls, applied to anything."""

from perturbgen.profiles.correct.base import Correction, Pipeline
from perturbgen.profiles.correct.build import (
    batch_predictability,
    correct_to,
    correction,
    rows_to_fit,
)
from perturbgen.profiles.correct.centre import Compress, ControlScaler, NestedCentre
from perturbgen.profiles.correct.whiten import Coral, PrincipalComponents, Sphering, tvn
