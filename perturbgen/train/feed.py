"""Batches of sparse counts as the models read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from perturbgen.data import Batch, CountStore, epoch_rng

if TYPE_CHECKING:
    import torch

    from perturbgen.models.batch import CellBatch


@dataclass(frozen=True, eq=False)
class CellFeed:
    """The cells of a store for the training loop (its protocol is ``perturbgen.train.protocols.Feed``)."""

    store: CountStore
    size: int
    seed: int
    unit: str = "cells"

    def __len__(self) -> int:
        return len(self.store)

    def steps(self, ranks: int) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(len(self.store), self.size)
        return whole + (rest >= ranks)

    def total(self, batch: int) -> int:
        """Cells of a batch, in all processes together."""
        return min(self.size, len(self.store) - batch * self.size)

    def epoch(self, epoch: int, *, skip: int = 0, rank: int = 0, ranks: int = 1) -> Iterator[CellBatch]:
        """Every cell once, shuffled."""
        return feed(self.store, self.size, rng=epoch_rng(self.seed, epoch), skip=skip, rank=rank, ranks=ranks)

    def once(self) -> Iterator[CellBatch]:
        """Every cell once, in stored order."""
        return feed(self.store, self.size)

    def names(self, index: torch.Tensor) -> Sequence[Any]:
        """Names of cells."""
        return list(self.store.obs.index[index.cpu().numpy()])

    def shape(self, size: int) -> str:
        """How large a batch is."""
        return f"{size:,} cells x {self.store.n_genes:,} genes"


def feed(store: CountStore, size: int, **options: Any) -> Iterator[CellBatch]:
    """Every cell once, its counts sparse; the options are those of ``CountStore.batches``."""
    return cast("Iterator[CellBatch]", store.batches(size, dense=False, **options))


def placed(store: CountStore, positions: np.ndarray, size: int = 512) -> Iterator[CellBatch]:
    """Batches of some cells of a store, numbered as in that store."""
    import torch

    where = torch.from_numpy(positions)
    for batch in store.subset(positions).batches(size, dense=False):
        index = where[batch.index.cpu()].to(batch.index.device)
        yield cast("CellBatch", Batch(index, batch.counts, batch.codes))
