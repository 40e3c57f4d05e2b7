"""What a trained embedding must beat, each fitted on the training profiles alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from perturbgen.evaluate.retrieval.similarity import Measure
from perturbgen.profiles.linear import PCA, WCCN, ReplicateMetric

Array = np.ndarray[Any, Any]
CLIP: Final = 10.0  # of z-scores, as for the network


@dataclass(frozen=True)
class Rival:
    """Places of the judged profiles (rows, any width), and how they are compared."""

    name: str
    vectors: Array
    similarity: Measure = "cosine"


def rivals(train: Array, labels: Array, judged: Array, *, seed: int, components: int = 64) -> list[Rival]:
    """All of them, from profiles (rows, genes) and the training rows' labels."""
    train, judged = np.clip(train, -CLIP, CLIP), np.clip(judged, -CLIP, CLIP)
    fitted: dict[str, Callable[[], Array]] = {
        f"PCA-{components}": lambda: PCA(components).fit(train).transform(judged),
        f"PCA-{components}, whitened": lambda: PCA(components, whiten=True).fit(train).transform(judged),
        "replicate metric (PeML-like)": lambda: (
            ReplicateMetric(min(32, components), components).fit(train, labels).transform(judged)
        ),
        f"WCCN, PCA-{components}": lambda: WCCN(components).fit(train, labels).transform(judged),
    }
    rng = np.random.default_rng(seed)
    return [
        Rival("random", rng.normal(size=(len(judged), 32))),
        Rival("z-scores, Euclid", judged, "euclidean"),
        Rival("z-scores, cosine", judged),
        Rival("z-scores, Spearman", judged, "spearman"),
        *(Rival(name, fit()) for name, fit in fitted.items()),
    ]
