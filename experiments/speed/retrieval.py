"""Speed and memory of exact retrieval: all pairs, the row itself excluded, AP, rank quantiles and
p-values of groups.

    python experiments/speed/retrieval.py                # 20,000 x 32, and some of 200,000 x 32
    python experiments/speed/retrieval.py --share 1      # all of 200,000 x 32
    python experiments/speed/retrieval.py --copairs /tmp/copairs/bin/python

By default a fiftieth of the queries of the large one is asked; copairs has an environment of its
own. Every job runs in a process of its own, whose peak memory includes Python and the libraries. On
a machine that does other work, too, the seconds of CPU say more than those on the clock.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from perturbgen.cli import run_experiment
from perturbgen.core.console import show_table

FEATURES, GROUP = 32, 20  # GROUP rows each

COMMON = """
import json, resource, sys, time
import numpy as np, pandas as pd
rows, share = int(sys.argv[1]), float(sys.argv[2])
rng = np.random.default_rng(0)
group = rng.integers(rows // {group}, size=rows)
centre = rng.normal(size=(rows // {group}, {features}))
x = (0.7 * centre[group] + rng.normal(size=(rows, {features}))).astype(np.float32)
meta = pd.DataFrame({{"compound": group.astype(str)}})
"""
OURS = """
from perturbgen.retrieval import retrieve
# numba compiles, or loads
retrieve(x[:200], meta.iloc[:200].assign(compound=np.arange(200) % 50), same="compound")
asked = np.arange(rows) < share * rows
start, worked = time.perf_counter(), time.process_time()
found = retrieve(x, meta, same="compound", queries=asked)
seconds, ap = time.perf_counter() - start, found.queries["ap"].mean()
"""
LOOP = """
start, worked = time.perf_counter(), time.process_time()
unit, ap = x / np.linalg.norm(x, axis=1, keepdims=True), []
for i in range(rows):
    sims = unit @ unit[i]
    alike = group == group[i]
    order = np.argsort(-np.delete(sims, i), kind="stable")
    ranks = np.flatnonzero(np.delete(alike, i)[order]) + 1
    if len(ranks):
        ap.append((np.arange(1, len(ranks) + 1) / ranks).mean())
seconds, ap = time.perf_counter() - start, np.mean(ap)
"""
COPAIRS = """
import tempfile
from copairs.map import average_precision, mean_average_precision
with tempfile.TemporaryDirectory() as cache:
    start, worked = time.perf_counter(), time.process_time()
    table = average_precision(meta, x, ["compound"], [], [], ["compound"], progress_bar=False)
    mean_average_precision(
        table,
        ["compound"],
        null_size=10_000,
        threshold=0.05,
        seed=0,
        progress_bar=False,
        cache_dir=cache,
    )
    seconds, ap = time.perf_counter() - start, table["average_precision"].mean()
"""
REPORT = """
cpu = time.process_time() - worked
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "CPU s": cpu, "peak MB": peak, "mean AP": float(ap)}))
"""


def main(
    rows: Annotated[int, typer.Option(help="Rows of the full job.")] = 20_000,
    large: Annotated[int, typer.Option(help="Rows of the large job; 0 leaves it out.")] = 200_000,
    share: Annotated[
        float, typer.Option(help="Share of the large job's queries that is run.")
    ] = 0.02,
    small: Annotated[int, typer.Option(help="Rows for the comparison with others.")] = 2000,
    copairs: Annotated[Path | None, typer.Option(help="A Python that has copairs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time retrieval against all others, and beside a plain loop and copairs on a small size."""
    table = [job("perturbgen", OURS, rows)]
    if large:
        part = job("perturbgen", OURS, large, share)
        part["all queries, CPU s"] = part["CPU s"] / share
        part["how"] = "measured" if share == 1 else f"extrapolated from {share:.0%} of the queries"
        table.append(part)
    ours = job("perturbgen", OURS, small)
    others = [job("plain loop (AP only)", LOOP, small)]
    if copairs is not None:
        others.append(job("copairs", COPAIRS, small, python=str(copairs)))
    for other in others:
        other["ratio of CPU"] = other["CPU s"] / ours["CPU s"]
    columns = (
        "what",
        "rows",
        "seconds",
        "CPU s",
        "all queries, CPU s",
        "peak MB",
        "mean AP",
        "ratio of CPU",
        "how",
    )
    show_table(
        [{name: row.get(name) for name in columns} for row in (*table, ours, *others)],
        title=f"exact retrieval, {FEATURES} features, groups of about {GROUP}",
        as_json=as_json,
    )


def job(
    what: str, code: str, rows: int, share: float = 1.0, *, python: str = sys.executable
) -> dict[str, Any]:
    """Run a piece of code in a process of its own, and what it says of time and memory."""
    program = COMMON.format(group=GROUP, features=FEATURES) + code + REPORT
    command = [python, "-c", program, str(rows), str(share)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {
        "what": what,
        "rows": rows,
        "how": "measured",
        **json.loads(result.stdout.splitlines()[-1]),
    }


if __name__ == "__main__":
    run_experiment(main)
