"""Functions in formulas: ``log(dose)``, ``poly(age, 2)``, ``ns(time, df = 3)``, ``I(dose^2)``.

They are read into a tree of known operations and computed with numpy, with R's numbers and R's
names of columns; no text of a formula is ever evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.interpolate import BSpline

from perturbgen.core.errors import DesignError, SchemaError, shorten, suggest

_Array = NDArray[np.float64]
_Refuse = Callable[[str], DesignError]
_Find = Callable[[str], _Array]

_SIMPLE: Final[dict[str, Callable[[_Array], _Array]]] = {
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "I": np.asarray,
    "offset": np.asarray,
}
# what further arguments a function takes, by position and by name, and their defaults
_OPTIONS: Final[dict[str, dict[str, float | bool | None]]] = {
    "poly": {"degree": 1.0, "raw": False},
    "ns": {"df": 1.0},
    "scale": {"center": True, "scale": True},
}
FUNCTIONS: Final = (*_SIMPLE, *_OPTIONS, "factor")
_OPERATIONS: Final[dict[str, Callable[[_Array, _Array], _Array]]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "^": np.power,
}
_TOKEN: Final = re.compile(
    r"""\s*(?:
      (?P<number> (?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)? )
    | (?P<name> `[^`]+` | [^\W\d][\w.]* )
    | (?P<operator> \*\* | [-+*/^(),=] )
    )""",
    re.VERBOSE,
)
_WORD: Final = re.compile(r"[^\W\d_][\w.]*")
_DEEPEST: Final = 50  # brackets in brackets


@dataclass(frozen=True)
class Expression:
    """A node of the tree: a number, a column, an operation or a call; ``text`` as R writes it."""

    kind: str
    text: str
    value: str | float = 0.0
    parts: tuple[Expression, ...] = ()
    options: tuple[tuple[str, float | bool], ...] = ()

    def columns(self, find: _Find) -> _Array:
        """The values (samples, columns); ``find`` gives the numbers of a column of obs."""
        with np.errstate(all="ignore"):  # what is not finite is told with its samples
            values = self._compute(find)
        return values if values.ndim == 2 else values[:, None]

    @property
    def names(self) -> set[str]:
        """The columns of obs that it reads."""
        own = {str(self.value)} if self.kind == "column" else set()
        return own.union(*(part.names for part in self.parts))

    def _compute(self, find: _Find) -> _Array:
        if self.kind == "number":
            return np.float64(self.value)  # type: ignore[return-value]
        if self.kind == "column":
            return find(str(self.value))
        values = [part._compute(find) for part in self.parts]
        name = str(self.value)
        if self.kind == "call":
            if name in _SIMPLE:
                return _SIMPLE[name](values[0])
            options: dict[str, Any] = dict(self.options)
            if name == "poly":
                return _polynomials(self.text, values[0], **options)
            made_by = _natural_splines if name == "ns" else _scale
            return made_by(self.text, values[0], **options)
        if self.kind == "brackets":
            return values[0]
        return -values[0] if len(values) == 1 else _OPERATIONS[name](*values)


def read_call(formula: str, start: int, refuse: _Refuse) -> tuple[Expression, int]:
    """The call that starts at a place of the formula, and where it ends."""
    reader = _CallReader(formula, start, refuse)
    found = reader.atom()
    if not found.names:
        raise refuse(f"{found.text} holds no column")
    return found, reader.at


class _CallReader:
    """Arithmetic by recursive descent, from what binds least: ``+ -``, ``* /``, signs, ``^``."""

    def __init__(self, formula: str, start: int, refuse: _Refuse) -> None:
        self.formula, self.at, self.refuse, self.depth = formula, start, refuse, 0

    def peek(self) -> tuple[str, str, int]:
        """The kind, text and end of the next token."""
        found = _TOKEN.match(self.formula, self.at)
        if found is None:
            rest = self.formula[self.at : self.at + 20].strip()
            raise self.refuse(
                f"{rest!r} means nothing in it" if rest else "a bracket is not closed"
            )
        return str(found.lastgroup), found[str(found.lastgroup)], found.end()

    def take(self, *operators: str) -> str:
        """The next token, if it is one of these operators."""
        kind, text, end = self.peek() if self.formula[self.at :].strip() else ("", "", 0)
        if kind == "operator" and text in operators:
            self.at = end
            return "^" if text == "**" else text
        return ""

    def sum(self) -> Expression:
        """``a + b - c``."""
        return self._chain(self.product, ("+", "-"), " {} ")

    def product(self) -> Expression:
        """``a * b / c``; R writes a quotient without blanks."""
        return self._chain(self.signed, ("*", "/"), " {} ")

    def _chain(
        self, operand: Callable[[], Expression], operators: tuple[str, ...], blanks: str
    ) -> Expression:
        found = operand()
        while operator := self.take(*operators):
            other = operand()
            between = operator if operator == "/" else blanks.format(operator)
            text = found.text + between + other.text
            found = Expression("operation", text, operator, (found, other))
        return found

    def signed(self) -> Expression:
        """``-a``."""
        sign = self.take("-", "+")
        if not sign:
            return self.power()
        inner = self._deeper(self.signed)
        if sign == "+":
            return Expression("brackets", f"+{inner.text}", "", (inner,))
        return Expression("operation", f"-{inner.text}", "-", (inner,))

    def power(self) -> Expression:
        """``a ^ b ^ c``, which is a ^ (b ^ c)."""
        base = self.atom()
        if not self.take("^", "**"):
            return base
        exponent = self._deeper(self.signed)
        return Expression("operation", f"{base.text}^{exponent.text}", "^", (base, exponent))

    def atom(self) -> Expression:
        """A number, a column, a call, or a sum in brackets."""
        kind, text, end = self.peek()
        self.at = end
        if kind == "number":
            return Expression("number", _show_number(float(text)), float(text))
        if kind == "name":
            if not self.take("("):
                name = text.strip("`")
                shown = name if _WORD.fullmatch(name) else text  # as R shows it
                return Expression("column", shown, name)
            return self._deeper(lambda: self.call(text))
        if text != "(":
            raise self.refuse(f"{text!r} is in no place for it")
        inner = self._deeper(self.sum)
        if not self.take(")"):
            raise self.refuse("a bracket is not closed")
        return Expression("brackets", f"({inner.text})", "", (inner,))

    def _deeper(self, read: Callable[[], Expression]) -> Expression:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self.refuse(f"it has more than {_DEEPEST} brackets in brackets")
        found = read()
        self.depth -= 1
        return found

    def call(self, name: str) -> Expression:
        """The arguments of a function whose bracket was opened."""
        if name == "factor":
            raise self.refuse("factor(...) takes a column, alone and not within a function")
        if name not in FUNCTIONS:
            known = f"the functions are {', '.join(FUNCTIONS)}"
            close = suggest(name, FUNCTIONS)
            near = f" ({close})" if close.startswith("did") else ""
            raise self.refuse(f"the function {name}(...) is unknown{near}; {known}")
        argument = self.sum()
        known_options = dict(_OPTIONS.get(name, {}))
        options: dict[str, float | bool] = {}
        shown = [argument.text]
        while self.take(","):
            option, value, text = self.option(name, known_options, options)
            options[option] = value
            shown.append(text)
        if not self.take(")"):
            raise self.refuse(f"the bracket of {name}( is not closed")
        _check_options(name, options, self.refuse)
        text = f"{name}({', '.join(shown)})"
        return Expression("call", text, name, (argument,), tuple(options.items()))

    def option(
        self, name: str, known: dict[str, float | bool | None], given: dict[str, float | bool]
    ) -> tuple[str, float | bool, str]:
        """A further argument: its name, its value, and both as R writes them."""
        kind, option, end = self.peek()
        written = ""
        if kind == "name" and option not in ("TRUE", "FALSE"):
            self.at = end
            if not self.take("="):
                raise self.refuse(f"{name}(...) takes no second column")
            written = f"{option} = "
        else:
            left = [one for one in known if one not in given]
            option = left[0] if left else "more arguments"
        if option not in known or option in given:
            takes = f"beside its column it takes {', '.join(known)}" if known else "it takes one"
            raise self.refuse(f"{name}(...) has no place for {option!r}: {takes}")
        kind, text, self.at = self.peek()
        if isinstance(known[option], bool):
            if text not in ("TRUE", "FALSE"):
                raise self.refuse(f"{option} of {name}(...) is TRUE or FALSE")
            return option, text == "TRUE", written + text
        if kind != "number":
            raise self.refuse(f"{option} of {name}(...) is a number, not {text!r}")
        return option, float(text), written + _show_number(float(text))


def _check_options(name: str, options: dict[str, float | bool], refuse: _Refuse) -> None:
    for option in ("degree", "df"):
        value = options.get(option, 1)
        if value != int(value) or not 1 <= value <= 100:
            raise refuse(f"{option} of {name}(...) is no whole number from 1 to 100")


def _show_number(value: float) -> str:
    """A number as R writes it: ``100``, ``0.5``, and ``1e+05`` where that is shorter."""
    fixed = np.format_float_positional(value, precision=15, fractional=False, trim="-")
    exponent = np.format_float_scientific(value, precision=14, trim="-", exp_digits=2)
    return fixed if len(fixed) <= len(exponent) else exponent


def require_finite(text: str, values: _Array, samples: pd.Index) -> None:
    """Refuse what a function made of a column where it is not finite."""
    wrong = np.atleast_1d(~np.isfinite(values).all(axis=1))
    if wrong.any():
        raise SchemaError(
            f"{text} is not finite in {int(wrong.sum())} samples: {shorten(samples[wrong])}",
            cause="the logarithm or root of a number that is not positive, or an overflow",
            fix="log(x + 1), or drop those samples",
        )


def _polynomials(text: str, x: _Array, degree: float = 1, *, raw: bool = False) -> _Array:
    """Orthogonal polynomials (samples, degree) of degrees 1 to ``degree``, each of length 1."""
    powers = np.arange(1, int(degree) + 1)
    if raw:
        return np.asarray(x[:, None] ** powers)
    if degree >= len(np.unique(x)):
        raise DesignError(
            f"{text} needs more than {len(np.unique(x))} different values",
            expected="a degree below the number of different values",
            fix="a lower degree",
        )
    centred = x - x.mean()
    q, r = np.linalg.qr(np.column_stack([np.ones(len(x)), centred[:, None] ** powers]))
    return np.asarray((q * np.sign(np.diag(r)))[:, 1:])


def _natural_splines(text: str, x: _Array, df: float = 1) -> _Array:
    """Natural cubic splines (samples, df) without an intercept, inner knots at quantiles of x.

    They are cubic B-splines whose second derivatives are zero at both ends: the null space of two
    constraints, in the basis that R's Householder reflections give.
    """
    if len(np.unique(x)) < 2:
        raise DesignError(f"{text}: all values are the same", fix="leave the term out")
    ends = [float(x.min()), float(x.max())]
    inner = np.quantile(x, np.linspace(0, 1, int(df) + 1)[1:-1])
    if len(np.unique([*ends, *inner])) < len(inner) + 2:
        raise DesignError(
            f"{text}: knots coincide, as quantiles of {len(np.unique(x))} different values",
            fix="a lower df",
        )
    knots = np.concatenate([[ends[0]] * 4, inner, [ends[1]] * 4])
    splines = BSpline(knots, np.eye(len(knots) - 4), 3)
    bent = splines.derivative(2)(np.array(ends))[:, 1:]
    reflected = np.linalg.qr(bent.T, mode="complete")[0]
    return np.asarray((splines(x)[:, 1:] @ reflected)[:, 2:])


def _scale(text: str, x: _Array, *, center: bool = True, scale: bool = True) -> _Array:
    """x less its mean, over its standard deviation (over its root mean square if not centred)."""
    moved = x - x.mean() if center else x
    spread = np.sqrt((moved @ moved) / max(len(x) - 1, 1))
    if scale and spread == 0:
        raise DesignError(f"{text}: all values are the same", fix="leave the term out")
    return np.asarray(moved / spread if scale else moved)
