"""Transfer: an encoder trained on hairpins, put to use on a few compounds, beside one trained on
these from scratch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from methods import Overrides, learn, linear_rows, made, network_row, parts_of, write_split

from perturbgen.core.config import merge
from perturbgen.core.console import track
from perturbgen.core.errors import ConfigError

if TYPE_CHECKING:
    from perturbgen.l1000.embedder import EmbedSettings

SIZES: Final = (10, 30, 100)  # compounds that are trained on
# the same for both, whatever the number of compounds; the last epoch is whole
STEPS, BATCH = (600, 128)


def transfer_rows(
    source: Path, folder: Path, seeds: int, base: Overrides
) -> Iterator[dict[str, Any]]:
    """For each seed one pre-trained encoder; for each number of compounds two networks of equal
    length, and WCCN.
    """
    from perturbgen.l1000.embedder import EMBEDDING

    for seed in track(range(seeds), "transfer"):
        plans = {
            size: few_compounds(source, folder / f"{seed}-{size}", base, size, seed)
            for size in SIZES
        }
        first = pretrain(source, folder / f"{seed}", base, seed)
        for size, settings in plans.items():
            here = folder / f"{seed}-{size}"
            train, judged = parts_of(settings, "train"), parts_of(settings, "test")
            if size == SIZES[0]:
                yield network_row("hairpins only", EMBEDDING.load(first), judged, seed)
            linear = [
                row for row in linear_rows(train, judged, seed) if row["method"].startswith("WCCN")
            ]
            starts = {"from scratch": {}, "fine-tuned": {"start": str(first)}}
            found = {
                name: learn(
                    made(merge(settings.model_dump(mode="json", exclude_none=True), start)),
                    here / name,
                    which="last",
                )[0]
                for name, start in starts.items()
            }
            for row in [
                *linear,
                *(network_row(name, network, judged, seed) for name, network in found.items()),
            ]:
                yield {**row, "method": f"{size} compounds, {row['method']}"}


def pretrain(source: Path, runs: Path, base: Overrides, seed: int) -> Path:
    """The run of an encoder that was trained to tell hairpins apart."""
    from perturbgen.l1000.embedder import EMBEDDING

    data = {"path": str(source), "types": ["trt_sh"], "validation": 0.1}
    return EMBEDDING.train(
        made(merge(base, {"data": data, "seed": seed, "name": "genetic"})),
        runs=runs,
        accelerator="cpu",
    )


def few_compounds(
    source: Path, folder: Path, base: Overrides, size: int, seed: int
) -> EmbedSettings:
    """Training on so many compounds; a fifth of all is tested, whatever the size. Small sets lie in
    the large.
    """
    from perturbgen.l1000.embedder.data import EmbedProfiles
    from perturbgen.l1000.embedder.settings import ProfileData

    table = EmbedProfiles.read(source).treatments(ProfileData(path=source, types=("trt_cp",)))
    labels = table.meta["perturbagen"].astype(str)
    names = np.random.default_rng(seed).permutation(np.sort(labels.unique()))
    tested, trained = names[: len(names) // 5], names[len(names) // 5 :][:size]
    if len(trained) < size:
        raise ConfigError(
            f"{len(names)} compounds are too few to train on {size}", fix=f"--compounds {2 * size}"
        )
    parts = np.select([labels.isin(tested), labels.isin(trained)], ["test", "train"], "unused")
    split = write_split(folder / "split.csv", labels.index, parts)
    # the last batch of an epoch is a rest
    steps_of_an_epoch = -(-int((parts == "train").sum()) // BATCH)
    epochs = -(-STEPS // steps_of_an_epoch)
    length = {"training": {"epochs": epochs, "batch_size": BATCH}, "stopping": {"patience": epochs}}
    data = {"path": str(source), "types": ["trt_cp"], "split": str(split)}
    return made(merge(base, length, {"data": data, "seed": seed}))
