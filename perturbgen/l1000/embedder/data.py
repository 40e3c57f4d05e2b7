"""Profiles with their labels, which are withheld, and what the network is told beside them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError, shorten, suggest
from perturbgen.core.files import require_file
from perturbgen.core.h5ad import open_h5ad
from perturbgen.core.tables import require_columns
from perturbgen.l1000.embedder.settings import ProfileData
from perturbgen.profiles import Profiles, read_profiles
from perturbgen.profiles.readers import MANIFEST
from perturbgen.retrieval import Measure, nearest, neighbour_table

log = logging.getLogger(__name__)

_SAMPLES = "the table of samples"  # in messages
_PART = 1 << 14  # rows of a matrix on disk that are looked at together


class EmbedProfiles(Profiles):
    """L1000 profiles (samples, genes by Entrez id), which may lie on disk, for an embedding."""

    @classmethod
    def read(cls, path: Path, metadata: Path | None = None) -> EmbedProfiles:
        """All profiles of an extraction, a GCTX or GCT, or an h5ad."""
        from perturbgen.l1000 import read_plate

        if path.is_dir():
            require_file(path / MANIFEST, "manifest")
            found = read_profiles(path)
        elif path.suffix == ".h5ad":
            found = Profiles.from_anndata(open_h5ad(path).to_memory())
        else:
            found = Profiles.from_anndata(read_plate(path, metadata=metadata))
        for names, what in ((found.meta.index, "samples"), (found.features, "genes")):
            twice = names[names.duplicated()].unique()
            if len(twice):
                said = f"{len(twice)} {what} occur more than once: {shorten(twice)}"
                raise SchemaError(f"{path}: {said}")
        return cls(found.values, found.meta, found.features, str(path))

    def take(self, keep: np.ndarray | pd.Series) -> Self:
        """Those of a mask, left where they are stored: 1.2 million profiles are 4.7 GB."""
        return self.where(keep, on_disk=True)

    def dense(self) -> np.ndarray:
        """The profiles in memory, float32 (samples, genes)."""
        matrix, rows = self.stored()
        return np.asarray(matrix[rows], np.float32)

    def with_genes(self, genes: pd.Index) -> EmbedProfiles:
        """The profiles with these genes in this order."""
        if self.features.equals(genes):
            return self
        where = self.features.get_indexer(genes)
        if (where < 0).any():
            missing = genes[where < 0]
            raise SchemaError(
                f"the profiles lack {len(missing)} of the embedding's {len(genes)} genes: "
                f"{shorten(missing)}",
                expected="the genes it was trained on, by Entrez id",
            )
        return replace(self, values=np.asarray(self.values)[:, where], features=genes)

    def treatments(self, data: ProfileData) -> Self:
        """Profiles with a label, of the wanted types.

        Controls are no class, and positive controls only where ``types`` names them.
        """
        samples = self.meta
        require_columns(samples, [data.label], _SAMPLES)
        keep = samples[data.label].notna().to_numpy()
        if "control" in samples:
            keep &= ~samples["control"].fillna(False).astype(bool).to_numpy()
        if data.types:
            require_columns(samples, ["pert_type"], _SAMPLES)
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
        return self.take(keep)

    def require_finite(self) -> None:
        """NaN would reach every number of a network."""
        for start in range(0, len(self), _PART):
            part = np.asarray(self.values[start : start + _PART])
            bad = ~np.isfinite(part).all(axis=1)
            if bad.any():
                names = self.meta.index[start : start + _PART].to_numpy()[bad]
                raise SchemaError(
                    f"{bad.sum():,} profiles hold NaN or infinity: {shorten(names)}",
                    expected="finite numbers",
                    fix="perturbgen l1000 extract --fill 0",
                )

    def split(self, data: ProfileData, seed: int) -> pd.Series:
        """The part of each profile, by sample: train, validation, test or unused.

        No label is in two parts: what is withheld are perturbagens, not single profiles.
        """
        labels = self.meta[data.label].astype(str)
        named = data.split or data.leakproof
        parts = _named_parts(self.meta, data) if named else _drawn_parts(labels, data, seed)
        known = parts.isin(["train", "val", "validation", "test"])
        parts = parts.replace({"val": "validation"}).where(known, "unused")
        used = pd.DataFrame({"label": labels, "part": parts})[parts != "unused"]
        homes = used.drop_duplicates().groupby("label")["part"].agg(list)
        shared = homes.index[homes.map(len) > 1]
        if len(shared):
            raise SchemaError(
                f"the split leaks: {len(shared)} {data.label} in more than one part: "
                f"{shorten(shared)}",
                expected="parts that share no label",
                fix=f"split by {data.label}",
            )
        if not (parts == "train").any():
            raise SchemaError(
                "the split puts no profile into 'train'", cause="it was made for other data"
            )
        return parts.rename("part").rename_axis("sample")

    def neighbours(
        self, vectors: np.ndarray, label: str, measure: Measure, *, k: int
    ) -> pd.DataFrame:
        """The ``k`` nearest profiles of each profile by places (profiles, size), a line a pair."""
        labels = self.meta.assign(**{label: self.meta[label].astype(str)})
        rows, values = nearest(vectors, labels, k=min(k, len(labels) - 1), similarity=measure)
        return neighbour_table(labels, rows, values, same=[label])

    def display_names(self, label: str) -> dict[str, str]:
        """A kind with its common name, where there is one."""
        if "name" not in self.meta or label == "name":
            return {}
        first = self.meta.drop_duplicates(label)
        pairs = zip(first[label].astype(str), first["name"].astype(str), strict=True)
        return {kind: name if name == kind else f"{name} ({kind})" for kind, name in pairs}

    def with_perturbagen_values(self, path: Path, columns: Sequence[str]) -> Self:
        """The table with columns of a table of perturbagens, found by canonical id."""
        from perturbgen.l1000 import perturbagen_values

        if not columns:
            raise ConfigError(
                "--perturbagens without --probe", fix="name the column to be read: --probe moa"
            )
        require_columns(self.meta, ["perturbagen"], _SAMPLES)
        ids = self.meta["perturbagen"].astype(object)
        values = {name: ids.map(perturbagen_values(path, name)) for name in columns}
        unknown = [name for name, found in values.items() if found.isna().all()]
        if unknown:
            raise SchemaError(
                f"{path} knows the {unknown[0]} of none of the {ids.nunique():,} perturbagens",
                expected="the same ids",
                cause=f"ids such as {shorten(ids.unique())} are not in its column pert_id",
            )
        return replace(self, meta=self.meta.assign(**values))

    def standard(self, clip: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and SD of each gene over clipped profiles, (genes,) both; read part by part."""
        total = np.zeros((2, len(self.features)))
        for start in range(0, len(self), _PART):
            values = np.asarray(self.values[start : start + _PART], float)
            values = values if clip is None else values.clip(-clip, clip)
            total += values.sum(0), np.square(values).sum(0)
        mean = total[0] / len(self)
        sd = np.sqrt(np.maximum(total[1] / len(self) - mean**2, 0))
        # A gene that never varies says nothing: it is left as it is instead of divided by nothing.
        return mean.astype(np.float32), np.where(sd > 1e-6, sd, 1).astype(np.float32)


