"""From generated replicates to a prediction of differential expression."""

from perturbgen.predict.estimators import average_t, has_converged, plug_in_t, usual_error
from perturbgen.predict.shrinkage import Shrinkage, expression_levels, fit_shrinkage

__all__ = [
    "Shrinkage",
    "average_t",
    "expression_levels",
    "fit_shrinkage",
    "has_converged",
    "plug_in_t",
    "usual_error",
]
