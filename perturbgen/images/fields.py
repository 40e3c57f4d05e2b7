"""Image files by (plate, well, site) and channel: finding, reading, checking; never by row number."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError, shorten
from perturbgen.core.files import require_file, require_folder
from perturbgen.images import bbbc021

_KEY: Final = ["plate", "well", "site"]
_BROKEN: Final = "a download or a copy that broke off"

_WELL = r"(?P<well>[A-Z]{1,2}\d\d)"
_TREE = re.compile(
    rf"(?:^|/)(?P<experiment>[^/]+)/Plate(?P<plate>\d+)/{_WELL}_s(?P<site>\d)_w(?P<channel>\d)\.png$"
)
_FLAT = re.compile(
    rf"(?:^|/)(?P<experiment>[^/_]+)_(?P<plate>\d+)_{_WELL}(?:_s(?P<site>\d))?_w(?P<channel>\d)\.png$"
)


def find_images(root: str | Path) -> pd.DataFrame:
    """One row a file: plate, well, site, channel, path.

    RxRx trees (``.../HUVEC-01/Plate1/B02_s1_w1.png``; the plate is called ``HUVEC-01_1``), single files
    (``HUVEC-01_1_B02_w1.png``, whose site is 1 where none is named) and BBBC021's tables.
    """
    root = require_folder(root, "folder of images")
    if (root / f"{bbbc021.IMAGES}.gz").exists() or (root / bbbc021.IMAGES).exists():
        return _table_images(root)
    rows = [row for path in sorted(root.rglob("*.png")) if (row := _parse_path(path, root))]
    if not rows:
        raise InputError(
            f"no images of a known layout in {root}",
            expected="{experiment}/Plate{n}/{well}_s{site}_w{channel}.png, or BBBC021's tables beside its folders",
        )
    return pd.DataFrame(rows).sort_values([*_KEY, "channel"], ignore_index=True)


def _parse_path(path: Path, root: Path) -> dict[str, Any] | None:
    """The key, channel and path of one file, or None where its name says nothing."""
    name = path.relative_to(root).as_posix()
    found = _TREE.search(name) or _FLAT.search(name)
    if not found:
        return None
    plate, site = f"{found['experiment']}_{found['plate']}", int(found["site"] or 1)
    return {
        "plate": plate,
        "well": found["well"],
        "site": site,
        "channel": int(found["channel"]),
        "path": path,
    }


def _table_images(root: Path) -> pd.DataFrame:
    """The files that BBBC021's image table names and that are there."""
    table = bbbc021.read_images(root)
    parts = [
        table[_KEY].assign(channel=number, path=[root / name for name in table[channel]])
        for channel, number in bbbc021.CHANNELS.items()
    ]
    files = pd.concat(parts, ignore_index=True)
    return files[[path.exists() for path in files["path"]]].sort_values(
        [*_KEY, "channel"], ignore_index=True
    )


def fields(images: pd.DataFrame) -> dict[tuple[str, str, int], dict[int, Path]]:
    """The files of each field, by channel; a channel that occurs twice is an error."""
    twice = images.duplicated([*_KEY, "channel"])
    if twice.any():
        first = images[twice].iloc[0]
        raise SchemaError(
            f"two files are channel {first['channel']} of {first['plate']} {first['well']} s{first['site']}",
            expected="one",
            fix=str(first["path"]),
        )
    found: dict[tuple[str, str, int], dict[int, Path]] = {}
    for plate, well, site, channel, path in images[[*_KEY, "channel", "path"]].itertuples(
        index=False, name=None
    ):
        found.setdefault((str(plate), str(well), int(site)), {})[int(channel)] = path
    return found


def _read_channel(path: str | Path) -> np.ndarray:
    """One grey image (height, width), uint8 or uint16."""
    from PIL import Image

    path = require_file(path, "image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of a TIFF that ends too soon
            with Image.open(path) as image:
                pixels = np.array(image)
    except (OSError, SyntaxError, ValueError, EOFError, UserWarning) as error:
        raise InputError(
            f"{path} cannot be read: {error}", expected="a whole PNG or TIFF", cause=_BROKEN
        ) from None
    if pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"{path} is {pixels.dtype} of shape {pixels.shape}",
            expected="one grey channel of 8 or 16 bits",
        )
    return pixels


def read_field(files: Mapping[int, Path], channels: list[int]) -> np.ndarray:
    """The channels of one field, (channels, height, width); all there, of one size and one depth."""
    absent = [channel for channel in channels if channel not in files]
    if absent:
        some = next(iter(files.values()), None)
        raise SchemaError(
            f"channels {shorten(absent)} are missing beside {some}",
            expected=f"channels {shorten(channels, 8)}",
            cause="an incomplete download",
        )
    stack = [_read_channel(files[channel]) for channel in channels]
    kinds = {
        (image.shape, str(image.dtype)): files[channel]
        for image, channel in zip(stack, channels, strict=True)
    }
    if len(kinds) > 1:
        text = "; ".join(
            f"{path.name}: {shape[0]} x {shape[1]}, {depth}"
            for (shape, depth), path in kinds.items()
        )
        raise SchemaError(
            f"channels of one field differ: {text}",
            expected="one size and one bit depth",
            cause="files of two releases, or thumbnails among them",
        )
    return np.stack(stack)


def check_images(images: pd.DataFrame, *, limit: int | None = None) -> list[dict[str, Any]]:
    """Findings about a set of images: fields and channels, missing ones, sizes and depths, unreadable files.

    At most ``limit`` fields are decoded, spread evenly over the set.
    """
    found = fields(images)
    channels = sorted(images["channel"].unique().tolist())
    short = [" ".join(map(str, key)) for key, files in found.items() if len(files) < len(channels)]
    complete = [key for key, files in found.items() if len(files) == len(channels)]
    step = max(1, -(-len(complete) // limit)) if limit else 1
    kinds, broken = _decode_all([found[key] for key in complete[::step]], channels)
    return [
        finding("fields (plate, well, site)", len(found)),
        finding("channels", ", ".join(f"w{channel}" for channel in channels)),
        finding("fields without all channels", shorten(short) if short else "none", ok=not short),
        finding("decoded fields", len(complete[::step])),
        finding("sizes and depths", "; ".join(sorted(kinds)) or "none", ok=len(kinds) == 1),
        finding("unreadable or mixed", "; ".join(broken[:3]) if broken else "none", ok=not broken),
    ]


def _decode_all(chosen: list[dict[int, Path]], channels: list[int]) -> tuple[set[str], list[str]]:
    """The sizes and depths found, and what could not be read."""
    from perturbgen.core.console import track

    kinds: set[str] = set()
    broken: list[str] = []
    for files in track(chosen, "images"):
        try:
            stack = read_field(files, channels)
        except (InputError, SchemaError) as error:
            broken.append(error.what)
        else:
            kinds.add(f"{stack.shape[1]} x {stack.shape[2]}, {stack.dtype}")
    return kinds, broken


def finding(what: str, found: object, *, ok: bool = True) -> dict[str, Any]:
    """One line of a check."""
    return {"what": what, "found": found, "ok": ok}
