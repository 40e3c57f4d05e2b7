"""Speed of the count store and of pseudobulk, each beside the plain loop it replaces, in one run.

python experiments/speed/store.py                 # 24,000 cells x 18,211 genes, about two minutes
python experiments/speed/store.py --cells 4000    # a quick look
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import typer

from perturbgen.cli import run_experiment
from perturbgen.core.console import show_table
from perturbgen.data import CountStore, pseudobulk, write_h5ad

GENES, SHARE, SIZE, REPEATS = 18_211, 0.06, 512, 3
log = logging.getLogger("perturbgen.speed")


def main(
    cells: Annotated[int, typer.Option(help="How many cells.")] = 24_000,
    loop_batches: Annotated[
        int, typer.Option(help="Batches of the slow loops that are timed.")
    ] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time the store in memory and on disk, and pseudobulk, against loops over the same data."""
    data = made_up(cells, np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        write_h5ad(data, path)
        rows = [*memory(data, loop_batches), disk(path, cells, loop_batches), sums(data)]
    show_table(
        rows, title=f"{cells:,} cells x {GENES:,} genes, {SHARE:.0%} non-zero", as_json=as_json
    )


def made_up(cells: int, rng: np.random.Generator) -> ad.AnnData:
    """Random counts with the labels of wells and cell types."""
    per_cell = rng.poisson(SHARE * GENES, cells)
    columns = np.concatenate(
        [np.sort(rng.choice(GENES, n, replace=False)) for n in per_cell]
    ).astype(np.int32)
    counts = 1 + rng.poisson(0.5, len(columns)).astype(np.int32)
    matrix = sp.csr_matrix(
        (counts, columns, np.concatenate([[0], np.cumsum(per_cell)])), shape=(cells, GENES)
    )
    obs = pd.DataFrame({"plate": rng.integers(6, size=cells), "well": rng.integers(96, size=cells)})
    obs["cell_type"] = rng.integers(6, size=cells)
    return ad.AnnData(
        matrix, obs=obs.astype(str).astype("category").set_axis([f"c{i}" for i in range(cells)])
    )


def rate(batches: Callable[[], Iterable[int]], repeats: int = 1) -> float:
    """Cells a second of batches given by their sizes, the best of some repeats; the first batch is
    warm-up.
    """
    return max(rate_once(batches()) for _ in range(repeats))


def rate_once(batches: Iterable[int]) -> float:
    """Cells a second, the first batch not counted."""
    stream = iter(batches)
    next(stream)
    start = time.perf_counter()
    return sum(stream) / (time.perf_counter() - start)


def loop(matrix: Any, order: np.ndarray, batches: int, *, convert: bool = True) -> Iterable[int]:
    """The plain loop: slice, densify and, since batches are float32, convert."""
    for start in range(0, min(batches + 1, len(order) // SIZE) * SIZE, SIZE):
        rows = order[start : start + SIZE]
        # Nothing is kept from one batch to the next: the loop may reuse its memory as well.
        yield len(
            matrix[rows].X.toarray().astype(np.float32) if convert else matrix[rows].X.toarray()
        )


def delivered(store: CountStore) -> Iterable[int]:
    """One shuffled epoch of the store."""
    return (len(batch.counts) for batch in store.batches(SIZE, rng=np.random.default_rng([0, 0])))


def memory(data: ad.AnnData, batches: int) -> list[dict[str, Any]]:
    """The store in memory against ``adata[rows].X.toarray()``, with and without the conversion to
    float32.

    The loop without it delivers another type than the store: it is the harder rival and the less
    equal one.
    """
    order = np.random.default_rng(0).permutation(data.n_obs)
    store = CountStore.from_adata(data)
    ours = rate(lambda: delivered(store), REPEATS)
    return [
        result(
            f"store in memory, cells/s ({name})",
            ours,
            rate(lambda convert=convert: loop(data, order, batches, convert=convert), REPEATS),
            "5x, 20,000 cells/s",
        )
        for name, convert in (("loop gives float32", True), ("loop keeps int32", False))
    ]


def disk(path: Path, cells: int, batches: int) -> dict[str, Any]:
    """The store on disk against the same loop over a backed file."""
    order = np.random.default_rng(0).permutation(cells)
    # a backed file wants its rows in order
    order[: cells // SIZE * SIZE].reshape(-1, SIZE).sort(axis=1)
    backed = ad.read_h5ad(path, backed="r")
    plain = rate(lambda: loop(backed, order, batches))
    backed.file.close()
    store = CountStore.open(path)
    return result("store on disk, cells/s", rate(lambda: delivered(store)), plain, "5x")


def sums(data: ad.AnnData) -> dict[str, Any]:
    """Pseudobulk against a loop of sums over the groups."""
    by = ["plate", "well", "cell_type"]
    pseudobulk(data[:SIZE].copy(), by=by)  # compiles the inner loop
    bulk, ours = timed(lambda: pseudobulk(data, by=by))
    group = data.obs.astype(str).groupby(by, sort=True).ngroup().to_numpy()
    plain, slow = timed(lambda: masked_sums(data, group))
    if not np.array_equal(bulk.X.toarray(), plain):
        raise SystemExit("pseudobulk and the loop differ")
    return result("pseudobulk, groups/s", bulk.n_obs / ours, bulk.n_obs / slow, "10x, same sums")


def masked_sums(data: ad.AnnData, group: np.ndarray) -> np.ndarray:
    """The plain loop: a mask for each group, ``adata[mask].X.sum(0)``."""
    return np.stack(
        [np.asarray(data[group == i].X.sum(axis=0)).ravel() for i in range(group.max() + 1)]
    )


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the seconds it takes: the best of some repeats.

    The first repeat also maps memory that the system never gave us before, which on a virtual
    machine can take longer than the sums; so that the next ones need not, a result is let go before
    the next is made.
    """
    seconds, given = [], None
    for _ in range(REPEATS):
        given = None
        start = time.perf_counter()
        given = work()
        seconds.append(time.perf_counter() - start)
    return given, min(seconds)


def result(what: str, ours: float, plain: float, wanted: str) -> dict[str, Any]:
    """One line of the table."""
    return {
        "what": what,
        "ours": ours,
        "plain loop": plain,
        "ratio": ours / plain,
        "wanted": wanted,
    }


if __name__ == "__main__":
    run_experiment(main)
