"""Cells/s of scvi-tools' SCVI; run by train.py in an environment of scvi-tools' own.

Arguments: h5ad file, threads, accelerator.
"""

import json
import sys
import time
import warnings

import anndata
import scvi
import torch

warnings.simplefilter("ignore")
path, threads, accelerator = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(threads)
scvi.settings.seed = 0
adata = anndata.read_h5ad(path)
scvi.model.SCVI.setup_anndata(adata)
model = scvi.model.SCVI(adata, n_hidden=256, n_layers=2, n_latent=10)
times = []
for _ in range(2):
    began = time.perf_counter()
    model.train(
        max_epochs=1,
        batch_size=128,
        train_size=1.0,
        accelerator=accelerator,
        enable_progress_bar=False,
    )
    times.append(time.perf_counter() - began)
print(json.dumps({"cells_per_second": adata.n_obs / min(times), "version": scvi.__version__}))
