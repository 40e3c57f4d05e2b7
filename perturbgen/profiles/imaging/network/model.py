"""A classifier of images: a stem for the channels, a backbone, the cell type, a neck, a head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from perturbgen.nn.channels import ChannelMix, ColourMap
from perturbgen.nn.domains import DomainHead, coral
from perturbgen.nn.draws import Draws
from perturbgen.nn.heads import MarginHead
from perturbgen.nn.trainable import Trainable
from perturbgen.nn.vision import backbone
from perturbgen.profiles.imaging.network.augment import augmented, cutmix
from perturbgen.profiles.imaging.network.feed import ImageBatch
from perturbgen.profiles.imaging.network.settings import AugmentSettings, ImageModelSettings
from perturbgen.profiles.imaging.network.vocabulary import Vocabulary
from perturbgen.profiles.imaging.pictures import colours


class ImageClassifier(Trainable):
    """z = BN(W [backbone(stem(x)); cell type]), log p(class | z) by the head; unlabelled images count for nothing.

    ``weights`` (classes,) multiply the loss of each class. ``penalty``: CORAL between the experiments of a batch, or a
    classifier of experiments that the features must not feed (DANN); its weight is annealed.
    """

    weights: Tensor

    def __init__(
        self, settings: ImageModelSettings, vocabulary: Vocabulary, channels: int, *,
        augment: AugmentSettings | None = None, weights: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        classes = len(vocabulary.classes)
        self.settings, self.augment = settings, augment or AugmentSettings()
        self.stem = stem(settings.adapter, channels)
        self.backbone, wide = backbone(
            settings.backbone, channels if settings.adapter == "stem" else 3, widths=settings.widths
        )
        self.cells = len(vocabulary.cells) if settings.cell_type else 0
        self.neck = nn.Sequential(
            nn.Linear(wide + self.cells, settings.embedding, bias=False), nn.BatchNorm1d(settings.embedding)
        )
        self.head = make_head(settings, classes)
        self.domain = (
            DomainHead(settings.embedding, len(vocabulary.experiments)) if settings.penalty == "dann" else None
        )
        self.annealed = () if settings.penalty == "none" else (settings.penalty,)
        self.register_buffer("weights", torch.ones(classes) if weights is None else weights)

    def embed(self, images: Tensor, cell: Tensor) -> Tensor:
        """(images, embedding)."""
        features = self.backbone(self.stem(images))
        if self.cells:
            known = functional.one_hot(cell.clamp(min=0), self.cells) * (cell >= 0)[:, None]
            features = torch.cat([features, known.to(features.dtype)], dim=1)
        return self.neck(features)

    def forward(self, batch: ImageBatch, draws: Draws) -> dict[str, Tensor]:
        """Cross entropy (images,), and the penalty."""
        images = augmented(batch.images, self.augment, draws) if self.training else batch.images
        if self.training and self.augment.cutmix:
            images, other, share = cutmix(images, batch.label, self.augment.cutmix, draws)
            z = self.embed(images, batch.cell)
            own, foreign = self.cross_entropy(z, batch.label), self.cross_entropy(z, other)
            terms = {"cross_entropy": (1 - share) * own + share * foreign}
        else:
            z = self.embed(images, batch.cell)
            terms = {"cross_entropy": self.cross_entropy(z, batch.label)}
        if self.settings.penalty == "coral":
            terms["coral"] = coral(z, batch.experiment).expand(len(z))
        if self.domain is not None:
            terms["dann"] = self.domain(z, batch.experiment)
        return terms

    def log_p(self, z: Tensor) -> Tensor:
        """Log-probabilities (images, classes) of embedded images; of a head with margins, without the margin."""
        if isinstance(self.head, MarginHead):
            head = self.head
            logits = head.scale * head.similarity(head.placed(z), head.placed(head.classes))
        else:
            logits = self.head(z)
        return functional.log_softmax(logits, dim=1)

    def cross_entropy(self, z: Tensor, label: Tensor) -> Tensor:
        """-w log p(label), (images,), with the margin of the head; 0 without a label."""
        known = label.clamp(min=0)
        loss = (
            self.head(z, known) if isinstance(self.head, MarginHead) else -self.log_p(z).gather(1, known[:, None])[:, 0]
        )
        return torch.where(label >= 0, loss * self.weights[label.clamp(min=0)], torch.zeros_like(loss))


def make_head(settings: ImageModelSettings, classes: int) -> nn.Module:
    """Linear logits, or scaled cosines with the class vectors, the own one made smaller by a margin."""
    if settings.head == "softmax":
        return nn.Linear(settings.embedding, classes)
    margin = 0.0 if settings.head == "cosine" else settings.margin
    return MarginHead(
        settings.embedding, classes, kind="arcface" if settings.head == "arcface" else "cosface", margin=margin
    )


def stem(kind: str, channels: int) -> nn.Module:
    """What stands between the channels and the backbone."""
    if kind == "mix":
        return ChannelMix(channels)
    return ColourMap(*colours(channels)) if kind == "colours" else nn.Identity()


def balanced(label: Any, classes: int) -> Tensor:
    """n / (K n_c) for each class of labels (n,); 0 for a class that never occurs."""
    count = torch.bincount(label[label >= 0], minlength=classes).float()
    return torch.where(count > 0, count.sum() / (classes * count.clamp(min=1)), torch.zeros(classes))
