"""One encoder for categorical and numeric covariates, fitted on the training cells and stored with the run."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.data.frames import require_columns, require_values
from perturbgen.errors import InputError, SchemaError, shorten, suggest

UNKNOWN = "unknown"
FORMAT = "perturbgen-covariates-1"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CovariateEncoder:
    """Integer codes and one-hot features of obs columns; the order of everything is part of the encoder.

    ``categories`` maps each categorical column to its values in the order of their codes; ``moments`` maps each numeric
    column to its mean and standard deviation in the training cells; columns of ``unknown`` send what they have not seen
    to their last category, ``unknown``, instead of refusing it.
    """

    categories: dict[str, tuple[str, ...]]
    moments: dict[str, tuple[float, float]]
    unknown: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls,
        obs: pd.DataFrame,
        *,
        categorical: Sequence[str] = (),
        numeric: Sequence[str] = (),
        unknown: Sequence[str] = (),
    ) -> CovariateEncoder:
        """Learn categories (sorted), means and deviations from the training cells."""
        columns = [*categorical, *numeric]
        require_columns(obs, columns)
        require_values(obs, columns)
        if undeclared := [name for name in unknown if name not in categorical]:
            raise SchemaError(f"unknown= names {shorten(undeclared)}, no categorical column", fix="list it there too")
        categories = {name: learn_categories(obs[name], name in unknown) for name in categorical}
        return cls(categories, {name: learn_moments(obs[name]) for name in numeric}, tuple(unknown))

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many codes each categorical column has."""
        return tuple(len(values) for values in self.categories.values())

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The columns of :meth:`one_hot`: ``plate=plate_0`` for categories, the bare name for numbers."""
        indicators = [f"{name}={value}" for name, values in self.categories.items() for value in values]
        return (*indicators, *self.moments)

    def codes(self, obs: pd.DataFrame) -> np.ndarray:
        """Codes of the categorical columns, int64 (cells, categorical)."""
        self.check(obs, list(self.categories))
        coded = [self.encode(obs, name) for name in self.categories]
        return np.stack(coded, axis=1) if coded else np.empty((len(obs), 0), np.int64)

    def numbers(self, obs: pd.DataFrame) -> np.ndarray:
        """Standardised numeric columns, float32 (cells, numeric)."""
        self.check(obs, list(self.moments))
        scaled = [(as_numbers(obs[name]) - mean) / deviation for name, (mean, deviation) in self.moments.items()]
        return (np.stack(scaled, axis=1) if scaled else np.empty((len(obs), 0))).astype(np.float32)

    def one_hot(self, obs: pd.DataFrame) -> np.ndarray:
        """All covariates as float32 (cells, features), in the order of ``feature_names``."""
        return np.concatenate([indicators(self.codes(obs), self.sizes), self.numbers(obs)], axis=1)

    def check(self, obs: pd.DataFrame, columns: list[str]) -> None:
        """Complain about absent columns and missing values."""
        if columns:
            require_columns(obs, columns)
            require_values(obs, columns)

    def encode(self, obs: pd.DataFrame, name: str) -> np.ndarray:
        """Codes of one column, int64 (cells,)."""
        known = self.categories[name]
        values = as_text(obs[name])
        codes = pd.Index(known).get_indexer(pd.Index(values)).astype(np.int64)
        if name in self.unknown:
            return np.where(codes < 0, known.index(UNKNOWN), codes)
        if (codes < 0).any():
            raise unseen_error(name, values[codes < 0], known)
        return codes

    def to_json(self) -> str:
        """The encoder as JSON."""
        state = {"format": FORMAT, "categories": self.categories, "moments": self.moments, "unknown": self.unknown}
        return json.dumps(state, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> CovariateEncoder:
        """The encoder that :meth:`to_json` wrote."""
        try:
            state = json.loads(text)
            if state["format"] != FORMAT:
                raise InputError(f"covariate encoder of format {state['format']!r}", expected=FORMAT)
            categories = {name: tuple(values) for name, values in state["categories"].items()}
            moments = {name: (float(mean), float(deviation)) for name, (mean, deviation) in state["moments"].items()}
            return cls(categories, moments, tuple(state["unknown"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"not a stored covariate encoder ({error})", expected=f"JSON of format {FORMAT}") from None


def learn_categories(column: pd.Series, with_unknown: bool) -> tuple[str, ...]:
    """The values that occur, sorted as text; ``unknown`` last where it is declared."""
    values = sorted(dict.fromkeys(as_text(column)))
    return (*(v for v in values if v != UNKNOWN), UNKNOWN) if with_unknown else tuple(values)


def learn_moments(column: pd.Series) -> tuple[float, float]:
    """Mean and standard deviation; a constant column keeps its scale, so that it becomes zero and not infinite."""
    values = as_numbers(column)
    if not len(values):
        raise SchemaError(f"no cells to fit column {column.name!r} on")
    if (deviation := float(values.std())) > 1e-12 * max(1.0, float(np.abs(values).max())):
        return float(values.mean()), deviation
    logger.warning("covariate %r is constant in the training cells", column.name)
    return float(values.mean()), 1.0


def as_text(column: pd.Series) -> np.ndarray:
    """Values as text, once for each distinct value (cells,)."""
    codes, values = pd.factorize(column)
    return np.array([str(value) for value in values], dtype=object)[codes]


def as_numbers(column: pd.Series) -> np.ndarray:
    """Values as finite float64 (cells,)."""
    try:
        values = np.asarray(column).astype(np.float64)
    except (ValueError, TypeError) as error:
        raise SchemaError(f"column {column.name!r} is not numeric: {error}", fix="declare it categorical") from None
    if not np.isfinite(values).all():
        raise SchemaError(f"column {column.name!r} holds infinite values", expected="finite numbers")
    return values


def indicators(codes: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """One-hot float32 (cells, sum of sizes) from codes (cells, columns)."""
    out = np.zeros((len(codes), sum(sizes)), np.float32)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64) if sizes else np.empty(0, np.int64)
    out[np.arange(len(codes))[:, None], starts + codes] = 1
    return out


def unseen_error(name: str, values: np.ndarray, known: Sequence[str]) -> SchemaError:
    """The error for categories that training never saw."""
    unseen: list[Any] = list(dict.fromkeys(values))
    return SchemaError(
        f"column {name!r} holds {shorten(unseen)}, not seen when the encoder was fitted",
        expected=f"one of {shorten(known, 8)}",
        cause=f"a renamed category ({suggest(unseen[0], known)}) or one that occurs in the test cells only",
        fix=f"rename it, or fit the encoder with unknown=[{name!r}]",
    )
