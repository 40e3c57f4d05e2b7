"""The settings of the samplers, chosen on conditions withheld from the released data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from perturbgen.generate import SamplerSettings, WellTable, cross_validate
from perturbgen.generate.validate import TARGETS

_TUNING_DRAWS: Final = 50


def choose_settings(
    table: WellTable,
    candidates: Sequence[SamplerSettings],
    *,
    rng: np.random.Generator,
    folds: int = 3,
) -> tuple[SamplerSettings, list[dict[str, Any]]]:
    """The settings with the best CRPS on withheld conditions, and all scores.

    CRPS is relative to the mean, so that cells and depth count alike.

    Every candidate meets the same folds and the same random numbers.
    """
    # So that candidates differ by their settings alone.
    seed = int(rng.integers(2**31))
    rows = []
    for settings in candidates:
        scores = cross_validate(
            table, settings, rng=np.random.default_rng(seed), folds=folds, draws=_TUNING_DRAWS
        )
        # In units of the mean: cells and depth could not be added else.
        relative = [scores[f"{name}_crps"].mean() / scores[name].mean() for name in TARGETS]
        found = dict(zip(TARGETS, relative, strict=True)) | {"mean": np.mean(relative)}
        rows.append(settings.model_dump() | found)
    best = int(np.argmin([row["mean"] for row in rows]))
    return candidates[best], rows
