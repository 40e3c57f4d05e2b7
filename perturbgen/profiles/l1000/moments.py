"""Mean and standard deviation of every gene, one block at a time (Welford's update, Chan's merge)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Moments:
    """Counts, means and sums of squared deviations of finite values, each (genes,); ``missing`` counts the others."""

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray
    missing: np.ndarray

    @classmethod
    def empty(cls, genes: int) -> Moments:
        """Before any block."""
        return cls(np.zeros(genes), np.zeros(genes), np.zeros(genes), np.zeros(genes))

    def update(self, values: np.ndarray) -> None:
        """Add a block (samples, genes)."""
        exact = values.astype(np.float64)
        total = exact.sum(axis=0)
        count = np.full(values.shape[1], float(len(values)))
        if not np.isfinite(total).all():
            finite = np.isfinite(exact)
            count = finite.sum(axis=0).astype(float)
            exact[~finite] = 0
            total = exact.sum(axis=0)
        mean = total / np.maximum(count, 1)
        exact -= mean
        if not (count == len(values)).all():
            exact[~finite] = 0
        squares = np.square(exact, out=exact).sum(axis=0)
        self.merge(count, mean, squares, len(values) - count)

    def merge(self, count: np.ndarray, mean: np.ndarray, squares: np.ndarray, missing: np.ndarray) -> None:
        """Chan, Golub and LeVeque: M2 = M2a + M2b + d² na nb / n, d = mb - ma."""
        total = np.maximum(self.count + count, 1)
        gap = mean - self.mean
        self.squares = self.squares + squares + gap**2 * self.count * count / total
        self.mean = self.mean + gap * count / total
        self.count, self.missing = self.count + count, self.missing + missing

    @property
    def sd(self) -> np.ndarray:
        """Standard deviations (n - 1); NaN for a gene with fewer than two values."""
        freedom = np.where(self.count > 1, self.count - 1, np.nan)
        return np.sqrt(np.maximum(self.squares, 0) / freedom)

    def to_json(self) -> dict[str, list[float]]:
        """As lists, exactly."""
        return {name: getattr(self, name).tolist() for name in ("count", "mean", "squares", "missing")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Moments:
        """What :meth:`to_json` gave."""
        return cls(**{name: np.array(part, dtype=float) for name, part in values.items()})
