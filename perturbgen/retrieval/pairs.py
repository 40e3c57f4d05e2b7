"""Who is a positive and who is a negative of whom, from columns of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten, suggest

Array = np.ndarray[Any, Any]
_UNKNOWN = -1


@dataclass(frozen=True)
class Pairs:
    """Queries (rows) against candidates (rows); every label is an integer code, -1 where it is unknown.

    Group ``g``'s members among the candidates are ``members[member_starts[g]:member_starts[g + 1]]``, and the possible
    negatives of stratum ``s`` are ``negatives[negative_starts[s]:negative_starts[s + 1]]``, both candidate numbers.
    """

    query: Array  # (queries,) rows of the embedding
    candidate: Array  # (candidates,) rows of the embedding
    itself: Array  # (queries,) the query's own number among the candidates, -1 if it is none
    query_group: Array
    candidate_group: Array
    query_stratum: Array
    query_differ: Array  # (queries, columns in which positives differ)
    candidate_differ: Array
    query_opposed: Array  # (queries, columns in which negatives differ)
    candidate_opposed: Array
    members: Array
    member_starts: Array
    negatives: Array
    negative_starts: Array

    def capacity(self, block: slice) -> Array:
        """(queries + 1,) offsets with room for every member of each query's group."""
        sizes = np.diff(self.member_starts)[self.query_group[block]]
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def codes(meta: pd.DataFrame, columns: Sequence[str]) -> Array:
    """(rows,) one integer for each combination of values, in order of appearance; -1 where any value is missing."""
    combined = np.zeros(len(meta), np.int64)
    for column in columns:
        one, values = pd.factorize(meta[column])
        combined = np.where(
            (combined < 0) | (one < 0), _UNKNOWN, combined * (len(values) + 1) + one
        )
        known = combined >= 0
        combined[known] = pd.factorize(combined[known])[0]
    return combined


def _separate_codes(meta: pd.DataFrame, columns: Sequence[str]) -> Array:
    """(rows, columns) the code of each column on its own."""
    out = np.empty((len(meta), len(columns)), np.int64)
    for j, column in enumerate(columns):
        out[:, j] = codes(meta, [column])
    return out


def make_pairs(
    meta: pd.DataFrame,
    *,
    same: Sequence[str],
    differ: Sequence[str] = (),
    negatives_same: Sequence[str] = (),
    negatives_differ: Sequence[str] = (),
    queries: Array | None = None,
    candidates: Array | None = None,
    negatives: Array | None = None,
) -> Pairs:
    """Positives agree in all of ``same`` and differ in each of ``differ``; negatives disagree in ``same``.

    ``negatives_same`` restricts negatives to rows that agree with the query there (the same plate), and
    ``negatives_differ`` to rows that differ in each of its columns. The masks (rows,) say who asks, who may be found,
    and who serves as a negative (for instance the DMSO wells). A row whose ``same`` is
    missing takes no part, unless ``negatives`` names it; one whose ``differ`` is missing is nobody's positive.
    """
    require_labels(meta, [*same, *differ, *negatives_same, *negatives_differ])
    if not same:
        raise SchemaError(
            "no column in same",
            expected="the columns in which positives agree",
            fix='same=["compound"]',
        )
    group = codes(meta, same)
    stratum = codes(meta, negatives_same)
    found = read_mask(candidates, meta, "candidates")
    asking = read_mask(queries, meta, "queries") & (group >= 0)
    if negatives is None:
        against = found & (group >= 0) & (stratum >= 0)
    else:
        against = read_mask(negatives, meta, "negatives") & (stratum >= 0)
    possible = (found & (group >= 0)) | against
    candidate = np.flatnonzero(possible)
    number = np.full(len(meta), _UNKNOWN)
    number[candidate] = np.arange(len(candidate))
    differs, opposes = _separate_codes(meta, differ), _separate_codes(meta, negatives_differ)
    query = np.flatnonzero(asking)
    members, member_starts = _by_code(
        group[candidate], found[candidate], int(group.max(initial=-1)) + 1
    )
    opposed, negative_starts = _by_code(
        stratum[candidate], against[candidate], int(stratum.max(initial=-1)) + 1
    )
    return Pairs(
        query=query,
        candidate=candidate,
        itself=number[query],
        query_group=group[query],
        candidate_group=group[candidate],
        query_stratum=stratum[query],
        query_differ=differs[query],
        candidate_differ=differs[candidate],
        query_opposed=opposes[query],
        candidate_opposed=opposes[candidate],
        members=members,
        member_starts=member_starts,
        negatives=opposed,
        negative_starts=negative_starts,
    )


def _by_code(code: Array, wanted: Array, count: int) -> tuple[Array, Array]:
    """The wanted positions sorted by code, and where each of ``count`` codes begins."""
    position = np.flatnonzero(wanted & (code >= 0))
    order = position[np.argsort(code[position], kind="stable")]
    return order, np.concatenate(
        [[0], np.cumsum(np.bincount(code[position], minlength=count))]
    ).astype(np.int64)


def require_labels(meta: pd.DataFrame, columns: Sequence[str]) -> None:
    """All columns are there."""
    for column in columns:
        if column not in meta:
            raise SchemaError(
                f"no column {column!r} among the {len(meta.columns)} label columns",
                expected="a column of labels",
                fix=suggest(column, [str(name) for name in meta.columns]),
            )


def read_mask(mask: Array | None, meta: pd.DataFrame, name: str) -> Array:
    """A mask over the rows; all of them by default. A labelled one is joined by label."""
    if mask is None:
        return np.ones(len(meta), bool)
    if isinstance(mask, pd.Series):
        absent = meta.index.difference(mask.index)
        if len(absent):
            raise SchemaError(
                f"{name} lacks {len(absent)} rows: {shorten(absent)}",
                expected="a value for every row",
            )
        mask = mask.loc[meta.index].to_numpy()
    mask = np.asarray(mask)
    if mask.shape != (len(meta),) or mask.dtype != bool:
        raise SchemaError(
            f"{name} has shape {mask.shape} and type {mask.dtype}",
            expected=f"{len(meta)} booleans, one a row",
        )
    return mask
