"""Held-out likelihood of the count models on real cells, with scvi-tools beside them on the same
split.

scvi-tools needs its own environment: python -m venv peer; peer/bin/pip install "scvi-tools==1.4.*";
then --peer peer/bin/python.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from perturbgen.cli import run_experiment
from perturbgen.core.console import show_table
from perturbgen.core.files import require_folder

HERE = Path(__file__).parent
log = logging.getLogger("perturbgen.heldout")

DATA = {
    "kang": ("kang_ifnb.h5ad", ["cluster_id", "sample_id"]),
    "glioblastoma": ("glioblastoma_panobinostat.h5ad", ["patient_id", "condition"]),
}
MODELS = ("nbvae", "dgd")
COUNTS = Path(os.environ.get("PERTURBGEN_DATA", "../shared/data")) / "counts"


def main(
    counts: Annotated[Path, typer.Option(help="Folder of the two h5ad files.")] = COUNTS,
    peer: Annotated[
        Path | None, typer.Option(help="Python of an environment with scvi-tools 1.4.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds, from 0.")] = 3,
    samples: Annotated[int, typer.Option(help="Importance samples a cell.")] = 256,
    models: Annotated[list[str] | None, typer.Option("--model", help="Only these.")] = None,
    runs: Annotated[Path, typer.Option(help="Where run directories are made.")] = Path(
        "runs/heldout"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Negative log-likelihood of cells that no model has seen, in nats per gene and cell.

    Example: python experiments/heldout/run.py --peer peer/bin/python
    """
    require_folder(counts, "folder of real counts")
    rows = []
    for name, (file, conditions) in DATA.items():
        results: dict[str, list[float]] = {}
        for seed in range(seeds):
            for model in models or MODELS:
                value = ours(name, model, counts / file, conditions, seed, samples, runs)
                results.setdefault(model, []).append(value)
            if peer is not None:
                results.setdefault("scvi-tools 1.4", []).append(
                    scvi(peer, counts / file, conditions, seed, samples)
                )
        rows += [summary(name, model, values) for model, values in results.items()]
    show_table(
        rows, title="held-out negative log-likelihood, nats per gene and cell", as_json=as_json
    )


def held_out(n: int) -> np.ndarray:
    """The cells that nobody trains on, the same for every seed."""
    return np.random.default_rng(0).permutation(n)[: n // 5]


def ours(
    data: str, model: str, path: Path, conditions: list[str], seed: int, samples: int, runs: Path
) -> float:
    """One model, trained on what is not held out (a tenth of it for early stopping), on what is."""
    from perturbgen.data import Split
    from perturbgen.train import RunSettings, load_run, train
    from perturbgen.train.heldout import CellJudge
    from perturbgen.train.settings import CellData

    cells = CellData(path=path).open().obs.index
    parts = np.full(len(cells), "train", object)
    test = held_out(len(cells))
    rest = np.setdiff1d(np.arange(len(cells)), test)
    parts[test] = "test"
    parts[np.random.default_rng([seed, 1]).permutation(rest)[: len(rest) // 10]] = "validation"
    with tempfile.TemporaryDirectory() as folder:
        split = Path(folder) / "split.csv"
        Split(pd.Series(parts, pd.Index(cells, name="cell")), "held-out cells").write(split)
        base: dict[str, Any] = {
            "name": f"{data}-{model}",
            "seed": seed,
            "conditions": {c: {} for c in conditions},
        }
        base["data"] = {"path": str(path), "split": str(split)}
        settings = RunSettings.load(HERE / f"{model}.toml", base=base)
        run = load_run(train(settings, runs=runs, accelerator="cpu"))
    store = run.open_cells(path).subset(test)
    nll = CellJudge(run, store).likelihood(samples=samples, seed=0)["nll_per_gene"]
    log.info("%s %s seed %d: %.4f", data, model, seed, nll)
    return nll


def scvi(peer: Path, path: Path, conditions: list[str], seed: int, samples: int) -> float:
    """scvi-tools on the same cells, in its own environment."""
    command = [
        str(peer),
        str(HERE / "scvi_peer.py"),
        str(path),
        ",".join(conditions),
        str(seed),
        str(samples),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    value = float(json.loads(done.stdout.strip().splitlines()[-1])["nll_per_gene"])
    log.info("scvi-tools %s seed %d: %.4f", path.stem, seed, value)
    return value


def summary(data: str, model: str, values: list[float]) -> dict[str, Any]:
    """A row of the table."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    listed = " ".join(f"{value:.4f}" for value in values)
    return {
        "data": data,
        "model": model,
        "nll": float(np.mean(values)),
        "sd": spread,
        "seeds": listed,
    }


if __name__ == "__main__":
    run_experiment(main)
