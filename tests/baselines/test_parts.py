"""The pieces: encodings out of fold, folds like the task, nested choice, the network's loss, the
transfer stack.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from perturbgen.baselines import (
    Baseline,
    make,
    mimic_folds,
    nested_choice,
    out_of_fold,
    row_spearman,
)
from perturbgen.baselines.base import ConditionList, TrainTable
from perturbgen.baselines.features import (
    _STATISTICS,
    Components,
    LowRankTarget,
    TargetEncoding,
    _Features,
    _row_statistics,
)
from perturbgen.baselines.network import _row_rmse, _zeroed
from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.core.stats import deal
from perturbgen.core.tables import CONDITION as KEY
from tests.baselines.cases import quick

RNG = np.random.default_rng
Task = tuple[pd.DataFrame, pd.DataFrame]


def test_statistics_are_numpys() -> None:
    scores = RNG(0).normal(size=(7, 3))
    found = _row_statistics(scores, _STATISTICS).reshape(len(_STATISTICS), 3)
    expected = [
        scores.mean(axis=0),
        np.median(scores, axis=0),
        scores.std(axis=0),
        *np.quantile(scores, [0.25, 0.75], axis=0),
    ]
    np.testing.assert_allclose(found, expected)


def test_encodings_by_hand() -> None:
    cells = np.array(["A", "A", "B", "B"], dtype=object)
    compounds = np.array(["x", "y", "x", "y"], dtype=object)
    encoding = TargetEncoding(
        np.array([[1.0], [2], [3], [4]]),
        rows := ConditionList(cells, compounds),
        {"x": 0, "y": 1},
        ("mean",),
    )
    # the other cell type's row
    np.testing.assert_array_equal(encoding.by_compound(rows), [[3], [4], [1], [2]])
    # the other fold's row
    np.testing.assert_array_equal(encoding.by_cell_type(rows), [[2], [1], [4], [3]])
    new = ConditionList(np.array(["C", "A"], dtype=object), np.array(["x", "z"], dtype=object))
    # all of x; nobody knows z
    np.testing.assert_array_equal(encoding.by_compound(new), [[2], [2.5]])
    np.testing.assert_array_equal(encoding.by_cell_type(new), [[2.5], [1.5]])
    np.testing.assert_allclose(encoding.counts(new), np.log1p([[2], [0]]))


def test_no_target_enters_its_own_features(task: Task) -> None:
    """Changing one row's scores changes features of others, and never its own."""
    table = TrainTable.of(task[0])
    scores = RNG(0).normal(size=(len(table.values), 5))
    compounds = np.unique(table.compounds)
    folds = dict(zip(compounds, deal(len(compounds), 4, RNG(1)).tolist(), strict=True))

    def matrix(values: np.ndarray) -> np.ndarray:
        encoding = TargetEncoding(values, table, folds)
        return np.hstack([encoding.by_compound(table), encoding.by_cell_type(table)])

    before = matrix(scores)
    for i in (0, 17, 60):
        changed = scores.copy()
        changed[i] += 50
        after = matrix(changed)
        np.testing.assert_array_equal(before[i], after[i])
        assert (before != after).any()


def test_encodings_of_noise_do_not_tell_the_targets() -> None:
    """Shuffled labels: a linear model of the encodings explains no more of the training targets
    than of fresh ones.
    """
    index = pd.MultiIndex.from_product(
        [[f"t{i}" for i in range(6)], [f"c{i:03d}" for i in range(150)]], names=KEY
    )
    correlations = []
    for seed in range(5):
        rng = RNG(seed)
        table = TrainTable.of(pd.DataFrame(rng.normal(size=(len(index), 3)), index))
        features = _Features.fit(
            table, table.values, encoded=3, statistics=("mean",), hot=False, rng=rng
        )
        matrix = features.matrix(table)[:, :6]
        correlations += [np.corrcoef(matrix[:, j], table.values[:, j % 3])[0, 1] for j in range(6)]
    assert abs(np.mean(correlations)) < 0.05


