"""RxRx3 and RxRx3-core: knock-outs and compounds in HUVEC, embeddings in parquet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pandas as pd

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.core.files import require_folder
from perturbgen.core.tables import (
    find_optional,
    find_table,
    read_frame,
    require_unique,
    require_values,
)
from perturbgen.profiles.stream import parquet_batches, stream_profiles
from perturbgen.profiles.table import Orphans, Profiles

RXRX3_COLUMNS: Final = (
    "well_id",
    "experiment_name",
    "plate",
    "address",
    "gene",
    "treatment",
    "SMILES",
    "concentration",
    "perturbation_type",
    "cell_type",
)
CORE: Final = "metadata_rxrx3_core.csv"
FULL: Final = "metadata_rxrx3.csv"
EMPTY_CONTROL: Final = "EMPTY_control"
_GUIDE: Final = re.compile(r"^(.+)_guide_(\d+)$")


def _read_metadata(folder: str | Path) -> pd.DataFrame:
    """One row a well; ``guide`` is the guide's number where the treatment is a knock-out, else missing."""
    path = find_optional(folder, CORE) or find_table(folder, FULL)
    text = [name for name in RXRX3_COLUMNS if name not in ("plate", "concentration")]
    meta = read_frame(path, columns=RXRX3_COLUMNS, text=text)[list(RXRX3_COLUMNS)]
    require_values(
        meta,
        ["well_id", "experiment_name", "plate", "treatment", "perturbation_type"],
        "well_id",
        path,
    )
    require_unique(meta["well_id"], "well_id", path)
    unknown = meta[~meta["perturbation_type"].isin(["CRISPR", "COMPOUND"])]
    if len(unknown):
        raise SchemaError(
            f"{path}: perturbation_type {unknown['perturbation_type'].iloc[0]!r}",
            expected="CRISPR or COMPOUND",
        )
    return meta.assign(
        guide=pd.to_numeric(meta["treatment"].str.extract(_GUIDE)[1]).astype("Int64")
    )


def read_profiles(folder: str | Path, out: str | Path) -> tuple[Profiles, Orphans]:
    """The embeddings of one parquet file (core) or of one a plate (full), streamed into the profile folder ``out``."""
    folder = require_folder(folder)
    paths = sorted(folder.glob("*embeddings.parquet")) or sorted(
        folder.glob("*/Plate*/embeddings.parquet")
    )
    if not paths:
        raise InputError(
            f"no embeddings in {folder}",
            expected="*embeddings.parquet, or gene-001/Plate1/embeddings.parquet",
        )
    features, batches = parquet_batches(paths, key="well_id")
    return stream_profiles(
        features, batches, _read_metadata(folder), key="well_id", out=out, where=str(folder)
    )
