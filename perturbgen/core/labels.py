"""The labels that everything is joined by: a condition is (cell type, compound)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pandas as pd

CONDITION: Final = ("cell_type", "compound")
VEHICLE: Final = "Dimethyl Sulfoxide"


def conditions_of(table: pd.DataFrame) -> pd.MultiIndex:
    """The condition of each row of obs or of any table that has both columns, as text."""
    import pandas as pd

    return pd.MultiIndex.from_frame(table[list(CONDITION)].astype(str))
