"""Speed and memory of landmark extraction, of the training feed and of training itself, each beside
what it replaces.

    python experiments/speed/l1000.py                     # 100,000 x 12,328, some minutes
    python experiments/speed/l1000.py --samples 20000     # a quick look
    python experiments/speed/l1000.py --samples 1300000 --genes 20 --only extraction

The first takes 4.9 GB of disk for a while; the last has as many ids as GSE92742.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
import pandas as pd
import typer
from l1000_training import feed_rows, head_rows

from perturbgen.cli import run_experiment
from perturbgen.core.console import show_table, track
from perturbgen.core.errors import ConfigError, StorageError
from perturbgen.core.system import keep_freed_memory
from perturbgen.l1000 import GctxWriter, landmarks

BATCH, NAIVE_ROWS = 1024, 20_000


def main(
    samples: Annotated[int, typer.Option(min=1000, help="Samples of the matrix.")] = 100_000,
    genes: Annotated[int, typer.Option(min=2, help="Genes of the matrix.")] = 12_328,
    folder: Annotated[
        Path | None, typer.Option(help="Where the matrix is put, and removed from; default: /tmp.")
    ] = None,
    only: Annotated[str, typer.Option(help="extraction, feed, training or all.")] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time extraction against a sequential read of the same file, the feed against single rows, and
    training steps.
    """
    if only not in ("all", "extraction", "feed", "training"):
        raise ConfigError(f"--only {only}", expected="extraction, feed, training or all")
    tables: dict[str, list[dict[str, Any]]] = {}
    if only in ("all", "training"):
        tables |= {
            "training steps on the processor": feed_rows(),
            "the margin head": head_rows(in_process),
        }
    if only != "training":
        tables |= on_disk(samples, genes, folder or Path(tempfile.gettempdir()), only)
    if as_json:
        show_table([row for rows in tables.values() for row in rows], as_json=True)
    for title, rows in tables.items() if not as_json else ():
        show_table(rows, title=title)


def on_disk(samples: int, genes: int, folder: Path, only: str) -> dict[str, list[dict[str, Any]]]:
    """The tables of extraction and of the feed, from a matrix that is made and removed again."""
    need = samples * genes * 4 * 1.25
    free = shutil.disk_usage(folder).free
    if need > free / 2:
        raise StorageError(
            f"{need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free",
            fix="--samples, --folder",
        )
    work = Path(tempfile.mkdtemp(prefix="l1000-speed-", dir=folder))
    size = (
        f"{samples:,} x {genes:,} float32, {samples * genes * 4 / 1e9:.1f} GB, landmarks scattered"
    )
    try:
        matrix = make_matrix(work, samples, genes)
        tables = {f"extraction: {size}": extraction(matrix, work)} if only != "feed" else {}
        return tables | ({f"feed: {size}": feed(matrix, work)} if only != "extraction" else {})
    finally:
        shutil.rmtree(work)


def make_matrix(work: Path, samples: int, genes: int) -> Path:
    """An uncompressed GCTX in CMap's chunks, landmarks scattered, and its table of samples."""
    rng = np.random.default_rng(0)
    known = landmarks()["gene_id"].tolist()[: min(genes, 978)]
    ids = np.array([*known, *(str(9_000_001 + i) for i in range(genes - len(known)))], dtype=object)
    var = pd.DataFrame(index=ids[rng.permutation(genes)])
    rows, path = GctxWriter.chunk_shape(samples, genes)[0], work / "level4.gctx"
    noise = rng.normal(size=(rows * 4, genes)).astype(np.float32)
    wells = np.array([f"{chr(65 + w // 24)}{w % 24 + 1:02d}" for w in range(384)])
    names = np.char.add(
        [f"SIM{i // 384:05d}_A375_24H_X1_B19:" for i in range(samples)],
        wells[np.arange(samples) % 384],
    )
    with GctxWriter(path, var, samples=samples) as writer:
        for start in track(range(0, samples, len(noise)), "making the matrix"):
            part = names[start : start + len(noise)]
            writer.append(np.roll(noise, start, axis=1)[: len(part)], pd.DataFrame(index=part))
    info = pd.DataFrame(
        {"inst_id": names, "pert_id": [f"BRD-K{i // 7:08d}" for i in range(samples)]}
    )
    info = info.assign(
        pert_iname=info["pert_id"].str[4:],
        pert_type="trt_cp",
        pert_dose="10.0",
        pert_dose_unit="um",
    )
    info = info.assign(
        pert_time="24", pert_time_unit="h", cell_id="A375", rna_plate=info["inst_id"].str[:-4]
    )
    info.assign(rna_well=wells[np.arange(samples) % 384]).to_csv(
        work / "inst_info.txt", sep="\t", index=False
    )
    return path


def extraction(matrix: Path, work: Path) -> list[dict[str, Any]]:
    """Both sides in fresh processes, in turn, the best time of each: with the file out of the page
    cache, then in it.

    A file of CMap's is larger than memory, so the first is the case that counts; the second shows
    the work itself.
    """
    return [
        compare(matrix, work, cached=False, times=2),
        compare(matrix, work, cached=True, times=2),
    ]


