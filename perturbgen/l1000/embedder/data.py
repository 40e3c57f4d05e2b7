"""Profiles with their labels, from an extraction, a GCTX or an h5ad; who is trained on and who is withheld.

What the network is told beside the profile: cell line, dose, time, as numbers (profiles, width).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten, suggest
from perturbgen.l1000.embedder.settings import DataSettings

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class ProfileTable:
    """Rows of a matrix (profiles, genes), which may lie on disk, with what is known of them.

    ``rows`` are the matrix's rows that are ours, ascending; ``samples`` has a line for each of them.
    """

    matrix: _Array
    rows: _Array
    samples: pd.DataFrame
    genes: pd.Index

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, keep: _Array) -> ProfileTable:
        """Those of a mask."""
        return ProfileTable(self.matrix, self.rows[keep], self.samples[keep], self.genes)

    def values(self) -> _Array:
        """The profiles, float32 (rows, genes)."""
        return np.asarray(self.matrix[self.rows], np.float32)


def read_table(path: Path, metadata: Path | None = None) -> ProfileTable:
    """All profiles of a file or folder."""
    from perturbgen.l1000 import Profiles, read_plate

    if path.is_dir():
        found = Profiles.open(path)
        return _whole(found.matrix, found.samples, found.genes.index, path)
    if path.suffix == ".h5ad":
        from perturbgen.core.tables import open_h5ad

        adata = open_h5ad(path).to_memory()
    else:
        adata = read_plate(path, metadata=metadata)
    values = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
    return _whole(values, adata.obs, adata.var_names, path)


def _whole(matrix: _Array, samples: pd.DataFrame, genes: pd.Index, path: Path) -> ProfileTable:
    """All rows; samples and genes have names of their own."""
    for names, what in ((samples.index, "samples"), (genes, "genes")):
        if not names.is_unique:
            twice = names[names.duplicated()].unique()
            raise SchemaError(f"{path}: {len(twice)} {what} occur more than once: {shorten(twice)}")
    return ProfileTable(matrix, np.arange(len(samples)), samples, pd.Index(genes.astype(str)))


def treatments(table: ProfileTable, data: DataSettings) -> ProfileTable:
    """Profiles with a label, of the wanted types; controls are no class, positive ones only where they are wanted."""
    samples = table.samples
    require_column(samples, data.label)
    keep = samples[data.label].notna().to_numpy()
    if "control" in samples:
        keep &= ~samples["control"].fillna(False).astype(bool).to_numpy()
    if data.types:
        require_column(samples, "pert_type")
        known = samples["pert_type"].astype(str)
        wrong = [kind for kind in data.types if not (known == kind).any()]
        if wrong:
            raise SchemaError(
                f"no profile has pert_type {wrong[0]!r}", fix=suggest(wrong[0], known.unique())
            )
        keep &= known.isin(list(data.types)).to_numpy()
    elif "role" in samples:
        keep &= samples["role"].astype(object).ne("positive control").to_numpy()
    if not keep.any():
        raise SchemaError(
            f"no profile with a {data.label} is left",
            expected="treatments",
            cause="controls only, or no metadata",
        )
    return table.take(keep)


def require_finite(table: ProfileTable, *, part: int = 1 << 14) -> None:
    """NaN would reach every number of a network."""
    for start in range(0, len(table), part):
        rows = table.rows[start : start + part]
        bad = np.asarray(~np.isfinite(table.matrix[rows]).all(axis=1))
        if bad.any():
            names = table.samples.index[start : start + part].to_numpy()[bad]
            raise SchemaError(
                f"{bad.sum():,} profiles hold NaN or infinity: {shorten(names)}",
                expected="finite numbers",
                fix="perturbgen l1000 extract --fill 0",
            )


def require_column(samples: pd.DataFrame, name: str) -> None:
    """A column of the samples."""
    if name not in samples:
        raise SchemaError(
            f"the samples have no column {name!r}", fix=suggest(name, samples.columns)
        )


def split_parts(table: ProfileTable, data: DataSettings, seed: int) -> pd.Series:
    """The part of each profile, by sample: train, validation, test or unused. No label is in two parts."""
    labels = table.samples[data.label].astype(str)
    parts = (
        _named_parts(table, data)
        if data.split or data.leakproof
        else _drawn_parts(labels, data, seed)
    )
    parts = parts.replace({"val": "validation"}).where(
        parts.isin(["train", "val", "validation", "test"]), "unused"
    )
    used = pd.DataFrame({"label": labels, "part": parts})[parts != "unused"]
    homes = used.drop_duplicates().groupby("label")["part"].agg(list)
    shared = homes.index[homes.map(len) > 1]
    if len(shared):
        raise SchemaError(
            f"the split leaks: {len(shared)} {data.label} in more than one part: {shorten(shared)}",
            expected="parts that share no label",
            fix=f"split by {data.label}",
        )
    if not (parts == "train").any():
        raise SchemaError(
            "the split puts no profile into 'train'", cause="it was made for other data"
        )
    return parts.rename("part").rename_axis("sample")


def _named_parts(table: ProfileTable, data: DataSettings) -> pd.Series:
    """By a split file, or by the benchmark's."""
    from perturbgen.data import Split
    from perturbgen.l1000 import read_leakproof

    if data.leakproof:
        return read_leakproof(data.leakproof).split(table.samples, fold=data.fold).parts
    parts = Split.read(cast("Path", data.split)).parts
    return (
        parts.reindex(table.samples.index.astype(str))
        .set_axis(table.samples.index)
        .fillna("unused")
    )


