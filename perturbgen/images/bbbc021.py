"""BBBC021 (Caie et al. 2010): tables of images and mechanisms, file names, per-well profiles."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError, shorten
from perturbgen.core.tables import find_table, read_frame, require_unique, require_values
from perturbgen.profiles import Profiles

VEHICLE: Final = "DMSO"
CHANNELS: Final = {"DAPI": 1, "Tubulin": 2, "Actin": 4}
IMAGES: Final = "BBBC021_v1_image.csv"
MECHANISMS: Final = "BBBC021_v1_moa.csv"
PROFILES: Final = "ljosa_jbiomolscreen_2013_per_well_mean.csv"
IMAGE_COLUMNS: Final = {
    "Image_Metadata_Plate_DAPI": "plate",
    "Image_Metadata_Well_DAPI": "well",
    "Replicate": "replicate",
    "Image_Metadata_Compound": "compound",
    "Image_Metadata_Concentration": "concentration",
}

# The channel is one digit and the GUID follows at once: w43CD51CBC-... is channel 4.
_NAME: Final = re.compile(
    r"(?:^|_)([A-H]\d\d)_s([1-4])_w([124])([0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12})\.tif$"
)


class _FileName(NamedTuple):
    """What an image's file name says; the plate is said by its folder."""

    well: str
    site: int
    channel: int
    guid: str


def _parse_file_name(name: str) -> _FileName:
    """``G10_s1_w1<GUID>.tif``, or the same after a prefix such as ``Week2_180607_``."""
    found = _NAME.search(name)
    if not found:
        raise InputError(
            f"{name!r} is no BBBC021 image name",
            expected="{well}_s{1-4}_w{1|2|4}{GUID}.tif, with or without a prefix",
        )
    well, site, channel, guid = found.groups()
    return _FileName(well, int(site), int(channel), guid)


def _concentration(text: str) -> str:
    """A concentration as the one text it is joined by: 3, 3.000000 and 3e0 are all ``3``.

    Text, not a float: pybbbc stores float16, which turns 0.003 into 0.0030003 and joins with
    nothing.
    """
    try:
        number = Decimal(str(text).strip())
    except InvalidOperation:
        raise SchemaError(
            f"concentration {text!r} is no number", expected="micromolar, such as 0.003"
        ) from None
    return f"{number.normalize():f}" if number else "0"


def _by_value(numbers: pd.Series, where: str | Path) -> pd.Series:
    """Concentrations in joinable text, not rounded to float16 on the way: 0.0030003 for 0.003."""
    # worked out once for each distinct text: there are 13,200 rows and a few dozen concentrations
    text = numbers[~numbers.duplicated()]
    values = text.astype(float).to_numpy()
    short = np.array([float(f"{value:.3g}") for value in values])
    rounded = (values != short) & (values == values.astype(np.float16).astype(float))
    if rounded.any():
        raise SchemaError(
            f"{where}: concentrations were stored as float16: {shorten(text[rounded], 3)}",
            expected="decimal numbers such as 0.003",
            cause="an HDF5 file of pybbbc, whose concentrations are float16",
            fix="take concentrations from BBBC021_v1_image.csv, by plate and well",
        )
    return numbers.map({number: _concentration(number) for number in text})


