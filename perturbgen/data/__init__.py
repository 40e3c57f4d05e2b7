"""Everything between a file and a batch: readers, schema, stores, covariates, splits, pseudobulk."""

from perturbgen.data.aggregate import pseudobulk
from perturbgen.data.covariates import CovariateEncoder
from perturbgen.data.h5ad import read_h5ad, write_h5ad
from perturbgen.data.kaggle import read_competition
from perturbgen.data.openproblems import read_openproblems
from perturbgen.data.schema import check, validate
from perturbgen.data.store.base import Batch, CountStore, SparseRows, epoch_rng

__all__ = [
    "Batch",
    "CountStore",
    "CovariateEncoder",
    "SparseRows",
    "check",
    "epoch_rng",
    "pseudobulk",
    "read_competition",
    "read_h5ad",
    "read_openproblems",
    "validate",
    "write_h5ad",
]
