"""Profiles of L1000, images and latent spaces: one table, its files, its corrections."""

from perturbgen.profiles.readers import read_profiles
from perturbgen.profiles.table import Profiles
