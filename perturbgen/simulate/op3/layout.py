"""Compounds, plates and wells of an invented experiment in the shape of the real one.

The real compounds, wells and rows of the competition, read from a folder of its metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.files import require_file, require_folder
from perturbgen.core.labels import VEHICLE
from perturbgen.core.tables import read_frame, require_unique, require_values
from perturbgen.simulate.op3.settings import CELL_TYPES, WITHHELD_TYPES, PlateSettings

POSITIVE_CONTROLS: Final = ("Belinostat", "Dabrafenib")
_CONTROLS: Final = (VEHICLE, *POSITIVE_CONTROLS)
_CONTROL_SMILES: Final = {
    VEHICLE: "CS(C)=O",
    "Belinostat": "O=C(/C=C/c1cccc(S(=O)(=O)Nc2ccccc2)c1)NO",
    "Dabrafenib": "CC(C)(C)c1nc(-c2cccc(NS(=O)(=O)c3c(F)cccc3F)c2F)c(-c2ccnc(N)n2)s1",
}
_CONTROL_COLUMNS: Final = len(_CONTROLS)
DONORS: Final = ("donor_0", "donor_1", "donor_2")
# Plates of the two compound libraries in the released names, by donor.
_LIBRARY_PLATES: Final = (("plate_0", "plate_4", "plate_5"), ("plate_2", "plate_1", "plate_3"))
_DOSE: Final = 1.0
_VEHICLE_DOSE: Final = 14.1

_ACYLS: Final = (
    "C",
    "CC",
    "CCC",
    "CC(C)",
    "CCCC",
    "CC(C)C",
    "C1CC1",
    "C1CCC1",
    "C1CCCC1",
    "COC",
    "FC",
    "CSC",
)
_ARYLS: Final = ("c1ccc({})cc1", "c1cccc({})c1", "c1ccccc1{}", "c1ccc({})nc1", "c1ccc({})c(C)c1")
_TAILS: Final = ("F", "Cl", "Br", "OC", "C#N", "C(F)(F)F", "S(C)(=O)=O", "N1CCOCC1")


@dataclass(frozen=True)
class Layout:
    """Who stands where, and which conditions are to be released, withheld or impossible.

    ``compounds``: sm_name (index), sm_lincs_id, SMILES, control, dose_uM.
    ``wells``: plate_name, well, row, col, donor_id, library_id, sm_name, lost (True: no cell survives there).
    ``known``: compounds measured in every cell type. The last four come from real files, where given: rows of
    ``de_train`` and of ``id_map`` in their order, gene names, and cells per well of (cell type, plate).
    """

    compounds: pd.DataFrame
    wells: pd.DataFrame
    known: tuple[str, ...]
    train_rows: pd.DataFrame | None = None
    id_map: pd.DataFrame | None = None
    genes: tuple[str, ...] | None = None
    cells_per_well: pd.Series | None = None
    vehicle: str = VEHICLE


def invent_layout(settings: PlateSettings, *, rng: np.random.Generator) -> Layout:
    """Two libraries of invented compounds beside the three real controls."""
    _require_room(settings)
    per_library = settings.rows * settings.compound_columns
    compounds = _invent_compounds(2 * per_library)
    names = [name for name in compounds.index if name not in _CONTROLS]
    shuffled = [names[i] for i in rng.permutation(len(names))]
    libraries = (shuffled[:per_library], shuffled[per_library:])
    wells = pd.concat(
        [_place_library(i, libraries[i], rows=settings.rows, rng=rng) for i in range(2)],
        ignore_index=True,
    )
    wells["lost"] = _choose_lost(wells, settings.lost_wells, rng=rng)
    known = rng.choice(names, size=settings.known_compounds, replace=False)
    return Layout(
        compounds=compounds, wells=wells, known=(*sorted(known.tolist()), *POSITIVE_CONTROLS)
    )


def _require_room(settings: PlateSettings) -> None:
    """The plates hold as many compounds as are to be known, and to lose a well."""
    room = 2 * settings.rows * settings.compound_columns
    for key in ("known_compounds", "lost_wells"):
        asked = getattr(settings, key)
        if asked > room:
            raise ConfigError(
                f"plate.{key} is {asked}, but the plates hold {room} compounds",
                expected=f"at most 2 libraries x {settings.rows} rows x {settings.compound_columns} columns = {room}",
                fix=f"--set plate.{key}={room}, or more plate.rows or plate.compound_columns",
            )


def _invent_compounds(count: int) -> pd.DataFrame:
    """``count`` compounds with unique names, LINCS-like ids and SMILES of small amides, and the three controls."""
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
    """The wells of a library's three plates: every compound has one position, the same on each of them."""
    letters = "ABCDEFGH"[:rows]
    columns = range(_CONTROL_COLUMNS + 1, _CONTROL_COLUMNS + 1 + len(names) // rows)
    controls = [
        (letter, column + 1, name)
        for letter in letters
        for column, name in enumerate(rng.permutation(_CONTROLS))
    ]
    compounds = [
        (letter, column, name)
        for (letter, column), name in zip(product(letters, columns), names, strict=True)
    ]
    return _repeat_on_plates(
        number, pd.DataFrame([*controls, *compounds], columns=["row", "col", "sm_name"])
    )


def _repeat_on_plates(number: int, positions: pd.DataFrame) -> pd.DataFrame:
    """A library's positions (row, col, sm_name) on its three plates, one for each donor."""
    plates = []
    for donor, plate in zip(DONORS, _LIBRARY_PLATES[number], strict=True):
        wells = positions.sort_values(["row", "col"]).assign(plate_name=plate, donor_id=donor)
        wells["well"] = wells["row"] + wells["col"].astype(str)
        library = "ABCDEFGH".index
        wells["library_id"] = [
            f"library_{int(plate[-1]) * 8 + library(row):02d}" for row in wells["row"]
        ]
        plates.append(wells)
    return pd.concat(plates, ignore_index=True).assign(lost=False)


def _choose_lost(wells: pd.DataFrame, count: int, *, rng: np.random.Generator) -> np.ndarray:
    """Which compound wells (wells,) lose all their cells; never two of one compound."""
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
_KEYS: Final = {
    "compounds": ("sm_name",),
    "train": ("cell_type", "sm_name"),
    "id_map": ("cell_type", "sm_name"),
}
_ROWS: Final = "ABCDEFGH"
_COMPOUND_COLUMNS: Final = tuple(range(4, 13))


def read_layout(folder: str | Path, *, rng: np.random.Generator) -> Layout:
    """The real layout; wells that the files do not name are chosen at random among the free ones."""
    folder = require_folder(folder, "layout folder")
    tables = {name: _read_table(folder, name) for name in _COLUMNS}
    genes = _read_genes(folder / _FILES["genes"])
    _check_wells(tables["wells"])
    train, id_map = tables["train"], tables["id_map"]
    compounds = _with_roles(tables["compounds"].rename(columns={"smiles": "SMILES"}))
    _check_names(compounds, tables)
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


def _read_table(folder: Path, name: str) -> pd.DataFrame:
    """One of the metadata tables, whole, with its columns and a value in each."""
    path, columns = require_file(folder / _FILES[name], name), _COLUMNS[name]
    table = read_frame(
        path, columns=columns, text=[column for column in columns if column in _TEXT]
    )
    require_values(table, columns, "sm_name", path)
    if _KEYS.get(name):
        require_unique(
            table[list(_KEYS[name])].agg(" | ".join, axis=1), " | ".join(_KEYS[name]), path
        )
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


def _check_names(compounds: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> None:
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
    """All wells; a well that the table leaves out for a compound it names elsewhere is one where no cell was left."""
    named = named.drop_duplicates(["plate_name", "sm_name"])
    unplaced = [
        name for name in compounds if name not in _CONTROLS and name not in set(named["sm_name"])
    ]
    unplaced = [unplaced[i] for i in rng.permutation(len(unplaced))]
    libraries = []
    for number, plates in enumerate(_LIBRARY_PLATES):
        seen = (
            named[named["plate_name"].isin(plates)]
            .drop_duplicates("sm_name")
            .set_index("sm_name")["well"]
        )
        free = sorted(
            {f"{row}{column}" for row in _ROWS for column in _COMPOUND_COLUMNS} - set(seen)
        )
        added, unplaced = unplaced[: len(free)], unplaced[len(free) :]
        placed = pd.concat([seen, pd.Series(dict(zip(added, free, strict=False)), dtype=object)])
        libraries.append(_repeat_on_plates(number, _with_controls(placed, rng=rng)))
    if unplaced:
        raise SchemaError(
            f"{_FILES['wells']}: no free well for {shorten(unplaced)}",
            expected="72 wells a library",
        )
    wells = pd.concat(libraries, ignore_index=True)
    present = set(zip(named["plate_name"], named["sm_name"], strict=True))
    listed = set(named["sm_name"])
    wells["lost"] = [
        name in listed and (plate, name) not in present
        for plate, name in zip(wells["plate_name"], wells["sm_name"], strict=True)
    ]
    return wells


def _with_controls(placed: pd.Series, *, rng: np.random.Generator) -> pd.DataFrame:
    """Positions (row, col, sm_name) of a library's compounds and, in columns 1-3, of its controls."""
    compounds = pd.DataFrame(
        {"row": placed.str[0], "col": placed.str[1:].astype(int), "sm_name": placed.index}
    )
    controls = [
        (row, column + 1, name)
        for row in _ROWS
        for column, name in enumerate(rng.permutation(_CONTROLS))
    ]
    return pd.concat(
        [pd.DataFrame(controls, columns=["row", "col", "sm_name"]), compounds], ignore_index=True
    )
