"""R-style model formulas: the columns that R's ``model.matrix`` makes of a table of samples.

Terms are plain columns (in backticks where the name is not a word), ``factor(column)``, their
interactions with ``:`` and ``*``, and ``0`` or ``-1`` for "no intercept". Text, booleans and
categories are factors, numbers are slopes. Levels keep the order of a categorical column and are
otherwise sorted by code point, as R does in the C locale.

Formulas are read and coded here. formulaic, which could do both, makes only independent columns of
``~ a:b``, where R makes all and limma's contrasts depend on which of those are dropped; and it
takes calls, and degrees without bound.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.core.errors import DesignError, SchemaError, shorten, suggest

log = logging.getLogger(__name__)

_Array = NDArray[np.float64]
_Term = tuple[str, ...]
_GROUP = "group__"  # stands for {group}, so that the compared column may have any name


@dataclass(frozen=True)
class _Factor:
    """A categorical variable: ``codes`` (samples,) index ``levels``, every one of which occurs."""

    name: str
    codes: NDArray[np.intp]
    levels: tuple[str, ...]

    def indicators(self, *, full: bool) -> tuple[_Array, list[str]]:
        """One 0/1 column a level (samples, levels); without the first level unless ``full``."""
        first = 0 if full else 1
        columns = self.codes[:, None] == np.arange(first, len(self.levels))
        return columns.astype(float), [self.name + level for level in self.levels[first:]]


@dataclass(frozen=True)
class _Slope:
    """A numeric variable: ``values`` (samples,)."""

    name: str
    values: _Array


_Variables = Mapping[str, _Factor | _Slope]


@dataclass(frozen=True)
class _Coded:
    """A formula's ``matrix`` (samples, columns), the columns' names, the levels of every factor.

    ``levels`` are those of the compared factor, and ``level_column`` is the column of each, -1 for
    a level that treatment coding takes as its reference. Without a compared factor there are none.
    """

    matrix: _Array
    columns: tuple[str, ...]
    levels: tuple[str, ...]
    level_column: NDArray[np.intp] | None
    factors: dict[str, tuple[str, ...]]


def model_matrix(formula: str, obs: pd.DataFrame, group: pd.Series | None = None) -> _Coded:
    """The columns of a formula; ``{group}`` in it is ``group``, always a factor."""
    terms = _Reader(formula.replace("{group}", _GROUP)).terms()
    if group is not None and (_GROUP,) not in terms:
        what = f"the design {formula!r} does not hold the compared factor"
        raise DesignError(what, fix="write it as {group}")
    if group is not None and any(_GROUP in term and len(term) > 1 for term in terms):
        raise DesignError(
            f"{{group}} is in an interaction of {formula!r}, "
            "so no single contrast compares two of its levels",
            fix="perturbgen.de.fit(...).contrasts({...}) asks for any contrast of coefficients; or "
            "use by= (one fit a level) or joint=True (the combination is the group)",
        )
    names = dict.fromkeys(name for term in terms for name in term if name != _GROUP)
    variables = {name: _make_variable(name, obs) for name in names}
    if group is not None:
        variables[_GROUP] = _make_factor(_GROUP, group)
    coded = list(_code_terms(_drop_constant_factors(terms, variables), variables, len(obs)))
    matrix = np.hstack([block for _, block, _ in coded]) if coded else np.empty((len(obs), 0))
    columns = tuple(name for _, _, names in coded for name in names)
    factors = {name: v.levels for name, v in variables.items() if isinstance(v, _Factor)}
    return _Coded(matrix, columns, *_group_columns(coded, variables), factors)


def _group_columns(
    coded: Sequence[tuple[_Term, _Array, list[str]]], variables: _Variables
) -> tuple[tuple[str, ...], NDArray[np.intp] | None]:
    factor = variables.get(_GROUP)
    if not isinstance(factor, _Factor):
        return (), None
    start = 0
    for term, block, _ in coded:
        if term == (_GROUP,):
            references = np.full(len(factor.levels) - block.shape[1], -1)
            columns = np.concatenate([references, start + np.arange(block.shape[1])])
            return factor.levels, columns.astype(np.intp)
        start += block.shape[1]
    raise DesignError(  # it was dropped as constant
        "the compared factor has one level in these samples",
        expected="the control and at least one other",
    )


_TOKENS = re.compile(
    r"""\s*(?:
      (?P<name> factor\s*\(\s*(?:`[^`]+`|[^\W\d][\w.]*)\s*\) | `[^`]+` | [^\W\d][\w.]* )
    | (?P<number> \d+ )
    | (?P<operator> \*\* | %in% | [-+:*/^()~] )
    )\s*""",
    re.VERBOSE,
)
_FUNCTIONS: Final = ("factor",)
_CALL: Final = re.compile(r"([^\W\d][\w.]*)\s*\(")
_LONGEST: Final = 10_000  # characters of a formula
_MOST: Final = 1_000  # terms
_DEEPEST: Final = 50  # brackets in brackets


class _Reader:
    """R's formulas as lists of terms, read by recursive descent; nothing in them is evaluated.

    From what binds most to least: ``^``, ``:``, ``%in%``, ``*`` and ``/``, ``+`` and ``-``. What a
    formula may grow to is bounded: of ``(a + b + c) ^ 40`` one would never see the end.
    """

    def __init__(self, formula: str) -> None:
        self.formula, self.at, self.depth = formula, 0, 0
        self.tokens: list[tuple[str, str]] = []
        if len(formula) > _LONGEST:
            raise self.refuse(f"it is longer than {_LONGEST:,} characters")
        self.refuse_functions()
        start = 0
        while start < len(formula.rstrip()):
            found = _TOKENS.match(formula, start)
            if found is None:
                raise self.refuse(f"{formula[start : start + 20].strip()!r} means nothing in it")
            self.tokens.append((str(found.lastgroup), found[str(found.lastgroup)].strip()))
            start = found.end()

    def refuse(self, why: str) -> DesignError:
        """An error that says what formulas look like."""
        shown = self.formula if len(self.formula) < 100 else f"{self.formula[:100]}..."
        return DesignError(
            f"cannot read the design {shown!r}: {why}",
            expected="columns joined by + : or *, with 0 for no intercept",
            fix='for example "~0 + {group} + donor + plate"; '
            "names that are not words go in `backticks`, what is to be computed in a column of obs",
        )

    def refuse_functions(self) -> None:
        """Refuse calls of any function that formulas do not have: none is ever evaluated."""
        for found in _CALL.finditer(re.sub("`[^`]*`", "", self.formula)):
            if found[1] not in _FUNCTIONS:
                raise self.refuse(
                    f"there is no function {found[1]!r} in formulas "
                    f"({suggest(found[1], _FUNCTIONS)}), and nothing in them is evaluated"
                )

    def terms(self) -> list[_Term]:
        """The terms of the whole formula, in R's order: by degree, then as written."""
        if not self.take("~") and ("operator", "~") in self.tokens:
            raise self.refuse("it has a left-hand side")
        found = self.sum([()])  # with an intercept, unless it is taken away
        if self.at < len(self.tokens):
            raise self.refuse(f"{self.tokens[self.at][1]!r} is in no place for it")
        names = dict.fromkeys(text for kind, text in self.tokens if kind == "name")
        order = {_plain(name): place for place, name in enumerate(names)}
        # R lists a term's variables as they first occur in the formula: of b + a + a:b it has b:a
        placed = (tuple(sorted(term, key=order.__getitem__)) for term in found)
        return sorted(placed, key=len)  # stable: as written within a degree

    def take(self, *operators: str) -> str:
        """The next token, if it is one of these operators."""
        if self.at < len(self.tokens) and self.tokens[self.at] in [
            ("operator", o) for o in operators
        ]:
            self.at += 1
            return self.tokens[self.at - 1][1]
        return ""

    def sum(self, found: list[_Term]) -> list[_Term]:
        """Terms added and taken away; 0 takes the intercept away, 1 adds it."""
        sign = self.take("+", "-") or "+"
        while sign:
            if self.at < len(self.tokens) and self.tokens[self.at][0] == "number":
                number, self.at = self.tokens[self.at][1], self.at + 1
                if number not in ("0", "1"):
                    raise self.refuse(f"the number {number} is no term")
                added: list[_Term] = [()]
                sign = "-" if (sign == "-") != (number == "0") else "+"
            else:
                added = self.product()
            found = self.join(found, added) if sign == "+" else self.without(found, added)
            sign = self.take("+", "-")
        return found

    def product(self) -> list[_Term]:
        """``a * b`` is a + b + a:b, ``a / b`` is a + b in all of a."""
        found = self.nested()
        while operator := self.take("*", "/"):
            other = self.nested()
            if operator == "*":
                found = self.join(self.join(found, other), self.cross(found, other))
            else:
                whole = tuple(dict.fromkeys(name for term in found for name in term))
                found = self.join(found, self.cross([whole], other))
        return found

    def nested(self) -> list[_Term]:
        """``a %in% b`` is a:b."""
        found = self.interaction()
        while self.take("%in%"):
            found = self.cross(found, self.interaction())
        return found

    def interaction(self) -> list[_Term]:
        """``a:b``, every term with every other."""
        found = self.power()
        while self.take(":"):
            found = self.cross(found, self.power())
        return found

    def power(self) -> list[_Term]:
        """``(a + b) ^ 2``, all interactions up to that degree."""
        base = found = self.atom()
        if self.take("^", "**"):
            kind, degree = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
            if kind != "number" or not 1 <= int(degree[:3]) <= 9:
                raise self.refuse(f"the degree {degree!r} is no number from 1 to 9")
            self.at += 1
            for _ in range(int(degree) - 1):
                found = self.cross(found, base)  # a term times itself is itself
        return found

    def atom(self) -> list[_Term]:
        """A column, or a sum in brackets."""
        if self.take("("):
            self.depth += 1
            if self.depth > _DEEPEST:
                raise self.refuse(f"it has more than {_DEEPEST} brackets in brackets")
            found = self.sum([])
            if not self.take(")"):
                raise self.refuse("a bracket is not closed")
            self.depth -= 1
            return found
        kind, text = (
            self.tokens[self.at] if self.at < len(self.tokens) else ("end", "it ends early")
        )
        if kind != "name":
            raise self.refuse(text if kind == "end" else f"{text!r} is in no place for it")
        self.at += 1
        return [(_plain(text),)]

    def cross(self, first: list[_Term], second: list[_Term]) -> list[_Term]:
        """Every term of one with every one of the other; a variable counts once."""
        pairs = [tuple(dict.fromkeys(one + other)) for one in first for other in second]
        return self.join([], pairs)

    def join(self, first: list[_Term], second: list[_Term]) -> list[_Term]:
        """Terms of both; a:b and b:a are one."""
        found: dict[frozenset[str], _Term] = {}
        for term in (*first, *second):
            found.setdefault(frozenset(term), term)
        if len(found) > _MOST:
            raise self.refuse(f"it has more than {_MOST:,} terms")
        return list(found.values())

    def without(self, first: list[_Term], second: list[_Term]) -> list[_Term]:
        """Terms of the first that the second has not."""
        gone = {frozenset(term) for term in second}
        return [term for term in first if frozenset(term) not in gone]


def _plain(name: str) -> str:
    """A name without backticks, or ``factor(name)`` without blanks in it."""
    return re.sub(r"\s*([()])\s*", r"\1", name) if name.endswith(")") else name.strip("`")


def _make_variable(expression: str, obs: pd.DataFrame) -> _Factor | _Slope:
    """The variable that a name, or ``factor(name)``, stands for."""
    wrapped = re.fullmatch(r"factor\(\s*`?(.+?)`?\s*\)", expression)
    name = wrapped[1] if wrapped else expression
    if name not in obs.columns:
        raise SchemaError(
            f"the design needs {name!r}, which obs does not have",
            expected="a column of obs, or factor(column)",
            fix=suggest(name, map(str, obs.columns)),
        )
    values = obs[name]
    absent = values.isna()
    if absent.any():
        raise SchemaError(
            f"covariate {name!r} is missing in {int(absent.sum())} samples: "
            f"{shorten(obs.index[absent])}",
            fix="fill the values in, drop those samples, or leave the covariate out of the design",
        )
    # pandas counts booleans as numbers; in a design they are two levels
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if wrapped or not numeric:
        return _make_factor(expression, values)
    array = values.to_numpy(dtype=float)
    if not np.isfinite(array).all():
        what = f"covariate {name!r} holds infinite values"
        raise SchemaError(what, fix="correct or drop those samples")
    return _Slope(expression, array)


def _make_factor(name: str, values: pd.Series) -> _Factor:
    """A factor from any column; unused levels are dropped."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        used = values.cat.remove_unused_categories()
        codes, levels = used.cat.codes.to_numpy(), used.cat.categories.map(str).to_numpy()
    else:
        levels, codes = np.unique(values.astype(str).to_numpy(dtype=object), return_inverse=True)
    return _Factor(name, codes.astype(np.intp), tuple(levels))


def _drop_constant_factors(terms: Sequence[_Term], variables: _Variables) -> list[_Term]:
    """The terms without factors of one level.

    R's ``model.matrix`` refuses those. They explain nothing, and one formula has to serve cell
    types of which some were measured on a single plate.
    """
    factors = {name: v for name, v in variables.items() if isinstance(v, _Factor)}
    constant = {name for name, factor in factors.items() if len(factor.levels) < 2}
    for name in sorted(constant):
        log.info("%s has one level in these samples and is left out of the design", name)
    left = {term: tuple(name for name in term if name not in constant) for term in terms}
    # a term that was emptied is no intercept
    return list(dict.fromkeys(rest for term, rest in left.items() if rest or not term))


def _code_terms(
    terms: Sequence[_Term], variables: _Variables, samples: int
) -> Iterator[tuple[_Term, _Array, list[str]]]:
    """Each term's columns (samples, columns) and their names.

    R's rule (Statistical Models in S, page 38): a factor within a term is coded without its first
    level where an earlier term holds all of the term's other variables, and otherwise in full.
    Without an intercept, the first factor of all is coded in full.
    """
    whole = () not in terms
    for number, term in enumerate(terms):
        blocks = []
        for name in term:
            variable = variables[name]
            if isinstance(variable, _Slope):
                blocks.append((variable.values[:, None], [variable.name]))
                continue
            others = set(term) - {name}
            spanned = any(others <= set(earlier) for earlier in terms[:number]) or not others
            blocks.append(variable.indicators(full=whole or not spanned))
            whole = False
        yield term, *_interact(blocks, samples)


def _interact(blocks: Sequence[tuple[_Array, list[str]]], samples: int) -> tuple[_Array, list[str]]:
    """Products of one column of each block, the first varying fastest; none: the intercept."""
    if not blocks:
        return np.ones((samples, 1)), ["(Intercept)"]
    sizes = [range(len(names)) for _, names in blocks]
    picks = [tuple(reversed(pick)) for pick in product(*reversed(sizes))]
    columns = np.ones((samples, len(picks)))
    for position, (values, _) in enumerate(blocks):
        columns = columns * values[:, [pick[position] for pick in picks]]
    names = [":".join(blocks[i][1][j] for i, j in enumerate(pick)) for pick in picks]
    return columns, names
