"""Start the training of an embedding, go on with it, and use what came of it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from perturbgen.core.config import load_settings
from perturbgen.core.errors import ConfigError, InputError, SchemaError, shorten
from perturbgen.core.files import atomic_path, require_file, require_folder, require_writable
from perturbgen.core.runs import create_run, file_hash
from perturbgen.core.tables import read_frame
from perturbgen.l1000.embedder.data import (
    ConditionEncoder,
    ProfileTable,
    classes_of,
    read_table,
    require_finite,
    split_parts,
    standard,
    treatments,
)
from perturbgen.l1000.embedder.settings import EmbedSettings
from perturbgen.train.launch import MAY_CHANGE, carry_out, keep_settings, launch, settings_to_resume
from perturbgen.train.state import load_parameters, load_state

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from perturbgen.l1000.embedder.batches import ProfileFeed
    from perturbgen.l1000.embedder.model import ProfileEmbedder
    from perturbgen.train.loop import Training

log = logging.getLogger(__name__)
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a run trains on: profiles by part, classes with their numbers, conditions, the standardisation."""

    parts: pd.Series
    train: ProfileTable
    validation: ProfileTable
    classes: pd.Index
    conditions: ConditionEncoder
    counts: np.ndarray
    mean: np.ndarray
    sd: np.ndarray


@dataclass(frozen=True, eq=False)
class Embedder:
    """A trained embedding ready for use."""

    path: Path
    settings: EmbedSettings
    model: ProfileEmbedder
    genes: pd.Index
    classes: pd.Index
    conditions: ConditionEncoder

    def parts(self) -> pd.Series:
        """The part of each of the run's samples."""
        return _read_parts(self.path)

    def embed(self, table: ProfileTable) -> np.ndarray:
        """Places (profiles, size); genes are found by id."""
        from perturbgen.l1000.embedder.batches import ProfileFeed
        from perturbgen.l1000.embedder.judge import places

        if not len(table):
            raise SchemaError("no profile to embed", expected="one at least", cause="an empty file")
        table = with_genes(table, self.genes)
        require_finite(table)
        training = self.settings.training.model_copy(update={"resident": False})
        device = self.model.mean.device
        none = np.full(len(table), -1)
        conditions = self.conditions.encode(table.samples)
        feed = ProfileFeed.build(table, none, conditions, training, seed=0, device=device)
        return places(self.model, feed)


def with_genes(table: ProfileTable, genes: pd.Index) -> ProfileTable:
    """The table with these genes in this order."""
    if table.genes.equals(genes):
        return table
    where = table.genes.get_indexer(genes)
    if (where < 0).any():
        missing = genes[where < 0]
        raise SchemaError(
            f"the profiles lack {len(missing)} of the embedding's {len(genes)} genes: {shorten(missing)}",
            expected="the genes it was trained on, by Entrez id",
        )
    values = np.asarray(table.matrix[table.rows])[:, where]
    return ProfileTable(values, np.arange(len(table)), table.samples, genes)


def train(
    settings: EmbedSettings,
    *,
    runs: Path = Path("runs"),
    devices: int = 1,
    accelerator: str = "auto",
) -> Path:
    """Train an embedding from the first step; returns its run directory."""
    require_writable(runs / "run")
    fabric = launch(settings.training, devices=devices, accelerator=accelerator)
    prepared = prepare(settings)
    run = runs
    if fabric.is_global_zero:
        source = settings.data.path
        hashes = {str(source): file_hash(source)} if source.is_file() else {}
        run = create_run(runs, settings.name, settings, seed=settings.seed, data=hashes)
        _write_card(run, prepared)
    run = fabric.broadcast(run)
    return _fit(run, settings, prepared, fabric, resumed=False)


def resume(run: Path, overrides: list[str], *, devices: int = 1, accelerator: str = "auto") -> Path:
    """Go on with a run where its last checkpoint stands; only its length may be changed."""
    settings = settings_to_resume(
        EmbedSettings, run, overrides, may_change=(*MAY_CHANGE, "training.resident")
    )
    fabric = launch(settings.training, devices=devices, accelerator=accelerator)
    prepared = prepare(settings)
    before = _read_parts(run)
    if not (
        before.index.equals(prepared.parts.index)
        and (before.to_numpy() == prepared.parts.to_numpy()).all()
    ):
        raise SchemaError(
            f"the profiles are not those that {run} was trained on",
            expected=f"its {len(before):,} samples in their order and parts",
            fix="name the same file, or train anew",
        )
    if overrides and fabric.is_global_zero:
        keep_settings(run, settings)
    return _fit(run, settings, prepared, fabric, resumed=True)


