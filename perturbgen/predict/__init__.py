"""From a trained run to a prediction of differential expression, and what it is worth.

The way of the counts: ``wells`` says what is asked for, takes its own cells away and lays out what
is generated, ``experiment`` holds the real samples that they join, ``calibration`` adds
wells of measured conditions, ``estimators`` draws and fits all of them and averages, ``weights``
scales what comes out; ``predictor`` calls them in this order.
"""

from perturbgen.predict.calibration import Task, withheld_likelihood
from perturbgen.predict.estimators import aligned, average_t, mrrmse, plug_in_t
from perturbgen.predict.experiment import Estimator, MeasuredExperiment, PredictSettings
from perturbgen.predict.predictor import (
    GenerativePredictor,
    Prediction,
    RunFiles,
    predict,
    run_fingerprint,
)
from perturbgen.predict.weights import Shrinkage, expression_levels, fit_ensemble
from perturbgen.predict.wells import Wells, read_wanted, vehicle_of, without
