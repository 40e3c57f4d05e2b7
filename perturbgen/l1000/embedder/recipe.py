"""The recipe of an embedding of profiles: what a run reads, builds, is judged by and shows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.core.files import require_folder
from perturbgen.l1000.embedder.data import ConditionEncoder, EmbedProfiles
from perturbgen.l1000.embedder.settings import EmbedSettings
from perturbgen.retrieval import retrieve
from perturbgen.train.board import Board
from perturbgen.train.card import Card
from perturbgen.train.run import Recipe, Trained, require_unseen

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

    from perturbgen.l1000.embedder.model import ProfileEmbedder, ProfileFeed
    from perturbgen.train.feeds import Judge
    from perturbgen.train.loop import Training

log = logging.getLogger(__name__)
_KIND = "profile embedder"
_LOSS_DECIDES = "the training loss decides when to stop"


@dataclass(frozen=True)
class _EmbedCard(Card):
    """What an embedding was trained on: ``counts`` are the training profiles of each class."""

    DESCRIBES: ClassVar[str] = "an embedding of profiles"
    MEMBERS: ClassVar[str] = "parts.parquet"
    MEMBER: ClassVar[str] = "sample"

    kind: str
    genes: list[str]
    classes: list[str]
    counts: list[int]
    conditions: ConditionEncoder

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        if values["kind"] != _KIND:
            raise ValueError(f"it describes a {values['kind']}")
        conditions = ConditionEncoder.from_json(values.pop("conditions"))
        return cls(conditions=conditions, **values)


@dataclass(frozen=True, eq=False)
class _Prepared:
    """What a run trains on: profiles by part, the card of its classes, the standardisation."""

    parts: pd.Series
    train: EmbedProfiles
    validation: EmbedProfiles
    card: _EmbedCard
    mean: np.ndarray
    sd: np.ndarray


class Embedder(Trained[EmbedSettings, "ProfileEmbedder", _EmbedCard]):
    """A trained embedding ready for use."""

    @property
    def genes(self) -> pd.Index:
        """The genes of a profile, in the network's order."""
        return pd.Index(self.card.genes)

    def embed(self, table: EmbedProfiles) -> np.ndarray:
        """Places (profiles, size); genes are found by id."""
        from perturbgen.l1000.embedder.model import ProfileFeed

        if not len(table):
            raise SchemaError("no profile to embed", expected="one at least", cause="an empty file")
        table = table.with_genes(self.genes)
        table.require_finite()
        nothing, told = np.full(len(table), -1), self.card.conditions.encode(table.meta)
        options = self.settings.training.model_copy(update={"resident": False})
        device = self.model.mean.device
        return self.model.places(ProfileFeed.build(table, nothing, told, options, 0, device))

    def profiles(
        self, path: Path | None = None, metadata: Path | None = None, *, part: str = "all"
    ) -> EmbedProfiles:
        """Labelled treatments of a file, the run's own by default: those of a part, or all."""
        data = self.settings.data
        table = EmbedProfiles.read(path or data.path, metadata or data.metadata).treatments(data)
        if part == "all":
            return table
        parts = self.parts()
        names = parts.index[parts == part]
        keep = table.meta.index.isin(names)
        if not keep.any():
            what = f"no profile of the file is in the run's part {part!r}"
            have = "the file that it was trained on" if len(names) else sorted(parts.unique())
            raise ConfigError(what, expected=f"{have}", fix="--part all")
        return table.take(keep)

    def untrained(self) -> Embedder:
        """The same network before its first step."""
        first = _new_network(self.settings, self.card, self.model.mean.cpu(), self.model.sd.cpu())
        return Embedder(self.path, self.settings, first.eval(), self.card)


