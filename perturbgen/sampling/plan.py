"""Which wells are generated, with how many cells of which depth: fixed by the seed, whatever the order asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.errors import SchemaError, shorten
from perturbgen.sampling.sampler import CellSampler
from perturbgen.sampling.wells import CONDITION, WELL, design_wells

KEY: Final = [*CONDITION, *WELL]
CELLS, DRAWS = 1, 2  # what a stream of random numbers is for


@dataclass(frozen=True)
class Plan:
    """The wells of conditions and their cells, for any replicate.

    Numbers of cells and depths come from one stream for (seed, replicate), since forests draw for all wells at once;
    latent points and counts from a stream of their own for each (seed, replicate, well).
    """

    sampler: CellSampler
    conditions: pd.DataFrame
    seed: int

    @cached_property
    def wells(self) -> pd.DataFrame:
        """A row for each condition and well of the design, in the order of their labels."""
        wells = design_wells(self.sampler.table, self.conditions)
        return wells.sort_values(KEY, ignore_index=True)

    def libraries(self, replicate: int) -> list[NDArray[np.float64]]:
        """Library sizes of the cells of each well; an empty array where none was drawn."""
        rng = np.random.default_rng([CELLS, self.seed, replicate])
        counts = self.sampler.counts(self.wells, 1, rng)[0].to_numpy()
        sizes = self.sampler.libraries(self.wells, counts, rng)
        return [np.maximum(np.rint(part), 1.0) for part in sizes]

    def rng(self, replicate: int, well: pd.Series) -> np.random.Generator:
        """The stream of one well's latent points and counts."""
        text = "\0".join(str(well[name]) for name in KEY)
        label = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
        return np.random.default_rng([DRAWS, self.seed, replicate, label])


def cell_counts(wells: pd.DataFrame, plans: Iterable[tuple[int, list[NDArray[np.float64]]]]) -> pd.DataFrame:
    """The wells with the cells drawn in each replicate, a column ``replicate k`` each; 0 is a donor that is missing."""
    counts = {f"replicate {k}": [len(part) for part in sizes] for k, sizes in plans}
    return wells.join(pd.DataFrame(counts, index=wells.index))


def add_covariates(wells: pd.DataFrame, obs: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """Wells with further columns of the cells' obs, joined by plate and well, in which they must be constant."""
    for name in names:
        if name in wells:
            continue
        if name not in obs:
            raise SchemaError(
                f"the run is conditioned on {name!r}, which neither the design's wells nor the cells' obs say",
                expected=f"a column {name!r} beside {shorten(wells.columns)}",
            )
        known = obs[[*WELL, name]].astype(str).drop_duplicates()
        if known.duplicated(WELL).any():
            raise SchemaError(
                f"the run is conditioned on {name!r}, which differs within a well",
                cause="it belongs to cells, and a cell that is not measured has none",
            )
        wells = wells.merge(known, on=WELL, how="left", validate="many_to_one")
    return wells
