"""Reading the report."""

# %%
# # Reading the report
#
# What does each number mean? The quickest way to learn it is to score predictions whose faults
# are known. Take a simulated experiment, whose truth is at hand, and spoil it.
import numpy as np

import perturbgen as pg

world = pg.simulate("tiny")
truth = world.de  # signed -log10 p: conditions x genes
print(truth.shape)

# %%
# Five predictions:
#
# * `again`: the truth with noise of its own size, something like a second experiment;
# * `small`: a tenth of that. The order of the genes is the same, the size is wrong;
# * `one for all`: the mean over conditions, the same for every compound;
# * `shuffled`: the rows of `again` dealt to other compounds of the same cell type;
# * `zeros`: nothing responds.
rng = np.random.default_rng(0)
again = truth + rng.normal(scale=truth.to_numpy().std(), size=truth.shape)
one_for_all = truth * 0 + truth.mean()
order = np.concatenate(
    [rng.permutation(rows) for rows in truth.groupby("cell_type").indices.values()]
)
back = np.concatenate(list(truth.groupby("cell_type").indices.values()))
shuffled = again.copy()
shuffled.iloc[back] = again.iloc[order].to_numpy()
scores = pg.score(
    truth, {"again": again, "small": again / 10, "one for all": one_for_all, "shuffled": shuffled}
)
print(scores)

# %%
# ## The headline
#
# The headline is the mean *share of the way* over a few metrics: 0 is the best negative control
# (here zeros), 1 the positive control, or a perfect prediction where there is none. In brackets
# stands an interval of 95 %: conditions are drawn again and again, all of one compound together.
# Of fewer than five compounds, the conditions are drawn one by one, and of fewer than five
# conditions there is no interval; the page says so.
# Two methods whose intervals overlap may still differ; the report compares them pair by pair, on
# the same conditions.
#
# `small` has the same headline as `again`, because the metrics of the headline only see the
# *order* of genes and conditions. That is on purpose: whoever multiplies a prediction by a tenth
# has learned nothing.
#
# ## Errors see the size
columns = ["again", "small", "one for all", "shuffled"]
errors = ["mean_rowwise_rmse", "mean_rowwise_mae"]
print(scores.table.loc[errors, columns].round(3))

# %%
# RMSE is the score of the Kaggle competition. Where most of a table is noise, small predictions
# have small errors, and zeros are hard to beat. Look at it beside the headline, not instead.
#
# ## Correlations reward what all conditions share
correlations = ["mean_rowwise_pearson", "mean_rowwise_spearman", "mean_rowwise_cosine"]
print(scores.table.loc[correlations, columns].round(3))

# %%
# `one for all` knows nothing of any compound and still has a correlation, because conditions
# respond alike. Only one kind of metric notices:
#
# ## Are conditions told apart?
apart = [name for name in scores.table.index if "discrimination" in name]
print(scores.table.loc[apart, columns].round(3))

# %%
# *Discrimination* asks of each prediction: what share of the other compounds' truths is farther
# away than its own? A constant gets exactly one half, `shuffled` about as much. With plates and
# rows known (`layout=`) a second metric asks it among compounds of one place, because a method
# that only knows the place can tell compounds apart as well.
#
# ## Lists of genes
#
# Precision, recall and overlap compare lists of responding genes (adjusted p at most .05). A
# recall of 1 is had by calling everything responding, so read it beside the precision.
lists = [name for name in scores.table.index if name.startswith(("de_", "top_"))]
print(scores.table.loc[lists, columns].round(3))

# %%
# ## The page
#
# * The first sentence says who is best, by how much over the best baseline, how surely, and on
#   which metrics *not*.
# * *Ranking*: every method with its headline. Controls and references have no place.
# * *By cell type and compound*: where a method is good. Weak conditions (few responding genes)
#   and strong ones are apart, because methods differ in which they are good at.
# * *Predicted against true*: a point is a gene. A cloud along the diagonal is right in size; one
#   that is flat has been shrunk.
# * *Genes*: one gene over all conditions.
# * *All metrics* and *Definitions*: every number, its interval, what it means.
#
# {page} report.html The report of these five
#
# [Metrics](../reference/metrics.md) has the definition of each, written from the code.
scores.report("report.html", title="Five predictions with known faults")