class _EmbedRecipe(Recipe[EmbedSettings, _Prepared, _EmbedCard, Embedder]):
    settings, card, trained = EmbedSettings, _EmbedCard, Embedder
    unit, may_change = "profiles", ("training.resident",)

    def read(self, settings: EmbedSettings) -> _Prepared:
        data, start = settings.data, settings.start
        table = EmbedProfiles.read(data.path, data.metadata).treatments(data)
        table.require_finite()
        parts = table.split(data, settings.seed)
        label = table.meta[data.label].astype(str)
        if start is not None:
            withheld = label[parts.isin(["validation", "test"]).to_numpy()]
            require_unseen(
                start,
                {data.label: withheld.unique()},
                lambda run: _classes_of_run(run, data.label),
                fix="withhold the same in both runs by one data.split, or start from another run",
            )
        classes = _classes_of(label[(parts == "train").to_numpy()], data.least)
        train = table.take(((parts == "train") & label.isin(classes)).to_numpy())
        counts = train.meta[data.label].astype(str).value_counts().reindex(classes)
        genes, told = list(train.features), _conditions(settings, train)
        card = _EmbedCard(_KIND, genes, list(classes), counts.tolist(), told)
        validation = table.take((parts == "validation").to_numpy())
        return _Prepared(parts, train, validation, card, *train.standard(settings.model.clip))

    def sources(self, settings: EmbedSettings) -> Iterable[Path]:
        return [settings.data.path]

    def describe(self, settings: EmbedSettings, data: _Prepared) -> _EmbedCard:
        return data.card

    def members(self, data: _Prepared) -> pd.DataFrame:
        return data.parts.to_frame()

    def assemble(
        self, run: Path, settings: EmbedSettings, data: _Prepared, fabric: Fabric
    ) -> Training:
        import torch

        from perturbgen.train.loop import Training
        from perturbgen.train.settings import adamw

        label, options = settings.data.label, settings.training
        withheld = data.validation
        if len(withheld):
            rng = np.random.default_rng(settings.seed)
            withheld = withheld.take(_rankable(withheld.meta[label], options.judged, rng))
        judged = withheld.meta[label].nunique() > 1
        if not judged:
            if len(data.validation):
                log.warning("no two withheld %s have two profiles each: %s", label, _LOSS_DECIDES)
            withheld = withheld.take(np.zeros(len(withheld), bool))
        train, validation = (
            _profile_feed(table, settings, data.card, fabric.device)
            for table in (data.train, withheld)
        )
        mean, sd = torch.from_numpy(data.mean), torch.from_numpy(data.sd)
        model = _new_network(settings, data.card, mean, sd)
        if settings.start is not None:
            _transfer(model, EMBEDDING.load(settings.start), data.card)
        groups = model.groups()
        optimiser = adamw(
            (groups["encoder"], options.learning_rate, options.weight_decay),
            (groups["head"], options.head_rate, 0.0),
        )
        judge = _judge(validation, label) if judged else None
        return Training(run, settings, train, validation, model, [optimiser], fabric, judge)

    def board(self, run: Path, settings: EmbedSettings, epoch: int) -> Board:
        return _EmbedBoard(run, settings, epoch=epoch)

    def blank(self, run: Path, settings: EmbedSettings, card: _EmbedCard) -> ProfileEmbedder:
        import torch

        n = len(card.genes)
        return _new_network(settings, card, torch.zeros(n), torch.ones(n))


EMBEDDING = _EmbedRecipe()


def _classes_of(labels: pd.Series, least: int) -> pd.Index:
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


def _classes_of_run(run: Path, label: str) -> tuple[Mapping[str, Iterable[str]], Path | None]:
    """What a run was trained on, and the run that it started from."""
    card = _EmbedCard.read(require_folder(run, "run directory"))
    return {label: card.classes}, EmbedSettings.load(run / "config.toml").start


