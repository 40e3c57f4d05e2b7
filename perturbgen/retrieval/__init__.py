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
from perturbgen.retrieval.crossmodal import MatchedFold, match_modalities
from perturbgen.retrieval.embedding import Measure, require_labels
from perturbgen.retrieval.evaluator import Retrieval, controlled, retrieve
from perturbgen.retrieval.neighbours import (
    group_neighbours,
    knn_mixing,
    mixing_summary,
    nearest,
    neighbour_table,
)
from perturbgen.retrieval.report import retrieval_page
from perturbgen.retrieval.scores import expected_ap
