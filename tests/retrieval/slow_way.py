"""Retrieval written as plainly as possible: the reference of the tests. It enumerates orders of
ties by definition.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd


def plain_query(sims: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """Metrics of one ranked list without ties; ``positive`` (candidates,) marks positives, the
    others are negatives.
    """
    order = np.argsort(-sims, kind="stable")
    hits = positive[order]
    ranks = np.flatnonzero(hits) + 1
    m, negatives = len(ranks), int((~hits).sum())
    q = (ranks - np.arange(1, m + 1)) / negatives
    edge = (1 - np.exp(-20.0 * q)) / (1 - np.exp(-20.0))
    tops = {f"top_{x:g}": float(((np.sign(x - q) + 1) / 2).mean()) for x in (0.001, 0.01, 0.1)}
    return {
        "ap": float((np.arange(1, m + 1) / ranks).mean()),
        "auc": float(1 - q.mean()),
        "early_auc": float((1 - edge).mean()),
        **tops,
        "p_at_1": float(hits[0]),
        "r_at_5": float(hits[:5].any()),
        "r_at_10": float(hits[:10].any()),
    }


def all_orders(sims: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """The mean of :func:`plain_query` over every order of what ties."""
    seen = []
    for order in permutations(range(len(sims))):
        chosen = np.array(order)
        if (np.diff(sims[chosen]) <= 0).all():
            seen.append(plain_query(np.arange(len(sims), 0, -1), positive[chosen]))
    return pd.DataFrame(seen).mean().to_dict()


def brute_force(
    sims: np.ndarray, meta: pd.DataFrame, same: str, differ: list[str], negatives_same: list[str]
) -> pd.DataFrame:
    """Every query's metrics from the whole (rows, rows) similarity, one Python loop over rows; no
    ties.
    """
    rows = []
    for i in range(len(meta)):
        one = meta.iloc[i]
        alike = (meta[same] == one[same]).to_numpy()
        positive, negative = alike.copy(), ~alike
        positive[i] = False
        for column in differ:
            positive &= (meta[column] != one[column]).to_numpy()
        for column in negatives_same:
            negative &= (meta[column] == one[column]).to_numpy()
        chosen = positive | negative
        usable = positive.any() and negative.any()
        rows.append(plain_query(sims[i, chosen], positive[chosen]) if usable else {})
    return pd.DataFrame(rows)
