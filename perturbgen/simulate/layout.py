"""Compounds, plates and wells of an invented experiment in the shape of the real one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.data.vocabulary import VEHICLE
from perturbgen.errors import ConfigError
from perturbgen.simulate.settings import PlateSettings

POSITIVE_CONTROLS: Final = ("Belinostat", "Dabrafenib")
CONTROLS: Final = (VEHICLE, *POSITIVE_CONTROLS)
CONTROL_SMILES: Final = {
    VEHICLE: "CS(C)=O",
    "Belinostat": "O=C(/C=C/c1cccc(S(=O)(=O)Nc2ccccc2)c1)NO",
    "Dabrafenib": "CC(C)(C)c1nc(-c2cccc(NS(=O)(=O)c3c(F)cccc3F)c2F)c(-c2ccnc(N)n2)s1",
}
CONTROL_COLUMNS: Final = len(CONTROLS)
DONORS: Final = ("donor_0", "donor_1", "donor_2")
# Plates of the two compound libraries in the released names, by donor.
LIBRARY_PLATES: Final = (("plate_0", "plate_4", "plate_5"), ("plate_2", "plate_1", "plate_3"))
DOSE: Final = 1.0
VEHICLE_DOSE: Final = 14.1

ACYLS: Final = ("C", "CC", "CCC", "CC(C)", "CCCC", "CC(C)C", "C1CC1", "C1CCC1", "C1CCCC1", "COC", "FC", "CSC")
ARYLS: Final = ("c1ccc({})cc1", "c1cccc({})c1", "c1ccccc1{}", "c1ccc({})nc1", "c1ccc({})c(C)c1")
TAILS: Final = ("F", "Cl", "Br", "OC", "C#N", "C(F)(F)F", "S(C)(=O)=O", "N1CCOCC1")


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
    require_room(settings)
    per_library = settings.rows * settings.compound_columns
    compounds = invent_compounds(2 * per_library)
    names = [name for name in compounds.index if name not in CONTROLS]
    shuffled = [names[i] for i in rng.permutation(len(names))]
    libraries = (shuffled[:per_library], shuffled[per_library:])
    wells = pd.concat(
        [place_library(i, libraries[i], rows=settings.rows, rng=rng) for i in range(2)], ignore_index=True
    )
    wells["lost"] = choose_lost(wells, settings.lost_wells, rng=rng)
    known = rng.choice(names, size=settings.known_compounds, replace=False)
    return Layout(compounds=compounds, wells=wells, known=(*sorted(known.tolist()), *POSITIVE_CONTROLS))


def require_room(settings: PlateSettings) -> None:
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


def invent_compounds(count: int) -> pd.DataFrame:
    """``count`` compounds with unique names, LINCS-like ids and SMILES of small amides, and the three controls."""
    smiles = [f"{acyl}C(=O)N{aryl.format(tail)}" for acyl, aryl, tail in product(ACYLS, ARYLS, TAILS)]
    # A stride that is coprime to the number of SMILES spreads the scaffolds over the compounds.
    picked = [smiles[(i * 131) % len(smiles)] for i in range(count)]
    names = [f"Compound {i + 1:03d}" for i in range(count)]
    table = pd.DataFrame({"sm_name": [*CONTROLS, *names], "SMILES": [*CONTROL_SMILES.values(), *picked]})
    table["sm_lincs_id"] = [f"LSM-9{i:04d}" for i in range(len(table))]
    return with_roles(table)


def with_roles(table: pd.DataFrame) -> pd.DataFrame:
    """Compounds by name, with their dose and whether they are controls."""
    table = table.set_index("sm_name")[["sm_lincs_id", "SMILES"]]
    table["control"] = table.index.isin(CONTROLS)
    table["dose_uM"] = np.where(table.index == VEHICLE, VEHICLE_DOSE, DOSE)
    return table


def place_library(number: int, names: list[str], *, rows: int, rng: np.random.Generator) -> pd.DataFrame:
    """The wells of a library's three plates: every compound has one position, the same on each of them."""
    letters = "ABCDEFGH"[:rows]
    columns = range(CONTROL_COLUMNS + 1, CONTROL_COLUMNS + 1 + len(names) // rows)
    controls = [
        (letter, column + 1, name) for letter in letters for column, name in enumerate(rng.permutation(CONTROLS))
    ]
    compounds = [
        (letter, column, name) for (letter, column), name in zip(product(letters, columns), names, strict=True)
    ]
    return repeat_on_plates(number, pd.DataFrame([*controls, *compounds], columns=["row", "col", "sm_name"]))


def repeat_on_plates(number: int, positions: pd.DataFrame) -> pd.DataFrame:
    """A library's positions (row, col, sm_name) on its three plates, one for each donor."""
    plates = []
    for donor, plate in zip(DONORS, LIBRARY_PLATES[number], strict=True):
        wells = positions.sort_values(["row", "col"]).assign(plate_name=plate, donor_id=donor)
        wells["well"] = wells["row"] + wells["col"].astype(str)
        library = "ABCDEFGH".index
        wells["library_id"] = [f"library_{int(plate[-1]) * 8 + library(row):02d}" for row in wells["row"]]
        plates.append(wells)
    return pd.concat(plates, ignore_index=True).assign(lost=False)


def choose_lost(wells: pd.DataFrame, count: int, *, rng: np.random.Generator) -> np.ndarray:
    """Which compound wells (wells,) lose all their cells; never two of one compound."""
    names = sorted(set(wells["sm_name"]) - set(CONTROLS))
    unlucky = rng.choice(names, size=count, replace=False)
    lost = np.zeros(len(wells), dtype=bool)
    for name in unlucky:
        lost[rng.choice(np.flatnonzero(wells["sm_name"] == name))] = True
    return lost
