"""The one table of this room: rows of numbers with the labels of the sites or wells they were measured on.

Groups of rows by their labels (plates of experiments, sites of plates), and their moments in one pass.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError, shorten
from perturbgen.core.files import atomic_path, require_file, require_folder
from perturbgen.core.tables import BROKEN, parquet_errors, require_columns

log = logging.getLogger(__name__)

_LARGEST = np.finfo(np.float32).max  # what a profile folder can hold; more counts as infinite
_BLOCK = 4096  # rows read at a time: 32 MB of 1,024 features in float64
_NaNs = Literal["error", "drop-features", "drop-rows"]


@dataclass(frozen=True)
class Profiles:
    """``values`` (rows, features), in memory or mapped from disk, and ``meta``, the labels of the same rows."""

    values: np.ndarray
    meta: pd.DataFrame
    features: pd.Index
    source: str = "profiles"

    def __post_init__(self) -> None:
        found = (len(self.meta), len(self.features))
        if self.values.shape != found:
            raise SchemaError(
                f"{self.source}: values are {self.values.shape}, labels and features {found}",
                expected="a row of values for each row of labels, a column for each feature",
            )

    def __len__(self) -> int:
        return len(self.meta)

    def where(self, mask: np.ndarray | pd.Series) -> Profiles:
        """The rows of a mask, copied out of the map if they were on disk."""
        rows = np.flatnonzero(np.asarray(mask, dtype=bool))
        return Profiles(
            np.asarray(self.values[rows]),
            self.meta.iloc[rows].reset_index(drop=True),
            self.features,
            self.source,
        )

    def with_values(self, values: np.ndarray, features: Sequence[str] | None = None) -> Profiles:
        """The same rows with other numbers; features are numbered where their meaning is lost."""
        if features is None:
            same = values.shape[1] == len(self.features)
            features = (
                list(self.features) if same else [f"feature_{i}" for i in range(values.shape[1])]
            )
        return Profiles(values, self.meta, pd.Index(features), self.source)

    def averaged(self, by: Sequence[str], *, how: Literal["mean", "median"] = "mean") -> Profiles:
        """One row for each group of ``by``; labels of which no group has two values are kept (a missing one is none).

        Sites of one well are not replicates: average them before anything is counted or tested.
        """

        keys, codes = grouping(self.meta, by, self.source)
        if how == "mean":
            _, values = group_means(self.values, np.arange(len(self)), codes, len(keys))
        else:
            order = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
            values = np.array([np.median(self.values[rows], axis=0) for rows in order])
        grouped = self.meta.groupby(codes, sort=True)
        constant = [name for name in self.meta if grouped[str(name)].nunique().max() <= 1]
        meta = grouped[constant].first().reset_index(drop=True)
        return Profiles(values, meta, self.features, self.source)

    def write(self, folder: str | Path) -> Path:
        """Save as ``values.npy`` (float32), ``meta.parquet`` and ``features.json``."""
        require_replaceable(folder)
        with atomic_path(folder) as part:
            part.mkdir()
            mapped = np.lib.format.open_memmap(
                part / "values.npy", mode="w+", dtype=np.float32, shape=self.values.shape
            )
            for rows in blocks(len(self)):
                with np.errstate(over="ignore"):
                    mapped[rows] = self.values[rows]
                if (np.isinf(mapped[rows]) & np.isfinite(self.values[rows])).any():
                    raise SchemaError(
                        f"{self.source} holds values beyond {_LARGEST:.2g}",
                        expected="numbers of float32",
                    )
            mapped.flush()
            self.meta.to_parquet(part / "meta.parquet", index=False)
            (part / "features.json").write_text(json.dumps([str(name) for name in self.features]))
        return Path(folder)


def read_profiles(folder: str | Path) -> Profiles:
    """What :meth:`Profiles.write` saved; the values stay on disk and are read as they are asked for."""
    folder = require_folder(folder, "profile folder")
    with parquet_errors(folder / "meta.parquet"):
        meta = pd.read_parquet(require_file(folder / "meta.parquet", "table of labels"))
    try:
        values = np.load(require_file(folder / "values.npy", "matrix"), mmap_mode="r")
    except ValueError as error:
        raise InputError(
            f"{folder / 'values.npy'} is truncated: {error}", cause="a copy that broke off"
        ) from None
    return Profiles(values, meta, _read_features(folder / "features.json"), str(folder))


def _read_features(path: Path) -> pd.Index:
    """The names of the columns."""
    try:
        names = json.loads(require_file(path, "list of features").read_text())
    except ValueError as error:
        raise InputError(
            f"{path} is no JSON: {error}", expected="a list of names", cause=BROKEN
        ) from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path} holds no list of names", expected='["feature_0", "feature_1"]')
    return pd.Index(names)


def require_replaceable(folder: str | Path) -> None:
    """Nothing is at the path but what is ours: a folder of other things is never taken away."""
    folder = Path(folder)
    if folder.exists() and not (folder / "values.npy").exists():
        raise InputError(
            f"{folder} exists and is no profile folder",
            expected="a new folder, or one of profiles",
            fix="choose another --out",
        )


def blocks(rows: int, size: int = _BLOCK) -> Iterator[slice]:
    """Slices that cover ``rows`` rows in order."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


