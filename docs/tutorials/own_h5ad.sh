#!/usr/bin/env bash
set -euo pipefail

# %%
# # Your own cells
#
# Any h5ad of raw counts can be used. This page makes one that a stranger could have made: other
# names of columns, no plates, no wells, counts in a layer, normalised values in `X`.
python - <<'PYTHON'
import numpy as np
import perturbgen as pg

cells = pg.simulate.simulate("tiny", seed=1).cells
theirs = cells[cells.obs["cell_type"].isin(["NK cells", "T cells CD4+"])].copy()
obs = theirs.obs[["cell_type", "compound", "donor"]]
theirs.obs = obs.rename(columns={"cell_type": "celltype", "compound": "drug", "donor": "patient"})
theirs.uns = {}
theirs.layers["raw"] = theirs.X.copy()
theirs.X = theirs.X.astype(np.float32).log1p()
theirs.write_h5ad("theirs.h5ad")
print(theirs)
PYTHON

# %%
# ## Say what the columns are
cat > columns.toml <<'TOML'
vehicle = "Dimethyl Sulfoxide"

[columns]
cell_type = "celltype"
compound = "drug"
donor = "patient"
TOML
perturbgen ingest theirs.h5ad --columns columns.toml --layer raw --out counts.h5ad
perturbgen data check counts.h5ad
