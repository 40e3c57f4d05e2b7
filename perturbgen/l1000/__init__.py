"""L1000: reading CMap's files, landmark extraction, signatures and connectivity."""

from perturbgen.l1000.connectivity import SIMILARITIES, max_quantile, ncs, symmetrised, tau, wtcs
from perturbgen.l1000.extraction import ExtractionOptions, extract
from perturbgen.l1000.gct import write_gct
from perturbgen.l1000.gctx import GctxFile
from perturbgen.l1000.hdf5 import GctxWriter, write_gctx
from perturbgen.l1000.metadata import landmarks, perturbagen_values, read_genes, read_plate
from perturbgen.l1000.published import read_gmt, read_leakproof, read_level5, without_self
from perturbgen.l1000.schema import level_of, unify
from perturbgen.l1000.signatures import collapse, modz, robust_z