@dataclass(frozen=True)
class Orphans:
    """Ids that one of two joined tables has and the other has not."""

    without_labels: tuple[str, ...]
    without_values: tuple[str, ...]
    what: str

    def report(self) -> None:
        """Say in the log who was left out, if anybody was."""
        for names, lack in ((self.without_labels, "metadata"), (self.without_values, "profile")):
            if names:
                log.warning(
                    "%d %s left out for want of a %s: %s",
                    len(names),
                    self.what,
                    lack,
                    shorten(names),
                )


def tidy(profiles: Profiles, *, nan: _NaNs = "error") -> Profiles:
    """The profiles without NaN or infinite values: an error that names the first, or without their features or rows."""
    bad_rows, bad_features = np.zeros(len(profiles), bool), np.zeros(len(profiles.features), bool)
    for rows in blocks(len(profiles)):
        bad = ~(np.abs(profiles.values[rows]) <= _LARGEST)
        bad_rows[rows], bad_features = bad.any(axis=1), bad_features | bad.any(axis=0)
    if not bad_rows.any():
        return profiles
    if nan == "error":
        names = profiles.features[bad_features]
        first = profiles.meta.iloc[int(bad_rows.argmax())].head(4).to_dict()
        raise SchemaError(
            f"{profiles.source}: {int(bad_rows.sum())} rows hold NaN or infinite values, in {shorten(names, 3)}",
            expected="a number everywhere",
            cause=f"features of empty images; the first row is {first}",
            fix="--nan drop-features or --nan drop-rows",
        )
    if nan == "drop-rows":
        log.warning("%d rows with NaN or infinite values dropped", bad_rows.sum())
        kept = profiles.where(~bad_rows)
    else:
        log.warning("%d features with NaN or infinite values dropped", bad_features.sum())
        kept = Profiles(
            np.asarray(profiles.values[:, ~bad_features]),
            profiles.meta,
            profiles.features[~bad_features],
            profiles.source,
        )
    if not kept.values.size:
        raise SchemaError(
            f"{profiles.source}: nothing is left when NaN are dropped",
            fix="--nan drop-rows or drop-features, the other",
        )
    return kept


def chosen(meta: pd.DataFrame, condition: str, where: str = "the metadata") -> np.ndarray:
    """The rows of a condition such as ``compound=DMSO``, ``disease_condition=Mock|UV Inactivated SARS-CoV-2`` or
    ``treatment=`` (missing); several conditions are joined by ``&``.
    """
    mask = np.ones(len(meta), bool)
    for part in condition.split("&"):
        column, separator, values = part.partition("=")
        if not separator:
            raise SchemaError(
                f"condition {part!r} has no '='", expected="column=value|value", fix="compound=DMSO"
            )
        require_columns(meta.columns, [column.strip()], where)
        text = meta[column.strip()].astype("string").fillna("")
        mask &= text.isin([value.strip() for value in values.split("|")]).to_numpy()
    if not mask.any():
        raise SchemaError(
            f"no row of {where} has {condition}",
            expected="at least one row",
            fix="values: " + shorten(pd.unique(text)),
        )
    return mask


Key = tuple[Any, ...]


