"""Choosing settings without looking: the settings that match a compound are chosen by the other
compounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import pandas as pd

from perturbgen.core.stats import choose
from perturbgen.images.evaluate import Matching, cosines, treatment_profiles
from perturbgen.profiles import Profiles
from perturbgen.profiles.correct import (
    Compress,
    ControlScaler,
    Coral,
    Correction,
    NestedCentre,
    Pipeline,
    Sphering,
)


@dataclass(frozen=True)
class _Recipe:
    """One way from raw wells to treatment profiles."""

    compress: bool
    # None: plates are not centred; 0: by their own controls; k: shrunk to all controls
    plate_strength: float | None
    ridge: float | None  # None: not whitened
    align: bool
    how: Literal["mean", "median"]

    def correction(self) -> Correction:
        """The steps, unfitted."""
        steps: list[Correction] = [ControlScaler()]
        if self.compress:
            steps.append(Compress())
        if self.plate_strength is not None:
            steps.append(NestedCentre(["plate"], strength=self.plate_strength))
        if self.ridge is not None:
            steps.append(Sphering(ridge=self.ridge))
        if self.align:
            steps.append(Coral(["week"]))
        return Pipeline(*steps)

    def profiles(self, wells: Profiles, *, vehicle: str) -> Profiles:
        """Treatment profiles; the correction is fitted on the vehicle's wells."""
        control = wells.meta["compound"] == vehicle
        return treatment_profiles(
            wells.with_values(
                self.correction().fit_transform(wells.values, wells.meta, control=control)
            ),
            vehicle=vehicle,
            how=self.how,
        )

    def __str__(self) -> str:
        parts = ["z", "asinh" if self.compress else ""]
        parts.append(
            "" if self.plate_strength is None else f"plate centre ({self.plate_strength:g})"
        )
        parts.append("" if self.ridge is None else f"whiten ({self.ridge:g})")
        parts.append("CORAL" if self.align else "")
        return " + ".join(filter(None, parts)) + f", {self.how}"


def _recipes() -> list[_Recipe]:
    """The grid that is searched: 96 recipes."""
    grid = product(
        (False, True), (None, 0.0, 6.0), (0.1, 0.3, 1.0, 3.0), (False, True), ("median", "mean")
    )
    return [_Recipe(*values) for values in grid]  # type: ignore[arg-type]


def nested_matching(
    similarity: Mapping[str, np.ndarray], meta: pd.DataFrame, *, other_batch: bool
) -> tuple[Matching, pd.DataFrame]:
    """Match each compound with the recipe that matches the *other* compounds best, the first of
    equals.

    ``similarity`` is a matrix (treatments, treatments) for each recipe. While a recipe is chosen
    the withheld compound is no neighbour of any other. Also returns, for each compound, what was
    chosen and how many of the others it matched.
    """
    allowed, moa = Matching.admissible(meta, other_batch=other_batch), meta["moa"].to_numpy()
    compound, neighbour, choices = meta["compound"].to_numpy(), np.full(len(meta), -1), []
    for withheld in pd.unique(compound):
        out = compound == withheld
        others = allowed & ~out[None]
        matched = {name: hits(similarity[name], others, moa)[~out].sum() for name in similarity}
        choice = choose(matched, matched.__getitem__)
        neighbour[out] = Matching.nearest(similarity[choice.best], allowed)[out]
        others_matched = int(choice.score)
        choices.append(
            {"compound": withheld, "recipe": choice.best, "others matched": others_matched}
        )
    return Matching.of("nested", meta, neighbour), pd.DataFrame(choices)


def hits(similarity: np.ndarray, allowed: np.ndarray, moa: np.ndarray) -> np.ndarray:
    """Whether each treatment's nearest allowed one shares its mechanism."""
    best = Matching.nearest(similarity, allowed)
    return (best >= 0) & (moa[best] == moa)


def similarities(
    wells: Profiles, *, vehicle: str, without: tuple[str, ...] = ()
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Cosines of treatments under every recipe, and the treatments' labels."""
    from perturbgen.core.console import track

    found: dict[str, np.ndarray] = {}
    for recipe in track(_recipes(), "corrections"):
        profiled = recipe.profiles(wells, vehicle=vehicle)
        kept = profiled.where(~profiled.meta["moa"].isin(list(without)))
        found[str(recipe)] = cosines(kept.values)
    return found, kept.meta
