"""Rows of decimal numbers as text to float32, compiled: several times as fast as a general csv reader.

Values are those of ``numpy.float32(float(text))`` to the bit. A short number is read eight digits at a time without a
branch; a longer one digit by digit, and where its float64 might be off in the last places and lies so near to the
middle of two float32 that this could matter, the field is left to Python. So are words and quoted fields.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

_COMMA, _NEWLINE, _RETURN, _MINUS, _PLUS, _POINT, _QUOTE = 44, 10, 13, 45, 43, 46, 34
PAD: Final = b"\0" * 32  # follows the text, so that eight bytes may be read anywhere in it
_POWERS = 10.0 ** np.arange(23)  # exact in float64
_TENS = 10 ** np.arange(9, dtype=np.uint64)
_SIGNS = np.array([1.0, -1.0])
_DIGITS = 18  # that a 64-bit mantissa holds; those that follow only move the point
_SHORT = 15  # digits of which any number is exact in float64
_EXACT = 1 << 53  # a smaller mantissa, times or over one exact power, is rounded once
_NEAR = 2.0**-49  # more than three roundings of float64

_Whole = Any  # an integer of 64 bits; numba knows of which kind
_U = np.uint64
_ZEROS, _CARRY, _HIGH, _PAIRS = (
    _U(0x3030303030303030),
    _U(0x7676767676767676),
    _U(0x8080808080808080),
    _U(0x000000FF000000FF),
)
_HUNDREDS, _UNITS = _U(0x000F424000000064), _U(0x0000271000000001)  # 10^6 and 100; 10^4 and 1


@intrinsic
def _load8(typing: Any, array: Any, index: Any) -> Any:
    """Eight bytes of an array from any index on, the first one lowest."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        from llvmlite import ir

        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(64).as_pointer())
        return builder.load(place, align=1)

    return types.uint64(array, types.int64), generate


