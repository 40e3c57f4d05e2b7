"""What may be a positive or a negative of a query: said by columns, kept as codes.

The rules themselves are in ``ranks``: ``_find_positives``, and for negatives ``_count_negatives``
(CPU) and ``_DeviceCounter._histograms`` (GPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError
from perturbgen.core.stats import Array
from perturbgen.retrieval.embedding import codes, read_mask, require_labels


class Queries(NamedTuple):
    """Labels of queries as integer codes, -1 where unknown."""

    itself: Array  # (queries,) the query's own number among the candidates, -1 if it is none
    group: Array
    stratum: Array
    differ: Array  # (queries, columns in which positives differ)
    opposed: Array  # (queries, columns in which negatives differ)


class Candidates(NamedTuple):
    """Labels of candidates, and lists of them.

    Group ``g``'s members are ``members[member_starts[g]:member_starts[g + 1]]``, and the possible
    negatives of stratum ``s`` are ``negatives[negative_starts[s]:negative_starts[s + 1]]``.
    """

    group: Array
    differ: Array
    opposed: Array
    members: Array
    member_starts: Array
    negatives: Array
    negative_starts: Array


@dataclass(frozen=True)
class Pairing:
    """Queries against candidates: their rows in the embedding, and their labels."""

    query: Array
    candidate: Array
    queries: Queries
    among: Candidates

    @classmethod
    def by_columns(
        cls,
        meta: pd.DataFrame,
        *,
        same: Sequence[str],
        differ: Sequence[str] = (),
        negatives_same: Sequence[str] = (),
        negatives_differ: Sequence[str] = (),
        queries: Array | None = None,
        candidates: Array | None = None,
        negatives: Array | None = None,
    ) -> Self:
        """Positives agree in ``same`` and differ in ``differ``; negatives disagree in ``same``.

        ``negatives_same`` restricts negatives to rows that agree with the query there (the same
        plate), and ``negatives_differ`` to rows that differ in each of its columns. The masks
        (rows,) say which rows ask, which may be found, and which serve as negatives (for instance
        the DMSO wells). A row without ``same`` takes no part, unless ``negatives`` names it; one
        without ``differ`` is no query's positive.
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
        # Rows that no query can find or be measured against are dropped before any similarity.
        candidate = np.flatnonzero((found & (group >= 0)) | against)
        number = np.full(len(meta), -1)
        number[candidate] = np.arange(len(candidate))
        differs, opposes = _separate_codes(meta, differ), _separate_codes(meta, negatives_differ)
        query = np.flatnonzero(asking)
        groups, layers = int(group.max(initial=-1)) + 1, int(stratum.max(initial=-1)) + 1
        asked = Queries(number[query], group[query], stratum[query], differs[query], opposes[query])
        among = Candidates(
            group[candidate],
            differs[candidate],
            opposes[candidate],
            *_by_code(group[candidate], found[candidate], groups),
            *_by_code(stratum[candidate], against[candidate], layers),
        )
        return cls(query, candidate, asked, among)


def _separate_codes(meta: pd.DataFrame, columns: Sequence[str]) -> Array:
    """(rows, columns) the code of each column on its own."""
    out = np.empty((len(meta), len(columns)), np.int64)
    for j, column in enumerate(columns):
        out[:, j] = codes(meta, [column])
    return out


def _by_code(code: Array, wanted: Array, count: int) -> tuple[Array, Array]:
    """The wanted positions sorted by code, and where each of ``count`` codes begins."""
    position = np.flatnonzero(wanted & (code >= 0))
    order = position[np.argsort(code[position], kind="stable")]
    ends = np.cumsum(np.bincount(code[position], minlength=count))
    return order, np.concatenate([[0], ends]).astype(np.int64)
