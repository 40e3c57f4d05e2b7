"""L1000: reading CMap's files, landmark extraction, signatures and connectivity, and a simulator of screens."""

from perturbgen.profiles.l1000.connectivity import max_quantile, ncs, read_gmt, tau, wtcs
from perturbgen.profiles.l1000.extraction import Options, extract
from perturbgen.profiles.l1000.gctx import GctxFile
from perturbgen.profiles.l1000.gctx_writer import GctxWriter, write_gct, write_gctx
from perturbgen.profiles.l1000.genes import landmarks
from perturbgen.profiles.l1000.leakproof import read_leakproof, read_leakproofs, without_self
from perturbgen.profiles.l1000.metadata import unify
from perturbgen.profiles.l1000.plates import read_plate, read_signatures
from perturbgen.profiles.l1000.profiles import Profiles
from perturbgen.profiles.l1000.screen_files import screen_anndata, write_screen
from perturbgen.profiles.l1000.screen_settings import ScreenSettings, screen_settings
from perturbgen.profiles.l1000.signatures import collapse, modz, robust_z
from perturbgen.profiles.l1000.similarity import SIMILARITIES, symmetrised

__all__ = [
    "SIMILARITIES",
    "GctxFile",
    "GctxWriter",
    "Options",
    "Profiles",
    "ScreenSettings",
    "collapse",
    "extract",
    "landmarks",
    "max_quantile",
    "modz",
    "ncs",
    "read_gmt",
    "read_leakproof",
    "read_leakproofs",
    "read_plate",
    "read_signatures",
    "robust_z",
    "screen_anndata",
    "screen_settings",
    "symmetrised",
    "tau",
    "unify",
    "without_self",
    "write_gct",
    "write_gctx",
    "write_screen",
    "wtcs",
]
