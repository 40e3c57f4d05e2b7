"""What the loop is given: a feed of samples, and a judge of the model; batches of cells and rows.

Everything is a function of (seed, epoch, batch), so a run that is stopped and resumed sees what it
would have seen. Every row comes exactly once in an epoch, except from :class:`BalancedSampler`,
which is meant to repeat those of rare classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.data import CountStore

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from perturbgen.models.base import Trainable
    from perturbgen.models.batch import CellBatch

# Numbers of a model on samples that it is not trained on; of "objective" less is better.
Judge = Callable[["Trainable"], dict[str, float]]


class Feed(Protocol):
    """Samples in batches on the run's device; each batch has their positions as ``index``.

    What an epoch yields is a pure function of its number, so a resumed run sees what it would
    have seen; and every process takes its share of every batch, so several processes see what one
    would have seen.
    """

    @property
    def unit(self) -> str:
        """What samples are called: "cells"."""

    def __len__(self) -> int:
        """How many samples there are."""

    def steps(self, ranks: int) -> int:
        """How many batches an epoch has for so many processes."""

    def total(self, batch: int) -> int:
        """How many samples batch number ``batch`` of an epoch has, in all processes together."""

    def epoch(self, epoch: int, *, skip: int = 0, rank: int = 0, ranks: int = 1) -> Iterator[Any]:
        """The batches of an epoch from number ``skip`` on, of each the share of one process."""

    def once(self) -> Iterator[Any]:
        """Every sample once, in stored order."""

    def names(self, index: torch.Tensor) -> Sequence[Any]:
        """What samples are called, for messages."""

    def shape(self, size: int) -> str:
        """``128 cells x 2,000 genes``: a batch of that size, for messages."""


@dataclass(frozen=True, eq=False)
class CellFeed:
    """The cells of a store for the training loop, a :class:`Feed`."""

    store: CountStore
    size: int
    seed: int = 0
    unit: str = "cells"

    def __len__(self) -> int:
        return len(self.store)

    def steps(self, ranks: int) -> int:
        """Batches of an epoch; a rest of fewer cells than processes is left out."""
        whole, rest = divmod(len(self.store), self.size)
        return whole + (rest >= ranks)

    def total(self, batch: int) -> int:
        """Cells of a batch, in all processes together."""
        return min(self.size, len(self.store) - batch * self.size)

    def epoch(
        self, epoch: int, *, skip: int = 0, rank: int = 0, ranks: int = 1
    ) -> Iterator[CellBatch]:
        """Every cell once, shuffled."""
        rng = np.random.default_rng([self.seed, epoch])
        return self.once(rng=rng, skip=skip, rank=rank, ranks=ranks)

    def once(self, **options: Any) -> Iterator[CellBatch]:
        """Every cell once, in stored order unless the store is given other ``options``."""
        # Sparse, as the models read them: about 94 % of counts are zeros.
        return cast("Iterator[CellBatch]", self.store.batches(self.size, dense=False, **options))

    def names(self, index: torch.Tensor) -> Sequence[Any]:
        """Names of cells."""
        return list(self.store.obs.index[index.cpu().numpy()])

    def shape(self, size: int) -> str:
        """How large a batch is."""
        return f"{size:,} cells x {self.store.n_genes:,} genes"


_MANY_RUNS = 256  # beyond which neighbours are so few that rows are gathered one by one


class _Rows(NamedTuple):
    """Which rows of the matrix (batch,), and their values (batch, features)."""

    rows: np.ndarray
    values: np.ndarray


def _require_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}", expected="1 or more")


@dataclass(frozen=True)
class MemmapFeed:
    """Shuffled batches of a matrix on disk (rows, features), read in long blocks.

    Blocks of ``block`` neighbouring rows are drawn in random order, ``mix`` of them at a time into
    memory, and their rows mixed; the next blocks are read while these are used. ``rows`` restricts
    the feed, for instance to a training part. Memory: 2 x mix x block rows.
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
        if self._count == 0:
            raise SchemaError("a feed of no rows", expected="one row at least")

    @property
    def _count(self) -> int:
        return len(self.matrix) if self.rows is None else len(self.rows)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._count // self.batch if self.drop_last else -(-self._count // self.batch)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[_Rows]:
        """The batches of an epoch from number ``start`` on; what comes before is not read."""
        pools = self._pools(epoch)
        ends = np.cumsum([len(pool) for pool in pools])
        first = int(np.searchsorted(ends, start * self.batch, side="right"))
        skip = start * self.batch - (int(ends[first - 1]) if first else 0)
        rest = _Rows(pools[0][:0], self.matrix[:0])  # of a batch that the next pool completes
        with ThreadPoolExecutor(1) as reader:
            for rows, values in self._ahead(reader, pools[first:]):
                rows, values, skip = rows[skip:], values[skip:], 0
                if len(rest.rows):
                    need = self.batch - len(rest.rows)
                    rest = _Rows(
                        np.concatenate([rest.rows, rows[:need]]),
                        np.concatenate([rest.values, values[:need]]),
                    )
                    rows, values = rows[need:], values[need:]
                    if len(rest.rows) < self.batch:
                        continue
                    yield rest
                whole = len(rows) // self.batch * self.batch
                for i in range(0, whole, self.batch):
                    yield _Rows(rows[i : i + self.batch], values[i : i + self.batch])
                # Copied, since a view would keep the whole pool in memory.
                rest = _Rows(rows[whole:].copy(), values[whole:].copy())
        if len(rest.rows) and not self.drop_last:
            yield rest

    def _pools(self, epoch: int) -> list[np.ndarray]:
        """The row numbers of an epoch in their order, cut where the next blocks are read."""
        rng = np.random.default_rng([self.seed, epoch])
        rows = np.arange(len(self.matrix)) if self.rows is None else np.sort(self.rows)
        # Without an offset the same neighbours would share a block in every epoch.
        offset = int(rng.integers(self.block))
        blocks = np.split(rows, np.arange(offset, len(rows), self.block))
        blocks = [blocks[i] for i in rng.permutation(len(blocks)) if len(blocks[i])]
        groups = [np.concatenate(blocks[i : i + self.mix]) for i in range(0, len(blocks), self.mix)]
        return [rng.permutation(group) for group in groups]

    def _ahead(self, reader: ThreadPoolExecutor, pools: list[np.ndarray]) -> Iterator[_Rows]:
        """The pools with their values, the next one being read while one is used."""
        coming: Future[np.ndarray] | None = None
        for number, pool in enumerate(pools, 1):
            values = self._read(pool) if coming is None else coming.result()
            coming = reader.submit(self._read, pools[number]) if number < len(pools) else None
            yield _Rows(pool, values)

    def _read(self, pool: np.ndarray) -> np.ndarray:
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


