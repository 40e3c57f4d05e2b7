"""The recipe of a network on images: what a run reads and builds, and the trained network."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.files import require_folder
from perturbgen.images import bbbc021
from perturbgen.images.fields import read_field
from perturbgen.images.network.fields import Fields, Name, Vocabulary
from perturbgen.images.network.settings import ImageSettings
from perturbgen.train.card import Card
from perturbgen.train.checkpoint import load_state
from perturbgen.train.run import Recipe, Trained, require_unseen

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor

    from perturbgen.images.network.feed import ImageFeed, Kind
    from perturbgen.images.network.model import ImageClassifier
    from perturbgen.images.network.predict import ImageBoard
    from perturbgen.train.loop import Training

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _ImageCard(Card):
    """What the numbers of a trained network mean."""

    FILE: ClassVar[str] = "images.json"
    FORMAT: ClassVar[int] = 2
    DESCRIBES: ClassVar[str] = "a network on images"
    MEMBERS: ClassVar[str] = "fields.parquet"
    MEMBER: ClassVar[str] = "site_id"

    classes: tuple[Name, ...]
    cells: tuple[str, ...]
    experiments: tuple[str, ...]
    channels: tuple[int, ...]
    image: Kind  # of every image
    label: str  # the column that classes are names in

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The card that ``to_json`` described."""
        label = values.pop("label")
        return cls(**{name: tuple(names) for name, names in values.items()}, label=label)

    def vocabulary(self) -> Vocabulary:
        """The names of labels."""
        return Vocabulary(self.classes, self.cells, self.experiments, self.label)


class ImageRun(Trained[ImageSettings, "ImageClassifier", _ImageCard]):
    """A trained network, in evaluation mode, and what its inputs are."""

    def feed(self, fields: Fields) -> ImageFeed:
        """Fields as the network reads them, on the device it lies on."""
        if fields.channels != self.card.channels:
            raise SchemaError(
                f"channels {', '.join(map(str, fields.channels))}",
                expected=f"{', '.join(map(str, self.card.channels))}, as {self.path} has",
            )
        if fields.label != self.card.label:
            raise SchemaError(
                f"images whose labels are {fields.label}",
                expected=f"{self.card.label}, which {self.path} tells apart",
            )
        from perturbgen.images.network.feed import ImageFeed

        words, device = self.card.vocabulary(), self.model.weights.device
        return ImageFeed(fields, words, self.settings, kind=self.card.image, device=device)

    def untrained(self) -> ImageRun:
        """The same network with the weights it began with."""
        network = _network_of(self.settings, self.card).eval()
        return ImageRun(self.path, self.settings, network, self.card)


class _ImageRecipe(Recipe[ImageSettings, Fields, _ImageCard, ImageRun]):
    settings, card, trained = ImageSettings, _ImageCard, ImageRun
    # how fast images are decoded changes no number
    unit, may_change = "images", ("data.workers", "data.ahead")

    def read(self, settings: ImageSettings) -> Fields:
        return Fields.read(settings.data)

    def sources(self, settings: ImageSettings) -> Iterable[Path]:
        # tables stand for the images, which are tens of gigabytes
        names = ("metadata.csv", "train.csv", bbbc021.IMAGES, bbbc021.MECHANISMS)
        return [
            path for path in sorted(settings.data.path.iterdir()) if path.name.startswith(names)
        ]

    def describe(self, settings: ImageSettings, data: Fields) -> _ImageCard:
        from perturbgen.images.network.feed import ImageFeed

        train = data.part("train")
        if not len(train):
            raise SchemaError(
                f"no field of {settings.data.path} is left to train on",
                cause="every experiment or plate is withheld for validation or testing",
            )
        start = settings.model.start
        if start is None:
            classes = tuple(data.class_names(controls=settings.data.controls))
            cells = tuple(sorted(train.table["cell_type"].unique()))
        else:  # whose numbers of classes and cell types stay
            before = _ImageCard.read(require_folder(start, "run to start from"))
            if before.label != data.label:
                raise ConfigError(
                    f"model.start {start} tells {before.label} apart, these images {data.label}"
                )
            _require_unseen(start, data.table)
            classes, cells = before.classes, before.cells
        # Size and depth of the first training field, which all others must have.
        image = ImageFeed.kind_of(read_field(train.files[0], list(train.channels)))
        experiments = tuple(sorted(train.table["experiment"].unique()))
        return _ImageCard(classes, cells, experiments, data.channels, image, data.label)

    def members(self, data: Fields) -> pd.DataFrame:
        return data.table

    def assemble(
        self, run: Path, settings: ImageSettings, data: Fields, fabric: Fabric
    ) -> Training:
        from perturbgen.images.network.feed import ImageFeed
        from perturbgen.images.network.predict import Predictions
        from perturbgen.train.loop import Training
        from perturbgen.train.settings import adamw

        card, rates = _ImageCard.read(run), settings.training
        words, device = card.vocabulary(), fabric.device
        train, validation = (
            ImageFeed(data.part(part), words, settings, kind=card.image, device=device)
            for part in ("train", "validation")
        )
        model = _network_of(settings, card, train)
        _require_trainable(model, train, card)
        judged = bool((validation.codes["label"] >= 0).any())
        if not judged:
            what = "no field to validate on: the last epochs decide by what they were trained on"
            log.warning(what)

        def judge(trained: Any) -> dict[str, float]:
            return Predictions.of(trained, validation, settings.model.statistics).numbers()

        optimisers = [adamw((model.parameters(), rates.learning_rate, rates.weight_decay))]
        judge_if_any = judge if judged else None
        return Training(run, settings, train, validation, model, optimisers, fabric, judge_if_any)

    def board(self, run: Path, settings: ImageSettings, epoch: int) -> ImageBoard:
        from perturbgen.images.network.predict import ImageBoard

        return ImageBoard(run, settings, epoch=epoch)

    def blank(self, run: Path, settings: ImageSettings, card: _ImageCard) -> ImageClassifier:
        return _network_of(settings, card)


