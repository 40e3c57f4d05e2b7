"""What the experiments share: train a network without pictures, rank withheld profiles by it and by
its rivals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from perturbgen.l1000.embedder import Embedder, EmbedSettings
    from perturbgen.l1000.embedder.data import EmbedProfiles

Array = np.ndarray[Any, Any]
Overrides = Mapping[str, Any]


def made(values: Overrides) -> EmbedSettings:
    """Settings from nested values."""
    from perturbgen.l1000.embedder import EmbedSettings

    return EmbedSettings.load(base=values)


def learn(settings: EmbedSettings, folder: Path, *, which: str = "best") -> tuple[Embedder, Any]:
    """Train without pictures; the best or the last state."""
    from perturbgen.l1000.embedder import EMBEDDING, Embedder
    from perturbgen.train import launch

    folder.mkdir(parents=True, exist_ok=True)
    prepared = EMBEDDING.read(settings)
    fabric = launch(settings.training, accelerator="cpu")
    training = EMBEDDING.assemble(folder, settings, prepared, fabric)
    training.fit()
    if which == "best" and training.best_model is not None:
        training.model.load_state_dict(training.best_model)
    model: Any = training.model.eval()
    return Embedder(folder, settings, model, prepared.card), training.state


def parts_of(settings: EmbedSettings, part: str) -> EmbedProfiles:
    """The profiles of a part; the label in column ``class``."""
    from perturbgen.l1000.embedder.data import EmbedProfiles

    table = EmbedProfiles.read(settings.data.path).treatments(settings.data)
    table = table.take((table.split(settings.data, settings.seed) == part).to_numpy())
    table.meta["class"] = table.meta[settings.data.label].astype(str)
    return table


def write_split(path: Path, samples: pd.Index, parts: Array) -> Path:
    """A split file by sample."""
    from perturbgen.data import Split

    path.parent.mkdir(parents=True, exist_ok=True)
    Split(
        pd.Series(parts.astype(object), pd.Index(samples.astype(str), name="sample")), "drugs"
    ).write(path)
    return path


def linear_rows(train: EmbedProfiles, judged: EmbedProfiles, seed: int) -> Iterator[dict[str, Any]]:
    """What the embedding must beat."""
    from perturbgen.l1000.embedder.evaluation import Rival

    labels = train.meta["class"].to_numpy()
    for rival in Rival.fitted(train.dense(), labels, judged.dense(), seed=seed):
        yield scored(rival.name, rival.vectors, judged, rival.similarity, seed)


def network_row(name: str, embedder: Embedder, judged: EmbedProfiles, seed: int) -> dict[str, Any]:
    """A trained network."""

    return scored(name, embedder.embed(judged), judged, embedder.model.measure, seed)


def scored(
    name: str, vectors: Array, judged: EmbedProfiles, measure: Any, seed: int
) -> dict[str, Any]:
    """Means over queries: mAP, AUC; the median rank quantile over pairs."""
    from perturbgen.retrieval import retrieve

    found: Any = retrieve(
        vectors, judged.meta[["class"]], same="class", similarity=measure
    ).summary()
    means = found.loc["per query"]
    return {
        "method": name,
        "seed": seed,
        "map": float(means["ap"]),
        "auc": float(means["auc"]),
        "median_q": float(found.loc["pooled", "median_q"]),
        "queries": int(means["n"]),
    }


def with_mechanisms(
    rows: list[dict[str, Any]],
    embedder: Embedder,
    train: EmbedProfiles,
    judged: EmbedProfiles,
    seed: int,
) -> list[dict[str, Any]]:
    """The rows of the methods with how well classifiers read mechanisms from their places
    (macro-F1), and controls.
    """
    from perturbgen.l1000.embedder.evaluation import Rival, probe_inputs
    from perturbgen.l1000.embedder.probe import KINDS, MAJORITY, ProbeTask

    mine = Rival("embedding", embedder.embed(judged), embedder.model.measure)
    linear = Rival.fitted(train.dense(), train.meta["class"].to_numpy(), judged.dense(), seed=seed)
    task = ProbeTask.of(judged.meta, "moa", "class", rng=np.random.default_rng(seed))
    found = task.probe(probe_inputs([mine, *linear]), seed=seed)
    scores = found.pivot(index="input", columns="classifier", values="macro-F1")
    scores.loc["none", list(KINDS)] = scores.loc["none", MAJORITY]
    names = {
        "z-scores": "z-scores, cosine",
        "none": MAJORITY,
        "embedding, shuffled": "embedding, shuffled mechanisms",
    }
    scores = scores[list(KINDS)].add_prefix("moa: ").rename(index=names)
    return (
        pd.DataFrame(rows)
        .merge(scores, "outer", left_on="method", right_index=True)
        .assign(seed=seed)
        .to_dict("records")
    )
