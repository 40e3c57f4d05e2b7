"""Start in three minutes."""

# %%
# # Start in three minutes
#
# This page simulates a small experiment, trains a model on it, and asks for cells that nobody
# measured. It needs no data and no GPU. Everything happens in memory; at the end the model is a
# folder that you can keep.
#
# The experiment is a small copy of the [Kaggle task](kaggle.md): compounds on human blood cells,
# on plates, with cell types in which most compounds were never measured.
import perturbgen as pg

experiment = pg.simulate.simulate("tiny", seed=0)
cells = experiment.cells  # an AnnData: raw counts, one row per cell
print(cells)
print(cells.obs[["cell_type", "compound", "plate", "well"]].head())

# %%
# ## A model is one object
#
# You say which columns of `obs` the model is conditioned on. `latent` is the number of dimensions
# of the space in which cells that differ for other reasons lie apart.
model = pg.NBVAE(cells, conditions=["cell_type", "compound", "plate"], latent=10)
print(model)

# %%
# Training on a handful of cells takes seconds. A tenth of the cells is kept aside for the choice
# of the best epoch.
model.train(epochs=20, annealing={"warmup": 10})
print(model)

# %%
# ## Ask it
#
# Every cell has a latent point; scanpy and others find it in `obsm`.
cells.obsm["X_pg"] = model.latent()
print(cells.obsm["X_pg"].shape)

# %%
# Now two conditions that the experiment never measured. The model draws whole wells: how many
# cells, how deeply sequenced, which counts.
import pandas as pd

conditions = pd.DataFrame(
    {"cell_type": ["B cells", "Myeloid cells"], "compound": ["Compound 001", "Compound 002"]}
)
new = model.generate(conditions)
print(new)
print(
    new.X.data[:12],
    "median counts of a cell:",
    int(pd.Series(new.X.sum(axis=1).ravel().tolist()[0]).median()),
)

# %%
# The question of the laboratory is which genes respond. The drawn wells join the real ones, and
# limma-voom tests them. The answer is a table of signed -log10 p: positive where a gene goes up,
# 2 where p is 0.01.
de = model.predict_de(conditions, replicates=4)
print(de.iloc[:, :6].round(2))
print(de.T.abs().max().round(2))

# %%
# ## Keep it
model.save("mine")
again = pg.NBVAE.load("mine", cells)
print(again)

# %%
# ## Where to go on
#
# * [Your own cells](own_h5ad.md), from the shell.
# * [Comparing methods](comparing.md): is a model better than the mean of what was measured? Ask
#   before you believe one.
# * `make demo` in a clone of the repository does all of this with two models and ends in a
#   report.
