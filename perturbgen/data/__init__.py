"""Everything between a file and a batch: readers, schema, stores, covariates, splits, pseudobulk."""

from perturbgen.data.aggregate import pseudobulk
from perturbgen.data.covariates import CovariateEncoder
from perturbgen.data.h5ad import SparseH5ad, read_h5ad, take_layer, write_h5ad
from perturbgen.data.kaggle import (
    ORGANISERS_PLATES,
    read_competition,
    read_de,
    read_id_map,
    read_multiome,
)
from perturbgen.data.openproblems import read_openproblems, read_openproblems_de
from perturbgen.data.schema import find_violations, validate
from perturbgen.data.splits import KNOWN_IN_TARGETS, TARGETS, Split
from perturbgen.data.store import Batch, CountStore, SparseRows, epoch_rng

__all__ = [
    "KNOWN_IN_TARGETS",
    "ORGANISERS_PLATES",
    "TARGETS",
    "Batch",
    "CountStore",
    "CovariateEncoder",
    "SparseH5ad",
    "SparseRows",
    "Split",
    "epoch_rng",
    "find_violations",
    "pseudobulk",
    "read_competition",
    "read_de",
    "read_h5ad",
    "read_id_map",
    "read_multiome",
    "read_openproblems",
    "read_openproblems_de",
    "take_layer",
    "validate",
    "write_h5ad",
]
