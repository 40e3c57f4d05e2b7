"""Exact retrieval for L1000 profiles, images and latent spaces: who is a positive is said by columns, self is excluded.

Similarities are computed for a few queries at a time, so memory is O(queries in flight x candidates), never a list of
pairs. **Ties** have one rule everywhere: tied candidates count as the mean over all their orders. A constant embedding
therefore scores exactly what chance gives, and the order of the rows never matters.
"""

from perturbgen.retrieval.consistency import (
    consistency,
    magnitude,
    percent_replicating,
    relationship_recall,
)
from perturbgen.retrieval.controls import controlled, knn_mixing, mixing_summary, shuffle_labels
from perturbgen.retrieval.crossmodal import match_modalities
from perturbgen.retrieval.evaluator import Retrieval, retrieve
from perturbgen.retrieval.nearest import nearest
from perturbgen.retrieval.nulls import ap_null, expected_ap

__all__ = [
    "Retrieval",
    "ap_null",
    "consistency",
    "controlled",
    "expected_ap",
    "knn_mixing",
    "magnitude",
    "match_modalities",
    "mixing_summary",
    "nearest",
    "percent_replicating",
    "relationship_recall",
    "retrieve",
    "shuffle_labels",
]
