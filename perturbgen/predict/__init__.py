"""From a trained run to a prediction of differential expression, and what it is worth.

The way of the counts: ``conditions`` says what is asked for and takes its own cells away,
``experiment`` holds the real samples that generated wells join, ``calibration`` adds wells of
measured conditions, ``estimators`` draws and fits all of them and averages, ``shrinkage`` scales
what comes out; ``pipeline`` calls them in this order.
"""

from perturbgen.predict.calibration import Task, make_task, withheld_likelihood
from perturbgen.predict.conditions import (
    in_run_genes,
    make_sampler,
    read_wanted,
    require_unseen_by,
    vehicle_of,
    without,
)
from perturbgen.predict.ensemble import fit_ensemble
from perturbgen.predict.estimators import (
    aligned,
    average_t,
    model_logfc,
    mrrmse,
    plug_in_t,
    usual_error,
)
from perturbgen.predict.experiment import (
    Estimator,
    MeasuredExperiment,
    PredictSettings,
    Wells,
    make_wells,
)
from perturbgen.predict.pipeline import Prediction, predict
from perturbgen.predict.predictor import GenerativePredictor, RunFiles, run_fingerprint
from perturbgen.predict.shrinkage import Shrinkage, expression_levels, fit_shrinkage

__all__ = [
    "Estimator",
    "GenerativePredictor",
    "MeasuredExperiment",
    "PredictSettings",
    "Prediction",
    "RunFiles",
    "Shrinkage",
    "Task",
    "Wells",
    "aligned",
    "average_t",
    "expression_levels",
    "fit_ensemble",
    "fit_shrinkage",
    "in_run_genes",
    "make_sampler",
    "make_task",
    "make_wells",
    "model_logfc",
    "mrrmse",
    "plug_in_t",
    "predict",
    "read_wanted",
    "require_unseen_by",
    "run_fingerprint",
    "usual_error",
    "vehicle_of",
    "withheld_likelihood",
    "without",
]