def read_images(folder: str | Path, *, mechanisms: bool = False) -> pd.DataFrame:
    """``BBBC021_v1_image.csv``: a row a field, keyed by (plate, well, site), with its files.

    Columns plate, well, site, week, replicate, compound, concentration (text), and a path for each
    channel, relative to the folder of images; with ``mechanisms`` also moa (if known), of
    ``BBBC021_v1_moa.csv``.
    """
    path = find_table(folder, IMAGES)
    files = {name: (f"Image_PathName_{name}", f"Image_FileName_{name}") for name in CHANNELS}
    wanted = [*IMAGE_COLUMNS, *(column for pair in files.values() for column in pair)]
    # concentrations too are text, by which they are joined (see _concentration)
    raw = read_frame(path, columns=wanted, text=[name for name in wanted if name != "Replicate"])
    require_values(raw, wanted, "Image_FileName_DAPI", path)
    images = raw.rename(columns=IMAGE_COLUMNS)[list(IMAGE_COLUMNS.values())]
    images["concentration"] = _by_value(images["concentration"], path)
    names = {
        channel: [_parse_file_name(name) for name in raw[file]]
        for channel, (_, file) in files.items()
    }
    # rows of this table are joined to wells: a shift of one column would relabel images silently
    _check_names(raw, names, path)
    images.insert(2, "site", [name.site for name in names["DAPI"]])
    # plates are called Week4_27481, and a week's plates were stained together
    images.insert(3, "week", images["plate"].str.split("_").str[0])
    for channel, (place, file) in files.items():
        images[channel] = raw[place] + "/" + raw[file]
    keys = images["plate"] + " " + images["well"] + " s" + images["site"].astype(str)
    require_unique(keys, "image (plate, well, site)", path)
    if not mechanisms:
        return images
    # a treatment with two mechanisms would have every field twice
    treatment = ["compound", "concentration"]
    return images.merge(_read_mechanisms(folder), on=treatment, how="left", validate="m:1")


def _check_names(raw: pd.DataFrame, names: dict[str, list[_FileName]], path: Path) -> None:
    """The files of a row are of one field, of their column's channel and of the row's well."""
    wells = raw["Image_Metadata_Well_DAPI"].to_numpy()
    for channel, parsed in names.items():
        for row, (name, first) in enumerate(zip(parsed, names["DAPI"], strict=True)):
            if (name.channel, name.well, name.site) != (CHANNELS[channel], wells[row], first.site):
                file = raw[f"Image_FileName_{channel}"].iloc[row]
                raise SchemaError(
                    f"{path}, row {row + 2}: {file!r} is not the {channel} image "
                    f"of well {wells[row]}, site {first.site}",
                    expected=f"w{CHANNELS[channel]} of the same well and site",
                    cause="columns shifted against each other",
                )


def _read_mechanisms(folder: str | Path) -> pd.DataFrame:
    """``BBBC021_v1_moa.csv``: compound, concentration (text), moa."""
    path = find_table(folder, MECHANISMS)
    columns = ["compound", "concentration", "moa"]
    table = read_frame(path, columns=columns, text=columns)
    require_values(table, columns, "compound", path)
    table["concentration"] = _by_value(table["concentration"], path)
    require_unique(table["compound"] + " " + table["concentration"], "treatment", path)
    return table


def _read_wells(folder: str | Path) -> pd.DataFrame:
    """One row a well: plate, well, week, replicate, compound, concentration, moa (if known)."""
    columns = ["plate", "well", "week", "replicate", "compound", "concentration", "moa"]
    wells = read_images(folder, mechanisms=True)[columns].drop_duplicates()
    require_unique(wells["plate"] + " " + wells["well"], "well with two treatments", str(folder))
    return wells


def read_bbbc021(folder: str | Path, *, table: str = PROFILES) -> Profiles:
    """Per-well profiles of ``table``, their labels joined by plate and well, then by treatment."""
    path = find_table(folder, table)
    keys = ["Image_Metadata_Plate", "Image_Metadata_Well"]
    raw = read_frame(path, columns=keys, text=keys)
    raw = raw.rename(columns={keys[0]: "plate", keys[1]: "well"})
    require_unique(raw["plate"] + " " + raw["well"], "well", path)
    # validated: a well that joined twice would count twice among the replicates
    place = ["plate", "well"]
    meta = raw[place].merge(_read_wells(folder), on=place, how="left", validate="1:1")
    unknown = meta["compound"].isna()
    if unknown.any():
        names = (meta["plate"] + " " + meta["well"])[unknown]
        raise SchemaError(
            f"{path}: {len(names)} wells are not in {IMAGES}: {shorten(names)}",
            expected="every profiled well among the images",
            cause="tables of two releases",
        )
    features = raw.columns.drop(place)
    return Profiles(raw[features].to_numpy(np.float64), meta, features, str(path))
