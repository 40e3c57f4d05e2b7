"""Rows of decimal numbers as text to float32, compiled: several times as fast as a general csv reader."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

COMMA, NEWLINE, RETURN, MINUS, PLUS, POINT = 44, 10, 13, 45, 43, 46
POWERS = 10.0 ** np.arange(23)  # exact in float64
DIGITS = 18  # that a 64-bit mantissa holds; those that follow only move the point


@njit(cache=True, nogil=True)
def parse_rows(text: np.ndarray, columns: int, key: int, values: np.ndarray, ids: np.ndarray) -> tuple[int, int]:
    """Fill ``values`` (rows, columns - 1), float32, and ``ids`` (rows, 2), where each row's id begins and ends.

    ``text`` are whole lines (uint8). Returns the number of rows and -1, or the row and column of the first field that
    is no number or no field at all (``columns``: there are more than these).
    """
    position, row, size = 0, 0, len(text)
    while position < size:
        place = 0
        for column in range(columns):
            if column == key:
                ids[row, 0] = position
                while position < size and text[position] not in (COMMA, NEWLINE, RETURN):
                    position += 1
                ids[row, 1] = position
            else:
                number, end = parse_number(text, position)
                if end < 0:
                    return row, column
                values[row, place], position, place = number, end, place + 1
            if column < columns - 1:
                if position >= size or text[position] != COMMA:
                    return row, column + 1
                position += 1
        if position < size and text[position] == RETURN:
            position += 1
        if position < size and text[position] != NEWLINE:
            return row, columns
        position += 1
        row += 1
    return row, -1


@njit(cache=True, nogil=True, inline="always")
def parse_number(text: np.ndarray, position: int) -> tuple[float, int]:
    """The number that begins at ``position`` and where it ends, or -1; an empty field and ``nan`` are NaN."""
    size, start, sign = len(text), position, 1.0
    if position < size and (text[position] == MINUS or text[position] == PLUS):
        sign = -1.0 if text[position] == MINUS else 1.0
        position += 1
    mantissa: Any = np.uint64(0)
    digits, exponent, seen, after = 0, 0, 0, False
    while position < size:
        code = text[position]
        if 48 <= code <= 57:
            seen += 1
            if digits < DIGITS:
                mantissa = mantissa * np.uint64(10) + np.uint64(code - 48)
                digits += mantissa > 0
                exponent -= after
            else:
                exponent += not after
        elif code == POINT and not after:
            after = True
        else:
            break
        position += 1
    if seen == 0:
        return word(text, start, position, sign)
    if position < size and (text[position] == 101 or text[position] == 69):  # e, E
        given, position = parse_exponent(text, position + 1)
        if position < 0:
            return 0.0, -1
        exponent += given
    if position < size and text[position] != COMMA and text[position] != NEWLINE and text[position] != RETURN:
        return 0.0, -1
    return sign * scaled(float(mantissa), exponent), position


@njit(cache=True, nogil=True)
def scaled(mantissa: float, exponent: int) -> float:
    """mantissa x 10^exponent; one rounding where the power is exact."""
    if mantissa == 0.0 or exponent < -400:
        return 0.0
    if exponent > 400:
        return np.inf
    while exponent > 22:
        mantissa, exponent = mantissa * POWERS[22], exponent - 22
    while exponent < -22:
        mantissa, exponent = mantissa / POWERS[22], exponent + 22
    return mantissa * POWERS[exponent] if exponent >= 0 else mantissa / POWERS[-exponent]


@njit(cache=True, nogil=True)
def parse_exponent(text: np.ndarray, position: int) -> tuple[int, int]:
    """The exponent that begins at ``position`` and where it ends, or -1."""
    size, sign, value, seen = len(text), 1, 0, 0
    if position < size and (text[position] == MINUS or text[position] == PLUS):
        sign = -1 if text[position] == MINUS else 1
        position += 1
    while position < size and 48 <= text[position] <= 57:
        value, position, seen = min(value * 10 + int(text[position]) - 48, 9999), position + 1, seen + 1
    return sign * value, position if seen else -1


@njit(cache=True, nogil=True)
def word(text: np.ndarray, start: int, position: int, sign: float) -> tuple[float, int]:
    """A field without digits: empty or ``nan`` is NaN, ``inf`` is infinite, anything else -1."""
    end = start
    while end < len(text) and text[end] != COMMA and text[end] != NEWLINE and text[end] != RETURN:
        end += 1
    if end == start:
        return np.nan, end
    if end - position == 3:
        first, second, third = text[position] | 32, text[position + 1] | 32, text[position + 2] | 32
        if first == 110 and second == 97 and third == 110:
            return np.nan, end
        if first == 105 and second == 110 and third == 102:
            return sign * np.inf, end
    return 0.0, -1
