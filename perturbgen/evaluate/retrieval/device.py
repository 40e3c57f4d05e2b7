"""The same counts with torch, for a GPU: products, a binary search and a histogram, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from perturbgen.errors import MissingDependencyError
from perturbgen.evaluate.retrieval.kernels import spread_all
from perturbgen.evaluate.retrieval.pairs import Pairs
from perturbgen.evaluate.retrieval.ranks import Ranked, positives
from perturbgen.evaluate.retrieval.similarity import Similarity

if TYPE_CHECKING:
    from torch import Tensor

Array = np.ndarray[Any, Any]


class DeviceCounter:
    """Candidates and labels resident on the device; ``rank`` does one block of queries."""

    def __init__(self, pairs: Pairs, similarity: Similarity, device: str) -> None:
        import torch

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise MissingDependencyError(
                f"device {device!r} was asked for and torch sees no GPU", fix="device='cpu', or a CUDA build of torch"
            )
        self._pairs, self._similarity, self._torch = pairs, similarity, torch
        self._device = torch.device(device)
        stratum = np.full(len(pairs.candidate), -1)
        for number, (start, end) in enumerate(zip(pairs.negative_starts, pairs.negative_starts[1:], strict=False)):
            stratum[pairs.negatives[start:end]] = number
        self._stratum, self._group = self._send(stratum), self._send(pairs.candidate_group)
        self._opposed = [self._send(column) for column in pairs.candidate_opposed.T]
        self._column = self._send(similarity.column)
        self._candidates = None if similarity.product else self._send(similarity.candidates)

    def _send(self, array: Array) -> Tensor:
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def rank(self, rows: slice) -> Ranked:
        """One block."""
        torch, block = self._torch, self._block(rows)
        part, who = positives(self._pairs, rows, np.float64 if block.dtype == torch.float64 else np.float32)
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

    def _histograms(self, block: Tensor, rows: slice, worst_first: Tensor) -> tuple[Array, Array]:
        """(queries, most + 1) negatives between, and level with, the positives counted from the best."""
        torch, pairs = self._torch, self._pairs
        values = block[:, self._column]
        below = torch.searchsorted(worst_first, values, out_int32=True)
        upto = torch.searchsorted(worst_first, values, right=True, out_int32=True)
        group, stratum, itself = (
            self._send(a[rows])[:, None] for a in (pairs.query_group, pairs.query_stratum, pairs.itself)
        )
        number = torch.arange(len(self._group), device=self._device)
        negative = (self._group != group) & (self._stratum == stratum) & (stratum >= 0) & (number != itself)
        for opposed, own in zip(self._opposed, pairs.query_opposed[rows].T, strict=True):
            mine = self._send(own)[:, None]
            negative &= (opposed != mine) & (opposed >= 0) & (mine >= 0)
        better = worst_first.shape[1] - upto
        results = []
        for chosen in (negative & (below == upto), negative & (below != upto)):
            counts = torch.zeros(len(values), worst_first.shape[1] + 1, dtype=torch.int32, device=self._device)
            counts.scatter_add_(1, better.long(), chosen.int())
            results.append(counts.cpu().numpy().astype(np.int64))
        return results[0], results[1]
