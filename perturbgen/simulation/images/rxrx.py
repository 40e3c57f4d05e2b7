"""RxRx1, RxRx19, RxRx3-core and Cell Painting in small: images and embeddings, the truth planted.

RxRx1 has experiments of two cell types, of four plates each, whose groups of siRNAs turn round. Of
RxRx19 some drugs bring diseased cells back. Some rows join with nothing, as in the releases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.core.export import write_table
from perturbgen.core.files import atomic_path
from perturbgen.images.readers import RXRX1_COLUMNS, RXRX3_COLUMNS, RXRX3_CORE, RXRX19_COLUMNS
from perturbgen.simulation.images.bbbc021 import blobs

_ACTIVE, _MOCK, _UV = "Active SARS-CoV-2", "Mock", "UV Inactivated SARS-CoV-2"
_SMILES = "CCO |r|"  # CXSMILES, as released
_EMPTY = "EMPTY_control"
_PARQUET = "OpenPhenom_rxrx3_core_embeddings.parquet"
_PAINTING_FEATURES = 30
_DOSES = (0.1, 1.0, 10.0)

_Well = tuple[str, str | None, float | None]  # condition or gene, treatment, dose


def _add_effects(
    values: np.ndarray, effects: Iterable[tuple[pd.Series, float]], rng: np.random.Generator
) -> None:
    """Add a normal vector for each distinct label, times the strength, to its rows, in place."""
    for labels, strength in effects:
        codes, names = pd.factorize(labels, sort=True)
        values += strength * rng.normal(size=(len(names), values.shape[1]))[codes]


def _embedding_table(ids: pd.Series, values: np.ndarray) -> pd.DataFrame:
    """The ids and float32 columns ``feature_0``, ``feature_1``, ..."""
    names = [f"feature_{i}" for i in range(values.shape[1])]
    return pd.concat([ids, pd.DataFrame(values.astype(np.float32), columns=names)], axis=1)


_EXPERIMENTS = {"HUVEC-01": "train", "HUVEC-02": "test", "U2OS-01": "train", "U2OS-02": "test"}
_GROUPS = 4
_CHANNELS = 6
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
    meta = _sirna_sites(sirnas, controls, experiments, rng)
    # 154 wells of the release have one site, which must not shift the others
    kept = meta[~meta["site_id"].isin(_DROPPED)].reset_index(drop=True)
    with atomic_path(root) as part:
        part.mkdir()
        if layout == "kaggle":
            _write_kaggle(part, meta)
        else:
            kept.to_csv(part / "metadata.csv", index=False)
            _sirna_embeddings(kept, rng).to_csv(part / "embeddings.csv", index=False)
        if images:
            _write_images(part, kept, rng, size=size, kaggle=layout == "kaggle", stain=stain)
    return Path(root)


def _sirna_sites(
    sirnas: int, controls: int, experiments: Mapping[str, str], rng: np.random.Generator
) -> pd.DataFrame:
    """The metadata of 2020, every site present."""
    treated = _GROUPS * sirnas
    total = treated + controls
    names = [f"s{number}" for number in rng.permutation(np.arange(19651, 19651 + total))]
    group = rng.permutation(treated).reshape(_GROUPS, sirnas)
    # B03 on, as on the 14 x 22 inner wells of a 384-well plate; B02 is the empty well
    free = [f"{row}{column:02d}" for row in "BCDEFGHIJKLMNO" for column in range(2, 24)][1:]
    rows: list[tuple[object, ...]] = []
    for number, (experiment, dataset) in enumerate(experiments.items()):
        for plate in range(1, _GROUPS + 1):
            classes = [*group[(plate - 1 + number) % _GROUPS], *range(treated, total)]
            wells = dict(zip(free, rng.permutation(classes).tolist(), strict=False))
            for well, sirna in ({"B02": total} | wells).items():
                kind = "treatment" if sirna < treated else "positive_control"
                about = (kind, names[sirna]) if sirna < total else ("negative_control", "EMPTY")
                name, cell = f"{experiment}_{plate}_{well}", experiment.rsplit("-", 1)[0]
                place = (name, cell, dataset, experiment, plate, well)
                rows += [(f"{name}_{site}", *place, site, *about, sirna) for site in (1, 2)]
    return pd.DataFrame(rows, columns=RXRX1_COLUMNS)


def _sirna_embeddings(meta: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """site_id and 128 numbers: cell type, batch and siRNA add up, in this order of strength."""
    values = rng.normal(size=(len(meta), 128))
    plate = meta["experiment"] + "_" + meta["plate"].astype(str)
    batches = [(meta["cell_type"], 6.0), (meta["experiment"], 4.0), (plate, 2.0)]
    _add_effects(values, [*batches, (meta["sirna"], 2.0)], rng)
    return _embedding_table(meta["site_id"], values)


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
    plates = meta.groupby(["experiment", "plate"]).groups
    lens = {key: (0.7 + 0.6 * rng.random(), 20 * rng.random()) for key in plates}
    stains = dict.fromkeys(meta["experiment"].unique(), np.ones(_CHANNELS))
    # drawn only if asked for: without stains the pixels are those of older fixtures
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


def _drug_wells(drugs: int, doses: int, replicates: int, controls: int) -> list[_Well]:
    """Condition, treatment and dose of each well of a plate of RxRx19."""
    states = (_MOCK, _UV, _ACTIVE)
    wells: list[_Well] = [(state, None, None) for state in states for _ in range(controls)]
    # half-log steps up to 10 uM
    steps = (10 * np.sqrt(10.0) ** np.arange(1 - doses, 1)).round(4).tolist()
    numbers, copies = range(1, drugs + 1), range(replicates)
    return wells + [(_ACTIVE, f"drug-{i}", dose) for i in numbers for dose in steps for _ in copies]


def _write_rxrx19a(
    root: str | Path,
    *,
    seed: int = 0,
    drugs: int = 4,
    rescuers: int = 1,
    doses: int = 3,
    replicates: int = 2,
    controls: int = 6,
    sites: int = 4,
    features: int = 1024,
    infection: float = 1.0,
    side_effect: float = 0.3,
) -> Path:
    """metadata.csv and embeddings.csv of two plates an experiment.

    A plate has ``controls`` wells each of Mock, UV and untreated. drug-1 to drug-``rescuers`` take
    the infection away as their dose rises; drug-``drugs`` does something else to the cells. The
    last well has no condition, and one embedding no metadata.
    """
    rng = np.random.default_rng(seed)
    wells = _drug_wells(drugs, doses, replicates, controls)
    meta = _drug_sites(["HRCE-1", "VERO-1"], wells, sites, rng)
    strengths = {f"drug-{drugs}": side_effect}
    values = _diseased(meta, features, rescuers, infection, strengths, rng)
    # the release has such rows: readers must keep them, and take them for no control
    meta.loc[meta["well_id"] == meta["well_id"].iloc[-1], "disease_condition"] = None
    return _write_sites(root, meta, values, stray="HRCE-1_9_A01_1")


def _write_rxrx19b(root: str | Path, *, seed: int = 0) -> Path:
    """The same in 19b's words: HUVEC, one site, 128 features, healthy and storm-severe."""
    rng = np.random.default_rng(seed)
    meta = _drug_sites(["HUVEC-1"], _drug_wells(4, 3, 2, 6), 1, rng)
    values = _diseased(meta, 128, 1, 1.0, {}, rng)
    words = {_ACTIVE: "storm-severe", _MOCK: "healthy", _UV: "healthy"}
    meta["disease_condition"] = meta["disease_condition"].map(words)
    meta.loc[meta.index[-1], "disease_condition"] = None
    return _write_sites(root, meta, values, stray="HUVEC-1_9_A01_1")


