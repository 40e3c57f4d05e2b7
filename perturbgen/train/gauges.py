"""Whether a latent space holds anything, as a number, a sentence and a file of the run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from perturbgen.core.files import atomic_path

if TYPE_CHECKING:
    import numpy as np

    from perturbgen.models import LatentModel

_FILE: Final = "latent.json"
_FEW: Final = 0.2  # of the dimensions
_NO_KL: Final = 0.1  # nats a cell


@dataclass(frozen=True)
class LatentSpace:
    """How many of a model's latent dimensions vary over cells; its KL in nats a cell, of a VAE."""

    active: int
    dimensions: int
    kl: float | None = None

    def __str__(self) -> str:
        return f"{self.active} of {self.dimensions}"

    def sentence(self) -> str:
        """What a reader has to know of a collapsed latent space; nothing of one that is in use."""
        many = self.active > _FEW * self.dimensions
        if many and (self.kl is None or self.kl >= _NO_KL):
            return ""
        nats = "" if self.kl is None else f" (KL {self.kl:.2g} nats a cell)"
        # a model without a KL, as a DGD, has no weight that could be annealed
        way_out = "more epochs" if self.kl is None else "a longer annealing.warmup"
        if not self.active:
            return (
                f"none of the {self.dimensions} latent dimensions is active{nats}: the model says "
                "of a cell what its conditions say, and all generated cells of a condition are of "
                f"one kind. Cells without states look so, too; {way_out} may tell"
            )
        return (
            f"{self} latent dimensions are active{nats}: little of what tells cells of one "
            "condition apart is in the latent space, and generated cells vary less together than "
            f"real ones; {way_out} may fill it"
        )

    def write(self, run: Path) -> None:
        """Keep it in a run directory."""
        with atomic_path(run / _FILE) as part:
            part.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, run: Path) -> Self | None:
        """That of a run; None of a run of another kind, an unfinished or an earlier one."""
        try:
            return cls(**json.loads((run / _FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def active_dimensions(model: LatentModel, latents: np.ndarray) -> int:
    """How many dimensions of latent points (cells, latent) carry something of a cell.

    Those that vary over cells by more than a hundredth of what the prior does (Burda et al. 2016,
    where the prior's variance is one; a DGD learns its own, which may be a thousandth of that).
    """
    import torch

    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)
    with torch.no_grad():
        prior = model.prior_sample(4000, generator).cpu().numpy()
    return int((latents.var(axis=0) > 0.01 * prior.var(axis=0)).sum())
