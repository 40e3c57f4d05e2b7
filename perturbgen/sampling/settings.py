"""The numbers a sampler of wells depends on."""

from __future__ import annotations

from pydantic import Field

from perturbgen.config import Settings


class SamplerSettings(Settings):
    """Size and shape of the two forests."""

    trees: int = Field(200, ge=1, description="trees of each forest")
    leaf: int = Field(10, ge=1, description="fewest training wells in a leaf")
    features: float = Field(0.3, gt=0, le=1, description="share of the features that each split may choose from")
    folds: int = Field(5, ge=2, description="folds of conditions whose residuals are taken out of fold")
