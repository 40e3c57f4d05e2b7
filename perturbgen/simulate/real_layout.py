"""The real compounds, wells and rows of the competition, read from a folder of its metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.data.kaggle_tables import read_genes
from perturbgen.data.tables import read_frame, require_unique, require_values
from perturbgen.data.vocabulary import VEHICLE
from perturbgen.errors import SchemaError, shorten
from perturbgen.files import require_file, require_folder
from perturbgen.simulate.layout import CONTROLS, LIBRARY_PLATES, Layout, repeat_on_plates, with_roles
from perturbgen.simulate.settings import CELL_TYPES, WITHHELD_TYPES

FILES: Final = {
    "compounds": "compounds_147.parquet",
    "train": "train_obs_614.csv",
    "id_map": "id_map.csv",
    "wells": "plate_layout_and_predicted_counts.csv",
    "genes": "genes_18211.txt",
}
COLUMNS: Final = {
    "compounds": ("sm_name", "sm_lincs_id", "smiles"),
    "train": ("cell_type", "sm_name", "sm_lincs_id", "SMILES", "control"),
    "id_map": ("id", "cell_type", "sm_name"),
    "wells": ("count", "cell_type", "plate_name", "well", "sm_name"),
}
TEXT: Final = ("cell_type", "sm_name", "sm_lincs_id", "SMILES", "plate_name", "well")
# What no two rows may share.
KEYS: Final = {"compounds": ("sm_name",), "train": ("cell_type", "sm_name"), "id_map": ("cell_type", "sm_name")}
ROWS: Final = "ABCDEFGH"
COMPOUND_COLUMNS: Final = tuple(range(4, 13))


def read_layout(folder: str | Path, *, rng: np.random.Generator) -> Layout:
    """The real layout; wells that the files do not name are chosen at random among the free ones."""
    folder = require_folder(folder, "layout folder")
    tables = {name: read_table(folder, name) for name in COLUMNS}
    genes = read_genes(folder / FILES["genes"])
    check_wells(tables["wells"])
    train, id_map = tables["train"], tables["id_map"]
    compounds = with_roles(tables["compounds"].rename(columns={"smiles": "SMILES"}))
    check_names(compounds, tables)
    known = tuple(sorted(train.loc[train["cell_type"].isin(WITHHELD_TYPES), "sm_name"].unique()))
    return Layout(
        compounds=compounds,
        wells=real_wells(tables["wells"], list(compounds.index), known=known, rng=rng),
        known=known,
        train_rows=train,
        id_map=id_map,
        genes=tuple(genes),
        cells_per_well=tables["wells"].groupby(["cell_type", "plate_name"])["count"].median(),
    )


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """One of the metadata tables, whole, with its columns and a value in each."""
    path, columns = require_file(folder / FILES[name], name), COLUMNS[name]
    table = read_frame(path, columns=columns, text=[column for column in columns if column in TEXT])
    require_values(table, columns, "sm_name", path)
    if KEYS.get(name):
        require_unique(table[list(KEYS[name])].agg(" | ".join, axis=1), " | ".join(KEYS[name]), path)
    return table


def check_wells(wells: pd.DataFrame) -> None:
    """Wells are named A4 to H12, on the six plates, and their counts are numbers."""
    odd = wells.loc[~wells["well"].str.fullmatch(f"[{ROWS}]([4-9]|1[0-2])"), "well"]
    plates = [plate for library in LIBRARY_PLATES for plate in library]
    if len(odd):
        raise SchemaError(
            f"{FILES['wells']} has wells {shorten(odd.unique())}", expected="a row A to H, a column 4 to 12"
        )
    if set(wells["plate_name"]) != set(plates):
        raise SchemaError(
            f"{FILES['wells']} has plates {shorten(sorted(set(wells['plate_name'])), 6)}", expected=shorten(plates, 6)
        )
    if not pd.api.types.is_numeric_dtype(wells["count"]):
        raise SchemaError(f"{FILES['wells']}: 'count' is not a number in every row", expected="numbers of cells")


def check_names(compounds: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> None:
    """Every compound and cell type that a table names is known, and the vehicle is among them."""
    for name in ("train", "id_map", "wells"):
        types = sorted(set(tables[name]["cell_type"]) - set(CELL_TYPES))
        if types:
            raise SchemaError(
                f"{FILES[name]} names unknown cell types: {shorten(types)}", expected=shorten(CELL_TYPES, 6)
            )
    if VEHICLE not in compounds.index:
        raise SchemaError(f"{FILES['compounds']} has no vehicle {VEHICLE!r}")
    for name in ("train", "id_map", "wells"):
        unknown = sorted(set(tables[name]["sm_name"]) - set(compounds.index))
        if unknown:
            raise SchemaError(f"{FILES[name]} names compounds without an entry in {FILES['compounds']}: "
                              f"{shorten(unknown)}")  # fmt: skip


def real_wells(
    named: pd.DataFrame, compounds: list[str], *, known: tuple[str, ...], rng: np.random.Generator
) -> pd.DataFrame:
    """All wells; a well that the table leaves out for a compound it names elsewhere is one where no cell was left."""
    named = named.drop_duplicates(["plate_name", "sm_name"])
    unplaced = [name for name in compounds if name not in CONTROLS and name not in set(named["sm_name"])]
    unplaced = [unplaced[i] for i in rng.permutation(len(unplaced))]
    libraries = []
    for number, plates in enumerate(LIBRARY_PLATES):
        seen = named[named["plate_name"].isin(plates)].drop_duplicates("sm_name").set_index("sm_name")["well"]
        free = sorted({f"{row}{column}" for row in ROWS for column in COMPOUND_COLUMNS} - set(seen))
        added, unplaced = unplaced[: len(free)], unplaced[len(free) :]
        placed = pd.concat([seen, pd.Series(dict(zip(added, free, strict=False)), dtype=object)])
        libraries.append(repeat_on_plates(number, with_controls(placed, rng=rng)))
    if unplaced:
        raise SchemaError(f"{FILES['wells']}: no free well for {shorten(unplaced)}", expected="72 wells a library")
    wells = pd.concat(libraries, ignore_index=True)
    present = set(zip(named["plate_name"], named["sm_name"], strict=True))
    listed = set(named["sm_name"])
    wells["lost"] = [
        name in listed and (plate, name) not in present
        for plate, name in zip(wells["plate_name"], wells["sm_name"], strict=True)
    ]
    return wells


def with_controls(placed: pd.Series, *, rng: np.random.Generator) -> pd.DataFrame:
    """Positions (row, col, sm_name) of a library's compounds and, in columns 1-3, of its controls."""
    compounds = pd.DataFrame({"row": placed.str[0], "col": placed.str[1:].astype(int), "sm_name": placed.index})
    controls = [(row, column + 1, name) for row in ROWS for column, name in enumerate(rng.permutation(CONTROLS))]
    return pd.concat([pd.DataFrame(controls, columns=["row", "col", "sm_name"]), compounds], ignore_index=True)
