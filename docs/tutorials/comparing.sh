#!/usr/bin/env bash
set -euo pipefail

# %%
# # Comparing methods
#
# A prediction is worth something if it is better than what anybody could have written down:
# zeros, the mean of each gene, the mean of each compound elsewhere. `perturbgen compare` runs
# methods on splits with seeds, scores them between two controls, and says how sure it is.
#
# A method learns from a table of differential expression (conditions x genes). A trained
# generative model joins it as a method that has seen cells.
perturbgen simulate experiment --preset tiny --seed 0
perturbgen baseline

# %%
# ## One baseline, one score
perturbgen baseline shrunken_additive --train experiment/de_train.parquet \
  --conditions experiment/id_map.csv --out additive.parquet
perturbgen score experiment/de_truth.parquet additive=additive.parquet --out scores | head -n 30

# %%
# Your own method can come from anywhere: write a parquet or CSV with the columns `cell_type`,
# `compound` and one for each gene, and give it a name (`mine=mine.parquet`).
#
# ## Many methods, many folds
#
# Two lines compare a dozen methods on three folds of compounds. Here a few quick ones:
cat > folds.toml <<'TOML'
[data]
folder = "experiment"

[methods.zeros]
[methods.compound_mean]
[methods.shrunken_additive]
[methods.kernel_ridge]
TOML
perturbgen compare folds.toml --out folds

# %%
# What perturbgen brings is a baseline, and what you bring (`baseline = "mine:Class"`, a file, a
# trained run) is a method that has to beat it, unless `[controls] baselines` says otherwise.
# What was computed is kept. Run it again and nothing is fitted twice; add a method and only that
# one is.
cat >> folds.toml <<'TOML'
[methods.bilinear_ridge]
TOML
perturbgen compare folds.toml --out folds 2>&1 | grep -E "kept|bilinear"

# %%
# ## A generative model beside them
#
# The split of kind `kaggle` withholds what the competition withheld. The run must not have seen
# it; one that has is refused. `replicate` is the experiment measured a second time: no method can
# be expected to be much better, so that it is the positive control.
perturbgen ingest experiment --out counts.h5ad
cat > train.toml <<'TOML'
name = "vae"
[data]
path = "counts.h5ad"
[conditions.cell_type]
[conditions.compound]
[conditions.plate]
[model]
kind = "nbvae"
latent = 10
[training]
epochs = 12
[annealing]
warmup = 6
TOML
perturbgen train train.toml
cat > compare.toml <<'TOML'
[data]
folder = "experiment"
truth = "de_truth.parquet"

[splits.kaggle]

[methods.zeros]
[methods.compound_mean]
[methods.shrunken_additive]

[methods.vae]
run = "runs/latest-vae"
cells = "counts.h5ad"
settings = { replicates = 4 }
TOML
perturbgen compare compare.toml --out comparison

# %%
# ## The report
#
# The folder has `scorecard.md` for a paper, `scores.parquet` with every number, and a page:
#
# {page} comparison/report.html The report of this comparison
#
# [Reading the report](report.md) says what each number means. With so small an
# experiment the intervals are wide; that is what they are for.
