"""Batches of sparse counts as the models read them.

Batches for training on profiles, of L1000 or of images: from a memory map, from a device, balanced by class.

Everything is a function of (seed, epoch, batch): a run that is stopped and resumed sees what it would have seen. Every
row comes exactly once in an epoch, except from :class:`BalancedSampler`, which is meant to repeat the rare classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.data import Batch, CountStore, epoch_rng

if TYPE_CHECKING:
    from perturbgen.models.base import CellBatch


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

    def epoch(
        self, epoch: int, *, skip: int = 0, rank: int = 0, ranks: int = 1
    ) -> Iterator[CellBatch]:
        """Every cell once, shuffled."""
        return feed(
            self.store,
            self.size,
            rng=epoch_rng(self.seed, epoch),
            skip=skip,
            rank=rank,
            ranks=ranks,
        )

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


_MANY_RUNS: Final = 256  # beyond which neighbours are so few that rows are gathered one by one


class _Rows(NamedTuple):
    """A batch: which rows of the matrix (batch,), and their values (batch, features)."""

    rows: np.ndarray
    values: np.ndarray


def _require_positive(**numbers: int) -> None:
    """Sizes are whole numbers from 1."""
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}", expected="1 or more")


@dataclass(frozen=True)
class MemmapFeed:
    """Shuffled batches of a matrix on disk (rows, features), read in long blocks.

    Blocks of ``block`` neighbouring rows are drawn in random order, ``mix`` of them at a time into memory, and their
    rows mixed; the next blocks are read while these are used. ``rows`` restricts the feed, for instance to a training
    part. Memory: 2 x mix x block rows.
    """

    matrix: np.ndarray
    batch: int
    seed: int
    rows: np.ndarray | None = None
    block: int = 1024
    mix: int = 16
    drop_last: bool = False

    def __post_init__(self) -> None:
        _require_positive(batch=self.batch, block=self.block, mix=self.mix)
        if self.rows is not None and len(self.rows):
            wrong = (self.rows < 0) | (self.rows >= len(self.matrix))
            if wrong.any() or len(np.unique(self.rows)) < len(self.rows):
                raise SchemaError(
                    f"the rows of a feed repeat or are not among {len(self.matrix):,}",
                    expected="different row numbers",
                )
        if self.count == 0:
            raise SchemaError("a feed of no rows", expected="one row at least")

    @property
    def count(self) -> int:
        """Rows of an epoch."""
        return len(self.matrix) if self.rows is None else len(self.rows)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.count // self.batch if self.drop_last else -(-self.count // self.batch)

    def pools(self, epoch: int) -> list[np.ndarray]:
        """The row numbers of an epoch in their order, cut where the next blocks are read."""
        rng = np.random.default_rng([self.seed, epoch])
        rows = np.arange(len(self.matrix)) if self.rows is None else np.sort(self.rows)
        offset = int(
            rng.integers(self.block)
        )  # else the same neighbours would be in one block in every epoch
        blocks = np.split(rows, np.arange(offset, len(rows), self.block))
        blocks = [blocks[i] for i in rng.permutation(len(blocks)) if len(blocks[i])]
        groups = [np.concatenate(blocks[i : i + self.mix]) for i in range(0, len(blocks), self.mix)]
        return [rng.permutation(group) for group in groups]

    def read(self, pool: np.ndarray) -> np.ndarray:
        """The values of a pool, in its order; read in the order of the disk."""
        order = np.argsort(pool)
        values = np.empty((len(pool), self.matrix.shape[1]), self.matrix.dtype)
        runs = np.split(order, np.flatnonzero(np.diff(pool[order]) != 1) + 1)
        if len(runs) > _MANY_RUNS:
            values[order] = self.matrix[pool[order]]
            return values
        for run in runs:
            values[run] = self.matrix[pool[run[0]] : pool[run[-1]] + 1]
        return values

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[_Rows]:
        """The batches of an epoch from number ``start`` on; what comes before is skipped, not read."""
        pools = self.pools(epoch)
        ends = np.cumsum([len(pool) for pool in pools])
        first, skip = (
            int(np.searchsorted(ends, start * self.batch, side="right")),
            start * self.batch,
        )
        skip -= int(ends[first - 1]) if first else 0
        kept: list[_Rows] = []
        with ThreadPoolExecutor(1) as reader:
            for loaded in self.ahead(reader, pools[first:]):
                kept.append(_Rows(loaded.rows[skip:], loaded.values[skip:]))
                skip = 0
                yield from self.cut(kept)
        if kept and len(kept[0].rows) and not self.drop_last:
            yield kept[0]

    def ahead(self, reader: ThreadPoolExecutor, pools: list[np.ndarray]) -> Iterator[_Rows]:
        """The pools with their values, the next one being read while one is used."""
        coming: Future[np.ndarray] | None = None
        for number, pool in enumerate(pools):
            values = self.read(pool) if coming is None else coming.result()
            coming = (
                reader.submit(self.read, pools[number + 1]) if number + 1 < len(pools) else None
            )
            yield _Rows(pool, values)

    def cut(self, kept: list[_Rows]) -> Iterator[_Rows]:
        """Whole batches from what is in memory; the rest stays in ``kept``, for the next pool."""
        if len(kept) == 2:
            rest, new = kept
            need = min(self.batch - len(rest.rows), len(new.rows))
            joined = _Rows(
                np.concatenate([rest.rows, new.rows[:need]]),
                np.concatenate([rest.values, new.values[:need]]),
            )
            kept[:] = (
                [_Rows(new.rows[need:], new.values[need:])]
                if len(joined.rows) == self.batch
                else [joined]
            )
            if len(joined.rows) < self.batch:
                return
            yield joined
        here = kept[0]
        whole = len(here.rows) // self.batch * self.batch
        for i in range(0, whole, self.batch):
            yield _Rows(here.rows[i : i + self.batch], here.values[i : i + self.batch])
        kept[:] = (
            [_Rows(here.rows[whole:].copy(), here.values[whole:].copy())]
            if whole < len(here.rows)
            else []
        )


@dataclass(frozen=True)
class ResidentFeed:
    """Shuffled batches of a matrix that lies on the device (rows, features), standardised and made noisy there.

    Values are (x - mean) / sd, then Gaussian noise of sd ``noise`` is added; float16 becomes float32 batch by batch.
    """

    matrix: Tensor
    batch: int
    seed: int
    mean: Tensor | None = None
    sd: Tensor | None = None
    noise: float = 0.0
    drop_last: bool = False

    def __post_init__(self) -> None:
        _require_positive(batch=self.batch)

    def __len__(self) -> int:
        """Batches of an epoch."""
        rows = len(self.matrix)
        return rows // self.batch if self.drop_last else -(-rows // self.batch)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Row numbers (batch,) and values (batch, features) from batch ``start`` on."""
        device = self.matrix.device
        order = torch.randperm(
            len(self.matrix), generator=_generator(self.seed, epoch, -1, device), device=device
        )
        for number in range(start, len(self)):
            rows = order[number * self.batch : (number + 1) * self.batch]
            values = self.matrix[rows].float()
            if self.mean is not None:
                values = values - self.mean
            if self.sd is not None:
                values = values / self.sd
            if self.noise:
                drawn = torch.randn(
                    values.shape,
                    generator=_generator(self.seed, epoch, number, device),
                    device=device,
                )
                values = values + self.noise * drawn
            yield rows, values


