"""RxRx19, RxRx3-core and Cell Painting in small: embeddings with a planted truth.

Some drugs bring diseased cells back, and some rows join with nothing, as in the releases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.core.files import atomic_path
from perturbgen.images.readers import RXRX3_COLUMNS, RXRX3_CORE, RXRX19_COLUMNS

_ACTIVE, _MOCK, _UV = "Active SARS-CoV-2", "Mock", "UV Inactivated SARS-CoV-2"
_SMILES = "CCO |r|"  # CXSMILES, as released
_EMPTY = "EMPTY_control"
_PARQUET = "OpenPhenom_rxrx3_core_embeddings.parquet"
_CORE_FEATURES = 384
_PAINTING_FEATURES = 30
_DOSES = (0.1, 1.0, 10.0)

_Well = tuple[str, str | None, float | None]  # condition or gene, treatment, dose


def add_effects(
    values: np.ndarray, effects: Iterable[tuple[pd.Series, float]], rng: np.random.Generator
) -> None:
    """Add a normal vector for each distinct label, times the strength, to its rows, in place."""
    for labels, strength in effects:
        codes, names = pd.factorize(labels, sort=True)
        values += strength * rng.normal(size=(len(names), values.shape[1]))[codes]


def embedding_table(ids: pd.Series, values: np.ndarray) -> pd.DataFrame:
    """The ids and float32 columns ``feature_0``, ``feature_1``, ..."""
    names = [f"feature_{i}" for i in range(values.shape[1])]
    return pd.concat([ids, pd.DataFrame(values.astype(np.float32), columns=names)], axis=1)


@dataclass(frozen=True)
class _Screen:
    """How many of everything a plate of RxRx19 holds."""

    drugs: int
    doses: int
    replicates: int
    controls: int
    sites: int

    def wells(self) -> list[_Well]:
        """Condition, treatment and dose of each well of a plate."""
        wells: list[_Well] = []
        for condition in (_MOCK, _UV, _ACTIVE):
            wells += [(condition, None, None)] * self.controls
        doses = 10 * np.sqrt(10.0) ** np.arange(1 - self.doses, 1)  # half-log steps up to 10 uM
        for drug in range(1, self.drugs + 1):
            wells += [
                (_ACTIVE, f"drug-{drug}", float(dose))
                for dose in doses.round(4)
                for _ in range(self.replicates)
            ]
        return wells


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
    experiments: Sequence[str] = ("HRCE-1", "VERO-1"),
    infection: float = 1.0,
    side_effect: float = 0.3,
) -> Path:
    """metadata.csv and embeddings.csv of two plates an experiment.

    A plate has ``controls`` wells each of Mock, UV and untreated. drug-1 to drug-``rescuers`` take
    the infection away as their dose rises; drug-``drugs`` does something else to the cells. The
    last well has no condition, and one embedding no metadata.
    """
    rng = np.random.default_rng(seed)
    screen = _Screen(drugs, doses, replicates, controls, sites)
    meta = _site_table(experiments, screen, rng)
    strengths = {f"drug-{drugs}": side_effect}
    values = _diseased(meta, features, rescuers, infection, strengths, rng)
    # the release has such rows: readers must keep them, and take them for no control
    meta.loc[meta["well_id"] == meta["well_id"].iloc[-1], "disease_condition"] = None
    return _write_sites(root, meta, values, stray="HRCE-1_9_A01_1")


def _write_rxrx19b(root: str | Path, *, seed: int = 0, drugs: int = 4, rescuers: int = 1) -> Path:
    """The same in 19b's words: HUVEC, one site, 128 features, healthy and storm-severe."""
    rng = np.random.default_rng(seed)
    meta = _site_table(["HUVEC-1"], _Screen(drugs, 3, 2, 6, 1), rng)
    values = _diseased(meta, 128, rescuers, 1.0, {}, rng)
    words = {_ACTIVE: "storm-severe", _MOCK: "healthy", _UV: "healthy"}
    meta["disease_condition"] = meta["disease_condition"].map(words)
    meta.loc[meta.index[-1], "disease_condition"] = None
    return _write_sites(root, meta, values, stray="HUVEC-1_9_A01_1")


