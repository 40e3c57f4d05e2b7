"""From generated replicates to a prediction of differential expression."""

from perturbgen.predict.estimators import average_t, has_converged, plug_in_t, usual_error
from perturbgen.predict.shrinkage import expression_levels, fit_factors, shrink

__all__ = ["average_t", "expression_levels", "fit_factors", "has_converged", "plug_in_t", "shrink", "usual_error"]
