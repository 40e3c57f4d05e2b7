"""Records what the package computes, so that a restructuring can be shown to change nothing.

    python tests/frozen/record.py record TREE OUT [--only CASE...]  # every case by TREE's code
    python tests/frozen/record.py old-runs TREE OUT [--name NAME]   # the runs in OUT by TREE's code
    python tests/frozen/record.py compare OUT_A OUT_B [--only CASE...] [--verbose]

``record`` runs the command line and experiments of TREE (a checkout) in processes of their own,
with one thread and fixed seeds, and leaves all that they write and say in OUT/CASE. A case reads
files of the cases before it, so that --only works where those are in OUT already. ``old-runs``
copies run directories, samplers and a comparison out of OUT, a recording of any tree, and uses
them with the code of TREE; results are in OUT/old-runs-NAME (by default TREE's own name).
``compare`` tells two recordings (or two folders of old-runs) apart, file by file and to the bit,
and exits with 1 if anything differs. What is said on standard error and by --help, and the words
of HTML pages, are shown with --verbose, but decide nothing; the numbers in the pages do.

To check a tree NEW against an older one OLD (two checkouts; recordings lie beside them):

    python tests/frozen/record.py record OLD frozen/old
    python tests/frozen/record.py record NEW frozen/new
    python tests/frozen/record.py compare frozen/old frozen/new
    python tests/frozen/record.py old-runs OLD frozen/old --name old
    python tests/frozen/record.py old-runs NEW frozen/old --name new
    python tests/frozen/record.py compare frozen/old/old-runs-old frozen/old/old-runs-new

Imports nothing of the package, only what it depends on: once, then every step is a fork. With
FROZEN_FRESH=1 in the environment every step is a new interpreter, which takes twice as long. Real
data are looked for in PERTURBGEN_DATA, by default the folder shared/data beside TREE.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import gzip
import hashlib
import importlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

THREADS = ("OMP", "OPENBLAS", "MKL", "NUMBA", "NUMEXPR")
LOGS = "said"  # folder of a case: what each step printed
OLD = "old-runs-"
FRESH = "FROZEN_FRESH"  # where it is set, each step gets an interpreter of its own


# Recording


@dataclass
class Recorder:
    """Runs the steps of a case in its folder and keeps what they say."""

    tree: Path
    data: Path
    folder: Path
    codes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / LOGS).mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, command: str, *, module: str = "perturbgen") -> int:
        """Run a verb, or with an empty ``module`` a script of the tree; DATA is the real data."""
        words = [word.replace("DATA", str(self.data)) for word in shlex.split(command)]
        program = ["-m", module] if module else [str(self.tree / words.pop(0))]
        said = self.folder / LOGS
        with (said / f"{name}.out").open("wb") as out, (said / f"{name}.err").open("wb") as err:
            if FRESH in os.environ:
                given: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
                started = [sys.executable, *program, *words]
                code = subprocess.run(started, cwd=self.folder, check=False, **given).returncode
            else:
                code = self.forked(program, words, (out.fileno(), err.fileno()))
        self.codes[name] = code
        (said / "codes.json").write_text(json.dumps(self.codes, indent=1))
        return code

    def forked(self, program: list[str], words: list[str], streams: tuple[int, int]) -> int:
        """As ``python *program *words``, in a child that has the slow libraries imported."""
        sys.stdout.flush()
        if child := os.fork():
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for number, stream in enumerate((os.open(os.devnull, os.O_RDONLY), *streams)):
            os.dup2(stream, number)
        os.chdir(self.folder)
        sys.argv = [program[-1], *words]
        code: Any = 0
        try:
            if program[0] == "-m":
                sys.path[0] = str(self.folder)
                runpy.run_module(program[1], run_name="__main__", alter_sys=True)
            else:
                sys.path[0] = str(Path(program[0]).parent)
                runpy.run_path(program[0], run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            code = 1
        # What an interpreter does at its end, but for taking all modules apart, which takes long.
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))

    def must(self, name: str, command: str, *, module: str = "perturbgen") -> None:
        """As a call, but a failure is shown: it should not have been one."""
        code = self(name, command, module=module)
        if code:
            said = (self.folder / LOGS / f"{name}.err").read_text().strip()
            print(f"    {self.folder.name}/{name} exits with {code}: {said[-400:]}", flush=True)

    def script(self, name: str, command: str) -> None:
        """Run an experiment."""
        self.must(name, command, module="")

    def write(self, name: str, text: str) -> None:
        """A small input."""
        (self.folder / name).write_text(text)

    def keep(self, name: str, copy: str) -> None:
        """A copy of what the next steps change."""
        if (self.folder / name).exists():
            shutil.copytree(self.folder / name, self.folder / copy)


def demo(do: Recorder) -> None:
    """The demo, as small as it goes."""
    sets = "--set preset=tiny --set epochs=2 --set replicates=2"
    do.script("demo", f"experiments/demo/run.py {sets}")
    run = "runs/0001-demo-s0"
    ids = f"--id-map {run}/competition/id_map.csv"
    do.must(
        "check",
        f"check-submission {run}/submission.csv {ids} "
        f"--like {run}/competition/sample_submission.csv",
    )


def cells(do: Recorder) -> None:
    """From a simulated experiment to differential expression."""
    do.must("version", "--version")
    do.must("simulate", "simulate sim --preset tiny --seed 0 --json")
    do.must("simulate-dry", "simulate other --preset small --dry-run --set cells.per_well=50")
    real = "--plan DATA/op3 --means DATA/op3/celltype_baseline_means.csv"
    real += " --signatures DATA/op3/de_ranks_4x135x6349.npz"
    do.must("simulate-semireal", f"simulate semireal --preset tiny --seed 1 {real}")
    do.must("ingest", "ingest sim --out counts.h5ad --json")
    do.must("ingest-plates", "ingest sim --out plates.h5ad --organisers-plates --keep-excluded")
    do.must("data-check", "data check counts.h5ad")
    do.must("data-check-json", "data check sim --json")
    do.must("data-list", "data list")
    do.must("data-show", "data show counts.h5ad --out page.html")
    do.must("pseudobulk", "pseudobulk counts.h5ad --out bulk.h5ad --json")
    do.must("pseudobulk-by", "pseudobulk counts.h5ad --by cell_type,compound --out conditions.h5ad")
    out = "compound --value Dabrafenib --value Belinostat --value 'Compound 006' --out out.csv"
    do.must("split-leave-out", f"split counts.h5ad --kind leave-out --column {out}")
    do.must(
        "split-random", "split counts.h5ad --kind random --fraction 0.1 --seed 1 --out random.csv"
    )
    do.must("split-kfold", "split counts.h5ad --kind kfold --column compound --folds 4 --out k.csv")
    do.must("split-kaggle", "split counts.h5ad --kind kaggle --public 5 --out kaggle.csv")
    design = "--design '~0 + {group} + donor + plate' --by cell_type"
    flavours = {
        "kaggle": "--flavour kaggle --plots kaggle.html",
        "kaggle-plates": "--flavour kaggle --keep-plates",
        "kaggle-exact": "--flavour kaggle --contrasts exact",
        "op3": "--flavour op3",
        "exact": design,
        "robust": f"{design} --robust --trend",
        "limma": f"{design} --contrasts limma --normalise none",
        "joint": f"{design} --joint --gene-filter filterByExpr",
        "adaptive": f"{design} --span adaptive --gene-filter intersection",
        "kaggle-r": "--flavour kaggle --backend r",
        "op3-r": "--flavour op3 --backend r",
        "robust-r": f"{design} --robust --backend r --contrasts limma",
    }
    for name, options in flavours.items():
        # R may be absent
        do(f"de-{name}", f"de bulk.h5ad {options} --out de-{name}.parquet --json")
    do.must("de-h5ad", f"de bulk.h5ad {design} --out de-exact.h5ad")
    do("de-verify", "de bulk.h5ad --flavour kaggle --verify 50 --json")


KANG = """vehicle = "ctrl"
[columns]
cell_type = "cluster_id"
compound = "group_id"
[extract]
donor = { column = "sample_id", pattern = "^(?:ctrl|stim)(.+)$" }
"""


def kang(do: Recorder) -> None:
    """Kang's cells, by both backends."""
    import pandas as pd
    from anndata import AnnData

    do.write("kang.toml", KANG)
    folder = do.data / "limma_kang"
    counts = pd.read_csv(folder / "kang_pseudobulk_counts.csv", index_col=0).T
    obs = pd.read_csv(folder / "kang_pseudobulk_obs.csv", index_col=0)
    obs = obs.astype({name: str for name in obs if obs[name].dtype == object})
    var = pd.DataFrame(index=counts.columns)
    AnnData(counts.to_numpy(float), obs.loc[counts.index], var).write_h5ad(do.folder / "kang.h5ad")
    common = "--group group --control ctrl --gene-filter filterByExpr"
    common += " --by cluster --joint --design '~0 + {group} + donor'"
    for name, options in {"exact": "", "limma": "--contrasts limma", "robust": "--robust"}.items():
        do.must(f"de-{name}", f"de kang.h5ad {common} {options} --out {name}.parquet")
        do(f"de-{name}-r", f"de kang.h5ad {common} {options} --backend r --out {name}-r.parquet")
    source = "DATA/counts/kang_ifnb.h5ad --columns kang.toml"
    do.must("check", f"data check {source}")
    do.must("sums", f"pseudobulk {source} --by cell_type,donor,compound --out sums.h5ad")
    design = "--design '~0 + {group} + donor' --by cell_type"
    do.must("de-sums", f"de sums.h5ad {design} --out sums.parquet --plots sums.html")
    do.script("macseq", "experiments/macseq_de/run.py")


