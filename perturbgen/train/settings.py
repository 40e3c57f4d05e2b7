"""What a run can be told in ``config.toml``, and the schedules and optimiser that follow."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from perturbgen.core.config import Chance, Count, NonNegative, Positive, Settings
from perturbgen.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    import torch

    from perturbgen.data import CountStore

log = logging.getLogger(__name__)

Widths = Annotated[tuple[Count, ...], Field(min_length=1)]


class CellData(Settings):
    """Which cells."""

    path: Path  # an h5ad file or zarr folder of raw counts, or a folder of competition files
    layer: str | None = None  # where the raw counts are, if not in X; "raw" is raw.X
    columns: Path | None = None  # a column map (TOML), where the file has other names than ours
    on_disk: bool = False  # read batches from the file instead of memory
    split: Path | None = None  # a split file; its parts "train" and, if there is one, "validation"
    # Share of the (training) cells; 0.1 where there is no split file, none of those that one names.
    validation: Chance | None = None

    def open(self) -> CountStore:
        """The counts, checked to be raw, with their obs."""
        from perturbgen.core.h5ad import open_h5ad
        from perturbgen.data import CountStore, read_competition, read_h5ad, take_layer

        if self.on_disk or self.path.suffix == ".zarr":
            store = self._open_on_disk()
            return store if self.on_disk else store.to("cpu")
        if self.path.is_dir():
            if self.layer:
                raise InputError(
                    f"layer {self.layer!r}: {self.path} is a folder of competition files, "
                    "which has no layers"
                )
            return CountStore.from_adata(read_competition(self.path))
        if self.columns is not None:
            named = read_h5ad(self.path, self.columns, layer=self.layer, checked=False)
            return CountStore.from_adata(named)
        return CountStore.from_adata(take_layer(open_h5ad(self.path), self.layer, self.path))

    def _open_on_disk(self) -> CountStore:
        from perturbgen.data import CountStore, genes_of, our_obs

        if self.columns is None:
            return CountStore.open(self.path, layer=self.layer)
        genes, layer = genes_of(self.columns, self.path)
        store = CountStore.open(self.path, layer=self.layer or layer)
        obs = our_obs(store.obs, self.columns, self.path)
        return replace(store, obs=obs, var_names=store.var_names if genes is None else genes)


class _ConditionSettings(Settings):
    """How one column of obs conditions the model."""

    # How a category becomes numbers. "label": not told to the model, for a DGD's components and
    # supervised dimensions. "combination": A+B has the features of A and of B, so that one never
    # measured has some, too.
    encoding: Literal["onehot", "embedding", "descriptors", "combination", "label"] = "onehot"
    control: str | None = None  # of a "combination": the part that is nothing, as in A+ctrl
    width: Count = 16  # features of an embedding, or of mapped descriptors
    dropout: Chance = 0.0  # how often a training cell's category is withheld
    # A table (csv or parquet) with a row per category: SMILES in "smiles", else numbers.
    descriptors: Path | None = None
    # Encode categories that no cell of the file has as "unknown" instead of refusing them. It is
    # learned only from training cells that are called "unknown"; where there are none, its weights
    # stay as they were drawn. ``dropout`` trains another vector, all zeros, which no category gets.
    unknown: bool = False


class _DecoderSettings(Settings):
    """The decoder that VAE and DGD share."""

    hidden: Widths = (256, 1024)  # widths of the layers before the genes
    scaling: Literal["total", "max"] = "total"  # what a cell's means are multiplied by
    dispersion: Literal["gene", "gene-category", "predicted"] = "gene"  # what it may differ by
    dispersion_by: str | None = None  # the condition, for "gene-category"
    additive: bool = False  # conditions also act on each gene's log mean directly
    layer_norm: bool = True  # after every hidden layer
    dropout: Chance = 0.0  # of hidden units


_BUILT_IN = ("nbvae", "dgd", "gaussian_vae")

# Settings that one family of models reads and the other would silently ignore.
_OF_VAES = {"encoder", "encoder_input", "encoder_dropout"}
_OF_DGDS = {
    "components",
    "components_by",
    "covariate_space",
    "covariance",
    "radius",
    "hardness",
    "component_sd",
    "concentration",
    "prior_weight",
    "inner_steps",
}


class _ModelSettings(Settings):
    """Which model; settings of the other models are refused."""

    kind: str = "nbvae"  # nbvae, dgd, gaussian_vae, or an extension's name or module:Class
    settings: dict[str, Any] | None = None  # of an extension
    latent: Count = 10  # dimensions of the latent space
    decoder: _DecoderSettings = _DecoderSettings()
    encoder: Widths = (256,)  # VAEs: widths of its hidden layers
    encoder_input: Literal["log1p", "raw"] = "log1p"  # nbvae: what the encoder sees of the counts
    encoder_dropout: Chance = 0.0  # VAEs: of hidden units

    components: Count = 1  # dgd, as all that follow: Gaussians of the prior
    components_by: str | None = None  # one component for each category of this condition
    covariate_space: str | None = None  # two more latent dimensions, supervised by this condition
    covariance: Literal["diagonal", "isotropic"] = "diagonal"  # of a component
    radius: Positive = 2.0  # of the ball in which the components' means lie
    hardness: Positive = 5.0  # of that ball's edge
    # Where the components' SDs start, and the centre of their prior; 0.2 radius/components.
    component_sd: Positive | None = None
    concentration: Positive = 1.0  # Dirichlet's, of the components' weights
    # The published code counts the mixture's prior once a cell ("per_sample"); the model says once.
    prior_weight: Positive | Literal["per_sample"] = 1.0
    inner_steps: Count = 10  # of a validation cell's representation, per epoch

    @field_validator("settings")
    @classmethod
    def of_extension(
        cls, given: dict[str, Any] | None, about: ValidationInfo
    ) -> dict[str, Any] | None:
        """Resolved, so that a run keeps what a later version of the extension may change."""
        kind = about.data.get("kind", "")
        if kind in _BUILT_IN:
            if given:
                raise ValueError(f"the settings of a {kind} stand in [model] itself")
            return None
        from perturbgen.models import own_settings

        return own_settings(kind, given or {})

    @model_validator(mode="after")
    def of_this_kind(self) -> _ModelSettings:
        """A setting that this kind of model would ignore is an error."""
        if self.kind not in _BUILT_IN:  # which of them it reads, only its author knows
            return self
        counts_only = {"encoder_input"} if self.kind == "gaussian_vae" else set()
        foreign = self.changed(_OF_VAES if self.kind == "dgd" else _OF_DGDS | counts_only)
        if foreign:
            raise ValueError(f"{foreign[0]!r} is no setting of a {self.kind}")
        if self.kind == "gaussian_vae":
            plain = _DecoderSettings(hidden=self.decoder.hidden, layer_norm=self.decoder.layer_norm)
            if self.decoder != plain:
                raise ValueError(
                    "the decoder of a gaussian_vae has the settings 'hidden' and 'layer_norm' only"
                )
        if (self.decoder.dispersion == "gene-category") != (self.decoder.dispersion_by is not None):
            raise ValueError(
                "decoder.dispersion 'gene-category' and decoder.dispersion_by go together"
            )
        if self.components_by is not None and self.changed({"components"}):
            raise ValueError(
                "'components' has no effect beside 'components_by', which counts the categories"
            )
        return self


_OLD_WARMUP = 20


class Annealing(Settings):
    """The weight of annealed terms (a VAE's KL): from ``start`` to ``weight`` in a warm-up."""

    shape: Literal["constant", "linear", "cosine", "cyclic"] = "linear"
    start: NonNegative = 0.0  # the weight at first
    weight: Positive = 1.0  # the weight in the end
    # auto: a quarter of the run, 20 epochs at most
    warmup: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    unit: Literal["epochs", "steps"] = "epochs"  # of warmup
    cycles: Count = 4  # of "cyclic": half of each rises, half stays

    @property
    def given(self) -> bool:
        """Whether anything was said of it; 20 was the default that older runs have stored."""
        told = self.changed(set(type(self).model_fields))
        return any(name != "warmup" or self.warmup != _OLD_WARMUP for name in told)


class Stopping(Settings):
    """Stop when, for ``patience`` epochs, the objective has not fallen by over ``min_gain``.

    A fall is measured from the best epoch so far. Epochs of a model's warm-up (``annealing``) may
    become the best one, but do not count as epochs without a fall. The objective is that of the
    validation samples (of the training samples where there are none): the model's terms at their
    full weights, or what the judge of this kind of model says.
    """

    patience: Count | None = 30  # epochs
    min_gain: NonNegative = 0.0  # per sample: nats per cell


class LoopTraining(Settings):
    """How long and how fast, whatever is trained."""

    epochs: Count | Literal["auto"] = 200
    batch_size: Count = 128  # of all devices together
    learning_rate: Positive = 1e-3
    decay: Literal["constant", "cosine"] = "constant"  # of all learning rates over the epochs
    weight_decay: NonNegative = 0.0
    clip_norm: Positive = 1e4  # of the gradient of the objective in nats per sample
    # auto: bfloat16 where the processor or GPU multiplies it in hardware, else float32
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    threads: Count | None = None  # CPU threads; all cores that the process may use by default

    @property
    def length(self) -> int:
        """The number of epochs, once it is known."""
        if self.epochs == "auto":
            raise ConfigError(
                "the number of epochs is not known yet", fix="a number: training.epochs"
            )
        return self.epochs

    def least_epochs(self, settings: LoopSettings) -> int:
        """How many epochs a run of any size has where their number is left to us."""
        return 10


class _CellTraining(LoopTraining):
    """How long, how fast, on what, for a model of counts."""

    # auto: about 30,000 steps, and 10 epochs (a dgd's 50) to 400
    epochs: Count | Literal["auto"] = "auto"
    mixture_rate: Positive = 1e-2  # dgd: learning rate of the prior
    representation_rate: Positive = 1e-2  # dgd: learning rate of the cells' latent points
    resident: bool = True  # keep all counts on the device

    def least_epochs(self, settings: LoopSettings) -> int:
        """A dgd moves each cell's point once an epoch: few epochs would leave them at the start."""
        kind = settings.model.kind if isinstance(settings, RunSettings) else ""
        return 50 if kind == "dgd" else super().least_epochs(settings)


class _BoardSettings(Settings):
    """What TensorBoard is shown."""

    every: Count = 10  # epochs between pictures
    cells: Count = 5000  # at most, in pictures and the projector
    labels: tuple[str, ...] = ()  # obs columns beside the conditions for the projector
    # Of the latent space, at the end, where umap-learn is installed: numba compiles for 25 s, which
    # is longer than many runs.
    umap: bool = False


class LoopSettings(Settings):
    """What the loop reads of any run."""

    name: Annotated[str, Field(min_length=1)] = "run"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    annealing: Annealing = Annealing()
    stopping: Stopping = Stopping()
    training: LoopTraining = LoopTraining()
    board: _BoardSettings = _BoardSettings()

    @property
    def anneals(self) -> bool:
        """Whether the weight of a term rises."""
        return True


class RunSettings(LoopSettings):
    """A training run of a model of counts."""

    data: CellData
    conditions: dict[str, _ConditionSettings] = Field(default_factory=dict)
    model: _ModelSettings = _ModelSettings()
    training: _CellTraining = _CellTraining()

    @classmethod
    def load(cls, path: str | Path | None = None, **options: Any) -> Self:
        """As any settings; files named in the file ``path`` are looked for beside it first."""
        found = super().load(path, **options)
        return found if path is None else found._beside(Path(path).parent)

    def columns_of(self, path: Path) -> Path | None:
        """The column map that a file is read with, if it is the one that is trained on."""
        # realpath says nothing of a link to itself, which opening the file will tell of
        same = os.path.realpath(path) == os.path.realpath(self.data.path)
        return self.data.columns if same else None

    def _beside(self, folder: Path) -> Self:
        """With the paths of files that lie in ``folder``, whatever the working directory is."""

        def near(path: Path | None) -> Path | None:
            # Absolute: the run is asked from other working directories than it was trained in.
            if path is None or not (folder / path).exists():
                return path
            return Path(os.path.abspath(folder / path))

        files = {name: near(getattr(self.data, name)) for name in ("path", "split", "columns")}
        conditions = {
            name: one.model_copy(update={"descriptors": near(one.descriptors)})
            for name, one in self.conditions.items()
        }
        data = self.data.model_copy(update=files)
        return self.model_copy(update={"data": data, "conditions": conditions})

    @property
    def anneals(self) -> bool:
        """Whether the weight of a term rises: a dgd has none of that kind."""
        return self.model.kind != "dgd"

    @model_validator(mode="after")
    def conditions_exist(self) -> RunSettings:
        """Settings that name a condition name one of the run's, and nothing is set in vain."""
        model = self.model
        if model.kind == "dgd" and self.annealing.given:
            raise ValueError("'annealing' weighs a VAE's KL term, and a dgd has none")
        rates = self.training.changed({"mixture_rate", "representation_rate"})
        if model.kind in ("nbvae", "gaussian_vae") and rates:
            raise ValueError(
                f"'training.{rates[0]}' is of a dgd; a {model.kind} has one learning rate"
            )
        for key in (model.components_by, model.covariate_space, model.decoder.dispersion_by):
            if key is not None and key not in self.conditions:
                raise ValueError(f"{key!r} is none of the conditions {list(self.conditions)}")
        for name, condition in self.conditions.items():
            if (condition.descriptors is None) == (condition.encoding == "descriptors"):
                raise ValueError(
                    f"condition {name!r}: encoding 'descriptors' and a file of descriptors "
                    "go together"
                )
            if condition.control is not None and condition.encoding != "combination":
                raise ValueError(f"condition {name!r}: 'control' is of encoding 'combination' only")
            described = condition.descriptors is not None or condition.encoding == "combination"
            if condition.unknown and described:
                raise ValueError(
                    f"condition {name!r}: what has no descriptors cannot be 'unknown'; "
                    "add rows for it"
                )
        return self


@dataclass(frozen=True)
class Schedule:
    """Weights of annealed terms and factors of learning rates: pure functions of the step."""

    settings: LoopSettings
    steps_per_epoch: int

    def weight(self, step: int) -> float:
        """Of annealed terms at a step (0, 1, ...), exactly the full one after the warm-up."""
        annealing, ramp = self.settings.annealing, self._warmup_steps
        if step >= ramp:
            return annealing.weight
        done = step / ramp
        if annealing.shape == "cyclic":
            done = min(1.0, 2 * ((done * annealing.cycles) % 1.0))
        elif annealing.shape == "cosine":
            done = 0.5 - 0.5 * math.cos(math.pi * done)
        return annealing.start + (annealing.weight - annealing.start) * done

    @property
    def _warmup_steps(self) -> int:
        annealing = self.settings.annealing
        if annealing.shape == "constant":
            return 0
        # auto is decided before a run begins; a schedule of its own takes none
        warmup = 0 if annealing.warmup == "auto" else annealing.warmup
        return warmup * (self.steps_per_epoch if annealing.unit == "epochs" else 1)

    @property
    def warmup_epochs(self) -> int:
        """How many epochs begin before the warm-up is over."""
        return math.ceil(self._warmup_steps / self.steps_per_epoch)

    def warn_of_long_warmup(self) -> None:
        """Log a warning where the warm-up outlasts the run."""
        if self.warmup_epochs >= self.settings.training.length:
            log.warning(
                "the KL warm-up takes %d steps, the whole run %d: the full objective would never "
                "be trained; shorten it (annealing.warmup) or train longer (training.epochs)",
                self._warmup_steps,
                self.steps_per_epoch * self.settings.training.length,
            )

    def rate_factor(self, step: int) -> float:
        """What learning rates are multiplied by at a step: 1, or half a cosine from 1 to 0.01."""
        if self.settings.training.decay == "constant":
            return 1.0
        total = self.settings.training.length * self.steps_per_epoch
        return 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(step, total) / total))


def adamw(*groups: tuple[Iterable[torch.nn.Parameter], float, float]) -> torch.optim.Optimizer:
    """AdamW for groups of (parameters, learning rate, weight decay)."""
    import torch

    return torch.optim.AdamW(
        [{"params": list(p), "lr": rate, "weight_decay": decay} for p, rate, decay in groups],
        fused=True,
    )
