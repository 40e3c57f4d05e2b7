"""Optimisers for the parameter groups of a model of counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perturbgen.train.optimisers import adamw
from perturbgen.train.settings import TrainingSettings

if TYPE_CHECKING:
    import torch

    from perturbgen.models import LatentModel


def make_optimisers(model: LatentModel, training: TrainingSettings) -> list[torch.optim.Optimizer]:
    """AdamW for the network and the mixture; for representations an Adam that touches only the rows of a batch."""
    import torch

    from perturbgen.models.dgd import BETAS

    groups = model.groups()
    dense = [(groups["network"], training.learning_rate, training.weight_decay)]
    if "mixture" in groups:
        dense.append((groups["mixture"], training.mixture_rate, 0.0))
    optimisers = [adamw(*dense)]
    if "representations" in groups:
        rate = training.representation_rate
        optimisers.append(torch.optim.SparseAdam(groups["representations"], lr=rate, betas=BETAS))
    return optimisers
