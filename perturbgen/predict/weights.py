"""Factors and weights of predictions, found on withheld conditions that were measured.

Shrinkage scales one method's predictions, an ensemble adds up those of several. Both minimise the
mean over conditions of the root mean square error over genes, by least squares in which each
condition has the weight 1 / RMSE of the round before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.stats import non_negative_weights
from perturbgen.predict.estimators import aligned, mrrmse

_ROUNDS: Final = 20
_RESAMPLES: Final = 2000
_TINY: Final = 1e-9
# Tried, relative to the rows' usual mean square.
_NOISES: Final = np.array([0, *2.0 ** np.arange(-6, 4)])


def expression_levels(expression: pd.DataFrame, *, levels: int) -> pd.DataFrame:
    """A level, 0 (lowest) and up, for each gene in each cell type: equally many genes in each.

    ``expression`` and the levels are cell types x genes.
    """
    if not 1 <= levels <= expression.shape[1]:
        raise ConfigError(
            f"{levels} levels of {expression.shape[1]} genes", expected="between one and the genes"
        )
    if expression.isna().to_numpy().any():
        raise SchemaError(
            "expression is missing for some genes", expected="a number for each gene and cell type"
        )
    # By order of appearance where equal, so that levels are equally large.
    rank = expression.rank(axis=1, method="first") - 1
    return (rank * levels // expression.shape[1]).astype(int)


@dataclass(frozen=True)
class Shrinkage:
    """Predictions times factors (cell types x levels), rows freed of what ``noise`` explains.

    A row of mean square v is multiplied by v / (v + noise). Two thirds of the rows are noise:
    one factor for all leaves them too large, and strong compounds too small.
    """

    factors: pd.DataFrame
    noise: float

    def apply(self, predictions: pd.DataFrame, levels: pd.DataFrame) -> pd.DataFrame:
        """Predictions (conditions x genes), shrunk by cell type, expression and strength."""
        kinds = predictions.index.get_level_values(0)
        absent = kinds.unique().difference(self.factors.index)
        if len(absent):
            raise SchemaError(
                f"no factor was fitted for cell type {shorten(absent)}",
                expected=shorten(self.factors.index),
            )
        scale = {
            kind: self.factors.loc[kind].to_numpy()[_level_of(levels, kind, predictions)]
            for kind in kinds.unique()
        }
        gated = predictions.mul(_gate(predictions, self.noise), axis=0)
        return gated * np.stack([scale[kind] for kind in kinds])

    @classmethod
    def fit(cls, predictions: pd.DataFrame, truth: pd.DataFrame, levels: pd.DataFrame) -> Self:
        """The shrinkage by which predictions of measured conditions come closest to them.

        ``predictions`` and ``truth`` are conditions (cell_type, compound) x genes, joined by label;
        how close is the mean of the rows' RMSE.
        """
        predictions = aligned(predictions, truth)
        if not all(np.isfinite(frame.to_numpy(float)).all() for frame in (predictions, truth)):
            raise SchemaError(
                "predictions or truth hold missing values",
                expected="numbers: leave those conditions out",
            )
        # The geometric mean: few strong conditions shall not set the scale of noise.
        usual = float(np.exp(np.log(np.maximum((predictions**2).mean(axis=1), _TINY)).mean()))
        fits = [cls._with_noise(predictions, truth, levels, noise) for noise in usual * _NOISES]
        return min(fits, key=lambda fit: mrrmse(fit.apply(predictions, levels), truth))

    @classmethod
    def _with_noise(
        cls, predictions: pd.DataFrame, truth: pd.DataFrame, levels: pd.DataFrame, noise: float
    ) -> Self:
        """The best factors with some noise; frames have the same labels in the same order."""
        x = predictions.mul(_gate(predictions, noise), axis=0).to_numpy(float)
        y = truth.to_numpy(float)
        kinds = truth.index.get_level_values(0)
        rows = {
            str(kind): _fit_one(x[kinds == kind], y[kinds == kind], _level_of(levels, kind, truth))
            for kind in kinds.unique()
        }
        columns = range(int(levels.to_numpy().max()) + 1)
        return cls(pd.DataFrame.from_dict(rows, orient="index", columns=columns), noise)

    @classmethod
    def by_others(
        cls, predictions: pd.DataFrame, truth: pd.DataFrame, levels: pd.DataFrame
    ) -> pd.DataFrame:
        """Each condition shrunk as those of other compounds call for, as if it were not measured.

        In a cell type of which no other is left, predictions keep their size.
        """
        compounds, kinds = truth.index.get_level_values(1), truth.index.get_level_values(0).unique()
        parts = []
        for compound in compounds.unique():
            here = truth.index[compounds == compound]
            rest = truth.drop(here)
            if not len(rest):
                return predictions
            found = cls.fit(predictions.loc[rest.index], rest, levels)
            # A type that has no other compound keeps its size.
            factors = found.factors.reindex(kinds, fill_value=1.0)
            parts.append(cls(factors, found.noise).apply(predictions.loc[here], levels))
        return pd.concat(parts).loc[truth.index]


def _gate(predictions: pd.DataFrame, noise: float) -> pd.Series:
    """The share of each row's mean square that noise does not explain."""
    power = (predictions**2).mean(axis=1)
    return power / (power + noise).clip(lower=_TINY)


def _level_of(levels: pd.DataFrame, kind: str, like: pd.DataFrame) -> np.ndarray:
    """Levels (genes,) of a cell type in the order of a frame's genes."""
    if kind not in levels.index or not like.columns.isin(levels.columns).all():
        raise SchemaError(
            f"no expression levels for {kind!r} and all genes",
            expected=f"one of {shorten(levels.index)}",
        )
    return levels.loc[kind].reindex(like.columns).to_numpy(int)


def _fit_one(x: np.ndarray, y: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Factors (levels,) for x, y (conditions, genes) and level (genes,) of a cell type.

    Minimised is the mean over conditions of the root mean square error, by weighted least squares
    with the weights 1 / RMSE of the round before. A level without a signal has factor one.
    """
    count = level.max() + 1
    xy, xx = (
        np.stack([np.bincount(level, row, count) for row in values]) for values in (x * y, x * x)
    )
    factors = np.ones(count)
    for _ in range(_ROUNDS):
        error = np.sqrt(((y - factors[level] * x) ** 2).mean(axis=1))
        weights = 1 / np.maximum(error, _TINY)
        top, bottom = weights @ xy, weights @ xx
        best = np.divide(top, bottom, out=np.ones(count), where=bottom > _TINY)
        # Factors above one, beside the gate, overfit the few compounds that they are fitted on.
        factors = np.clip(best, 0.0, 1.0)
    return factors


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
        first = predictions[str(self.weights.index[0])]
        total = first * 0.0
        for name, weight in self.weights.items():
            total += float(weight) * predictions[str(name)].loc[first.index, first.columns]
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
