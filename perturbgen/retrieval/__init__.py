"""Exact retrieval for L1000 profiles, images and latent spaces, said by columns of labels.

Similarities are computed for a few queries at a time, so memory is O(queries in flight x
candidates), never a list of pairs.
"""

from perturbgen.retrieval.consistency import (
    consistency,
    magnitude,
    percent_replicating,
    relationship_recall,
)
from perturbgen.retrieval.controls import controlled, shuffle_labels
from perturbgen.retrieval.crossmodal import (
    MatchedFold,
    mantel,
    match_fold,
    match_modalities,
    matched_difference,
    query_scores,
    score_folds,
)
from perturbgen.retrieval.embedding import Measure, require_labels
from perturbgen.retrieval.evaluator import Retrieval, retrieve
from perturbgen.retrieval.neighbours import (
    group_neighbours,
    knn_mixing,
    mixing_summary,
    nearest,
    neighbour_table,
)
from perturbgen.retrieval.nulls import ap_null, expected_ap
from perturbgen.retrieval.report import retrieval_page

__all__ = [
    "MatchedFold",
    "Measure",
    "Retrieval",
    "ap_null",
    "consistency",
    "controlled",
    "expected_ap",
    "group_neighbours",
    "knn_mixing",
    "magnitude",
    "mantel",
    "match_fold",
    "match_modalities",
    "matched_difference",
    "mixing_summary",
    "nearest",
    "neighbour_table",
    "percent_replicating",
    "query_scores",
    "relationship_recall",
    "require_labels",
    "retrieval_page",
    "retrieve",
    "score_folds",
    "shuffle_labels",
]
