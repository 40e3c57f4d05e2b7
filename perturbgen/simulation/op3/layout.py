"""Compounds, plates and wells: invented in the shape of the real ones, or read from files."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.files import require_file, require_folder
from perturbgen.core.tables import VEHICLE, read_frame, require_unique, require_values
from perturbgen.simulation.op3.settings import (
    CELL_TYPES,
    CONDITION_KEY,
    WITHHELD_TYPES,
    SimulationSettings,
)

_log = logging.getLogger(__name__)

POSITIVE_CONTROLS: Final = ("Belinostat", "Dabrafenib")
_CONTROLS: Final = (VEHICLE, *POSITIVE_CONTROLS)
_CONTROL_SMILES: Final = {
    VEHICLE: "CS(C)=O",
    "Belinostat": "O=C(/C=C/c1cccc(S(=O)(=O)Nc2ccccc2)c1)NO",
    "Dabrafenib": "CC(C)(C)c1nc(-c2cccc(NS(=O)(=O)c3c(F)cccc3F)c2F)c(-c2ccnc(N)n2)s1",
}
_CONTROL_COLUMNS: Final = len(_CONTROLS)
_ROWS: Final = "ABCDEFGH"
DONORS: Final = ("donor_0", "donor_1", "donor_2")
# Plates of the two compound libraries in the released names, by donor.
_LIBRARY_PLATES: Final = (("plate_0", "plate_4", "plate_5"), ("plate_2", "plate_1", "plate_3"))
_DOSE: Final = 1.0
_VEHICLE_DOSE: Final = 14.1

_ALKYLS: Final = ("C", "CC", "CCC", "CC(C)", "CCCC", "CC(C)C", "C1CC1", "C1CCC1", "C1CCCC1")
_ACYLS: Final = (*_ALKYLS, "COC", "FC", "CSC")
_ARYLS: Final = ("c1ccc({})cc1", "c1cccc({})c1", "c1ccccc1{}", "c1ccc({})nc1", "c1ccc({})c(C)c1")
_TAILS: Final = ("F", "Cl", "Br", "OC", "C#N", "C(F)(F)F", "S(C)(=O)=O", "N1CCOCC1")


@dataclass(frozen=True)
class Layout:
    """Which compound is in which well, and which conditions are released, withheld or impossible.

    * ``compounds``: sm_name (index), sm_lincs_id, SMILES, control, dose_uM;
    * ``wells``: plate_name, well, row, col, donor_id, library_id, sm_name, lost (True: no cell
      survives there);
    * ``known``: compounds measured in every cell type;
    * ``train_rows``, ``id_map``, ``genes``, ``cells_per_well``: from real files, where given, the
      rows of ``de_train`` and of ``id_map`` in their order, gene names, and cells per well of
      (cell type, plate).
    """

    compounds: pd.DataFrame
    wells: pd.DataFrame
    known: tuple[str, ...]
    train_rows: pd.DataFrame | None = None
    id_map: pd.DataFrame | None = None
    genes: tuple[str, ...] | None = None
    cells_per_well: pd.Series | None = None
    vehicle: str = VEHICLE

    @classmethod
    def draw(cls, settings: SimulationSettings, *, rng: np.random.Generator) -> Layout:
        """The real layout, where a folder is given, else an invented one."""
        if settings.source.layout:
            return _read_layout(settings.source.layout, rng=rng)
        return _invent_layout(settings, rng=rng)

    def agreed(self, settings: SimulationSettings) -> SimulationSettings:
        """Settings whose plates are those of the layout: a real one decides, not the preset."""
        found = {
            "rows": self.wells["row"].nunique(),
            # the controls have three columns, and the two positive ones are known everywhere
            "compound_columns": self.wells["col"].nunique() - 3,
            "known_compounds": len(self.known) - 2,
            "lost_wells": int(self.wells["lost"].sum()),
        }
        if found != settings.plate.model_dump() and settings.source.layout:
            _log.info("the layout decides: %s", ", ".join(f"{k} = {v}" for k, v in found.items()))
        return settings.model_copy(update={"plate": settings.plate.model_copy(update=found)})


def _invent_layout(settings: SimulationSettings, *, rng: np.random.Generator) -> Layout:
    """Two libraries of invented compounds beside the three real controls."""
    plate = settings.plate
    per_library = plate.rows * plate.compound_columns
    for key in ("known_compounds", "lost_wells"):
        asked, room = getattr(plate, key), 2 * per_library
        if asked > room:
            raise ConfigError(
                f"plate.{key} is {asked}, but the plates hold {room} compounds",
                expected=f"at most 2 libraries x {plate.rows} rows x {plate.compound_columns} "
                f"columns = {room}",
                fix=f"--set plate.{key}={room}, or more plate.rows or plate.compound_columns",
            )
    compounds = _invent_compounds(2 * per_library)
    names = [name for name in compounds.index if name not in _CONTROLS]
    shuffled = [names[i] for i in rng.permutation(len(names))]
    libraries = (shuffled[:per_library], shuffled[per_library:])
    placed = [_place_library(i, libraries[i], rows=plate.rows, rng=rng) for i in range(2)]
    wells = pd.concat(placed, ignore_index=True)
    wells["lost"] = _choose_lost(wells, plate.lost_wells, rng=rng)
    known = rng.choice(names, size=plate.known_compounds, replace=False)
    return Layout(
        compounds=compounds, wells=wells, known=(*sorted(known.tolist()), *POSITIVE_CONTROLS)
    )


def _invent_compounds(count: int) -> pd.DataFrame:
    """``count`` small amides with LINCS-like ids, and the three controls."""
    smiles = [
        f"{acyl}C(=O)N{aryl.format(tail)}" for acyl, aryl, tail in product(_ACYLS, _ARYLS, _TAILS)
    ]
    # A stride that is coprime to the number of SMILES spreads the scaffolds over the compounds.
    picked = [smiles[(i * 131) % len(smiles)] for i in range(count)]
    names = [f"Compound {i + 1:03d}" for i in range(count)]
    table = pd.DataFrame(
        {"sm_name": [*_CONTROLS, *names], "SMILES": [*_CONTROL_SMILES.values(), *picked]}
    )
    table["sm_lincs_id"] = [f"LSM-9{i:04d}" for i in range(len(table))]
    return _with_roles(table)


def _with_roles(table: pd.DataFrame) -> pd.DataFrame:
    """Compounds by name, with their dose and whether they are controls."""
    table = table.set_index("sm_name")[["sm_lincs_id", "SMILES"]]
    table["control"] = table.index.isin(_CONTROLS)
    table["dose_uM"] = np.where(table.index == VEHICLE, _VEHICLE_DOSE, _DOSE)
    return table


def _place_library(
    number: int, names: list[str], *, rows: int, rng: np.random.Generator
) -> pd.DataFrame:
    """The wells of a library's three plates: a compound's position is the same on each of them."""
    columns = range(_CONTROL_COLUMNS + 1, _CONTROL_COLUMNS + 1 + len(names) // rows)
    places = zip(product(_ROWS[:rows], columns), names, strict=True)
    compounds = [(letter, column, name) for (letter, column), name in places]
    return _repeat_on_plates(number, [*_place_controls(_ROWS[:rows], rng=rng), *compounds])


def _place_controls(rows: str, *, rng: np.random.Generator) -> list[tuple[str, int, str]]:
    """(row, column, name) of the controls, in columns 1-3 in another order in each row."""
    return [
        (row, column + 1, name)
        for row in rows
        for column, name in enumerate(rng.permutation(_CONTROLS))
    ]


def _repeat_on_plates(number: int, places: list[tuple[str, int, str]]) -> pd.DataFrame:
    """A library's (row, column, name) on its three plates, one for each donor."""
    positions, plates = pd.DataFrame(places, columns=["row", "col", "sm_name"]), []
    for donor, plate in zip(DONORS, _LIBRARY_PLATES[number], strict=True):
        wells = positions.sort_values(["row", "col"]).assign(plate_name=plate, donor_id=donor)
        wells["well"] = wells["row"] + wells["col"].astype(str)
        # a row is pooled into one sequencing library
        wells["library_id"] = [
            f"library_{int(plate[-1]) * 8 + _ROWS.index(row):02d}" for row in wells["row"]
        ]
        plates.append(wells)
    return pd.concat(plates, ignore_index=True).assign(lost=False)


