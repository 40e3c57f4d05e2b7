#!/usr/bin/env bash
set -euo pipefail
REPOSITORY=${REPOSITORY:-$(cd "$(dirname "$0")/../.." && pwd)}

# %%
# # My own model, metric and baseline
#
# Nothing in perturbgen has to be changed to add one. A class or a function lies in your package,
# which names it as an *entry point*; or in a file of the working directory, and is asked for as
# `module:Object`. `docs/example_package` of the repository has one of each:
cp "$REPOSITORY"/docs/example_package/perturbgen_example.py mine.py
cat mine.py

# %%
# * A **model** inherits from one of ours and changes what it wants to. Its settings are the
#   arguments of `__init__`.
# * A **metric** is a function and a `Metric` that says what it means: its range, its direction,
#   what zeros get.
# * A **baseline** has `fit` and `predict`. It sees labelled tables of signed -log10 p.
#
# ## Does it keep its promises?
#
# Shapes, missing values and conditions that nobody has seen, the same numbers from the same seed,
# inputs left as they were. What is broken is named.
perturbgen check-extension mine:FreeBits mine:STRONGEST_SIGN mine:ShrunkCompound

# %%
# A metric that breaks a promise, on purpose: it calls itself higher-is-better and is an error.
cat > wrong.py <<'PYTHON'
import numpy as np

from perturbgen.evaluate import Metric

ERROR = Metric(
    "my_error",
    "My error",
    "Mean absolute difference.",
    lambda pair: np.abs(pair.truth.values - pair.prediction.values).mean(axis=1),
    "zeros",
    higher_is_better=True,
    high=1,
)
PYTHON
perturbgen check-extension wrong:ERROR || echo "exit code $?"

# %%
# ## Beside the others
#
# The baseline and the model join a comparison by their names, the metric by `[score]`.
perturbgen simulate experiment --preset tiny --seed 0
perturbgen ingest experiment --out counts.h5ad
cat > train.toml <<'TOML'
name = "free-bits"
[data]
path = "counts.h5ad"
[conditions.cell_type]
[conditions.compound]
[conditions.plate]
[model]
kind = "mine:FreeBits"
latent = 10
settings = { free = 4.0 }
[training]
epochs = 8
[annealing]
warmup = 4
TOML
perturbgen train train.toml

# %%
cat > compare.toml <<'TOML'
[data]
folder = "experiment"
truth = "de_truth.parquet"

[splits.kaggle]

[score]
metrics = ["mean_rowwise_rmse", "mean_rowwise_pearson", "mean_rowwise_spearman",
           "perturbation_discrimination", "top_100_overlap", "mine:STRONGEST_SIGN"]

[methods.zeros]
[methods.compound_mean]

[methods.shrunk_compound]
baseline = "mine:ShrunkCompound"
settings = { weight = 1.0 }

[methods.free_bits]
run = "runs/latest-free-bits"
cells = "counts.h5ad"
settings = { replicates = 2 }
TOML
perturbgen compare compare.toml --out comparison
cat comparison/scorecard.md | head -n 30

# %%
# ## As a package
#
# In a package, entry points give the names. After `pip install` they are found everywhere: in
# `perturbgen baseline`, in comparisons, in `[model] kind`.
cat "$REPOSITORY"/docs/example_package/pyproject.toml
