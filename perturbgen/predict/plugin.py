"""What a model says of a compound without noise: its own log fold change, as limma would see it on average."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from scipy.stats import poisson

from perturbgen.errors import ConfigError

if TYPE_CHECKING:
    from perturbgen.predict.bench import Wells

DRAWS: Final = 3  # replicates of latent points and depths that the means are averaged over
LARGE: Final = 1000.0


def model_logfc(group: Wells, *, vehicle: str, genes: pd.Index, draws: int = DRAWS) -> pd.DataFrame:
    """Log2 fold change against the vehicle, conditions x genes: the mean over the condition's wells.

    The same latent points, depths and covariates are decoded twice, with the compound and with the vehicle in its
    place, so that whatever the decoder gets wrong about a well in general cancels. Voom sees log2(count + ½), which a
    rare gene hardly moves: so do we, in expectation over Poisson counts around the model's means.
    """
    require_compound(group)
    total = np.zeros((len(group.wells), len(group.generator.genes)))
    count = np.zeros(len(group.wells))
    for replicate in range(1, draws + 1):
        treated, untreated = (
            group.generator.expected_sums(group.plan, group.wells, replicate=replicate, **replaced)
            for replaced in ({}, {"compound": vehicle})
        )
        drawn = treated.sum(axis=1) > 0
        total[drawn] += (expected_log2(treated) - expected_log2(untreated))[drawn]
        count += drawn
    labels = pd.MultiIndex.from_frame(group.wells[["cell_type", "compound"]].astype(str))
    mean = np.divide(total, count[:, None], out=np.full(total.shape, np.nan), where=count[:, None] > 0)
    by_condition = pd.DataFrame(mean, labels, group.generator.genes)[genes].groupby(level=[0, 1]).mean()
    wanted = pd.MultiIndex.from_frame(group.plan.conditions[["cell_type", "compound"]])
    return by_condition.reindex(wanted).set_axis(group.conditions)


def require_compound(group: Wells) -> None:
    """The model knows what a compound is."""
    if "compound" not in group.generator.encoder.categories:
        raise ConfigError(
            "the estimator compares a compound with the vehicle, and the run is not conditioned on compound",
            fix="use the estimator mean_t, or train with [conditions.compound]",
        )


def expected_log2(mean: np.ndarray) -> np.ndarray:
    """E log2(X + ½) of Poisson counts X with these means, any shape."""
    grid, values = poisson_table()
    with np.errstate(divide="ignore"):
        return np.where(mean < LARGE, np.interp(mean, grid, values), np.log2(mean + 0.5) - 0.5 / np.log(2) / mean)


@cache
def poisson_table() -> tuple[np.ndarray, np.ndarray]:
    """Means, dense near zero, and E log2(X + ½) there."""
    grid = np.expm1(np.linspace(0, np.log1p(LARGE), 1500))
    counts = np.arange(int(LARGE + 12 * np.sqrt(LARGE)))
    return grid, poisson.pmf(counts, grid[:, None]) @ np.log2(counts + 0.5)
