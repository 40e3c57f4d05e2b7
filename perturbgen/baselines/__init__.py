"""Strong, simple predictions of a DE table: what every model has to beat.

>>> from perturbgen.baselines import make
>>> make("shrunken_additive").fit(de_train, rng=np.random.default_rng(0)).predict(conditions)
"""

from perturbgen.baselines.base import Baseline, Predictor
from perturbgen.baselines.contract import baseline_breaches
from perturbgen.baselines.registry import REGISTRY, crossed, find_baseline, make
from perturbgen.baselines.selection import (
    blend_weights,
    mimic_folds,
    nested_choice,
    out_of_fold,
    row_spearman,
)
