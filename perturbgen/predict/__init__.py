"""From a trained run to a prediction of differential expression, and what it is worth.

The way of the counts: ``wells`` says what is asked for, takes its own cells away and lays out what
is generated, ``experiment`` holds the real samples that they join, ``calibration`` adds wells of
measured conditions, ``estimators`` draws and fits all of them and averages, ``weights`` scales what
comes out. ``predictor.predict`` calls ``calibration.Task.of`` (which makes the wells and the
experiment), ``estimators.average``, then ``weights.Shrinkage``.

Five words of this room:

* wanted: a condition that is asked for; nothing looks at cells of its own;
* measured: a condition with real samples, which generated ones are fitted beside;
* twin: a measured condition that is generated, too, as if it were wanted, to calibrate on; its
  label ends in " (generated)";
* untrained: a measured condition of which the run has no training cells: its twin flatters nobody;
* vehicle: the negative control of compounds; its wells are real or, with a label that ends in
  " (untreated)", generated, to say what the model gets wrong of a cell type.
"""

from perturbgen.predict.calibration import Task, trained_conditions, withheld_likelihood
from perturbgen.predict.estimators import aligned, average_t, mrrmse, plug_in_t
from perturbgen.predict.experiment import Estimator, MeasuredExperiment, PredictSettings
from perturbgen.predict.page import prediction_answer, prediction_page, reliability
from perturbgen.predict.predictor import (
    GenerativePredictor,
    Prediction,
    RunFiles,
    predict,
    run_fingerprint,
)
from perturbgen.predict.weights import Shrinkage, expression_levels, fit_ensemble
from perturbgen.predict.wells import Wells, read_wanted, vehicle_of, without
