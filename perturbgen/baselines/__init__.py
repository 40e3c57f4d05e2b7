"""Strong, simple predictions of a DE table: what every model has to beat.

>>> from perturbgen.baselines import available, make
>>> make("shrunken_additive").fit(de_train, rng=np.random.default_rng(0)).predict(conditions)
"""

from perturbgen.baselines.base import Baseline, Interval, Predictor
from perturbgen.baselines.registry import available, make
from perturbgen.baselines.selection import Choice, Fold, mimic_folds, nested_choice, out_of_fold

__all__ = [
    "Baseline",
    "Choice",
    "Fold",
    "Interval",
    "Predictor",
    "available",
    "make",
    "mimic_folds",
    "nested_choice",
    "out_of_fold",
]