IMAGES = _ImageRecipe()


def _require_unseen(start: Path, table: pd.DataFrame) -> None:
    """What fields of other parts have, and none of the training part, was not trained on before."""
    here = table["part"] == "train"
    withheld = {
        name: set(table.loc[~here, name].dropna()) - set(table.loc[here, name])
        for name in ("compound", "experiment", "site_id")
        if name in table
    }

    def trained_on(run: Path) -> tuple[Mapping[str, Iterable[Any]], Path | None]:
        fields = _ImageCard.read_members(run).reset_index()
        train = fields[fields["part"] == "train"]
        before = ImageSettings.load(run / "config.toml").model.start
        if before is not None and not before.is_dir():
            what = "%s began with %s, which is gone: what that was trained on is not known"
            log.warning(what, run, before)
            before = None
        return {name: train[name] for name in withheld}, before

    fix = "withhold the same in both runs: data.compounds, data.validation and data.split as "
    require_unseen(start, withheld, trained_on, fix=f"{fix}the start has")


def _require_trainable(model: ImageClassifier, train: ImageFeed, card: _ImageCard) -> None:
    """Every batch can be normalised, and images are large enough for the backbone."""
    import torch

    alone = train.alone(train.plan(0))
    if alone:
        raise ConfigError(
            f"a batch of {shorten(alone)} holds a single image, which has no statistics to be "
            "normalised by",
            expected="two or more",
            fix="a larger training.batch_size, or training.one_experiment = false",
        )
    height, width = (size // train.settings.data.shrink for size in card.image[:2])
    # in training the normalisation would learn from these zeros
    model.eval()
    images, cells = torch.zeros(2, len(card.channels), height, width), torch.tensor([0, 0])
    try:
        with torch.no_grad():
            model.embed(images, cells)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"images of {height} x {width} pixels are too small for this backbone: {error}",
            fix="a smaller data.shrink, fewer model.widths, or another model.backbone",
        ) from None
    model.train()


def _network_of(
    settings: ImageSettings, card: _ImageCard, train: ImageFeed | None = None
) -> ImageClassifier:
    """The network, its weights drawn from the seed.

    With a feed to train on they are then filled from the file or the run it begins with.
    """
    import torch

    from perturbgen.images.network.model import ImageClassifier

    chosen, weights = settings.model, None
    if chosen.class_weights and train is not None:
        weights = _balanced(train.codes["label"], len(card.classes))
    torch.manual_seed(settings.seed)
    model = ImageClassifier(
        chosen, card.vocabulary(), len(card.channels), augment=settings.augment, weights=weights
    )
    if train is None:
        return model
    if chosen.weights is not None:
        model.load_backbone(chosen.weights)
    if chosen.start is not None:
        _begin_with(model, chosen.start)
    return model


def _balanced(label: Tensor, classes: int) -> Tensor:
    """n / (K n_c) for each class of labels (n,); 0 for a class that never occurs."""
    import torch

    count = torch.bincount(label[label >= 0], minlength=classes).float()
    return torch.where(
        count > 0, count.sum() / (classes * count.clamp(min=1)), torch.zeros(classes)
    )


def _begin_with(model: ImageClassifier, start: Path) -> None:
    """The best state of another run, but for what belongs to its experiments and class sizes."""
    state = load_state(start, "best")["model"]
    shapes = {
        name: value.shape
        for name, value in model.state_dict().items()
        if not name.startswith(("domain.", "weights"))
    }
    same = {name for name, value in state.items() if value.shape == shapes.get(name)}
    if wrong := [name for name in shapes if name not in same]:
        raise ConfigError(
            f"model.start {start} has other parameters: {shorten(wrong)}",
            expected="the same backbone, adapter, embedding and channels",
        )
    model.load_state_dict({name: state[name] for name in shapes}, strict=False)