def _generator(seed: int, epoch: int, batch: int, device: torch.device) -> torch.Generator:
    """Random numbers of one batch, or (-1) of the order of an epoch."""
    mixed = np.random.SeedSequence([seed, epoch, batch + 1]).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(mixed >> np.uint64(1)))


@dataclass(frozen=True)
class BalancedSampler:
    """Batches of P classes with K rows each: every class equally often, whatever its size.

    ``labels`` (rows,) are class names or numbers; missing ones and classes of fewer than ``least`` rows are left out. A
    class of fewer than K rows repeats some of them.
    """

    labels: np.ndarray
    classes: int
    per_class: int
    seed: int
    least: int = 2
    groups: tuple[np.ndarray, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _require_positive(classes=self.classes, per_class=self.per_class, least=self.least)
        import pandas as pd

        codes, _ = pd.factorize(np.asarray(self.labels, dtype=object), use_na_sentinel=True)
        order = np.argsort(codes, kind="stable")[(codes < 0).sum() :]
        sizes = np.bincount(codes[codes >= 0])
        groups = np.split(order, np.cumsum(sizes)[:-1]) if len(sizes) else []
        chosen = [group for group in groups if len(group) >= self.least]
        if len(chosen) < self.classes:
            raise SchemaError(
                f"{len(chosen):,} classes have {self.least} rows or more, a batch needs {self.classes:,}",
                expected="more classes, or fewer in a batch",
            )
        object.__setattr__(self, "groups", tuple(chosen))

    def __len__(self) -> int:
        """Batches of an epoch: as many rows as there are, whoever they are."""
        return max(1, sum(map(len, self.groups)) // (self.classes * self.per_class))

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[np.ndarray]:
        """Row numbers (classes x per_class,) of each batch from number ``start`` on, the rows of a class together."""
        per_cycle = len(self.groups) // self.classes
        for number in range(start, len(self)):
            cycle, place = divmod(number, per_cycle)
            order = np.random.default_rng([self.seed, epoch, 0, cycle]).permutation(
                len(self.groups)
            )
            rng = np.random.default_rng([self.seed, epoch, 1, number])
            drawn = order[place * self.classes : (place + 1) * self.classes]
            yield np.concatenate([self.draw(self.groups[c], rng) for c in drawn])

    def draw(self, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """K rows of a class; all of them before any is repeated."""
        rounds = -(-self.per_class // len(group))
        return np.concatenate([rng.permutation(group) for _ in range(rounds)])[: self.per_class]