def test_fingerprints_are_features_by_compound(
    caplog: pytest.LogCaptureFixture, task: Task
) -> None:
    train, test = task
    smiles = pd.Series({f"c{i:02d}": "C" * (i + 1) + "O" for i in range(29)})
    plain, chemical = (
        quick("xgboost", trees=5, **more).fit(train, rng=RNG(0)).predict(test.index)
        for more in ({}, {"fingerprints": 64, "smiles": smiles})
    )
    assert not plain.equals(chemical)
    assert "1 compounds have no SMILES, their bits are zero: 'c29'" in caplog.text


def test_target_cell_types_and_folds(task: Task) -> None:
    train, _ = task
    folds = mimic_folds(train.index, folds=4, rng=RNG(0), pretend=True)
    drawn, pretended = [f"fold {i}" for i in range(4)], [f"pretend S{i}" for i in (1, 2, 3)]
    assert list(folds) == drawn + pretended
    for name in drawn:
        cells, compounds = (folds[name].get_level_values(i) for i in (0, 1))
        assert set(cells) == {"T1", "T2"}, "the sparse cell types"
        assert len(folds[name]) == 2 * compounds.nunique() == 4
    together = folds[drawn[0]].append([folds[name] for name in drawn[1:]])
    assert together.is_unique
    assert len(together) == 16
    assert set(folds["pretend S1"].get_level_values(1)) == {f"c{i:02d}" for i in range(8, 30)}


def test_folds_of_a_complete_table_take_the_cell_types_in_turn() -> None:
    index = pd.MultiIndex.from_product([["A", "B"], ["x", "y", "z"]], names=KEY)
    folds = mimic_folds(index, folds=3, rng=RNG(0))
    found = [set(withheld.get_level_values(0)) for withheld in folds.values()]
    assert found == [{"A"}, {"B"}, {"A"}]
    with pytest.raises(ConfigError, match="no cell type is sparse"):
        mimic_folds(index, folds=3, rng=RNG(0), pretend=True)
    with pytest.raises(SchemaError, match="no cell type 'C'"):
        mimic_folds(index, folds=3, rng=RNG(0), targets=["C"])
    with pytest.raises(SchemaError, match="0 compounds are known"):
        mimic_folds(index[:1].append(index[4:5]), folds=2, rng=RNG(0))


class Spy(Baseline):  # type: ignore[type-arg]
    """Remembers what it was shown."""

    seen: list[pd.MultiIndex] = []  # noqa: RUF012

    def _fit(self, table: object, rng: np.random.Generator) -> None:
        self.seen.append(table.index)  # type: ignore[attr-defined]

    def _predict(self, wanted: ConditionList) -> np.ndarray:
        return np.zeros((len(wanted), len(self.table.genes)))


def test_out_of_fold_shows_no_withheld_row(task: Task) -> None:
    train, _ = task
    folds = mimic_folds(train.index, folds=4, rng=RNG(0))
    Spy.seen.clear()
    found = out_of_fold(Spy, train, folds, rng=RNG(0))
    assert len(found) == 16
    for withheld, seen in zip(folds.values(), Spy.seen, strict=True):
        assert not seen.isin(withheld).any()
        assert len(seen) + len(withheld) == len(train)


def test_the_better_candidate_is_chosen_and_the_test_rows_are_never_seen(task: Task) -> None:
    train, test = task
    candidates = {
        name: (lambda name=name: quick(name)) for name in ("zeros", "transfer", "gene_mean")
    }
    folds = mimic_folds(train.index, folds=4, rng=RNG(0))
    best, score, unseen = nested_choice(candidates, train, folds, rng=RNG(0))
    assert best == "transfer"
    _, zeros, _ = nested_choice({"zeros": candidates["zeros"]}, train, folds, rng=RNG(0))
    assert score > zeros
    assert not unseen.index.isin(test.index).any()
    with pytest.raises(ConfigError, match="no candidate"):
        nested_choice({}, train, folds, rng=RNG(0))


def test_nested_picks_the_sane_penalty(task: Task) -> None:
    train, _ = task
    grid = {"ridge": [0.1, 1e6], "transform": ["none"], "components": [10], "encoded": [6]}
    model = make("nested", base="kernel_ridge", grid=grid, folds=4).fit(train, rng=RNG(0))
    assert "ridge=0.1" in model.chosen  # type: ignore[attr-defined]


