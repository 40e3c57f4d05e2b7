"""Train a network on images, go on with a run, and read a trained one."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perturbgen.core.config import load_settings
from perturbgen.core.errors import ConfigError, InputError, SchemaError, shorten
from perturbgen.core.files import atomic_path, require_file, require_folder, require_writable
from perturbgen.core.runs import create_run, file_hash
from perturbgen.core.tables import read_frame
from perturbgen.images import bbbc021
from perturbgen.images.fields import read_field
from perturbgen.images.network.fields import Fields, Name, class_names, read_fields
from perturbgen.images.network.settings import ImageSettings
from perturbgen.train.launch import MAY_CHANGE, carry_out, keep_settings, launch, settings_to_resume

if TYPE_CHECKING:
    import pandas as pd
    from lightning_fabric import Fabric

    from perturbgen.images.network.feed import ImageFeed, Kind
    from perturbgen.images.network.fields import Vocabulary
    from perturbgen.images.network.model import ImageClassifier
    from perturbgen.models.base import Trainable
    from perturbgen.train.loop import Training

log = logging.getLogger(__name__)

CARD = "images.json"
_FORMAT = 2


@dataclass(frozen=True)
class _ImageCard:
    """What the numbers of a trained network mean."""

    classes: tuple[Name, ...]
    cells: tuple[str, ...]
    experiments: tuple[str, ...]
    channels: tuple[int, ...]
    image: Kind  # of every image
    label: str  # the column that classes are names in

    def write(self, run: Path) -> None:
        """Save as ``images.json``."""
        with atomic_path(run / CARD) as part:
            part.write_text(json.dumps({"format": _FORMAT, **asdict(self)}, indent=1))

    @classmethod
    def read(cls, run: Path) -> _ImageCard:
        """The card of a run."""
        path = require_file(run / CARD, "description of a network on images")
        try:
            state = json.loads(path.read_text())
            version, label = state.pop("format"), state.pop("label", "")
            card = cls(**{name: tuple(values) for name, values in state.items()}, label=label)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} does not describe a network: {error!r}", fix="train again"
            ) from None
        if version != _FORMAT:
            raise InputError(f"{path} has format {version}", expected=f"format {_FORMAT}")
        return card

    def vocabulary(self) -> Vocabulary:
        """The names of labels."""
        from perturbgen.images.network.fields import Vocabulary

        return Vocabulary(self.classes, self.cells, self.experiments, self.label)


@dataclass(frozen=True, eq=False)
class ImageRun:
    """A trained network, in evaluation mode, and what its inputs are."""

    path: Path
    settings: ImageSettings
    card: _ImageCard
    model: ImageClassifier

    def feed(self, fields: Fields) -> ImageFeed:
        """Fields as the network reads them, on the device it lies on."""
        if fields.channels != self.card.channels:
            raise SchemaError(
                f"channels {_listing(fields.channels)}",
                expected=f"{_listing(self.card.channels)}, as {self.path} has",
            )
        if fields.label != self.card.label:
            raise SchemaError(
                f"images whose labels are {fields.label}",
                expected=f"{self.card.label}, which {self.path} tells apart",
            )
        return _make_feed(fields, self.settings, self.card, device=str(self.model.weights.device))


def _listing(channels: tuple[int, ...]) -> str:
    """Channels as text."""
    return ", ".join(map(str, channels))


def train(
    settings: ImageSettings,
    *,
    runs: Path = Path("runs"),
    devices: int = 1,
    accelerator: str = "auto",
) -> Path:
    """Train from the first step; returns the run directory."""
    require_writable(runs / "run")
    fabric = launch(settings.training, devices=devices, accelerator=accelerator)
    fields = read_fields(settings.data)
    card = _describe(fields, settings)
    run = runs
    if fabric.is_global_zero:
        names = ("metadata.csv", "train.csv", bbbc021.IMAGES, bbbc021.MECHANISMS)
        tables = [
            path for path in sorted(settings.data.path.iterdir()) if path.name.startswith(names)
        ]
        hashes = {str(path): file_hash(path) for path in tables}
        run = create_run(runs, settings.name, settings, seed=settings.seed, data=hashes)
        card.write(run)
        fields.table.to_parquet(run / "fields.parquet", index=False)
    return _fit(fabric.broadcast(run), settings, fields, card, fabric, resumed=False)


def resume(run: Path, overrides: list[str], *, devices: int = 1, accelerator: str = "auto") -> Path:
    """Go on where the last checkpoint stands."""
    may_change = (*MAY_CHANGE, "data.workers", "data.ahead")
    settings = settings_to_resume(ImageSettings, run, overrides, may_change=may_change)
    fabric = launch(settings.training, devices=devices, accelerator=accelerator)
    fields, before = read_fields(settings.data), read_list(run)
    if not fields.table["site_id"].equals(before["site_id"]) or not fields.table["part"].equals(
        before["part"]
    ):
        raise SchemaError(
            f"the images are not those that {run} was trained on ({len(fields):,} fields, then {len(before):,})",
            fix="name the same folder, or train anew",
        )
    if overrides and fabric.is_global_zero:
        keep_settings(run, settings)
    return _fit(run, settings, fields, _ImageCard.read(run), fabric, resumed=True)


def read_list(run: Path) -> pd.DataFrame:
    """The fields of a run and the parts they were in."""
    return read_frame(run / "fields.parquet")


def _describe(fields: Fields, settings: ImageSettings) -> _ImageCard:
    """The card of a run about to start; one that starts from another keeps its classes and cell types."""
    train = fields.part("train").table
    if not len(train):
        raise SchemaError(
            f"no field of {settings.data.path} is left to train on",
            cause="every experiment or plate is withheld for validation or testing",
        )
    if settings.model.start is not None:
        before = _ImageCard.read(require_folder(settings.model.start, "run to start from"))
        if before.label != fields.label:
            raise ConfigError(
                f"model.start {settings.model.start} tells {before.label} apart, these images {fields.label}"
            )
        _require_unseen(settings.model.start, fields)
        experiments = tuple(sorted(train["experiment"].unique()))
        return _ImageCard(
            before.classes,
            before.cells,
            experiments,
            fields.channels,
            _image_of(fields),
            fields.label,
        )
    classes = class_names(fields, controls=settings.data.controls)
    cells, experiments = (
        tuple(sorted(train[name].unique())) for name in ("cell_type", "experiment")
    )
    return _ImageCard(
        tuple(classes), cells, experiments, fields.channels, _image_of(fields), fields.label
    )


def _require_unseen(start: Path, fields: Fields) -> None:
    """No compound, experiment or field that is withheld here was trained on by the run to start from, or one before it.

    Withheld is what fields of the other parts have and none of the training part.
    """
    here = fields.table["part"] == "train"
    seen = _trained_on(start)
    for name in fields.table.columns.intersection(["compound", "experiment", "site_id"]):
        withheld = set(fields.table.loc[~here, name].dropna()) - set(fields.table.loc[here, name])
        leaked = sorted(withheld & set(seen[name]))
        if leaked:
            raise ConfigError(
                f"model.start {start} was trained on {len(leaked)} of {name} that are withheld here: {shorten(leaked)}",
                expected="a start that has not seen what validation and test ask about",
                fix="withhold the same in both runs: data.compounds, data.validation and data.split as the start has",
            )


def _trained_on(run: Path) -> pd.DataFrame:
    """The fields that a run was trained on, and those of the runs before it, as far as they are there."""
    import pandas as pd

    table = read_list(run)
    own, before = (
        table[table["part"] == "train"],
        load_settings(ImageSettings, run / "config.toml").model.start,
    )
    if before is None:
        return own
    if not before.is_dir():
        log.warning(
            "%s began with %s, which is gone: what that was trained on is not known", run, before
        )
        return own
    return pd.concat([own, _trained_on(before)], ignore_index=True)


def _image_of(fields: Fields) -> Kind:
    """Size and depth of the first training field, which all others must have."""
    from perturbgen.images.network.feed import kind_of_image

    return kind_of_image(read_field(fields.part("train").files[0], list(fields.channels)))


def _fit(
    run: Path,
    settings: ImageSettings,
    fields: Fields,
    card: _ImageCard,
    fabric: Fabric,
    *,
    resumed: bool,
) -> Path:
    """Build the network and train it."""
    from perturbgen.images.network.board import ImageBoard

    training = _assemble(run, settings, fields, card, fabric)
    return carry_out(training, lambda step: ImageBoard(run, settings, step=step), resumed=resumed)


def _assemble(
    run: Path, settings: ImageSettings, fields: Fields, card: _ImageCard, fabric: Fabric
) -> Training:
    """The loop with the feeds, the network, its optimiser and its judge."""
    from perturbgen.images.network.predict import predict, validation_numbers
    from perturbgen.train.loop import Training
    from perturbgen.train.schedules import adamw

    train, validation = (
        _make_feed(fields.part(part), settings, card, device=str(fabric.device))
        for part in ("train", "validation")
    )
    model = build(settings, card, label=train.codes["label"])
    _require_trainable(model, train, card)
    rates = settings.training

    def judge(trained: Trainable) -> dict[str, float]:
        return validation_numbers(predict(trained, validation, settings.model.statistics))  # type: ignore[arg-type]

    if not (validation.codes["label"] >= 0).any():
        log.warning("no field to validate on: the last epochs decide by what they were trained on")
    return Training(
        run,
        settings,
        train=train,
        validation=validation,
        model=model,
        fabric=fabric,
        optimisers=[adamw((model.parameters(), rates.learning_rate, rates.weight_decay))],
        judge=judge if (validation.codes["label"] >= 0).any() else None,
    )


def _require_trainable(model: ImageClassifier, train: ImageFeed, card: _ImageCard) -> None:
    """Every batch can be normalised, and images are large enough for the backbone."""
    import torch

    alone = train.alone(train.plan(0))
    if alone:
        raise ConfigError(
            f"a batch of {shorten(alone)} holds a single image, which has no statistics to be normalised by",
            expected="two or more",
            fix="a larger training.batch_size, or training.one_experiment = false",
        )
    height, width = (size // train.shrink for size in card.image[:2])
    model.eval()
    try:
        with torch.no_grad():
            model.embed(
                torch.zeros(2, len(card.channels), height, width), torch.zeros(2, dtype=torch.long)
            )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"images of {height} x {width} pixels are too small for this backbone: {error}",
            fix="a smaller data.shrink, fewer model.widths, or another model.backbone",
        ) from None
    model.train()


def _make_feed(
    fields: Fields, settings: ImageSettings, card: _ImageCard, *, device: str = "cpu"
) -> ImageFeed:
    """Fields as a run's settings want them read."""
    from perturbgen.images.network.feed import ImageFeed

    data, training = settings.data, settings.training
    return ImageFeed(
        fields,
        card.vocabulary(),
        training.batch_size,
        seed=settings.seed,
        one_experiment=training.one_experiment,
        shrink=data.shrink,
        standardise=data.standardise,
        kind=card.image,
        workers=data.workers,
        ahead=data.ahead,
        device=device,
    )


