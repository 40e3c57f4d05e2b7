"""Every verb as it is meant to be used, on a small world of files; and how that world is made.

``{name}`` is an input, a path of the world; ``<name>`` is an output that is not there yet.
"""

from __future__ import annotations

CONFIG = """name = "nbvae"
[data]
path = "counts.h5ad"
[conditions.cell_type]
[conditions.compound]
unknown = true
[conditions.donor]
[model]
kind = "nbvae"
latent = 3
encoder = [8]
[model.decoder]
hidden = [8]
[training]
epochs = 1
threads = 1
"""
COMPARE = """seeds = [0]
[data]
folder = "sim"
truth = "de_truth.parquet"
[splits.compounds]
folds = 2
[methods.zeros]
[methods.gene_mean]
"""
TEXTS = {
    "nbvae.toml": CONFIG,
    "compare.toml": COMPARE,
    "columns.toml": '[obs]\ncompound = "compound"\ncell_type = "cell_type"\n',
}
TINY = "--device cpu --set training.threads=1 --set training.epochs=1"
MADE = f"""
simulate sim --preset tiny --set expression.genes=60 --set cells.per_well=12
ingest sim --out counts.h5ad
ingest sim --out measured.h5ad
pseudobulk counts.h5ad --out bulk.h5ad
de bulk.h5ad --flavour kaggle --out de.parquet
train nbvae.toml --device cpu
encode runs/0001-nbvae-s0 counts.h5ad --out latents.h5ad
samplers counts.h5ad --out samplers --set trees=5 --folds 2
predict runs/0001-nbvae-s0 --cells counts.h5ad --conditions sim/id_map.csv --samplers samplers
 --replicates 1 --estimator anchored_t --out vae.parquet
baseline gene_mean --train sim/de_train.parquet --conditions sim/id_map.csv --out mean.parquet
submit mean.parquet --id-map sim/id_map.csv --like sim/sample_submission.csv --out made.csv
l1000 simulate screen --preset tiny --set genes=80 --set design.compounds=8
l1000 extract screen/SIM_Level4_ZSPCQNORM_x80.gctx --meta screen/inst_info.txt --common-genes
 --out landmarks
l1000 train --data landmarks {TINY} --set model.size=4 --set data.validation=0.2
images fixture rxrx1 rxrx1
images fixture bbbc021 bbbc021
images fixture rxrx19a rxrx19a
images ingest bbbc021 --out bbbc021.profiles
images ingest rxrx19a --out rxrx19a.profiles
images train --data rxrx1 {TINY} --set data.workers=1 --set model.embedding=4
 --set training.batch_size=16 --set model.widths=[4] --set board.every=9
"""
RUN, EMBEDDER, NETWORK = "runs/0001-nbvae-s0", "runs/0002-embedder-s0", "runs/0003-run-s0"
GCTX = "screen/SIM_Level4_ZSPCQNORM_x80.gctx"
ASKED = "{sim/id_map.csv} --like {sim/sample_submission.csv}"
LEARN = "--train {sim/de_train.parquet} --conditions {sim/id_map.csv}"

# what a verb needs besides its inputs, because a file of the world names it
ALSO = {
    "nbvae.toml": ("counts.h5ad",),
    "compare.toml": ("sim",),
    EMBEDDER: ("landmarks",),
    NETWORK: ("rxrx1",),
}
VERBS = f"""
ingest {{sim}} --out <new.h5ad>
ingest {{counts.h5ad}} --out <new.h5ad>
pseudobulk {{counts.h5ad}} --out <new.h5ad>
split {{counts.h5ad}} --kind kfold --column compound --out <new.csv>
de {{bulk.h5ad}} --flavour kaggle --out <new.parquet>
de {{bulk.h5ad}} --flavour kaggle --plots <new.html>
train {{nbvae.toml}} --data {{counts.h5ad}} --device cpu --runs <new>
encode {{{RUN}}} {{counts.h5ad}} --out <new.h5ad>
evaluate {{{RUN}}} {{counts.h5ad}} --samples 2 --out <new.json>
samplers {{counts.h5ad}} --conditions {{sim/id_map.csv}} --set trees=5 --folds 2 --out <new>
generate {{{RUN}}} --cells {{counts.h5ad}} --conditions {{sim/id_map.csv}} --samplers {{samplers}}
 --out <new>
predict {{{RUN}}} --cells {{counts.h5ad}} --conditions {{sim/id_map.csv}} --samplers {{samplers}}
 --replicates 1 --estimator plug_in --out <new.parquet>
ensemble a={{vae.parquet}},{{sim/de_train.parquet}} b={{mean.parquet}},{{sim/de_train.parquet}}
 --truth {{sim/de_train.parquet}} --out <new.parquet>
baseline gene_mean {LEARN} --out <new.parquet>
score {{sim/de_truth.parquet}} {{mean.parquet}} vae={{vae.parquet}} --resamples 20 --out <new>
score-cells {{counts.h5ad}} {{measured.h5ad}} --perturbation plate --control plate_0 --splits 1
 --out <new>
compare {{compare.toml}} --workers 1 --no-report --out <new>
retrieve {{latents.h5ad}} --key X_latent --same compound --out <new>
neighbours {{latents.h5ad}} --key X_latent --same compound --out <new>
submit {{mean.parquet}} --id-map {ASKED} --out <new.csv>
check-submission {{made.csv}} --id-map {ASKED}
data check {{counts.h5ad}}
data show {{counts.h5ad}} --out <new.html>
l1000 check {{{GCTX}}}
l1000 extract {{{GCTX}}} --meta {{screen/inst_info.txt}} --common-genes --out <new>
l1000 train --data {{landmarks}} {TINY} --set model.size=4 --runs <new>
l1000 embed {{{EMBEDDER}}} {{{GCTX}}} --meta {{screen/inst_info.txt}} --out <new.h5ad>
l1000 evaluate {{{EMBEDDER}}} --part all --out <new>
l1000 neighbours {{{EMBEDDER}}} --of compound-1
images check {{rxrx1}}
images ingest {{bbbc021}} --out <new>
images correct {{bbbc021.profiles}} --controls compound=DMSO --out <new>
images hits {{rxrx19a.profiles}} --draws 100 --out <new.csv>
images map {{bbbc021.profiles}} --method pca --out <new.html>
images embed {{{NETWORK}}} --part test --out <new>
images evaluate {{bbbc021.profiles}} --same compound --controls compound=DMSO --draws 99
 --plots <new.html>
images evaluate {{{NETWORK}}} --plots <new.html>
"""


def joined(text: str) -> list[str]:
    """Lines; one that begins with a blank goes on with the one before."""
    return text.replace("\n ", " ").strip().splitlines()
