"""Differential expression: limma-voom with R's own numbers, natively or through R.

>>> from perturbgen.de import limma_table
>>> table = limma_table(
...     pseudobulk, design="~0 + {group} + donor", group="compound", control="DMSO", by="cell_type"
... )
>>> table.signed_log10_p
"""

from perturbgen.de.batch import remove_batch_effect
from perturbgen.de.blocks import duplicate_correlation
from perturbgen.de.contrast_table import contrast_table
from perturbgen.de.limma import FLAVOURS, flavour_table, limma_table
from perturbgen.de.linear import LinearFit, fit
from perturbgen.de.mds import mds
from perturbgen.de.moderated import Moderated
from perturbgen.de.normalise import filter_by_expr, log_cpm, norm_factors, tmm_factors
from perturbgen.de.plan import usual_design
from perturbgen.de.quality import array_weights
from perturbgen.de.sets import camera, fry, read_gmt, roast
from perturbgen.de.table import DETable, labelled, read_de_table
from perturbgen.de.tails import log_p_t
from perturbgen.de.weighting import voom
