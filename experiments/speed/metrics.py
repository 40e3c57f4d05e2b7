"""Speed of the metrics, each beside the plain loop over scipy or scikit-learn that gives the same
number, in one run.

    python experiments/speed/metrics.py
    python experiments/speed/metrics.py --genes 2000        # a quick look

By default 255 conditions x 18,211 genes, and 2,000 against 2,000 cells.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from scipy.spatial.distance import cdist
from scipy.stats import pearsonr, spearmanr

from perturbgen.cli import run_experiment
from perturbgen.core.console import show_table
from perturbgen.evaluate import score, score_points

REPEATS = 3
Seconds = tuple[float, float]


def main(
    conditions: Annotated[int, typer.Option(help="Rows of the DE tables.")] = 255,
    genes: Annotated[int, typer.Option(help="Columns of the DE tables.")] = 18_211,
    cells: Annotated[int, typer.Option(help="Cells on either side.")] = 2_000,
    features: Annotated[int, typer.Option(help="Components of a cell.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time all metrics of DE tables together, the rank correlation alone, and energy distance with
    MMD.
    """
    rng = np.random.default_rng(0)
    rows = [*of_tables(rng, conditions, genes), of_cells(rng, cells, features)]
    title = (
        f"{conditions} x {genes:,} DE values; {cells:,} against {cells:,} cells of "
        f"{features} components"
    )
    show_table(rows, title=title, as_json=as_json)


def of_tables(rng: np.random.Generator, conditions: int, genes: int) -> list[dict[str, Any]]:
    """All metrics of DE tables, and the two correlations against scipy, row by row."""
    names = [("B cells" if i < conditions // 2 else "T cells", f"c{i}") for i in range(conditions)]
    index = pd.MultiIndex.from_tuples(names, names=["cell_type", "compound"])
    truth = pd.DataFrame(
        rng.standard_t(3, (conditions, genes)), index, [f"g{j}" for j in range(genes)]
    )
    prediction = 0.3 * truth + rng.normal(size=truth.shape)
    reference = truth.mean()
    _, everything = timed(lambda: score(truth, prediction, reference=reference))
    both = ["mean_rowwise_pearson", "mean_rowwise_spearman"]
    ours, seconds = timed(lambda: score(truth, prediction, metrics=both))
    pairs = list(zip(truth.to_numpy(), prediction.to_numpy(), strict=True))
    plain, loop = timed(
        lambda: [[f(a, b).statistic for a, b in pairs] for f in (pearsonr, spearmanr)], repeats=1
    )
    require_equal(ours.to_numpy(), np.array(plain))
    return [
        line("all metrics of DE tables", everything, None, "3 s"),
        line("Pearson, Spearman", seconds, loop, ""),
    ]


def of_cells(rng: np.random.Generator, cells: int, features: int) -> dict[str, Any]:
    """Energy distance and MMD² against whole matrices of distances."""
    x, y = rng.normal(size=(cells, features)), 1.1 * rng.normal(size=(cells, features))
    names = ["energy_distance_squared", "mmd_squared"]
    ours, seconds = timed(lambda: score_points({"a": x}, {"a": y}, metrics=names))
    plain, slow = timed(lambda: whole_matrices(x, y))
    require_equal(ours["a"].to_numpy(), plain)
    return line("energy distance, MMD²", seconds, slow, "1 s")


def line(what: str, ours: Seconds, plain: Seconds | None, wanted: str) -> dict[str, Any]:
    """A line of the table; on a shared machine the processor's seconds are the fairer ones."""
    times = {"what": what, "seconds": ours[0], "of processor": ours[1]}
    if plain is None:
        return {**times, "plain loop": None, "ratio": None, "wanted": wanted}
    return {**times, "plain loop": plain[1], "ratio": plain[1] / ours[1], "wanted": wanted}


def whole_matrices(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Energy distance and MMD² from three matrices of distances."""
    width = np.var(x, axis=0).sum()
    across, true, predicted = (cdist(a, b) for a, b in ((x, y), (x, x), (y, y)))
    energy = 2 * across.mean() - true.mean() - predicted.mean()
    kernels = [np.exp(d**2 / (-2 * width)).mean() for d in (true, predicted, across)]
    return np.array([energy, kernels[0] + kernels[1] - 2 * kernels[2]])


def require_equal(ours: np.ndarray, plain: np.ndarray) -> None:
    """Both sides give the same numbers, or the comparison is void."""
    if not np.allclose(ours, plain, rtol=1e-8, atol=1e-12):
        raise SystemExit("the metrics and the plain loop differ")


def timed(work: Callable[[], Any], repeats: int = REPEATS) -> tuple[Any, Seconds]:
    """What it gives, and the seconds of the fastest repeat: by the clock, and of the processor."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        given = work()
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return given, (min(clock for clock, _ in times), min(processor for _, processor in times))


if __name__ == "__main__":
    run_experiment(main)
