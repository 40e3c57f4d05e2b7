"""Weighted sums of predictions, the weights found on withheld conditions that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.stats import non_negative_weights
from perturbgen.predict.estimators import aligned, mrrmse

_ROUNDS: Final = 20
_RESAMPLES: Final = 2000
_TINY: Final = 1e-9


@dataclass(frozen=True)
class _Ensemble:
    """Non-negative weights of predictions (their sum is free), and what they gain.

    ``gain`` is the MRRMSE of the best single member less that of the ensemble, each condition
    predicted with weights and a best member found without its compound; ``interval`` holds 95 % of
    its bootstrap over compounds.
    """

    weights: pd.Series
    gain: float
    interval: tuple[float, float]

    def apply(self, predictions: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        """The weighted sum of the members' predictions (conditions x genes), joined by label."""
        weights = {str(name): float(weight) for name, weight in self.weights.items()}
        first = predictions[next(iter(weights))]
        total = first * 0.0
        for name, weight in weights.items():
            total += weight * predictions[name].loc[first.index, first.columns]
        return total

    def summary(
        self, predictions: Mapping[str, pd.DataFrame], truth: pd.DataFrame
    ) -> dict[str, float | str]:
        """Weights, the MRRMSE of the members on the withheld conditions, and the gain, in a row."""
        row: dict[str, float | str] = {}
        row |= {f"weight {name}": float(value) for name, value in self.weights.items()}
        row |= {f"MRRMSE {name}": mrrmse(frame, truth) for name, frame in predictions.items()}
        low, high = self.interval
        return row | {"gain": self.gain, "95 % of it": f"[{low:.4f}, {high:.4f}]"}


def fit_ensemble(
    predictions: Mapping[str, pd.DataFrame], truth: pd.DataFrame, *, rng: np.random.Generator
) -> _Ensemble:
    """The ensemble of the least mean over conditions of the RMSE.

    All frames are conditions (cell_type, compound) x genes with the same labels; no member may have
    learnt from these conditions.
    """
    x, y = _stacked(predictions, truth), truth.to_numpy(float)
    errors = np.sqrt(((y - x) ** 2).mean(axis=2))  # members x conditions
    compounds = truth.index.get_level_values(1)
    if compounds.nunique() < 2:
        raise ConfigError(
            "weights need two or more withheld compounds", expected="measured conditions of several"
        )
    # Without the whole compound: its conditions in other cell types would tell of this one.
    single, joint = np.empty(len(y)), np.empty(len(y))
    for compound in compounds.unique():
        here = (compounds == compound).nonzero()[0]
        others = (compounds != compound).nonzero()[0]
        weights = _fit_weights(x[:, others], y[others])
        # The best single member is chosen without the compound, as the weights are.
        single[here] = errors[errors[:, others].mean(axis=1).argmin(), here]
        joint[here] = np.sqrt(((y[here] - np.tensordot(weights, x[:, here], 1)) ** 2).mean(axis=1))
    # Whole compounds are drawn: intervals over conditions are too narrow where they have several.
    gains = pd.Series(single - joint).groupby(compounds).agg(["sum", "size"]).to_numpy()
    chosen = rng.integers(len(gains), size=(_RESAMPLES, len(gains)))
    total, size = gains[chosen].sum(axis=1).T
    low, high = np.quantile(total / size, [0.025, 0.975])
    found = pd.Series(_fit_weights(x, y), list(predictions), name="weight")
    return _Ensemble(found, float((single - joint).mean()), (float(low), float(high)))


def _stacked(predictions: Mapping[str, pd.DataFrame], truth: pd.DataFrame) -> np.ndarray:
    """Predictions (members, conditions, genes) as the truth is ordered; labels must agree."""
    if not predictions:
        raise ConfigError("no predictions to combine", expected="one or more members")
    parts = {
        name: aligned(frame, truth, name).to_numpy(float) for name, frame in predictions.items()
    }
    bad = [name for name, part in parts.items() if not np.isfinite(part).all()]
    if bad or not np.isfinite(truth.to_numpy(float)).all():
        raise SchemaError(
            f"missing or infinite values in {shorten(bad) or 'the truth'}", expected="numbers"
        )
    return np.stack(list(parts.values()))


def _fit_weights(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weights (members,) of x (members, conditions, genes) for y (conditions, genes).

    Non-negative least squares, each condition weighted by 1 / RMSE of the round before, which makes
    the squares' sum that of the errors themselves.
    """
    # Once for all rounds: a round then costs members², not conditions x genes.
    products = np.einsum("mcg,ncg->cmn", x, x)
    answers = np.einsum("mcg,cg->cm", x, y)
    weights, importance = np.zeros(len(x)), np.ones(len(y))
    for _ in range(_ROUNDS):
        weights = non_negative_weights(np.tensordot(importance, products, 1), importance @ answers)
        error = np.sqrt(((y - np.tensordot(weights, x, 1)) ** 2).mean(axis=1))
        importance = 1 / np.maximum(error, _TINY)
    return weights
