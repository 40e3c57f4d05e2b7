"""What people do to a prediction to please a metric: none of it may raise the headline."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from perturbgen.evaluate import scorecard
from tests.evaluate.tables import experiment

Attack = Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]


def like(table: pd.DataFrame, values: object) -> pd.DataFrame:
    """Values with a table's labels."""
    whole = np.array(np.broadcast_to(values, table.shape))  # type: ignore[arg-type]
    return pd.DataFrame(whole, table.index, table.columns)


ATTACKS: dict[str, Attack] = {
    "scaled up": lambda p, rng: 1.2 * p,
    "scaled far up": lambda p, rng: 50 * p,
    "scaled down": lambda p, rng: 0.05 * p,
    "rows scaled apart": lambda p, rng: p.mul(rng.uniform(0.1, 10, len(p)), axis=0),
    "sign only": lambda p, rng: np.sign(p),
    "log of its size": lambda p, rng: np.sign(p) * np.log1p(np.abs(p)),
    "noise": lambda p, rng: p + rng.normal(size=p.shape),
    "loud noise": lambda p, rng: p + 20 * rng.normal(size=p.shape),
    "genes shuffled": lambda p, rng: like(p, rng.permuted(p.to_numpy(), axis=1)),
    "genes shuffled alike": lambda p, rng: like(p, p.to_numpy()[:, rng.permutation(p.shape[1])]),
    "conditions shuffled": lambda p, rng: like(p, p.to_numpy()[rng.permutation(len(p))]),
    "zeros": lambda p, rng: like(p, 0.0),
    "a constant": lambda p, rng: like(p, 0.3),
    "a large constant": lambda p, rng: like(p, 1e6),
    "the gene mean": lambda p, rng: like(p, p.to_numpy().mean(axis=0)),
    "a constant added": lambda p, rng: p + 5,
    "negated": lambda p, rng: -p,
    "clipped": lambda p, rng: p.clip(-0.5, 0.5),
    "strongest genes only": lambda p, rng: p.where(
        p.abs().rank(axis=1, ascending=False) <= 20, 0.0
    ),
}
# cannot move it at all
REAL_EFFECT = {"scaled up", "scaled far up", "scaled down", "rows scaled apart"}


@pytest.fixture(scope="module")
def headlines() -> pd.Series:
    """The headline of an honest prediction and of what the attacks make of it, on one truth."""
    truth, honest, signal = experiment(conditions=40, genes=500)
    rng = np.random.default_rng(0)
    attacked = {name: attack(honest, rng) for name, attack in ATTACKS.items()}
    names = [
        "mean_rowwise_pearson",
        "mean_rowwise_spearman",
        "perturbation_discrimination",
        "top_100_overlap",
    ]
    card = scorecard(
        truth,
        {"honest": honest, "signal": signal, **{f"attack {n}": t for n, t in attacked.items()}},
        positive="signal",
        metrics=names,
        resamples=50,
    )
    return card.ranking.set_index("method")["value"]


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_raises_the_headline(headlines: pd.Series, name: str) -> None:
    attacked, honest = headlines[f"attack {name}"], headlines["honest"]
    if name in REAL_EFFECT:
        assert attacked == pytest.approx(honest, abs=1e-9)
    else:
        assert attacked < honest + 1e-9
    assert honest > 0.5


@pytest.mark.parametrize(
    "name", ["zeros", "a constant", "a large constant", "genes shuffled", "genes shuffled alike"]
)
def test_what_says_nothing_scores_nothing(headlines: pd.Series, name: str) -> None:
    assert headlines[f"attack {name}"] == pytest.approx(0, abs=0.03)


def test_noise_lowers_the_headline_step_by_step() -> None:
    truth, honest, signal = experiment(conditions=40, genes=500, seed=1)
    noise = np.random.default_rng(1).normal(size=honest.shape)
    levels = {f"{level}": honest + level * noise for level in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)}
    card = scorecard(truth, {"signal": signal, **levels}, positive="signal", resamples=10)
    ordered = card.ranking.set_index("method")["value"][list(levels)]
    assert ordered.is_monotonic_decreasing


def test_scaling_does_move_the_errors_which_is_why_they_are_no_part_of_it() -> None:
    truth, honest, _ = experiment()
    card = scorecard(truth, {"honest": honest, "scaled": 1.5 * honest}, resamples=10)
    errors = card.table.set_index(["method", "metric"])["value"]
    assert errors["scaled", "mean_rowwise_rmse"] < errors["honest", "mean_rowwise_rmse"]
    assert errors["scaled", "headline"] == pytest.approx(errors["honest", "headline"])
