"""How fast and how large is reading the competition's long parquet into CSR?

    python experiments/speed/ingest.py [--cells 24000] [--order clustered|shuffled]

Writes a synthetic Kaggle folder (18,211 genes, ~6 % non-zeros, ids of 16 hexadecimal digits), reads
it in a fresh process and prints non-zeros a second and the peak of resident memory, against the
bound of twice the final matrix plus 300 MB, and what 240,000 cells would take.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

GENES = 18_211
FULL = 240_000
DENSITY = 0.06
WANTED_SPEED = 2e6
MEGABYTE = 1e6


def main() -> None:
    """Write, read in a fresh process, print."""
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]))
        return
    options = parse()
    quarter, whole = (measure(cells, options) for cells in (options.cells // 4, options.cells))
    report(quarter, whole, options)


def measure(cells: int, options: argparse.Namespace) -> dict[str, float]:
    """Write a folder of so many cells and read it in a fresh process."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_folder(Path(folder), cells=cells, order=options.order, rng=np.random.default_rng(0))
        return json.loads(run_child(Path(folder))) | {"cells": cells}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=24_000)
    parser.add_argument("--order", choices=("clustered", "shuffled"), default="clustered")
    parser.add_argument("--folder", help="where the temporary files go")
    return parser.parse_args()


def write_folder(
    folder: Path, *, cells: int, order: str, rng: np.random.Generator, group: int = 400
) -> None:
    """A Kaggle folder; each row group holds ``group`` cells, its rows in cell order or shuffled."""
    ids = np.array([f"{code:016x}" for code in rng.integers(0, 2**63, cells)], dtype=object)
    genes = pd.Index([f"GENE{i:05d}" for i in range(GENES)])
    write_tables(folder, ids, genes)
    rates = rng.gamma(0.35, 1.0, GENES)
    rates *= DENSITY / np.mean(1 - np.exp(-rates * DENSITY))
    schema = pa.schema(
        [
            ("obs_id", pa.string()),
            ("gene", pa.string()),
            ("count", pa.int64()),
            ("normalized_count", pa.float64()),
        ]
    )
    shown = rng.permutation(cells) if order == "shuffled" else np.arange(cells)
    with pq.ParquetWriter(folder / "adata_train.parquet", schema) as writer:
        for start in range(0, cells, group):
            writer.write_table(
                row_group(
                    ids, genes, shown[start : start + group], rates * DENSITY, order, rng, schema
                )
            )


def row_group(
    ids: np.ndarray,
    genes: pd.Index,
    cells: np.ndarray,
    rates: np.ndarray,
    order: str,
    rng: np.random.Generator,
    schema: pa.Schema,
) -> pa.Table:
    """The non-zeros of some cells (Poisson counts with cell-specific depth)."""
    depth = rng.lognormal(0.0, 0.5, (len(cells), 1))
    counts = rng.poisson(rates * depth)
    row, column = np.nonzero(counts)
    if order == "shuffled":
        turn = rng.permutation(len(row))
        row, column = row[turn], column[turn]
    values = counts[row, column]
    columns = [
        pa.DictionaryArray.from_arrays(cells[row].astype(np.int32), pa.array(ids)).cast(
            pa.string()
        ),
        pa.DictionaryArray.from_arrays(column.astype(np.int32), pa.array(genes)).cast(pa.string()),
        pa.array(values),
        pa.array(np.log1p(values)),
    ]
    return pa.table(columns, schema=schema)