def build(settings: ImageSettings, card: _ImageCard, *, label: Any = None) -> ImageClassifier:
    """The network, its weights drawn from the seed or taken from the run it starts from."""
    import torch

    from perturbgen.images.network.model import ImageClassifier, balanced, load_backbone
    from perturbgen.train.state import load_state

    weights = (
        balanced(label, len(card.classes))
        if settings.model.class_weights and label is not None
        else None
    )
    torch.manual_seed(settings.seed)
    model = ImageClassifier(
        settings.model,
        card.vocabulary(),
        len(card.channels),
        augment=settings.augment,
        weights=weights,
    )
    if label is None:
        return model
    if settings.model.weights is not None:
        load_backbone(model.backbone, settings.model.weights)
    if settings.model.start is None:
        return model
    state = load_state(settings.model.start, "best")["model"]
    shapes = {
        name: value.shape
        for name, value in model.state_dict().items()
        if not name.startswith(("domain.", "weights"))
    }
    wrong = [
        name for name, shape in shapes.items() if name not in state or state[name].shape != shape
    ]
    if wrong:
        raise ConfigError(
            f"model.start {settings.model.start} has other parameters: {shorten(wrong)}",
            expected="the same backbone, adapter, embedding and channels",
        )
    model.load_state_dict({name: state[name] for name in shapes}, strict=False)
    return model


def load_run(path: str | Path, *, device: str = "cpu") -> ImageRun:
    """A trained network, its best state."""
    from perturbgen.train.state import load_parameters, load_state

    path = require_folder(path, "run directory")
    settings, card = load_settings(ImageSettings, path / "config.toml"), _ImageCard.read(path)
    model = build(settings, card)
    load_parameters(model, load_state(path, "best")["model"], path)
    return ImageRun(path, settings, card, model.to(device).eval())
