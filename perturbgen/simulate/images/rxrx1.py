"""RxRx1 in small: two cell types of two experiments, four plates each, with the rotation of the groups planted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from perturbgen.core.files import atomic_path
from perturbgen.images.readers import RXRX1_COLUMNS
from perturbgen.simulate.images.bbbc021 import blobs

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
    """A folder of RxRx1: metadata.csv and embeddings.csv (2020) or the four tables (Kaggle), and the images as 8-bit
    PNG.

    ``sirnas`` treatments in each of four groups; experiment e puts group (p - 1 + e) mod 4 on plate p.
    ``experiments`` maps names to train or test. ``stain`` is the SD of the log brightness of a channel in each
    experiment, which are stained on different days.
    """
    rng = np.random.default_rng(seed)
    meta = _site_table(rng, sirnas=sirnas, controls=controls, experiments=experiments)
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
    rng: np.random.Generator,
    *,
    sirnas: int,
    controls: int,
    experiments: Mapping[str, str] = _EXPERIMENTS,
) -> pd.DataFrame:
    """The metadata of 2020, every site present."""
    total = _GROUPS * sirnas + controls
    names = [f"s{number}" for number in rng.permutation(np.arange(19651, 19651 + total))]
    group = rng.permutation(_GROUPS * sirnas).reshape(_GROUPS, sirnas)
    rows = []
    for number, (experiment, dataset) in enumerate(experiments.items()):
        for plate in range(1, _GROUPS + 1):
            classes = [*group[(plate - 1 + number) % _GROUPS], *range(_GROUPS * sirnas, total)]
            wells = {"B02": total} | dict(
                zip(_free_wells(len(classes)), rng.permutation(classes), strict=True)
            )
            for well, sirna_id in wells.items():
                rows += [
                    _site_row(
                        experiment,
                        dataset,
                        plate,
                        well,
                        site,
                        int(sirna_id),
                        names,
                        _GROUPS * sirnas,
                    )
                    for site in range(1, _SITES + 1)
                ]
    return pd.DataFrame(rows)[RXRX1_COLUMNS]


def _site_row(
    experiment: str,
    dataset: str,
    plate: int,
    well: str,
    site: int,
    sirna_id: int,
    names: list[str],
    treatments: int,
) -> dict[str, object]:
    """One line of metadata.csv."""
    kind = (
        "treatment"
        if sirna_id < treatments
        else "positive_control"
        if sirna_id < len(names)
        else "negative_control"
    )
    return {
        "site_id": f"{experiment}_{plate}_{well}_{site}",
        "well_id": f"{experiment}_{plate}_{well}",
        "cell_type": experiment.rsplit("-", 1)[0],
        "dataset": dataset,
        "experiment": experiment,
        "plate": plate,
        "well": well,
        "site": site,
        "well_type": kind,
        "sirna": names[sirna_id] if sirna_id < len(names) else "EMPTY",
        "sirna_id": sirna_id,
    }


def _free_wells(count: int) -> list[str]:
    """Wells from B03 on, as on the 14 x 22 inner wells of a 384-well plate."""
    wells = [f"{row}{column:02d}" for row in "BCDEFGHIJKLMNO" for column in range(2, 24)]
    return wells[1 : count + 1]


def _embeddings(meta: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """site_id and 128 numbers: cell type, batch and siRNA add up, in this order of strength."""
    values = rng.normal(size=(len(meta), _FEATURES))
    plate = meta["experiment"] + "_" + meta["plate"].astype(str)
    for labels, strength in (
        (meta["cell_type"], 6.0),
        (meta["experiment"], 4.0),
        (plate, 2.0),
        (meta["sirna"], 2.0),
    ):
        codes, names = pd.factorize(labels, sort=True)
        values += strength * rng.normal(size=(len(names), _FEATURES))[codes]
    table = pd.DataFrame(
        values.astype(np.float32), columns=[f"feature_{i}" for i in range(_FEATURES)]
    )
    return pd.concat([meta["site_id"], table], axis=1)


def _write_kaggle(root: Path, meta: pd.DataFrame) -> None:
    """train.csv, test.csv (no siRNA) and their controls; a row a well, the siRNA a number."""
    wells = (
        meta.drop_duplicates("well_id")
        .drop(columns="sirna")
        .rename(columns={"well_id": "id_code", "sirna_id": "sirna"})
    )
    for dataset in ("train", "test"):
        here = wells[wells["dataset"] == dataset]
        treated = here["well_type"] == "treatment"
        columns = ["id_code", "experiment", "plate", "well"]
        plain = [*columns, "sirna"] if dataset == "train" else columns
        here.loc[treated, plain].to_csv(root / f"{dataset}.csv", index=False)
        here.loc[~treated, [*columns, "sirna", "well_type"]].to_csv(
            root / f"{dataset}_controls.csv", index=False
        )


def _write_images(
    root: Path,
    meta: pd.DataFrame,
    rng: np.random.Generator,
    *,
    size: int,
    kaggle: bool,
    stain: float,
) -> None:
    """Six PNG a site: a siRNA's blobs through the stains of its experiment and the gain and offset of its plate."""
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
        folder = (
            root
            / (row["dataset"] if kaggle else "images")
            / row["experiment"]
            / f"Plate{row['plate']}"
        )
        folder.mkdir(parents=True, exist_ok=True)
        gain, offset = lens[(row["experiment"], row["plate"])]
        cells = blobs(rng, shape=(size, size))
        for channel in range(_CHANNELS):
            bright = (
                gain * stains[row["experiment"]][channel] * 180 * patterns[row["sirna"]][channel]
            )
            pixels = offset + bright * cells + 5 * rng.random((size, size))
            name = f"{row['well']}_s{row['site']}_w{channel + 1}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
