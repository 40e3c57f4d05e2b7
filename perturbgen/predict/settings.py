"""How a prediction is made."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from perturbgen.config import Settings
from perturbgen.sampling.latents import Route

Estimator = Literal["mean_t", "anchored_t", "plug_in", "shrunk", "shrunk_plug_in"]
REPLICATED: Final = ("mean_t", "anchored_t", "shrunk")
ANCHORED: Final = ("anchored_t", "shrunk")
CALIBRATED: Final = ("shrunk", "shrunk_plug_in")


class PredictSettings(Settings):
    """How a prediction is made."""

    estimators: tuple[Estimator, ...] = ("shrunk",)
    replicates: Annotated[int, Field(ge=1)] | None = None  # None: until the calibration conditions gain no more
    most: Annotated[int, Field(ge=1)] = 20  # replicates, where their number is not given
    latent: Route = "control"
    flavour: Literal["kaggle", "op3"] = "kaggle"
    levels: Annotated[int, Field(ge=1)] = 5  # of expression, each with a factor of its own
    seed: Annotated[int, Field(ge=0)] = 0

    def needs(self, names: tuple[str, ...]) -> bool:
        """Whether one of the estimators is among these."""
        return any(name in names for name in self.estimators)

    @property
    def calibrates(self) -> bool:
        """Whether measured conditions are generated beside the wanted ones."""
        return self.needs(CALIBRATED) or (self.replicates is None and self.needs(REPLICATED))

    @property
    def needs_measured(self) -> bool:
        """Whether measured compounds of the same cell types are needed, for standard errors or to calibrate on."""
        return self.calibrates or self.needs(("plug_in",))
