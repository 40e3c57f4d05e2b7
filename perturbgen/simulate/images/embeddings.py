"""RxRx19a and RxRx19b in small: drugs of which some bring the diseased cells back, and rows that join with nothing.

RxRx3-core in small: knock-outs by guide, compounds at several doses, one parquet of embeddings.

A Cell Painting table in small: ``Metadata_`` labels, compounds of known mechanism, DMSO on two plates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from perturbgen.core.files import atomic_path
from perturbgen.images.readers import RXRX3_COLUMNS, RXRX3_CORE, RXRX19_COLUMNS

_ACTIVE, _MOCK, _UV = "Active SARS-CoV-2", "Mock", "UV Inactivated SARS-CoV-2"
_EMPTY = "EMPTY_control"
_SMILES = "CCO |r|"  # CXSMILES, as released
_STRAY = "HRCE-1_9_A01_1"  # an embedding of which the metadata know nothing


def write_rxrx19a(
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
    experiments: Sequence[str] = ("HRCE-1", "VERO-1"),
    infection: float = 1.0,
    side_effect: float = 0.3,
) -> Path:
    """metadata.csv and embeddings.csv; two plates an experiment, ``controls`` wells each of Mock, UV and untreated.

    drug-1 to drug-``rescuers`` take the infection away as their dose rises; drug-``drugs`` does something else to the
    cells. The last well has no condition, and one embedding no metadata.
    """
    rng = np.random.default_rng(seed)
    options = {
        "drugs": drugs,
        "doses": doses,
        "replicates": replicates,
        "controls": controls,
        "sites": sites,
    }
    meta = _site_table(list(experiments), options, rng)
    values = _embeddings(
        meta,
        rng,
        features=features,
        rescuers=rescuers,
        infection=infection,
        side_effect={f"drug-{drugs}": side_effect},
    )
    meta.loc[meta["well_id"] == meta["well_id"].iloc[-1], "disease_condition"] = None
    return _write(root, meta, values, stray=_STRAY)


def write_rxrx19b(root: str | Path, *, seed: int = 0, drugs: int = 4, rescuers: int = 1) -> Path:
    """The same in 19b's words: one experiment of HUVEC, one site, 128 features, healthy and storm-severe."""
    rng = np.random.default_rng(seed)
    options = {"drugs": drugs, "doses": 3, "replicates": 2, "controls": 6, "sites": 1}
    meta = _site_table(["HUVEC-1"], options, rng)
    values = _embeddings(meta, rng, features=128, rescuers=rescuers, infection=1.0, side_effect={})
    words = {_ACTIVE: "storm-severe", _MOCK: "healthy", _UV: "healthy"}
    meta["disease_condition"] = meta["disease_condition"].map(words)
    meta.loc[meta.index[-1], "disease_condition"] = None
    return _write(root, meta, values, stray="HUVEC-1_9_A01_1")


def _site_table(
    experiments: Sequence[str], options: dict[str, int], rng: np.random.Generator
) -> pd.DataFrame:
    """The metadata: wells in random places of 1536-well plates, A01 to AF48."""
    names = [chr(65 + i) if i < 26 else "A" + chr(39 + i) for i in range(32)]
    places = [f"{row}{column:02d}" for row in names for column in range(1, 49)]
    rows = []
    for experiment in experiments:
        for plate in (1, 2):
            wells = _plate_wells(options, last=(experiment, plate) == (experiments[-1], 2))
            for place, (condition, treatment, dose) in zip(
                rng.permutation(places), wells, strict=False
            ):
                for site in range(1, options["sites"] + 1):
                    well_id = f"{experiment}_{plate}_{place}"
                    values = (
                        f"{well_id}_{site}",
                        well_id,
                        experiment.split("-")[0],
                        experiment,
                        plate,
                        place,
                        site,
                    )
                    rows.append(
                        (*values, condition, treatment, dose, _SMILES if treatment else None)
                    )
    return pd.DataFrame(rows, columns=RXRX19_COLUMNS)


