"""Training speed: ours against scvi-tools and against the seed's formulation, in one run each.

scvi-tools needs its own environment: python -m venv peer; peer/bin/pip install "scvi-tools==1.4.*";
then --peer peer/bin/python.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from perturbgen.cli import run_experiment
from perturbgen.core.console import show_table

HERE = Path(__file__).parent
log = logging.getLogger("perturbgen.speed")


def main(
    peer: Annotated[
        Path | None, typer.Option(help="Python of an environment with scvi-tools 1.4.")
    ] = None,
    cells: Annotated[
        int, typer.Option(help="Simulated cells of the first two comparisons.")
    ] = 8000,
    threads: Annotated[int, typer.Option(help="CPU threads of every side.")] = 2,
    accelerator: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    scaling: Annotated[bool, typer.Option(help="Also 10,000 to 100,000 cells.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the data.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print cells/s of both sides and their ratios.

    Example: python experiments/speed/train.py --peer peer/bin/python
    """
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        data = where / "cells.h5ad"
        simulate(data, cells, 18_211, seed)
        options = {"threads": threads, "accelerator": accelerator}
        rows = against_scvi(data, where, peer, **options) + against_seed(data, where, **options)
        show_table(
            rows,
            title=f"{cells:,} cells x 18,211 genes, {threads} threads, {accelerator}",
            as_json=as_json,
        )
        show_table(
            against_pyro(data, threads),
            title="closed form against Pyro's ELBO, 2 x 256",
            as_json=as_json,
        )
        if scaling:
            show_table(
                growth(where, seed, **options),
                title="cells/s and memory as cells grow",
                as_json=as_json,
            )


def simulate(path: Path, cells: int, genes: int, seed: int) -> None:
    """About 6 % non-zeros: Poisson counts around lognormal gene levels and cell depths."""
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

    from perturbgen.data import write_h5ad

    rng = np.random.default_rng(seed)
    level = rng.lognormal(-3.6, 1.6, genes)
    blocks = [
        sparse.csr_matrix(
            rng.poisson(level * rng.lognormal(0, 0.3, (len(part), 1))).astype(np.int32)
        )
        for part in np.array_split(np.arange(cells), max(1, cells // 2000))
    ]
    obs = pd.DataFrame(
        {"batch": rng.choice(["a", "b"], cells)}, index=[f"c{i}" for i in range(cells)]
    )
    counts = sparse.vstack(blocks, format="csr")
    log.info("%d cells, %.1f %% non-zeros", cells, 100 * counts.nnz / np.prod(counts.shape))
    write_h5ad(
        AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(genes)])), path
    )


