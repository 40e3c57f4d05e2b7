"""How many cells a second are generated, NB draws included, at the size of the competition.

python experiments/speed/generate.py                     # 18,211 genes, decoders of several widths

A machine is rarely idle, so the matrix product alone is timed beside it, in turn: no generation can
be faster.
"""

from __future__ import annotations

import resource
import time
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
import typer

from perturbgen.cli import run_experiment
from perturbgen.core.console import show_table
from perturbgen.data import CovariateEncoder
from perturbgen.generate import CellGenerator
from perturbgen.generate.cells import _drawing_threads, _Piece
from perturbgen.generate.latents import _PriorLatents

if TYPE_CHECKING:
    from perturbgen.models import LatentModel

CONDITIONS = {"cell_type": 6, "compound": 146, "plate": 6}
MEGABYTE, CELLS = 1024, 2048


def main(
    genes: Annotated[int, typer.Option(min=100)] = 18_211,
    depth: Annotated[float, typer.Option(min=1, help="Mean counts of a cell.")] = 1500,
    widths: Annotated[
        str, typer.Option(help="Last hidden layers of the decoder.")
    ] = "64,128,256,1024",
    per_well: Annotated[int, typer.Option(min=1, help="Cells of a well.")] = 100,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time decoding and drawing, best of some rounds, and the decoder's last matrix product alone.

    Example: python experiments/speed/generate.py --widths 256
    """
    rows = [measure(genes, depth, int(width), per_well, rounds) for width in widths.split(",")]
    show_table(
        rows,
        title=f"{genes:,} genes, {depth:g} counts a cell, wells of {per_well}",
        as_json=as_json,
    )


def measure(genes: int, depth: float, width: int, per_well: int, rounds: int) -> dict[str, Any]:
    """Cells a second of generation, of the decoder within it, and of the matrix product alone."""
    import torch

    latents = _PriorLatents(None)  # type: ignore[arg-type]
    generator = CellGenerator(model(genes, width), gene_names(genes), encoder(), latents)
    n = max(CELLS // per_well, 1)
    cells, product, decoded, whole = n * per_well, [], [], []
    hidden, weight = torch.randn(cells, width), generator.model.decoder.head.weight  # type: ignore[union-attr]
    for _ in range(rounds):
        with torch.inference_mode():
            product.append(timed(lambda: torch.nn.functional.linear(hidden, weight)))
        with _drawing_threads() as pool:
            nonzero = sum(
                part.counts.nnz
                for part in pool.map(generator.draw_piece, pieces(n, per_well, depth))
            )
            decoded.append(
                timed(lambda: list(pool.map(generator.means, pieces(n, per_well, depth))))
            )
            whole.append(
                timed(lambda: list(pool.map(generator.draw_piece, pieces(n, per_well, depth))))
            )
    return {
        "width": width,
        "cells/s": cells / min(whole),
        "decoding alone": cells / min(decoded),
        "matrix product alone": cells / min(product),
        "over product": min(whole) / min(product),
        "non-zero": nonzero / cells / genes,
        "threads": torch.get_num_threads(),
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE,
    }


def model(genes: int, width: int) -> LatentModel:
    """An untrained NB-VAE with an additive term, as in the experiments; genes have shares as skewed
    as real ones.
    """
    import torch

    from perturbgen.models import NBVAE, Conditions, CountDecoder, Covariate

    conditions = Conditions([Covariate(name, size) for name, size in CONDITIONS.items()])
    share = torch.from_numpy(np.random.default_rng(0).gamma(0.15, 1, genes) + 1e-6)
    share /= share.sum()
    decoder = CountDecoder(
        10, [64, width], genes, n_conditions=conditions.width, share=share, additive=True
    )
    return NBVAE(10, [8], conditions, decoder).eval()


def encoder() -> CovariateEncoder:
    """Categories by number."""
    return CovariateEncoder(
        {name: tuple(map(str, range(size))) for name, size in CONDITIONS.items()}, {}
    )


def gene_names(genes: int) -> pd.Index:
    """Names of the genes."""
    return pd.Index([f"gene {i}" for i in range(genes)])


def pieces(n: int, per_well: int, depth: float) -> list[_Piece]:
    """Wells of a block."""
    import torch

    codes = torch.zeros(1, len(CONDITIONS), dtype=torch.int64)
    size = torch.full((per_well,), depth)
    return [
        _Piece(i, torch.randn(per_well, 10), codes, size, np.random.default_rng(i))
        for i in range(n)
    ]


def timed(work: Any) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    run_experiment(main)
