#!/usr/bin/env bash
set -euo pipefail

# %%
# # Your own cells
#
# Any h5ad of raw counts will do. This page makes one that a stranger could have made: other names
# of columns, patients in place of plates and wells, raw counts in a layer and normalised values
# in `X`; one drug was not given to one of the cell types.
python - <<'PYTHON'
import numpy as np
import perturbgen as pg

cells = pg.simulate("tiny", seed=1).cells()
chosen = cells.obs["cell_type"].isin(["NK cells", "T cells CD4+", "T regulatory cells"])
drugs = ["Dimethyl Sulfoxide", "Belinostat", "Dabrafenib"]
missing = (cells.obs["cell_type"] == "NK cells") & (cells.obs["compound"] == "Dabrafenib")
theirs = cells[chosen & cells.obs["compound"].isin(drugs) & ~missing].copy()
obs = theirs.obs[["cell_type", "compound", "donor"]].astype(str)
theirs.obs = obs.rename(columns={"cell_type": "celltype", "compound": "drug", "donor": "patient"})
theirs.uns = {}
theirs.layers["counts"] = theirs.X.copy()
theirs.X = theirs.X.astype(np.float32).log1p()
theirs.write_h5ad("theirs.h5ad")
print(theirs)
PYTHON

# %%
# ## What is what?
#
# `init` looks at the file and guesses, with a reason for each guess. At a terminal it asks where
# it is not sure; `--yes` takes every guess. It writes a column map and a configuration.
perturbgen init theirs.h5ad --yes
cat theirs/columns.toml

# %%
# ## Is it sound?
#
# Every violation is named at once: counts that are no counts, a vehicle that no cell has, empty
# labels, genes twice.
perturbgen data check theirs.h5ad --columns theirs/columns.toml

# %%
# ## Which genes respond?
perturbgen pseudobulk theirs.h5ad --columns theirs/columns.toml --out samples.h5ad
perturbgen de samples.h5ad --by cell_type --out de.parquet --plots de.html

# %%
# The page has a volcano and an MA plot for each condition; it says how many cells and samples
# stand behind each.
#
# {page} de.html Differential expression, condition by condition
#
# ## Train
#
# The configuration names the cells, what the model is told of each of them, and the model. What
# `conditions.csv` lists was set apart by `split.csv`: the model is not trained on it, so that it
# can be judged by it. `unmeasured.csv` lists what nobody measured.
cat theirs/config.toml theirs/conditions.csv theirs/unmeasured.csv
perturbgen train theirs/config.toml --set training.epochs=20 --set annealing.warmup=5

# %%
# ## Predict what nobody measured
#
# The last line says how far to trust it: how often genes that are predicted as strongly did respond
# in conditions that were measured. A warning says where the model had seen these, too; `split
# --kind calibration` makes a split for a second run that has not ([the Kaggle task](kaggle.md)).
perturbgen predict runs/latest --cells theirs.h5ad --conditions theirs/unmeasured.csv \
  --replicates 4 --out predictions.parquet --plots predictions.html

# %%
# {page} predictions.html Which genes respond, and how sure that is
#
# ## Is it better than a mean?
#
# `init` wrote a comparison, too: the model and simple baselines on the conditions that were set
# apart.
cat theirs/compare.toml
perturbgen compare theirs/compare.toml --workers 1 --out comparison

# %%
# With three patients, few cells and one condition to judge by, nothing of this is a finding. It is
# the road. [Compare with more baselines](comparing.md) before you believe a model.
#
# ## What perturbgen needs
#
# | column | needed | what it is |
# |---|---|---|
# | `cell_type` | yes, or one constant for all cells | type or line |
# | `compound` | yes | drug, guide, cytokine, ... |
# | the vehicle | yes | the compound with which the others are compared |
# | `sample` or `plate`, `well` | at least two samples a condition for p | what was kept together |
# | `donor`, `plate`, `library` | no | what makes samples differ for no good reason |
# | `dose` | no | where a compound has several, `init` makes one name of both (`[join]` in the map), so that each dose is a condition of its own |
