"""The labels that everything is joined by: a condition is (cell type, compound)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

CONDITION: Final = ("cell_type", "compound")
VEHICLE: Final = "Dimethyl Sulfoxide"


def conditions_of(
    table: pd.DataFrame, *, compound: str = "compound", unique_in: str | Path = ""
) -> pd.MultiIndex:
    """The condition of each row of obs or of any table that has both columns, as text.

    ``compound`` is what the table calls that column; a condition that occurs twice in the file
    ``unique_in``, where one is named, is an error.
    """
    import pandas as pd

    from perturbgen.core.tables import require_unique

    labels = table[["cell_type", compound]].set_axis(CONDITION, axis=1)
    index = pd.MultiIndex.from_frame(labels.astype(str))
    if unique_in:
        require_unique(index, "condition", unique_in)
    return index
