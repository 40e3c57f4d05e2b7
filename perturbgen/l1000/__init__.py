"""L1000: reading CMap's files, landmark extraction, signatures and connectivity."""

from perturbgen.l1000.connectivity import max_quantile, ncs, read_gmt, tau, wtcs
from perturbgen.l1000.extraction import ExtractionOptions, extract
from perturbgen.l1000.fields import level_of
from perturbgen.l1000.gctx import GctxFile
from perturbgen.l1000.leakproof import read_leakproof, read_leakproofs, without_self
from perturbgen.l1000.metadata import perturbagen_values, unify
from perturbgen.l1000.profiles import Extraction, read_level5, read_plate
from perturbgen.l1000.samples import find_genes, landmarks, read_genes
from perturbgen.l1000.signatures import collapse, modz, robust_z
from perturbgen.l1000.similarity import SIMILARITIES, symmetrised
from perturbgen.l1000.writer import GctxWriter, write_gct, write_gctx