def _site_table(
    experiments: Sequence[str], screen: _Screen, rng: np.random.Generator
) -> pd.DataFrame:
    """The metadata: wells in random places of 1536-well plates, A01 to AF48."""
    names = [chr(65 + i) if i < 26 else "A" + chr(39 + i) for i in range(32)]
    places = [f"{row}{column:02d}" for row in names for column in range(1, 49)]
    rows = []
    for experiment in experiments:
        for plate in (1, 2):
            wells = screen.wells()
            if (experiment, plate) == (experiments[-1], 2):
                wells.append((_ACTIVE, None, None))  # which will lose its condition
            for place, well in zip(rng.permutation(places), wells, strict=False):
                condition, treatment, dose = well
                name, smiles = f"{experiment}_{plate}_{place}", _SMILES if treatment else None
                cell = experiment.split("-")[0]
                for site in range(1, screen.sites + 1):
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
    add_effects(values, offsets, rng)
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
    table = embedding_table(meta["site_id"], values)
    # an embedding of which the metadata know nothing, as the release has some
    extra = table.tail(1).assign(site_id=stray)
    with atomic_path(root) as part:
        part.mkdir()
        meta.to_csv(part / "metadata.csv", index=False)
        pd.concat([table, extra]).to_csv(part / "embeddings.csv", index=False)
    return Path(root)


def _write_rxrx3(
    root: str | Path, *, seed: int = 0, genes: int = 4, compounds: int = 3, plates: int = 2
) -> Path:
    """``metadata_rxrx3_core.csv`` and the OpenPhenom embeddings.

    Knock-outs by two guides, compounds at three doses and four empty controls on every plate; one
    well of each table has no partner in the other.
    """
    rng = np.random.default_rng(seed)
    guides: list[_Well] = [
        (f"GENE{g}", f"GENE{g}_guide_{guide}", None) for g in range(genes) for guide in (1, 2)
    ]
    drugs: list[_Well] = [("", f"compound {c}", dose) for c in range(compounds) for dose in _DOSES]
    rows = [
        *_core_rows("gene-001", "CRISPR", [*guides, *[(_EMPTY, _EMPTY, None)] * 4], plates),
        *_core_rows("compound-001", "COMPOUND", [*drugs, *[("", _EMPTY, None)] * 4], plates),
    ]
    meta = pd.DataFrame(rows, columns=RXRX3_COLUMNS)
    values = rng.normal(size=(len(meta), _CORE_FEATURES))
    plate = meta["experiment_name"] + meta["plate"].astype(str)
    add_effects(values, [(plate, 2), (meta["gene"].fillna(meta["treatment"]), 2)], rng)
    table = embedding_table(meta["well_id"], values)
    with atomic_path(root) as part:
        part.mkdir()
        meta.drop(index=0).to_csv(part / RXRX3_CORE, index=False)
        table.iloc[:-1].to_parquet(part / _PARQUET, index=False)
    return Path(root)


def _core_rows(
    experiment: str, kind: str, wells: Sequence[_Well], plates: int
) -> list[tuple[object, ...]]:
    """The metadata of wells that are on every plate, from A01 on."""
    rows: list[tuple[object, ...]] = []
    for plate in range(1, plates + 1):
        for i, (gene, treatment, dose) in enumerate(wells):
            name, smiles = f"A{i + 1:02d}", None if dose is None else "CCO"
            place = (f"{experiment}_{plate}_{name}", experiment, plate, name)
            rows.append((*place, gene or None, treatment, smiles, dose, kind, "HUVEC"))
    return rows


def _write_cellpainting(
    root: str | Path, *, seed: int = 0, compounds: int = 6, replicates: int = 2
) -> Path:
    """``profiles.csv.gz`` in a folder: two plates with 8 DMSO wells, two compounds a mechanism."""
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=(-(-compounds // 2), _PAINTING_FEATURES))
    rows, values = [], []
    for plate in ("SQ00010001", "SQ00010002"):
        shift = rng.normal(size=_PAINTING_FEATURES)
        wells = [("DMSO", 0.0, "")] * 8 + [
            (f"BRD-K{c:08d}", dose, f"mechanism {c // 2}")
            for c in range(compounds)
            for dose in _DOSES
            for _ in range(replicates)
        ]
        for i, (name, dose, moa) in enumerate(wells):
            place = f"{'ABCDEFGHIJKLMNOP'[i // 24]}{i % 24 + 1:02d}"
            rows.append((plate, place, name, dose, moa or None))
            effect = effects[int(name[5:]) // 2] * dose / 3 if moa else 0
            values.append(shift + effect + rng.normal(size=_PAINTING_FEATURES))
    names = ["Plate", "Well", "broad_sample", "mmoles_per_liter", "moa"]
    meta = pd.DataFrame(rows, columns=[f"Metadata_{name}" for name in names])
    features = [f"Cells_Feature_{i}" for i in range(_PAINTING_FEATURES)]
    with atomic_path(root) as part:
        part.mkdir()
        table = pd.concat([meta, pd.DataFrame(np.array(values), columns=features)], axis=1)
        table.to_csv(part / "profiles.csv.gz", index=False)
    return Path(root)


EMBEDDINGS: Final[dict[str, Callable[..., Path]]] = {
    "cellpainting": _write_cellpainting,
    "rxrx19a": _write_rxrx19a,
    "rxrx19b": _write_rxrx19b,
    "rxrx3": _write_rxrx3,
}
