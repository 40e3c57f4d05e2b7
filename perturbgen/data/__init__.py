"""Everything between a file and a batch: readers, schema, stores, covariates, splits, pseudobulk."""

from perturbgen.data.pseudobulk import pseudobulk

__all__ = ["pseudobulk"]
