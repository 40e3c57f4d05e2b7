"""How much faster is the native differential expression than R's? Both backends, one run, one
machine.

    python experiments/speed/de.py --shape table
    python experiments/speed/de.py --shape joint        # the OP3 benchmark
    python experiments/speed/de.py --shape kaggle
    python experiments/speed/de.py --shape kaggle --replicates 20 --no-r
    python experiments/speed/de.py --shape small --full-r --busy 2   # beside two busy processes

genes x samples x coefficients are

* table: 4,000 x 720 x 245, 200 contrasts;
* joint: 5,317 x 1,900 x 560, 400 contrasts, robust;
* kaggle: six fits of 18,211 x 576 x 161, all contrasts;
* small: shapes like those of pasilla (12,000 x 8 x 3), gse60450 (15,000 x 12 x 6), mammary
  (16,000 x 12 x 6, 25 contrasts of them) and yoruba (12,000 x 69 x 3), the median of nine runs.

R does TMM, voom, lmFit, contrasts.fit and eBayes, in one call each. Its time grows in proportion to
the genes, so it is measured on two subsets of them and extended in a straight line (--full-r runs
it on all genes).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import permutations
from typing import NamedTuple

import numpy as np
import pandas as pd

from perturbgen.core.console import say, show_table
from perturbgen.de import limma_table
from perturbgen.de.native import FitMethod, fit_native
from perturbgen.de.plan import Fit, Question
from perturbgen.de.r import fit_r


@dataclass(frozen=True)
class Shape:
    """An experiment: how many genes, its obs, the design, the contrasts to make, and how many genes
    R is timed on.
    """

    genes: int
    obs: pd.DataFrame
    design: str
    method: FitMethod
    contrasts: int | None
    r_genes: tuple[int, int]
    by: str | None = None
    joint: bool = False
    fits: int = 1
    every_pair: int = 0  # so many differences of two levels, in place of those to the control


def table_shape() -> Shape:
    compounds = np.repeat([f"c{i}" for i in range(240)], 3)
    plates = np.random.default_rng(1).integers(0, 6, 720)
    obs = pd.DataFrame({"compound": compounds, "plate": [f"p{i}" for i in plates]})
    return Shape(4000, named(obs), "~0 + {group} + plate", FitMethod("limma"), 200, (100, 400))


def joint_shape() -> Shape:
    pairs = [(f"t{k}", f"c{i}") for k in range(4) for i in range(139)][:555]
    extra = 1900 - 3 * len(pairs)
    cells, compounds = zip(*(pairs * 3 + pairs[:extra]), strict=True)
    rng = np.random.default_rng(1)
    plates = [f"p{i}" for i in rng.integers(0, 6, 1900)]
    obs = pd.DataFrame({"cell_type": cells, "compound": compounds, "plate": plates})
    method = FitMethod("limma", robust=True)
    return Shape(
        5317, named(obs), "~0 + {group} + plate", method, 400, (10, 40), by="cell_type", joint=True
    )


def kaggle_shape() -> Shape:
    """Six plates of 96 wells, three donors by two libraries; a compound has one well on each plate
    of its library.
    """
    rows = []
    for plate in range(6):
        library = 0 if plate in (0, 4, 5) else 1
        for well in range(96):
            column, row = divmod(well, 8)
            name = (
                ("c0", "Belinostat", "Dabrafenib")[column] if column < 3 else f"c{library}_{well}"
            )
            rows.append((name, f"donor_{plate % 3}", f"plate_{plate}", "ABCDEFGH"[row]))
    one = pd.DataFrame(rows, columns=["compound", "donor", "plate", "row"])
    obs = pd.concat([one.assign(cell_type=f"t{k}") for k in range(6)], ignore_index=True)
    method = FitMethod("limma")
    design = "~0 + {group} + donor + plate + row"
    return Shape(18211, named(obs), design, method, None, (200, 800), by="cell_type", fits=6)


def small_shape(genes: int, groups: int, each: int, batches: int, seed: int) -> Shape:
    names = np.repeat([f"c{i}" for i in range(groups)], each)
    batch = [f"b{i % batches}" for i in range(len(names))]
    obs = pd.DataFrame({"compound": names, "batch": batch})
    design = "~0 + {group}" + (" + batch" if batches > 1 else "")
    return Shape(genes, named(obs), design, FitMethod("limma"), None, (genes // 4, genes))


SMALL = {
    "pasilla": lambda: small_shape(12_000, 2, 4, 2, 1),
    "gse60450": lambda: small_shape(15_000, 6, 2, 1, 2),
    "mammary": lambda: replace(small_shape(16_000, 6, 2, 1, 3), every_pair=25),
    "yoruba": lambda: small_shape(12_000, 2, 35, 2, 4),
}
SHAPES = {"table": table_shape, "joint": joint_shape, "kaggle": kaggle_shape}


def named(obs: pd.DataFrame) -> pd.DataFrame:
    return obs.set_index(pd.Index([f"s{i}" for i in range(len(obs))]))


def draw_counts(shape: Shape, rng: np.random.Generator) -> pd.DataFrame:
    """Negative binomial counts with depths that differ; many genes are low, as in pseudobulk."""
    means = rng.lognormal(1.5, 2, shape.genes)
    counts = np.empty((len(shape.obs), shape.genes))
    for i, depth in enumerate(rng.gamma(8, 1 / 8, len(shape.obs))):
        counts[i] = rng.poisson(means * depth * rng.gamma(5, 1 / 5, shape.genes))
    return pd.DataFrame(counts, shape.obs.index, [f"g{i}" for i in range(shape.genes)])


def options(shape: Shape) -> dict[str, object]:
    return {
        "design": shape.design,
        "group": "compound",
        "control": "c0",
        "by": shape.by,
        "joint": shape.joint,
    }


def plan(shape: Shape) -> list[Fit]:
    """The fits of a shape."""
    fits = Question(**options(shape)).fits(shape.obs)
    if not shape.every_pair:
        return fits
    [fit] = fits
    pairs = list(permutations(fit.design.levels, 2))[: shape.every_pair]
    return [replace(fit, weights=np.array([fit.design.contrast(*pair) for pair in pairs]))]


class Spent(NamedTuple):
    """Seconds by the clock and of the processor."""

    wall: float
    processor: float


def spent(work: Callable[[], object]) -> Spent:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - wall, time.process_time() - processor)


@contextmanager
def beside(busy: int) -> Iterator[None]:
    """Beside so many processes that compute without end."""
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(busy)]
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()


def run_small(repeats: int) -> None:
    """Small shapes, native and R in turn, medians by the clock and of the processor."""
    rows = []
    for name, make in SMALL.items():
        shape = make()
        counts = draw_counts(shape, np.random.default_rng(0)).to_numpy()
        [fit] = plan(shape)

        def once(run: Callable[..., object], genes: int | None = None, fit=fit, counts=counts):
            taken = np.ascontiguousarray(counts[:, :genes])
            return spent(lambda: run(taken, fit.design, fit.weights, FitMethod("limma")))

        once(fit_native), once(fit_r, 200)  # loads libraries, starts R
        pairs = [(once(fit_native), once(fit_r)) for _ in range(repeats)]
        ours, theirs = (np.median([pair[k] for pair in pairs], axis=0) for k in (0, 1))
        rows.append(
            {
                "shape": name,
                "native s": float(ours[0]),
                "processor": float(ours[1]),
                "R s": float(theirs[0]),
                "R processor": float(theirs[1]),
                "ratio": float(theirs[0] / ours[0]),
                "of processors": float(theirs[1] / ours[1]),
            }
        )
    show_table(rows, title=f"load {os.getloadavg()[0]:.1f}")


def time_native(shape: Shape, counts: pd.DataFrame) -> float:
    """Seconds from counts to the statistics of every contrast, for all fits: what R is timed on,
    too.
    """
    values = counts.to_numpy()
    parts = [(values[fit.rows], fit.design, fit.weights[: shape.contrasts]) for fit in plan(shape)]
    start = time.perf_counter()
    for counts_of_fit, design, weights in parts:
        fit_native(counts_of_fit, design, weights, shape.method)
    return time.perf_counter() - start


def time_table(shape: Shape, counts: pd.DataFrame) -> float:
    """Seconds of the whole analysis: checks, design, fits, adjusted p, a labelled table."""
    start = time.perf_counter()
    limma_table(counts, shape.obs, contrasts="limma", robust=shape.method.robust, **options(shape))
    return time.perf_counter() - start


def time_r(shape: Shape, counts: pd.DataFrame, *, full: bool) -> tuple[float, str]:
    """Seconds for all genes and fits, and how they were found."""
    fit = plan(shape)[0]
    values, weights = counts.to_numpy()[fit.rows], fit.weights[: shape.contrasts]
    sizes = (shape.genes,) if full else shape.r_genes
    fit_r(values[:, :20], fit.design, weights[:2], shape.method)  # starts R
    taken = []
    for genes in sizes:
        start = time.perf_counter()
        fit_r(np.ascontiguousarray(values[:, :genes]), fit.design, weights, shape.method)
        taken.append(time.perf_counter() - start)
    if full:
        return taken[0] * shape.fits, "all genes" + (
            f" of one fit, times {shape.fits}" if shape.fits > 1 else ""
        )
    slope = (taken[1] - taken[0]) / (sizes[1] - sizes[0])
    seconds = (taken[0] + slope * (shape.genes - sizes[0])) * shape.fits
    return seconds, f"from {sizes[0]} and {sizes[1]} genes ({taken[0]:.1f} s, {taken[1]:.1f} s)"


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run(name: str, *, repeats: int, with_r: bool, full_r: bool) -> None:
    shape = SHAPES[name]()
    counts = draw_counts(shape, np.random.default_rng(0))
    native = min(time_native(shape, counts) for _ in range(repeats))
    row: dict[str, object] = {"shape": name, "native s": native, "peak GB": peak_gb()}
    row["table s"] = min(time_table(shape, counts) for _ in range(repeats))
    if with_r:
        seconds, how = time_r(shape, counts, full=full_r)
        row |= {"R s": seconds, "R is": how, "ratio": seconds / native}
    show_table([row])
    say(
        "| "
        + " | ".join(f"{v:,.3g}" if isinstance(v, float) else str(v) for v in row.values())
        + " |"
    )


def run_replicates(number: int) -> None:
    """The Kaggle shape again and again on fresh counts, averaging t: what averaging over generated
    wells costs.
    """
    shape, mean = kaggle_shape(), 0.0
    rng, spent = np.random.default_rng(0), 0.0
    for _ in range(number):
        counts = draw_counts(shape, rng)
        start = time.perf_counter()
        mean = mean + limma_table(counts, shape.obs, **options(shape)).t.to_numpy() / number
        spent += time.perf_counter() - start
    say(
        f"{number} replicates of six fits: {spent:.1f} s, {spent / number:.2f} s each (SD of mean "
        f"t {mean.std():.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=[*SHAPES, "small", "all"], default="all")
    parser.add_argument("--repeats", type=int, default=3, help="native runs; the fastest counts")
    parser.add_argument("--no-r", action="store_true")
    parser.add_argument(
        "--full-r", action="store_true", help="run R on all genes, however long it takes"
    )
    parser.add_argument(
        "--replicates", type=int, default=0, help="instead: average this many replicates of kaggle"
    )
    parser.add_argument("--busy", type=int, default=0, help="busy processes beside it")
    chosen = parser.parse_args()
    with beside(chosen.busy):
        measure(chosen)


def measure(chosen: argparse.Namespace) -> None:
    if chosen.shape == "small":
        run_small(max(chosen.repeats, 9))
    elif chosen.replicates:
        run_replicates(chosen.replicates)
    elif chosen.shape == "all":  # a process each, so that each has its own peak of memory
        flags = [
            flag for flag in ("--no-r", "--full-r") if getattr(chosen, flag[2:].replace("-", "_"))
        ]
        for name in SHAPES:
            command = [
                sys.executable,
                __file__,
                "--shape",
                name,
                "--repeats",
                str(chosen.repeats),
                *flags,
            ]
            subprocess.run(command, check=True)
    else:
        run(chosen.shape, repeats=chosen.repeats, with_r=not chosen.no_r, full_r=chosen.full_r)


if __name__ == "__main__":
    main()