CONFIG = """name = "{kind}"
[data]
path = "../cells/counts.h5ad"
split = "../cells/out.csv"
[conditions.cell_type]
[conditions.compound]
[conditions.plate]
[model]
kind = "{kind}"
latent = 4
[model.decoder]
hidden = [16, 32]
[training]
epochs = 1
batch_size = 256
threads = 1
[board]
every = 2
cells = 500
"""
RICH = {
    "nbvae": """name = "rich"
seed = 3
[data]
path = "../cells/counts.h5ad"
validation = 0.1
on_disk = true
[conditions.cell_type]
encoding = "descriptors"
descriptors = "types.csv"
width = 3
[conditions.compound]
encoding = "embedding"
width = 5
dropout = 0.2
unknown = true
[conditions.donor]
encoding = "label"
[model]
latent = 3
encoder = [24]
encoder_input = "raw"
encoder_dropout = 0.1
[model.decoder]
hidden = [16, 32]
scaling = "max"
dispersion = "gene-category"
dispersion_by = "cell_type"
additive = true
dropout = 0.1
[annealing]
shape = "cyclic"
warmup = 10
unit = "steps"
[training]
epochs = 2
threads = 1
decay = "cosine"
weight_decay = 1e-3
clip_norm = 10.0
precision = "bf16-mixed"
""",
    "dgd": """name = "rich-dgd"
seed = 4
[data]
path = "../cells/counts.h5ad"
split = "../cells/random.csv"
[conditions.cell_type]
[conditions.compound]
[model]
kind = "dgd"
latent = 3
components_by = "cell_type"
covariate_space = "compound"
covariance = "isotropic"
prior_weight = "per_sample"
inner_steps = 3
[model.decoder]
hidden = [16, 32]
dispersion = "predicted"
layer_norm = false
[training]
epochs = 2
threads = 1
resident = false
""",
}
TYPES = """name,a,b
B cells,1,0.5
Myeloid cells,0,2
NK cells,-1,0.25
T cells CD4+,0.5,1
T cells CD8+,0.5,0
T regulatory cells,0.25,-1
"""
KINDS = ("nbvae", "dgd", "gaussian_vae")
RUNS = {kind: f"runs/000{n}-{kind.replace('_', '-')}-s0" for n, kind in enumerate(KINDS, 1)}


def train(do: Recorder) -> None:
    """Models of each kind, stopped after an epoch and resumed; what they say of cells."""
    counts = "../cells/counts.h5ad"
    do.write("types.csv", TYPES)
    for kind in KINDS:
        do.write(f"{kind}.toml", CONFIG.format(kind=kind))
    for kind, run in RUNS.items():
        do.must(f"train-{kind}", f"train {kind}.toml --device cpu --json")
        do.keep(run, f"stopped-{kind}")
        do.must(
            f"resume-{kind}", f"train --resume {run} --set training.epochs=2 --device cpu --json"
        )
        do.must(f"encode-{kind}", f"encode {run} {counts} --out latents-{kind}.h5ad")
        do.must(f"evaluate-{kind}", f"evaluate {run} {counts} --samples 8 --out {kind}.json --json")
    for kind, text in RICH.items():
        do.write(f"rich-{kind}.toml", text)
        do.must(f"rich-{kind}", f"train rich-{kind}.toml --runs rich --device cpu --json")
    rich = f"rich/0001-rich-s3 {counts}"
    do.must("evaluate-part", f"evaluate {rich} --part validation --samples 8 --out part.json")
    do.must("dry", "train nbvae.toml --dry-run --set model.latent=20")
    do.must("dry-json", "train dgd.toml --dry-run --json")


PLUG_IN = "--estimator plug_in --replicates 1"
ESTIMATORS = ("mean_t", "anchored_t", "plug_in", "shrunk", "shrunk_plug_in")
ROUTES = ("prior", "posterior", "control")


