"""A small experiment whose cell numbers and depths follow a known law; no genes are drawn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from perturbgen.generate import CellSampler, SamplerSettings, WellTable

KINDS = {"NK": 60.0, "CD4": 90.0, "B": 30.0, "Myeloid": 25.0}
COMPOUNDS = [f"c{i:02d}" for i in range(30)]
TOXIC = COMPOUNDS[-6:]
HIDDEN = ("B", "Myeloid")
KNOWN = COMPOUNDS[::3]


def draw_cells(seed: int) -> tuple[pd.DataFrame, pd.Series]:
    """obs and totals: survival halves to a fifth under toxic compounds, and depth falls with its
    square root.
    """
    rng = np.random.default_rng(seed)
    hazard = {name: rng.uniform(0.7, 1.6) if name in TOXIC else 0.05 for name in COMPOUNDS} | {
        "DMSO": 0.0
    }
    rows, totals = [], []
    for p, donor in enumerate(("d0", "d1", "d2")):
        plate_rate, plate_depth = np.exp(rng.normal(0, 0.2, 2))
        for i, compound in enumerate([*COMPOUNDS, *["DMSO"] * 6]):
            well = f"{'ABCDEF'[i // 6]}{i % 6 + 1}"
            well_rate = np.exp(rng.normal(0, 0.15))
            for kind, rate in KINDS.items():
                alive = np.exp(-hazard[compound] * np.exp(rng.normal(0, 0.2)))
                n = rng.poisson(rate * plate_rate * well_rate * alive)
                depth = 1000 * plate_depth * np.sqrt(alive) * (1.5 if kind == "Myeloid" else 1.0)
                totals.append(rng.poisson(depth * np.exp(rng.normal(0, 0.4, n))) + 1)
                label = (
                    kind,
                    compound,
                    f"p{p}",
                    well,
                    donor,
                    f"lib{p}{well[0]}",
                    compound == "DMSO",
                )
                rows += [label] * n
    names = ["cell_type", "compound", "plate", "well", "donor", "library", "control"]
    obs = pd.DataFrame(rows, columns=names).set_axis([f"cell{i}" for i in range(len(rows))])
    return obs, pd.Series(np.concatenate(totals), obs.index)


def is_hidden(groups: pd.DataFrame) -> np.ndarray:
    """B and Myeloid cells of all but the known compounds, as the challenge hides them."""
    return (
        groups["cell_type"].isin(HIDDEN) & ~groups["compound"].isin([*KNOWN, "DMSO"])
    ).to_numpy()


@pytest.fixture(scope="session")
def everything() -> WellTable:
    return WellTable.tabulate(*draw_cells(0))


@pytest.fixture(scope="session")
def released(everything: WellTable) -> WellTable:
    return everything.take(~is_hidden(everything.groups))


@pytest.fixture(scope="session")
def hidden(everything: WellTable) -> WellTable:
    return everything.take(is_hidden(everything.groups))


@pytest.fixture(scope="session")
def sampler(released: WellTable) -> CellSampler:
    return CellSampler.fit(
        released, rng=np.random.default_rng(0), settings=SamplerSettings(trees=60, leaf=5)
    )
