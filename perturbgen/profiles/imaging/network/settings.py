"""The settings of a network on images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from perturbgen.config import Settings
from perturbgen.train.settings import LoopSettings, LoopTraining, changed

Count = Annotated[int, Field(ge=1)]
Spread = Annotated[float, Field(ge=0)]
Statistics = Literal["running", "batch", "own"]


class ImageData(Settings):
    """Which images, and which of them are trained on."""

    path: Path  # a folder of RxRx1: metadata and images
    split: Literal["kaggle", "wilds"] = "kaggle"
    validation: tuple[str, ...] = ()  # experiments; by default the last training one of each cell type that has two
    cell_types: tuple[str, ...] = ()  # all by default; one for fine-tuning
    controls: bool = False  # controls are classes, too
    shrink: Count = 1  # average squares of so many pixels
    workers: Count = 2  # threads that decode
    ahead: Count = 2  # batches that are decoded before they are asked for


class AugmentSettings(Settings):
    """What is done to training images at random."""

    turn: bool = True  # flips, and quarter turns of square images
    gain: Spread = 0.0  # SD of a channel's factor about 1
    offset: Spread = 0.0  # SD of what is added to a channel, in units of full brightness
    noise: Spread = 0.0  # SD of what is added to a pixel


class ImageModelSettings(Settings):
    """A stem for the channels, a backbone, a neck, a head."""

    backbone: Literal["small", "resnet18", "resnet34", "resnet50", "DenseNet121", "DenseNet161"] = "small"
    widths: tuple[Count, ...] = (16, 32, 64)  # of the small backbone
    adapter: Literal["stem", "mix", "colours"] = "stem"
    embedding: Count = 64
    head: Literal["softmax", "cosine", "cosface", "arcface"] = "softmax"
    margin: Spread = 0.25  # of cosface (a difference of cosines) and arcface (an angle)
    cell_type: bool = True  # the cell type is appended to the features
    class_weights: bool = False  # rare classes count as much as frequent ones
    penalty: Literal["none", "coral", "dann"] = "none"  # its weight is that of [annealing]
    statistics: Statistics = "batch"  # of batch normalisation in evaluation
    start: Path | None = None  # a run whose best weights are begun with


class ImageTraining(LoopTraining):
    """How long, how fast, in which batches."""

    one_experiment: bool = True  # a batch holds images of one experiment


class ImageSettings(LoopSettings):
    """A run of a network on images."""

    data: ImageData
    training: ImageTraining = ImageTraining()
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
        if self.model.head in ("softmax", "cosine") and changed(self.model, {"margin"}):
            raise ValueError(f"'margin' is of cosface and arcface, not of {self.model.head}")
        if self.model.backbone != "small" and changed(self.model, {"widths"}):
            raise ValueError(f"'widths' are of the small backbone, not of {self.model.backbone}")
        return self
