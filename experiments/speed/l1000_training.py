"""Speed and memory of training on profiles: the feed's share of a step, and the margin head over
very many classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from perturbgen.train.loop import Training

GENES, CLASSES, ROWS = 978, 2_000, 40_000  # of the feed's profiles
HEAD_CLASSES, HEAD_ROWS, WIDTH = 44_000, 8_192, 32  # of GSE92742's perturbagens
CHUNK: Final = 2_048
NEEDED: Final = 14e9  # bytes for all logits at once with their gradients


def feed_rows() -> list[dict[str, Any]]:
    """The share of a step that shuffling, gathering and noise take, all profiles resident."""
    rows = []
    for size in (512, 8_192):
        with TemporaryDirectory() as folder:
            fed, noise, whole = step_times(training_of(Path(folder), size))
        rows.append(
            {
                "what": f"resident feed, batches of {size:,}",
                "profiles/s": size / whole,
                "step ms": 1e3 * whole,
                "feed ms": 1e3 * fed,
                "noise ms": 1e3 * noise,
                "share of the feed": fed / whole,
                "share with noise": (fed + noise) / whole,
                "wanted": "0.1",
            }
        )
    return rows


def training_of(folder: Path, size: int) -> Training:
    """The default network on random profiles, ready to step."""
    from anndata import AnnData

    from perturbgen.l1000.embedder import EMBEDDING, EmbedSettings
    from perturbgen.train import launch

    names = np.array([f"P{i:05d}" for i in range(CLASSES)])
    samples = pd.DataFrame(
        {"perturbagen": names[np.arange(ROWS) % CLASSES]}, index=[f"s{i}" for i in range(ROWS)]
    )
    genes = pd.DataFrame(index=[str(i) for i in range(GENES)])
    values = np.random.default_rng(0).normal(size=(ROWS, GENES)).astype(np.float32)
    AnnData(values, obs=samples, var=genes).write_h5ad(folder / "profiles.h5ad")
    data = {"path": str(folder / "profiles.h5ad"), "validation": 0}
    settings = EmbedSettings.load(base={"data": data, "training": {"batch_size": size}})
    fabric = launch(settings.training, accelerator="cpu")
    training = EMBEDDING.assemble(folder, settings, EMBEDDING.read(settings), fabric)
    training.wrapped.train()
    return training


def step_times(training: Training, *, steps: int = 12) -> tuple[float, float, float]:
    """Medians of seconds: waiting for a batch, drawing its noise, and the whole step with both."""
    fed, noise, whole = [], [], []
    batches = training.train.epoch(0)
    while len(whole) < steps:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            batches, training.state.batch = training.train.epoch(1), 0
            continue
        got = time.perf_counter()
        training.step(batch)
        whole.append(time.perf_counter() - start)
        fed.append(got - start)
        training.state.step, training.state.batch = (
            training.state.step + 1,
            training.state.batch + 1,
        )
        start = time.perf_counter()
        training.draws(0, len(batch.values)).normal(*batch.values.shape)
        noise.append(time.perf_counter() - start)
    return tuple(float(np.median(part[2:])) for part in (fed, noise, whole))  # type: ignore[return-value]


def head_rows(in_process: Callable[..., dict[str, float]]) -> list[dict[str, Any]]:
    """A forward and a backward pass over 44,000 classes: all logits at once, then in chunks."""
    available = (
        int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]) * 1024
    )
    chunked = in_process(head_step, CHUNK)
    row = {
        "what": f"margin head, {HEAD_CLASSES:,} classes x {HEAD_ROWS:,} rows x {WIDTH}, "
        f"chunks of {CHUNK:,}"
    }
    row |= {"ours s": chunked["seconds"], "peak MB": chunked["peak_mb"]}
    if available < NEEDED:
        return [{**row, "wanted": f"whole not run: {NEEDED / 1e9:.0f} GB are not free"}]
    whole = in_process(head_step, HEAD_CLASSES)
    row |= {"whole s": whole["seconds"], "whole peak MB": whole["peak_mb"]}
    ratios = {
        f"{name} ratio": whole[key] / chunked[key]
        for name, key in (("speed", "seconds"), ("cpu", "cpu"))
    }
    return [{**row, **ratios, "wanted": "a small GPU"}]


def head_step(chunk: int) -> dict[str, float]:
    """Seconds of a step and the memory that it took at most, beyond what was there before."""
    import torch
    from l1000 import peak_mb

    from perturbgen.nn import MarginHead

    torch.manual_seed(0)
    head = MarginHead(WIDTH, HEAD_CLASSES, chunk=chunk)
    x, y = (
        torch.randn(HEAD_ROWS, WIDTH, requires_grad=True),
        torch.randint(HEAD_CLASSES, (HEAD_ROWS,)),
    )
    before, start, cpu = peak_mb(), time.perf_counter(), time.process_time()
    head(x, y).mean().backward()
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "peak_mb": peak_mb() - before,
    }
