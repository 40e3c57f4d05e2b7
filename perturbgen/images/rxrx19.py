"""RxRx19a (SARS-CoV-2) and RxRx19b (storm): drugs on diseased cells, embeddings, and who the controls are."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import pandas as pd

from perturbgen.core.tables import find_table, read_frame, require_unique, require_values
from perturbgen.images.rxrx1 import check_ids
from perturbgen.profiles.stream import csv_batches, stream_profiles
from perturbgen.profiles.table import Orphans, Profiles

log = logging.getLogger(__name__)

_LABELS: Final = (
    "site_id",
    "well_id",
    "cell_type",
    "experiment",
    "plate",
    "well",
    "site",
    "disease_condition",
    "treatment",
)
COLUMNS: Final = (*_LABELS, "treatment_conc", "SMILES")
ACTIVE: Final = "Active SARS-CoV-2"
MOCK: Final = "Mock"
UV: Final = "UV Inactivated SARS-CoV-2"

# There is no vehicle label: the untreated wells are the controls, infected or not.
HEALTHY: Final = f"disease_condition={MOCK}|{UV}"
DISEASED: Final = f"disease_condition={ACTIVE} & treatment="
_HEALTHY_19B: Final = "disease_condition=healthy"
_DISEASED_19B: Final = "disease_condition=storm-severe & treatment="


def _read_metadata(path: str | Path) -> pd.DataFrame:
    """``metadata.csv`` of 19a or 19b, a row a site; ``smiles`` is SMILES without its CXSMILES tail.

    Rows without a condition are kept, with ``disease_condition`` missing: they are wells, only nobody said of what.
    """
    path = find_table(path, "metadata.csv")
    text = [name for name in COLUMNS if name not in ("plate", "site", "treatment_conc")]
    meta = read_frame(path, columns=COLUMNS, text=text)[list(COLUMNS)]
    require_values(meta, ["site_id", "experiment", "plate", "well", "site"], "site_id", path)
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
    absent = int(meta["disease_condition"].isna().sum())
    if absent:
        log.warning(
            "%d of %d sites have no disease_condition; they are kept and belong to no control",
            absent,
            len(meta),
        )
    return meta.assign(smiles=meta["SMILES"].str.split(" |", n=1, regex=False).str[0])


def read_profiles(folder: str | Path, out: str | Path) -> tuple[Profiles, Orphans]:
    """``embeddings.csv`` (site_id, feature_0, ...) with its labels, streamed into the profile folder ``out``."""
    meta = _read_metadata(folder)
    features, batches = csv_batches(find_table(folder, "embeddings.csv"), key="site_id")
    return stream_profiles(features, batches, meta, key="site_id", out=out, where=str(folder))