def prepare(settings: EmbedSettings) -> Prepared:
    """Read, split, and fit on the training part alone what has to be fitted."""
    data = settings.data
    table = treatments(read_table(data.path, data.metadata), data)
    require_finite(table)
    parts = split_parts(table, data, settings.seed)
    label = table.samples[data.label].astype(str)
    _require_unseen(
        settings.start, label[parts.isin(["validation", "test"]).to_numpy()], data.label
    )
    classes = classes_of(label[(parts == "train").to_numpy()], data.least)
    train = table.take(((parts == "train") & label.isin(classes)).to_numpy())
    validation = table.take((parts == "validation").to_numpy())
    mean, sd = standard(train, settings.model.clip)
    conditions = _conditions_of(settings, train)
    counts = train.samples[data.label].astype(str).value_counts().reindex(classes).to_numpy()
    return Prepared(parts, train, validation, classes, conditions, counts, mean, sd)


def _require_unseen(start: Path | None, held: pd.Series, name: str) -> None:
    """Who is withheld here was no class of the run that this one starts from, nor of the run that one started from."""
    while start is not None:
        classes = _read_card(require_folder(start, "run directory"))["classes"]
        seen = np.intersect1d(held.unique(), classes)
        if len(seen):
            raise ConfigError(
                f"{start} was trained on {len(seen)} {name} that are withheld here: {shorten(seen)}",
                expected="validation and test labels that the encoder never saw",
                fix="withhold the same ones in both runs by one data.split, or start from another run",
            )
        start = load_settings(EmbedSettings, start / "config.toml").start


def _conditions_of(settings: EmbedSettings, train: ProfileTable) -> ConditionEncoder:
    """What the network is told: as fitted on the training profiles, or as the encoder that it starts from was told."""
    if settings.start is None:
        return ConditionEncoder.fit(train.samples, settings.model.conditions)
    found = load_embedder(settings.start).conditions
    known = {*found.categories, *found.scales}
    if known != set(settings.model.conditions):
        raise ConfigError(
            f"{settings.start} knows the conditions {sorted(known)}, not {sorted(settings.model.conditions)}",
            fix="the same model.conditions",
        )
    return found


def _write_card(run: Path, prepared: Prepared) -> None:
    """What the parameters mean, and who was in which part."""
    card = {
        "format": _FORMAT,
        "kind": "profile embedder",
        "genes": list(prepared.train.genes),
        "classes": list(prepared.classes),
        "counts": prepared.counts.tolist(),
        "conditions": prepared.conditions.to_json(),
    }
    with atomic_path(run / "model.json") as part:
        part.write_text(json.dumps(card))
    with atomic_path(run / "parts.parquet") as part:
        prepared.parts.to_frame().to_parquet(part)


def _fit(
    run: Path, settings: EmbedSettings, prepared: Prepared, fabric: Fabric, *, resumed: bool
) -> Path:
    """Build the model and train it."""
    from perturbgen.l1000.embedder.judge import EmbedBoard

    training = assemble(run, settings, prepared, fabric)
    return carry_out(training, lambda step: EmbedBoard(run, settings, step=step), resumed=resumed)


def assemble(run: Path, settings: EmbedSettings, prepared: Prepared, fabric: Fabric) -> Training:
    """The loop with the profiles, the model and its optimiser."""
    from perturbgen.l1000.embedder.judge import RetrievalJudge, rankable
    from perturbgen.train.loop import Training
    from perturbgen.train.schedules import adamw

    label, options = settings.data.label, settings.training
    held = prepared.validation
    if len(held):
        mask = rankable(held.samples[label], options.judged, np.random.default_rng(settings.seed))
        held = held.take(mask)
    feeds = [_feed_of(table, settings, prepared, fabric) for table in (prepared.train, held)]
    model = _build_model(settings, prepared)
    groups = model.groups()
    optimiser = adamw(
        (groups["encoder"], options.learning_rate, options.weight_decay),
        (groups["head"], options.head_rate, 0.0),
    )
    judge = RetrievalJudge(feeds[1], label) if held.samples[label].nunique() > 1 else None
    if judge is None and len(prepared.validation):
        log.warning(
            "no two withheld %s have two profiles each: the training loss decides when to stop",
            label,
        )
    if judge is None:
        feeds[1] = _feed_of(held.take(np.zeros(len(held), bool)), settings, prepared, fabric)
    return Training(
        run,
        settings,
        train=feeds[0],
        validation=feeds[1],
        model=model,
        optimisers=[optimiser],
        fabric=fabric,
        judge=judge,
    )


