"""BBBC021 for a network: the labels of its fields, and parts that share no compound, or no plate.

Nearly every compound lies in one week. A network that is to know compounds it has not seen is trained without a group
of them (``data.compounds.fold``), each mechanism being spread over the groups. Wells of one treatment never lie in
training and validation on the same plate: a replicate is withheld, not fields of wells that were trained on.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError
from perturbgen.images import bbbc021
from perturbgen.images.network.settings import CompoundData, ImageData
from perturbgen.images.nsc import mechanism_folds

_CELL_TYPE = "MCF-7"
_UNKNOWN = "UNKNOWN"  # wells whose treatment the table does not name


def labels(data: ImageData) -> pd.DataFrame:
    """A row a field; ``fold`` is the group of its compound, -1 where it has no mechanism."""
    named = ["plate", "well", "site", "week", "replicate", "compound", "concentration"]
    images = bbbc021.read_images(data.path)[named]
    meta = images.merge(
        bbbc021.read_mechanisms(data.path),
        on=["compound", "concentration"],
        how="left",
        validate="m:1",
    )
    known = meta["compound"] != _UNKNOWN
    return meta.assign(
        place=meta["plate"],
        well_id=meta["plate"] + "_" + meta["well"],
        cell_type=_CELL_TYPE,
        experiment=meta[data.compounds.batch],
        well_type=np.where(meta["compound"] == bbbc021.VEHICLE, "negative_control", "treatment"),
        treatment=(meta["compound"] + " " + meta["concentration"]).where(known),
        compound=meta["compound"].where(known),
        fold=_folds(meta, data.compounds),
    )


def _folds(meta: pd.DataFrame, settings: CompoundData) -> np.ndarray:
    """The group of each row's compound, (rows,); -1 for one without mechanism, the vehicle, and if none is withheld."""
    asked = meta["moa"].notna() & (meta["compound"] != bbbc021.VEHICLE)
    if settings.fold is None:
        return np.full(len(meta), -1)
    if not asked.any():
        raise SchemaError(
            "no compound of the images has a mechanism, so no group of them can be withheld",
            expected="the compounds and concentrations of the image table in the table of mechanisms",
            cause="names or concentrations that do not join",
        )
    known = meta[asked].drop_duplicates(["compound", "concentration"])
    fold = mechanism_folds(known, settings.folds, rng=np.random.default_rng(settings.seed))
    of_compound = dict(zip(known["compound"], fold, strict=True))
    return meta["compound"].map(of_compound).fillna(-1).astype(int).to_numpy()


def parts(table: pd.DataFrame, data: ImageData) -> np.ndarray:
    """train, validation or test for each field.

    test: the withheld group of compounds. validation: of the others the withheld plates or, where mechanisms are
    learned, the next group of compounds.
    """
    settings = data.compounds
    part = np.full(len(table), "train", dtype=object)
    if settings.label == "moa" and settings.fold is not None:
        if data.validation:
            raise SchemaError(
                "data.validation names plates, and mechanisms are validated on compounds",
                fix="leave it out",
            )
        part[(table["fold"] == (settings.fold + 1) % settings.folds).to_numpy()] = "validation"
    else:
        part[table["plate"].isin(_held_plates(table, data)).to_numpy()] = "validation"
    if settings.fold is not None:
        part[(table["fold"] == settings.fold).to_numpy()] = "test"
    return part


def _held_plates(table: pd.DataFrame, data: ImageData) -> list[str]:
    """The plates of the validation: those named, or those of the last replicate of each week that has two."""
    plates = table[["plate", "week", "replicate"]].drop_duplicates().sort_values("plate")
    if data.validation:
        return data.named(plates["plate"], "plate")
    weeks = plates.groupby("week")["replicate"]
    last = (plates["replicate"] == weeks.transform("max")) & (weeks.transform("nunique") > 1)
    return plates.loc[last, "plate"].tolist()
