"""A choice of settings that does not look at what it answers for."""

import numpy as np
import pandas as pd
from choose import _recipes, hits, nested_matching

from perturbgen.images.evaluate import Matching


def test_nested_choice_never_looks_at_the_compound_it_answers_for() -> None:
    rng = np.random.default_rng(1)
    meta = pd.DataFrame(
        {
            "compound": [f"c{i // 2}" for i in range(20)],
            "moa": [f"m{i // 10}" for i in range(20)],
            "concentration": "1",
            "batches": [(f"w{i // 2}",) for i in range(20)],
        }
    )
    random = {f"r{i}": rng.normal(size=(20, 20)) for i in range(60)}
    allowed, moa = Matching.admissible(meta, other_batch=True), meta["moa"].to_numpy()
    best = max(hits(value, allowed, moa).sum() for value in random.values())
    matching, choices = nested_matching(random, meta, other_batch=True)
    # the best of sixty random recipes is luck, and luck does not carry over
    assert matching.correct < best
    assert len(choices) == 10
    held = choices.iloc[0]
    out = (meta["compound"] == held["compound"]).to_numpy()
    inner = {
        name: hits(value, allowed & ~out[None], moa)[~out].sum() for name, value in random.items()
    }
    assert inner[held["recipe"]] == max(inner.values()) == held["others matched"]


def test_recipes_are_distinct() -> None:
    names = [str(recipe) for recipe in _recipes()]
    assert len(set(names)) == len(names) == 96
    assert "z + whiten (1), median" in names
