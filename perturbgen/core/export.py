"""Writing tables: parquet with checksums of its pages, CSV that no spreadsheet computes."""

from __future__ import annotations

import csv
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from perturbgen.core.errors import ConfigError, suggest
from perturbgen.core.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger(__name__)

# of every parquet file that is written: a byte that changes later is told from the numbers
PARQUET: Final[dict[str, Any]] = {"write_page_checksum": True}
CSV_NAMES: Final = "PERTURBGEN_CSV_NAMES"
# a spreadsheet computes a field that begins so, in quotes or not; one character alone is text to it
_FORMULA: Final = re.compile(r"[=+\-@\t\r].", re.DOTALL)


def write_table(table: pd.DataFrame, path: str | Path, *, index: bool | None = False) -> Path:
    """Save as parquet or, for people, as CSV, by the ending of the name; whole or not at all.

    In a CSV, text that begins as a formula does gets a ``'`` in front, unless the environment
    variable PERTURBGEN_CSV_NAMES is ``raw``. Files of which names are read again by name (splits,
    submissions, what a simulator writes) are written elsewhere, as they are.
    """
    path = Path(path)
    with atomic_path(path) as part:
        if path.suffix == ".parquet":
            table.to_parquet(part, index=index, **PARQUET)
        else:
            safe = _without_formulas(table.reset_index() if index else table, path)
            part.write_text(csv_text(safe), encoding="utf-8", newline="")
    return path


def csv_text(table: pd.DataFrame, *, index: bool = False) -> str:
    """The table as CSV; where a name holds a carriage return, pandas alone would break its line."""
    text = table.to_csv(index=index)
    return table.to_csv(index=index, quoting=csv.QUOTE_NONNUMERIC) if "\r" in text else text


def _without_formulas(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    from pandas.api.types import is_numeric_dtype

    choices = ["prefixed", "raw"]
    chosen = os.environ.get(CSV_NAMES, choices[0])
    if chosen not in choices:
        raise ConfigError(f"{CSV_NAMES} is {chosen!r}", fix=suggest(chosen, choices))
    if chosen == "raw":
        return table
    found: dict[str, None] = {}

    def mended(value: Any) -> Any:
        if not isinstance(value, str) or not _FORMULA.match(value) or _is_number(value):
            return value
        found[value] = None
        return f"'{value}"

    safe = table.rename(columns=mended)
    for place, kind in enumerate(table.dtypes):
        if not is_numeric_dtype(kind):
            # categories are as long as the table only once they are values
            safe.isetitem(place, table.iloc[:, place].astype(object).map(mended).to_numpy())
    if found:
        _log.warning(
            "%s: a spreadsheet would compute %d names, such as %r; each has a ' in front there "
            "(%s=raw writes them as they are)",
            path,
            len(found),
            next(iter(found)),
            CSV_NAMES,
        )
    return safe


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
