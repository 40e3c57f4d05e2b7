"""R-style model formulas: the columns that R's ``model.matrix`` makes of a table of samples.

Terms are plain columns (in backticks where the name is not a word), ``factor(column)``, functions
such as ``log(dose)`` and ``ns(time, df = 3)`` (``functions.py``), their interactions with ``:`` and
``*``, and ``0`` or ``-1`` for "no intercept". Text, booleans and categories are factors, numbers
are slopes. Levels keep the order of a categorical column and are otherwise sorted by code point, as
R does in the C locale.

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

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.core.errors import DesignError, SchemaError, shorten, suggest
from perturbgen.de.functions import Expression, require_finite
from perturbgen.de.terms import Reader, Term

log = logging.getLogger(__name__)

_Array = NDArray[np.float64]
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
    """A numeric variable: ``values`` (samples, columns), of more than one column where a function
    makes several.
    """

    names: list[str]
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
    reader = Reader(formula.replace("{group}", _GROUP))
    terms = reader.terms()
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
    calls = reader.calls
    variables = {
        name: _compute(calls[name], obs) if name in calls else _make_variable(name, obs)
        for name in names
    }
    if group is not None:
        variables[_GROUP] = _make_factor(_GROUP, group)
    coded = list(_code_terms(_drop_constant_factors(terms, variables), variables, len(obs)))
    matrix = np.hstack([block for _, block, _ in coded]) if coded else np.empty((len(obs), 0))
    columns = tuple(name for _, _, names in coded for name in names)
    factors = {name: v.levels for name, v in variables.items() if isinstance(v, _Factor)}
    return _Coded(matrix, columns, *_group_columns(coded, variables), factors)


def offset_of(formula: str, obs: pd.DataFrame) -> _Array | None:
    """The sum (samples,) of a formula's ``offset(...)``, in log2; None without any.

    It is what is known of each sample beforehand: a part of its log expression that no coefficient
    has to explain, as its library size is.
    """
    reader = Reader(formula.replace("{group}", _GROUP))
    reader.terms()
    if not reader.offsets:
        return None
    return np.asarray(sum(_compute(call, obs).values[:, 0] for call in reader.offsets))


def _group_columns(
    coded: Sequence[tuple[Term, _Array, list[str]]], variables: _Variables
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
    return _Slope([expression], array[:, None])


def _compute(call: Expression, obs: pd.DataFrame) -> _Slope:
    """The numeric variable that a function of columns is."""

    def find(name: str) -> _Array:
        if name == _GROUP:
            what = f"{call.text.replace(_GROUP, '{group}')}: the compared column is a factor"
            raise DesignError(what, fix="name a column of numbers, without {group}")
        variable = _make_variable(name, obs)
        if isinstance(variable, _Factor):
            raise SchemaError(
                f"{call.text} needs numbers, and {name!r} is text or categories",
                expected="a column of numbers",
                fix=f"{name} without the function, or a column of numbers",
            )
        return variable.values[:, 0]

    values = call.columns(find)
    require_finite(call.text, values, obs.index)
    # as in R: one column has the function's name, several are numbered
    number = values.shape[1]
    names = [call.text] if number == 1 else [f"{call.text}{k + 1}" for k in range(number)]
    return _Slope(names, values)


def _make_factor(name: str, values: pd.Series) -> _Factor:
    """A factor from any column; unused levels are dropped."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        used = values.cat.remove_unused_categories()
        codes, levels = used.cat.codes.to_numpy(), used.cat.categories.map(str).to_numpy()
    else:
        levels, codes = np.unique(values.astype(str).to_numpy(dtype=object), return_inverse=True)
    return _Factor(name, codes.astype(np.intp), tuple(levels))


def _drop_constant_factors(terms: Sequence[Term], variables: _Variables) -> list[Term]:
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
    terms: Sequence[Term], variables: _Variables, samples: int
) -> Iterator[tuple[Term, _Array, list[str]]]:
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
                blocks.append((variable.values, variable.names))
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
