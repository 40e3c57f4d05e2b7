"""Contrasts written as formulas: ``"drugA - drugB"``, ``"(A.stim - A.ctrl) - (B.stim - B.ctrl)"``.

Numbers, names, brackets and + - * / are all there is: a formula is read, never evaluated as a
program. A name is a coefficient as R would call it (``compounddrugA``, ``dose``, in backticks where
it is no word), or a level of a factor. A level that is the reference of its factor stands for zero,
so that levels of such a factor can only be compared with each other.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from itertools import permutations, product
from math import isfinite
from typing import Final

import numpy as np
from numpy.typing import NDArray

from perturbgen.core.errors import DesignError, shorten, suggest
from perturbgen.de.design import Design

log = logging.getLogger(__name__)

_Array = NDArray[np.float64]
_Linear = dict[str, float]  # names and their factors; "" is the number that goes with none
_WORD = r"(?:`[^`]+`|[^\W\d][\w.]*)"
_TOKENS: Final = re.compile(
    rf"""\s*(?:
      (?P<number> (?:\d+\.?\d* | \.\d+) (?:[eE][-+]?\d+)? )
    | (?P<name> \(Intercept\) | {_WORD} (?: :{_WORD})* )
    | (?P<operator> [-+*/()] )
    )\s*""",
    re.VERBOSE,
)
_LONGEST: Final = 10_000  # characters of a contrast
_DEEPEST: Final = 50  # brackets in brackets


class _Reader:
    """A contrast as the factors of its names, by recursive descent."""

    def __init__(self, formula: str) -> None:
        self.formula, self.at, self.depth = formula, 0, 0
        self.tokens: list[tuple[str, str]] = []
        if len(formula) > _LONGEST:
            raise self.refuse(f"it is longer than {_LONGEST:,} characters")
        start = 0
        while start < len(formula.rstrip()):
            found = _TOKENS.match(formula, start)
            if found is None:
                raise self.refuse(f"{formula[start : start + 20].strip()!r} means nothing in it")
            self.tokens.append((str(found.lastgroup), found[str(found.lastgroup)]))
            start = found.end()

    def refuse(self, why: str) -> DesignError:
        """An error that says what contrasts look like."""
        shown = self.formula if len(self.formula) < 100 else f"{self.formula[:100]}..."
        return DesignError(
            f"cannot read the contrast {shown!r}: {why}",
            expected="names of levels or coefficients, numbers, brackets and + - * /",
            fix='for example "drugA - drugB", "(A.stim - A.ctrl) - (B.stim - B.ctrl)", "(x + y)/2 '
            '- z"; names that are not words go in `backticks`',
        )

    def read(self) -> dict[str, float]:
        """Names and their factors."""
        found = self.sum()
        if self.at < len(self.tokens):
            raise self.refuse(f"{self.tokens[self.at][1]!r} is in no place for it")
        number = found.pop("", 0.0)
        if number:
            raise self.refuse(f"the number {number:g} is added to no name")
        if not all(map(isfinite, found.values())):
            raise self.refuse("a number in it is infinite")
        found = {name: value for name, value in found.items() if value}
        if not found:
            raise self.refuse("it compares nothing")
        return found

    def take(self, operators: str) -> str:
        """The next token, if it is one of these operators."""
        if self.at < len(self.tokens):
            kind, text = self.tokens[self.at]
            if kind == "operator" and text in operators:
                self.at += 1
                return text
        return ""

    def sum(self) -> _Linear:
        found = self.product()
        while operator := self.take("+-"):
            sign = 1.0 if operator == "+" else -1.0
            for name, value in self.product().items():
                found[name] = found.get(name, 0.0) + sign * value
        return found

    def product(self) -> _Linear:
        found = self.atom()
        while operator := self.take("*/"):
            other = self.atom()
            if operator == "*" and not _is_number(other):
                found, other = other, found
            if not _is_number(other):
                what = "multiplied with" if operator == "*" else "divided by"
                raise self.refuse(f"names are {what} names")
            number = other.get("", 0.0)
            if operator == "/" and not number:
                raise self.refuse("it divides by zero")
            factor = number if operator == "*" else 1 / number
            found = {name: value * factor for name, value in found.items()}
        return found

    def atom(self) -> _Linear:
        sign = 1.0
        while operator := self.take("+-"):
            sign = -sign if operator == "-" else sign
        if self.take("("):
            self.depth += 1
            if self.depth > _DEEPEST:
                raise self.refuse(f"it has more than {_DEEPEST} brackets in brackets")
            found = self.sum()
            if not self.take(")"):
                raise self.refuse("a bracket is not closed")
            self.depth -= 1
            return {name: sign * value for name, value in found.items()}
        if self.at == len(self.tokens):
            raise self.refuse("it ends early")
        kind, text = self.tokens[self.at]
        if kind == "operator":
            raise self.refuse(f"{text!r} is in no place for it")
        self.at += 1
        if kind == "name" and self.at < len(self.tokens) and self.tokens[self.at][1] == "(":
            raise self.refuse(
                f"{text}(...) would have to be computed: there are no functions in it"
            )
        return {"": sign * float(text)} if kind == "number" else {text: sign}


def _is_number(linear: _Linear) -> bool:
    return not any(linear)


def contrast_weights(
    design: Design, contrasts: Mapping[str, str], *, prefer: str | None = None
) -> _Array:
    """The coefficients' weights (contrasts, columns of the design) of named contrasts.

    A level of several factors is taken to be that of the factor ``prefer``.
    """
    names = _Names(design, prefer)
    weights = np.array([names.weights(formula) for formula in contrasts.values()])
    possible = design.estimable(weights)
    for name, row, fine in zip(contrasts, weights, possible, strict=True):
        if not fine:
            raise DesignError(
                f"the contrast {name!r} is not estimable: {design.explain(row)}",
                expected="a contrast that these samples can answer",
                fix="drop what is confounded from the design, or ask for another contrast",
            )
    return weights


def contrast_samples(
    design: Design, formula: str, *, prefer: str | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The samples (samples,) of what a contrast adds, and of what it takes away.

    Those of the levels that it names; of another coefficient, those whose column is not zero.
    """
    names, sides = _Names(design, prefer), np.zeros((2, len(design.matrix)), dtype=bool)
    for name, value in _Reader(formula).read().items():
        sides[int(value < 0)] |= names.samples(name, design.matrix)
    return sides[0], sides[1]


