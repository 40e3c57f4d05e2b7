"""Shares of treatments matched to a mechanism: of several networks together, and by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from perturbgen.images.bbbc021 import VEHICLE
from perturbgen.images.evaluate import Matching
from perturbgen.images.network.evaluate import matchings
from perturbgen.profiles import Profiles


def pooled(parts: Sequence[Mapping[str, Matching]]) -> dict[str, Matching]:
    """The answers about each group of compounds, by networks trained without it, as one table."""
    return {
        name: Matching(name, pd.concat([found[name].table for found in parts], ignore_index=True))
        for name in parts[0]
    }


def by_chance(wells: Profiles, *, draws: int, rng: np.random.Generator) -> dict[str, float]:
    """Mean share matched when mechanisms are dealt out to compounds at random.

    There are as many compounds of each mechanism as there are in truth.
    """
    asked = wells.meta["moa"].notna() & (wells.meta["compound"] != VEHICLE)
    compounds = wells.meta.loc[asked, ["compound", "moa"]].drop_duplicates("compound")
    shares: dict[str, list[float]] = {}
    for _ in range(draws):
        mixed = rng.permutation(compounds["moa"].to_numpy())
        dealt = dict(zip(compounds["compound"], mixed, strict=True))
        meta = wells.meta.assign(moa=wells.meta["compound"].map(dealt))
        for name, found in matchings(Profiles(wells.values, meta, wells.features)).items():
            shares.setdefault(name, []).append(found.correct / found.total)
    return {name: float(np.mean(values)) for name, values in shares.items()}