def _drug_sites(
    experiments: Sequence[str], wells: Sequence[_Well], sites: int, rng: np.random.Generator
) -> pd.DataFrame:
    """The metadata: wells in random places of 1536-well plates, A01 to AF48."""
    names = [chr(65 + i) if i < 26 else "A" + chr(39 + i) for i in range(32)]
    places = [f"{row}{column:02d}" for row in names for column in range(1, 49)]
    rows = []
    for experiment in experiments:
        for plate in (1, 2):
            # one more, which will lose its condition
            last = [(_ACTIVE, None, None)] if (experiment, plate) == (experiments[-1], 2) else []
            placed = zip(rng.permutation(places), [*wells, *last], strict=False)
            for place, (condition, treatment, dose) in placed:
                name, smiles = f"{experiment}_{plate}_{place}", _SMILES if treatment else None
                cell = experiment.split("-")[0]
                for site in range(1, sites + 1):
                    ids = (f"{name}_{site}", name, cell, experiment, plate, place, site)
                    rows.append((*ids, condition, treatment, dose, smiles))
    return pd.DataFrame(rows, columns=RXRX19_COLUMNS)


def _diseased(
    meta: pd.DataFrame,
    features: int,
    rescuers: int,
    infection: float,
    side_effects: Mapping[str, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """Noise, offsets of experiment, plate, site and well, the infection, effects off its axis."""
    values = 0.5 * rng.normal(size=(len(meta), features))
    plate = meta["experiment"] + "_" + meta["plate"].astype(str)
    site = plate + meta["site"].astype(str)
    offsets = [(meta["experiment"], 5.0), (plate, 2.0), (site, 1.0), (meta["well_id"], 0.5)]
    _add_effects(values, offsets, rng)
    direction, elsewhere = rng.normal(size=(2, features))
    works = meta["treatment"].isin([f"drug-{i}" for i in range(1, rescuers + 1)]).to_numpy()
    dose = meta["treatment_conc"].astype(float).fillna(10.0).to_numpy()
    # a rescuer takes away up to 0.8 of the infection, along the logarithm of its dose
    rescue = np.where(works, 0.8 / (1 + (1.0 / dose)), 0.0)
    sick = (meta["disease_condition"] == _ACTIVE).to_numpy()
    values += infection * sick[:, None] * (1 - rescue)[:, None] * direction
    effect = meta["treatment"].map(side_effects).fillna(0.0).to_numpy()
    return values + effect[:, None] * elsewhere


def _write_sites(root: str | Path, meta: pd.DataFrame, values: np.ndarray, *, stray: str) -> Path:
    """The two files; an embedding more than there are labels, at the end."""
    table = _embedding_table(meta["site_id"], values)
    # an embedding of which the metadata know nothing, as the release has some
    table = pd.concat([table, table.tail(1).assign(site_id=stray)])
    return _write_tables(root, {"metadata.csv": meta, "embeddings.csv": table})


def _write_tables(root: str | Path, tables: Mapping[str, pd.DataFrame]) -> Path:
    with atomic_path(root) as part:
        part.mkdir()
        for name, table in tables.items():
            if name.endswith("parquet"):
                write_table(table, part / name)
            else:
                table.to_csv(part / name, index=False)
    return Path(root)


def _write_rxrx3(root: str | Path, *, seed: int = 0) -> Path:
    """``metadata_rxrx3_core.csv`` and the OpenPhenom embeddings, of 384 features.

    Knock-outs by two guides, compounds at three doses and four empty controls on every plate; one
    well of each table has no partner in the other.
    """
    rng = np.random.default_rng(seed)
    guides: list[_Well] = [
        (f"GENE{g}", f"GENE{g}_guide_{guide}", None) for g in range(4) for guide in (1, 2)
    ]
    drugs: list[_Well] = [("", f"compound {c}", dose) for c in range(3) for dose in _DOSES]
    rows = [
        *_core_rows("gene-001", "CRISPR", [*guides, *[(_EMPTY, _EMPTY, None)] * 4]),
        *_core_rows("compound-001", "COMPOUND", [*drugs, *[("", _EMPTY, None)] * 4]),
    ]
    meta = pd.DataFrame(rows, columns=RXRX3_COLUMNS)
    values = rng.normal(size=(len(meta), 384))
    plate = meta["experiment_name"] + meta["plate"].astype(str)
    _add_effects(values, [(plate, 2), (meta["gene"].fillna(meta["treatment"]), 2)], rng)
    table = _embedding_table(meta["well_id"], values)
    return _write_tables(root, {RXRX3_CORE: meta.drop(index=0), _PARQUET: table.iloc[:-1]})


def _core_rows(experiment: str, kind: str, wells: Sequence[_Well]) -> list[tuple[object, ...]]:
    """The metadata of wells that are on both plates, from A01 on."""
    rows: list[tuple[object, ...]] = []
    for plate in (1, 2):
        for i, (gene, treatment, dose) in enumerate(wells):
            name, smiles = f"A{i + 1:02d}", None if dose is None else "CCO"
            place = (f"{experiment}_{plate}_{name}", experiment, plate, name)
            rows.append((*place, gene or None, treatment, smiles, dose, kind, "HUVEC"))
    return rows


def _write_cellpainting(root: str | Path, *, seed: int = 0) -> Path:
    """``profiles.csv.gz`` in a folder: two plates with 8 DMSO wells, two compounds a mechanism."""
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=(3, _PAINTING_FEATURES))
    rows, values = [], []
    for plate in ("SQ00010001", "SQ00010002"):
        shift = rng.normal(size=_PAINTING_FEATURES)
        wells = [("DMSO", 0.0, "")] * 8 + [
            (f"BRD-K{c:08d}", dose, f"mechanism {c // 2}")
            for c in range(6)
            for dose in _DOSES
            for _ in range(2)
        ]
        for i, (name, dose, moa) in enumerate(wells):
            place = f"{'ABCDEFGHIJKLMNOP'[i // 24]}{i % 24 + 1:02d}"
            rows.append((plate, place, name, dose, moa or None))
            effect = effects[int(name[5:]) // 2] * dose / 3 if moa else 0
            values.append(shift + effect + rng.normal(size=_PAINTING_FEATURES))
    names = ["Plate", "Well", "broad_sample", "mmoles_per_liter", "moa"]
    meta = pd.DataFrame(rows, columns=[f"Metadata_{name}" for name in names])
    features = [f"Cells_Feature_{i}" for i in range(_PAINTING_FEATURES)]
    table = pd.concat([meta, pd.DataFrame(np.array(values), columns=features)], axis=1)
    return _write_tables(root, {"profiles.csv.gz": table})


WRITERS: Final[dict[str, Callable[..., Path]]] = {
    "cellpainting": _write_cellpainting,
    "rxrx1": write_rxrx1,
    "rxrx19a": _write_rxrx19a,
    "rxrx19b": _write_rxrx19b,
    "rxrx3": _write_rxrx3,
}
