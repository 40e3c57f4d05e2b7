"""Doses and times as CMap writes them: numbers, '10 uM', '24|24', with micro signs of three encodings."""

from __future__ import annotations

import math
import re
from typing import Final

AMOUNT: Final = re.compile(r"\s*([+-]?[\d.]+(?:e[+-]?\d+)?)\s*(.*?)\s*", re.IGNORECASE)
MICRO: Final = re.compile("\u00c2?[\u00b5\u03bc\ufffd]|<b5>", re.IGNORECASE)
MOLAR: Final = {"m": 1e6, "mm": 1e3, "um": 1.0, "nm": 1e-3, "pm": 1e-6}
HOURS: Final = {"": 1.0, "h": 1.0, "hr": 1.0, "hrs": 1.0, "hour": 1.0, "hours": 1.0, "min": 1 / 60, "d": 24.0}

Amount = tuple[float, str | None]


def number(value: object) -> float:
    """A number, or NaN; of replicates joined by ``|`` the value that they share."""
    if value is None:
        return math.nan
    parts = {part.strip() for part in str(value).split("|")}
    try:
        found = float(parts.pop()) if len(parts) == 1 else math.nan
    except ValueError:
        return math.nan
    return math.nan if found == -666 else found


def clean_unit(unit: object) -> str | None:
    """A unit with a plain ``u`` for micro; None where it is missing."""
    if unit is None or unit != unit:
        return None
    text = MICRO.sub("u", str(unit).split("|")[0].strip())
    return None if text in ("", "-666", "-666.0") else text


def amount(value: object, unit: object, text: object) -> Amount:
    """A quantity and its unit, from two columns or, where the number is missing, from one text."""
    found = number(value)
    if not math.isnan(found):
        return found, clean_unit(unit)
    match = AMOUNT.fullmatch(MICRO.sub("u", str(text))) if text is not None else None
    if match is None or number(match[1]) != number(match[1]):
        return math.nan, clean_unit(unit)
    return number(match[1]), clean_unit(match[2])


def micromolar(quantity: Amount) -> Amount:
    """A dose in uM where its unit is molar; other units (ng, uL, ng/mL, %) stay as they are."""
    value, unit = quantity
    if unit is None or unit.lower() not in MOLAR:
        return value, unit
    return float(f"{value * MOLAR[unit.lower()]:.10g}"), "uM"


def hours(quantity: Amount) -> float:
    """A time in hours; an unknown unit gives NaN rather than a wrong number."""
    value, unit = quantity
    return value * HOURS.get((unit or "").lower(), math.nan)
