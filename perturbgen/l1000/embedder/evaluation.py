"""A trained embedding beside its rivals, on profiles that it was not trained on.

The rivals are what it must beat, each fitted on the training profiles alone. On the real plate
LJP005 WCCN is still ahead of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.tables import require_columns
from perturbgen.l1000.embedder.data import EmbedProfiles
from perturbgen.l1000.embedder.probe import probe, probe_task
from perturbgen.l1000.embedder.recipe import Embedder
from perturbgen.profiles.linear import PCA, WCCN, ReplicateMetric
from perturbgen.retrieval import (
    Measure,
    Retrieval,
    controlled,
    group_neighbours,
    nearest,
    neighbour_table,
    retrieve,
)

_CLIP = 10.0  # of z-scores, as for the network
MINE = "trained embedding"


@dataclass(frozen=True)
class Rival:
    """Places of the judged profiles (rows, any width), and how they are compared."""

    name: str
    vectors: np.ndarray
    similarity: Measure = "cosine"


def rivals(
    train: np.ndarray, labels: np.ndarray, judged: np.ndarray, *, seed: int, components: int = 64
) -> list[Rival]:
    """All of them, from profiles (rows, genes) and the training rows' labels."""
    train, judged = np.clip(train, -_CLIP, _CLIP), np.clip(judged, -_CLIP, _CLIP)
    metric = ReplicateMetric(min(32, components), components)
    pca, whitened = PCA(components).fit(train), PCA(components, whiten=True).fit(train)
    return [
        Rival("random", np.random.default_rng(seed).normal(size=(len(judged), 32))),
        Rival("z-scores, Euclid", judged, "euclidean"),
        Rival("z-scores, cosine", judged),
        Rival("z-scores, Spearman", judged, "spearman"),
        Rival(f"PCA-{components}", pca.transform(judged)),
        Rival(f"PCA-{components}, whitened", whitened.transform(judged)),
        Rival("replicate metric (PeML-like)", metric.fit(train, labels).transform(judged)),
        Rival(f"WCCN, PCA-{components}", WCCN(components).fit(train, labels).transform(judged)),
    ]


@dataclass(frozen=True, eq=False)
class Judged:
    """Every method's retrieval of the same profiles, the trained one's places and its controls."""

    table: EmbedProfiles
    vectors: np.ndarray
    found: dict[str, Retrieval]
    controls: pd.DataFrame
    label: str
    methods: tuple[Rival, ...]
    probes: dict[str, pd.DataFrame]  # by column

    def rows(self) -> list[dict[str, Any]]:
        """A line for each method, the best mAP first."""
        rows = []
        for name, result in self.found.items():
            summary: Any = result.summary()
            query, pooled = summary.loc["per query"], summary.loc["pooled"]
            rows.append(
                {
                    "method": name,
                    "mAP": float(query["ap"]),
                    "AUC": float(query["auc"]),
                    "median q": float(pooled["median_q"]),
                    "top .01": float(pooled["top_0.01"]),
                    "top .1": float(pooled["top_0.1"]),
                    "P@1": float(query["p_at_1"]),
                    "retrieved": float(summary.loc["per group", "retrieved"]),
                }
            )
        return sorted(rows, key=lambda row: -row["mAP"])

    def probe_rows(self, column: str) -> list[dict[str, Any]]:
        """A line for each input and classifier, as they were asked for."""
        named = {"top-1 of groups": f"top-1 of {self.label}s"}
        return [
            as_record(row) for row in self.probes[column].rename(columns=named).to_dict("records")
        ]

    def neighbours(self, measure: Measure, *, k: int = 10) -> pd.DataFrame:
        """Which other perturbagens the nearest profiles of each one belong to."""
        return group_neighbours(
            neighbours_of(self.table, self.vectors, self.label, measure, k=k), same=[self.label]
        )


def neighbours_of(
    table: EmbedProfiles, vectors: np.ndarray, label: str, measure: Measure, *, k: int
) -> pd.DataFrame:
    """The ``k`` nearest profiles of each profile, a line a pair."""
    labels = table.meta.assign(**{label: table.meta[label].astype(str)})
    rows, values = nearest(vectors, labels, k=min(k, len(labels) - 1), similarity=measure)
    return neighbour_table(labels, rows, values, same=[label])


