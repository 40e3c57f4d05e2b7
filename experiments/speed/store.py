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
from perturbgen.console import show_table
from perturbgen.data import CountStore, epoch_rng, pseudobulk, write_h5ad

GENES, SHARE, SIZE = 18_211, 0.06, 512
log = logging.getLogger("perturbgen.speed")


def main(
    cells: Annotated[int, typer.Option(help="How many cells.")] = 24_000,
    loop_batches: Annotated[int, typer.Option(help="Batches of the slow loops that are timed.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time the store in memory and on disk, and pseudobulk, against plain loops over the same data."""
    data = made_up(cells, np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        write_h5ad(data, path)
        rows = [memory(data, loop_batches), disk(path, cells, loop_batches), sums(data)]
    show_table(rows, title=f"{cells:,} cells x {GENES:,} genes, {SHARE:.0%} non-zero", as_json=as_json)


def made_up(cells: int, rng: np.random.Generator) -> ad.AnnData:
    """Random counts with the labels of wells and cell types."""
    per_cell = rng.poisson(SHARE * GENES, cells)
    columns = np.concatenate([np.sort(rng.choice(GENES, n, replace=False)) for n in per_cell]).astype(np.int32)
    counts = 1 + rng.poisson(0.5, len(columns)).astype(np.int32)
    matrix = sp.csr_matrix((counts, columns, np.concatenate([[0], np.cumsum(per_cell)])), shape=(cells, GENES))
    obs = pd.DataFrame({"plate": rng.integers(6, size=cells), "well": rng.integers(96, size=cells)})
    obs["cell_type"] = rng.integers(6, size=cells)
    return ad.AnnData(matrix, obs=obs.astype(str).astype("category").set_axis([f"c{i}" for i in range(cells)]))


def rate(batches: Iterable[int]) -> float:
    """Cells a second of an iterable of batch sizes; the first batch is warm-up."""
    stream = iter(batches)
    next(stream)
    start = time.perf_counter()
    return sum(stream) / (time.perf_counter() - start)


def loop(matrix: Any, order: np.ndarray, batches: int) -> Iterable[int]:
    """The plain loop: slice, densify."""
    for start in range(0, min(batches + 1, len(order) // SIZE) * SIZE, SIZE):
        rows = order[start : start + SIZE]
        yield len(matrix[rows].X.toarray().astype(np.float32))


def delivered(store: CountStore) -> Iterable[int]:
    """One shuffled epoch of the store."""
    return (len(batch.counts) for batch in store.batches(SIZE, rng=epoch_rng(0, 0)))


def memory(data: ad.AnnData, batches: int) -> dict[str, Any]:
    """The store in memory against ``adata[rows].X.toarray()``."""
    order = np.random.default_rng(0).permutation(data.n_obs)
    store = CountStore.from_adata(data)
    return result(
        "store in memory, cells/s", rate(delivered(store)), rate(loop(data, order, batches)), "5x, 20,000 cells/s"
    )


def disk(path: Path, cells: int, batches: int) -> dict[str, Any]:
    """The store on disk against the same loop over a backed file."""
    order = np.random.default_rng(0).permutation(cells)
    order[: cells // SIZE * SIZE].reshape(-1, SIZE).sort(axis=1)  # a backed file wants its rows in order
    backed = ad.read_h5ad(path, backed="r")
    plain = rate(loop(backed, order, batches))
    backed.file.close()
    return result("store on disk, cells/s", rate(delivered(CountStore.open(path))), plain, "5x")


def sums(data: ad.AnnData) -> dict[str, Any]:
    """Pseudobulk against a loop of sums over the groups."""
    by = ["plate", "well", "cell_type"]
    bulk, ours = timed(lambda: pseudobulk(data, by=by), times=5)
    plain, slow = timed(lambda: masked_sums(data, bulk.obs[by]))
    same = np.array_equal(bulk.X.toarray(), np.stack(plain))
    if not same:
        raise SystemExit("pseudobulk and the loop differ")
    return result("pseudobulk, groups/s", bulk.n_obs / ours, bulk.n_obs / slow, "10x, same sums")


def masked_sums(data: ad.AnnData, groups: pd.DataFrame) -> list[np.ndarray]:
    """The plain loop: a mask for each group, ``adata[mask].X.sum(0)``."""
    labels = data.obs[list(groups)].astype(str).agg("|".join, axis=1).to_numpy()
    wanted = groups.astype(str).agg("|".join, axis=1)
    return [np.asarray(data[labels == name].X.sum(axis=0)).ravel() for name in wanted]


def timed(work: Callable[[], Any], times: int = 1) -> tuple[Any, float]:
    """What it gives, and the median of the seconds it takes."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - start)
    return found, float(np.median(seconds))


def result(what: str, ours: float, plain: float, wanted: str) -> dict[str, Any]:
    """One line of the table."""
    return {"what": what, "ours": ours, "plain loop": plain, "ratio": ours / plain, "wanted": wanted}


if __name__ == "__main__":
    run_experiment(main)
