"""RxRx1 in small: experiments of two cell types, four plates each, whose groups turn round."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from perturbgen.core.files import atomic_path
from perturbgen.images.readers import RXRX1_COLUMNS
from perturbgen.simulate.images.bbbc021 import blobs
from perturbgen.simulate.images.embeddings import add_effects, embedding_table

_EXPERIMENTS = {"HUVEC-01": "train", "HUVEC-02": "test", "U2OS-01": "train", "U2OS-02": "test"}
_GROUPS = 4
_SITES = 2
_CHANNELS = 6
_FEATURES = 128
_DROPPED = ("HUVEC-01_2_B03_2", "U2OS-02_4_B04_1")  # sites that quality control took away


def write_rxrx1(
    root: str | Path,
    *,
    seed: int = 0,
    sirnas: int = 6,
    controls: int = 3,
    images: bool = True,
    size: int = 64,
    layout: str = "2020",
    experiments: Mapping[str, str] = _EXPERIMENTS,
    stain: float = 0.0,
) -> Path:
    """A folder of RxRx1, in its form of 2020 (metadata.csv, embeddings.csv) or Kaggle's, and PNG.

    ``sirnas`` treatments in each of four groups; experiment e puts group (p - 1 + e) mod 4 on plate
    p. ``experiments`` maps names to train or test. ``stain`` is the SD of the log brightness of a
    channel in each experiment, since experiments are stained on different days.
    """
    rng = np.random.default_rng(seed)
    meta = _site_table(sirnas, controls, experiments, rng)
    # 154 wells of the release have one site, which must not shift the others
    kept = meta[~meta["site_id"].isin(_DROPPED)].reset_index(drop=True)
    with atomic_path(root) as part:
        part.mkdir()
        if layout == "kaggle":
            _write_kaggle(part, meta)
        else:
            kept.to_csv(part / "metadata.csv", index=False)
            _embeddings(kept, rng).to_csv(part / "embeddings.csv", index=False)
        if images:
            _write_images(part, kept, rng, size=size, kaggle=layout == "kaggle", stain=stain)
    return Path(root)


def _site_table(
    sirnas: int, controls: int, experiments: Mapping[str, str], rng: np.random.Generator
) -> pd.DataFrame:
    """The metadata of 2020, every site present."""
    treated = _GROUPS * sirnas
    total = treated + controls
    names = [f"s{number}" for number in rng.permutation(np.arange(19651, 19651 + total))]
    group = rng.permutation(treated).reshape(_GROUPS, sirnas)
    # B03 on, as on the 14 x 22 inner wells of a 384-well plate; B02 is the empty well
    free = [f"{row}{column:02d}" for row in "BCDEFGHIJKLMNO" for column in range(2, 24)][1:]
    rows: list[dict[str, object]] = []
    for number, (experiment, dataset) in enumerate(experiments.items()):
        for plate in range(1, _GROUPS + 1):
            classes = [*group[(plate - 1 + number) % _GROUPS], *range(treated, total)]
            wells = dict(zip(free, rng.permutation(classes).tolist(), strict=False))
            for well, sirna in ({"B02": total} | wells).items():
                kind = "treatment" if sirna < treated else "positive_control"
                name = f"{experiment}_{plate}_{well}"
                row = {
                    "well_id": name,
                    "cell_type": experiment.rsplit("-", 1)[0],
                    "dataset": dataset,
                    "experiment": experiment,
                    "plate": plate,
                    "well": well,
                    "well_type": kind if sirna < total else "negative_control",
                    "sirna": names[sirna] if sirna < total else "EMPTY",
                    "sirna_id": sirna,
                }
                rows += [
                    row | {"site": site, "site_id": f"{name}_{site}"}
                    for site in range(1, _SITES + 1)
                ]
    return pd.DataFrame(rows)[RXRX1_COLUMNS]


def _embeddings(meta: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """site_id and 128 numbers: cell type, batch and siRNA add up, in this order of strength."""
    values = rng.normal(size=(len(meta), _FEATURES))
    plate = meta["experiment"] + "_" + meta["plate"].astype(str)
    batches = [(meta["cell_type"], 6.0), (meta["experiment"], 4.0), (plate, 2.0)]
    add_effects(values, [*batches, (meta["sirna"], 2.0)], rng)
    return embedding_table(meta["site_id"], values)


def _write_kaggle(root: Path, meta: pd.DataFrame) -> None:
    """train.csv, test.csv (no siRNA) and their controls; a row a well, the siRNA a number."""
    wells = meta.drop_duplicates("well_id").drop(columns="sirna")
    wells = wells.rename(columns={"well_id": "id_code", "sirna_id": "sirna"})
    columns = ["id_code", "experiment", "plate", "well"]
    for dataset in ("train", "test"):
        here = wells[wells["dataset"] == dataset]
        treated = here["well_type"] == "treatment"
        plain = [*columns, "sirna"] if dataset == "train" else columns
        here.loc[treated, plain].to_csv(root / f"{dataset}.csv", index=False)
        controls = here.loc[~treated, [*columns, "sirna", "well_type"]]
        controls.to_csv(root / f"{dataset}_controls.csv", index=False)


def _write_images(
    root: Path,
    meta: pd.DataFrame,
    rng: np.random.Generator,
    *,
    size: int,
    kaggle: bool,
    stain: float,
) -> None:
    """Six PNG a site: a siRNA's blobs, its experiment's stains, its plate's gain and offset."""
    from PIL import Image

    patterns = {name: rng.random(_CHANNELS) for name in meta["sirna"].unique()}
    lens = {
        key: (0.7 + 0.6 * rng.random(), 20 * rng.random())
        for key in meta.groupby(["experiment", "plate"]).groups
    }
    stains = dict.fromkeys(meta["experiment"].unique(), np.ones(_CHANNELS))
    if stain:
        stains = {name: np.exp(rng.normal(0, stain, _CHANNELS)) for name in stains}
    for row in meta.to_dict("records"):
        top = root / (row["dataset"] if kaggle else "images")
        folder = top / row["experiment"] / f"Plate{row['plate']}"
        folder.mkdir(parents=True, exist_ok=True)
        gain, offset = lens[(row["experiment"], row["plate"])]
        cells = blobs(rng, shape=(size, size))
        for channel in range(_CHANNELS):
            light = gain * stains[row["experiment"]][channel]
            bright = light * 180 * patterns[row["sirna"]][channel]
            pixels = offset + bright * cells + 5 * rng.random((size, size))
            name = f"{row['well']}_s{row['site']}_w{channel + 1}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