def predict(do: Recorder) -> None:
    """Unmeasured conditions: samplers, cells, differential expression, ensembles."""
    files = "--cells ../cells/counts.h5ad --conditions ../cells/sim/id_map.csv"
    runs = {kind: f"../train/{run}" for kind, run in RUNS.items()}
    foretold = "--conditions ../cells/sim/id_map.csv --plots samplers.html --folds 2 --json"
    do.must("samplers", f"samplers ../cells/counts.h5ad --out samplers --set trees=50 {foretold}")
    files += " --samplers samplers"
    for route in ROUTES:
        do.must(
            f"generate-{route}",
            f"generate {runs['dgd']} {files} --latent {route} --out cells-{route} --json",
        )
    do.must(
        "generate-two",
        f"generate {runs['nbvae']} {files} --replicates 2 --seed 5 --out cells-two --json",
    )
    for name in ESTIMATORS:
        given = f"--estimator {name} --replicates 2 --out {name}.parquet --json"
        do.must(f"predict-{name}", f"predict {runs['nbvae']} {files} {given}")
    for route in ROUTES:
        given = (
            f"--latent {route} --estimator anchored_t --replicates 2 --out {route}.parquet --json"
        )
        do.must(f"predict-{route}", f"predict {runs['dgd']} {files} {given}")
    given = "--estimator plug_in --replicates 1 --flavour op3 --out gaussian_vae.parquet --json"
    do("predict-gaussian_vae", f"predict {runs['gaussian_vae']} {files} {given}")
    for kind in ("nbvae", "dgd"):
        given = f"--out full-{kind}.parquet --calibration-out known-{kind}.parquet --json"
        do.must(f"predict-full-{kind}", f"predict {runs[kind]} {files} --replicates 2 {given}")
    given = "--estimator mean_t --replicates auto --out auto.parquet"
    given += " --withheld ../cells/sim/truth_cells.h5ad --calibration-run " + runs["dgd"]
    do.must("predict-auto", f"predict {runs['nbvae']} {files} {given} --json")
    members = " ".join(
        f"{kind}=full-{kind}.parquet,known-{kind}.parquet" for kind in ("nbvae", "dgd")
    )
    truth = "--truth ../cells/sim/de_train.parquet --out ensemble.parquet --json"
    do.must("ensemble", f"ensemble {members} {truth}")


BASELINES = {
    "zeros": "",
    "gene_mean": "--interval 0.9",
    "compound_mean": "",
    "compound_median": "",
    "cell_type_mean": "",
    "additive": "",
    "shrunken_additive": "--interval 0.5",
    "random_draw": "",
    "nearest_replicate": "",
    "ground_truth": "--truth ../cells/sim/de_truth.parquet",
    "bilinear_ridge": "",
    "pls": "--set components=20",
    "kernel_ridge": "--set components=20 --interval 0.9",
    "neighbours": "",
    "random_forest": "--set trees=20 --set components=20 --interval 0.9",
    "pseudobulk_forest": "--pseudobulk ../cells/bulk.h5ad --set trees=20",
    "xgboost": "--set trees=20 --set components=10",
    "xgboost_plain": "--set trees=5",
    "network": "--set epochs=3 --set seeds=2 --set hidden=32 --set components=20",
    "network_pseudolabels": "--set epochs=3 --set seeds=2 --set hidden=32 --set components=20",
    "transfer": "",
    "nested": "--set base=kernel_ridge --set 'grid.ridge=[0.1, 1]' --set folds=2",
    "blend": """--set 'members=["shrunken_additive", "transfer", "kernel_ridge"]' --set folds=3""",
}
SMILES = "--smiles ../cells/sim/de_train.parquet --set fingerprints=32"


def baselines(do: Recorder) -> None:
    """Every baseline."""
    do.must("list", "baseline --json")
    for name, options in BASELINES.items():
        do.must(f"settings-{name}", f"baseline {name} --json")
        do.must(
            name, f"baseline {name} {options} {table('../cells/sim')} --out {name}.parquet --json"
        )
    smiles = f"baseline kernel_ridge {SMILES} --set components=20 {table('../cells/sim')}"
    do.must("fingerprints", f"{smiles} --out fingerprints.parquet --json")


def table(folder: str) -> str:
    """What a baseline learns from, and is asked for."""
    return f"--train {folder}/de_train.parquet --conditions {folder}/id_map.csv"


COMPARE = """seeds = [0, 1]
[data]
folder = "../cells/sim"
truth = "de_truth.parquet"
[splits.compounds]
folds = 2
[methods.zeros]
[methods.additive]
[methods.random_draw]
[methods.kernel_ridge]
settings = { components = 20 }
"""
WITH_RUN = """
[data]
folder = "../cells/sim"
truth = "de_truth.parquet"
[splits.kaggle]
[controls]
positive = "truth"
[methods.gene_mean]
[methods.truth]
predictions = "de_truth.parquet"
[methods.vae]
run = "../train/runs/0001-nbvae-s0"
cells = "../cells/counts.h5ad"
settings = { replicates = 2 }
"""


def scores(do: Recorder) -> None:
    """Scorecards, comparisons, submissions."""
    truth, sim, base = "../cells/sim/de_truth.parquet", "../cells/sim", "../baselines"
    files = f"{base}/additive.parquet forest={base}/random_forest.parquet {base}/gene_mean.parquet"
    do.must("score", f"score {truth} {files} --out score --resamples 200")
    more = f"--baseline gene_mean --train {sim}/de_train.parquet --duplicate {truth}"
    more += " --clusters compound"
    do.must(
        "score-json",
        f"score {truth} {files} {more} --resamples 100 --raw-p --json --out more --no-report",
    )
    do.must(
        "score-metrics",
        f"score {truth} {files} --metrics mean_rowwise_rmse --level 0.1 --seed 3 --json",
    )
    do.write("compare.toml", COMPARE)
    do.write("run.toml", WITH_RUN)
    do.must("compare", "compare compare.toml --out comparison --workers 1 --json")
    do.must("compare-again", "compare compare.toml --out comparison --workers 1 --json --no-report")
    do.must("compare-run", "compare run.toml --out with-run --workers 1 --json")
    do.must("compare-dry", "compare run.toml --dry-run --set score.level=0.1")
    where = f"--id-map {sim}/id_map.csv --like {sim}/sample_submission.csv"
    do.must("submit", f"submit {base}/additive.parquet {where} --out submission.csv")
    do.must("check", f"check-submission submission.csv {where}")
    do.must("check-json", f"check-submission {sim}/sample_submission.csv {where} --json")
    do.must("score-ids", f"score {truth} submission.csv --id-map {sim}/id_map.csv --json")


def retrieval(do: Recorder) -> None:
    """Retrieval and neighbours on latents."""
    import anndata

    latents = anndata.read_h5ad(do.folder.parent / "train" / "latents-nbvae.h5ad")
    latents[::4].copy().write_h5ad(do.folder / "latents.h5ad")
    source = "latents.h5ad --key X_latent"
    places = "--differ plate --plate plate --well well"
    do.must("retrieve", f"retrieve {source} --same compound,cell_type {places} --out others --json")
    against = "--controls 'compound=Dimethyl Sulfoxide' --negatives controls --negatives-same plate"
    do.must(
        "controls", f"retrieve {source} --same compound {against} --out controls --chunk 700 --json"
    )
    for name in ("correlation", "spearman", "euclidean"):
        do.must(name, f"retrieve {source} --same cell_type --similarity {name} --seed 2 --json")
    do.must("text", f"retrieve {source} --same compound")
    do.must(
        "neighbours", f"neighbours {source} --same compound --differ plate -k 5 --out near --json"
    )
    do.must("neighbours-of", f"neighbours {source} --same compound --of 'Compound 005' --json")