class _Names:
    """What names of contrasts stand for in a design."""

    def __init__(self, design: Design, prefer: str | None) -> None:
        self.columns = {name: j for j, name in enumerate(design.columns)}
        self.prefer = prefer
        # a factor belongs to the design by its own columns, not by those of an interaction alone
        self.factors = {
            factor: levels
            for factor, levels in design.factors.items()
            if any(factor + level in self.columns for level in levels)
        }
        self.all_factors = design.factors
        self.references = {
            factor: levels[0]
            for factor, levels in self.factors.items()
            if factor + levels[0] not in self.columns
        }
        self.owners = {f + level: f for f, levels in self.factors.items() for level in levels}

    def weights(self, formula: str) -> _Array:
        """One contrast's weights (columns,)."""
        weights, named = np.zeros(len(self.columns)), _Reader(formula).read()
        by_level, by_column = dict[str, float](), dict[str, float]()
        for name, value in named.items():
            column, factor = self.find(name)
            if column >= 0:
                weights[column] += value
            sums = by_level if factor else by_column
            factor = factor or self.owners.get(name.replace("`", ""), "")
            sums[factor] = sums.get(factor, 0.0) + value
        for factor in self.references.keys() & by_level.keys():
            # levels and coefficients of one factor may be compared with each other
            sums_to = (by_level[factor], by_level[factor] + by_column.get(factor, 0.0))
            if min(map(abs, sums_to)) > 1e-9:
                raise self._unbalanced(formula, factor, by_level[factor])
        if not weights.any():
            raise DesignError(
                f"the contrast {formula!r} compares nothing",
                cause="its levels are the reference, or cancel each other",
            )
        return weights

    def _unbalanced(self, formula: str, factor: str, total: float) -> DesignError:
        reference = self.references[factor]
        return DesignError(
            f"the levels of {factor!r} in the contrast {formula!r} add up to {total:g}, but they "
            f"are coded as differences from {reference!r}",
            expected=f'a comparison, such as "{self.factors[factor][-1]} - {reference}"',
            fix=f"compare levels, name a coefficient, or begin the design with ~0 + {factor}",
        )

    def samples(self, name: str, matrix: _Array) -> NDArray[np.bool_]:
        """The samples that a name stands for."""
        column, factor = self.find(name)
        if column >= 0:
            return np.asarray(matrix[:, column] != 0)
        factor = factor or self.owners[name.replace("`", "")]
        own = [
            self.columns[name]
            for name, f in self.owners.items()
            if f == factor and name in self.columns
        ]
        return ~(matrix[:, own] != 0).any(axis=1)

    def find(self, written: str) -> tuple[int, str]:
        """The column of a name (-1: a reference), and of which factor it is a level, if of one."""
        name = written.replace("`", "")
        if name in self.columns:
            return self.columns[name], ""
        if name in self.owners:
            return -1, ""  # the coefficient that R leaves out
        parts = [part.strip("`") for part in re.findall(r"`[^`]+`|[^:]+", written)]
        if len(parts) > 1:
            return self._interaction(name, parts), ""
        holding = [factor for factor, levels in self.factors.items() if name in levels]
        if self.prefer in holding:
            holding = [str(self.prefer)]
        if not holding:
            raise self._unknown(name)
        if len(holding) > 1:
            full = shorten(f"{factor}{name}" for factor in holding)
            raise DesignError(
                f"{name!r} is a level of {shorten(holding)}", fix=f"name the coefficient: {full}"
            )
        [factor] = holding
        self._say_if_interacting(name, factor)
        return self.columns.get(factor + name, -1), factor

    def _interaction(self, name: str, parts: list[str]) -> int:
        """``B:stim`` in place of ``typeB:treatmentstim``."""
        if len(parts) > 4:
            raise self._unknown(name)
        spelt = [
            [part, *(f + part for f, levels in self.all_factors.items() if part in levels)]
            for part in parts
        ]
        found = {
            self.columns[":".join(order)]
            for choice in product(*spelt)
            for order in permutations(choice)
            if ":".join(order) in self.columns
        }
        if len(found) != 1:
            raise self._unknown(name)
        return found.pop()

    def _say_if_interacting(self, name: str, factor: str) -> None:
        own = re.escape(factor) + "(" + "|".join(map(re.escape, self.factors[factor])) + ")"
        if any(":" in column and re.search(rf"(^|:){own}(:|$)", column) for column in self.columns):
            log.warning(
                "%r is a level of a factor in an interaction: its effect is that at the reference "
                "of the other variable (a factor's first level, zero of a number)",
                name,
            )

    def _unknown(self, name: str) -> DesignError:
        levels = [level for levels in self.factors.values() for level in levels]
        known = [*self.columns, *(level for level in levels if level not in self.columns)]
        cause = None
        if ":" in name and all(
            any(part in levels for levels in self.all_factors.values()) or part in self.columns
            for part in name.split(":")
        ):
            cause = "an interaction with a reference level is coded as zero: it has no coefficient"
        return DesignError(
            f"no coefficient or level is called {name!r}", cause=cause, fix=suggest(name, known)
        )
