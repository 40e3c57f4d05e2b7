"""What a run knows when its model is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from perturbgen.models.base import CountDecoder
from perturbgen.models.conditions import Conditions, Covariate


@dataclass(frozen=True, eq=False)
class Blueprint:
    """The [model] section of a configuration (``settings``), the covariates, genes and cells.

    ``share`` (genes,) is each gene's part of all counts and ``r`` its dispersion, where a decoder
    begins; ``n_cells`` are trained on, and ``n_held_out`` are validation cells.
    """

    settings: Any
    covariates: Sequence[Covariate]
    share: Tensor
    n_cells: int
    n_held_out: int = 0
    r: Tensor | None = None

    @cached_property
    def conditions(self) -> Conditions:
        """The covariates as one vector of features."""
        return Conditions(self.covariates)

    @property
    def own_settings(self) -> dict[str, Any]:
        """The settings of a model of another package, by the names of its parameters."""
        return self.settings.settings or {}

    def position(self, name: str | None) -> int | None:
        """Which of the covariates has this name."""
        names = [covariate.name for covariate in self.covariates]
        return names.index(name) if name in names else None

    def categories(self, name: str | None, otherwise: Any = None) -> Any:
        """How many categories the covariate of this name has."""
        sizes = {covariate.name: covariate.categories for covariate in self.covariates}
        return sizes.get(name or "", otherwise)

    @property
    def category(self) -> int | None:
        """Which covariate chooses the dispersion."""
        return self.position(self.settings.decoder.dispersion_by)

    @property
    def of_decoder(self) -> dict[str, Any]:
        """What every kind of decoder is told."""
        norm = self.settings.decoder.layer_norm
        return {"n_conditions": self.conditions.width, "layer_norm": norm}

    def decoder(self, *, more_latent: int = 0) -> CountDecoder:
        """The decoder of counts, with dimensions beside those of the settings."""
        model, net = self.settings, self.settings.decoder
        return CountDecoder(
            model.latent + more_latent,
            net.hidden,
            len(self.share),
            share=self.share,
            r=self.r,
            n_categories=self.categories(net.dispersion_by),
            **net.model_dump(include={"scaling", "dispersion", "additive", "dropout"}),
            **self.of_decoder,
        )
