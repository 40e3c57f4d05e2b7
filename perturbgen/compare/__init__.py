"""Methods x splits x seeds on a table of differential expression: cached, resumable, ending in a scorecard."""

from perturbgen.compare.run import Comparison, compare
from perturbgen.compare.settings import CompareSettings

__all__ = ["CompareSettings", "Comparison", "compare"]
