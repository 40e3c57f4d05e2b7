"""Ids and metadata fields as CMap's files write them: bytes of two encodings, -666 for what is missing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pandas as pd

MISSING: Final = -666
# Numbers that may be parsed from text; "1E10" is left alone, since wells and plates look like that.
NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]\d+)?")
MISSING_TEXT: Final = re.compile(r"-666(\.0*)?")
NA_TEXT: Final = frozenset(
    ("", "NA", "N/A", "#N/A", "#NA", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "na", "n/a", "#VALUE!", "#N/A!")
)


def decode(value: Any) -> str:
    """One id as text: UTF-8, or Latin-1 where it is not (``10 \\xb5M``); whole numbers without a decimal point."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def decode_ids(values: np.ndarray) -> list[str]:
    """Ids of any stored type as text, never touched otherwise: ``LJP005_A375_24H:DMSO:-666`` keeps its -666."""
    return [decode(value).strip() for value in values.tolist()]


def clean_field(values: np.ndarray, *, convert_missing: bool = True) -> np.ndarray:
    """A metadata field as numbers or text, with -666 of any spelling as missing."""
    if values.dtype.kind in "SOU":
        text = np.array([decode(value).strip() for value in values.tolist()], dtype=object)
        return without_missing_text(text) if convert_missing else text
    if not convert_missing or not (values == MISSING).any():
        return values
    return np.where(values == MISSING, np.nan, values.astype(float))


def without_missing_text(text: np.ndarray) -> np.ndarray:
    """Text with None in place of -666, -666.0 and so on."""
    return np.array([None if MISSING_TEXT.fullmatch(value) else value for value in text.tolist()], dtype=object)


def parse_text_field(values: Iterable[str], *, convert_missing: bool = True) -> np.ndarray:
    """A field of a text file: numbers where all that is not missing is a number, else text."""
    text = np.array([value.strip() for value in values], dtype=object)
    if convert_missing:
        text = without_missing_text(text)
    known = [value for value in text.tolist() if value is not None and value not in NA_TEXT]
    if not known or not all(NUMBER.fullmatch(value.lower()) for value in known):
        return text
    numbers = np.array([float("nan") if value is None or value in NA_TEXT else float(value) for value in text.tolist()])
    whole = len(known) == len(numbers) and all(value.lstrip("+-").isdigit() for value in known)
    return numbers.astype(np.int64) if whole else numbers


def encode_field(values: pd.Series) -> np.ndarray:
    """A column as HDF5 stores it: numbers as they are, the rest as fixed-length bytes; what is missing as -666."""
    if pd.api.types.is_bool_dtype(values):
        return values.to_numpy(dtype=np.int32)
    if pd.api.types.is_numeric_dtype(values):
        numbers = values.to_numpy()
        return np.where(np.isnan(numbers), MISSING, numbers) if numbers.dtype.kind == "f" else numbers
    return encode_text(str(MISSING) if missing else value for value, missing in zip(values, values.isna(), strict=True))


def encode_text(values: Iterable[object]) -> np.ndarray:
    """Text as fixed-length UTF-8 bytes."""
    encoded = [str(value).encode() for value in values]
    return np.array(encoded, dtype=f"S{max([1, *map(len, encoded)])}")
