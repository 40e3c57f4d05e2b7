"""From sites to centred wells, the rows that hits are scored on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perturbgen.profiles.imaging.correct import NestedCentre
from perturbgen.profiles.imaging.profiles import Profiles, chosen


def centred_wells(profiles: Profiles, healthy: str, centre: Sequence[str], well: Sequence[str]) -> Profiles:
    """Profiles centred on the healthy rows of each group of ``centre`` (none: as they are), averaged to wells.

    Held in memory: the centred sites for as long as it takes, then one row a well.
    """
    if centre:
        step = NestedCentre(centre).fit(profiles.values, profiles.meta, control=chosen(profiles.meta, healthy))
        centred = np.empty(profiles.values.shape, np.float32)
        profiles = profiles.with_values(step.transform(profiles.values, profiles.meta, out=centred))
    return profiles.averaged(well)
