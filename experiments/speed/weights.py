"""How much faster than R are the correlation within blocks and the weights of samples?

    python experiments/speed/weights.py
    python experiments/speed/weights.py --genes 20000 --samples 100 --r-genes 20000

Both sides have the same numbers, in one run; R is single-threaded as it is, ours is held to one
thread, too. Processor seconds are compared: they hardly depend on what else the machine does. With
fewer ``--r-genes`` R's time is extended in proportion to the genes (all but ``reml`` go through
them one by one).
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from perturbgen.core.console import show_table
from perturbgen.de import array_weights, duplicate_correlation

# what is timed: R's call
CALLS = {
    "duplicateCorrelation": "duplicateCorrelation(y, design, block = block)",
    "duplicateCorrelation, weights": "duplicateCorrelation(y, design, block = block, weights = w)",
    "arrayWeights, gene by gene": 'arrayWeights(y, design, method = "genebygene")',
    "arrayWeights, voom's weights": "arrayWeights(y, design, weights = w)",
    "arrayWeights, REML": 'arrayWeights(y, design, method = "reml")',
}


def draw(genes: int, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Log expressions and weights (samples, genes), a design of five columns, pairs as blocks."""
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(samples // 2), 2)
    design = np.column_stack([np.ones(samples), block % 2, rng.normal(size=(samples, 3))])
    y = rng.normal(size=(samples, genes)) + rng.normal(size=(samples // 2, genes))[block]
    return y, rng.gamma(5, 0.2, (samples, genes)), design, block


def time_r(y: np.ndarray, w: np.ndarray, design: np.ndarray, block: np.ndarray) -> dict[str, float]:
    """Processor seconds of R by call."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        parts = {"y": y, "w": w, "design": design.T, "block": block[None]}
        # R has columns one after the other: (samples, genes) by rows is genes x samples there
        lines = ["suppressMessages(library(limma))"]
        for name, values in parts.items():
            values.astype(float).tofile(folder / name)
            rows, columns = values.shape[::-1]
            lines.append(
                f'{name} <- matrix(readBin("{folder / name}", 0, {values.size}), {rows}, {columns})'
            )
        lines += ["block <- block[, 1]", "call <- function(x) sum(system.time(x)[1:2])"]
        lines += [f"cat(call({code}), '\\n')" for code in CALLS.values()]
        (folder / "time.R").write_text("\n".join(lines))
        command = ["Rscript", str(folder / "time.R")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = map(float, done.stdout.split())
    return dict(zip(CALLS, seconds, strict=True))


def time_ours(work: Callable[[], object], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return float(np.median(taken))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--r-genes", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=3, help="of ours; the median counts")
    chosen = parser.parse_args()
    y, w, design, block = draw(chosen.genes, chosen.samples)
    ours = {
        "duplicateCorrelation": lambda: duplicate_correlation(y, design, block),
        "duplicateCorrelation, weights": lambda: duplicate_correlation(y, design, block, weights=w),
        "arrayWeights, gene by gene": lambda: array_weights(y, design, method="genebygene"),
        "arrayWeights, voom's weights": lambda: array_weights(y, design, weights=w),
        "arrayWeights, REML": lambda: array_weights(y, design, method="reml"),
    }
    few = min(chosen.r_genes, chosen.genes)
    in_r = time_r(y[:, :few], w[:, :few], design, block)
    rows = []
    for name, work in ours.items():
        native, r = time_ours(work, chosen.repeats), in_r[name] * chosen.genes / few
        rows.append({"call": name, "native s": native, "R s": r, "ratio": r / native})
    show_table(rows)


if __name__ == "__main__":
    main()
