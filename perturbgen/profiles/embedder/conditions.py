"""What the network is told beside the profile: cell line, dose, time, as numbers (profiles, width)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.errors import shorten
from perturbgen.profiles.embedder.data import require_column

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConditionEncoder:
    """Categories become one-hot; numbers log(1 + x), standardised. What is unknown or missing is all zeros."""

    categories: dict[str, list[str]]
    scales: dict[str, tuple[float, float]]  # mean and sd of log(1 + x)

    @classmethod
    def fit(cls, samples: pd.DataFrame, columns: Sequence[str]) -> ConditionEncoder:
        """Of the training profiles."""
        categories: dict[str, list[str]] = {}
        scales: dict[str, tuple[float, float]] = {}
        for name in columns:
            require_column(samples, name)
            if pd.api.types.is_numeric_dtype(samples[name]):
                logs = np.log1p(samples[name].to_numpy(float))
                known = logs[np.isfinite(logs)]
                sd = float(known.std()) if len(known) else 0.0
                scales[name] = (float(known.mean()) if len(known) else 0.0, sd or 1.0)
            else:
                categories[name] = sorted(samples[name].dropna().astype(str).unique())
        return cls(categories, scales)

    @property
    def width(self) -> int:
        """How many numbers."""
        return sum(map(len, self.categories.values())) + len(self.scales)

    def encode(self, samples: pd.DataFrame) -> np.ndarray:
        """Float32 (profiles, width)."""
        parts = [np.zeros((len(samples), 0))]
        for name, known in self.categories.items():
            require_column(samples, name)
            code = pd.Index(known).get_indexer(pd.Index(samples[name].astype(object).astype(str)))
            new = samples[name][(code < 0) & samples[name].notna().to_numpy()].unique()
            if len(new):
                log.warning("%s %s: never seen in training, encoded as unknown", name, shorten(new))
            parts.append((code[:, None] == np.arange(len(known))).astype(float))
        for name, (mean, sd) in self.scales.items():
            require_column(samples, name)
            values = (np.log1p(samples[name].to_numpy(float)) - mean) / sd
            parts.append(np.nan_to_num(values, nan=0.0)[:, None])
        return np.hstack(parts).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ConditionEncoder:
        """The encoder that ``to_json`` described."""
        return cls(values["categories"], {name: (pair[0], pair[1]) for name, pair in values["scales"].items()})
