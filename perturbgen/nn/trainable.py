"""What the training loop asks of a model, whatever it models: counts, profiles, images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from perturbgen.nn.draws import Draws


class Trainable(nn.Module, ABC):
    """A model that names the terms of its objective. Batches are what its feed yields; the loop does not look inside.

    A batch has ``index``, int64 (samples,): the positions of its samples in the feed.
    """

    # The terms of the objective that an annealing schedule may weigh.
    annealed: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, batch: Any, draws: Draws) -> dict[str, Tensor]:
        """The terms of the objective to be minimised, each (samples,)."""

    def validate(self, batch: Any, draws: Draws) -> dict[str, Tensor]:
        """The same terms for samples that are not trained on; called in evaluation mode."""
        with torch.no_grad():
            return self(batch, draws)

    def advance(self, step: int) -> None:
        """Told the number of each step (0, 1, ...) before it is made: margins and the like are functions of it."""

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by kind; each kind has a learning rate of its own."""
        return {"network": list(self.parameters())}