def _drawn_parts(labels: pd.Series, data: DataSettings, seed: int) -> pd.Series:
    """Labels drawn at random for validation and test."""
    names = np.sort(labels.unique())
    order = np.random.default_rng(seed).permutation(names)
    held = [round(share * len(names)) for share in (data.validation, data.test)]
    if sum(held) > len(names) - 2:
        raise SchemaError(
            f"{sum(held)} of {len(names)} labels are withheld", expected="two at least to train on"
        )
    home = dict.fromkeys(order, "train")
    home.update(dict.fromkeys(order[: held[0]], "validation"))
    home.update(dict.fromkeys(order[held[0] : sum(held)], "test"))
    return labels.map(home)


def classes_of(labels: pd.Series, least: int) -> pd.Index:
    """The labels of training profiles that are classes, in order of name."""
    counts = labels.astype(str).value_counts()
    found = pd.Index(sorted(counts.index[counts >= least]))
    if len(found) < 2:
        raise SchemaError(
            f"{len(found)} of {len(counts)} training labels have {least} profiles or more",
            expected="two classes at least",
            cause="an identifier that is unique to each profile as the label",
            fix="choose another data.label, or a smaller data.least",
        )
    return found


def standard(
    table: ProfileTable, clip: float | None, *, part: int = 1 << 14
) -> tuple[_Array, _Array]:
    """Mean and SD of each gene over clipped training profiles, (genes,) both; read part by part."""
    total = np.zeros((2, len(table.genes)))
    for start in range(0, len(table), part):
        values = np.asarray(table.matrix[table.rows[start : start + part]], float)
        values = values if clip is None else values.clip(-clip, clip)
        total += values.sum(0), np.square(values).sum(0)
    mean = total[0] / len(table)
    sd = np.sqrt(np.maximum(total[1] / len(table) - mean**2, 0))
    return mean.astype(np.float32), np.where(sd > 1e-6, sd, 1).astype(np.float32)


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConditionEncoder:
    """Categories become one-hot; numbers log(1 + x), standardised. What is unknown or missing is all zeros."""

    categories: dict[str, list[str]]
    scales: dict[str, tuple[float, float]]  # mean and sd of log(1 + x)

    @classmethod
    def fit(cls, samples: pd.DataFrame, columns: Sequence[str]) -> ConditionEncoder:
        """Of the training profiles."""
        categories: dict[str, list[str]] = {}
        scales: dict[str, tuple[float, float]] = {}
        for name in columns:
            require_column(samples, name)
            if pd.api.types.is_numeric_dtype(samples[name]):
                logs = np.log1p(samples[name].to_numpy(float))
                known = logs[np.isfinite(logs)]
                sd = float(known.std()) if len(known) else 0.0
                scales[name] = (float(known.mean()) if len(known) else 0.0, sd or 1.0)
            else:
                categories[name] = sorted(samples[name].dropna().astype(str).unique())
        return cls(categories, scales)

    @property
    def width(self) -> int:
        """How many numbers."""
        return sum(map(len, self.categories.values())) + len(self.scales)

    def encode(self, samples: pd.DataFrame) -> np.ndarray:
        """Float32 (profiles, width)."""
        parts = [np.zeros((len(samples), 0))]
        for name, known in self.categories.items():
            require_column(samples, name)
            code = pd.Index(known).get_indexer(pd.Index(samples[name].astype(object).astype(str)))
            new = samples[name][(code < 0) & samples[name].notna().to_numpy()].unique()
            if len(new):
                log.warning("%s %s: never seen in training, encoded as unknown", name, shorten(new))
            parts.append((code[:, None] == np.arange(len(known))).astype(float))
        for name, (mean, sd) in self.scales.items():
            require_column(samples, name)
            values = (np.log1p(samples[name].to_numpy(float)) - mean) / sd
            parts.append(np.nan_to_num(values, nan=0.0)[:, None])
        return np.hstack(parts).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ConditionEncoder:
        """The encoder that ``to_json`` described."""
        return cls(
            values["categories"],
            {name: (pair[0], pair[1]) for name, pair in values["scales"].items()},
        )
