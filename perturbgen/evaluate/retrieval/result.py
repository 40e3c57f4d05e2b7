"""What a retrieval gives back: tables by query and by group, summaries with intervals, and the pooled curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

Array = np.ndarray[Any, Any]
SIGNIFICANT: Final = 0.05
MEANS: Final = ("ap", "nap", "auc", "early_auc", "top_0.001", "top_0.01", "top_0.1", "p_at_1", "r_at_5", "r_at_10")
BY_PAIR: Final = ("auc", "early_auc", "top_0.001", "top_0.01", "top_0.1")


@dataclass(frozen=True)
class Retrieval:
    """``queries`` (one row each, NaN where there was no positive or no negative), ``groups`` with p and BH's ``p_bh``,
    ``pair_means`` (groups, the means in which every pair counts once), and the pooled ``histogram`` of all positives'
    rank quantiles, q = place / (places - 1).
    """

    queries: pd.DataFrame
    groups: pd.DataFrame
    pair_means: pd.DataFrame
    histogram: Array
    same: tuple[str, ...]
    seed: int = 0

    def summary(self) -> pd.DataFrame:
        """Rows ``pooled`` (over pairs), ``per query`` and ``per group`` (means of means); columns are the metrics.

        ``median_q`` is the median over pairs (to 1e-6), over queries' medians and over groups' medians; AP belongs to a
        query and has no pooled value. ``retrieved`` is the share of groups with p_bh under .05.
        """
        used = self.queries.dropna(subset="ap")
        pairs = used["positives"]
        rows = {
            "pooled": {name: float((used[name] * pairs).sum() / pairs.sum()) for name in BY_PAIR},
            "per query": {name: float(used[name].mean()) for name in MEANS},
            "per group": {name: float(self.groups[name].mean()) for name in MEANS},
        }
        table = pd.DataFrame(list(rows.values()), index=list(rows), columns=list(MEANS))
        table.insert(3, "median_q", [self.median_q(), used["median_q"].median(), self.groups["median_q"].median()])
        table["retrieved"] = [np.nan, np.nan, float((self.groups["p_bh"] < SIGNIFICANT).mean())]
        table["n"] = [int(pairs.sum()), len(used), len(self.groups)]
        return table

    def median_q(self) -> float:
        """The median rank quantile of all positives."""
        total = self.histogram.sum()
        reached = np.searchsorted(np.cumsum(self.histogram), [(total - 1) // 2, total // 2], side="right")
        return float(reached.mean() / (len(self.histogram) - 1))

    def curve(self, fractions: Array) -> Array:
        """The share of all positives with a rank quantile of at most each fraction: the pooled ROC curve."""
        cumulative = np.cumsum(self.histogram) / self.histogram.sum()
        place = np.floor(np.asarray(fractions) * (len(self.histogram) - 1) + 1e-6).astype(int)
        return cumulative[place]

    def intervals(self, *, draws: int = 1000, level: float = 0.95) -> pd.DataFrame:
        """Bootstrap intervals over groups: ``low`` and ``high`` of each row and mean of :meth:`summary`.

        Whole groups are drawn with replacement, since the pairs and queries of one group are not independent.
        """
        rng, n = np.random.default_rng(self.seed), len(self.groups)
        parts = {
            "pooled": (self.pair_means, self.groups["pairs"]),
            "per query": (self.groups[list(MEANS)], self.groups["queries"]),
            "per group": (self.groups[list(MEANS)], pd.Series(1, self.groups.index)),
        }
        times = [np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(draws)]
        edges = [(1 - level) / 2, (1 + level) / 2]
        tables = {}
        for name, (values, size) in parts.items():
            weights = np.stack([drawn * size.to_numpy() for drawn in times]).astype(float)
            means = weights @ values.to_numpy() / weights.sum(axis=1, keepdims=True)
            tables[name] = pd.DataFrame(np.quantile(means, edges, axis=0), ["low", "high"], values.columns)
        return pd.concat(tables).reindex(columns=list(MEANS))