def _plate_wells(
    options: dict[str, int], *, last: bool
) -> list[tuple[str, str | None, float | None]]:
    """Condition, treatment and dose of each well of a plate; the last plate ends with a well nobody will name."""
    wells: list[tuple[str, str | None, float | None]] = []
    for condition in (_MOCK, _UV, _ACTIVE):
        wells += [(condition, None, None)] * options["controls"]
    doses = 10 * np.sqrt(10.0) ** np.arange(1 - options["doses"], 1)  # half-log steps up to 10 uM
    for drug in range(1, options["drugs"] + 1):
        wells += [
            (_ACTIVE, f"drug-{drug}", float(dose))
            for dose in doses.round(4)
            for _ in range(options["replicates"])
        ]
    return [*wells, (_ACTIVE, None, None)] if last else wells


def _embeddings(
    meta: pd.DataFrame,
    rng: np.random.Generator,
    *,
    features: int,
    rescuers: int,
    infection: float,
    side_effect: dict[str, float],
) -> np.ndarray:
    """Experiment, plate and site offsets, infection x (1 - rescue), a side effect off the axis, well and site noise."""
    values = 0.5 * rng.normal(size=(len(meta), features))
    plate = meta["experiment"] + "_" + meta["plate"].astype(str)
    for labels, strength in (
        (meta["experiment"], 5.0),
        (plate, 2.0),
        (plate + meta["site"].astype(str), 1.0),
        (meta["well_id"], 0.5),
    ):
        codes, names = pd.factorize(labels, sort=True)
        values += strength * rng.normal(size=(len(names), features))[codes]
    direction, elsewhere = rng.normal(size=(2, features))
    values += (
        infection
        * (meta["disease_condition"] == _ACTIVE).to_numpy()[:, None]
        * (1 - _rescue(meta, rescuers))[:, None]
        * direction
    )
    effect = meta["treatment"].map(side_effect).fillna(0.0).to_numpy()
    return values + effect[:, None] * elsewhere


def _rescue(meta: pd.DataFrame, rescuers: int) -> np.ndarray:
    """What share of the infection each row's drug takes away: 0 to 0.8 along the logarithm of the dose."""
    works = meta["treatment"].isin([f"drug-{i}" for i in range(1, rescuers + 1)]).to_numpy()
    dose = meta["treatment_conc"].astype(float).fillna(10.0).to_numpy()
    return np.where(works, 0.8 / (1 + (1.0 / dose)), 0.0)


def _write(root: str | Path, meta: pd.DataFrame, values: np.ndarray, *, stray: str) -> Path:
    """The two files; an embedding more than there are labels, at the end."""
    names = [f"feature_{i}" for i in range(values.shape[1])]
    table = pd.DataFrame(values.astype(np.float32), columns=names)
    table.insert(0, "site_id", meta["site_id"])
    extra = table.tail(1).assign(site_id=stray)
    with atomic_path(root) as part:
        part.mkdir()
        meta.to_csv(part / "metadata.csv", index=False)
        pd.concat([table, extra]).to_csv(part / "embeddings.csv", index=False)
    return Path(root)


_FEATURES = 384
_PARQUET = "OpenPhenom_rxrx3_core_embeddings.parquet"


def write_rxrx3(
    root: str | Path, *, seed: int = 0, genes: int = 4, compounds: int = 3, plates: int = 2
) -> Path:
    """``metadata_rxrx3_core.csv`` and the OpenPhenom embeddings; one well of each table has no partner in the other."""
    rng = np.random.default_rng(seed)
    meta = pd.DataFrame(
        [*_gene_wells(genes, plates), *_compound_wells(compounds, plates)], columns=RXRX3_COLUMNS
    )
    values = rng.normal(size=(len(meta), _FEATURES))
    for labels in (
        meta["experiment_name"] + meta["plate"].astype(str),
        meta["gene"].fillna(meta["treatment"]),
    ):
        codes, names = pd.factorize(labels, sort=True)
        values += 2 * rng.normal(size=(len(names), _FEATURES))[codes]
    table = pd.DataFrame(
        values.astype(np.float32), columns=[f"feature_{i}" for i in range(_FEATURES)]
    )
    table.insert(0, "well_id", meta["well_id"])
    with atomic_path(root) as part:
        part.mkdir()
        meta.drop(index=0).to_csv(part / RXRX3_CORE, index=False)
        table.iloc[:-1].to_parquet(part / _PARQUET, index=False)
    return Path(root)


