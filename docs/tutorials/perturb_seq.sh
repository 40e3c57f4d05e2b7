#!/usr/bin/env bash
set -euo pipefail

# %%
# # Perturb-seq: a pooled screen
#
# A pooled screen has guides in place of drugs, lanes in place of plates, and no wells. This page
# makes a small one: two cell lines, twelve targets, three lanes. Four of the targets were never
# measured in the second line. What would they have done there?
cat > make.py <<'PYTHON'
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

rng = np.random.default_rng(0)
genes = [f"GENE{i}" for i in range(200)]
lines, lanes = ["K562", "RPE1"], ["lane_1", "lane_2", "lane_3"]
targets = [f"GENE{i}" for i in range(1, 13)]
mean = {line: rng.lognormal(-1, 1.2, 200) for line in lines}
programmes = rng.normal(size=(3, 200)) * (rng.random((3, 200)) < 0.2)
strength = rng.uniform(0.3, 1.0, 13)
lane_effect = {lane: rng.normal(scale=0.1, size=200) for lane in lanes}
rows, labels = [], []
for line in lines:
    for number, target in enumerate(["non-targeting", *targets]):
        if line == "RPE1" and number > 8:
            continue  # never measured there
        effect = programmes[number % 3] * strength[number] * (number > 0)
        effect[number] -= 2.5 * (number > 0)  # the target itself is knocked down
        for _ in range(40 if number else 120):
            lane = lanes[rng.integers(3)]
            depth = rng.lognormal(0, 0.3)
            expected = mean[line] * np.exp(effect + lane_effect[lane]) * depth
            rows.append(rng.poisson(rng.gamma(2, expected / 2)))
            labels.append((line, target, lane))
obs = pd.DataFrame(labels, columns=["cell_line", "gene_target", "lane"])
obs.index = [f"cell{i}" for i in range(len(obs))]
counts = sparse.csr_matrix(np.array(rows, dtype=np.int32))
screen = AnnData(counts, obs=obs, var=pd.DataFrame(index=genes))
screen.write_h5ad("screen.h5ad")
print(screen)
PYTHON
python make.py

# %%
# ## What are the columns?
#
# `init` looks, guesses, and says why. What is wrong can be said (`--vehicle`, `--compound`, ...)
# or changed in the file that it writes.
perturbgen init screen.h5ad --yes
cat screen/columns.toml

# %%
# ## Which genes respond?
#
# Cells of one target, line and lane are summed to a sample; limma-voom compares targets with the
# non-targeting guides. The design is chosen by what tells the samples apart.
perturbgen pseudobulk screen.h5ad --columns screen/columns.toml --out samples.h5ad
perturbgen de samples.h5ad --by cell_type --out de.parquet

# %%
# ## Train
perturbgen train screen/config.toml --set training.epochs=20 --set annealing.warmup=5

# %%
# ## Predict the targets that were not measured in RPE1
#
# Without wells, a drawn sample stands in the lanes of the non-targeting cells. The warning says
# what could not be checked: how much to shrink is learned on conditions that the model has seen.
cat > wanted.csv <<'CSV'
cell_type,compound
RPE1,GENE9
RPE1,GENE10
RPE1,GENE11
RPE1,GENE12
CSV
perturbgen predict runs/latest --cells screen.h5ad --conditions wanted.csv \
  --replicates 4 --out predictions.parquet

# %%
# This screen was made here, so that the truth is known: each target moves one of three programmes,
# and brings itself down. Does the prediction say so?
python - <<'PYTHON'
import pandas as pd

table = pd.read_parquet("predictions.parquet").set_index("sm_name").drop(columns="cell_type")
for target, row in table.iterrows():
    strongest = row.abs().sort_values(ascending=False).index[:5].tolist()
    place = int(row.rank()[target])
    print(f"{target}: strongest {strongest}; the target is number {place} from below of {len(row)}")
PYTHON

# %%
# Each of the five strongest genes of a target would have to be of its programme; compare the targets
# that share one (GENE9 and GENE12). With so few cells some are.
#
# What this model cannot know is a target that was measured in no line at all. For drugs,
# descriptors of their molecules are a way out (`encoding = "descriptors"`, which needs SMILES);
# for genes there is none here. Nothing on this page was done on real data;
# [what was](../evidence.md).
