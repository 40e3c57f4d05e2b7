"""What a file of profiles offers, whatever its format, and how wanted rows become few long reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np

Axis = Literal["genes", "samples"]


class Backend(Protocol):
    """A matrix of (samples, genes) with ids and metadata fields on either axis."""

    format: str
    version: str
    shape: tuple[int, int]
    dtype: np.dtype
    chunks: tuple[int, int] | None
    notes: list[str]

    def ids(self, axis: Axis) -> list[str]:
        """The ids of an axis, in file order."""

    def raw_ids(self, axis: Axis) -> np.ndarray:
        """The ids as they are stored, bytes in half the memory of text where the file has bytes."""

    def field_names(self, axis: Axis) -> list[str]:
        """The metadata fields of an axis, without the ids."""

    def field(self, axis: Axis, name: str, *, convert_missing: bool) -> np.ndarray:
        """One metadata field."""

    def block(self, samples: slice, genes: np.ndarray | None) -> np.ndarray:
        """Values of consecutive samples (samples, genes); ``genes`` are positions in any order, None for all."""

    def close(self) -> None:
        """Let go of the file."""


def runs(positions: np.ndarray, gap: int) -> Iterator[slice]:
    """Sorted unique positions as slices that cover them, joined where at most ``gap`` unwanted ones lie between."""
    if not len(positions):
        return
    breaks = np.flatnonzero(np.diff(positions) > gap + 1) + 1
    for part in np.split(positions, breaks):
        yield slice(int(part[0]), int(part[-1]) + 1)
