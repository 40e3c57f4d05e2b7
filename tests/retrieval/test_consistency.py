"""Consistency, magnitude and recall of known relations: by hand, against brute force, and where
nothing was done.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist

from perturbgen.core.errors import SchemaError
from perturbgen.retrieval import consistency, magnitude, relationship_recall
from perturbgen.retrieval.consistency import _known_pairs


def screen(effect: float, *, groups: int = 30, seed: int = 0) -> tuple[np.ndarray, pd.DataFrame]:
    """40 controls, then four wells of each perturbation, moved along a direction of its own."""
    rng = np.random.default_rng(seed)
    meta = pd.DataFrame(
        {"gene": [None] * 40 + [f"g{i:02d}" for i in range(groups) for _ in range(4)]}
    )
    shift = np.repeat(rng.normal(size=(groups, 10)), 4, axis=0)
    return rng.normal(size=(len(meta), 10)) + np.vstack([np.zeros((40, 10)), effect * shift]), meta


def test_three_rows_by_hand() -> None:
    x = np.array([[1.0, 0], [0, 2], [3, 0], [1, 1], [-1, 5], [0, -1]])
    meta = pd.DataFrame({"gene": ["a", "a", "a", "b", "c", "d"]})
    table = consistency(x, meta, same="gene", draws=10, rng=np.random.default_rng(0))
    assert table.loc["a", "consistency"] == pytest.approx((0 + 1 + 0) / 3)
    assert list(table.index) == ["a"]


def test_consistency_and_magnitude_equal_the_sums_over_pairs() -> None:
    x, meta = screen(1.0)
    control = meta["gene"].isna().to_numpy()
    found = consistency(x, meta, same="gene", draws=20, rng=np.random.default_rng(0))
    energy = magnitude(
        x, meta, same="gene", control=control, draws=20, rng=np.random.default_rng(0)
    )
    for name in ("g00", "g17"):
        rows = x[(meta["gene"] == name).to_numpy()]
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(rows, 2)]
        assert found.loc[name, "consistency"] == pytest.approx(np.mean(cosines))
        inner = np.mean([np.linalg.norm(a - b) for a, b in combinations(rows, 2)])
        outer = np.mean([np.linalg.norm(a - b) for a, b in combinations(x[control], 2)])
        assert energy.loc[name, "magnitude"] == pytest.approx(
            2 * cdist(rows, x[control]).mean() - inner - outer
        )


def test_real_effects_are_found_and_absent_ones_are_not() -> None:
    for effect, low, high in ((1.5, 0.9, 1.0), (0.0, 0.0, 0.05)):
        x, meta = screen(effect)
        control = meta["gene"].isna().to_numpy()
        for table in (
            consistency(x, meta, same="gene", draws=500, rng=np.random.default_rng(0)),
            magnitude(
                x, meta, same="gene", control=control, draws=500, rng=np.random.default_rng(0)
            ),
        ):
            assert low <= (table["q"] < 0.05).mean() <= high
            if not effect:
                assert 0.3 < table["p"].mean() < 0.7


def test_magnitude_does_not_move_with_origin_or_rotation_and_grows_with_the_effect() -> None:
    x, meta = screen(0.5)
    control = meta["gene"].isna().to_numpy()
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(10, 10)))[0]
    first, second = (
        magnitude(v, meta, same="gene", control=control, draws=5, rng=np.random.default_rng(0))[
            "magnitude"
        ]
        for v in (x, x @ rotation + 100)
    )
    np.testing.assert_allclose(first, second, atol=1e-8)
    larger, _ = screen(1.5)
    third = magnitude(
        larger, meta, same="gene", control=control, draws=5, rng=np.random.default_rng(0)
    )["magnitude"]
    assert (third > first).mean() > 0.95


def related(strength: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """60 genes in complexes of three."""
    rng = np.random.default_rng(0)
    names = [f"g{i:02d}" for i in range(60)]
    x = strength * np.repeat(rng.normal(size=(20, 8)), 3, axis=0) + rng.normal(size=(60, 8))
    pairs = [pair for c in range(20) for pair in combinations(names[3 * c : 3 * c + 3], 2)]
    return pd.DataFrame(x, index=names), pd.DataFrame(pairs, columns=["entity1", "entity2"])


def test_recall_of_planted_complexes_and_of_none() -> None:
    planted = relationship_recall(*related(3.0), permutations=99, rng=np.random.default_rng(0))
    nothing = relationship_recall(*related(0.0), permutations=99, rng=np.random.default_rng(0))
    assert planted["pairs"] == nothing["pairs"] == 60
    assert planted["close"] > 0.6
    assert planted["p"] == 0.01
    assert nothing["recall"] == pytest.approx(0.1, abs=0.1)
    assert nothing["p"] > 0.05


def test_recall_equals_brute_force_and_opposites_count() -> None:
    x, relations = related(1.0)
    x.iloc[::3] *= -1  # a member of each complex is turned round
    cosine = np.corrcoef(np.hstack([x, -x]))  # rows without a mean: correlation is cosine
    every = cosine[np.triu_indices(60, 1)]
    low, high = np.quantile(every, [0.05, 0.95])
    known = np.array(
        [cosine[x.index.get_loc(a), x.index.get_loc(b)] for a, b in relations.to_numpy()]
    )
    found = relationship_recall(x, relations, permutations=1, rng=np.random.default_rng(0))
    assert found["opposite"] == pytest.approx((known <= low).mean())
    assert found["close"] == pytest.approx((known >= high).mean())
    assert found["opposite"] > found["close"] > 0


def test_pairs_are_counted_once_and_only_where_both_ends_were_measured() -> None:
    relations = pd.DataFrame(
        {"entity1": ["a", "b", "a", "c", "z"], "entity2": ["b", "a", "a", "a", "a"]}
    )
    assert _known_pairs(relations, pd.Index(["c", "a", "b"])).tolist() == [[0, 1], [1, 2]]


def test_bad_input_is_explained() -> None:
    x, relations = related(1.0)
    rng = np.random.default_rng(0)
    with pytest.raises(SchemaError, match=r"0 known pairs have both ends"):
        relationship_recall(x.set_axis(range(60)), relations, rng=rng)
    with pytest.raises(SchemaError, match=r"no column .entity2."):
        relationship_recall(x, relations[["entity1"]], rng=rng)
    with pytest.raises(SchemaError, match="occur twice"):
        relationship_recall(pd.concat([x, x]), relations, rng=rng)
    with pytest.raises(SchemaError, match=r"tail is 0\.7"):
        relationship_recall(x, relations, tail=0.7, rng=rng)
    values, meta = screen(1.0)
    with pytest.raises(SchemaError, match="no group of 'gene' has two rows"):
        consistency(values, meta.assign(gene=np.arange(len(meta))), same="gene", rng=rng)
    with pytest.raises(SchemaError, match="3 controls and 30 groups"):
        magnitude(values, meta, same="gene", control=np.arange(len(meta)) < 3, rng=rng)
