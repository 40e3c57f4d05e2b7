"""The settings of the samplers are chosen by what they foretell of withheld conditions."""

import numpy as np
from tuning import choose_settings

from perturbgen.generate import SamplerSettings, WellTable
from tests.generate.conftest import draw_cells, is_hidden


def test_the_better_settings_are_chosen() -> None:
    table = WellTable.tabulate(*draw_cells(0))
    released = table.take(~is_hidden(table.groups))
    candidates = [SamplerSettings(trees=8, leaf=leaf, folds=2) for leaf in (5, 200)]
    best, rows = choose_settings(released, candidates, rng=np.random.default_rng(0), folds=2)
    assert best.leaf == 5
    assert rows[0]["mean"] < rows[1]["mean"]
