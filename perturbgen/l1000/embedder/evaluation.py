"""A trained embedding beside its rivals on profiles that it was not trained on.

What a trained embedding must beat, each fitted on the training profiles alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.l1000.embedder.data import ProfileTable, read_table, require_column, treatments
from perturbgen.l1000.embedder.judge import measure_of, ranked
from perturbgen.l1000.embedder.probe import probe, probe_task
from perturbgen.l1000.embedder.run import Embedder, blank, with_genes
from perturbgen.profiles.linear import PCA, WCCN, ReplicateMetric
from perturbgen.retrieval import (
    Measure,
    Retrieval,
    controlled,
    group_neighbours,
    nearest,
    neighbour_table,
)

_Array = np.ndarray[Any, Any]
_CLIP: Final = 10.0  # of z-scores, as for the network


@dataclass(frozen=True)
class Rival:
    """Places of the judged profiles (rows, any width), and how they are compared."""

    name: str
    vectors: _Array
    similarity: Measure = "cosine"


def rivals(
    train: _Array, labels: _Array, judged: _Array, *, seed: int, components: int = 64
) -> list[Rival]:
    """All of them, from profiles (rows, genes) and the training rows' labels."""
    train, judged = np.clip(train, -_CLIP, _CLIP), np.clip(judged, -_CLIP, _CLIP)
    fitted: dict[str, Callable[[], _Array]] = {
        f"PCA-{components}": lambda: PCA(components).fit(train).transform(judged),
        f"PCA-{components}, whitened": lambda: (
            PCA(components, whiten=True).fit(train).transform(judged)
        ),
        "replicate metric (PeML-like)": lambda: (
            ReplicateMetric(min(32, components), components).fit(train, labels).transform(judged)
        ),
        f"WCCN, PCA-{components}": lambda: WCCN(components).fit(train, labels).transform(judged),
    }
    rng = np.random.default_rng(seed)
    return [
        Rival("random", rng.normal(size=(len(judged), 32))),
        Rival("z-scores, Euclid", judged, "euclidean"),
        Rival("z-scores, cosine", judged),
        Rival("z-scores, Spearman", judged, "spearman"),
        *(Rival(name, fit()) for name, fit in fitted.items()),
    ]


MINE: Final = "trained embedding"


@dataclass(frozen=True, eq=False)
class Judged:
    """Every method's retrieval of the same profiles, the trained one's places and its controls."""

    table: ProfileTable
    vectors: _Array
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
        return [
            plain(row)
            for row in self.probes[column]
            .rename(columns={"top-1 of groups": f"top-1 of {self.label}s"})
            .to_dict("records")
        ]


def chosen_profiles(
    embedder: Embedder, path: Path | None, metadata: Path | None, part: str
) -> ProfileTable:
    """Labelled treatments of a file: the run's own part, or all of them."""
    data = embedder.settings.data
    table = treatments(read_table(path or data.path, metadata or data.metadata), data)
    if part == "all":
        return table
    parts = embedder.parts()
    names = parts.index[parts == part]
    keep = table.samples.index.isin(names)
    if not keep.any():
        have = sorted(parts.unique()) if not len(names) else "the file that it was trained on"
        raise ConfigError(
            f"no profile of the file is in the run's part {part!r}",
            expected=f"{have}",
            fix="--part all",
        )
    return table.take(keep)


def with_values(table: ProfileTable, path: Path, columns: Sequence[str]) -> ProfileTable:
    """The table with columns of a table of perturbagens, found by canonical id."""
    from perturbgen.l1000 import perturbagen_values

    if not columns:
        raise ConfigError(
            "--perturbagens without --probe", fix="name the column to be read: --probe moa"
        )
    require_column(table.samples, "perturbagen")
    ids = table.samples["perturbagen"].astype(object)
    values = {name: ids.map(perturbagen_values(path, name)) for name in columns}
    unknown = [name for name, found in values.items() if found.isna().all()]
    if unknown:
        raise SchemaError(
            f"{path} knows the {unknown[0]} of none of the {ids.nunique():,} perturbagens",
            expected="the same ids",
            cause=f"ids such as {shorten(ids.unique())} are not in its column pert_id",
        )
    return replace(table, samples=table.samples.assign(**values))