@dataclass(frozen=True)
class ResidentFeed:
    """Shuffled batches of a matrix that lies on the device (rows, features)."""

    matrix: Tensor
    batch: int
    seed: int

    def __post_init__(self) -> None:
        _require_positive(batch=self.batch)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.matrix) // self.batch)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Row numbers (batch,) and float32 values (batch, features) from batch ``start`` on."""
        import torch

        device = self.matrix.device
        # A seed of 64 mixed bits, so that neighbouring epochs have nothing in common.
        mixed = np.random.SeedSequence([self.seed, epoch, 0]).generate_state(1, np.uint64)[0]
        generator = torch.Generator(device=device).manual_seed(int(mixed >> np.uint64(1)))
        order = torch.randperm(len(self.matrix), generator=generator, device=device)
        for number in range(start, len(self)):
            rows = order[number * self.batch : (number + 1) * self.batch]
            yield rows, self.matrix[rows].float()


@dataclass(frozen=True)
class BalancedSampler:
    """Batches of P classes with K rows each: every class equally often, whatever its size.

    ``labels`` (rows,) are class names or numbers; missing ones and classes of fewer than ``least``
    rows are left out. A class of fewer than K rows repeats some of them.
    """

    labels: np.ndarray
    classes: int
    per_class: int
    seed: int
    least: int = 2
    groups: tuple[np.ndarray, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _require_positive(classes=self.classes, per_class=self.per_class, least=self.least)
        labels = np.asarray(self.labels, dtype=object)
        groups = pd.Series(np.arange(len(labels))).groupby(labels, sort=False)
        chosen = [rows.to_numpy() for _, rows in groups if len(rows) >= self.least]
        if len(chosen) < self.classes:
            raise SchemaError(
                f"{len(chosen):,} classes have {self.least} rows or more, "
                f"a batch needs {self.classes:,}",
                expected="more classes, or fewer in a batch",
            )
        object.__setattr__(self, "groups", tuple(chosen))

    def __len__(self) -> int:
        """Batches of an epoch: together as many rows as there are, whichever they are."""
        return max(1, sum(map(len, self.groups)) // (self.classes * self.per_class))

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[np.ndarray]:
        """Row numbers (classes x per_class,) of each batch from ``start`` on, class after class."""
        per_cycle = len(self.groups) // self.classes
        for number in range(start, len(self)):
            # A cycle deals every class once; a batch's numbers depend on no batch before it.
            cycle, place = divmod(number, per_cycle)
            deal = np.random.default_rng([self.seed, epoch, 0, cycle])
            rng = np.random.default_rng([self.seed, epoch, 1, number])
            drawn: list[np.ndarray] = []
            for c in deal.permutation(len(self.groups))[place * self.classes :][: self.classes]:
                # All rows of a class before any is repeated.
                rounds = range(-(-self.per_class // len(self.groups[c])))
                rows = np.concatenate([rng.permutation(self.groups[c]) for _ in rounds])
                drawn.append(rows[: self.per_class])
            yield np.concatenate(drawn)
