"""The centring that earlier work used, to show what it does to the disease."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError
from perturbgen.profiles.correct import Correction
from perturbgen.profiles.table import Groups, Key, Matrix


class SequentialCentroids(Correction):
    """For comparison only: subtract the mean of *all* rows by one label, then by the next, and so
    on.

    It depends on the order of the labels, pools plate 1 of one experiment with plate 1 of another,
    and removes whatever its labels stand for: centring by the disease removes the disease.
    """

    def __init__(self, by: Sequence[str]) -> None:
        self.by = tuple(by)
        self.centres: list[tuple[str, dict[Key, int], np.ndarray]] = []

    def _learn(self, X: Matrix, meta: pd.DataFrame, rows: np.ndarray) -> None:
        self.centres = []
        for name in self.by:
            groups = Groups.of(meta, [name])
            count, mean = groups.means(self.transform(X, meta), rows)
            if not count.all():
                first = groups.keys[int(count.argmin())][0]
                raise SchemaError(f"{name} {first} has no row to centre on")
            self.centres.append((name, {key: i for i, key in enumerate(groups.keys)}, mean))

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """Each row minus the centroids of its labels, in order."""
        for name, known, mean in self.centres:
            groups = Groups.of(meta, [name])
            numbers = np.array([known[key] for key in groups.keys])
            values = values - mean[numbers[groups.codes]]
        return values