NETWORK = (
    "--device cpu --set training.threads=1 --set model.size=8 --set data.validation=0.2 --json"
)
DENSE = "--set model.encoder.depth=2 --set model.encoder.growth=8"
MLP = "--set model.encoder.kind=mlp --set 'model.encoder.widths=[16]' --set model.head.kind=arcface"


def l1000(do: Recorder) -> None:
    """A simulated screen, real plates, embeddings."""
    do.must("simulate", "l1000 simulate screen --preset tiny --seed 0")
    do.must("check", "l1000 check screen/SIM_Level4_ZSPCQNORM_x100.gctx --json")
    meta = "--meta screen/inst_info.txt --common-genes --out landmarks --json"
    do.must("extract", f"l1000 extract screen/SIM_Level4_ZSPCQNORM_x100.gctx {meta}")
    plates = "DATA/l1000/plates"
    real = f"{plates}/LJP005_A375_24H_X1_B19_level4_n377x978.gctx"
    real += f" {plates}/CORE_A_level4_ZSPCINF_n40x12328.gctx"
    do.must(
        "check-real", f"l1000 check {real} DATA/l1000/formats/mini_gctoo_for_testing.gct --json"
    )
    do("check-text", "l1000 check DATA/l1000/formats/gct_text_named_gctx.gctx --json")
    do(
        "extract-real",
        f"l1000 extract {real} --keep-unknown --dtype float16 --clip 10 --out real --json",
    )
    sets = f"{DENSE} --set data.test=0.3 --set training.batch_size=64"
    do.must("train", f"l1000 train --data landmarks {NETWORK} {sets} --set training.epochs=1")
    run = "runs/0001-embedder-s0"
    do.keep(run, "stopped")
    do.must("resume", f"l1000 train --resume {run} --set training.epochs=2 --device cpu --json")
    sets = f"{MLP} --set training.sampler=balanced --set training.batch_size=64"
    sets += " --set training.epochs=2"
    told = """--set 'model.conditions=["cell_line", "dose"]' --set seed=2"""
    do.must("train-mlp", f"l1000 train --data landmarks {NETWORK} {sets} {told} --set name=mlp")
    sets = f"{DENSE} --set data.test=0.3 --set training.epochs=1 --set name=tuned"
    do.must("train-start", f"l1000 train --data landmarks {NETWORK} {sets} --start {run}")
    embedded = "screen/SIM_Level4_ZSPCQNORM_x100.gctx --meta screen/inst_info.txt"
    do.must("embed", f"l1000 embed {run} {embedded} --out embedding.h5ad")
    do("embed-extraction", f"l1000 embed {run} landmarks --out extraction.h5ad")  # once failed
    do.must("evaluate", f"l1000 evaluate {run} --part test --out evaluation --json")
    do.must("evaluate-mlp", "l1000 evaluate runs/0002-mlp-s2 --part validation --json")
    probe = "--probe moa --perturbagens screen/pert_info.txt --out probed --json"
    do.must("probe", f"l1000 evaluate {run} --part all {probe}")
    do.must("neighbours", f"l1000 neighbours {run} --of compound-1 -k 5 --json")


FIXTURES = ("bbbc021", "cellpainting", "rxrx1", "rxrx19a", "rxrx19b", "rxrx3")
DMSO = "--controls compound=DMSO"
CORRECTIONS = {
    "plain": f"bbbc021 {DMSO}",
    "whitened": f"bbbc021 {DMSO} --centre plate --strength 6 --compress --whiten 0.3",
    "aligned": f"bbbc021 {DMSO} --align week --scale mad --seed 3 --withhold 0.5",
    "nested": "rxrx1 --controls 'well_type=negative_control|positive_control'"
    " --centre experiment,plate,site",
    "percentile": "rxrx19a --controls disease_condition=Mock --scale percentile --centre plate",
    "none": "cellpainting --controls Metadata_broad_sample=DMSO --scale none --whiten 1"
    " --withhold 0",
}
SMALL = "--device cpu --set training.threads=1 --set data.workers=1 --set model.embedding=4"
SMALL += " --set training.batch_size=16 --set 'model.widths=[4]' --set board.every=9 --json"


def images(do: Recorder) -> None:
    """Fixtures of every kind, corrections, hits, maps, networks."""
    for kind in FIXTURES:
        source = f"{kind}/profiles.csv.gz" if kind == "cellpainting" else kind
        do.must(f"fixture-{kind}", f"images fixture {kind} {kind}")
        do.must(f"check-{kind}", f"images check {source} --json")
        do.must(f"ingest-{kind}", f"images ingest {source} --out {kind}.profiles --json")
    do.must("picture", "images check rxrx1 --limit 3 --picture rxrx1.png")
    for name, options in CORRECTIONS.items():
        kind, _, options = options.partition(" ")
        do.must(
            f"correct-{name}",
            f"images correct {kind}.profiles {options} --out corrected-{name} --json",
        )
    do.must("hits", "images hits rxrx19a --out hits.csv --draws 500 --json")
    do.must("map-pca", "images map corrected-whitened --method pca --out pca.html --json")
    do.must("map-umap", "images map bbbc021 --colour moa --colour week --out umap.html --json")
    # openTSNE may be absent
    do("map-tsne", "images map bbbc021 --method tsne --out tsne.html --json")
    who = f"--same compound {DMSO} --batch week --draws 99 --json --plots measured.html"
    do.must("measure", f"images evaluate corrected-whitened {who}")
    do.must("train", f"images train --data rxrx1 {SMALL} --set training.epochs=1")
    run = "runs/0001-run-s0"
    do.keep(run, "stopped")
    do.must("resume", f"images train --resume {run} --set training.epochs=2 --device cpu --json")
    more = "--set data.compounds.fold=0 --set model.head=arcface --set augment.gain=0.1"
    more += " --set augment.zoom=0.2"
    do.must("train-bbbc021", f"images train --data bbbc021 {SMALL} {more} --set training.epochs=2")
    do.must("embed", f"images embed {run} --part test --out test.profiles --json")
    do.must("evaluate", f"images evaluate {run} --json --plots run.html")
    do.must("evaluate-turns", f"images evaluate {run} --part train --norm own --turns --json")
    do.must("evaluate-bbbc021", "images evaluate runs/0002-run-s0 --json")
    measured = "--same sirna_id --controls well_type=negative_control --batch experiment --draws 99"
    do.must("measure-embedded", f"images evaluate test.profiles {measured} --json")


