"""Batches of images for the training loop, decoded ahead by threads of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from perturbgen.core.errors import SchemaError
from perturbgen.images.fields import read_field
from perturbgen.images.network.fields import Fields, Vocabulary
from perturbgen.images.network.settings import ImageSettings

Kind = tuple[int, int, str]  # height, width, depth: 512, 512, uint8

_FULL = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}
_MIXED = "files of two releases, or thumbnails among them"


@dataclass(frozen=True)
class ImageBatch:
    """``images`` (n, channels, height, width), full brightness 1, and labels (n,), -1 for none."""

    index: Tensor
    images: Tensor
    label: Tensor
    cell: Tensor
    experiment: Tensor


class ImageFeed:
    """Fields in batches on the run's device (the protocol is ``train.feeds.Feed``).

    While a batch is used the next ``ahead`` ones are decoded by ``workers`` threads: at most
    ahead + 1 are in memory. With ``one_experiment`` a batch holds fields of one experiment. An
    image that is not of ``kind`` is an error.
    """

    unit = "images"

    def __init__(
        self,
        fields: Fields,
        vocabulary: Vocabulary,
        settings: ImageSettings,
        *,
        kind: Kind | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.fields, self.vocabulary, self.settings = fields, vocabulary, settings
        self.kind, self.device = kind, torch.device(device)
        self.codes = vocabulary.codes(fields.table)
        self.experiment = pd.factorize(fields.table["experiment"], sort=True)[0]
        mixed = not settings.training.one_experiment
        self.group = np.zeros(len(fields), np.int64) if mixed else self.experiment
        self._sizes = [len(rows) for rows in self.plan(0)]

    def __len__(self) -> int:
        return len(self.fields)

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The fields of each batch of an epoch."""
        # by the epoch alone, so that a resumed run goes on with the same batches
        rng = np.random.default_rng([self.settings.seed, epoch])
        batches = self._batches(self.group, rng)
        return [batches[i] for i in rng.permutation(len(batches))]

    def _batches(self, group: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Every field once, shuffled within its group.

        A group is cut into equal parts, not into full batches and a rest: no batch is too small for
        its statistics.
        """
        if not len(group):
            return []
        size = self.settings.training.batch_size
        groups = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
        return [
            part
            for rows in groups
            for part in np.array_split(rng.permutation(rows), -(-len(rows) // size))
        ]

    def steps(self, ranks: int) -> int:
        """Batches of an epoch; each process has its share of every one."""
        return len(self._sizes)

    def total(self, batch: int) -> int:
        """Fields of a batch of the epoch that was begun last."""
        return self._sizes[batch]

    def epoch(
        self, epoch: int, *, skip: int = 0, rank: int = 0, ranks: int = 1
    ) -> Iterator[ImageBatch]:
        """Every field once; batches before number ``skip`` are not read."""
        plan = self.plan(epoch)
        self._sizes = [len(rows) for rows in plan]
        yield from self.stream([rows[rank::ranks] for rows in plan[skip:]])

    def once(self) -> Iterator[ImageBatch]:
        """Every field once, each experiment by itself."""
        yield from self.stream([rows for part in self.by_experiment() for rows in part])

    def by_experiment(self) -> list[list[np.ndarray]]:
        """The fields of the batches of each experiment, in an order that no label decides."""
        rng = np.random.default_rng(self.settings.seed)
        found: dict[int, list[np.ndarray]] = {}
        for rows in self._batches(self.experiment, rng):
            found.setdefault(self.experiment[rows[0]], []).append(rows)
        return list(found.values())

    def alone(self, batches: Sequence[np.ndarray]) -> list[str]:
        """Experiments with a batch of a single field, which has no statistics to normalise by."""
        rows = [int(part[0]) for part in batches if len(part) == 1]
        return sorted(set(self.fields.table["experiment"].iloc[rows]))

    def stream(self, plan: Sequence[np.ndarray]) -> Iterator[ImageBatch]:
        """Batches of these fields, decoded ahead."""
        workers, ahead = self.settings.data.workers, self.settings.data.ahead
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        coming: deque[tuple[np.ndarray, list[Any]]] = deque()
        waiting = iter(plan)

        def ask(batches: int) -> None:
            for rows in islice(waiting, batches):
                coming.append((rows, [pool.submit(self.read, int(i)) for i in rows]))

        try:
            ask(ahead)
            while coming:
                rows, futures = coming.popleft()
                batch = self._batch(rows, [future.result() for future in futures])
                # before it is handed out: threads decode while the network works
                ask(1)
                yield batch
        finally:
            # one that stops early does not wait for images that nobody will see
            pool.shutdown(cancel_futures=True)

    def read(self, field: int) -> np.ndarray:
        """The channels of a field (channels, height, width), float32, full brightness 1."""
        pixels = read_field(self.fields.files[field], list(self.fields.channels))
        if self.kind is not None and self.kind_of(pixels) != self.kind:
            file = next(iter(self.fields.files[field].values()))
            raise SchemaError(
                f"{file} is {_described(self.kind_of(pixels))}",
                expected=_described(self.kind),
                cause=_MIXED,
            )
        bright = pixels.astype(np.float32) / np.float32(_FULL[pixels.dtype])
        data = self.settings.data
        small = bright if data.shrink == 1 else _mean_of_squares(bright, data.shrink)
        return _standardised(small) if data.standardise else small

    def _batch(self, rows: np.ndarray, images: list[np.ndarray]) -> ImageBatch:
        """The decoded fields with their labels."""
        for i, image in enumerate(images):
            if image.shape != images[0].shape:
                files = [next(iter(self.fields.files[int(rows[j])].values())) for j in (i, 0)]
                sizes = [f"{shape[1]} x {shape[2]}" for shape in (image.shape, images[0].shape)]
                raise SchemaError(
                    f"{files[0]} is {sizes[0]}, {files[1]} {sizes[1]}",
                    expected="images of one size",
                    cause=_MIXED,
                )
        index = torch.from_numpy(rows)
        labels = {name: codes[index].to(self.device) for name, codes in self.codes.items()}
        stacked = torch.from_numpy(np.stack(images)).to(self.device)
        return ImageBatch(index=index.to(self.device), images=stacked, **labels)

    @staticmethod
    def kind_of(pixels: np.ndarray) -> Kind:
        """Size and depth of a field (channels, height, width)."""
        return pixels.shape[1], pixels.shape[2], str(pixels.dtype)

    def names(self, index: Tensor) -> Sequence[Any]:
        """The ids of fields."""
        return self.fields.table["site_id"].iloc[index.cpu().numpy()].tolist()

    def shape(self, size: int) -> str:
        """How large a batch is."""
        return f"{size:,} images of {len(self.fields.channels)} channels"


def _described(kind: Kind) -> str:
    return f"{kind[0]} x {kind[1]}, {kind[2]}"


def _standardised(image: np.ndarray) -> np.ndarray:
    """Each channel of (channels, height, width) with mean 0 and SD 1; an empty one is 0."""
    away = image - image.mean(axis=(1, 2), keepdims=True)
    spread = away.std(axis=(1, 2), keepdims=True)
    return np.divide(away, spread, out=np.zeros_like(away), where=spread > 1e-6)


def _mean_of_squares(image: np.ndarray, factor: int) -> np.ndarray:
    """Means over squares of ``factor`` pixels, (channels, height // factor, width // factor)."""
    channels, height, width = image.shape
    if min(height, width) < factor:
        raise SchemaError(
            f"an image of {height} x {width} cannot be shrunk by {factor}",
            expected="a smaller shrink",
        )
    down, across = height // factor, width // factor
    kept = image[:, : down * factor, : across * factor]
    return kept.reshape(channels, down, factor, across, factor).mean(axis=(2, 4))
