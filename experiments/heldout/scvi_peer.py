"""Held-out likelihood of scvi-tools' SCVI; run by run.py in an environment of scvi-tools' own.

Arguments: h5ad file, conditions (comma-separated), seed, importance samples.
"""

import json
import sys
import warnings

import anndata
import numpy as np
import scvi

warnings.simplefilter("ignore")
path, conditions, seed, samples = (
    sys.argv[1],
    sys.argv[2].split(","),
    int(sys.argv[3]),
    int(sys.argv[4]),
)
scvi.settings.seed = seed
adata = anndata.read_h5ad(path)
n = adata.n_obs
held_out = np.random.default_rng(0).permutation(n)[: n // 5]
train = adata[np.setdiff1d(np.arange(n), held_out)].copy()
scvi.model.SCVI.setup_anndata(train, categorical_covariate_keys=conditions)
model = scvi.model.SCVI(train, n_hidden=128, n_layers=1, n_latent=10)
model.train(
    max_epochs=400,
    early_stopping=True,
    early_stopping_patience=30,
    accelerator="cpu",
    enable_progress_bar=False,
)
test = adata[held_out].copy()
log_likelihood = model.get_marginal_ll(test, n_mc_samples=samples, return_mean=False)
values = np.asarray(log_likelihood).mean()
print(json.dumps({"nll_per_gene": -float(values) / adata.n_vars, "version": scvi.__version__}))