def experiments(do: Recorder) -> None:
    """Experiments that are quick."""
    real = "DATA/imaging/bbbc021 --no-nested --out bbbc021"
    do.script("bbbc021", f"experiments/bbbc021/run.py {real}")
    quick = "--permutations 99 --draws 100 --folds 2 --inner 2 --out cross_modal"
    do.script("cross_modal", f"experiments/cross_modal/run.py {quick}")
    sets = "--set train.training.epochs=1 --set train.annealing.warmup=0 --set replicates=1"
    sets += " --set accelerator=cpu --json"
    do.script("op3", f"experiments/op3/run.py --simulated tiny --out op3 {sets}")
    do.script("open", f"experiments/op3_openproblems/run.py --simulated tiny --out open {sets}")


VERBS = """
simulate ingest pseudobulk split de train encode evaluate board score retrieve neighbours
baseline compare samplers generate predict ensemble submit check-submission doctor data l1000 images
data/check data/list data/get data/show l1000/check l1000/extract l1000/simulate l1000/train
l1000/embed l1000/evaluate l1000/neighbours images/check images/ingest images/correct images/hits
images/map images/fixture images/train images/embed images/evaluate
"""


def helps(do: Recorder) -> None:
    """What --help says."""
    do.must("perturbgen", "--help")
    for verb in VERBS.split():
        do.must(verb.replace("/", "-"), f"{verb.replace('/', ' ')} --help")


SPLIT = "split ../cells/counts.h5ad"
DE = "de ../cells/bulk.h5ad"
ASK = "--train ../cells/sim/de_train.parquet --conditions ../cells/sim/id_map.csv"
RUN = "../train/runs/0001-nbvae-s0"
LIKE = "--id-map ../cells/sim/id_map.csv --like ../cells/sim/sample_submission.csv"
CELLS = f"{RUN} --cells ../cells/counts.h5ad --conditions"
MISTAKES = (
    "nonsense",
    "simulate x --preset huge",
    "simulate x --set cells.per_wel=3",
    "simulate x --set cells.per_well=inf",
    "simulate ../cells --force",
    "ingest nowhere --out x.h5ad",
    "ingest ../cells/sim --out x.csv",
    "ingest ../cells/sim --out x.h5ad --curated",
    "data check text.txt",
    "data check ../cells/counts.h5ad --layer nope",
    "data get nothing-of-this-name",
    "pseudobulk ../cells/counts.h5ad --by plate,wel --out x.h5ad",
    f"{SPLIT} --kind leave-out --out x.csv",
    f"{SPLIT} --kind random --folds 3 --out x.csv",
    f"{SPLIT} --kind sideways --out x.csv",
    f"{DE} --flavour kagle",
    DE,
    f"{DE} --design '~0 + {{group}} + doner' --by cell_type",
    f"{DE} --design '~0 + {{group}}' --control nobody --by cell_type",
    f"{DE} --design '~0 + {{group}}' --device tpu --by cell_type",
    f"{DE} --flavour kaggle --keep-plates --out x.txt",
    "train nowhere.toml",
    "train bad.toml",
    "train ../train/nbvae.toml --set model.latnt=3",
    "train ../train/nbvae.toml --set conditions.planet={}",
    "train ../train/nbvae.toml --set model.kind=gan",
    "train",
    "train --resume nowhere",
    f"train --resume {RUN} --set model.latent=9",
    f"encode {RUN} nowhere.h5ad --out x.h5ad",
    "encode ../cells ../cells/counts.h5ad --out x.h5ad",
    f"evaluate {RUN} ../cells/counts.h5ad --part tets",
    f"baseline nearest {ASK} --out x.parquet",
    f"baseline pls {ASK} --out x.parquet --set componets=3",
    f"baseline pls {ASK} --out x.parquet --interval 0.9",
    f"baseline ground_truth {ASK} --out x.parquet",
    "score ../cells/sim/de_truth.parquet ../cells/sim/de_train.parquet",
    "score ../cells/sim/de_truth.parquet a=../baselines/pls.parquet --metrics mrsme",
    "score ../cells/sim/de_truth.parquet nowhere.parquet",
    "compare bad.toml",
    "compare nowhere.toml",
    "retrieve ../train/latents-nbvae.h5ad --same compund",
    "retrieve ../train/latents-nbvae.h5ad --same compound --key X_pca",
    "neighbours ../train/latents-nbvae.h5ad --same compound --of Nobody",
    f"submit ../cells/sim/de_train.parquet {LIKE} --out x.csv",
    f"check-submission text.txt {LIKE}",
    f"predict {CELLS} text.txt --out x.parquet",
    f"predict {CELLS} ../cells/sim/id_map.csv --out x.parquet --estimator magic",
    f"generate {CELLS} ../cells/sim/id_map.csv --out x --latent sideways",
    "ensemble a=b.parquet --truth ../cells/sim/de_train.parquet --out x.parquet",
    "samplers ../cells/counts.h5ad --out text.txt",
    "l1000 check text.txt",
    "l1000 extract text.txt --out x",
    "l1000 train",
    "l1000 embed ../train/runs/0001-nbvae-s0 ../l1000/landmarks",
    "l1000 neighbours ../l1000/runs/0001-embedder-s0 --of nobody",
    "images fixture rxrx2 x",
    "images check nowhere",
    "images correct ../images/bbbc021 --controls compound=DMS --out x",
    "images correct ../images/bbbc021 --controls compound=DMSO --scale sdd --out x",
    "images hits ../images/bbbc021 --out x.csv",
    "images map ../images/bbbc021 --method som --out x.html",
    "images evaluate ../images/bbbc021",
    "images train --data ../images/rxrx1 --set model.hed=arcface",
    "images evaluate ../images/runs/0001-run-s0 --norm bach",
)


def mistakes(do: Recorder) -> None:
    """What users do wrong: only exit codes are held to."""
    do.write("text.txt", "these are, no doubt, words\n")
    do.write("bad.toml", "name = kang\n")
    for number, command in enumerate(MISTAKES):
        do(f"{number:02d}-{'-'.join(command.split()[:2])}".replace("/", "_"), command)
    do.script("experiment", "experiments/demo/run.py --dry-run")
    do("experiment-mistake", "experiments/demo/run.py --set sede=3", module="")


CASES: dict[str, Callable[[Recorder], None]] = {
    "cells": cells,
    "kang": kang,
    "demo": demo,
    "train": train,
    "predict": predict,
    "baselines": baselines,
    "scores": scores,
    "retrieval": retrieval,
    "l1000": l1000,
    "images": images,
    "experiments": experiments,
    "helps": helps,
    "mistakes": mistakes,
}


def record(tree: Path, out: Path, only: list[str]) -> int:
    """Run the cases."""
    seconds = {}
    for name in only or CASES:
        shutil.rmtree(out / name, ignore_errors=True)
        start = time.perf_counter()
        CASES[name](Recorder(tree, data_folder(tree), out / name))
        (out / name / "recorded.json").write_text(json.dumps({"tree": str(tree), "out": str(out)}))
        seconds[name] = time.perf_counter() - start
        print(f"{name:12} {seconds[name]:6.1f} s", flush=True)
    print(f"{'all':12} {sum(seconds.values()):6.1f} s")
    return 0


