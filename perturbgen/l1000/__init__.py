"""L1000: reading CMap's files, landmark extraction, signatures and connectivity."""

from perturbgen.l1000.connectivity import max_quantile, ncs, read_gmt, tau, wtcs
from perturbgen.l1000.extraction import Options, extract
from perturbgen.l1000.gctx import GctxFile
from perturbgen.l1000.leakproof import read_leakproof, read_leakproofs, without_self
from perturbgen.l1000.metadata import unify
from perturbgen.l1000.profiles import Profiles, read_plate, read_signatures
from perturbgen.l1000.samples import landmarks
from perturbgen.l1000.signatures import collapse, modz, robust_z
from perturbgen.l1000.similarity import SIMILARITIES, symmetrised
from perturbgen.l1000.writer import GctxWriter, write_gct, write_gctx

__all__ = [
    "SIMILARITIES",
    "GctxFile",
    "GctxWriter",
    "Options",
    "Profiles",
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
    "symmetrised",
    "tau",
    "unify",
    "without_self",
    "write_gct",
    "write_gctx",
    "wtcs",
]
