"""L1000: reading CMap's files, landmark extraction, signatures and connectivity, and a simulator of screens."""

from perturbgen.profiles.l1000.extract import Options, extract
from perturbgen.profiles.l1000.gctx import GctxFile
from perturbgen.profiles.l1000.gctx_writer import GctxWriter, write_gct, write_gctx
from perturbgen.profiles.l1000.genes import landmarks
from perturbgen.profiles.l1000.metadata import unify
from perturbgen.profiles.l1000.profiles import Profiles

__all__ = ["GctxFile", "GctxWriter", "Options", "Profiles", "extract", "landmarks", "unify", "write_gct", "write_gctx"]
