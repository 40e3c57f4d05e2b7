#!/usr/bin/env bash
set -euo pipefail

# %%
# # L1000 and images
#
# The second task: profiles of L1000 plates and of microscope images, embedded so that alike
# perturbations come close. One evaluator judges both, exactly and with controls that show what
# a plate or a well alone would give.
#
# ## An L1000 screen
#
# `simulate` writes a small screen in the files in which the real data lie in GEO. Real ones
# are read the same way (`perturbgen data list` names them; the two phases are 21 and 50 GB).
perturbgen l1000 simulate screen --preset tiny --seed 0
perturbgen l1000 check screen/*.gctx
perturbgen l1000 extract screen/*.gctx --meta screen/inst_info.txt --common-genes --out landmarks

# %%
# ## Train an embedder and judge it
#
# A fifth of the perturbagens is withheld. Their profiles have to find each other.
perturbgen l1000 train --data landmarks --set data.test=0.2 --set training.epochs=20

# %%
# Each row is a method. `mAP` and `AUC` say how well profiles of one perturbagen find each other
# (1 is best; `random` shows chance), `median q` where the first right one stands in the ranking
# (0 is best). WCCN and the replicate metric are linear: what a network has to beat.
#
# The second table asks the embedding harder questions: without neighbours of the same plate or
# the same well, with shuffled labels (chance again), and whether it finds *plates* and *wells*
# instead of perturbagens.
perturbgen l1000 evaluate runs/latest-embedder --part test --out evaluation

# %%
# Which perturbagens act like this one?
perturbgen l1000 neighbours runs/latest-embedder --of compound-3 --top 5

# %%
# On the one real plate that we have, the network does *not* beat the linear methods
# ([what was run on real data](../evidence.md)).
#
# ## Images
#
# `fixture` writes a small set in the exact form of a published one: `bbbc021`, `rxrx1`,
# `rxrx19a` and others. This one has images of spots and profiles of wells, some compounds active
# and some not.
perturbgen images fixture bbbc021 spots --seed 0
perturbgen images check spots

# %%
# A correction takes batch effects out by the control wells. A quarter of the controls is left out
# of the fit; the evaluation counts these only, because the correction has made the others alike.
perturbgen images correct spots --controls compound=DMSO --out corrected
perturbgen images evaluate corrected --same compound --controls compound=DMSO --batch plate

# %%
# A map for the eyes. It says how much of the neighbourhoods it keeps; judge by the numbers above.
#
# {page} map.html The wells as a map
perturbgen images map corrected --colour compound --colour plate --out map.html

# %%
# ## Which drugs bring diseased cells back?
#
# Drugs are ranked by how far they move diseased wells back to healthy ones. The screen has a few
# planted rescuers.
perturbgen images fixture rxrx19a covid --seed 0
perturbgen images hits covid --out hits.csv

# %%
# Networks on images (`perturbgen images train`) are trained by the same loop. They were only run
# on drawn images; `experiments/bbbc021` and `experiments/rxrx1` in the repository say what that
# shows and what it does not.
