#!/usr/bin/env bash
set -euo pipefail

# %%
# # A cluster, a GPU
#
# Nothing here needs more than two processor cores. This page says what can use more, and what was
# ever run on it.
#
# ## What is there?
perturbgen doctor | head -n 45

# %%
# ## Many jobs of a comparison
#
# A comparison is methods x splits x seeds, and each of them a job. Jobs run in processes:
# `--workers` says how many. Finished jobs are kept, so that an interrupted comparison goes on.
perturbgen simulate experiment --preset tiny --seed 0
cat > compare.toml <<'TOML'
[data]
folder = "experiment"

[methods.zeros]
[methods.compound_mean]
[methods.shrunken_additive]
TOML
perturbgen compare compare.toml --out comparison --workers 2 | tail -n 3

# %%
# ## The same on a cluster
#
# With the extra `cluster` (`pip install "perturbgen[cluster]"`) the jobs go to a Dask scheduler.
# Any kind of Dask cluster will do: SLURM, Kubernetes, SSH, or two processes on this machine, as
# here. The folders must be visible to all workers.
dask scheduler --host 127.0.0.1 --port 0 --no-dashboard --scheduler-file scheduler.json 2> scheduler.log &
scheduler=$!
while [ ! -s scheduler.json ]; do sleep 0.2; done
address=$(python -c "import json; print(json.load(open('scheduler.json'))['address'])")
dask worker "$address" --nworkers 2 --nthreads 1 --no-dashboard 2> worker.log &
worker=$!
perturbgen compare compare.toml --out on-dask --scheduler "$address" | tail -n 3
kill $worker $scheduler
wait 2> /dev/null || true

# %%
# The numbers do not depend on where a job ran:
python -c "
import pandas as pd
one, two = (pd.read_parquet(f'{folder}/scores.parquet') for folder in ('comparison', 'on-dask'))
pd.testing.assert_frame_equal(one, two)
print('the same scores,', one.shape)
"

# %%
# ## A GPU, several processes
#
# Training takes the first GPU where PyTorch finds one (`--device auto`), and several
# processes with `--devices`. Here two processes share the cores; with GPUs each takes one.
perturbgen ingest experiment --out counts.h5ad
cat > train.toml <<'TOML'
name = "two"
[data]
path = "counts.h5ad"
[conditions.cell_type]
[conditions.compound]
[model]
kind = "nbvae"
latent = 5
[training]
epochs = 2
[annealing]
warmup = 1
TOML
perturbgen train train.toml --devices 2 --device cpu

# %%
# ## What was run where
#
# | what | processor cores | several processes or machines | a GPU |
# |---|---|---|---|
# | training of cells, L1000, images | every test and every number | two processes on one machine, over gloo | never |
# | encode, evaluate, predict, generate | every test and every number | no | never |
# | differential expression | every test and every number | threads of one machine | never |
# | retrieval | every test and every number | threads of one machine | never |
# | comparisons | every test and every number | processes, and a Dask scheduler on one machine | not needed |
#
# "Never" is meant as it stands: the code for a GPU is written and has tests (marked `gpu`, which
# are skipped without one), and no number in the repository comes from one. If it fails for you,
# `--device cpu` goes back to what was run, and we would like to hear of it.
#
# ## The same numbers again
#
# One seed, one machine and one number of threads give the same run to the bit, whether it was
# interrupted or not. Another number of threads adds numbers up in another order, and another kind
# of machine has other kernels: there the weights differ from the seventh digit on.