class Rows(Protocol):
    """What the corrections ask of a matrix: rows by slice or number, in memory, on disk or computed when asked."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, features)."""

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """Rows."""


def grouping(
    meta: pd.DataFrame, by: Sequence[str], where: str = "the metadata"
) -> tuple[list[Key], np.ndarray]:
    """The distinct label tuples in sorted order and the number of its tuple for each row; one group for no labels."""
    if not by:
        return [()], np.zeros(len(meta), dtype=np.int64)
    require_columns(meta.columns, by, where)
    for name in by:
        absent = int(meta[name].isna().sum())
        if absent:
            raise SchemaError(
                f"{where}: {name!r} is missing in {absent} rows",
                expected="a label in every row",
                fix=f"choose other labels than {shorten(by)}, or fill it",
            )
    codes = meta.groupby(list(by), sort=True, observed=True).ngroup().to_numpy()
    first = np.unique(codes, return_index=True)[1]
    return list(meta[list(by)].iloc[first].itertuples(index=False, name=None)), codes


def reference_rows(rows: int, control: np.ndarray | pd.Series | None) -> np.ndarray:
    """Row numbers of the controls; all rows without a mask."""
    if control is None:
        return np.arange(rows)
    mask = np.asarray(control)
    if mask.dtype != bool or mask.shape != (rows,):
        raise SchemaError(
            f"control is {mask.dtype} of shape {mask.shape}",
            expected=f"a mask of {rows} True or False, one a row",
        )
    if not mask.any():
        raise SchemaError(
            "no control among the rows", expected="controls to fit on", fix="check --control"
        )
    return np.flatnonzero(mask)


def group_means(
    X: Rows, rows: np.ndarray, codes: np.ndarray, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows in each group (groups,) and their means (groups, features), zero where there are none; one pass."""
    count, total = np.bincount(codes[rows], minlength=groups), np.zeros((groups, X.shape[1]))
    for block in blocks(len(rows)):
        total += indicator(codes[rows[block]], groups) @ np.asarray(X[rows[block]], np.float64)
    return count, total / np.maximum(count, 1)[:, None]


def group_moments(
    X: Rows, rows: np.ndarray, codes: np.ndarray, groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts (groups,), means and variances (ddof 0) (groups, features) of ``rows`` by group; one pass.

    Sums are taken about the first row, so that a large offset costs no digits.
    """
    origin = np.asarray(X[rows[:1]], np.float64)
    count = np.bincount(codes[rows], minlength=groups)
    first, second = np.zeros((groups, X.shape[1])), np.zeros((groups, X.shape[1]))
    for block in blocks(len(rows)):
        values, members = (
            np.asarray(X[rows[block]], np.float64) - origin,
            indicator(codes[rows[block]], groups),
        )
        first += members @ values
        second += members @ values**2
    size = np.maximum(count, 1)[:, None]
    mean = first / size
    return count, mean + origin, np.maximum(second / size - mean**2, 0)


def group_covariances(
    X: Rows, rows: np.ndarray, codes: np.ndarray, groups: int, *, ddof: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, means (groups, features) and covariances (groups, features, features) by group; one pass."""
    origin = np.asarray(X[rows[:1]], np.float64)
    size = X.shape[1]
    count, first, second = (
        np.bincount(codes[rows], minlength=groups),
        np.zeros((groups, size)),
        np.zeros((groups, size, size)),
    )
    for block in blocks(len(rows)):
        here, values = codes[rows[block]], np.asarray(X[rows[block]], np.float64) - origin
        for group in np.unique(here):
            part = values[here == group]
            first[group] += part.sum(axis=0)
            second[group] += part.T @ part
    for group in np.flatnonzero(count):
        second[group] -= np.outer(first[group], first[group]) / count[group]
        second[group] /= max(count[group] - ddof, 1)
    return count, first / np.maximum(count, 1)[:, None] + origin, second


def indicator(codes: np.ndarray, groups: int) -> Any:
    """A sparse (groups, rows) matrix of ones: its product with rows sums them by group."""
    from scipy.sparse import csr_array

    size = len(codes)
    return csr_array((np.ones(size), (codes, np.arange(size))), shape=(groups, size))
