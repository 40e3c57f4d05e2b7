"""What the numbers of a network's labels mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

Name = int | str


@dataclass(frozen=True)
class Vocabulary:
    """What labels are called; a label's number is its place. ``label`` is the column that classes are names in."""

    classes: tuple[Name, ...]
    cells: tuple[str, ...]
    experiments: tuple[str, ...]
    label: str = "sirna_id"

    def codes(self, table: pd.DataFrame) -> dict[str, torch.Tensor]:
        """The numbers of a table's labels; what was not trained on is -1."""
        columns = (("label", self.label, self.classes), ("cell", "cell_type", self.cells),
                   ("experiment", "experiment", self.experiments))  # fmt: skip
        return {key: torch.from_numpy(place_of(table[column], names)) for key, column, names in columns}


def place_of(values: pd.Series, names: Sequence[Name]) -> np.ndarray:
    """The place of each value among the names, int64 (values,); -1 for another one, or none."""
    return (
        values.astype(object)
        .map(dict(zip(names, range(len(names)), strict=True)))
        .fillna(-1)
        .astype(np.int64)
        .to_numpy()
    )
