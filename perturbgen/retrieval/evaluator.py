"""``retrieve``: rank every query's candidates exactly and say how well its own kind is found.

``controlled`` repeats it with other plates and wells, and with shuffled labels.

Ties have one rule everywhere: tied candidates count as the mean over all their orders, so that a
constant embedding scores exactly what chance gives and the order of the rows never matters.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.console import progress
from perturbgen.core.errors import SchemaError
from perturbgen.core.stats import Array, interval, resample
from perturbgen.retrieval.embedding import (
    Measure,
    Pairing,
    Similarity,
    codes,
    read_embedding,
    read_mask,
    require_labels,
)
from perturbgen.retrieval.ranks import ranked_blocks
from perturbgen.retrieval.scores import expected_ap, group_p_values, score_queries

SIGNIFICANT: Final = 0.05
_FRACTIONS: Final = (0.001, 0.01, 0.1)
_DEPTHS: Final = (1, 5, 10)
_EARLY: Final = 20.0  # how steeply the early area favours the top, as BEDROC's alpha
_RESOLUTION: Final = 1_000_000  # places of the pooled histogram of rank quantiles
_TOP: Final = tuple(f"top_{fraction:g}" for fraction in _FRACTIONS)
_HITS: Final = ("p_at_1", *(f"r_at_{k}" for k in _DEPTHS[1:]))
_COLUMNS: Final = ("ap", "auc", "median_q", *_TOP, "early_auc", *_HITS)  # as the kernel writes them
_MEANS: Final = ("ap", "nap", "auc", "early_auc", *_TOP, *_HITS)
_BY_PAIR: Final = ("auc", "early_auc", *_TOP)
_SHOWN: Final = ("ap", "nap", "auc", "median_q", "top_0.01", "p_at_1")  # of a control
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retrieval:
    """What a retrieval found: by query, by group, by pair, and pooled.

    * ``queries``: one row each, NaN where there was no positive or no negative;
    * ``groups``: means over each group's queries, with p and BH's ``p_bh``;
    * ``pair_means``: a row a group, the means in which every pair counts once;
    * ``histogram``: all positives' rank quantiles, q = place / (places - 1).
    """

    queries: pd.DataFrame
    groups: pd.DataFrame
    pair_means: pd.DataFrame
    histogram: Array
    same: tuple[str, ...]
    seed: int = 0

    def __repr__(self) -> str:
        head = f"Retrieval by {', '.join(self.same)}: {len(self.queries):,} queries"
        table = self.summary().dropna(axis=1, how="all").to_string(float_format="{:.3f}".format)
        return f"{head}, {len(self.groups):,} groups\n{table}"

    def summary(self) -> pd.DataFrame:
        """Rows ``pooled`` (over pairs), ``per query`` and ``per group`` (means of means).

        ``median_q`` is the median over pairs (to 1e-6), over queries' medians and over groups'
        medians; AP belongs to a query and has no pooled value. ``retrieved`` is the share of groups
        with p_bh under .05.
        """
        used = self.queries.dropna(subset="ap")
        pairs = used["positives"]
        rows = {
            "pooled": {name: float((used[name] * pairs).sum() / pairs.sum()) for name in _BY_PAIR},
            "per query": {name: float(used[name].mean()) for name in _MEANS},
            "per group": {name: float(self.groups[name].mean()) for name in _MEANS},
        }
        table = pd.DataFrame(list(rows.values()), index=list(rows), columns=list(_MEANS))
        medians = [self.median_q(), used["median_q"].median(), self.groups["median_q"].median()]
        table.insert(3, "median_q", medians)
        table["retrieved"] = [np.nan, np.nan, float((self.groups["p_bh"] < SIGNIFICANT).mean())]
        table["n"] = [int(pairs.sum()), len(used), len(self.groups)]
        return table

    def median_q(self) -> float:
        """The median rank quantile of all positives."""
        reached = np.cumsum(self.histogram)
        middle = [(reached[-1] - 1) // 2, reached[-1] // 2]
        place = np.searchsorted(reached, middle, side="right").mean()
        return float(place / (len(self.histogram) - 1))

    def curve(self, fractions: Array) -> Array:
        """The share of positives with a rank quantile up to each fraction: the pooled ROC."""
        cumulative = np.cumsum(self.histogram) / self.histogram.sum()
        place = np.floor(np.asarray(fractions) * (len(self.histogram) - 1) + 1e-6).astype(int)
        return cumulative[place]

    def intervals(self, *, draws: int = 1000, level: float = 0.95) -> pd.DataFrame:
        """Bootstrap intervals over groups: ``low`` and ``high`` of each mean of the summary.

        Whole groups are drawn with replacement, since the pairs and queries of one group are not
        independent.
        """
        times = resample(len(self.groups), draws, np.random.default_rng(self.seed))
        parts = {
            "pooled": (self.pair_means, self.groups["pairs"]),
            "per query": (self.groups[list(_MEANS)], self.groups["queries"]),
            "per group": (self.groups[list(_MEANS)], pd.Series(1, self.groups.index)),
        }
        tables = {}
        for name, (values, size) in parts.items():
            # Contiguous: BLAS adds in another order where the draws come column by column.
            weights = np.ascontiguousarray(times * size.to_numpy())
            drawn = weights @ values.to_numpy() / weights.sum(axis=1, keepdims=True)
            ends = np.stack(interval(drawn, level))
            tables[name] = pd.DataFrame(ends, ["low", "high"], values.columns)
        return pd.concat(tables).reindex(columns=list(_MEANS))


def retrieve(
    embedding: Array | pd.DataFrame,
    meta: pd.DataFrame,
    *,
    same: str | Sequence[str],
    differ: str | Sequence[str] = (),
    candidates: Array | None = None,
    queries: Array | None = None,
    negatives: Array | None = None,
    negatives_same: str | Sequence[str] = (),
    negatives_differ: str | Sequence[str] = (),
    similarity: Measure = "cosine",
    chunk: int | None = None,
    device: str = "cpu",
    null_draws: int = 20_000,
    seed: int = 0,
) -> Retrieval:
    """How well profiles find their own kind among all others; exact, itself excluded.

    ``embedding`` (rows, features) and ``meta`` (rows of labels). A query's positives agree with it
    in all of ``same`` and differ in each of ``differ``; its negatives disagree in ``same``, agree
    in ``negatives_same`` and differ in each of ``negatives_differ``; rows that are neither do not
    count. ``queries``, ``candidates`` and ``negatives`` are masks over the rows: which ask, which
    may be found, and which serve as negatives (the DMSO wells). ``similarity`` is cosine,
    correlation, spearman, euclidean, precomputed (the embedding is the matrix itself) or a function
    of (queries, candidates) rows, computed in the embedding's own precision. Ties count as the mean
    over all their orders. ``device`` other than cpu goes to torch. ``null_draws`` rankings are
    drawn where the null is too large to count.

    Per query, over positives and negatives only:

    * ``ap``, ``nap``: average precision, its ties after McSherry and Najork 2008, and
      (AP - E)/(1 - E) with E its expectation by chance (``expected_ap``);
    * ``auc`` = 1 - mean q, ``median_q``: q of a positive is the share of negatives above it, 0 is
      best;
    * ``top_0.01``: share of positives with q under .01 (Donner 2018's recall r(x));
    * ``early_auc``: area under the ROC weighted by exp(-20 u), the top of the list first, as in
      BEDROC (Truchon and Bayly 2007);
    * ``p_at_1``, ``r_at_k``: chance that the best hit, or one of the first k, is a positive.
    """
    same, differ, negatives_same, negatives_differ = (
        require_labels(meta, columns)
        for columns in (same, differ, negatives_same, negatives_differ)
    )
    vectors = read_embedding(embedding, meta)
    pairs = Pairing.by_columns(
        meta,
        same=same,
        differ=differ,
        negatives_same=negatives_same,
        negatives_differ=negatives_differ,
        queries=queries,
        candidates=candidates,
        negatives=negatives,
    )
    if not len(pairs.query) or not len(pairs.candidate):
        raise SchemaError(f"no row has a label in {same}", expected="labels to retrieve by")
    prepared = Similarity.of(vectors, pairs.query, pairs.candidate, similarity)
    table, histogram = _query_metrics(pairs, prepared, chunk=chunk, device=device)
    named = dict.fromkeys((*same, *differ, *negatives_same, *negatives_differ))
    labels = meta.iloc[pairs.query][[column for column in named if column not in table]]
    table = pd.concat([labels, table.set_index(labels.index)], axis=1)
    _require_evaluable(table, same, differ)
    groups, pair_means = _group_tables(table, pairs.queries.group, same, null_draws, seed)
    return Retrieval(table, groups, pair_means, histogram, tuple(same), seed)


def _query_metrics(
    pairs: Pairing, similarity: Similarity, *, chunk: int | None, device: str
) -> tuple[pd.DataFrame, Array]:
    """The metrics of every query, and the pooled histogram of rank quantiles."""
    asked, candidates = len(pairs.query), len(pairs.candidate)
    metrics = np.full((asked, len(_COLUMNS)), np.nan)
    positives, opposed = np.zeros(asked, np.int64), np.zeros(asked, np.int64)
    # Pairs may be too many to keep: their quantiles are counted.
    histogram = np.zeros(_RESOLUTION + 1, np.int64)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, candidates + 1))])
    fractions, depths = np.array(_FRACTIONS), np.array(_DEPTHS)
    with progress("ranking", asked) as tick:
        for rows, part in ranked_blocks(pairs, similarity, chunk=chunk, device=device):
            score_queries(part, harmonic, fractions, depths, _EARLY, metrics[rows], histogram)
            positives[rows], opposed[rows] = part.positives, part.negatives
            tick(len(part.positives))
    table = pd.DataFrame(metrics, columns=list(_COLUMNS))
    table["auc"] = 1 - table["auc"]  # the kernel gives the mean q
    # AP by chance depends on the number of positives, so groups of other sizes compare by nap only.
    chance = expected_ap(positives, positives + opposed)
    table.insert(1, "nap", (table["ap"] - chance) / (1 - chance))
    table.insert(2, "chance", np.where(table["ap"].notna(), chance, np.nan))
    table.insert(0, "positives", positives)
    table.insert(1, "negatives", opposed)
    return table, histogram


def _require_evaluable(table: pd.DataFrame, same: Sequence[str], differ: Sequence[str]) -> None:
    """Some query has both positives and negatives; how many have not is logged."""
    lonely = int((table["positives"] == 0).sum())
    if table["ap"].notna().any():
        if lonely:
            skipped = f"{lonely} of {len(table)}"
            _log.warning("%s queries have no positive (groups of one) and are skipped", skipped)
        return
    rule = f"same {list(same)}" + (f" and another {list(differ)}" if differ else "")
    raise SchemaError(
        f"nothing to retrieve: of {len(table)} queries {lonely} have no positive ({rule})"
        + (f", {len(table) - lonely} no negative" if lonely < len(table) else ""),
        expected="groups of at least two rows, and at least two groups",
        cause="an identifier that is unique to each row, or constant, used as the label",
        fix="choose other columns for same, differ or negatives_same",
    )


def _group_tables(
    table: pd.DataFrame, group: Array, same: Sequence[str], draws: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means over each group's queries with p and BH's p_bh, and means over its pairs."""
    from scipy.stats import false_discovery_control

    usable = table["ap"].notna().to_numpy()
    used, code = table[usable].reset_index(drop=True), group[usable]
    grouped = used.groupby(code, sort=True)
    out = grouped[list(same)].first()
    out["queries"] = grouped.size()
    out["pairs"] = grouped["positives"].sum()
    means: pd.DataFrame = grouped[["ap", "nap", "chance", *_COLUMNS[1:]]].mean()
    means["median_q"] = grouped["median_q"].median()
    out = out.join(means)
    out["p"] = group_p_values(used, code, draws=draws, seed=seed)
    out["p_bh"] = false_discovery_control(out["p"].to_numpy())
    weighted = used[list(_BY_PAIR)].mul(used["positives"], axis=0).groupby(code, sort=True).sum()
    return out.reset_index(drop=True), weighted.div(out["pairs"], axis=0).reset_index(drop=True)


def controlled(
    embedding: Array | pd.DataFrame,
    meta: pd.DataFrame,
    *,
    same: str | Sequence[str],
    differ: str | Sequence[str] = (),
    plate: str | None = None,
    well: str | None = None,
    rng: np.random.Generator,
    **options: Any,
) -> pd.DataFrame:
    """A row per variant of one retrieval (means per query); ``note`` says why one is impossible.

    * ``other plate``, ``other well``: positives must lie on another plate, at another position, so
      that neither can help; ``negatives on the plate``: negatives share the query's plate, so that
      the plate cannot help either;
    * ``shuffled labels``: labels permuted (within the plate, where one is given): what the design
      alone gives;
    * ``the plate itself``, ``the well itself``: the plate (or the position, on another plate) as
      the label, positives and negatives being of other groups: how well a batch is retrieved.
      Chance is an auc of one half, more is leakage.

    ``options`` go to :func:`retrieve`.
    """
    same, differ = require_labels(meta, same), require_labels(meta, differ)
    require_labels(meta, [column for column in (plate, well) if column])
    found = read_mask(options.get("candidates"), meta, "candidates")
    shuffled = _shuffle_labels(meta, same, within=[plate] if plate else [], rows=found, rng=rng)
    variants: dict[str, dict[str, Any]] = {"as given": {}}
    if plate:
        variants["other plate"] = {"differ": [*differ, plate]}
        variants["negatives on the plate"] = {"negatives_same": [plate]}
    if well:
        variants["other well"] = {"differ": [*differ, well]}
    if plate and well:
        variants["other plate and well"] = {"differ": [*differ, plate, well]}
    variants["shuffled labels"] = {}
    if plate:
        variants["the plate itself"] = {"same": [plate], "differ": same, "negatives_differ": same}
    if plate and well:
        # On another plate only: else the plate would help to find the well.
        apart = [*same, plate]
        variants["the well itself"] = {"same": [well], "differ": apart, "negatives_differ": apart}
    rows: dict[str, dict[str, Any]] = {}
    for name, rule in variants.items():
        labels = shuffled if name == "shuffled labels" else meta
        rule = {"same": same, "differ": differ, **options, **rule}
        try:
            result = retrieve(embedding, labels, **rule)
        # One plate only, for instance: the other variants still say something.
        except SchemaError as error:
            rows[name] = {"note": error.what}
            continue
        means: Any = result.summary().loc["per query"]
        shown = {column: float(means[column]) for column in _SHOWN}
        rows[name] = {**shown, "queries": int(means["n"]), "note": ""}
    return pd.DataFrame(list(rows.values()), index=list(rows), columns=[*_SHOWN, "queries", "note"])


def _shuffle_labels(
    meta: pd.DataFrame,
    columns: Sequence[str],
    *,
    within: Sequence[str] = (),
    rows: Array | None = None,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """The table with labels permuted among the rows that agree in ``within``.

    Rows outside the mask ``rows`` (the vehicle) and rows without a label keep what they have.
    """
    place = np.arange(len(meta))
    movable = read_mask(rows, meta, "rows") & (codes(meta, columns) >= 0)
    # Within the plate: what retrieval still finds is then what plates and positions give.
    stratum = codes(meta, within)
    for code in np.unique(stratum):
        here = np.flatnonzero((stratum == code) & movable)
        place[here] = rng.permutation(here)
    shuffled = meta.copy()
    for column in columns:
        shuffled[column] = meta[column].take(place).set_axis(meta.index)
    return shuffled
