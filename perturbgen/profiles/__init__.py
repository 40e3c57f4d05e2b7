"""Profiles of L1000, images and latent spaces: one table, its readers, linear embeddings.

``correct`` holds batch corrections (scale, compress, centre, whiten, align) for all of them. A
GCTX is read as a whole plate; a large one goes through ``perturbgen l1000 extract`` first.
"""

from perturbgen.profiles.readers import read_profiles
from perturbgen.profiles.table import Profiles