def test_row_spearman_is_scipys() -> None:
    from scipy.stats import spearmanr

    left, right = (pd.DataFrame(RNG(i).normal(size=(3, 20)).round(1)) for i in (0, 1))
    expected = [spearmanr(left.iloc[i], right.iloc[i]).statistic for i in range(3)]
    np.testing.assert_allclose(row_spearman(left, right), expected)
    np.testing.assert_array_equal(row_spearman(left, right * 0), [0, 0, 0])


@pytest.mark.parametrize("offset", ["none", "mean", "additive"])
@pytest.mark.parametrize("transform", ["t", "none"])
def test_the_low_rank_target_comes_back(task: Task, offset: str, transform: str) -> None:
    table = TrainTable.of(task[0])
    target = LowRankTarget.fit(table, count=200, transform=transform, offset=offset)  # type: ignore[arg-type]
    scores = target.scores(table.values, table.cell_types)
    np.testing.assert_allclose(
        target.values(scores, table.cell_types, clip=False), table.values, atol=1e-8
    )
    clipped = target.values(1e3 * scores, table.cell_types, clip=True)
    assert (clipped <= table.values.max(axis=0)).all()
    assert (clipped >= table.values.min(axis=0)).all()


def test_the_networks_loss_is_the_rmse_over_all_genes() -> None:
    rng = RNG(0)
    values = rng.normal(size=(6, 40))
    components = Components.fit(values, 3, centre=False)
    scores, guess = components.scores(values), rng.normal(size=(6, 3))
    rest = (values**2).sum(axis=1) - (scores**2).sum(axis=1)
    found = _row_rmse(*(torch.tensor(v) for v in (guess, scores, rest)), 40)
    expected = np.sqrt(((values - components.values(guess)) ** 2).mean(axis=1))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_zeroed_features() -> None:
    shown = _zeroed(torch.ones(200, 50), 0.3, torch.Generator().manual_seed(0))
    assert set(shown.unique().tolist()) == {0.0, 1.0}
    assert float(shown.mean()) == pytest.approx(0.7, abs=0.02)


def test_the_transfer_stack_finds_the_source_that_matters() -> None:
    """T is S1 plus an offset, S2 is noise: the weights say so, and the prediction is near exact."""
    rng = RNG(0)
    compounds, genes = [f"c{i:02d}" for i in range(24)], 300
    profile, noise, offset = (
        rng.normal(size=(24, genes)),
        rng.normal(size=(24, genes)),
        rng.normal(size=genes),
    )
    rows = {("S1", c): profile[i] for i, c in enumerate(compounds)} | {
        ("S2", c): noise[i] for i, c in enumerate(compounds)
    }
    target = {("T", c): profile[i] + offset for i, c in enumerate(compounds)}
    known = dict(list(target.items())[:8])
    frame = lambda d: pd.DataFrame(list(d.values()), pd.MultiIndex.from_tuples(d, names=KEY))  # noqa: E731
    model = make(
        "transfer",
        transform="none",
        bands=[],
        kriging=False,
        ridge=1e-6,
        prior=0.5,
        prior_components=24,
    )
    found = model.fit(frame(rows | known), rng=RNG(0)).predict(frame(target).index)
    weights = model.weights["T"]  # type: ignore[attr-defined]
    assert weights["S1 whole"] > 0.9
    assert abs(weights["S2 whole"]) < 0.1
    assert float(np.sqrt(((found - frame(target)) ** 2).to_numpy().mean())) < 0.4


def test_a_source_missing_a_compound_is_filled_from_the_others(task: Task) -> None:
    train, test = task
    holes = train.drop([("S1", "c20"), ("S2", "c20"), ("S3", "c21")])
    found = quick("transfer").fit(holes, rng=RNG(0)).predict(test.index)
    assert np.isfinite(found.to_numpy()).all()
    whole = quick("transfer").fit(train, rng=RNG(0)).predict(test.index)
    assert np.sqrt(((found - whole) ** 2).to_numpy().mean()) < 0.5


def test_bands_must_grow() -> None:
    with pytest.raises(ConfigError, match="bands"):
        make("transfer", bands=[5, 3])
