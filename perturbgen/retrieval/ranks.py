"""Counting, block by block, how many negatives stand above each positive; on a CPU's cores or on a GPU.

Similarities as matrix products of prepared rows, a block of queries at a time.

The same counts with torch, for a GPU: products, a binary search and a histogram, block by block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import MissingDependencyError, SchemaError, shorten, suggest
from perturbgen.core.system import cores
from perturbgen.retrieval.kernels import spread_all
from perturbgen.retrieval.pairs import Pairs

if TYPE_CHECKING:
    from torch import Tensor

_Array = np.ndarray[Any, Any]
Measure = str | Callable[[_Array, _Array], _Array]
_NAMES: Final = ("cosine", "correlation", "spearman", "euclidean", "precomputed")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Similarity:
    """Prepared queries and candidates; ``column[c]`` is candidate c's row among the distinct ones."""

    queries: _Array
    candidates: _Array
    column: _Array
    product: Callable[[_Array, _Array], _Array] | None = None  # None: the plain matrix product

    def block(self, rows: slice) -> _Array:
        """(queries in the block, distinct candidates), larger is more alike."""
        queries = self.queries[rows]
        if self.product is None:
            return queries @ self.candidates.T
        values = np.asarray(self.product(queries, self.candidates))
        expected = (len(queries), len(self.candidates))
        if values.shape != expected:
            raise SchemaError(
                f"the similarity gave shape {values.shape}",
                expected=f"(queries, candidates) = {expected}",
            )
        if not np.isfinite(values).all():
            raise SchemaError(
                "the similarity gave NaN or infinity", expected="a finite number for every pair"
            )
        return np.ascontiguousarray(values)


def prepare(vectors: _Array, query: _Array, candidate: _Array, measure: Measure) -> Similarity:
    """Rows ready for products. Equal candidates share one column, so that what is tied is tied to the last bit."""
    if isinstance(measure, str) and measure not in _NAMES:
        raise SchemaError(
            f"no similarity {measure!r}: {suggest(measure, _NAMES)}", expected=shorten(_NAMES)
        )
    if measure == "precomputed":
        return _precomputed(vectors, query, candidate)
    if callable(measure):
        left = right = vectors
    elif measure == "euclidean":
        left, right = _euclidean(vectors)
    else:
        left = right = unit_rows(vectors, measure)
    kept, column = _distinct(right[candidate])
    return Similarity(
        left[query], right[candidate[kept]], column, measure if callable(measure) else None
    )


def _precomputed(matrix: _Array, query: _Array, candidate: _Array) -> Similarity:
    """The embedding is itself the (rows, rows) matrix of similarities, row i being query i's."""
    if matrix.shape[0] != matrix.shape[1]:
        raise SchemaError(
            f"a precomputed similarity of shape {matrix.shape}", expected="(rows, rows)"
        )
    return Similarity(
        query, candidate, np.arange(len(candidate)), lambda q, c: matrix[np.ix_(q, c)]
    )


def unit_rows(vectors: _Array, measure: str) -> _Array:
    """Rows of length one: as they are (cosine), centred (correlation) or centred ranks (spearman).

    A zero vector, and a constant one where rows are centred, stays zero: it is equally far from everything.
    """
    rows = _ranks(vectors) if measure == "spearman" else vectors
    if measure in ("correlation", "spearman"):
        rows = np.where(
            np.ptp(rows, axis=1, keepdims=True) == 0, 0, rows - rows.mean(axis=1, keepdims=True)
        )
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    empty = largest[:, 0] == 0
    if empty.any():
        log.warning(
            "%d of %d rows are %s vectors: their similarity to everything is 0",
            empty.sum(),
            len(rows),
            "zero" if measure == "cosine" else "constant",
        )
    scaled = rows / np.where(largest == 0, 1, largest)  # tiny and huge rows have a length, too
    length = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))
    return scaled / np.where(length == 0, 1, length)[:, None]


def _ranks(vectors: _Array, *, block: int = 4096) -> _Array:
    """Ranks within each row, ties averaged."""
    from scipy.stats import rankdata

    out = np.empty_like(vectors)
    for start in range(0, len(vectors), block):
        out[start : start + block] = rankdata(vectors[start : start + block], axis=1)
    return out


def _euclidean(vectors: _Array) -> tuple[_Array, _Array]:
    """Rows whose product is 2 x.y - |y|^2, which falls as the distance from x to y grows."""
    centred = vectors - vectors.mean(axis=0)
    square = np.einsum("ij,ij->i", centred, centred)[:, None]
    return np.hstack([2 * centred, -np.ones_like(square)]), np.hstack([centred, square])


