"""What retrieval says to labels, masks, similarities and embeddings that cannot be right."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import MissingDependencyError, SchemaError
from perturbgen.retrieval import retrieve


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"same": "compuond"}, "no column 'compuond'"),
        ({"same": []}, "no column in same"),
        ({"similarity": "cosin"}, "no similarity 'cosin': did you mean 'cosine'"),
        ({"queries": np.ones(3, bool)}, r"queries has shape \(3,\)"),
        ({"candidates": np.ones(90)}, "candidates has shape"),
        ({"similarity": lambda q, c: np.zeros((1, 1))}, "the similarity gave shape"),
        ({"similarity": lambda q, c: np.full((len(q), len(c)), np.nan)}, "gave NaN"),
        ({"same": "row"}, "nothing to retrieve: of 90 queries 90 have no positive"),
        ({"same": "constant"}, "nothing to retrieve: of 90 queries 0 have no positive"),
        ({"differ": "constant"}, "nothing to retrieve"),
        ({"queries": np.zeros(90, bool)}, "no row has a label"),
        ({"similarity": "precomputed"}, "precomputed similarity of shape"),
    ],
)
def test_mistakes_are_explained(
    screen: tuple[np.ndarray, pd.DataFrame], change: dict[str, object], message: str
) -> None:
    x, meta = screen
    meta = meta.assign(row=meta.index, constant="x")
    with pytest.raises(SchemaError, match=message):
        retrieve(x, meta, **{"same": "compound", **change})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda x: np.where(np.arange(90)[:, None] == 4, np.nan, x),
            "1 rows of the embedding hold NaN or infinity: 'r4'",
        ),
        (lambda x: x[:-1], "for 90 labelled rows"),
        (lambda x: x[:, 0], "for 90 labelled rows"),
        (lambda x: x.astype(str), "of type"),
    ],
)
def test_broken_embeddings_are_refused(
    screen: tuple[np.ndarray, pd.DataFrame], spoil: object, message: str
) -> None:
    x, meta = screen
    with pytest.raises(SchemaError, match=message):
        retrieve(spoil(x), meta, same="compound")


def test_a_gpu_that_is_not_there(screen: tuple[np.ndarray, pd.DataFrame]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(MissingDependencyError, match="torch sees no GPU"):
        retrieve(*screen, same="compound", device="cuda")