def data_folder(tree: Path) -> Path:
    """The real data."""
    return Path(os.environ.get("PERTURBGEN_DATA") or tree.parent / "shared" / "data").resolve()


def prepare(tree: Path) -> None:
    """Start anew with the tree's code, one thread and plain output; import what is slow once."""
    fixed = {f"{name}_NUM_THREADS": "1" for name in THREADS}
    fixed |= {"PYTHONPATH": str(tree), "PERTURBGEN_DATA": str(data_folder(tree))}
    fixed |= {"NUMBA_CACHE_DIR": str(Path(tempfile.gettempdir()) / "frozen-numba")}
    fixed |= {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb", "CUDA_VISIBLE_DEVICES": ""}
    fixed |= {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONUTF8": "1"}
    gone = ("PYTHONSTARTUP", "PYTHONWARNINGS", "FORCE_COLOR", "LOCAL_RANK")
    wanted = {name: text for name, text in os.environ.items() if name not in gone} | fixed
    if dict(os.environ) != wanted:  # threads and paths are read when an interpreter starts
        os.execve(sys.executable, [sys.executable, *sys.argv], wanted)
    for name in () if FRESH in os.environ else SLOW.split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # what is imported is neither searched nor copied in the children


SLOW = """
torch numpy scipy.stats scipy.sparse.linalg scipy.optimize pandas pyarrow.parquet h5py anndata
scanpy sklearn.linear_model sklearn.ensemble sklearn.decomposition sklearn.cross_decomposition
numba umap matplotlib.pyplot plotly.graph_objects pydantic typer rich.table rich.progress
formulaic pyro lightning_fabric tensorboard torch.utils.tensorboard xgboost PIL.Image
"""


# Old runs


def old_runs(tree: Path, out: Path, name: str) -> int:
    """Use what another tree left in ``out`` with the code of this one."""
    folder = out / f"{OLD}{name}"
    shutil.rmtree(folder, ignore_errors=True)
    for case in ("cells", "baselines", "train", "predict", "scores", "l1000", "images"):
        shutil.copytree(out / case, folder / case, ignore=shutil.ignore_patterns(LOGS, "*.html"))
    for case, steps in OLD_CASES.items():
        start = time.perf_counter()
        steps(Recorder(tree, data_folder(tree), folder / case))
        where = {"tree": str(tree), "out": str(folder)}
        (folder / case / "recorded.json").write_text(json.dumps(where))
        print(f"{case:12} {time.perf_counter() - start:6.1f} s", flush=True)
    return 0


def old_predict(do: Recorder) -> None:
    """Old samplers and runs draw cells and predict; a folder of replicates is completed."""
    files = "--cells ../cells/counts.h5ad --conditions ../cells/sim/id_map.csv --samplers samplers"
    for kind, trained in RUNS.items():
        run = f"../train/{trained} {files}"
        do.must(f"predict-{kind}", f"predict {run} {PLUG_IN} --out new-{kind}.parquet --json")
        do.must(f"generate-{kind}", f"generate {run} --out new-{kind} --json")
    more = f"../train/runs/0001-nbvae-s0 {files} --replicates 3 --seed 5 --out cells-two --json"
    do.must("generate-more", f"generate {more}")


def old_scores(do: Recorder) -> None:
    """An old comparison is taken up, and gets another method.

    Twice, so that all is kept the second time: other code computes anew what this code keeps.
    """
    kept = "compare compare.toml --out comparison --workers 1 --json"
    for _ in range(2):
        do.must("compare", kept)
        do.must("compare-more", f"{kept} --set methods.pls.settings.components=20")
        do.must("compare-run", "compare run.toml --out with-run --workers 1 --json")


def old_train(do: Recorder) -> None:
    """Old runs encode, are judged, are resumed, and encode again."""
    counts = "../cells/counts.h5ad"
    for kind, run in RUNS.items():
        do.must(f"encode-{kind}", f"encode {run} {counts} --out old-{kind}.h5ad")
        judged = f"--samples 8 --out old-{kind}.json --json"
        do.must(f"evaluate-{kind}", f"evaluate {run} {counts} {judged}")
        for other, epochs in ((run, 3), (f"stopped-{kind}", 2)):
            do.must(f"resume-{kind}-{epochs}", f"train {resumed(other, epochs)}")
        do.must(f"encode-resumed-{kind}", f"encode {run} {counts} --out resumed-{kind}.h5ad")
    rich = f"rich/0001-rich-s3 {counts}"
    do.must("evaluate-rich", f"evaluate {rich} --part validation --samples 8 --json")
    do.must("resume-rich", f"train {resumed('rich/0001-rich-s3', 3)}")
    do.must("encode-rich", f"encode rich/0002-rich-dgd-s4 {counts} --out rich-dgd.h5ad")


def old_l1000(do: Recorder) -> None:
    """Old embedders embed, are judged and resumed."""
    run = "runs/0001-embedder-s0"
    embedded = "screen/SIM_Level4_ZSPCQNORM_x100.gctx --meta screen/inst_info.txt"
    do.must("embed", f"l1000 embed {run} {embedded} --out old.h5ad")
    do.must("evaluate", f"l1000 evaluate {run} --part test --out old --json")
    do.must("resume", f"l1000 train {resumed(run, 3)}")
    do.must("resume-stopped", f"l1000 train {resumed('stopped', 2)}")
    do.must("embed-mlp", f"l1000 embed runs/0002-mlp-s2 {embedded} --out mlp.h5ad")


def old_images(do: Recorder) -> None:
    """Old networks on images embed, are judged and resumed; old profiles are corrected."""
    run = "runs/0001-run-s0"
    do.must("embed", f"images embed {run} --part test --out old.profiles --json")
    do.must("evaluate", f"images evaluate {run} --json")
    do.must("resume", f"images train {resumed(run, 3)}")
    do.must("resume-stopped", f"images train {resumed('stopped', 2)}")
    do.must("evaluate-bbbc021", "images evaluate runs/0002-run-s0 --json")
    who = "--controls compound=DMSO --centre plate --out old-corrected --json"
    do.must("correct", f"images correct bbbc021.profiles {who}")


def resumed(run: str, epochs: int) -> str:
    """The options that resume a run until so many epochs are done."""
    return f"--resume {run} --set training.epochs={epochs} --device cpu --json"


OLD_CASES: dict[str, Callable[[Recorder], None]] = {
    "predict": old_predict,  # before its runs are resumed
    "scores": old_scores,
    "train": old_train,
    "l1000": old_l1000,
    "images": old_images,
}


# Comparing

# Keys of JSON and TOML, columns of tables: times, sizes on disk, where and with which code it ran,
# hashes of .gz files, which hold the time, and what baselines say of their settings.
GONE = re.compile(
    r"(seconds|processor|command|python|platform|packages|git|MB|.*_per_second|modified_ns|meaning|.*\.gz)$"
)
KEY = re.compile(r"\b[0-9a-f]{24}\b")  # hashes of code in the results of comparisons
# The data of a page: numbers of three decimals or more, plotly's arrays. The rest is words, layout.
DATA = re.compile(r'-?\d+\.\d{3,}(?:[eE][+-]?\d+)?|"bdata":"[^"]*"')
WORDS = "the words of the page differ, or its layout, not its data"
TIMED = re.compile(r"speed/|_hparams_/session_(start|end)_info")  # tags of TensorBoard
NOISE = (  # what a text says of time and place; the ids that plotly draws
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "<id>"),
    (re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?(\.\d+)?(\+00:00|Z)?)?"), "<date>"),
    (re.compile(r"\b[0-9a-f]{40}(\+changes)?\b"), "<revision>"),
    (re.compile(r'_per_second": [\d.e+-]+'), "<speed>"),
    (re.compile(r"[\d,.]+ (cells|profiles|images)/s"), "<speed>"),
    (re.compile(r"\b[\d,.]+ ?(s|ms|min|seconds|GB|MB)\b"), "<amount>"),
    (re.compile(r"[\u2500-\u257f]+"), "|"),
    (re.compile(r"[ \t]+"), " "),
)


def compare(left: Path, right: Path, only: list[str], *, verbose: bool) -> int:
    """Print what differs."""
    names = [path.name for folder in (left, right) for path in folder.iterdir() if path.is_dir()]
    names = [name for name in dict.fromkeys(names) if not name.startswith(OLD)]
    failed = False
    for name in only or sorted(names, key=lambda name: [*CASES, name].index(name)):
        files, wrong, told = compare_case(left / name, right / name)
        failed |= bool(wrong)
        verdict = f"DIFFERS in {len(wrong)} of {files} files" if wrong else f"equal, {files} files"
        note = f"; {len(told)} texts differ (--verbose)" if told and not verbose else ""
        print(f"{name:12} {verdict}{note}", flush=True)
        for file, lines in {**wrong, **(told if verbose else {})}.items():
            print(f"  {file}{'' if file in wrong else ' (for information)'}")
            print("\n".join(f"    {line}" for line in lines[:4]))
            if len(lines) > 4:
                print(f"    ... and {len(lines) - 4} more")
    return int(failed)


Differences = dict[str, list[str]]


def compare_case(left: Path, right: Path) -> tuple[int, Differences, Differences]:
    """The number of files, what differs in them, and what differs in what was merely said."""
    first, second = (dict(listed(folder)) if folder.is_dir() else {} for folder in (left, right))
    wrong: Differences = {}
    told: Differences = {}
    for name in sorted({*first, *second} - {"recorded.json"}):
        if name not in first or name not in second:
            lines = [f"only in {left if name in first else right}"]
        else:
            lines = compare_files(first[name], second[name], left, right)
        if lines and (is_told(name, left.name) or lines[0] == WORDS):
            told[name] = lines
        elif lines:
            wrong[name] = lines
    return len(first), wrong, told


def is_told(name: str, case: str) -> bool:
    """Whether a file is for information only."""
    if not name.startswith(f"{LOGS}/"):
        return False
    return name.endswith(".err") or (case in ("helps", "mistakes") and name.endswith(".out"))


def listed(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """Files by name. The event files of a folder, whose names hold the time, are one.

    What a comparison keeps is called by a hash of the code: here by one of its content.
    """
    events: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if "events.out.tfevents" in path.name:
            events.setdefault(str(path.relative_to(folder).parent / "events"), []).append(path)
        elif KEY.match(path.name) and path.suffix == ".npz":
            name = KEY.sub(fingerprint(path), path.name)
            yield str(path.relative_to(folder).parent / name), [path]
        elif path.is_file():
            yield str(path.relative_to(folder)), [path]
    yield from events.items()


def fingerprint(path: Path) -> str:
    """A hash of the arrays of a file."""
    found = hashlib.sha256()
    for name, array in sorted(read_npz(path).items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()[:12]


def compare_files(first: list[Path], second: list[Path], left: Path, right: Path) -> list[str]:
    """What differs between two files, or between two lists of event files."""
    if len(first) == len(second) == 1 and first[0].read_bytes() == second[0].read_bytes():
        return []
    try:
        found = [content(paths, case) for paths, case in ((first, left), (second, right))]
    except Exception as error:  # noqa: BLE001
        return [f"cannot be read: {type(error).__name__}: {error}"]
    if first[0].suffix == ".html":
        data = [DATA.findall("\n".join(lines)) for lines in found]
        if not (apart := list(differences(*data, ""))):
            return [WORDS, *lines] if (lines := list(differences(*found, ""))) else []
        return apart
    return list(differences(found[0], found[1], ""))


def content(paths: list[Path], case: Path) -> Any:
    """What a file holds, as dictionaries, lists and arrays."""
    path = paths[0]
    if "events.out.tfevents" in path.name:
        return read_events(paths)
    if path.suffix in READERS:
        return READERS[path.suffix](path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return np.frombuffer(path.read_bytes(), np.uint8)
    recorded = case / "recorded.json"
    places: dict[str, str] = json.loads(recorded.read_text()) if recorded.exists() else {}
    for what, place in sorted(places.items(), key=lambda item: -len(item[1])):
        text = text.replace(place, f"<{what}>")
    text = KEY.sub("<key>", text)
    suffix = path.suffix
    if suffix == ".out" and text[:1] in ("[", "{") and text.rstrip()[-1:] in ("]", "}"):
        suffix = ".json"
    return TEXT_READERS.get(suffix, cleaned)(text)


def cleaned(text: str) -> list[str]:
    """The lines of a text without times."""
    lines = re.split(r"[\r\n]+", text)
    for pattern, name in NOISE:
        lines = [pattern.sub(name, line).strip() for line in lines]
    return list(without_columns(line for line in lines if line.strip("|")))


def without_columns(lines: Iterable[str]) -> Iterator[str]:
    """The rows of tables without the columns of times."""
    gone: set[int] = set()
    for line in lines:
        entries = line.split("|")
        found = {number for number, entry in enumerate(entries) if GONE.match(entry.strip())}
        gone = (found or gone) if len(entries) > 2 else set()
        yield "|".join(entry for number, entry in enumerate(entries) if number not in gone)


def read_json(text: str) -> Any:
    """JSON without times and places."""
    return without_gone(json.loads(text))


def read_lines(text: str) -> Any:
    """JSON, line by line."""
    return [without_gone(json.loads(line)) for line in text.splitlines()]


def read_toml(text: str) -> Any:
    """TOML without times and places."""
    return without_gone(tomllib.loads(text))


def without_gone(value: Any) -> Any:
    """A value without the keys that may differ."""
    if isinstance(value, dict):
        return {key: without_gone(part) for key, part in value.items() if not GONE.match(key)}
    return [without_gone(part) for part in value] if isinstance(value, list) else value


TEXT_READERS: dict[str, Callable[[str], Any]] = {
    ".json": read_json,
    ".jsonl": read_lines,
    ".toml": read_toml,
}


def read_parquet(path: Path) -> Any:
    """The columns of a parquet file."""
    import pandas as pd

    return of_frame(pd.read_parquet(path))


def read_csv(path: Path) -> Any:
    """The columns of a CSV file, the numbers read to the bit; a first line with # apart."""
    import pandas as pd

    text = KEY.sub("<key>", path.read_text())
    first = text.partition("\n")[0]
    skipped = int(first.startswith("#"))
    sep = "\t" if path.suffix == ".tsv" else ","
    file = io.StringIO(text)
    table = pd.read_csv(file, sep=sep, skiprows=skipped, float_precision="round_trip")
    return {"first line": first, **of_frame(table)}


def of_frame(table: Any) -> dict[str, Any]:
    """Columns, in order, and the index."""
    columns = [name for name in table.columns if not GONE.match(str(name))]
    arrays = {str(name): np.asarray(table[name]) for name in columns}
    index = np.asarray(table.index.to_frame()).astype(str)
    return {"columns": list(map(str, columns)), "rows": index, **arrays}


def read_hdf5(path: Path) -> Any:
    """Every array and attribute of an HDF5 file; the text of one that is none."""
    import h5py

    found: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        for key, value in node.attrs.items():
            found[f"{name}@{key}"] = np.asarray(value)
        if isinstance(node, h5py.Dataset):
            found[name] = np.asarray(node[()])

    with h5py.File(path, "r") as file:
        visit("", file)
        file.visititems(visit)
    return found


def read_npy(path: Path) -> Any:
    """An array."""
    return np.load(path)


def read_npz(path: Path) -> Any:
    """Arrays by name."""
    with np.load(path) as found:
        return dict(found)


def read_torch(path: Path) -> Any:
    """A checkpoint, its tensors as arrays."""
    import torch

    def arrays(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            plain = value.detach().contiguous()
            return (plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain).numpy()
        if isinstance(value, dict):
            kept = {str(key): part for key, part in value.items() if not GONE.match(str(key))}
            return {key: arrays(part) for key, part in kept.items()}
        return [arrays(part) for part in value] if isinstance(value, list | tuple) else value

    return arrays(torch.load(path, map_location="cpu", weights_only=True))


def read_picture(path: Path) -> Any:
    """Pixels."""
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture)


def read_gz(path: Path) -> Any:
    """What is compressed, byte by byte: the header of the file holds the time."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)


def read_events(paths: list[Path]) -> Any:
    """What TensorBoard is told, by tag and step: numbers, pixels, else the bytes."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    found: dict[str, list[Any]] = {}
    for path in paths:
        for record in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(record)
            for value in event.summary.value:
                if not TIMED.match(value.tag):
                    found.setdefault(value.tag, []).append([event.step, of_event(value)])
    return found


def of_event(value: Any) -> Any:
    """A number, pixels, or bytes."""
    from PIL import Image

    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return value.simple_value
    if kind != "image":
        return np.frombuffer(value.SerializeToString(), np.uint8)
    with Image.open(io.BytesIO(value.image.encoded_image_string)) as picture:
        return np.asarray(picture)


READERS: dict[str, Callable[[Path], Any]] = {
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".tsv": read_csv,
    **dict.fromkeys((".h5ad", ".h5", ".gctx"), read_hdf5),
    ".npy": read_npy,
    ".npz": read_npz,
    ".pt": read_torch,
    **dict.fromkeys((".png", ".tif", ".tiff"), read_picture),
    ".gz": read_gz,
}


def differences(left: Any, right: Any, where: str) -> Iterator[str]:
    """A line for everything that differs."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in dict.fromkeys([*left, *right]):
            if key not in left or key not in right:
                yield f"{where}/{key}: only in the {'first' if key in left else 'second'}"
            else:
                yield from differences(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, list) and isinstance(right, list):
        if len(left) != len(right):
            yield f"{where}: {len(left)} and {len(right)} entries"
        for number, pair in enumerate(zip(left, right, strict=False)):
            yield from differences(*pair, f"{where}[{number}]")
    elif isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        if line := array_difference(left, right):
            yield f"{where}: {line}"
    elif left != right and not (is_nan(left) and is_nan(right)):
        gap = ""
        if isinstance(left, float) and isinstance(right, float):
            gap = f", difference {abs(left - right):.3g}"
        yield f"{where}: {shortened(left, right)}{gap}"


def is_nan(value: Any) -> bool:
    """Whether a value is NaN."""
    return isinstance(value, float) and bool(np.isnan(value))


def shortened(left: Any, right: Any) -> str:
    """Two values, from a little before the place where they begin to differ."""
    texts = str(left), str(right)
    same = (number for number, pair in enumerate(zip(*texts, strict=False)) if len(set(pair)) > 1)
    start = max(0, next(same, min(map(len, texts))) - 60)
    first, second = (text[start : start + 160] for text in texts)
    return f"{first!r} and {second!r}"


def array_difference(left: np.ndarray, right: np.ndarray) -> str:
    """In a few words how two arrays differ; nothing where they are equal to the bit."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return f"{left.dtype} {left.shape} and {right.dtype} {right.shape}"
    if left.dtype.kind not in "biufc":
        apart = left.astype(str) != right.astype(str)
        at = tuple(np.argwhere(apart)[0]) if apart.any() else None
        return "" if at is None else f"{apart.sum()} entries: {shortened(left[at], right[at])}"
    if left.tobytes() == right.tobytes():
        return ""
    first, second = (array.astype(float) for array in (left, right))
    apart = (left != right) & ~(np.isnan(first) & np.isnan(second))
    with np.errstate(all="ignore"):
        gap = np.abs(first - second)[apart]
    largest = f", largest difference {np.nanmax(gap):.3g}" if len(gap) else ""
    return f"{apart.sum()} of {left.size} numbers{largest}"


def main() -> int:
    """Read the command line."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording, old, comparing = map(verbs.add_parser, ("record", "old-runs", "compare"))
    for verb in (recording, old):
        verb.add_argument("tree", type=Path)
        verb.add_argument("out", type=Path)
    old.add_argument("--name")
    comparing.add_argument("left", type=Path)
    comparing.add_argument("right", type=Path)
    comparing.add_argument("--verbose", action="store_true")
    for verb in (recording, comparing):
        verb.add_argument("--only", nargs="+", default=[], metavar="CASE")
    given = parser.parse_args()
    if given.verb == "compare":
        return compare(given.left, given.right, given.only, verbose=given.verbose)
    tree, out = given.tree.resolve(), given.out.resolve()
    prepare(tree)
    if given.verb == "record":
        return record(tree, out, given.only)
    return old_runs(tree, out, given.name or tree.name)


if __name__ == "__main__":
    sys.exit(main())