def _distinct(vectors: _Array, *, block: int = 4096) -> tuple[_Array, _Array]:
    """The first of each set of equal rows, and each row's place among them."""
    weights = np.random.default_rng(0).standard_normal(vectors.shape[1])
    starts = range(
        0, len(vectors), block
    )  # each row is summed alone: equal rows have equal marks, wherever they lie
    mark = np.concatenate(
        [np.zeros(0), *((vectors[s : s + block] * weights).sum(axis=1) for s in starts)]
    )
    _, first, column = np.unique(mark, return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[column] != np.arange(len(vectors)))
    if not len(repeated) or not (vectors[repeated] == vectors[first[column[repeated]]]).all():
        return np.arange(len(vectors)), np.arange(len(vectors))
    kept = np.sort(first)
    place = np.empty(len(first), np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    return kept, place[column]


def read_embedding(embedding: _Array | pd.DataFrame, meta: pd.DataFrame) -> _Array:
    """(rows, features) floats without NaN, a row for each of meta's; a labelled table is joined by label."""
    if isinstance(embedding, pd.DataFrame):
        absent = meta.index.difference(embedding.index)
        if len(absent) or not embedding.index.is_unique:
            raise SchemaError(
                f"the embedding lacks {len(absent)} of the {len(meta)} rows, or repeats some: {shorten(absent)}",
                expected="one row of the embedding for each row of the labels",
            )
        embedding = embedding.loc[meta.index].to_numpy()
    vectors = np.asarray(embedding)
    if vectors.ndim != 2 or len(vectors) != len(meta) or 0 in vectors.shape:
        raise SchemaError(
            f"an embedding of shape {vectors.shape} for {len(meta)} labelled rows",
            expected="(rows, features)",
        )
    if vectors.dtype.kind not in "fiub":
        raise SchemaError(f"an embedding of type {vectors.dtype}", expected="numbers")
    vectors = vectors if vectors.dtype in (np.float32, np.float64) else vectors.astype(np.float32)
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise SchemaError(
            f"{bad.sum()} rows of the embedding hold NaN or infinity: {shorten(meta.index[bad])}",
            expected="finite numbers",
            cause="genes that were not measured, a feature of zero variance, or float16 that overflowed",
            fix="drop those rows or features, or fill them in",
        )
    return vectors


_BLOCK_BYTES = 48 << 20  # of similarities in one block; a block per core is in flight


@dataclass(frozen=True)
class _Ranked:
    """A block's positives, the best first: query i's are at ``offsets[i]`` and the next ``count[i] - 1`` places."""

    rows: slice
    offsets: _Array
    count: _Array
    sims: _Array
    above: _Array
    tied: _Array
    opposed: _Array  # (queries,) negatives of each query


def _block_size(pairs: Pairs, similarity: Similarity, chunk: int | None) -> int:
    """Queries in a block."""
    if chunk is not None:
        return max(1, chunk)
    wide = max(1, similarity.queries.itemsize * len(similarity.candidates))
    return int(np.clip(_BLOCK_BYTES // wide, 1, 4096))


def ranked_blocks(
    pairs: Pairs, similarity: Similarity, *, chunk: int | None, device: str
) -> Iterator[_Ranked]:
    """Blocks in order; on the CPU as many are in flight as there are cores."""
    size = _block_size(pairs, similarity, chunk)
    blocks = [slice(s, min(s + size, len(pairs.query))) for s in range(0, len(pairs.query), size)]
    if device != "cpu":
        yield from map(_DeviceCounter(pairs, similarity, device).rank, blocks)
        return
    from threadpoolctl import threadpool_limits

    workers = min(len(blocks), cores())
    with threadpool_limits(1 if workers > 1 else None), ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[_Ranked]] = []
        for block in blocks:
            if len(waiting) == workers:
                yield waiting.pop(0).result()
            waiting.append(pool.submit(_rank_block, pairs, similarity, block))
        for future in waiting:
            yield future.result()


def _rank_block(pairs: Pairs, similarity: Similarity, rows: slice) -> _Ranked:
    """One block on one core."""
    from perturbgen.retrieval.kernels import count_negatives, sort_positives

    block = similarity.block(rows)
    part, who = _positives(pairs, rows, block.dtype)
    sort_positives(block, similarity.column, who, part.offsets, part.count, part.sims)
    count_negatives(
        block,
        similarity.column,
        pairs.itself[rows],
        pairs.query_group[rows],
        pairs.query_stratum[rows],
        pairs.candidate_group,
        pairs.query_opposed[rows],
        pairs.candidate_opposed,
        pairs.negatives,
        pairs.negative_starts,
        part.offsets,
        part.sims,
        part.count,
        part.above,
        part.tied,
        part.opposed,
    )
    return part


def _positives(pairs: Pairs, rows: slice, dtype: Any) -> tuple[_Ranked, _Array]:
    """Room for a block's positives, and who they are (candidate numbers, in the same places)."""
    from perturbgen.retrieval.kernels import find_positives

    offsets = pairs.capacity(rows)
    queries, room = len(offsets) - 1, int(offsets[-1])
    who, count = np.zeros(room, np.int64), np.zeros(queries, np.int64)
    find_positives(
        pairs.itself[rows],
        pairs.query_group[rows],
        pairs.query_differ[rows],
        pairs.candidate_differ,
        pairs.members,
        pairs.member_starts,
        offsets,
        who,
        count,
    )
    above, tied, opposed = (
        np.zeros(room, np.int64),
        np.zeros(room, np.int64),
        np.zeros(queries, np.int64),
    )
    return _Ranked(rows, offsets, count, np.zeros(room, dtype), above, tied, opposed), who


class _DeviceCounter:
    """Candidates and labels resident on the device; ``rank`` does one block of queries."""

    def __init__(self, pairs: Pairs, similarity: Similarity, device: str) -> None:
        import torch

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise MissingDependencyError(
                f"device {device!r} was asked for and torch sees no GPU",
                fix="device='cpu', or a CUDA build of torch",
            )
        self._pairs, self._similarity, self._torch = pairs, similarity, torch
        self._device = torch.device(device)
        stratum = np.full(len(pairs.candidate), -1)
        for number, (start, end) in enumerate(
            zip(pairs.negative_starts, pairs.negative_starts[1:], strict=False)
        ):
            stratum[pairs.negatives[start:end]] = number
        self._stratum, self._group = self._send(stratum), self._send(pairs.candidate_group)
        self._opposed = [self._send(column) for column in pairs.candidate_opposed.T]
        self._column = self._send(similarity.column)
        self._candidates = None if similarity.product else self._send(similarity.candidates)

    def _send(self, array: _Array) -> Tensor:
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def rank(self, rows: slice) -> _Ranked:
        """One block."""
        torch, block = self._torch, self._block(rows)
        part, who = _positives(
            self._pairs, rows, np.float64 if block.dtype == torch.float64 else np.float32
        )
        most = int(part.count.max(initial=0))
        if most == 0:
            return part
        filled = np.arange(most) < part.count[:, None]
        place = (part.offsets[:-1, None] + np.arange(most))[filled]
        chosen = np.zeros(filled.shape, np.int64)
        chosen[filled] = self._similarity.column[who[place]]
        sims = block.gather(1, self._send(chosen)).masked_fill(~self._send(filled), -torch.inf)
        worst_first = sims.sort(dim=1).values
        part.sims[place] = worst_first.flip(1).cpu().numpy()[filled]
        over, level = self._histograms(block, rows, worst_first)
        part.opposed[:] = (over + level).sum(axis=1) * (part.count > 0)
        spread_all(over, level, part.offsets, part.count, part.sims, part.above, part.tied)
        return part

    def _block(self, rows: slice) -> Tensor:
        if self._candidates is None:
            return self._send(self._similarity.block(rows))
        # True float32: TensorFloat-32 would tie and swap close neighbours.
        return self._send(self._similarity.queries[rows]) @ self._candidates.T

    def _histograms(self, block: Tensor, rows: slice, worst_first: Tensor) -> tuple[_Array, _Array]:
        """(queries, most + 1) negatives between, and level with, the positives counted from the best."""
        torch, pairs = self._torch, self._pairs
        values = block[:, self._column]
        below = torch.searchsorted(worst_first, values, out_int32=True)
        upto = torch.searchsorted(worst_first, values, right=True, out_int32=True)
        group, stratum, itself = (
            self._send(a[rows])[:, None]
            for a in (pairs.query_group, pairs.query_stratum, pairs.itself)
        )
        number = torch.arange(len(self._group), device=self._device)
        negative = (
            (self._group != group)
            & (self._stratum == stratum)
            & (stratum >= 0)
            & (number != itself)
        )
        for opposed, own in zip(self._opposed, pairs.query_opposed[rows].T, strict=True):
            mine = self._send(own)[:, None]
            negative &= (opposed != mine) & (opposed >= 0) & (mine >= 0)
        better = worst_first.shape[1] - upto
        results = []
        for chosen in (negative & (below == upto), negative & (below != upto)):
            counts = torch.zeros(
                len(values), worst_first.shape[1] + 1, dtype=torch.int32, device=self._device
            )
            counts.scatter_add_(1, better.long(), chosen.int())
            results.append(counts.cpu().numpy().astype(np.int64))
        return results[0], results[1]
