"""The one table of profiles, of L1000, images and latent spaces: numbers with their labels.

And groups of its rows by label (plates of experiments, sites of plates), with their moments, which
read the matrix once, block by block, so that it may lie on disk.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self, cast

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError, shorten
from perturbgen.core.export import write_table
from perturbgen.core.files import atomic_path
from perturbgen.core.tables import require_columns

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

_LARGEST = np.finfo(np.float32).max  # what a profile folder can hold; more counts as infinite
_FITTED = "fitted"  # label of the wells that a correction was fitted on
# The files of a profile folder.
VALUES: Final = "values.npy"
META: Final = "meta.parquet"
FEATURES: Final = "features.json"
_BLOCK = 4096  # rows read at a time: 32 MB of 1,024 features in float64

Key = tuple[Any, ...]  # the labels of a group


class Matrix(Protocol):
    """What gives rows by slice or number: an array, a memory map, or rows computed when asked."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, features)."""

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """Rows."""


def blocks(rows: int) -> Iterator[slice]:
    """Slices that cover ``rows`` rows in order."""
    for start in range(0, rows, _BLOCK):
        yield slice(start, min(start + _BLOCK, rows))


@dataclass(frozen=True, eq=False)
class Groups:
    """The distinct label tuples ``keys`` in sorted order, and ``codes`` (rows,), each row's number.

    Statistics of groups take ``rows``, the numbers of the rows that count (all by default).
    """

    keys: list[Key]
    codes: np.ndarray

    @classmethod
    def of(cls, meta: pd.DataFrame, by: Sequence[str], where: str = "the metadata") -> Groups:
        """Rows with equal labels ``by``; without labels all rows are one group."""
        if not by:
            return cls([()], np.zeros(len(meta), dtype=np.int64))
        require_columns(meta.columns, by, where)
        for name in by:
            # pandas would drop such rows from its groups without a word
            if absent := int(meta[name].isna().sum()):
                raise SchemaError(
                    f"{where}: {name!r} is missing in {absent} rows",
                    expected="a label in every row",
                    fix=f"choose other labels than {shorten(by)}, or fill it",
                )
        codes = meta.groupby(list(by), sort=True, observed=True).ngroup().to_numpy()
        first = np.unique(codes, return_index=True)[1]
        return cls(list(meta[list(by)].iloc[first].itertuples(index=False, name=None)), codes)

    def __len__(self) -> int:
        return len(self.keys)

    def indicator(self, rows: np.ndarray | slice = slice(None)) -> Any:
        """A sparse (groups, rows) matrix of ones: its product with the rows sums them by group."""
        from scipy.sparse import csr_array

        codes = self.codes[rows]
        entries = (np.ones(len(codes)), (codes, np.arange(len(codes))))
        return csr_array(entries, shape=(len(self), len(codes)))

    def means(self, X: Matrix, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rows in each group (groups,), and means (groups, features), 0 where there are none."""
        rows = np.arange(len(self.codes)) if rows is None else rows
        count = np.bincount(self.codes[rows], minlength=len(self))
        total = np.zeros((len(self), X.shape[1]))
        for block in blocks(len(rows)):
            total += self.indicator(rows[block]) @ np.asarray(X[rows[block]], np.float64)
        return count, total / np.maximum(count, 1)[:, None]

    def moments(self, X: Matrix, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts (groups,), means and standard deviations (ddof 0), both (groups, features)."""
        # sums are taken about the first row: a large offset would cost the variance its digits
        origin = np.asarray(X[rows[:1]], np.float64)
        count = np.bincount(self.codes[rows], minlength=len(self))
        first, second = np.zeros((2, len(self), X.shape[1]))
        for block in blocks(len(rows)):
            values = np.asarray(X[rows[block]], np.float64) - origin
            members = self.indicator(rows[block])
            first += members @ values
            second += members @ values**2
        size = np.maximum(count, 1)[:, None]
        mean = first / size
        return count, mean + origin, np.sqrt(np.maximum(second / size - mean**2, 0))


class _Selected:
    """Some rows of a stored matrix, read when they are asked for."""

    def __init__(self, matrix: Matrix, rows: np.ndarray) -> None:
        self.matrix, self.rows = matrix, rows

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.matrix.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        return np.asarray(self.matrix[self.rows[rows]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.matrix[self.rows], dtype)


@dataclass(frozen=True, eq=False)
class Profiles:
    """Rows of numbers with their labels, in memory or on disk.

    ``values`` (rows, features) is an array, a memory map, or some rows of one that are read on use;
    ``meta`` holds the labels of the same rows, ``features`` names the columns, and
    ``feature_table``, where there is one, says more of them (gene symbols, means) by the same
    names.
    """

    values: np.ndarray
    meta: pd.DataFrame
    features: pd.Index
    source: str = "profiles"
    feature_table: pd.DataFrame | None = None

    def __repr__(self) -> str:
        rows, features = self.values.shape
        labels = shorten(self.meta.columns, 6)
        return f"Profiles({rows:,} x {features:,} of {self.source}, labels {labels})"

    def __post_init__(self) -> None:
        found = (len(self.meta), len(self.features))
        if self.values.shape != found:
            raise SchemaError(
                f"{self.source}: values are {self.values.shape}, labels and features {found}",
                expected="a row of values for each row of labels, a column for each feature",
            )

    def __len__(self) -> int:
        return len(self.meta)

    @classmethod
    def from_anndata(cls, adata: AnnData, source: str = "AnnData") -> Profiles:
        """X with obs as labels and var_names as features."""
        X: Any = adata.X
        values = X.toarray() if hasattr(X, "toarray") else np.asarray(X)
        return cls(values, adata.obs, pd.Index(adata.var_names.astype(str)), source, adata.var)

    def to_anndata(self, names: Sequence[str] | None = None) -> AnnData:
        """Rows by the names of ``meta``'s index, in the order asked for, or all; float32."""
        import anndata

        wanted = self.meta.index if names is None else pd.Index(names)
        rows = self.meta.index.get_indexer(wanted)
        if (rows < 0).any():
            missing = wanted[rows < 0]
            raise SchemaError(
                f"{self.source} lacks {len(missing)} of the wanted rows: {shorten(missing)}"
            )
        var = self.feature_table
        var = pd.DataFrame(index=self.features) if var is None else var.rename_axis(None)
        obs = self.meta.iloc[rows].rename_axis(None)
        return anndata.AnnData(np.asarray(self.values[rows], np.float32), obs=obs, var=var)

    def where(self, mask: np.ndarray | pd.Series, *, on_disk: bool = False) -> Self:
        """The rows of a mask, copied into memory, or left where they are stored and read on use.

        Names of rows (an index of ``meta`` that is not just numbers) are kept.
        """
        rows = np.flatnonzero(np.asarray(mask, dtype=bool))
        meta = self.meta.iloc[rows]
        if isinstance(self.meta.index, pd.RangeIndex):
            meta = meta.reset_index(drop=True)
        if not on_disk:
            return replace(self, values=np.asarray(self.values[rows]), meta=meta)
        # rows of rows are rows of the stored matrix: selecting twice reads once
        stored, own = self.stored()
        # it does what is asked of an array here; a subclass of ndarray could not read on use
        values = cast("np.ndarray", _Selected(stored, own[rows]))
        return replace(self, values=values, meta=meta)

    def stored(self) -> tuple[np.ndarray, np.ndarray]:
        """The matrix that holds the values, and which of its rows are this table's."""
        if isinstance(self.values, _Selected):
            return cast("np.ndarray", self.values.matrix), self.values.rows
        return self.values, np.arange(len(self))

    def with_values(self, values: np.ndarray) -> Profiles:
        """The same rows with other numbers; features are numbered where their meaning is lost."""
        features = self.features
        if values.shape[1] != len(features):
            features = pd.Index([f"feature_{i}" for i in range(values.shape[1])])
        return Profiles(values, self.meta, features, self.source)

    def averaged(self, by: Sequence[str], *, how: Literal["mean", "median"] = "mean") -> Profiles:
        """One row for each group of ``by``, with the labels that are constant in every group.

        A missing label is no value of its own. Sites of one well are not replicates: average them
        before anything is counted or tested.
        """
        groups = Groups.of(self.meta, by, self.source)
        if how == "mean":
            _, values = groups.means(self.values)
        else:
            ends = np.cumsum(np.bincount(groups.codes))[:-1]
            order = np.split(np.argsort(groups.codes, kind="stable"), ends)
            values = np.array([np.median(self.values[rows], axis=0) for rows in order])
        grouped = self.meta.groupby(groups.codes, sort=True)
        constant = [name for name in self.meta if grouped[str(name)].nunique().max() <= 1]
        meta = grouped[constant].first().reset_index(drop=True)
        return Profiles(values, meta, self.features, self.source)

    def write(self, folder: str | Path) -> Path:
        """Save as ``values.npy`` (float32), ``meta.parquet`` and ``features.json``."""
        self.require_replaceable(folder)
        with atomic_path(folder) as part:
            part.mkdir()
            mapped = np.lib.format.open_memmap(
                part / VALUES, mode="w+", dtype=np.float32, shape=self.values.shape
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
            write_table(self.meta, part / META)
            (part / FEATURES).write_text(json.dumps([str(name) for name in self.features]))
        return Path(folder)

    @staticmethod
    def require_replaceable(folder: str | Path) -> None:
        """Nothing is at the path but what is ours: a folder of other things is never taken away."""
        folder = Path(folder)
        # replacing a folder deletes it, and --out may be mistyped
        if folder.exists() and not (folder / VALUES).exists():
            raise InputError(
                f"{folder} exists and is no profile folder",
                expected="a new folder, or one of profiles",
                fix="choose another --out",
            )

    def tidy(self, *, nan: Literal["error", "drop-features", "drop-rows"] = "error") -> Profiles:
        """The profiles without NaN or infinite values: without their features or rows, or an error.

        The error names the first row and the features.
        """
        # what float32 cannot hold would be infinite once it is written
        bad_rows, bad_features = np.zeros(len(self), bool), np.zeros(len(self.features), bool)
        for rows in blocks(len(self)):
            bad = ~(np.abs(self.values[rows]) <= _LARGEST)
            bad_rows[rows], bad_features = bad.any(axis=1), bad_features | bad.any(axis=0)
        if not bad_rows.any():
            return self
        if nan == "error":
            names = self.features[bad_features]
            first = self.meta.iloc[int(bad_rows.argmax())].head(4).to_dict()
            raise SchemaError(
                f"{self.source}: {int(bad_rows.sum())} rows hold NaN or infinite values, "
                f"in {shorten(names, 3)}",
                expected="a number everywhere",
                cause=f"features of empty images; the first row is {first}",
                fix="--nan drop-features or --nan drop-rows",
            )
        if nan == "drop-rows":
            log.warning("%d rows with NaN or infinite values dropped", bad_rows.sum())
            kept = self.where(~bad_rows)
        else:
            log.warning("%d features with NaN or infinite values dropped", bad_features.sum())
            values, features = self.values[:, ~bad_features], self.features[~bad_features]
            kept = Profiles(np.asarray(values), self.meta, features, self.source)
        if not kept.values.size:
            raise SchemaError(
                f"{self.source}: nothing is left when NaN are dropped",
                fix="--nan drop-rows or drop-features, the other",
            )
        return kept

    def chosen(self, condition: str, where: str = "the metadata") -> np.ndarray:
        """The rows (a mask) of a condition: ``compound=DMSO``, ``disease_condition=Mock|UV``.

        ``treatment=`` asks for missing values; several conditions are joined by ``&``.
        """
        mask = np.ones(len(self), bool)
        for part in condition.split("&"):
            column, separator, values = part.partition("=")
            if not separator:
                raise SchemaError(
                    f"condition {part!r} has no '='",
                    expected="column=value|value",
                    fix="compound=DMSO",
                )
            require_columns(self.meta.columns, [column.strip()], where)
            text = self.meta[column.strip()].astype("string").fillna("")
            # a number in a condition is compared as it is written: plate=1
            mask &= text.isin([value.strip() for value in values.split("|")]).to_numpy()
        if not mask.any():
            raise SchemaError(
                f"no row of {where} has {condition}",
                expected="at least one row",
                fix="values: " + shorten(pd.unique(text)),
            )
        return mask

    @property
    def well_labels(self) -> list[str]:
        """The labels that name a well."""
        if "well_id" in self.meta:
            return ["well_id"]
        names = [name for name in ("experiment", "plate", "well") if name in self.meta]
        if "well" not in names:
            raise SchemaError(
                "these profiles name no wells", expected="a column well_id, or plate and well"
            )
        return names

    def well_numbers(self) -> np.ndarray:
        """(rows,) the number of each row's well; each row is one where none are named."""
        if {"well_id", "well"} & set(self.meta):
            return Groups.of(self.meta, self.well_labels).codes
        return np.arange(len(self))

    def fitted(self) -> np.ndarray:
        """The mask of rows that a correction was fitted on, by their label; none without it."""
        if _FITTED not in self.meta:
            return np.zeros(len(self), bool)
        if self.meta[_FITTED].dtype != bool:
            raise SchemaError(
                f"{self.source}: label {_FITTED!r} is {self.meta[_FITTED].dtype}",
                expected="True or False, as images correct writes it",
                fix="rename the column",
            )
        return self.meta[_FITTED].to_numpy()

    def marked(self, fitted: np.ndarray) -> Profiles:
        """The profiles with the label of wells that this or an earlier correction was fitted on."""
        wells = self.well_numbers()
        seen = np.isin(wells, wells[fitted | self.fitted()])
        return replace(self, meta=self.meta.assign(**{_FITTED: seen}))
