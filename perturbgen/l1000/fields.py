"""What CMap's files write: fields in two encodings, -666 for missing; ids, doses and times.

Doses and times are numbers, '10 uM' or '24|24', with micro signs of three encodings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

# CMap's null, in fields of any type, with and without decimals.
MISSING: Final = -666
# Numbers that may be parsed from text; "1E10" is left alone, since wells and plates look like that.
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]\d+)?")
MISSING_TEXT: Final = re.compile(r"-666(\.0*)?")
# Words that cmapPy takes for NaN.
NA_TEXT: Final = frozenset(
    (
        "",
        "NA",
        "N/A",
        "#N/A",
        "#NA",
        "NaN",
        "nan",
        "-NaN",
        "-nan",
        "NULL",
        "null",
        "na",
        "n/a",
        "#VALUE!",
        "#N/A!",
    )
)


def decode(value: Any) -> str:
    """One id as text: UTF-8, else Latin-1 (``10 \\xb5M``); whole numbers without a point."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    # Entrez ids are stored as numbers in some files, and a float would end in .0
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def decode_ids(values: np.ndarray) -> list[str]:
    """Ids as text, otherwise untouched: ``LJP005_A375_24H:DMSO:-666`` keeps its -666."""
    return [decode(value).strip() for value in values.tolist()]


def clean_field(values: np.ndarray, *, convert_missing: bool = True) -> np.ndarray:
    """A metadata field as numbers or text, with -666 of any spelling as missing."""
    if values.dtype.kind in "SOU":
        text = np.array([decode(value).strip() for value in values.tolist()], dtype=object)
        return _without_missing_text(text) if convert_missing else text
    # whole numbers stay whole where none is missing, since NaN makes them floats
    if not convert_missing or not (values == MISSING).any():
        return values
    return np.where(values == MISSING, np.nan, values.astype(float))


def _without_missing_text(text: np.ndarray) -> np.ndarray:
    """Text with None in place of -666, -666.0 and so on."""
    return np.array(
        [None if MISSING_TEXT.fullmatch(value) else value for value in text.tolist()], dtype=object
    )


def parse_text_field(values: Iterable[str], *, convert_missing: bool = True) -> np.ndarray:
    """A field of a text file: numbers where all that is not missing is a number, else text."""
    text = np.array([value.strip() for value in values], dtype=object)
    if convert_missing:
        text = _without_missing_text(text)
    known = [value for value in text.tolist() if value is not None and value not in NA_TEXT]
    if not known or not all(_NUMBER.fullmatch(value.lower()) for value in known):
        return text
    numbers = np.array(
        [
            float("nan") if value is None or value in NA_TEXT else float(value)
            for value in text.tolist()
        ]
    )
    whole = len(known) == len(numbers) and all(value.lstrip("+-").isdigit() for value in known)
    return numbers.astype(np.int64) if whole else numbers


Level = Literal["samples", "signatures", "unknown"]

# 384 wells: rows A to P, columns 1 to 24.
_WELL: Final = re.compile(r"[A-P](0?[1-9]|1\d|2[0-4])")
_SAMPLE: Final = re.compile(
    r"(?P<plate>(?P<project>[^_:]+)_(?P<cell_line>[^_:]+)_(?P<time>\d+(\.\d+)?)H_"
    r"(?P<replicate>X[^_:]*))"
    r"(_(?P<batch>[^_:]+))?(_[^:]*)?:(?P<well>[A-P]\d{1,2})",
    re.IGNORECASE,
)
# Of BRD-K56343971-001-02-3 the rest is salt and batch.
_BRD: Final = re.compile(r"BRD-[A-Z]\d{8}")


