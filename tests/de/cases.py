"""Small random experiments with every awkwardness that a design can have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Case:
    """Counts (samples, genes), obs, and a formula that compares ``compound`` with ``vehicle``."""

    counts: pd.DataFrame
    obs: pd.DataFrame
    formula: str = "~0 + compound + donor + plate"

    @property
    def template(self) -> str:
        return self.formula.replace("compound", "{group}")


def random_counts(rng: np.random.Generator, obs: pd.DataFrame, genes: int) -> pd.DataFrame:
    """NB counts with effects of compound and plate, depths that differ, genes without counts."""
    base = rng.lognormal(2, 1.8, genes)
    depth = rng.gamma(6, 1 / 6, len(obs))
    mean = np.outer(depth, base)
    for column, size in (("compound", 0.6), ("plate", 0.3)):
        codes = obs[column].astype("category").cat.codes.to_numpy()
        mean *= np.exp(rng.normal(0, size, (codes.max() + 1, genes)))[codes]
    counts = rng.poisson(mean * rng.gamma(4, 1 / 4, mean.shape)).astype(float)
    counts[:, : max(2, genes // 50)] = 0
    return pd.DataFrame(counts, obs.index, [f"g{i}" for i in range(genes)])


def layout(compounds: list[str], replicates: int, donors: int, plates: int) -> pd.DataFrame:
    """Every compound ``replicates`` times, donors and plates crossed with them in turn."""
    names = [name for name in compounds for _ in range(replicates)]
    obs = pd.DataFrame({"compound": names})
    obs["donor"] = [f"d{i % donors}" for i in range(len(names))]
    obs["plate"] = [f"p{(i // 2) % plates}" for i in range(len(names))]
    obs.index = [f"s{i}" for i in range(len(names))]
    return obs


def case(name: str) -> Case:
    """A named case; the same numbers every time."""
    rng = np.random.default_rng(sum(map(ord, name)))
    compounds = ["vehicle", "B-12", "a b", "Abc", "x(1)", "10"]
    if name == "balanced":
        obs = layout(compounds, 6, 2, 3)
    elif name == "unbalanced":
        obs = layout(compounds, 6, 3, 2).iloc[
            [0, 1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 14, 18, 20, 24, 25, 26, 27, 29, 30, 33]
        ]
    elif name == "rank deficient":  # plates nested in donors, and a row of the plate
        obs = layout(compounds, 8, 3, 2)
        obs["plate"] = obs["donor"] + "_" + obs["plate"]
        obs["row"] = [f"r{i}" for i in rng.integers(0, 3, len(obs))]
        return Case(random_counts(rng, obs, 300), obs, "~0 + compound + donor + plate + row")
    elif name == "single replicate":
        obs = layout(compounds, 5, 2, 2)
        obs = pd.concat([obs, obs.iloc[:1].assign(compound="lonely").rename(index={"s0": "alone"})])
    elif name == "mostly zero":
        obs = layout(compounds, 6, 2, 3)
        counts = random_counts(rng, obs, 300)
        counts.iloc[:, :120] = 0
        counts.iloc[:, 120:200] = rng.poisson(0.1, (len(obs), 80))
        return Case(counts, obs)
    elif name == "one-level factor":
        obs = layout(compounds, 5, 2, 1)
    elif name == "numeric covariate":
        obs = layout(compounds, 6, 2, 2)
        obs["depth"] = rng.normal(1e5, 2e4, len(obs)).round()
        return Case(random_counts(rng, obs, 300), obs, "~0 + compound + depth + donor")
    elif name == "whole transcriptome":
        obs = layout(compounds[:4], 4, 2, 2)
        return Case(random_counts(rng, obs, 18_211), obs)
    else:
        raise KeyError(name)
    return Case(random_counts(rng, obs, 300), obs)


NAMES = (
    "balanced",
    "unbalanced",
    "rank deficient",
    "single replicate",
    "mostly zero",
    "one-level factor",
    "numeric covariate",
    "whole transcriptome",
)
