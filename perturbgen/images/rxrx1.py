"""RxRx1 (Recursion 2019): siRNAs in four cell types; the metadata of 2020 and of the Kaggle competition."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import pandas as pd

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.core.tables import (
    find_optional,
    find_table,
    read_frame,
    require_unique,
    require_values,
)
from perturbgen.profiles.stream import csv_batches, stream_profiles
from perturbgen.profiles.table import Orphans, Profiles

COLUMNS: Final = (
    "site_id",
    "well_id",
    "cell_type",
    "dataset",
    "experiment",
    "plate",
    "well",
    "site",
    "well_type",
    "sirna",
    "sirna_id",
)
_WELL_TYPES: Final = ("treatment", "positive_control", "negative_control")
EMPTY: Final = "EMPTY"
_SITES: Final = 2

_Layout = Literal["auto", "2020", "kaggle"]


def read_metadata(path: str | Path, *, layout: _Layout = "auto") -> pd.DataFrame:
    """One row a site (2020) or a well (Kaggle, which names no sites); ``path`` is the folder, or its metadata.csv.

    Columns as in :data:`COLUMNS`; Kaggle has no ThermoFisher names (``sirna``) and no siRNA for its test wells:
    missing.
    """
    path = Path(path)
    if layout == "auto":
        layout = "kaggle" if path.is_dir() and find_optional(path, "train.csv") else "2020"
    meta = _read_kaggle(path) if layout == "kaggle" else _read_2020(path)
    unknown = ~meta["well_type"].isin(_WELL_TYPES)
    if unknown.any():
        raise SchemaError(
            f"{path}: well_type {meta.loc[unknown, 'well_type'].iloc[0]!r}",
            expected="treatment, positive_control or negative_control",
        )
    return meta


def _read_2020(path: Path) -> pd.DataFrame:
    """``metadata.csv`` of the release of 2020."""
    path = find_table(path, "metadata.csv") if path.is_dir() else path
    text = [name for name in COLUMNS if name not in ("plate", "site", "sirna_id")]
    meta = read_frame(path, columns=COLUMNS, text=text)[list(COLUMNS)]
    require_values(meta, COLUMNS, "site_id", path)
    require_unique(meta["site_id"], "site_id", path)
    built = (
        meta["experiment"]
        + "_"
        + meta["plate"].astype(str)
        + "_"
        + meta["well"]
        + "_"
        + meta["site"].astype(str)
    )
    check_ids(meta["site_id"], built, path)
    return meta


def check_ids(ids: pd.Series, built: pd.Series, path: Path) -> None:
    """Each id is made of its row's own labels."""
    wrong = ids != built
    if wrong.any():
        raise SchemaError(
            f"{path}: {int(wrong.sum())} ids contradict their labels, the first {ids[wrong].iloc[0]!r}",
            expected=f"{built[wrong].iloc[0]!r} from its experiment, plate, well and site",
            cause="columns shifted or sorted apart",
        )


def _read_kaggle(folder: Path) -> pd.DataFrame:
    """The competition's four tables as one, a row a well; classes 0 to 1107 are treatments, above them controls."""
    parts = []
    for dataset in ("train", "test"):
        for name in (dataset, f"{dataset}_controls"):
            path = find_table(folder, f"{name}.csv")
            wanted = ["id_code", "experiment", "plate", "well"]
            extra = ["sirna"] if name != "test" else []
            extra += ["well_type"] if name.endswith("controls") else []
            table = read_frame(
                path, columns=[*wanted, *extra], text=["id_code", "experiment", "well", "well_type"]
            )
            parts.append(
                table.assign(
                    dataset=dataset, **({} if "well_type" in extra else {"well_type": "treatment"})
                )
            )
    meta = pd.concat(parts, ignore_index=True)
    require_unique(meta["id_code"], "id_code", folder)
    built = meta["experiment"] + "_" + meta["plate"].astype(str) + "_" + meta["well"]
    check_ids(meta["id_code"], built, folder)
    meta = meta.rename(columns={"id_code": "well_id", "sirna": "sirna_id"}).astype(
        {"sirna_id": "Int64"}
    )
    meta["cell_type"] = meta["experiment"].str.rsplit("-", n=1).str[0]
    return meta[[name for name in COLUMNS if name in meta]]


def read_profiles(folder: str | Path, out: str | Path) -> tuple[Profiles, Orphans]:
    """``embeddings.csv`` (site_id and 128 numbers) with its labels, streamed into the profile folder ``out``."""
    meta = read_metadata(folder, layout="2020")
    features, batches = csv_batches(find_table(folder, "embeddings.csv"), key="site_id")
    return stream_profiles(features, batches, meta, key="site_id", out=out, where=str(folder))


def missing_sites(meta: pd.DataFrame, *, sites: int = _SITES) -> pd.DataFrame:
    """Wells with fewer sites than ``sites``: they happen (154 in the release) and must not shift anything."""
    if "site" not in meta:
        raise InputError(
            "this metadata has a row a well, not a site", expected="the metadata.csv of 2020"
        )
    count = meta.groupby(["experiment", "plate", "well"]).size().rename("sites")
    return count[count < sites].reset_index()
