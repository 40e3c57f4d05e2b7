"""What TensorBoard shows of an embedding: its map now and then, and the projector at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd

from perturbgen.profiles.embedder.judge import places
from perturbgen.train.board import Board
from perturbgen.train.pictures import latent_figure

if TYPE_CHECKING:
    from perturbgen.profiles.embedder.batches import ProfileFeed
    from perturbgen.profiles.embedder.model import ProfileEmbedder
    from perturbgen.profiles.embedder.settings import EmbedSettings
    from perturbgen.train.loop import Training

WANTED = ("name", "moa", "cell_line", "dose", "time", "plate", "well")


class EmbedBoard(Board):
    """The withheld profiles' places (the training ones' where none are withheld)."""

    space = "embedding"
    settings: EmbedSettings

    def pictures(self, training: Training, epoch: int) -> None:
        """The first two principal components."""
        points, labels = self.projected(training)
        self.writer.add_figure("embedding/principal components", latent_figure(points, labels), epoch)
        model = cast("ProfileEmbedder", training.model)
        self.writer.add_scalar("schedule/scale", float(model.head.log_scale.detach().exp()), epoch)
        self.writer.add_scalar("schedule/margin", model.head.risen * float(model.head.margins.max()), epoch)

    def projected(self, training: Training) -> tuple[np.ndarray, pd.DataFrame]:
        """Places and labels of some withheld profiles."""
        feed = cast("ProfileFeed", training.validation if len(training.validation) else training.train)
        points = places(cast("ProfileEmbedder", training.model), feed)
        chosen = self.chosen(len(points))
        samples = feed.table.samples.iloc[chosen]
        names = dict.fromkeys([self.settings.data.label, *self.settings.board.labels, *WANTED])
        return points[chosen], samples[[name for name in names if name in samples]].astype(str)
