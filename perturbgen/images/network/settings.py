"""The settings of a network on images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from perturbgen.core.config import Chance, Count, NonNegative, Settings, Share
from perturbgen.core.errors import SchemaError, suggest
from perturbgen.train.settings import LoopSettings, LoopTraining

Statistics = Literal["running", "batch", "own"]


class _CompoundData(Settings):
    """What a network learns of BBBC021, and which compounds it never sees."""

    label: Literal["treatment", "compound", "moa"] = "treatment"  # what is told apart
    batch: Literal["plate", "week"] = "plate"  # what is normalised by itself
    folds: Annotated[int, Field(ge=2)] = 4  # groups of compounds, mechanisms spread
    fold: Annotated[int, Field(ge=0)] | None = None  # the group that is withheld; none by default
    seed: Annotated[int, Field(ge=0)] = 0  # of the groups

    @model_validator(mode="after")
    def withheld(self) -> _CompoundData:
        """There is such a group; mechanisms are tested on compounds that were not trained on."""
        if self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} of {self.folds}: the first is 0")
        if self.label == "moa" and (self.fold is None or self.folds < 3):
            raise ValueError(
                "mechanisms are learned from some compounds, validated on others and tested on a "
                "third group: set data.compounds.fold, and folds to 3 or more"
            )
        if self.fold is None and self.changed({"folds", "seed"}):
            raise ValueError(
                "'folds' and 'seed' have no effect without 'fold', the group that is withheld"
            )
        return self


class ImageData(Settings):
    """Which images, and which of them are trained on."""

    path: Path  # a folder of RxRx1 or BBBC021: tables and images
    split: Literal["kaggle", "wilds"] = "kaggle"  # of RxRx1
    # RxRx1: experiments; by default the last training one of each cell type that has two.
    # BBBC021: plates; by default those of the last replicate.
    validation: tuple[str, ...] = ()
    cell_types: tuple[str, ...] = ()  # all by default; one for fine-tuning
    controls: bool = False  # controls are classes, too
    compounds: _CompoundData = _CompoundData()  # of BBBC021
    shrink: Count = 1  # average squares of so many pixels
    standardise: bool = False  # each channel of each image to mean 0 and SD 1, as WILDS does
    workers: Count = 2  # threads that decode
    ahead: Count = 2  # batches that are decoded before they are asked for

    def named(self, known: Iterable[str], what: str) -> list[str]:
        """The experiments or plates (``what``) of ``validation``, all of which must be known."""
        names = list(map(str, known))
        if unknown := [name for name in self.validation if name not in names]:
            raise SchemaError(
                f"no {what} {unknown[0]!r}",
                expected=f"{what}s to validate on",
                fix=suggest(unknown[0], names),
            )
        return list(self.validation)


class AugmentSettings(Settings):
    """What is done to training images at random."""

    turn: bool = True  # flips, and quarter turns of square images
    gain: NonNegative = 0.0  # SD of a channel's factor about 1
    offset: NonNegative = 0.0  # SD of what is added to a channel, in units of full brightness
    noise: NonNegative = 0.0  # SD of what is added to a pixel
    zoom: Chance = 0.0  # up to which share of its width an image loses before it is enlarged again
    cutmix: Share = 0.0  # how often a rectangle of another image of the batch lies in one


class ImageModelSettings(Settings):
    """A stem for the channels, a backbone, a neck, a head."""

    backbone: Literal["small", "resnet18", "resnet34", "resnet50", "DenseNet121", "DenseNet161"] = (
        "small"
    )
    # The backbone to begin with: a state file, its parts named as by torchvision or MONAI.
    weights: Path | None = None
    widths: tuple[Count, ...] = (16, 32, 64)  # of the small backbone
    adapter: Literal["stem", "mix", "colours"] = "stem"
    embedding: Count = 64
    head: Literal["softmax", "cosine", "cosface", "arcface"] = "softmax"
    margin: NonNegative = 0.25  # of cosface (a difference of cosines) and arcface (an angle)
    cell_type: bool = True  # the cell type is appended to the features
    class_weights: bool = False  # rare classes count as much as frequent ones
    penalty: Literal["none", "coral", "dann"] = "none"  # its weight is that of [annealing]
    statistics: Statistics = "batch"  # of batch normalisation in evaluation
    turns: bool = False  # in evaluation: the mean answer over all flips and turns of an image
    # A run whose best weights are begun with; it may not have seen what is withheld here.
    start: Path | None = None


class _ImageTraining(LoopTraining):
    """How long, how fast, in which batches."""

    # A batch holds images of one experiment, whose stain batch normalisation then takes away: on
    # the fixture of RxRx1 .97 are right, of mixed batches .82 to .88, with running statistics .36.
    one_experiment: bool = True


class ImageSettings(LoopSettings):
    """A run of a network on images."""

    data: ImageData
    training: _ImageTraining = _ImageTraining()
    augment: AugmentSettings = AugmentSettings()
    model: ImageModelSettings = ImageModelSettings()

    @model_validator(mode="after")
    def settings_agree(self) -> ImageSettings:
        """A setting that another one takes the effect of is refused."""
        if self.training.one_experiment and self.model.penalty != "none":
            raise ValueError(
                f"penalty {self.model.penalty!r} compares experiments within a batch, "
                "so it needs training.one_experiment = false"
            )
        if self.model.head in ("softmax", "cosine") and self.model.changed({"margin"}):
            raise ValueError(f"'margin' is of cosface and arcface, not of {self.model.head}")
        if self.model.backbone != "small" and self.model.changed({"widths"}):
            raise ValueError(f"'widths' are of the small backbone, not of {self.model.backbone}")
        if self.model.weights is not None and self.model.start is not None:
            raise ValueError("'weights' has no effect beside 'start', whose backbone is begun with")
        if self.model.adapter == "colours" and self.data.standardise:
            raise ValueError(
                "the colours of 'colours' are those of brightness, which 'standardise' takes away"
            )
        if self.augment.cutmix and not self.training.one_experiment:
            raise ValueError(
                "cutmix joins images of one experiment, so it needs training.one_experiment = true"
            )
        return self