@intrinsic
def _trailing_zeros(typing: Any, word: Any) -> Any:
    """How many of the lowest bits are 0; 64 if all are."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        from llvmlite import ir

        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@njit(cache=True, nogil=True, inline="always")
def _some_digits(text: np.ndarray, position: _Whole) -> tuple[_Whole, _Whole]:
    """The number that the digits at ``position`` form, eight at most, and how many there are.

    A digit's byte is 0x30 + d, so that after XOR with ZEROS every other byte is above 9. The bytes are shifted until
    the last digit is the highest; then neighbours are joined: eight digits, four pairs, one number.
    """
    chunk: Any = _load8(text, position) ^ _ZEROS  # type: ignore[call-arg]  # numba gives the first argument
    count = _trailing_zeros(((chunk + _CARRY) | chunk) & _HIGH) >> _U(3)
    half = (_U(8) - count) << _U(2)
    chunk = (chunk << half) << half
    chunk = chunk * _U(10) + (chunk >> _U(8))
    return ((chunk & _PAIRS) * _HUNDREDS + ((chunk >> _U(16)) & _PAIRS) * _UNITS) >> _U(32), count


@njit(cache=True, nogil=True)
def parse_rows(
    text: np.ndarray,
    columns: int,
    key: int,
    values: np.ndarray,
    ids: np.ndarray,
    unsure: np.ndarray,
) -> tuple[int, int, int]:
    """Fill ``values`` (rows, columns - 1), float32, and ``ids`` (rows, 2), where each row's id begins and ends.

    ``text`` are whole lines (uint8) and PAD. Returns the number of rows; -1, or the column of the first field that is
    absent in the row after these (``columns``: there are more than these); and how many fields (row, place in values,
    begin, end) were written to ``unsure``, which Python has to read. Empty lines are passed over.
    """
    position, row, count, size = 0, 0, 0, len(text) - len(PAD)
    while position < size:
        if text[position] == _NEWLINE or (
            text[position] == _RETURN and text[position + 1] == _NEWLINE
        ):
            position += 1 + (text[position] == _RETURN)
            continue
        place = 0
        for column in range(columns):
            if column == key:
                end = _field_end(text, position)
                ids[row, 0], ids[row, 1], position = position, end, end
            else:
                start = position
                number, position, sure = _short_number(text, start)
                if not sure:
                    number, position, sure = _parse_number(text, start)
                if not sure:
                    position = _field_end(text, start)
                    unsure[count, 0], unsure[count, 1], unsure[count, 2], unsure[count, 3] = (
                        row,
                        place,
                        start,
                        position,
                    )
                    count += 1
                values[row, place] = number
                place += 1
            if column < columns - 1:
                if text[position] != _COMMA:
                    return row, column + 1, count
                position += 1
        position += text[position] == _RETURN
        if text[position] != _NEWLINE:
            return row, columns, count
        position += 1
        row += 1
    return row, -1, count


@njit(cache=True, nogil=True, inline="always")
def _short_number(text: np.ndarray, position: _Whole) -> tuple[float, int, bool]:
    """A number of up to fifteen digits, eight of them before the point; where it ends, and whether it is one."""
    minus = np.int64(text[position] == _MINUS)
    whole, before = _some_digits(text, position + minus)
    position += minus + np.int64(before)
    point = np.int64(text[position] == _POINT)
    position += point
    first, some = _some_digits(text, position)
    second, more = _some_digits(text, position + 8)
    full = some == _U(8)
    second, more = second if full else _U(0), more if full else _U(0)
    after = np.int64(some + more)
    position += after
    mantissa = np.int64((whole * _TENS[some] + first) * _TENS[more] + second)
    code = text[position]
    ends = (code == _COMMA) | (code == _NEWLINE) | (code == _RETURN)
    counted = (point == 1) | (
        before < _U(8)
    )  # without a point the ninth digit would be taken for a decimal
    short = before + some + more - _U(1) < _U(_SHORT)
    return np.float64(mantissa) / _POWERS[after] * _SIGNS[minus], position, ends & counted & short


@njit(cache=True, nogil=True)
def _parse_number(text: np.ndarray, position: int) -> tuple[float, int, bool]:
    """The number that begins at ``position``, where it ends, and whether float32 cannot be another; empty is NaN."""
    start, sign = position, -1.0 if text[position] == _MINUS else 1.0
    position += text[position] == _MINUS or text[position] == _PLUS
    mantissa: _Whole = np.int64(0)
    digits, exponent, seen, after = 0, 0, 0, False
    while True:
        code = text[position]
        if 48 <= code <= 57:
            seen += 1
            if digits < _DIGITS:
                mantissa = mantissa * 10 + np.int64(code - 48)
                digits += mantissa > 0
                exponent -= after
            else:
                exponent += not after
        elif code == _POINT and not after:
            after = True
        else:
            break
        position += 1
    if seen and (text[position] == 101 or text[position] == 69):  # e, E
        given, position = _parse_exponent(text, position + 1)
        exponent += given
    code = text[position]
    if code != _COMMA and code != _NEWLINE and code != _RETURN:
        return np.nan, start, False
    if not seen:
        return np.nan, position, position == start
    number = sign * _scaled(float(mantissa), exponent)
    once = mantissa < _EXACT and -22 <= exponent <= 22
    return (
        number,
        position,
        once or np.float32(number * (1 + _NEAR)) == np.float32(number * (1 - _NEAR)),
    )


@njit(cache=True, nogil=True)
def _scaled(mantissa: float, exponent: int) -> float:
    """mantissa x 10^exponent; one rounding where the power is exact."""
    if mantissa == 0.0 or exponent < -400:
        return 0.0
    if exponent > 400:
        return np.inf
    while exponent > 22:
        mantissa, exponent = mantissa * _POWERS[22], exponent - 22
    while exponent < -22:
        mantissa, exponent = mantissa / _POWERS[22], exponent + 22
    return mantissa * _POWERS[exponent] if exponent >= 0 else mantissa / _POWERS[-exponent]


@njit(cache=True, nogil=True)
def _parse_exponent(text: np.ndarray, position: int) -> tuple[int, int]:
    """The exponent that begins at ``position`` and where it ends; without a digit it ends where no number may."""
    value: _Whole = 0
    sign, start = -1 if text[position] == _MINUS else 1, position - 1
    position += text[position] == _MINUS or text[position] == _PLUS
    first = position
    while 48 <= text[position] <= 57:
        value, position = min(value * 10 + np.int64(text[position]) - 48, 9999), position + 1
    return sign * value, position if position > first else start


@njit(cache=True, nogil=True)
def _field_end(text: np.ndarray, position: int) -> int:
    """Where the field ends; commas between quotes belong to it."""
    quoted = False
    while True:
        code = text[position]
        if code == _QUOTE:
            quoted = not quoted
        if code in (_NEWLINE, _RETURN) or (code == _COMMA and not quoted):
            return position
        position += 1