def _choose_lost(wells: pd.DataFrame, count: int, *, rng: np.random.Generator) -> np.ndarray:
    """Which compound wells (wells,) lose all their cells; never two of one compound."""
    # sorted, since sets have no order, and the seed alone decides
    names = sorted(set(wells["sm_name"]) - set(_CONTROLS))
    unlucky = rng.choice(names, size=count, replace=False)
    lost = np.zeros(len(wells), dtype=bool)
    for name in unlucky:
        lost[rng.choice(np.flatnonzero(wells["sm_name"] == name))] = True
    return lost


_FILES: Final = {
    "compounds": "compounds_147.parquet",
    "train": "train_obs_614.csv",
    "id_map": "id_map.csv",
    "wells": "plate_layout_and_predicted_counts.csv",
    "genes": "genes_18211.txt",
}
_COLUMNS: Final = {
    "compounds": ("sm_name", "sm_lincs_id", "smiles"),
    "train": ("cell_type", "sm_name", "sm_lincs_id", "SMILES", "control"),
    "id_map": ("id", "cell_type", "sm_name"),
    "wells": ("count", "cell_type", "plate_name", "well", "sm_name"),
}
_TEXT: Final = ("cell_type", "sm_name", "sm_lincs_id", "SMILES", "plate_name", "well")
# What no two rows may share.
_KEYS: Final = {"compounds": ("sm_name",), "train": CONDITION_KEY, "id_map": CONDITION_KEY}
_COMPOUND_COLUMNS: Final = tuple(range(4, 13))


