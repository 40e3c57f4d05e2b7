"""Metrics, controls, the scorecard and its report: labelled arrays in, numbers in context out."""

from perturbgen.evaluate.anchors import MeasuredCells, anchors, panel_values, scaled
from perturbgen.evaluate.card import Scorecard
from perturbgen.evaluate.catalogue import (
    HEADLINE,
    METRICS,
    choose_metrics,
    open_problems_mean_score,
    require_kept,
)
from perturbgen.evaluate.cells import held_out_nll
from perturbgen.evaluate.contract import metric_breaches
from perturbgen.evaluate.counts import VCC2026, Groups
from perturbgen.evaluate.duplicate import interpolated_duplicate
from perturbgen.evaluate.labels import effect_sizes, find_labels, place, strata
from perturbgen.evaluate.markdown import ScorecardText, markdown_table
from perturbgen.evaluate.report import report_page
from perturbgen.evaluate.scoring import calibration, join_scores, score, score_points, scorecard
from perturbgen.evaluate.values import Metric, Values