def judge(
    embedder: Embedder,
    table: ProfileTable,
    *,
    seed: int,
    plate: str | None,
    well: str | None,
    probes: Sequence[str] = (),
) -> Judged:
    """Rank the profiles by every method; linear rivals are fitted on the run's training profiles.

    Every method sees the embedding's genes, found by id. ``probes`` are columns whose values classifiers are asked to
    read from each method's places.
    """
    label = embedder.settings.data.label
    train = chosen_profiles(embedder, None, None, "train")
    table, train = (with_genes(some, embedder.genes) for some in (table, train))
    labels = table.samples.assign(**{label: table.samples[label].astype(str)})
    tasks = {
        name: probe_task(labels, name, label, rng=np.random.default_rng(seed)) for name in probes
    }
    vectors, measure = embedder.embed(table), measure_of(embedder.model)
    linear = rivals(
        train.values(), train.samples[label].astype(str).to_numpy(), table.values(), seed=seed
    )
    methods = (Rival(MINE, vectors, measure), _untrained(embedder, table), *linear)
    found = {
        rival.name: ranked(rival.vectors, labels, label, rival.similarity) for rival in methods
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


def probe_inputs(methods: Sequence[Rival]) -> dict[str, _Array]:
    """What a classifier may tell apart: one of the comparisons of z-scores, one scale of principal components."""
    same = {"z-scores, cosine": "z-scores"}
    skipped = ("random", "z-scores, Euclid", "z-scores, Spearman")
    kept = [
        rival
        for rival in methods
        if rival.name not in skipped and not rival.name.endswith("whitened")
    ]
    return {same.get(rival.name, rival.name): rival.vectors for rival in kept}


def known(column: str | None, labels: pd.DataFrame) -> str | None:
    """A column that says something: it is there, and not the same everywhere."""
    return column if column in labels and labels[column].nunique() > 1 else None


def _untrained(embedder: Embedder, table: ProfileTable) -> Rival:
    """The same network before its first step."""
    model = embedder.model
    counts = model.head.margins.new_ones(len(embedder.classes)).numpy(force=True)
    first = blank(
        embedder.settings, model.mean.cpu(), model.sd.cpu(), embedder.conditions.width, counts
    ).eval()
    fresh = Embedder(
        embedder.path,
        embedder.settings,
        first,
        embedder.genes,
        embedder.classes,
        embedder.conditions,
    )
    return Rival("the network, untrained", fresh.embed(table), measure_of(first))


def neighbours_of_labels(judged: Judged, measure: Any, *, k: int = 10) -> pd.DataFrame:
    """Which other perturbagens the nearest profiles of each one belong to."""
    samples = judged.table.samples
    labels = samples.assign(**{judged.label: samples[judged.label].astype(str)})
    k = min(k, len(labels) - 1)
    rows, values = nearest(judged.vectors, labels, k=k, similarity=measure)
    return group_neighbours(
        neighbour_table(labels, rows, values, same=[judged.label]), same=[judged.label]
    )


def display_names(samples: pd.DataFrame, label: str) -> dict[str, str]:
    """A kind with its common name, where there is one."""
    if "name" not in samples or label == "name":
        return {}
    first = samples.drop_duplicates(label)
    pairs = zip(first[label].astype(str), first["name"].astype(str), strict=True)
    return {kind: name if name == kind else f"{name} ({kind})" for kind, name in pairs}


def plain(row: Any) -> dict[str, Any]:
    """A line with None for NaN."""
    return {
        str(k): None if isinstance(v, float) and np.isnan(v) else v for k, v in dict(row).items()
    }