def _read_layout(folder: str | Path, *, rng: np.random.Generator) -> Layout:
    """The real layout; wells that no file names are chosen at random among the free ones."""
    folder = require_folder(folder, "layout folder")
    tables = {name: _read_metadata(folder, name) for name in _COLUMNS}
    genes = _read_genes(folder / _FILES["genes"])
    _check_wells(tables["wells"])
    train, id_map = tables["train"], tables["id_map"]
    compounds = _with_roles(tables["compounds"].rename(columns={"smiles": "SMILES"}))
    _check_labels(compounds, tables)
    known = tuple(sorted(train.loc[train["cell_type"].isin(WITHHELD_TYPES), "sm_name"].unique()))
    return Layout(
        compounds=compounds,
        wells=_real_wells(tables["wells"], list(compounds.index), known=known, rng=rng),
        known=known,
        train_rows=train,
        id_map=id_map,
        genes=tuple(genes),
        cells_per_well=tables["wells"].groupby(["cell_type", "plate_name"])["count"].median(),
    )


def _read_genes(path: Path) -> pd.Index:
    """A list of genes, one a line."""
    lines = (line.strip() for line in require_file(path, "gene list").read_text().splitlines())
    genes = pd.Index([line for line in lines if line], dtype=object, name="gene")
    require_unique(genes, "gene", path)
    return genes


def _read_metadata(folder: Path, name: str) -> pd.DataFrame:
    """One of the metadata tables, whole, with its columns and a value in each."""
    path, columns = require_file(folder / _FILES[name], name), _COLUMNS[name]
    table = read_frame(path, columns=columns, text=[name for name in columns if name in _TEXT])
    require_values(table, columns, "sm_name", path)
    if key := list(_KEYS.get(name, [])):
        require_unique(table[key].agg(" | ".join, axis=1), " | ".join(key), path)
    return table


