"""Methods x splits x seeds on a DE table: cached, resumable, ending in a scorecard."""

from perturbgen.compare.assemble import Comparison, compare
from perturbgen.compare.outputs import Leaderboard, write_outputs
from perturbgen.compare.settings import CompareSettings
from perturbgen.compare.tables import read_effects
