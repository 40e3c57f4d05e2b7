"""Everything the training of an embedding can be told, as it stands in ``config.toml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from perturbgen.core.config import Settings
from perturbgen.core.runs import find_run
from perturbgen.train.settings import (
    Chance,
    Count,
    LoopSettings,
    LoopTraining,
    NonNegative,
    Positive,
    Stopping,
    Widths,
)

# Which settings of the encoder each kind reads, under the names that its network gives them.
_OPTIONS: Final[dict[str, tuple[str, ...]]] = {
    "dense": ("depth", "growth"),
    "mlp": ("widths", "dropout"),
    "three_stage": ("width",),
    "soft_ordering": ("channels", "places", "dropout"),
    "tabnet": ("width", "steps"),
}


class ProfileData(Settings):
    """Which profiles, and what makes two of them alike."""

    path: Path  # a folder of l1000 extract, a GCTX or GCT file, or an h5ad
    metadata: Path | None = None  # the table of a GCTX's samples
    label: str = "perturbagen"  # profiles of one come together; parts of a split share none
    # Only these pert_types; else every treatment but positive controls; controls never.
    types: tuple[str, ...] = ()
    least: Count = 2  # profiles that a label needs to be a class
    split: Path | None = None  # a file by sample: train, validation; other parts are left alone
    leakproof: Path | None = None  # a split of the Leak-Proof CMap benchmark: its val and test
    fold: Annotated[int, Field(ge=0)] = 0  # of the benchmark's split
    validation: Chance = 0.1  # share of the labels, where no split is named
    test: Chance = 0.0  # share of the labels that are left for evaluate

    @model_validator(mode="after")
    def one_split(self) -> ProfileData:
        """One way to split."""
        if self.split is not None and self.leakproof is not None:
            raise ValueError("'split' and 'leakproof' are two ways to split")
        if self.leakproof is None and self.changed({"fold"}):
            raise ValueError("'fold' is of a leakproof split")
        if (self.split or self.leakproof) and self.changed({"validation", "test"}):
            raise ValueError(
                "the split says which are withheld; 'validation' and 'test' would be ignored"
            )
        return self


class _EncoderSettings(Settings):
    """The network; settings of the other kinds are refused."""

    kind: Literal["dense", "mlp", "three_stage", "soft_ordering", "tabnet"] = "dense"
    depth: Count = 4
    growth: Count = 128
    widths: Widths = (512, 256)
    width: Count = 256
    channels: Count = 64
    places: Count = 16
    steps: Count = 3
    dropout: Chance = 0.1

    @model_validator(mode="after")
    def of_this_kind(self) -> _EncoderSettings:
        """A setting that this kind would ignore is an error."""
        mine = _OPTIONS[self.kind]
        others = {name for names in _OPTIONS.values() for name in names} - set(mine)
        foreign = self.changed(others)
        if foreign:
            raise ValueError(
                f"{foreign[0]!r} is no setting of a {self.kind} encoder, "
                f"which has {', '.join(mine)}"
            )
        return self

    def options(self) -> dict[str, Any]:
        """The arguments of the network."""
        return {name: getattr(self, name) for name in _OPTIONS[self.kind]}


class _HeadSettings(Settings):
    """The margin softmax (see ``perturbgen.nn.MarginHead``)."""

    kind: Literal["cosface", "arcface", "adacos", "curricular", "poincare"] = "cosface"
    margin: NonNegative = 0.25
    margin_rate: Positive | None = 2e-4  # by which the margin rises in a step
    rare_margin: Positive | None = None  # of the rarest class; the others lie between the two
    easy: bool = False  # arcface: a margin only for rows on the right side already
    scale: Positive | None = None  # at the start; √2 log(classes - 1) by default
    learn_scale: bool = True
    centers: Count = 1  # vectors of a class (sub-center)
    smoothing: Chance = 0.0
    focal: NonNegative = 0.0
    weighting: Literal["none", "inverse", "root", "effective"] = "none"  # of classes, by number
    chunk: Count | None = None  # classes scored at once

    @model_validator(mode="after")
    def of_this_kind(self) -> _HeadSettings:
        """AdaCos has neither margin nor a learned scale."""
        ignored = self.changed({"margin", "margin_rate", "rare_margin", "scale", "learn_scale"})
        if self.kind == "adacos" and ignored:
            raise ValueError(f"{ignored[0]!r}: adacos has no margin and sets its own scale")
        if self.easy and self.kind not in ("arcface", "curricular"):
            raise ValueError("'easy' is of arcface and curricular")
        return self


class ModelSettings(Settings):
    """From a profile to its place."""

    size: Count = 32
    noise: NonNegative = 0.3  # sd of what is added to standardised profiles in training
    clip: Positive | None = 10.0  # of z-scores, before they are standardised
    conditions: tuple[str, ...] = ()  # columns that the network is told: cell_line, dose, time
    encoder: _EncoderSettings = _EncoderSettings()
    head: _HeadSettings = _HeadSettings()


class EmbedTraining(LoopTraining):
    """How long, how fast, in which batches."""

    epochs: Count = 100
    batch_size: Count = 512
    weight_decay: NonNegative = 1e-4
    head_rate: Positive = 1e-2  # learning rate of class vectors and scale
    sampler: Literal["shuffled", "balanced"] = "shuffled"
    per_class: Count = 4  # balanced: profiles of a class in a batch
    resident: bool = True  # all profiles on the device; else read from the memory map
    judged: Count = 10_000  # validation profiles that are ranked after every epoch, at most

    @model_validator(mode="after")
    def whole_classes(self) -> EmbedTraining:
        """A balanced batch holds whole classes."""
        if self.sampler == "shuffled" and self.changed({"per_class"}):
            raise ValueError("'per_class' is of the balanced sampler")
        if self.sampler == "balanced" and self.batch_size % self.per_class:
            raise ValueError(
                f"batches of {self.batch_size} do not hold whole classes of {self.per_class}"
            )
        return self


class EmbedSettings(LoopSettings):
    """A training run of an embedding."""

    name: str = "embedder"
    data: ProfileData
    model: ModelSettings = ModelSettings()
    training: EmbedTraining = EmbedTraining()
    stopping: Stopping = Stopping(patience=20)
    start: Path | None = None  # a run whose encoder this one starts from

    @field_validator("start")
    @classmethod
    def _which_run(cls, start: Path | None) -> Path | None:
        # runs/latest is another run tomorrow: what is stored is what it is today
        return None if start is None else find_run(start)

    @property
    def anneals(self) -> bool:
        """There is one term."""
        return False

    @model_validator(mode="after")
    def nothing_is_annealed(self) -> EmbedSettings:
        """There is one term."""
        if self.annealing.given:
            raise ValueError(
                "'annealing' weighs a VAE's KL term; of an embedding only the margin rises"
            )
        return self
