"""A simulated L1000 screen with a known truth, in memory or as GEO's and LINCS2020's own files."""

from perturbgen.simulation.screen.plates import screen_anndata, write_screen
from perturbgen.simulation.screen.world import ScreenSettings, screen_settings
