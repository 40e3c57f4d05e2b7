"""R-style model formulas: the columns that a formula makes of a table of samples, coded as R's ``model.matrix`` does.

Terms are plain columns (quoted with backticks where the name is not a word), ``factor(column)``, their interactions
with ``:`` and ``*``, and ``0`` or ``-1`` for "no intercept". Text, booleans and categories are factors, numbers are
slopes. Levels keep the order of a categorical column and are otherwise sorted by code point (R in the C locale).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.core.errors import DesignError, SchemaError, shorten, suggest

log = logging.getLogger(__name__)

_Term = tuple[str, ...]
_INTERCEPT: _Term = ()


@dataclass(frozen=True)
class Factor:
    """A categorical variable: ``codes`` (samples,) index ``levels``, every one of which occurs."""

    name: str
    codes: NDArray[np.intp]
    levels: tuple[str, ...]

    def indicators(self, *, full: bool) -> tuple[NDArray[np.float64], list[str]]:
        """One 0/1 column a level (samples, levels); without the first level unless ``full``."""
        first = 0 if full else 1
        columns = self.codes[:, None] == np.arange(first, len(self.levels))
        return columns.astype(float), [self.name + level for level in self.levels[first:]]


@dataclass(frozen=True)
class _Slope:
    """A numeric variable: ``values`` (samples,)."""

    name: str
    values: NDArray[np.float64]


Variable = Factor | _Slope


def parse_formula(formula: str) -> list[_Term]:
    """The terms of a formula as tuples of variable names, in R's order: by degree, then as written."""
    from formulaic.errors import FormulaicError
    from formulaic.parser import DefaultFormulaParser

    try:
        parsed = DefaultFormulaParser(include_intercept=True).get_terms(formula)
    except FormulaicError as error:
        plain = re.sub(r"\x1b\[[0-9;]*m|[⧛⧚]", "", str(error)).splitlines()[0]
        raise _bad_formula(formula, plain) from None
    if getattr(parsed, "lhs", None):
        raise _bad_formula(formula, "it has a left-hand side")
    terms = [
        tuple(f.expr for f in term.factors if f.expr != "1")
        for term in getattr(parsed, "rhs", parsed)
    ]
    return sorted(terms, key=len)


def _bad_formula(formula: str, why: str) -> DesignError:
    """The formula cannot be used."""
    return DesignError(
        f"cannot read the design {formula!r}: {why}",
        expected="columns joined by + : or *, with 0 for no intercept",
        fix='for example "~0 + {group} + donor + plate"; names that are not words go in `backticks`',
    )


def make_factor(name: str, values: pd.Series) -> Factor:
    """A factor from any column; unused levels are dropped."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        used = values.cat.remove_unused_categories()
        codes, levels = used.cat.codes.to_numpy(), [str(level) for level in used.cat.categories]
    else:
        unique, codes = np.unique(values.astype(str).to_numpy(dtype=object), return_inverse=True)
        levels = list(unique)
    return Factor(name, codes.astype(np.intp), tuple(levels))


def make_variable(expression: str, obs: pd.DataFrame) -> Variable:
    """The variable that a name, or ``factor(name)``, stands for."""
    wrapped = re.fullmatch(r"factor\(\s*`?(.+?)`?\s*\)", expression)
    name = wrapped[1] if wrapped else expression
    if name not in obs.columns:
        known = [str(column) for column in obs.columns]
        raise SchemaError(
            f"the design needs {name!r}, which obs does not have",
            expected="a column of obs, or factor(column)",
            fix=suggest(name, known),
        )
    values = obs[name]
    if values.isna().any():
        raise SchemaError(
            f"covariate {name!r} is missing in {int(values.isna().sum())} samples: {shorten(obs.index[values.isna()])}",
            fix="fill the values in, drop those samples, or leave the covariate out of the design",
        )
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if wrapped or not numeric:
        return make_factor(expression, values)
    array = values.to_numpy(dtype=float)
    if not np.isfinite(array).all():
        raise SchemaError(
            f"covariate {name!r} holds infinite values", fix="correct or drop those samples"
        )
    return _Slope(expression, array)


def drop_constant_factors(terms: Sequence[_Term], variables: Mapping[str, Variable]) -> list[_Term]:
    """The terms without factors of one level, which R's ``model.matrix`` refuses and which can explain nothing."""
    constant = {
        name for name, v in variables.items() if isinstance(v, Factor) and len(v.levels) < 2
    }
    for name in sorted(constant):
        log.info("%s has one level in these samples and is left out of the design", name)
    kept = [tuple(name for name in term if name not in constant) for term in terms]
    emptied = [term != () and left == () for term, left in zip(terms, kept, strict=True)]
    return list(dict.fromkeys(left for left, gone in zip(kept, emptied, strict=True) if not gone))


def code_terms(
    terms: Sequence[_Term], variables: Mapping[str, Variable], samples: int
) -> Iterator[tuple[_Term, NDArray[np.float64], list[str]]]:
    """Each term's columns (samples, columns) and their names.

    A factor within a term is coded in full where the term without that factor is not in the model, and otherwise
    without its first level. Without an intercept, the first factor standing alone takes the intercept's place.
    """
    present = set(terms)
    for term in terms:
        blocks = []
        for name in term:
            variable = variables[name]
            if isinstance(variable, _Slope):
                blocks.append((variable.values[:, None], [variable.name]))
            else:
                rest = tuple(other for other in term if other != name)
                blocks.append(variable.indicators(full=not _is_present(rest, present)))
        if len(term) == 1 and isinstance(variables[term[0]], Factor):
            present.add(_INTERCEPT)
        yield term, *_interact(blocks, samples)


def _is_present(term: _Term, present: Iterable[_Term]) -> bool:
    """Whether a term is in the model, whatever the order of its variables."""
    return any(set(term) == set(other) for other in present)


def _interact(
    blocks: Sequence[tuple[NDArray[np.float64], list[str]]], samples: int
) -> tuple[NDArray[np.float64], list[str]]:
    """Products of columns, one of each block, the first block varying fastest; no block makes an intercept."""
    if not blocks:
        return np.ones((samples, 1)), ["(Intercept)"]
    picks = [
        tuple(reversed(p)) for p in product(*[range(len(names)) for _, names in reversed(blocks)])
    ]
    columns = np.ones((len(blocks[0][0]), len(picks)))
    for position, (values, _) in enumerate(blocks):
        columns = columns * values[:, [pick[position] for pick in picks]]
    names = [":".join(blocks[i][1][j] for i, j in enumerate(pick)) for pick in picks]
    return columns, names
