"""Readers, schema, stores, covariates, splits and pseudobulk: everything that enters does so through this door."""

from perturbgen.data.h5ad import read_h5ad
from perturbgen.data.h5ad_writer import write_h5ad
from perturbgen.data.kaggle import read_competition
from perturbgen.data.openproblems import read_openproblems
from perturbgen.data.schema import check

__all__ = ["check", "read_competition", "read_h5ad", "read_openproblems", "write_h5ad"]
