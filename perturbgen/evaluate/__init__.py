"""Metrics, controls, the scorecard and its report: arrays and labels in, numbers with their context out."""

from perturbgen.evaluate.cells import held_out_nll, score_cells
from perturbgen.evaluate.outputs import to_markdown, write_scorecard
from perturbgen.evaluate.records import HEADLINE, METRICS, Metric
from perturbgen.evaluate.scorecard import Scorecard, interpolated_duplicate
from perturbgen.evaluate.scoring import join_scores, open_problems_mean_score, score, scorecard

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
