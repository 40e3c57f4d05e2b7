"""The scorecard: every method on every metric between its controls, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError, suggest
from perturbgen.core.stats import Array, divide, interval, means, resample
from perturbgen.evaluate.catalogue import HEADLINE, METRICS
from perturbgen.evaluate.values import Metric

_Role = Literal["method", "baseline", "reference", "negative control", "positive control"]
HEADLINE_NAME: Final = "headline"
# Four things can be drawn in 35 different ways: ends of an interval from so few mean nothing.
FEW: Final = 5


@dataclass(frozen=True, eq=False)
class Scorecard:
    """Scores of methods, and what they mean.

    * ``scores``: rows (method, metric), a column a condition;
    * ``negatives``, ``positive``: the best negative control is a metric's 0, the positive one (or,
      without one, the metric's perfect value) its 1: the share of the dynamic range;
    * ``baselines``: what the others must beat; ``references``: shown without a place;
    * ``strata`` (conditions x ways to divide them) and ``clusters`` (a label a condition, drawn
      together, where there are five or more of them): joined by label;
    * ``info``: kept with the files.
    """

    scores: pd.DataFrame
    negatives: tuple[str, ...]
    positive: str | None = None
    baselines: tuple[str, ...] = ()
    strata: pd.DataFrame | None = None
    clusters: pd.Series | None = None
    headline: tuple[str, ...] = HEADLINE
    resamples: int = 1000
    seed: int = 0
    references: tuple[str, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = self.scores.index
        if list(rows.names) != ["method", "metric"] or rows.has_duplicates:
            raise SchemaError("scores have other rows than (method, metric), each once")
        for name in dict.fromkeys([*rows.get_level_values("metric"), *self.headline]):
            METRICS[name]  # or an error that names the nearest
        if not self.negatives:
            raise ConfigError("a scorecard needs a negative control", fix="negatives=('zeros',)")
        if self.resamples < 1:
            raise ConfigError(f"resamples={self.resamples}", expected="at least 1")
        positive = [self.positive] if self.positive else []
        for name in (*self.negatives, *self.baselines, *self.references, *positive):
            if name not in self.methods:
                raise ConfigError(
                    f"the control {name!r} has no scores", fix=suggest(name, self.methods)
                )
        if self.positive in (*self.negatives, *self.baselines):
            raise ConfigError(
                f"{self.positive!r} is both a positive control and one that should be beaten"
            )
        if self.scores.groupby(level="method").size().nunique() > 1:
            raise SchemaError(
                "some methods have other metrics than others",
                expected="the same metrics for every method",
            )

    def __repr__(self) -> str:
        sizes = f"{self.scores.shape[1]:,} conditions, {len(self.metrics)} metrics"
        lines = [f"Scorecard of {len(self.methods)} methods on {sizes}"]
        rows = self.ranking.to_dict("records")
        lines += [f"  {row['value']:6.3f}  {row['method']} ({row['role']})" for row in rows[:12]]
        return "\n".join([*lines, *([f"  and {len(rows) - 12} more"] if len(rows) > 12 else [])])

    @property
    def methods(self) -> list[str]:
        """The methods, controls among them, in order."""
        return list(dict.fromkeys(self.scores.index.get_level_values("method")))

    @property
    def metrics(self) -> list[Metric]:
        """The records of the metrics, in order."""
        names = dict.fromkeys(self.scores.index.get_level_values("metric"))
        return [METRICS[name] for name in names]

    def role(self, method: str) -> _Role:
        """What a method is there for."""
        if method == self.positive:
            return "positive control"
        if method in self.negatives:
            return "negative control"
        if method in self.references:
            return "reference"
        return "baseline" if method in self.baselines else "method"

    @cached_property
    def overall(self) -> _Panel:
        """All conditions together."""
        return self._panel(np.ones(self.scores.shape[1], bool))

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row for every method and metric, the headline among them, over all conditions."""
        return self.overall.table

    @cached_property
    def ranking(self) -> pd.DataFrame:
        """The headline of every method, best first."""
        rows = self.table[self.table["metric"] == HEADLINE_NAME]
        # Equals by name, so that the order of the input does not matter.
        return rows.sort_values(["value", "method"], ascending=[False, True], ignore_index=True)

    @cached_property
    def stratum_table(self) -> pd.DataFrame:
        """As :attr:`table`, for every level of every stratum; empty where there is none."""
        parts = []
        for name, labels in (self.strata if self.strata is not None else pd.DataFrame()).items():
            for level in sorted(labels.unique()):
                panel = self._panel((labels.reindex(self.scores.columns) == level).to_numpy())
                parts.append(panel.table.assign(stratum=str(name), level=level))
        if not parts:
            return pd.DataFrame(columns=[*self.table.columns, "stratum"])
        return pd.concat(parts, ignore_index=True)

    def difference(self, first: str, second: str) -> tuple[float, float, float]:
        """How far one method's headline is above another's, paired: value, low, high."""
        positions = [self.methods.index(name) for name in (first, second)]
        return self.overall.headline_difference(*positions)

    def _panel(self, chosen: Array) -> _Panel:
        """The scorecard of some conditions (conditions,), with the resamples of those."""
        names = [metric.name for metric in self.metrics]
        ordered = self.scores.loc[[(method, name) for method in self.methods for name in names]]
        values = ordered.to_numpy()[:, chosen].reshape(len(self.methods), len(names), -1)
        clusters = self.clusters_of(chosen)
        # Each panel begins with the seed, so that a stratum is the same alone and among others.
        rng = np.random.default_rng(self.seed)
        counts = resample(values.shape[2], self.resamples, rng, clusters)
        units = list(range(values.shape[2])) if clusters is None else clusters
        codes = {label: code for code, label in enumerate(dict.fromkeys(units))}
        return _Panel(self, values, counts, np.array([codes[label] for label in units]))

    def clusters_of(self, chosen: Array) -> list[Any] | None:
        """What is drawn together of some conditions (conditions,); None where each is drawn alone.

        Conditions of one compound are not independent: drawn apart, 95 % intervals held 81 %. Of
        fewer than five compounds, though, resamples say nothing, of one every resample is the same:
        then the conditions are drawn, and the intervals are about these compounds alone.
        """
        if self.clusters is None:
            return None
        found = self.clusters.reindex(self.scores.columns[chosen]).tolist()
        return found if len(set(found)) >= FEW else None


