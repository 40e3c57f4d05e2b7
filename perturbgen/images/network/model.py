"""A classifier of images: a stem for the channels, a backbone, the cell type, a neck, a head.

Its backbone may begin with weights that were learned elsewhere. Against batch effects stand
penalties on features that tell batches apart: CORAL (Sun and Saenko 2016) punishes differences of
means and covariances between domains; DANN (Ganin et al. 2016) features from which a second
classifier can read the domain.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from perturbgen.core.errors import ConfigError, InputError, shorten
from perturbgen.core.files import require_file
from perturbgen.images.network.feed import ImageBatch
from perturbgen.images.network.fields import Vocabulary
from perturbgen.images.network.settings import AugmentSettings, ImageModelSettings
from perturbgen.images.pictures import ChannelColours
from perturbgen.models.base import Trainable
from perturbgen.nn.layers import Draws
from perturbgen.nn.margins import MarginHead
from perturbgen.nn.vision import ChannelMix, ColourMap, backbone, resized


class ImageClassifier(Trainable):
    """z = BN(W [backbone(stem(x)); cell type]), log p(class | z) by the head.

    Unlabelled images count for nothing; ``weights`` (classes,) multiply the loss of each class.
    ``penalty``: CORAL between the experiments of a batch, or a classifier of experiments that the
    features must not feed (DANN); its weight is annealed.
    """

    weights: Tensor

    def __init__(
        self,
        settings: ImageModelSettings,
        vocabulary: Vocabulary,
        channels: int,
        *,
        augment: AugmentSettings | None = None,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        classes = len(vocabulary.classes)
        self.settings, self.augment = settings, augment or AugmentSettings()
        self.stem = _stem(settings.adapter, channels)
        self.backbone, wide = backbone(
            settings.backbone, channels if settings.adapter == "stem" else 3, widths=settings.widths
        )
        self.cells = len(vocabulary.cells) if settings.cell_type else 0
        self.neck = nn.Sequential(
            # no bias: the normalisation behind it would take it away
            nn.Linear(wide + self.cells, settings.embedding, bias=False),
            nn.BatchNorm1d(settings.embedding),
        )
        self.head: nn.Module
        if settings.head == "softmax":
            self.head = nn.Linear(settings.embedding, classes)
        else:  # scaled cosines with the class vectors, the own one made smaller by a margin
            self.head = MarginHead(
                settings.embedding,
                classes,
                kind="arcface" if settings.head == "arcface" else "cosface",
                margin=0.0 if settings.head == "cosine" else settings.margin,
            )
        self.domain = (
            _DomainHead(settings.embedding, len(vocabulary.experiments))
            if settings.penalty == "dann"
            else None
        )
        self.annealed = () if settings.penalty == "none" else (settings.penalty,)
        self.register_buffer("weights", torch.ones(classes) if weights is None else weights)

    def load_backbone(self, path: str | Path) -> None:
        """Begin with a backbone from a state file of torchvision, of MONAI, or of this network."""
        _load_backbone(self.backbone, path)

    def views(self, images: Tensor, *, turns: bool | None = None) -> list[Tensor]:
        """The images, or all their flips and turns, by default as the settings say."""
        return _all_turns(images) if (self.settings.turns if turns is None else turns) else [images]

    def embed(self, images: Tensor, cell: Tensor) -> Tensor:
        """(images, embedding)."""
        features = self.backbone(self.stem(images))
        if self.cells:
            # -1 is a cell type that was not trained on: it is none of the known ones
            known = functional.one_hot(cell.clamp(min=0), self.cells) * (cell >= 0)[:, None]
            features = torch.cat([features, known.to(features.dtype)], dim=1)
        return self.neck(features)

    def forward(self, batch: ImageBatch, draws: Draws) -> dict[str, Tensor]:
        """Cross entropy (images,), and the penalty."""
        images = _augmented(batch.images, self.augment, draws) if self.training else batch.images
        if self.training and self.augment.cutmix:
            images, other, share = _cutmix(images, batch.label, self.augment.cutmix, draws)
            z = self.embed(images, batch.cell)
            own, foreign = self.cross_entropy(z, batch.label), self.cross_entropy(z, other)
            terms = {"cross_entropy": (1 - share) * own + share * foreign}
        else:
            z = self.embed(images, batch.cell)
            terms = {"cross_entropy": self.cross_entropy(z, batch.label)}
        if self.settings.penalty == "coral":
            terms["coral"] = _coral(z, batch.experiment).expand(len(z))
        if self.domain is not None:
            terms["dann"] = self.domain(z, batch.experiment)
        return terms

    def log_p(self, z: Tensor) -> Tensor:
        """Log-probabilities (images, classes) of embedded images, without a head's margin."""
        logits = self.head.logits(z) if isinstance(self.head, MarginHead) else self.head(z)
        return functional.log_softmax(logits, dim=1)

    def cross_entropy(self, z: Tensor, label: Tensor) -> Tensor:
        """-w log p(label), (images,), with the margin of the head; 0 without a label."""
        known = label.clamp(min=0)
        if isinstance(self.head, MarginHead):
            loss = self.head(z, known)
        else:
            loss = -self.log_p(z).gather(1, known[:, None])[:, 0]
        return torch.where(label >= 0, loss * self.weights[known], torch.zeros_like(loss))


