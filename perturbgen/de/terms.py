"""The terms of R's formulas, and the calls and offsets among them."""

from __future__ import annotations

import re
from typing import Final

from perturbgen.core.errors import DesignError
from perturbgen.de.functions import Expression, read_call

Term = tuple[str, ...]

_TOKENS = re.compile(
    r"""\s*(?:
      (?P<name> factor\s*\(\s*(?:`[^`]+`|[^\W\d][\w.]*)\s*\) | `[^`]+` | [^\W\d][\w.]* )
    | (?P<number> \d+ )
    | (?P<operator> \*\* | %in% | [-+:*/^()~] )
    )\s*""",
    re.VERBOSE,
)
_LONGEST: Final = 10_000  # characters of a formula
_MOST: Final = 1_000  # terms
_DEEPEST: Final = 50  # brackets in brackets


class Reader:
    """R's formulas as lists of terms, read by recursive descent; nothing in them is evaluated.

    From what binds most to least: ``^``, ``:``, ``%in%``, ``*`` and ``/``, ``+`` and ``-``. What a
    formula may grow to is bounded: of ``(a + b + c) ^ 40`` one would never see the end.
    """

    def __init__(self, formula: str) -> None:
        self.formula, self.at, self.depth = formula, 0, 0
        self.tokens: list[tuple[str, str]] = []
        self.calls: dict[str, Expression] = {}  # by their text, which is their name in terms
        self.offsets: list[Expression] = []
        if len(formula) > _LONGEST:
            raise self.refuse(f"it is longer than {_LONGEST:,} characters")
        start = 0
        while start < len(formula.rstrip()):
            found = _TOKENS.match(formula, start)
            if found is None:
                raise self.refuse(f"{formula[start : start + 20].strip()!r} means nothing in it")
            kind, text, end = str(found.lastgroup), found[str(found.lastgroup)].strip(), found.end()
            if kind == "name" and text[-1] not in ")`" and formula[end : end + 1] == "(":
                call, end = read_call(formula, found.start("name"), self.refuse)
                text = call.text
                self.calls[text] = call
            self.tokens.append((kind, text))
            start = end
        columns = {text.strip("`") for _, text in self.tokens if text.startswith("`")}
        if twice := columns & set(self.calls):
            raise self.refuse(f"{min(twice)} is a function and a column of that name")

    def refuse(self, why: str) -> DesignError:
        """An error that says what formulas look like."""
        shown = self.formula if len(self.formula) < 100 else f"{self.formula[:100]}..."
        return DesignError(
            f"cannot read the design {shown!r}: {why}",
            expected="columns, and functions of them such as log(dose), "
            "joined by + : or *, with 0 for no intercept",
            fix='for example "~0 + {group} + donor + plate"; '
            "names that are not words go in `backticks`, arithmetic in I()",
        )

    def terms(self) -> list[Term]:
        """The terms of the whole formula, in R's order: by degree, then as written."""
        if not self.take("~") and ("operator", "~") in self.tokens:
            raise self.refuse("it has a left-hand side")
        found = self.sum([()])  # with an intercept, unless it is taken away
        if self.at < len(self.tokens):
            raise self.refuse(f"{self.tokens[self.at][1]!r} is in no place for it")
        names = dict.fromkeys(text for kind, text in self.tokens if kind == "name")
        order = {self.plain(name): place for place, name in enumerate(names)}
        found = self._without_offsets(found)
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

    def sum(self, found: list[Term]) -> list[Term]:
        """Terms added and taken away; 0 takes the intercept away, 1 adds it."""
        sign = self.take("+", "-") or "+"
        while sign:
            if self.at < len(self.tokens) and self.tokens[self.at][0] == "number":
                number, self.at = self.tokens[self.at][1], self.at + 1
                if number not in ("0", "1"):
                    raise self.refuse(f"the number {number} is no term")
                added: list[Term] = [()]
                sign = "-" if (sign == "-") != (number == "0") else "+"
            else:
                added = self.product()
            found = self.join(found, added) if sign == "+" else self.without(found, added)
            sign = self.take("+", "-")
        return found

    def product(self) -> list[Term]:
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

    def nested(self) -> list[Term]:
        """``a %in% b`` is a:b."""
        found = self.interaction()
        while self.take("%in%"):
            found = self.cross(found, self.interaction())
        return found

    def interaction(self) -> list[Term]:
        """``a:b``, every term with every other."""
        found = self.power()
        while self.take(":"):
            found = self.cross(found, self.power())
        return found

    def power(self) -> list[Term]:
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

    def atom(self) -> list[Term]:
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
        return [(self.plain(text),)]

    def cross(self, first: list[Term], second: list[Term]) -> list[Term]:
        """Every term of one with every one of the other; a variable counts once."""
        pairs = [tuple(dict.fromkeys(one + other)) for one in first for other in second]
        return self.join([], pairs)

    def join(self, first: list[Term], second: list[Term]) -> list[Term]:
        """Terms of both; a:b and b:a are one."""
        found: dict[frozenset[str], Term] = {}
        for term in (*first, *second):
            found.setdefault(frozenset(term), term)
        if len(found) > _MOST:
            raise self.refuse(f"it has more than {_MOST:,} terms")
        return list(found.values())

    def without(self, first: list[Term], second: list[Term]) -> list[Term]:
        """Terms of the first that the second has not."""
        gone = {frozenset(term) for term in second}
        return [term for term in first if frozenset(term) not in gone]

    def plain(self, name: str) -> str:
        """A name without backticks, or ``factor(name)`` without blanks in it."""
        if name in self.calls:
            return name
        return re.sub(r"\s*([()])\s*", r"\1", name) if name.endswith(")") else name.strip("`")

    def _without_offsets(self, found: list[Term]) -> list[Term]:
        """The terms that are no ``offset(...)``; those are known, and have no coefficient."""
        offsets = {name for name, call in self.calls.items() if call.value == "offset"}
        for term in found:
            if offsets & set(term) and len(term) > 1:
                raise self.refuse("an offset is in an interaction")
        self.offsets = [self.calls[name] for term in found for name in term if name in offsets]
        return [term for term in found if not offsets & set(term)]
