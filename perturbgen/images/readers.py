"""One door to every set of images' profiles: what a path holds is recognised by its files.

BBBC021 (read by :mod:`.bbbc021`), RxRx1 (siRNAs in four cell types), RxRx19a and b (drugs on cells
with SARS-CoV-2 or a cytokine storm), RxRx3 and RxRx3-core (knock-outs and compounds in HUVEC), and
whatever :func:`perturbgen.profiles.read_profiles` reads.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, Literal

import pandas as pd

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.core.files import require_folder
from perturbgen.core.tables import (
    find_optional,
    find_table,
    read_frame,
    read_header,
    require_unique,
    require_values,
)
from perturbgen.images import bbbc021
from perturbgen.profiles.readers import MATRIX, read_profiles
from perturbgen.profiles.stream import Orphans, stream_profiles
from perturbgen.profiles.table import VALUES, Profiles

log = logging.getLogger(__name__)

_IDS: Final = ("site_id", "well_id", "cell_type")
_PLACE: Final = ("experiment", "plate", "well", "site")
_DRUG: Final = ("disease_condition", "treatment", "treatment_conc", "SMILES")
RXRX1_COLUMNS: Final = [*_IDS, "dataset", *_PLACE, "well_type", "sirna", "sirna_id"]
RXRX19_COLUMNS: Final = [*_IDS, *_PLACE, *_DRUG]
_ABOUT: Final = ("gene", "treatment", "SMILES", "concentration", "perturbation_type", "cell_type")
RXRX3_COLUMNS: Final = ["well_id", "experiment_name", "plate", "address", *_ABOUT]
# RxRx19 has no vehicle label: the untreated wells are the controls, infected or not.
HEALTHY: Final = "disease_condition=Mock|UV Inactivated SARS-CoV-2"
DISEASED: Final = "disease_condition=Active SARS-CoV-2 & treatment="
RXRX3_CORE: Final = "metadata_rxrx3_core.csv"
_RXRX3_FULL: Final = "metadata_rxrx3.csv"
# All other columns are text: a well A01 or an id of digits must not become a number.
_NUMBERS: Final = ("plate", "site", "sirna_id", "treatment_conc", "concentration")
_WELL_TYPES: Final = ("treatment", "positive_control", "negative_control")
_GUIDE: Final = re.compile(r"^(.+)_guide_(\d+)$")

_Layout = Literal["auto", "2020", "kaggle"]
_ReadLabels = Callable[[Path], pd.DataFrame]


def kind_of_source(path: str | Path) -> str:
    """``bbbc021``, ``rxrx1``, ``rxrx1-kaggle``, ``rxrx19``, ``rxrx3``, ``folder`` or ``table``."""
    path = Path(path)
    if not path.is_dir():
        return "table"
    if (path / VALUES).exists() or (path / MATRIX).exists():
        return "folder"
    # these have a table of their own name; RxRx1 and RxRx19 both call theirs metadata.csv
    for name, kind in (
        (bbbc021.IMAGES, "bbbc021"),
        (RXRX3_CORE, "rxrx3"),
        (_RXRX3_FULL, "rxrx3"),
        ("train.csv", "rxrx1-kaggle"),
    ):
        if find_optional(path, name):
            return kind
    metadata = find_optional(path, "metadata.csv")
    if metadata:
        header = read_header(metadata)
        for column, kind in (("sirna_id", "rxrx1"), ("disease_condition", "rxrx19")):
            if column in header:
                return kind
    raise InputError(
        f"{path} holds no profiles that are known here",
        expected="a profile folder, BBBC021, RxRx1, RxRx19a/b, RxRx3(-core), or a csv/parquet with "
        "Metadata_ columns",
    )


@contextmanager
def opened(path: str | Path, *, key: str | None = None) -> Iterator[Profiles]:
    """The profiles of a path; streamed embeddings lie in a temporary folder while they are open.

    ``key`` is :func:`perturbgen.profiles.read_profiles`'s, for a file.
    """
    kind = kind_of_source(path)
    if kind in STREAMED:
        with tempfile.TemporaryDirectory() as folder:
            yield stream_embeddings(path, Path(folder) / "profiles")[0]
    elif kind == "rxrx1-kaggle":
        raise InputError(
            f"{path} has plate maps but no profiles",
            expected="embeddings.csv beside metadata.csv",
            fix="perturbgen images check reads the plate maps",
        )
    elif kind == "bbbc021":
        yield bbbc021.read_bbbc021(path)
    else:
        yield read_profiles(path, key=key)


def stream_embeddings(path: str | Path, out: str | Path) -> tuple[Profiles, Orphans]:
    """The embeddings of RxRx1, RxRx19 or RxRx3 with their labels, as a profile folder ``out``."""
    read_metadata, files, key = STREAMED[kind_of_source(path)]
    meta = read_metadata(Path(path))
    return stream_profiles(files(Path(path)), meta, key=key, out=out, where=str(path))


def read_rxrx1_metadata(path: str | Path, *, layout: _Layout = "auto") -> pd.DataFrame:
    """One row a site (2020) or a well (Kaggle, which names no sites), of a folder or metadata.csv.

    Columns as in ``RXRX1_COLUMNS``; Kaggle has no ThermoFisher names (``sirna``) and no siRNA for
    its test wells: missing.
    """
    path = Path(path)
    if layout == "auto":
        layout = "kaggle" if path.is_dir() and find_optional(path, "train.csv") else "2020"
    is_new = layout == "2020"
    meta = (
        _read_sites(path, RXRX1_COLUMNS, required=RXRX1_COLUMNS) if is_new else _read_kaggle(path)
    )
    unknown = ~meta["well_type"].isin(_WELL_TYPES)
    if unknown.any():
        raise SchemaError(
            f"{path}: well_type {meta.loc[unknown, 'well_type'].iloc[0]!r}",
            expected="treatment, positive_control or negative_control",
        )
    return meta


def _read_sites(path: Path, columns: list[str], *, required: list[str]) -> pd.DataFrame:
    """``metadata.csv`` of RxRx1 or RxRx19: one row a site, of which the id repeats the labels."""
    path = find_table(path, "metadata.csv")
    meta = _read_labels(path, columns, required=required)
    _check_ids(meta["site_id"], _well_ids(meta) + "_" + meta["site"].astype(str), path)
    return meta


def _read_labels(path: Path, columns: list[str], *, required: list[str]) -> pd.DataFrame:
    """These columns of a table; the ``required`` have values, and the first of them is unique."""
    text = [name for name in columns if name not in _NUMBERS]
    meta = read_frame(path, columns=columns, text=text)[columns]
    require_values(meta, required, required[0], path)
    require_unique(meta[required[0]], required[0], path)
    return meta


def _well_ids(meta: pd.DataFrame) -> pd.Series:
    return meta["experiment"] + "_" + meta["plate"].astype(str) + "_" + meta["well"]


def _check_ids(ids: pd.Series, built: pd.Series, path: Path) -> None:
    """Each id is made of its row's own labels."""
    # of a table that was sorted by one column alone every id and every label is still a valid one
    wrong = ids != built
    if wrong.any():
        raise SchemaError(
            f"{path}: {int(wrong.sum())} ids contradict their labels, "
            f"the first {ids[wrong].iloc[0]!r}",
            expected=f"{built[wrong].iloc[0]!r} from its experiment, plate, well and site",
            cause="columns shifted or sorted apart",
        )


