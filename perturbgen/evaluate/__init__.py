"""Metrics, controls, the scorecard and its report: arrays and labels in, numbers with their context out."""

from perturbgen.evaluate.build import join_scores, scorecard
from perturbgen.evaluate.controls import interpolated_duplicate
from perturbgen.evaluate.outputs import to_markdown, write_scorecard
from perturbgen.evaluate.records import HEADLINE, METRICS, Metric
from perturbgen.evaluate.scorecard import Scorecard
from perturbgen.evaluate.scoring import open_problems_mean_score, score
from perturbgen.evaluate.scoring_cells import held_out_nll, score_cells

__all__ = [
    "HEADLINE",
    "METRICS",
    "Metric",
    "Scorecard",
    "held_out_nll",
    "interpolated_duplicate",
    "join_scores",
    "open_problems_mean_score",
    "score",
    "score_cells",
    "scorecard",
    "to_markdown",
    "write_scorecard",
]