def parse_samples(ids: Iterable[str]) -> pd.DataFrame:
    """What sample ids such as ``LJP005_A375_24H_X1_B19:A03`` say, in columns."""
    names = [*_SAMPLE.groupindex]
    ids = list(ids)
    found = (_SAMPLE.fullmatch(name) for name in ids)
    rows = [match.groupdict() if match else dict.fromkeys(names) for match in found]
    table = pd.DataFrame(rows, columns=names, index=pd.Index(ids, dtype=object), dtype=object)
    return table.assign(time=table["time"].astype(float))


def level_of(ids: Iterable[str]) -> Level:
    """Whether ids name samples (levels 1 to 4) or signatures (level 5), by how most of them end."""
    sample = signature = 0
    for name in ids:
        head, colon, tail = name.partition(":")
        # a sample ends in its well, a signature in its perturbagen and dose
        if colon and _WELL.fullmatch(tail):
            sample += 1
        elif colon and ("_" in head or ":" in tail):
            signature += 1
    if max(sample, signature) == 0:
        return "unknown"
    return "samples" if sample >= signature else "signatures"


def core_id(pert_id: object) -> str | None:
    """The perturbagen behind an id: a BRD id without salt and batch, or the id itself."""
    if pert_id is None or pert_id != pert_id:
        return None
    text = str(pert_id).strip()
    match = _BRD.match(text.upper())
    return match.group() if match else text or None


_AMOUNT: Final = re.compile(r"\s*([+-]?[\d.]+(?:e[+-]?\d+)?)\s*(.*?)\s*", re.IGNORECASE)
# Two characters look like the sign; Â, \ufffd and <b5> are left of wrong decodings.
_MICRO: Final = re.compile("\u00c2?[\u00b5\u03bc\ufffd]|<b5>", re.IGNORECASE)
_MOLAR: Final = {"m": 1e6, "mm": 1e3, "um": 1.0, "nm": 1e-3, "pm": 1e-6}
_HOURS: Final = {
    "": 1.0,
    "h": 1.0,
    "hr": 1.0,
    "hrs": 1.0,
    "hour": 1.0,
    "hours": 1.0,
    "min": 1 / 60,
    "d": 24.0,
}


def _number(value: object) -> float:
    """A number, or NaN; of replicates joined by ``|`` the value that they share."""
    if value is None:
        return math.nan
    parts = {part.strip() for part in str(value).split("|")}
    try:
        found = float(parts.pop()) if len(parts) == 1 else math.nan
    except ValueError:
        return math.nan
    return math.nan if found == -666 else found


def _clean_unit(unit: object) -> str | None:
    """A unit with a plain ``u`` for micro; None where it is missing."""
    if unit is None or unit != unit:
        return None
    text = _MICRO.sub("u", str(unit).split("|")[0].strip())
    return None if text in ("", "-666", "-666.0") else text


def _amount(value: object, unit: object, text: object) -> tuple[float, str | None]:
    """A quantity and its unit, from two columns or, where the number is missing, from one text."""
    found = _number(value)
    if not math.isnan(found):
        return found, _clean_unit(unit)
    match = _AMOUNT.fullmatch(_MICRO.sub("u", str(text))) if text is not None else None
    if match is None or _number(match[1]) != _number(match[1]):
        return math.nan, _clean_unit(unit)
    return _number(match[1]), _clean_unit(match[2])


def dose_of(number: object, unit_text: object, text: object) -> tuple[float, str | None]:
    """A dose in uM where its unit is molar; other units (ng, uL, ng/mL, %) stay as they are."""
    value, unit = _amount(number, unit_text, text)
    if unit is None or unit.lower() not in _MOLAR:
        return value, unit
    # ten digits: a dose is one number, whether a table gives it in nM or in uM
    return float(f"{value * _MOLAR[unit.lower()]:.10g}"), "uM"


def hours_of(number: object, unit_text: object, text: object) -> float:
    """A time in hours; an unknown unit gives NaN rather than a wrong number."""
    value, unit = _amount(number, unit_text, text)
    return value * _HOURS.get((unit or "").lower(), math.nan)
