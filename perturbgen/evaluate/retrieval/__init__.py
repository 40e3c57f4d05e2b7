"""Exact retrieval for L1000 profiles, images and latent spaces: who is a positive is said by columns, self is excluded.

Similarities are computed for a few queries at a time, so memory is O(queries in flight x candidates), never a list of
pairs. **Ties** have one rule everywhere: tied candidates count as the mean over all their orders. A constant embedding
therefore scores exactly what chance gives, and the order of the rows never matters.
"""

from perturbgen.evaluate.retrieval.consistency import consistency, magnitude
from perturbgen.evaluate.retrieval.controls import controlled, shuffle_labels
from perturbgen.evaluate.retrieval.crossmodal import match_modalities
from perturbgen.evaluate.retrieval.evaluator import retrieve
from perturbgen.evaluate.retrieval.mixing import knn_mixing, mixing_summary
from perturbgen.evaluate.retrieval.neighbours import nearest
from perturbgen.evaluate.retrieval.nulls import ap_null, expected_ap
from perturbgen.evaluate.retrieval.relations import relationship_recall
from perturbgen.evaluate.retrieval.replicating import percent_replicating
from perturbgen.evaluate.retrieval.result import Retrieval

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