@dataclass(frozen=True, eq=False)
class _Panel:
    """The numbers of a scorecard over a set of conditions.

    ``values`` (methods, metrics, conditions) and how often each condition is drawn, ``counts``
    (resamples, conditions); those of one number in ``units`` (conditions,) are drawn together. All
    draws below are (1 + resamples, ...), of which the first are the conditions as they are.
    """

    card: Scorecard
    values: Array
    counts: Array
    units: Array

    @property
    def drawn(self) -> int:
        """How many there are to draw from, conditions or clusters."""
        return len(set(self.units.tolist()))

    @cached_property
    def draws(self) -> Array:
        """Means of the resamples (1 + resamples, methods, metrics)."""
        # The conditions as they are go first, through the same sums as the resamples.
        counts = np.vstack([np.ones(self.counts.shape[1]), self.counts])
        methods, metrics, conditions = self.values.shape
        flat = means(self.values.reshape(-1, conditions), counts)
        return flat.reshape(len(counts), methods, metrics)

    @cached_property
    def _upwards(self) -> Array:
        """The draws with every metric turned so that more is better."""
        return self.draws * np.array([metric.sign for metric in self.card.metrics])

    def _best_of(self, names: Sequence[str]) -> Array:
        """The best of some methods for each metric (metrics,), as a position."""
        positions = np.array([self.card.methods.index(name) for name in names])
        # A method that has no value on a metric is no bar for others.
        found = np.nan_to_num(self._upwards[0, positions], nan=-np.inf)
        return positions[np.argmax(found, axis=0)]

    @cached_property
    def _negative(self) -> Array:
        """Which method is each metric's negative control (metrics,): the best of them."""
        return self._best_of(self.card.negatives)

    @cached_property
    def _span(self) -> tuple[Array, Array]:
        """The negative control's draws, and how far the positive control is above them."""
        floor = self._upwards[:, self._negative, np.arange(len(self._negative))]
        if self.card.positive is not None:
            return floor, self._upwards[:, self.card.methods.index(self.card.positive)] - floor
        # Without a measured positive control the metric's best value is the ceiling.
        perfect = np.array([metric.sign * metric.best for metric in self.card.metrics], float)
        return floor, perfect - floor

    @cached_property
    def ranks(self) -> Array:
        """Which metrics have a dynamic range (metrics,): controls differ by more than chance."""
        _, span = self._span
        low, _ = interval(span[1:])
        # Without this a metric on which a replicate is no better than zeros would divide by noise.
        return np.isfinite(span[0]) & (span[0] > 0) & (np.isnan(low) | (low > 0))

    @cached_property
    def _shares(self) -> Array:
        """Shares of the dynamic range (1 + resamples, methods, metrics); NaN without one."""
        floor, span = (draws[:, None] for draws in self._span)
        share = divide(self._upwards - floor, np.where(span > 0, span, 0.0), np.nan)
        return np.where(self.ranks & np.isfinite(span), share, np.nan)

    @cached_property
    def known(self) -> Array:
        """On how many conditions each metric says something of any method (metrics,)."""
        return np.isfinite(self.values).any(axis=0).sum(axis=1)

    @cached_property
    def heads(self) -> Array:
        """Which metrics make the headline (metrics,): those of it that rank, on enough conditions.

        With a value for fewer than half of the conditions a metric would be a full part of a number
        that is said to be about all of them.
        """
        asked = np.array([metric.name in self.card.headline for metric in self.card.metrics], bool)
        return asked & self.ranks & (2 * self.known >= self.values.shape[2])

    @cached_property
    def _headline(self) -> Array:
        """The mean share over the headline's metrics that rank (1 + resamples, methods)."""
        usable = np.flatnonzero(self.heads)
        # The same metrics in every resample: else their means could not be compared.
        if not len(usable):
            return np.full(self._shares.shape[:2], np.nan)
        return self._shares[:, :, usable].mean(axis=2)

    def headline_difference(self, first: int, second: int) -> tuple[float, float, float]:
        """Of two methods by position: on the conditions as they are, and its 95 % interval."""
        draws = (self._headline[:, first] - self._headline[:, second])[:, None]
        low, high = self._bounds(draws)
        return float(draws[0, 0]), float(low[0]), float(high[0])

    @cached_property
    def table(self) -> pd.DataFrame:
        """Rows of every metric, the headline first."""
        # A baseline that is worse than zeros is no bar, so the controls are among them.
        beaten = (*self.card.negatives, *self.card.baselines)
        positions = [self.card.methods.index(name) for name in beaten]
        bar = max(positions, key=lambda i: np.nan_to_num(self._headline[0, i], nan=-np.inf))
        ranks = bool(np.isfinite(self._headline[0]).any())
        shown = [self._rows(HEADLINE_NAME, self._headline, bar, ranks=ranks)]
        bars = self._best_of(beaten)
        for i, metric in enumerate(self.card.metrics):
            draws, shares = self.draws[:, :, i], self._shares[:, :, i]
            ranks, negative = bool(self.ranks[i]), self.card.methods[int(self._negative[i])]
            about: dict[str, Any] = {"ranks": ranks, "drawn": self._witnesses(i)}
            rows = self._rows(metric.name, draws, int(bars[i]), shares, negative, **about)
            shown.append(rows.assign(conditions=np.isfinite(self.values[:, i]).sum(axis=1)))
        return pd.concat(shown, ignore_index=True)

    def _rows(
        self,
        metric: str,
        draws: Array,
        bar: int,
        shares: Array | None = None,
        negative: str = "",
        *,
        ranks: bool,
        drawn: int | None = None,
    ) -> pd.DataFrame:
        """Values, intervals and paired differences to the method ``bar``, from draws.

        ``shares`` are draws of the share of the dynamic range, by default the same.
        """
        low, high = self._bounds(draws, drawn)
        shares = draws if shares is None else shares
        share = shares[0], *self._bounds(shares, drawn)
        # Conditions differ far more than methods do: only differences on the same draws tell.
        difference = draws - draws[:, [bar]]
        difference_low, difference_high = self._bounds(difference, drawn)
        return pd.DataFrame(
            {
                "method": self.card.methods,
                "role": [self.card.role(name) for name in self.card.methods],
                "metric": metric,
                "conditions": self.values.shape[2],
                "value": draws[0],
                "low": low,
                "high": high,
                "share": share[0],
                "share_low": share[1],
                "share_high": share[2],
                "ranks": ranks,
                "baseline": self.card.methods[bar],
                "difference": difference[0],
                "difference_low": difference_low,
                "difference_high": difference_high,
                "negative": negative,
            }
        )

    def _witnesses(self, metric: int) -> int:
        """How many that are drawn have a value of a metric."""
        return len(set(self.units[np.isfinite(self.values[:, metric]).any(axis=0)].tolist()))

    def _bounds(self, draws: Array, drawn: int | None = None) -> tuple[Array, Array]:
        """The interval of draws (1 + resamples, methods); fewer than five things have none."""
        if (self.drawn if drawn is None else drawn) < FEW:
            nothing = np.full(draws.shape[1], np.nan)
            return nothing, nothing
        return interval(draws[1:])