def _feed_of(
    table: ProfileTable, settings: EmbedSettings, prepared: Prepared, fabric: Fabric
) -> ProfileFeed:
    """A part of the profiles on the run's device."""
    from perturbgen.l1000.embedder.batches import ProfileFeed

    classes = prepared.classes.get_indexer(pd.Index(table.samples[settings.data.label].astype(str)))
    conditions = prepared.conditions.encode(table.samples)
    return ProfileFeed.build(
        table, classes, conditions, settings.training, seed=settings.seed, device=fabric.device
    )


def _build_model(settings: EmbedSettings, prepared: Prepared) -> ProfileEmbedder:
    """The model, its first parameters drawn from the seed, or its encoder from another run."""
    import torch

    mean, sd = torch.from_numpy(prepared.mean), torch.from_numpy(prepared.sd)
    model = blank(settings, mean, sd, prepared.conditions.width, prepared.counts)
    if settings.start is not None:
        _start_from(model, load_embedder(settings.start), prepared)
    return model


def blank(
    settings: EmbedSettings, mean: Any, sd: Any, n_conditions: int, counts: np.ndarray
) -> ProfileEmbedder:
    """A model before training."""
    import torch

    from perturbgen.l1000.embedder.model import ProfileEmbedder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return ProfileEmbedder(
            settings.model,
            mean,
            sd,
            n_conditions=n_conditions,
            counts=torch.from_numpy(np.asarray(counts)),
        )


def _start_from(model: ProfileEmbedder, other: Embedder, prepared: Prepared) -> None:
    """Transfer: the encoder and the standardisation of another run; the head starts anew."""
    if not other.genes.equals(prepared.train.genes):
        raise SchemaError(
            f"{other.path} was trained on other genes, or in another order",
            expected="the same genes",
        )
    try:
        model.encoder.load_state_dict(other.model.encoder.state_dict())
    except RuntimeError:
        raise ConfigError(
            f"start: the encoder of {other.path} is another",
            fix="the same model.encoder and model.size",
        ) from None
    model.mean.copy_(other.model.mean)
    model.sd.copy_(other.model.sd)


def load_embedder(path: str | Path, *, which: str = "best", device: str = "cpu") -> Embedder:
    """The embedding of a run, its best (or last) state."""
    import torch

    path = require_folder(path, "run directory")
    settings = load_settings(EmbedSettings, path / "config.toml")
    card = _read_card(path)
    conditions = ConditionEncoder.from_json(card["conditions"])
    n = len(card["genes"])
    model = blank(
        settings, torch.zeros(n), torch.ones(n), conditions.width, np.asarray(card["counts"])
    )
    load_parameters(model, load_state(path, which)["model"], path)
    genes, classes = pd.Index(card["genes"]), pd.Index(card["classes"])
    return Embedder(path, settings, model.to(device).eval(), genes, classes, conditions)


def _read_parts(path: Path) -> pd.Series:
    """``parts.parquet``: the part of each sample."""
    return read_frame(path / "parts.parquet", columns=["part"])["part"]


def _read_card(path: Path) -> dict[str, Any]:
    """``model.json``."""
    file = require_file(path / "model.json", "description of a trained embedding")
    try:
        card = json.loads(file.read_text())
        if (card["format"], card["kind"]) != (_FORMAT, "profile embedder"):
            raise InputError(
                f"{file} describes a {card['kind']} of format {card['format']}",
                expected=f"{_FORMAT}",
            )
        return {name: card[name] for name in ("genes", "classes", "counts", "conditions")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} does not describe an embedding: {error!r}", fix="train again"
        ) from None