def _stem(kind: str, channels: int) -> nn.Module:
    """What stands between the channels and the backbone."""
    if kind == "mix":
        return ChannelMix(channels)
    return ColourMap(*ChannelColours(channels).tints()) if kind == "colours" else nn.Identity()


def _augmented(images: Tensor, settings: AugmentSettings, draws: Draws) -> Tensor:
    """Turned, enlarged, and with other brightness, (images, channels, height, width).

    Each image by itself; numbers are drawn only for what is asked for.
    """
    n, channels = images.shape[:2]
    if settings.turn:
        images = _turned(images, draws.uniform(n, 3) < 0.5)
    if settings.zoom:
        images = _zoomed(images, settings.zoom * draws.uniform(n, 1)[:, 0], draws.uniform(n, 2))
    if settings.gain:
        images = images * (1 + settings.gain * draws.normal(n, channels))[:, :, None, None]
    if settings.offset:
        images = images + settings.offset * draws.normal(n, channels)[:, :, None, None]
    if settings.noise:
        pixels = images[0].numel()
        images = images + settings.noise * draws.normal(n, pixels).view_as(images)
    return images


def _turned(images: Tensor, choices: Tensor) -> Tensor:
    """Flipped up and down, left and right, and across the diagonal, as ``choices`` (images, 3) say.

    What is not square keeps its diagonal.
    """
    up, left, across = (choice[:, None, None, None] for choice in choices.T)
    images = torch.where(up, images.flip(-2), images)
    images = torch.where(left, images.flip(-1), images)
    if images.shape[-2] != images.shape[-1]:
        return images
    return torch.where(across, images.transpose(-2, -1), images)


def _all_turns(images: Tensor) -> list[Tensor]:
    """The images in all flips and turns that keep their shape: eight if square, else four."""
    flips = [images, images.flip(-1), images.flip(-2), images.flip(-2, -1)]
    square = images.shape[-2] == images.shape[-1]
    return flips + [image.transpose(-2, -1) for image in flips] if square else flips