def ours(
    data: Path, where: Path, *overrides: str, threads: int, accelerator: str, epochs: int = 3
) -> dict[str, float]:
    """Cells/s of the best epoch after the first, by ``perturbgen train`` in a process of its own,
    and its memory.
    """
    config = {
        "data.path": f"'{data}'",
        "data.validation": 0,
        "training.epochs": epochs,
        "annealing.shape": "constant",
        "training.threads": threads,
        "board.every": 1000,
        "board.cells": 50,
        "name": "speed",
    }
    empty = where / "empty.toml"
    empty.write_text(f'[data]\npath = "{data}"\n')
    command = [
        sys.executable,
        "-m",
        "perturbgen",
        "-q",
        "train",
        str(empty),
        "--device",
        accelerator,
    ]
    command += ["--runs", str(where / "runs"), "--json"]
    for override in (*(f"{key}={value}" for key, value in config.items()), *overrides):
        command += ["--set", override]
    measured = ["/usr/bin/env", sys.executable, "-c", MEASURE, *command]
    done = subprocess.run(measured, check=True, capture_output=True, text=True)
    run, peak = (
        Path(json.loads(done.stdout.rsplit("PEAK", 1)[0])[0]["run"]),
        done.stdout.rsplit("PEAK", 1)[1],
    )
    speeds = [
        json.loads(line)["cells_per_second"]
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    return {"cells_per_second": max(speeds[1:]), "peak_gb": float(peak)}


MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print("PEAK", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9)
sys.exit(code)
"""


def against_scvi(
    data: Path, where: Path, peer: Path | None, **options: Any
) -> list[dict[str, Any]]:
    """Two hidden layers of 256, batches of 128, latent 10: the network that scvi-tools trains."""
    network = (
        "model.encoder=[256, 256]",
        "model.decoder.hidden=[256, 256]",
        "training.batch_size=128",
    )
    sides = {"ours": ours(data, where, *network, **options)}
    sides["ours, bf16"] = ours(data, where, *network, "training.precision=bf16-mixed", **options)
    base = None
    if peer is not None:
        command = [
            str(peer),
            str(HERE / "scvi_peer.py"),
            str(data),
            str(options["threads"]),
            options["accelerator"],
        ]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        base = json.loads(done.stdout.strip().splitlines()[-1])["cells_per_second"]
    rows = [
        {
            "network": "2 x 256, batch 128",
            "side": "scvi-tools 1.4",
            "cells_per_second": base,
            "ratio": 1.0,
        }
    ]
    return (rows if base else []) + [
        {
            "network": "2 x 256, batch 128",
            "side": name,
            "cells_per_second": side["cells_per_second"],
            "ratio": side["cells_per_second"] / base if base else None,
        }
        for name, side in sides.items()
    ]


def against_seed(data: Path, where: Path, **options: Any) -> list[dict[str, Any]]:
    """The network [5; 256; 1024; genes] in batches of 512, against the seed's training of it."""
    network = (
        "model.latent=5",
        "model.encoder=[1024, 256]",
        "model.decoder.hidden=[256, 1024]",
        "model.decoder.layer_norm=false",
        "training.batch_size=512",
    )
    base = seeds_formulation(data, **options)
    sides = {"ours": ours(data, where, *network, **options)}
    sides["ours, bf16"] = ours(data, where, *network, "training.precision=bf16-mixed", **options)
    rows = [
        {
            "network": "[5; 256; 1024; genes], batch 512",
            "side": "seed",
            "cells_per_second": base,
            "ratio": 1.0,
        }
    ]
    return rows + [
        {
            "network": "[5; 256; 1024; genes], batch 512",
            "side": name,
            "cells_per_second": side["cells_per_second"],
            "ratio": side["cells_per_second"] / base,
        }
        for name, side in sides.items()
    ]


def seeds_formulation(data: Path, *, threads: int, accelerator: str, steps: int = 12) -> float:
    """Cells/s of a dense batch through a plain network and a dense log-gamma likelihood, unfused
    Adam.
    """
    import anndata
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    counts = anndata.read_h5ad(data).X
    genes = counts.shape[1]
    device = torch.device(accelerator)
    encoder = nn.Sequential(
        nn.Linear(genes, 1024), nn.ReLU(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 10)
    ).to(device)
    decoder = nn.Sequential(
        nn.Linear(5, 256), nn.ReLU(), nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, genes)
    )
    decoder.to(device)
    log_r = nn.Parameter(torch.full((genes,), 0.7, device=device))
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), log_r], lr=1e-3)
    order = np.random.default_rng(0).permutation(counts.shape[0])
    times = []
    for step in range(steps):
        began = time.perf_counter()
        rows = order[(step * 512) % (len(order) - 512) :][:512]
        x = torch.from_numpy(counts[rows].toarray().astype(np.float32)).to(device)
        mean, log_var = encoder(x).chunk(2, dim=-1)
        z = mean + (log_var / 2).exp() * torch.randn_like(mean)
        m, r = torch.sigmoid(decoder(z)) * x.max(dim=1, keepdim=True).values, log_r.exp()
        log_p = (
            torch.lgamma(x + r)
            - torch.lgamma(r)
            - torch.lgamma(x + 1)
            + x * torch.log(m + 1e-10)
            + r * torch.log(r)
            - (x + r) * torch.log(r + m)
        )
        kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum()
        optimiser.zero_grad()
        (kl - log_p.sum()).backward()
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 512 / float(np.median(times[2:]))


def against_pyro(data: Path, threads: int) -> list[dict[str, Any]]:
    """One batch of 128 forwards and backwards: the objective in closed form, and Pyro's ELBO of the
    same model.
    """
    import anndata
    import torch
    from pyro.infer import TraceMeanField_ELBO

    from perturbgen.data import CountStore
    from perturbgen.models import NBVAE, Conditions, CountDecoder, Draws

    torch.set_num_threads(threads)
    store = CountStore.from_adata(anndata.read_h5ad(data)[:128])
    batch = next(store.batches(128, dense=False))
    model = NBVAE(10, (256, 256), Conditions([]), CountDecoder(10, (256, 256), store.n_genes))
    generator = torch.Generator().manual_seed(0)
    sides = {
        "closed form": lambda: sum(term.sum() for term in model(batch, Draws(generator)).values()),
        "Pyro": lambda: TraceMeanField_ELBO().differentiable_loss(
            model.pyro_model, model.pyro_guide, batch
        ),
    }
    seconds = {
        name: median_seconds(lambda side=side: side().backward()) for name, side in sides.items()
    }
    return [
        {"side": name, "ms": 1e3 * value, "ratio": value / seconds["closed form"]}
        for name, value in seconds.items()
    ]


def median_seconds(work: Callable[[], Any], times: int = 7) -> float:
    """The median of some runs, after one that does not count."""
    work()
    measured = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        measured.append(time.perf_counter() - began)
    return float(np.median(measured))


def growth(where: Path, seed: int, **options: Any) -> list[dict[str, Any]]:
    """2,000 genes, 10,000 to 100,000 cells: an epoch's cost per cell, and memory beside the stored
    counts.
    """
    rows: list[dict[str, Any]] = []
    for cells in (10_000, 30_000, 100_000):
        data = where / f"cells{cells}.h5ad"
        simulate(data, cells, 2000, seed)
        found = ours(data, where, "training.batch_size=512", epochs=2, **options)
        rows.append({"cells": cells, "file_gb": data.stat().st_size / 1e9, **found})
        rows[-1]["relative_cost_per_cell"] = (
            rows[0]["cells_per_second"] / rows[-1]["cells_per_second"]
        )
        data.unlink()
    return rows


if __name__ == "__main__":
    run_experiment(main)
