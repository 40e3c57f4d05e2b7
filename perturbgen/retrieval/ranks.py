"""Which candidates are positives and negatives of a query, and how they rank.

Counted block by block, on a CPU's cores (``kernels``) or with torch on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from perturbgen.core.errors import MissingDependencyError, SchemaError
from perturbgen.core.stats import Array
from perturbgen.core.system import cores
from perturbgen.retrieval.embedding import Similarity, codes, read_mask, require_labels
from perturbgen.retrieval.kernels import (
    Candidates,
    Queries,
    Ranked,
    find_positives,
    rank_positives,
    spread_all,
)

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_BYTES = 48 << 20  # of similarities in one block; a block per core is in flight


@dataclass(frozen=True)
class Pairing:
    """Queries against candidates: their rows in the embedding, and their labels."""

    query: Array
    candidate: Array
    queries: Queries
    among: Candidates


def pair_rows(
    meta: pd.DataFrame,
    *,
    same: Sequence[str],
    differ: Sequence[str] = (),
    negatives_same: Sequence[str] = (),
    negatives_differ: Sequence[str] = (),
    queries: Array | None = None,
    candidates: Array | None = None,
    negatives: Array | None = None,
) -> Pairing:
    """Positives agree in ``same`` and differ in each of ``differ``; negatives disagree in ``same``.

    ``negatives_same`` restricts negatives to rows that agree with the query there (the same plate),
    and ``negatives_differ`` to rows that differ in each of its columns. The masks (rows,) say which
    rows ask, which may be found, and which serve as negatives (for instance the DMSO wells). A row
    without ``same`` takes no part, unless ``negatives`` names it; one without ``differ`` is
    no query's positive.
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
    return Pairing(query, candidate, asked, among)


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


def ranked_blocks(
    pairs: Pairing, similarity: Similarity, *, chunk: int | None, device: str
) -> Iterator[tuple[slice, Ranked]]:
    """Blocks in order, ``chunk`` queries each; on the CPU as many in flight as there are cores."""
    wide = max(1, similarity.queries.itemsize * len(similarity.candidates))
    size = max(1, chunk) if chunk is not None else int(np.clip(_BLOCK_BYTES // wide, 1, 4096))
    blocks = [slice(s, min(s + size, len(pairs.query))) for s in range(0, len(pairs.query), size)]
    if device != "cpu":
        yield from zip(
            blocks, map(_DeviceCounter(pairs, similarity, device).rank, blocks), strict=True
        )
        return
    from threadpoolctl import threadpool_limits

    workers = min(len(blocks), cores())
    # One thread for each block's product: the blocks already fill the cores.
    with threadpool_limits(1 if workers > 1 else None), ThreadPoolExecutor(workers) as pool:
        waiting: list[tuple[slice, Future[Ranked]]] = []
        for block in blocks:
            if len(waiting) == workers:
                rows, future = waiting.pop(0)
                yield rows, future.result()
            waiting.append((block, pool.submit(_rank_block, pairs, similarity, block)))
        for rows, future in waiting:
            yield rows, future.result()


def _rank_block(pairs: Pairing, similarity: Similarity, rows: slice) -> Ranked:
    """One block on one core."""
    block = similarity.block(rows)
    queries, part, found = _positives(pairs, rows, block.dtype)
    rank_positives(block, similarity.column, queries, pairs.among, found, part)
    return part


def _positives(pairs: Pairing, rows: slice, dtype: Any) -> tuple[Queries, Ranked, Array]:
    """A block's queries, room for their positives, and these as candidate numbers."""
    queries = Queries(*(labels[rows] for labels in pairs.queries))
    sizes = np.diff(pairs.among.member_starts)[queries.group]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    count, opposed = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    found, above, tied = (np.zeros(offsets[-1], np.int64) for _ in range(3))
    find_positives(queries, pairs.among, offsets, found, count)
    sims = np.zeros(offsets[-1], dtype)
    return queries, Ranked(offsets, count, sims, above, tied, opposed), found


class _DeviceCounter:
    """Candidates and labels resident on the device; ``rank`` does one block of queries."""

    def __init__(self, pairs: Pairing, similarity: Similarity, device: str) -> None:
        import torch

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise MissingDependencyError(
                f"device {device!r} was asked for and torch sees no GPU",
                fix="device='cpu', or a CUDA build of torch",
            )
        self._pairs, self._similarity, self._torch = pairs, similarity, torch
        self._device = torch.device(device)
        stratum = np.full(len(pairs.candidate), -1)
        among = pairs.among
        sizes = np.diff(among.negative_starts)
        stratum[among.negatives] = np.repeat(np.arange(len(sizes)), sizes)
        self._stratum, self._group = self._send(stratum), self._send(among.group)
        self._opposed = [self._send(column) for column in among.opposed.T]
        self._column = self._send(similarity.column)
        self._candidates = None if similarity.product else self._send(similarity.candidates)

    def _send(self, array: Array) -> Tensor:
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def rank(self, rows: slice) -> Ranked:
        """One block."""
        torch, block = self._torch, self._block(rows)
        dtype = np.float64 if block.dtype == torch.float64 else np.float32
        queries, part, found = _positives(self._pairs, rows, dtype)
        most = int(part.positives.max(initial=0))
        if most == 0:
            return part
        filled = np.arange(most) < part.positives[:, None]
        place = (part.offsets[:-1, None] + np.arange(most))[filled]
        chosen = np.zeros(filled.shape, np.int64)
        chosen[filled] = self._similarity.column[found[place]]
        sims = block.gather(1, self._send(chosen)).masked_fill(~self._send(filled), -torch.inf)
        worst_first = sims.sort(dim=1).values
        part.sims[place] = worst_first.flip(1).cpu().numpy()[filled]
        over, level = self._histograms(block, queries, worst_first)
        part.negatives[:] = (over + level).sum(axis=1) * (part.positives > 0)
        spread_all(over, level, part)
        return part

    def _block(self, rows: slice) -> Tensor:
        if self._candidates is None:
            return self._send(self._similarity.block(rows))
        # True float32: TensorFloat-32 would tie and swap close neighbours.
        return self._send(self._similarity.queries[rows]) @ self._candidates.T

    def _histograms(
        self, block: Tensor, queries: Queries, worst_first: Tensor
    ) -> tuple[Array, Array]:
        """(queries, most + 1) negatives between, and level with, positives from the best."""
        torch = self._torch
        values = block[:, self._column]
        below = torch.searchsorted(worst_first, values, out_int32=True)
        upto = torch.searchsorted(worst_first, values, right=True, out_int32=True)
        group, stratum, itself = (
            self._send(labels)[:, None]
            for labels in (queries.group, queries.stratum, queries.itself)
        )
        number = torch.arange(len(self._group), device=self._device)
        negative = (
            (self._group != group)
            & (self._stratum == stratum)
            & (stratum >= 0)
            & (number != itself)
        )
        for opposed, own in zip(self._opposed, queries.opposed.T, strict=True):
            mine = self._send(own)[:, None]
            negative &= (opposed != mine) & (opposed >= 0) & (mine >= 0)
        # Padding sorts first as -inf, so positions from the best count from the end.
        better = worst_first.shape[1] - upto
        results = []
        for chosen in (negative & (below == upto), negative & (below != upto)):
            counts = torch.zeros(
                len(values), worst_first.shape[1] + 1, dtype=torch.int32, device=self._device
            )
            counts.scatter_add_(1, better.long(), chosen.int())
            results.append(counts.cpu().numpy().astype(np.int64))
        return results[0], results[1]