def _conditions(settings: EmbedSettings, train: EmbedProfiles) -> ConditionEncoder:
    """What the network is told, as fitted here or as the encoder that it starts from was told."""
    if settings.start is None:
        return ConditionEncoder.fit(train.meta, settings.model.conditions)
    found = EMBEDDING.load(settings.start).card.conditions
    known, wanted = ({*found.categories, *found.scales}, set(settings.model.conditions))
    if known != wanted:
        raise ConfigError(
            f"{settings.start} knows the conditions {sorted(known)}, not {sorted(wanted)}",
            fix="the same model.conditions",
        )
    return found


def _profile_feed(
    table: EmbedProfiles, settings: EmbedSettings, card: _EmbedCard, device: torch.device
) -> ProfileFeed:
    """A part of the profiles on the run's device."""
    from perturbgen.l1000.embedder.model import ProfileFeed

    labels = pd.Index(table.meta[settings.data.label].astype(str))
    classes = pd.Index(card.classes).get_indexer(labels)
    told = card.conditions.encode(table.meta)
    return ProfileFeed.build(table, classes, told, settings.training, settings.seed, device)


def _new_network(settings: EmbedSettings, card: _EmbedCard, mean: Any, sd: Any) -> ProfileEmbedder:
    """A model before training, its first parameters drawn from the seed."""
    import torch

    from perturbgen.l1000.embedder.model import ProfileEmbedder

    counts = torch.from_numpy(np.asarray(card.counts))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        width = card.conditions.width
        return ProfileEmbedder(settings.model, mean, sd, n_conditions=width, counts=counts)


def _transfer(model: ProfileEmbedder, other: Embedder, card: _EmbedCard) -> None:
    """Transfer: the encoder and the standardisation of another run; the head starts anew."""
    if other.card.genes != card.genes:
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


def _rankable(labels: pd.Series, limit: int, rng: np.random.Generator) -> np.ndarray:
    """A mask of labels that occur twice or more, whole labels, at most ``limit`` profiles."""
    counts = labels.astype(str).value_counts()
    order = rng.permutation(np.sort(counts.index[counts >= 2].to_numpy(object)))
    fits = counts[order].cumsum().to_numpy() <= limit
    chosen = order[fits] if fits.sum() > 1 else order[:2]
    return labels.astype(str).isin(chosen).to_numpy()


def _judge(feed: ProfileFeed, label: str) -> Judge:
    """How well withheld profiles find their own kind: mAP and AUC; the objective is 1 - mAP."""
    labels = feed.table.meta[[label]].astype(str)

    def judge(model: Any) -> dict[str, float]:
        found = retrieve(model.places(feed), labels, same=label, similarity=model.measure)
        summary: Any = found.summary()
        ap, auc = (float(summary.loc["per query", name]) for name in ("ap", "auc"))
        median_q = float(summary.loc["pooled", "median_q"])
        return {"objective": 1 - ap, "map": ap, "auc": auc, "median_q": median_q}

    return judge


class _EmbedBoard(Board):
    """The withheld profiles' places (the training ones' where none are withheld)."""

    space = "embedding"
    settings: EmbedSettings

    def pictures(self, training: Training, epoch: int) -> None:
        """The first two principal components, and the head's scale and margin."""
        self.add_latents("embedding/principal components", *self.projected(training), epoch)
        head = cast("ProfileEmbedder", training.model).head
        self.writer.add_scalar("schedule/scale", float(head.log_scale.detach().exp()), epoch)
        self.writer.add_scalar("schedule/margin", head.risen * float(head.margins.max()), epoch)

    def projected(self, training: Training) -> tuple[np.ndarray, pd.DataFrame]:
        """Places and labels of some withheld profiles."""
        shown = training.validation if len(training.validation) else training.train
        feed = cast("ProfileFeed", shown)
        points = cast("ProfileEmbedder", training.model).places(feed)
        rows = self.chosen(len(points))
        usual = ("name", "moa", "cell_line", "dose", "time", "plate", "well")
        names = dict.fromkeys([self.settings.data.label, *self.settings.board.labels, *usual])
        samples = feed.table.meta.iloc[rows]
        return points[rows], samples[[name for name in names if name in samples]].astype(str)
