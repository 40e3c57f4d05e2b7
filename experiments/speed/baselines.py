"""How long do the baselines take on a table of the competition's size? Each line is a process of
its own.

python experiments/speed/baselines.py                  # 614 x 18,211, predicting 255 rows
python experiments/speed/baselines.py --genes 2000     # a smaller table, quickly

"seconds" is fit + predict on a table in memory as read_de returns it, "GB" the peak of the whole
process, table and libraries included. On a busy machine "CPU seconds" (of all threads and
processes) are what to hold against the limit, which is for an idle one with two cores. One line is
one tree set for each gene (same features, same trees), measured on a few genes and extended in a
straight line; the last is the default comparison (12 methods, 3 folds, scorecard, report) on a
simulated experiment of preset small, the simulation aside.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from perturbgen.baselines import REGISTRY, make
from perturbgen.cli import run_experiment
from perturbgen.core.console import say, show_table
from perturbgen.core.errors import PerturbgenError
from perturbgen.core.tables import CONDITION
from perturbgen.data import TARGETS

FULL = {"NK cells": 146, "T cells CD4+": 146, "T regulatory cells": 146, "T cells CD8+": 142}
CONSTANTS = (
    "zeros",
    "gene_mean",
    "compound_mean",
    "compound_median",
    "cell_type_mean",
    "additive",
    "shrunken_additive",
    "random_draw",
    "nearest_replicate",
    "ground_truth",
)
LIMITS: dict[str, float | None] = {
    "constants": 1,
    "bilinear_ridge": 10,
    "pls": 10,
    "kernel_ridge": 10,
    "neighbours": None,
    "transfer": None,
    "random_forest": None,
    "network": None,
    "xgboost": 20,
    "one tree set a gene": None,
    "default comparison": 300,
}
MEMORY = {"xgboost": 1.5}
PER_GENE = 20


def main(
    genes: Annotated[int, typer.Option(help="Columns of the table.")] = 18_211,
    only: Annotated[str | None, typer.Option(help="One line, in this process, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time every baseline, each in a process of its own, and compare XGBoost with one tree set for
    each gene.
    """
    if only is not None:
        say(json.dumps(measure(only, genes)))
        return
    rows = [in_own_process(name, genes) for name in LIMITS]
    seconds = {row["what"]: row["seconds"] for row in rows}
    ratio = seconds["one tree set a gene"] / seconds["xgboost"]
    show_table(rows, title=f"614 x {genes:,}, fit + predict 255 rows; {load()}", as_json=as_json)
    if not as_json:
        say(
            f"one tree set a gene takes {ratio:.0f} times as long as XGBoost on 60 components "
            "(extrapolated)"
        )


def load() -> str:
    """How busy the machine is, without which no time means anything."""
    with open("/proc/loadavg") as file:
        return f"load {file.read().split()[0]}"


def in_own_process(name: str, genes: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--only", name, "--genes", str(genes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PerturbgenError(f"{name} failed: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(name: str, genes: int) -> dict[str, Any]:
    """Seconds (of the clock and of the processors) and peak memory of one line."""
    if name == "default comparison":
        return line(name, *comparison())
    train, wanted = table(genes, np.random.default_rng(0))
    for used in CONSTANTS if name == "constants" else [name] if name in REGISTRY else ["xgboost"]:
        import_module(REGISTRY[used].kind.__module__)  # importing is not what is timed
    wall, cpu = time.perf_counter(), time.process_time()
    factor = 1.0
    if name == "constants":
        for constant in CONSTANTS:
            fit(constant, train, wanted)
    elif name in LIMITS and name != "one tree set a gene":
        fit(name, train, wanted)
    else:
        few = train.iloc[:, :: max(1, genes // PER_GENE)].iloc[:, :PER_GENE]
        factor = genes / few.shape[1]
        per_gene(train, few, wanted)
    wall, cpu = (time.perf_counter() - wall) * factor, (time.process_time() - cpu) * factor
    return line(name, wall, cpu)


def line(name: str, wall: float, cpu: float) -> dict[str, Any]:
    """A row of the table, with the peak memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    row = {
        "what": name,
        "seconds": round(wall, 2),
        "CPU seconds": round(cpu, 2),
        "limit": LIMITS[name],
    }
    return row | {"GB": round(peak, 2), "GB limit": MEMORY.get(name)}


def comparison() -> tuple[float, float]:
    """Seconds of the clock and of all processors of ``perturbgen compare`` as it is without any
    setting.
    """
    from perturbgen.compare import CompareSettings, compare, write_outputs
    from perturbgen.simulation import simulate

    with tempfile.TemporaryDirectory() as folder:
        data = simulate("small", seed=0, out=Path(folder) / "small")
        wall, cpu = time.perf_counter(), processors()
        found = compare(CompareSettings(data={"folder": str(data)}), Path(folder) / "out")
        write_outputs(found, Path(folder) / "out")
        return time.perf_counter() - wall, processors() - cpu


def processors() -> float:
    """Seconds of all processors, of this process and of those that it started and that ended."""
    mine, theirs = (
        resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime


def fit(name: str, train: pd.DataFrame, wanted: pd.MultiIndex) -> None:
    given: dict[str, Any] = {}
    if name == "ground_truth":
        given["truth"] = train
        wanted = train.index[:255]
    make(name, **given).fit(train, rng=np.random.default_rng(0)).predict(wanted)


def per_gene(train: pd.DataFrame, few: pd.DataFrame, wanted: pd.MultiIndex) -> None:
    """The same features and trees as ``xgboost`` has, one tree set for each of a few genes."""
    from perturbgen.baselines.trees import BoostedTrees

    model: Any = make("xgboost", trees=1, components=60)
    features = model.fit(train, rng=np.random.default_rng(0)).features(model.table)
    trees = REGISTRY["xgboost"].settings_class.model_fields["trees"].default
    parameters = {**model.parameters, "seed": 0}
    boosted = BoostedTrees(features, few.to_numpy(), parameters, trees=trees, device="auto")
    boosted.predict(features[: len(wanted)])


def table(genes: int, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.MultiIndex]:
    """A table of the competition's layout: programmes of compounds, tilted by cell types, plus
    noise; heavy tails.
    """
    compounds = [f"compound {i:03d}" for i in range(146)]
    known = FULL | dict.fromkeys(TARGETS, 17)
    rows = [(cell, compound) for cell, count in known.items() for compound in compounds[-count:]]
    programmes, strength = (
        rng.normal(size=(20, genes)),
        dict(zip(compounds, rng.normal(size=(146, 20)), strict=True)),
    )
    scores = np.array([strength[compound] for _, compound in rows])
    tilt = {cell: rng.lognormal(0, 0.3, 20) for cell in known}
    scores *= np.array([tilt[cell] for cell, _ in rows])
    z = 0.5 * scores @ programmes + rng.normal(size=(len(rows), genes))
    values = np.sign(z) * 0.3 * z**2
    index = pd.MultiIndex.from_tuples(rows, names=CONDITION)
    hidden = [
        (cell, compound)
        for cell in TARGETS
        for compound in compounds[: 128 if cell == TARGETS[0] else 127]
    ]
    wanted = pd.MultiIndex.from_tuples(hidden, names=CONDITION)
    # as from parquet
    columnwise = pd.DataFrame(np.asfortranarray(values), index, [f"g{i}" for i in range(genes)])
    return columnwise.iloc[rng.permutation(len(rows))], wanted


if __name__ == "__main__":
    run_experiment(main)