def _read_kaggle(folder: Path) -> pd.DataFrame:
    """The competition's four tables as one, a row a well.

    Classes 0 to 1107 are treatments, above them controls.
    """
    parts = []
    text = ["id_code", "experiment", "well", "well_type"]
    for name in ("train", "train_controls", "test", "test_controls"):
        dataset, _, controls = name.partition("_")
        wanted = ["id_code", "experiment", "plate", "well"]
        wanted += [] if name == "test" else ["sirna"]  # which is what was to be predicted
        wanted += ["well_type"] if controls else []
        table = read_frame(find_table(folder, f"{name}.csv"), columns=wanted, text=text)
        parts.append(table.assign(dataset=dataset))
        if not controls:
            parts[-1]["well_type"] = "treatment"
    meta = pd.concat(parts, ignore_index=True)
    require_unique(meta["id_code"], "id_code", folder)
    _check_ids(meta["id_code"], _well_ids(meta), folder)
    meta = meta.rename(columns={"id_code": "well_id", "sirna": "sirna_id"})
    meta = meta.astype({"sirna_id": "Int64"})
    meta["cell_type"] = meta["experiment"].str.rsplit("-", n=1).str[0]
    return meta[[name for name in RXRX1_COLUMNS if name in meta]]


def _read_rxrx19_metadata(path: Path) -> pd.DataFrame:
    """A row a site; ``smiles`` is SMILES without its CXSMILES tail.

    Rows without a condition are kept, ``disease_condition`` missing: they are wells, though nothing
    says of what.
    """
    required = ["site_id", "experiment", "plate", "well", "site"]
    meta = _read_sites(path, RXRX19_COLUMNS, required=required)
    absent = int(meta["disease_condition"].isna().sum())
    if absent:
        what = "%d of %d sites have no disease_condition; they are kept and belong to no control"
        log.warning(what, absent, len(meta))
    # the tail (CXSMILES) marks racemates and the like, and is no part of a SMILES
    return meta.assign(smiles=meta["SMILES"].str.split(" |", n=1, regex=False).str[0])


def _read_rxrx3_metadata(folder: Path) -> pd.DataFrame:
    """One row a well; ``guide`` is the guide's number where the treatment is a knock-out."""
    path = find_optional(folder, RXRX3_CORE) or find_table(folder, _RXRX3_FULL)
    required = ["well_id", "experiment_name", "plate", "treatment", "perturbation_type"]
    meta = _read_labels(path, RXRX3_COLUMNS, required=required)
    unknown = meta[~meta["perturbation_type"].isin(["CRISPR", "COMPOUND"])]
    if len(unknown):
        raise SchemaError(
            f"{path}: perturbation_type {unknown['perturbation_type'].iloc[0]!r}",
            expected="CRISPR or COMPOUND",
        )
    guides = meta["treatment"].str.extract(_GUIDE)[1]
    return meta.assign(guide=pd.to_numeric(guides).astype("Int64"))


def _rxrx3_parquet(folder: Path) -> list[Path]:
    """One file (core), or one a plate (full)."""
    # sorted: rows come in the same order on every file system
    paths = sorted(require_folder(folder).glob("*embeddings.parquet"))
    paths = paths or sorted(folder.glob("*/Plate*/embeddings.parquet"))
    if not paths:
        raise InputError(
            f"no embeddings in {folder}",
            expected="*embeddings.parquet, or gene-001/Plate1/embeddings.parquet",
        )
    return paths


def _csv_embeddings(folder: Path) -> list[Path]:
    return [find_table(folder, "embeddings.csv")]


# By kind: how labels are read, the files of embeddings (which may not fit into memory), their ids.
STREAMED: Final[dict[str, tuple[_ReadLabels, Callable[[Path], list[Path]], str]]] = {
    "rxrx1": (partial(read_rxrx1_metadata, layout="2020"), _csv_embeddings, "site_id"),
    "rxrx19": (_read_rxrx19_metadata, _csv_embeddings, "site_id"),
    "rxrx3": (_read_rxrx3_metadata, _rxrx3_parquet, "well_id"),
}