def _zoomed(images: Tensor, lost: Tensor, place: Tensor) -> Tensor:
    """A window of each image, enlarged to its size: ``lost`` (images,) of the width is left out.

    ``place`` (images, 2) from 0 to 1 is where the window lies, across and down.
    """
    matrix = torch.zeros(len(images), 2, 3, dtype=images.dtype, device=images.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1 - lost
    matrix[:, :, 2] = lost[:, None] * (2 * place - 1)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _cutmix(
    images: Tensor, label: Tensor, chance: float, draws: Draws
) -> tuple[Tensor, Tensor, Tensor]:
    """A rectangle of another image of the batch in each (Yun et al. 2019).

    The rectangle has a share of the area that is uniform (a Beta(1, 1)) before its parts outside
    are cut off; an image stays whole with probability 1 - ``chance``. Returns (images, ...), the
    other label (images,), its share (images,).
    """
    n, _, height, width = images.shape
    numbers = draws.uniform(n, 5)
    partner = numbers[:, 0].argsort()
    side = numbers[:, 1].sqrt() * (numbers[:, 2] < chance)
    inside = [
        (torch.arange(size, device=images.device)[None] + 0.5 - size * centre[:, None]).abs()
        < size * side[:, None] / 2
        for size, centre in ((height, numbers[:, 3]), (width, numbers[:, 4]))
    ]
    mask = inside[0][:, :, None] & inside[1][:, None]
    mixed = torch.where(mask[:, None], images[partner], images)
    # the share that was covered, less than drawn where a rectangle sticks out
    return mixed, label[partner], mask.float().mean(dim=(1, 2))


_CLASSIFIER = ("fc.", "classifier.", "class_layers.")
_WRAPPERS = ("module.", "state_dict.", "backbone.", "encoder.")


def _load_backbone(network: nn.Module, path: str | Path) -> None:
    """Fill a backbone from a state file of torchvision, of MONAI, or of the same network.

    A classifier in it is left out. A first convolution for other channels gets the mean of its
    weights for each. Every other part must be there and fit: a network that is half learned and
    half drawn looks as if it were learned.
    """
    wanted, found = network.state_dict(), _states(path)
    first = next(name for name, value in wanted.items() if value.ndim == 4)
    if first in found and found[first].ndim == 4:
        found[first] = resized(found[first], wanted[first].shape[1])
    missing = [name for name, value in wanted.items() if not _fits(found.get(name), value, name)]
    if missing:
        raise ConfigError(
            f"{path} has no {shorten(missing, 3)} of the shape of this network "
            f"({len(missing)} of {len(wanted)} parts)",
            expected="the state of the same backbone",
            fix="model.backbone as the file's",
        )
    network.load_state_dict({name: found.get(name, value) for name, value in wanted.items()})


def _fits(found: Tensor | None, wanted: Tensor, name: str) -> bool:
    """A part is there and of the right shape; a count of batches that were seen need not be."""
    if found is None:
        return name.endswith("num_batches_tracked")
    return found.shape == wanted.shape


def _states(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file under the names that MONAI's networks use, without a classifier."""
    path = require_file(path, "file of weights")
    try:
        # tensors only: a pickled model could run code
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} cannot be read as weights: {str(error).partition('. ')[0]}",
            expected="a dictionary of tensors that torch.save wrote",
            cause="a copy that broke off, or a whole pickled model",
            fix="torch.save(model.state_dict(), path)",
        ) from None
    # a checkpoint of a training script holds the state among other things
    while isinstance(content, dict) and isinstance(
        inner := content.get("state_dict", content.get("model")), dict
    ):
        content = inner
    if not (isinstance(content, dict) and all(isinstance(x, Tensor) for x in content.values())):
        raise InputError(
            f"{path} holds no dictionary of tensors",
            expected="a state, as torch.save(model.state_dict(), path) writes",
        )
    named = {_renamed(str(name)): value for name, value in content.items()}
    found = {name: value for name, value in named.items() if not name.startswith(_CLASSIFIER)}
    # MONAI's older residual networks add a bias before batch normalisation, whose running mean can
    # swallow it.
    for name in [name for name in found if name.endswith("downsample.0.bias")]:
        mean = name.replace("downsample.0.bias", "downsample.1.running_mean")
        if mean in found:
            found[mean] = found[mean] - found[name]
        del found[name]
    return found


def _renamed(name: str) -> str:
    """A part's name without wrappers; torchvision's dense layers are called as MONAI's."""
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return re.sub(r"(denselayer\d+)\.(norm|relu|conv)\.?([12])\.", r"\1.layers.\2\3.", name)


class _Reversal(torch.autograd.Function):
    """The features, their gradient turned round: what reads them learns, what makes them not."""

    @staticmethod
    def forward(context: Any, features: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class _DomainHead(nn.Module):
    """A classifier of domains behind a reversed gradient: -log p(domain), (samples,)."""

    def __init__(self, features: int, domains: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, domains))

    def forward(self, features: Tensor, domain: Tensor) -> Tensor:
        """Cross entropy (samples,) of domains (samples,) read from features (samples, features)."""
        logits = self.layers(_Reversal.apply(features))
        return functional.cross_entropy(logits, domain, reduction="none")


def _coral(features: Tensor, domain: Tensor) -> Tensor:
    """Mean over pairs of domains of mean |μ_i − μ_j|² + mean |C_i − C_j|²; 0 with one domain.

    ``features`` (samples, features), ``domain`` (samples,). Domains with one sample do not count.
    """
    moments = []
    for value in torch.unique(domain):
        rows = features[domain == value]
        # One sample has no covariance.
        if len(rows) > 1:
            moments.append((rows.mean(dim=0), torch.cov(rows.T)))
    pairs = [
        (mean - other).square().mean() + (covariance - spread).square().mean()
        for i, (mean, covariance) in enumerate(moments)
        for other, spread in moments[:i]
    ]
    # Zero with a gradient, so that the loop can call backward on any batch.
    return torch.stack(pairs).mean() if pairs else features.sum() * 0