def compare(matrix: Path, work: Path, *, cached: bool, times: int) -> dict[str, Any]:
    """One row: the plain read and the extraction."""
    found: dict[str, list[dict[str, float]]] = {"read": [], "extract": []}
    for _ in range(times):
        for side, arguments in (
            ("read", (sequential, matrix)),
            ("extract", (extract_once, matrix, work)),
        ):
            if not cached:
                evict(matrix)
            found[side].append(in_process(*arguments))
    read, done = (min(found[side], key=lambda t: t["seconds"]) for side in ("read", "extract"))
    return {
        "what": f"extraction, file {'in' if cached else 'not in'} the page cache",
        "plain s": read["seconds"],
        "ours s": done["seconds"],
        "speed ratio": read["seconds"] / done["seconds"],
        "cpu ratio": min(t["cpu"] for t in found["read"]) / min(t["cpu"] for t in found["extract"]),
        "of which pass s": done["pass_s"],
        "peak MB": max(t["peak_mb"] for t in found["extract"]),
        "imports MB": done["imports_mb"],
        "wanted": "ratio 0.5, 500 MB",
    }


def evict(path: Path) -> None:
    """Take a file out of the page cache."""
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_process(work: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """The result of a fresh process, whose peak memory is its own."""
    with mp.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def sequential(matrix: Path) -> dict[str, float]:
    """A plain read of the whole matrix with h5py, in blocks of whole chunks."""
    start, cpu = time.perf_counter(), time.process_time()
    with h5py.File(matrix, "r") as file:
        values = file["0/DATA/0/matrix"]
        rows = values.chunks[0]
        for first in range(0, len(values), rows):
            values[first : first + rows]
    return {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}


def extract_once(matrix: Path, work: Path) -> dict[str, float]:
    """The whole command: ids, table of samples, values, manifest."""
    from perturbgen.l1000 import extract, extraction

    imports = peak_mb()
    copy, passes = extraction._copy, []

    def timed(*arguments: Any) -> None:
        start = time.perf_counter()
        copy(*arguments)
        passes.append(time.perf_counter() - start)

    extraction._copy = timed  # type: ignore[assignment]
    start, cpu = time.perf_counter(), time.process_time()
    extract(
        [matrix], work / "out", metadata=[work / "inst_info.txt"], common_genes=True, force=True
    )
    seconds = time.perf_counter() - start
    spent = time.process_time() - cpu
    return {
        "seconds": seconds,
        "cpu": spent,
        "pass_s": passes[0],
        "peak_mb": peak_mb(),
        "imports_mb": imports,
    }


def peak_mb() -> float:
    """The largest memory of this process; what getrusage says would count its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def feed(matrix: Path, work: Path) -> list[dict[str, Any]]:
    """Shuffled samples a second from the memory map, beside h5py rows of the GCTX and of a
    landmark-only HDF5.
    """
    from perturbgen.l1000 import extract
    from perturbgen.profiles import read_profiles
    from perturbgen.train.feeds import MemmapFeed, ResidentFeed
    from perturbgen.train.run import LARGEST

    if not (work / "out").exists():
        extract([matrix], work / "out", common_genes=True)
    profiles = read_profiles(work / "out")
    with h5py.File(work / "landmarks.h5", "w") as file:
        file.create_dataset("x", data=profiles.values, chunks=(262, profiles.values.shape[1]))
    places = np.flatnonzero(np.isin(ids_of(matrix), profiles.features))
    order = np.random.default_rng(0).permutation(len(profiles))
    naive = rate(single_rows(matrix, "0/DATA/0/matrix", order[:2000], places))
    lean = rate(single_rows(work / "landmarks.h5", "x", order[:NAIVE_ROWS], None))
    ours = rate(len(b.rows) for b in MemmapFeed(profiles.values, BATCH, seed=0).epoch(0))
    import torch

    keep_freed_memory(LARGEST)  # as training does
    resident = ResidentFeed(torch.from_numpy(np.array(profiles.values)), BATCH, seed=0)
    device = rate(len(rows) for rows, _ in resident.epoch(0))
    rows = [("feed: rows of the GCTX", naive), ("feed: rows of landmarks alone", lean)]
    table = [
        {
            "what": what,
            "plain samples/s": plain,
            "ours samples/s": ours,
            "speed ratio": ours / plain,
            "wanted": "10",
        }
        for what, plain in rows
    ]
    return [*table, {"what": "resident feed", "ours samples/s": device}]


def ids_of(matrix: Path) -> np.ndarray:
    """The gene ids of the file."""
    with h5py.File(matrix, "r") as file:
        return file["0/META/ROW/id"][:].astype(str)


def single_rows(
    path: Path, name: str, order: np.ndarray, places: np.ndarray | None
) -> Iterable[int]:
    """What a data set of torch does by default: one row at a time, in random order."""
    with h5py.File(path, "r") as file:
        values = file[name]
        for row in order:
            found = values[row] if places is None else values[row][places]
            yield int(found.ndim)


def rate(batches: Iterable[int]) -> float:
    """Samples a second."""
    start = time.perf_counter()
    return sum(batches) / (time.perf_counter() - start)


if __name__ == "__main__":
    run_experiment(main)