def _named_parts(samples: pd.DataFrame, data: ProfileData) -> pd.Series:
    """By a split file, or by the benchmark's."""
    from perturbgen.data import Split
    from perturbgen.l1000 import read_leakproof

    if data.leakproof:
        return read_leakproof(data.leakproof).split(samples, fold=data.fold).parts
    parts = Split.read(cast("Path", data.split)).parts
    names = samples.index
    return parts.reindex(names.astype(str)).set_axis(names).fillna("unused")


def _drawn_parts(labels: pd.Series, data: ProfileData, seed: int) -> pd.Series:
    """Labels drawn at random for validation and test."""
    names = np.sort(labels.unique())
    order = np.random.default_rng(seed).permutation(names)
    validation = round(data.validation * len(names))
    withheld = validation + round(data.test * len(names))
    if withheld > len(names) - 2:
        raise SchemaError(
            f"{withheld} of {len(names)} labels are withheld", expected="two at least to train on"
        )
    parts = np.full(len(names), "train", object)
    parts[:withheld] = "test"
    parts[:validation] = "validation"
    return labels.map(dict(zip(order, parts, strict=True)))


@dataclass(frozen=True)
class ConditionEncoder:
    """Cell line, dose and time as numbers: categories one-hot, numbers log(1 + x), standardised.

    What is unknown or missing is all zeros.
    """

    categories: dict[str, list[str]]
    scales: dict[str, tuple[float, float]]  # mean and sd of log(1 + x)

    @classmethod
    def fit(cls, samples: pd.DataFrame, columns: Sequence[str]) -> ConditionEncoder:
        """Of the training profiles."""
        categories: dict[str, list[str]] = {}
        scales: dict[str, tuple[float, float]] = {}
        require_columns(samples, columns, _SAMPLES)
        for name in columns:
            if not pd.api.types.is_numeric_dtype(samples[name]):
                categories[name] = sorted(samples[name].dropna().astype(str).unique())
                continue
            logs = np.log1p(samples[name].to_numpy(float))
            known = logs[np.isfinite(logs)]
            sd = float(known.std()) if len(known) else 0.0
            scales[name] = (float(known.mean()) if len(known) else 0.0, sd or 1.0)
        return cls(categories, scales)

    @property
    def width(self) -> int:
        """How many numbers."""
        return sum(map(len, self.categories.values())) + len(self.scales)

    def encode(self, samples: pd.DataFrame) -> np.ndarray:
        """Float32 (profiles, width)."""
        require_columns(samples, [*self.categories, *self.scales], _SAMPLES)
        parts = [np.zeros((len(samples), 0))]
        for name, known in self.categories.items():
            code = pd.Index(known).get_indexer(pd.Index(samples[name].astype(object).astype(str)))
            new = samples[name][(code < 0) & samples[name].notna().to_numpy()].unique()
            if len(new):
                log.warning("%s %s: never seen in training, encoded as unknown", name, shorten(new))
            parts.append((code[:, None] == np.arange(len(known))).astype(float))
        for name, (mean, sd) in self.scales.items():
            values = (np.log1p(samples[name].to_numpy(float)) - mean) / sd
            parts.append(np.nan_to_num(values, nan=0.0)[:, None])
        return np.hstack(parts).astype(np.float32)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ConditionEncoder:
        """The encoder whose fields these are, as a file gives them."""
        scales = {name: (mean, sd) for name, (mean, sd) in values["scales"].items()}
        return cls(values["categories"], scales)
