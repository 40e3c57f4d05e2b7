"""The seed's own pipeline and its pieces: decoder means of median cells, latent points of the
prior, a short design.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from perturbgen.generate import Plan
from perturbgen.predict import PredictSettings, Task, read_wanted

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.generate import CellSampler
    from perturbgen.train import TrainedRun


class MedianPlan(Plan):
    """Every well has its median number of cells, all of the median depth."""

    def libraries(self, replicate: int) -> list[np.ndarray]:
        """The same in every replicate."""
        counts = self.sampler.quantiles(self.wells, [0.5]).iloc[:, 0].to_numpy(int)
        depth = float(np.exp(np.median(self.sampler.table.log_libraries)))
        return [np.full(n, depth) for n in counts]


def seed_ways(
    trained: TrainedRun, cells: AnnData, wanted: pd.DataFrame, sampler: CellSampler, seed: int
) -> dict[str, pd.DataFrame]:
    """The seed's pipeline, then with the organisers' design, then with sampled numbers of cells and
    depths.
    """
    settings = PredictSettings(estimators=("mean_t",), replicates=1, latent="prior", seed=seed)
    index = read_wanted(wanted)
    task = Task.of(trained, trained.in_genes(cells), index, settings, sampler=sampler)
    plan = MedianPlan(sampler, task.wanted.plan.conditions, seed)
    return {
        "the seed's way": noise_free(task, plan, design="~0 + {group} + donor"),
        "noise-free means, full design": noise_free(task, plan),
        "noise-free means, sampled cells": noise_free(task, task.wanted.plan),
    }


def noise_free(task: Task, plan: Plan, **options: Any) -> pd.DataFrame:
    """Signed -log10 p of the means of the wells' cells, as if they were counts."""
    group = task.wanted._replace(plan=plan)
    sums = group.generator.expected_sums(plan, group.wells, replicate=1)
    cells = np.array([len(size) for size in plan.libraries(1)])
    table = task.experiment.fit(
        task.experiment.samples(group, sums, cells), allow_fractional=True, **options
    )
    return table.signed_log10_p.reindex(group.conditions).fillna(0.0)