def _check_wells(wells: pd.DataFrame) -> None:
    """Wells are named A4 to H12, on the six plates, and their counts are numbers."""
    odd = wells.loc[~wells["well"].str.fullmatch(f"[{_ROWS}]([4-9]|1[0-2])"), "well"]
    plates = [plate for library in _LIBRARY_PLATES for plate in library]
    if len(odd):
        raise SchemaError(
            f"{_FILES['wells']} has wells {shorten(odd.unique())}",
            expected="a row A to H, a column 4 to 12",
        )
    if set(wells["plate_name"]) != set(plates):
        raise SchemaError(
            f"{_FILES['wells']} has plates {shorten(sorted(set(wells['plate_name'])), 6)}",
            expected=shorten(plates, 6),
        )
    if not pd.api.types.is_numeric_dtype(wells["count"]):
        raise SchemaError(
            f"{_FILES['wells']}: 'count' is not a number in every row", expected="numbers of cells"
        )


def _check_labels(compounds: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> None:
    """Every compound and cell type that a table names is known, and the vehicle is among them."""
    for name in ("train", "id_map", "wells"):
        types = sorted(set(tables[name]["cell_type"]) - set(CELL_TYPES))
        if types:
            raise SchemaError(
                f"{_FILES[name]} names unknown cell types: {shorten(types)}",
                expected=shorten(CELL_TYPES, 6),
            )
    if VEHICLE not in compounds.index:
        raise SchemaError(f"{_FILES['compounds']} has no vehicle {VEHICLE!r}")
    for name in ("train", "id_map", "wells"):
        unknown = sorted(set(tables[name]["sm_name"]) - set(compounds.index))
        if unknown:
            raise SchemaError(
                f"{_FILES[name]} names compounds without an entry in {_FILES['compounds']}: "
                f"{shorten(unknown)}"
            )


def _real_wells(
    named: pd.DataFrame, compounds: list[str], *, known: tuple[str, ...], rng: np.random.Generator
) -> pd.DataFrame:
    """All wells, the unnamed compounds placed at random."""
    # where the table names a compound on other plates only, no cell was left in its well
    named = named.drop_duplicates(["plate_name", "sm_name"])
    unplaced = [
        name for name in compounds if name not in _CONTROLS and name not in set(named["sm_name"])
    ]
    unplaced = [unplaced[i] for i in rng.permutation(len(unplaced))]
    libraries = []
    for number, plates in enumerate(_LIBRARY_PLATES):
        here = named[named["plate_name"].isin(plates)].drop_duplicates("sm_name")
        seen = here.set_index("sm_name")["well"]
        free = sorted({f"{row}{col}" for row in _ROWS for col in _COMPOUND_COLUMNS} - set(seen))
        added, unplaced = unplaced[: len(free)], unplaced[len(free) :]
        wells: dict[str, str] = dict(zip(seen.index, seen, strict=True))
        wells.update(zip(added, free, strict=False))
        compounds_at = [(well[0], int(well[1:]), name) for name, well in wells.items()]
        controls_at = _place_controls(_ROWS, rng=rng)
        libraries.append(_repeat_on_plates(number, [*controls_at, *compounds_at]))
    if unplaced:
        raise SchemaError(
            f"{_FILES['wells']}: no free well for {shorten(unplaced)}",
            expected="72 wells a library",
        )
    table = pd.concat(libraries, ignore_index=True)
    present = set(zip(named["plate_name"], named["sm_name"], strict=True))
    listed = set(named["sm_name"])
    table["lost"] = [
        name in listed and (plate, name) not in present
        for plate, name in zip(table["plate_name"], table["sm_name"], strict=True)
    ]
    return table
