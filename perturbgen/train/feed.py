"""Batches of sparse counts as the models read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from perturbgen.data import Batch, CountStore

if TYPE_CHECKING:
    from perturbgen.models.batch import CellBatch


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