def write_tables(folder: Path, ids: np.ndarray, genes: pd.Index) -> None:
    """The companion tables: cells, genes, a thousand excluded pairs."""
    number = np.arange(len(ids))
    meta = {
        "obs_id": ids,
        "library_id": "library_0",
        "plate_name": "plate_0",
        "well": np.where(number % 5, "A2", "A1"),
        "row": "A",
        "col": 1,
    }
    meta |= {
        "cell_id": "PBMC",
        "donor_id": "donor_0",
        "cell_type": "NK cells",
        "sm_lincs_id": "LSM-1",
    }
    meta |= {
        "sm_name": np.where(number % 5, "Clotrimazole", "Dimethyl Sulfoxide"),
        "SMILES": "C",
        "dose_uM": 1.0,
    }
    pd.DataFrame(meta | {"timepoint_hr": 24, "control": number % 5 == 0}).to_csv(
        folder / "adata_obs_meta.csv", index=False
    )
    pd.DataFrame(columns=["id", *genes], data=[[0] + [0.0] * len(genes)]).to_csv(
        folder / "sample_submission.csv", index=False
    )
    pairs = {"obs_id": np.repeat(ids[:10], 100), "gene": np.tile(genes[:100], 10)}
    pd.DataFrame(pairs).to_csv(folder / "adata_excluded_ids.csv", index=False)


def run_child(folder: Path) -> str:
    """Read the folder in a fresh process, whose peak memory is the reader's own."""
    command = [sys.executable, __file__, "--child", str(folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def child(folder: Path) -> None:
    """Read, and print time and memory as JSON."""
    import anndata  # noqa: F401  what every user of a reader has loaded anyway

    from perturbgen.data import read_competition

    imported = peak()
    start = time.perf_counter()
    adata = read_competition(folder)
    seconds = time.perf_counter() - start
    matrix = adata.X.data.nbytes + adata.X.indices.nbytes + adata.X.indptr.nbytes
    json.dump(
        {
            "imported": imported,
            "peak": peak(),
            "seconds": seconds,
            "matrix": matrix,
            "nnz": adata.X.nnz,
        },
        sys.stdout,
    )


def peak() -> float:
    """The peak resident memory of this process, in bytes.

    Linux counts the parent's memory before exec in getrusage, so its own high-water mark is
    preferred.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def report(
    quarter: dict[str, float], measured: dict[str, float], options: argparse.Namespace
) -> None:
    """Print the figures with the bound beside each."""
    size, bound = measured["matrix"], 2 * measured["matrix"] + 300 * MEGABYTE
    speed = measured["nnz"] / measured["seconds"]
    own = measured["peak"] - measured["imported"]
    print(
        f"{options.cells:,} cells x {GENES:,} genes, {measured['nnz'] / 1e6:.1f} million "
        f"non-zeros, {options.order}"
    )
    print(
        f"speed        {speed / 1e6:6.2f} million non-zeros/s = {speed / WANTED_SPEED:.1f} x the 2 "
        "million wanted"
    )
    print(f"final matrix {size / MEGABYTE:8,.0f} MB")
    print(
        f"peak memory  {measured['peak'] / MEGABYTE:8,.0f} MB = {measured['peak'] / bound:.2f} x "
        "the bound "
        f"(2 x matrix + 300 MB = {bound / MEGABYTE:,.0f} MB)"
    )
    print(
        f"  of which imports {measured['imported'] / MEGABYTE:,.0f} MB, reading "
        f"{own / MEGABYTE:,.0f} MB "
        f"= {own / size:.2f} x matrix"
    )
    full = {name: extrapolate(quarter, measured, name) for name in ("matrix", "peak", "seconds")}
    print(
        f"at {FULL:,} cells, on the line through {quarter['cells']:,} and {measured['cells']:,}: "
        f"matrix {full['matrix'] / 1e9:.2f} GB, peak {full['peak'] / 1e9:.2f} GB, "
        f"{full['seconds']:.0f} s"
    )


def extrapolate(small: dict[str, float], large: dict[str, float], name: str) -> float:
    """What a figure would be for the whole competition, on the line through two measurements."""
    slope = (large[name] - small[name]) / (large["cells"] - small["cells"])
    return large[name] + slope * (FULL - large["cells"])


if __name__ == "__main__":
    main()