def with_values(table: EmbedProfiles, path: Path, columns: Sequence[str]) -> EmbedProfiles:
    """The table with columns of a table of perturbagens, found by canonical id."""
    from perturbgen.l1000 import perturbagen_values

    if not columns:
        raise ConfigError(
            "--perturbagens without --probe", fix="name the column to be read: --probe moa"
        )
    require_columns(table.meta, ["perturbagen"], "the table of samples")
    ids = table.meta["perturbagen"].astype(object)
    values = {name: ids.map(perturbagen_values(path, name)) for name in columns}
    unknown = [name for name, found in values.items() if found.isna().all()]
    if unknown:
        raise SchemaError(
            f"{path} knows the {unknown[0]} of none of the {ids.nunique():,} perturbagens",
            expected="the same ids",
            cause=f"ids such as {shorten(ids.unique())} are not in its column pert_id",
        )
    return replace(table, meta=table.meta.assign(**values))


def judge(
    embedder: Embedder,
    table: EmbedProfiles,
    *,
    seed: int,
    plate: str | None,
    well: str | None,
    probes: Sequence[str] = (),
) -> Judged:
    """Rank the profiles by every method; linear rivals are fitted on the run's training profiles.

    Every method sees the embedding's genes, found by id. ``probes`` are columns whose values
    classifiers are asked to read from each method's places.
    """
    label = embedder.settings.data.label
    train = embedder.profiles(part="train").with_genes(embedder.genes)
    table = table.with_genes(embedder.genes)
    labels = table.meta.assign(**{label: table.meta[label].astype(str)})
    # A column that cannot be probed is told before the networks and rivals are run.
    tasks = {
        name: probe_task(labels, name, label, rng=np.random.default_rng(seed)) for name in probes
    }
    vectors, measure = embedder.embed(table), embedder.model.measure
    names = train.meta[label].astype(str).to_numpy()
    methods = (
        Rival(MINE, vectors, measure),
        Rival("the network, untrained", embedder.untrained().embed(table), measure),
        *rivals(train.dense(), names, table.dense(), seed=seed),
    )
    found = {
        rival.name: retrieve(rival.vectors, labels, same=label, similarity=rival.similarity)
        for rival in methods
    }
    controls = controlled(
        vectors,
        labels,
        same=label,
        plate=known(plate, labels),
        well=known(well, labels),
        rng=np.random.default_rng(seed),
        similarity=measure,
    )
    probed = {name: probe(probe_inputs(methods), task, seed=seed) for name, task in tasks.items()}
    return Judged(table, vectors, found, controls, label, methods, probed)


def probe_inputs(methods: Sequence[Rival]) -> dict[str, np.ndarray]:
    """What a classifier may tell apart: z-scores once, and one scale of principal components."""
    named = {"z-scores, cosine": "z-scores"}
    skipped = ("random", "z-scores, Euclid", "z-scores, Spearman")
    return {
        named.get(rival.name, rival.name): rival.vectors
        for rival in methods
        if rival.name not in skipped and not rival.name.endswith("whitened")
    }


def known(column: str | None, labels: pd.DataFrame) -> str | None:
    """A column that says something: it is there, and not the same everywhere."""
    return column if column in labels and labels[column].nunique() > 1 else None


def display_names(samples: pd.DataFrame, label: str) -> dict[str, str]:
    """A kind with its common name, where there is one."""
    if "name" not in samples or label == "name":
        return {}
    first = samples.drop_duplicates(label)
    pairs = zip(first[label].astype(str), first["name"].astype(str), strict=True)
    return {kind: name if name == kind else f"{name} ({kind})" for kind, name in pairs}


def as_record(row: Any) -> dict[str, Any]:
    """A line with None for NaN."""
    return {
        str(k): None if isinstance(v, float) and np.isnan(v) else v for k, v in dict(row).items()
    }
