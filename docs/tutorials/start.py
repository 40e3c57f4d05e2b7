"""Start in three minutes."""

# %%
# # Start in three minutes
#
# This page simulates a small experiment, trains a model on it, and asks for cells that nobody
# measured. It needs no data and no GPU. Everything happens in memory; at the end the model is a
# folder that you can keep, and a report is a page that you can send to somebody.
#
# The experiment is a small copy of the [Kaggle task](kaggle.md): compounds on human blood cells,
# on plates, with two cell types in which most compounds were never measured. Because it is
# simulated, the answer is known.
import perturbgen as pg

world = pg.simulate("tiny")  # or an AnnData of yours, and the table that you measured
cells, conditions, truth = world.cells(), world.conditions, world.de
print(cells.shape, "raw counts; the columns of obs that matter here:")
print(cells.obs[["cell_type", "compound", "plate", "well", "donor"]].head(3))

# %%
# What is to be predicted: pairs of a cell type and a compound.
print(conditions.head(3))

# %%
# ## A model is one object
#
# You say which columns of `obs` the model is told of each cell. `latent` is the number of
# dimensions of the space in which cells lie apart that differ for other reasons. `pg.DGD` and
# `pg.GaussianVAE` are used in the same way.
model = pg.NBVAE(cells, conditions=["cell_type", "compound", "plate"], latent=10)
print(model)

# %%
# Training on a handful of cells takes seconds. A tenth of the cells is kept aside for the choice
# of the best epoch.
model.train(epochs=20)
print(model)

# %%
# ## Ask it
#
# Every cell has a latent point. In `obsm`, scanpy and others find it.
cells.obsm["X_pg"] = model.latent(cells)
print(cells.obsm["X_pg"].shape)

# %%
# Are generated cells like real ones? A page shows both, the latent space coloured by what you
# choose, and the counts of a gene in a condition.
#
# {page} cells.html Real beside generated cells
from perturbgen.train import cells_page

store = model.run.of_cells(pg.CountStore.from_adata(cells))
states = cells.obs[["activation", "maturation", "subtype"]]  # or columns of yours
cells_page(model.run, store, states=states).write("cells.html")

# %%
# The model draws whole wells: how many cells, how deeply sequenced, which counts.
new = model.generate(conditions, cells=cells)
print(new.shape, "drawn, such as", new.X[:3, :12].toarray().tolist())

# %%
# The question of the laboratory is which genes respond. The drawn wells join the real ones,
# limma-voom tests them, and t is averaged over several drawn experiments. The answer is a table
# of signed -log10 p: positive where a gene goes up, 2 where p is .01.
de = model.predict_de(conditions, cells=cells)
print(de.iloc[:3, :6].round(2))

# %%
# A warning tells that the prediction was shrunk by what the model does on conditions that it has
# seen, so that it is too sure of itself. `calibration=` takes a second model that has not seen
# them; [the command line](kaggle.md) does the same.
#
# ## Is it any good?
#
# Ask before you believe it. `...` stands for a baseline of that name, fitted on the conditions that
# were measured. The headline is 0 for a prediction of zeros and 1 for a perfect one.
scores = pg.score(truth, {"mine": de, "additive": ..., "compound_mean": ...})
print(scores)

# %%
# {page} report.html The report
#
# [Reading the report](report.md) says what its numbers mean.
scores.report("report.html")

# %%
# ## Keep it
model.save("mine")
print(pg.NBVAE.load("mine", cells))

# %%
# ## Where to go on
#
# * [Your own cells](own_h5ad.md), from the shell.
# * [Comparing methods](comparing.md) on several folds.
# * `make demo` in a clone of the repository does all of this with two models.
