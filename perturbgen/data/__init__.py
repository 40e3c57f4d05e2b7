"""What lies between a file and a batch: readers, schema, stores, covariates, splits, pseudobulk."""

from perturbgen.core.h5ad import write_h5ad
from perturbgen.data.aggregate import groups_of, layout_of, pseudobulk
from perturbgen.data.backing import SparseRows
from perturbgen.data.column_names import name_rank
from perturbgen.data.covariates import (
    CovariateEncoder,
    complete,
    morgan_fingerprints,
    read_smiles,
    require_same_genes,
)
from perturbgen.data.h5ad import SparseH5ad, genes_of, our_obs, read_h5ad, take_layer
from perturbgen.data.kaggle import (
    ORGANISERS_PLATES,
    is_gene,
    read_competition,
    read_conditions,
    read_de,
    read_id_map,
    read_multiome,
)
from perturbgen.data.maps import GREY, named, pseudobulk_components, tints
from perturbgen.data.openproblems import DE_LAYER, read_openproblems, read_openproblems_de
from perturbgen.data.samples import (
    parts_of_label,
    sample_problem,
    sampled,
    samples_of,
    with_samples,
)
from perturbgen.data.schema import KAGGLE_COLUMNS, depth, find_violations, validate
from perturbgen.data.splits import KNOWN_IN_TARGETS, TARGETS, Split
from perturbgen.data.store import Batch, CountStore