def _gene_wells(genes: int, plates: int) -> list[tuple[object, ...]]:
    """Knock-outs with two guides each, and four empty controls, on every plate."""
    rows: list[tuple[object, ...]] = []
    for plate in range(1, plates + 1):
        names = [(f"GENE{g}", f"GENE{g}_guide_{guide}") for g in range(genes) for guide in (1, 2)]
        for i, (gene, treatment) in enumerate([*names, *[(_EMPTY, _EMPTY)] * 4]):
            place = f"A{i + 1:02d}"
            rows.append(
                (
                    f"gene-001_{plate}_{place}",
                    "gene-001",
                    plate,
                    place,
                    gene,
                    treatment,
                    None,
                    None,
                    "CRISPR",
                    "HUVEC",
                )
            )
    return rows


def _compound_wells(compounds: int, plates: int) -> list[tuple[object, ...]]:
    """Compounds at three doses, and four empty controls, on every plate."""
    rows: list[tuple[object, ...]] = []
    for plate in range(1, plates + 1):
        wells: list[tuple[str, float | None]] = [
            (f"compound {c}", dose) for c in range(compounds) for dose in (0.1, 1.0, 10.0)
        ]
        for i, (name, dose) in enumerate([*wells, *[(_EMPTY, None)] * 4]):
            place = f"A{i + 1:02d}"
            smiles = None if dose is None else "CCO"
            rows.append(
                (
                    f"compound-001_{plate}_{place}",
                    "compound-001",
                    plate,
                    place,
                    None,
                    name,
                    smiles,
                    dose,
                    "COMPOUND",
                    "HUVEC",
                )
            )
    return rows


_CELL_PAINTING_FEATURES = 30
_DOSES = (0.1, 1.0, 10.0)


def write_cellpainting(
    root: str | Path, *, seed: int = 0, compounds: int = 6, replicates: int = 2
) -> Path:
    """A folder with ``profiles.csv.gz``: two plates, 8 DMSO wells each, compounds in pairs of one mechanism."""
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=(-(-compounds // 2), _CELL_PAINTING_FEATURES))
    rows, values = [], []
    for plate in ("SQ00010001", "SQ00010002"):
        shift = rng.normal(size=_CELL_PAINTING_FEATURES)
        wells = [("DMSO", 0.0, "")] * 8 + [
            (f"BRD-K{c:08d}", dose, f"mechanism {c // 2}")
            for c in range(compounds)
            for dose in _DOSES
            for _ in range(replicates)
        ]
        for i, (name, dose, moa) in enumerate(wells):
            rows.append(
                (plate, f"{'ABCDEFGHIJKLMNOP'[i // 24]}{i % 24 + 1:02d}", name, dose, moa or None)
            )
            effect = effects[int(name[5:]) // 2] * dose / 3 if moa else 0
            values.append(shift + effect + rng.normal(size=_CELL_PAINTING_FEATURES))
    names = ["Plate", "Well", "broad_sample", "mmoles_per_liter", "moa"]
    meta = pd.DataFrame(rows, columns=[f"Metadata_{name}" for name in names])
    table = pd.DataFrame(
        np.array(values), columns=[f"Cells_Feature_{i}" for i in range(_CELL_PAINTING_FEATURES)]
    )
    with atomic_path(root) as part:
        part.mkdir()
        pd.concat([meta, table], axis=1).to_csv(part / "profiles.csv.gz", index=False)
    return Path(root)
