"""Image files by plate, well, site and channel, never by row: found, read, checked, shown."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError, shorten
from perturbgen.core.files import BROKEN, atomic_path, require_file, require_folder
from perturbgen.core.tables import find_optional
from perturbgen.images import bbbc021

# What joins files to labels; tables and folders are in different orders, so row numbers are not.
_KEY: Final = ["plate", "well", "site"]

_WELL = r"(?P<well>[A-Z]{1,2}\d\d)"
_TREE = re.compile(
    rf"(?:^|/)(?P<experiment>[^/]+)/Plate(?P<plate>\d+)/{_WELL}"
    r"_s(?P<site>\d)_w(?P<channel>\d)\.png$"
)
_FLAT = re.compile(
    rf"(?:^|/)(?P<experiment>[^/_]+)_(?P<plate>\d+)_{_WELL}"
    r"(?:_s(?P<site>\d))?_w(?P<channel>\d)\.png$"
)


def find_images(root: str | Path) -> pd.DataFrame:
    """One row a file: plate, well, site, channel, path.

    RxRx trees (``.../HUVEC-01/Plate1/B02_s1_w1.png``; the plate is called ``HUVEC-01_1``), single
    files (``HUVEC-01_1_B02_w1.png``, site 1 where none is named) and BBBC021's tables.
    """
    root = require_folder(root, "folder of images")
    if find_optional(root, bbbc021.IMAGES):
        return _table_images(root)
    rows = [row for path in sorted(root.rglob("*.png")) if (row := _parse_path(path, root))]
    if not rows:
        raise InputError(
            f"no images of a known layout in {root}",
            expected="{experiment}/Plate{n}/{well}_s{site}_w{channel}.png, or BBBC021's tables "
            "beside its folders",
        )
    return pd.DataFrame(rows).sort_values([*_KEY, "channel"], ignore_index=True)


def _parse_path(path: Path, root: Path) -> dict[str, Any] | None:
    """The key, channel and path of one file, or None where its name says nothing."""
    name = path.relative_to(root).as_posix()
    found = _TREE.search(name) or _FLAT.search(name)
    if not found:
        return None
    plate, site = f"{found['experiment']}_{found['plate']}", int(found["site"] or 1)
    key = {"plate": plate, "well": found["well"], "site": site}
    return key | {"channel": int(found["channel"]), "path": path}


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
    # the same field under two prefixes would silently be read from whichever file came last
    twice = images.duplicated([*_KEY, "channel"])
    if twice.any():
        first = images[twice].iloc[0]
        raise SchemaError(
            f"two files are channel {first['channel']} of {first['plate']} {first['well']} "
            f"s{first['site']}",
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
            # Pillow only warns of a TIFF that ends too soon, and fills up with zeros
            warnings.simplefilter("error")
            with Image.open(path) as image:
                pixels = np.array(image)
    except (OSError, SyntaxError, ValueError, EOFError, UserWarning) as error:
        raise InputError(
            f"{path} cannot be read: {error}", expected="a whole PNG or TIFF", cause=BROKEN
        ) from None
    # an RGB picture is a preview: its three numbers are no channels of the microscope
    if pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"{path} is {pixels.dtype} of shape {pixels.shape}",
            expected="one grey channel of 8 or 16 bits",
        )
    return pixels


def read_field(files: Mapping[int, Path], channels: list[int]) -> np.ndarray:
    """The channels of one field, (channels, height, width): all, of one size and one depth."""
    absent = [channel for channel in channels if channel not in files]
    if absent:
        some = next(iter(files.values()), None)
        raise SchemaError(
            f"channels {shorten(absent)} are missing beside {some}",
            expected=f"channels {shorten(channels, 8)}",
            cause="an incomplete download",
        )
    stack = [_read_channel(files[channel]) for channel in channels]
    # thumbnails lie beside the originals in some releases
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


# The colour map published with RxRx1: each channel's colour, and the grey value shown in full.
_SIX: Final[tuple[tuple[str, tuple[int, int, int], int], ...]] = (
    ("w1 nuclei", (19, 0, 249), 51),
    ("w2 ER", (42, 255, 31), 107),
    ("w3 actin", (255, 0, 25), 64),
    ("w4 nucleoli, RNA", (45, 255, 252), 191),
    ("w5 mitochondria", (250, 0, 253), 89),
    ("w6 Golgi, membrane", (254, 255, 40), 191),
)
# RxRx19a has no mitochondria; its fifth channel is the stain of RxRx1's sixth.
_FIVE: Final = (*_SIX[:4], ("w5 Golgi, membrane", _SIX[5][1], _SIX[5][2]))
# BBBC021 is 16-bit and has no display range of its own: percentiles of the image.
_THREE: Final = (
    ("DAPI", (0, 0, 255), None),
    ("tubulin", (0, 255, 0), None),
    ("actin", (255, 0, 0), None),
)
MAPS: Final = {6: _SIX, 5: _FIVE, 3: _THREE}
GAP = 4
_CAPTION = 18


def _shown(image: np.ndarray, full: int | None) -> np.ndarray:
    """Brightness from 0 to 1: up to ``full``, or from the 0.1st to the 99.9th percentile."""
    # percentiles, since a single hot pixel would darken all others
    low, high = (0.0, float(full)) if full else np.percentile(image, [0.1, 99.9])
    return np.clip((image - low) / max(high - low, 1e-12), 0, 1)


class ChannelColours:
    """How so many channels are shown: each one's name, colour and grey value shown in full."""

    def __init__(self, channels: int) -> None:
        if channels not in MAPS:
            raise SchemaError(
                f"{channels} channels", expected=f"{', '.join(map(str, MAPS))} have a colour map"
            )
        self._map: Any = MAPS[channels]

    def layers(self, stack: np.ndarray) -> list[np.ndarray]:
        """Each channel of (channels, height, width) in colour, (height, width, 3) up to 255."""
        return [
            _shown(image, full)[..., None] * np.array(colour)
            for image, (_, colour, full) in zip(stack, self._map, strict=True)
        ]

    def tints(self) -> tuple[list[list[float]], list[float]]:
        """Each channel's colour and the brightness shown in full, from 0 to 1 (8-bit images)."""
        colours = [[part / 255 for part in colour] for _, colour, _ in self._map]
        return colours, [(full or 255) / 255 for _, _, full in self._map]

    def write_sheet(self, stack: np.ndarray, path: str | Path) -> Path:
        """Save a field as PNG: all its channels added up, and each alone."""
        from PIL import Image

        with atomic_path(path) as part:
            Image.fromarray(self._sheet(stack)).save(part)
        return Path(path)

    def _sheet(self, stack: np.ndarray) -> np.ndarray:
        """All channels added up and each alone, four to a row with names, uint8 RGB."""
        names = ["all channels", *(name for name, _, _ in self._map)]
        coloured = self.layers(stack)
        tiles = [
            np.clip(tile, 0, 255).astype(np.uint8) for tile in (np.sum(coloured, axis=0), *coloured)
        ]
        height, width = stack.shape[1] + _CAPTION + GAP, stack.shape[2] + GAP
        across = min(4, len(tiles))
        sheet = np.zeros((height * -(-len(tiles) // across), width * across, 3), np.uint8)
        for i, (name, tile) in enumerate(zip(names, tiles, strict=True)):
            top, left = height * (i // across), width * (i % across)
            sheet[top : top + _CAPTION, left : left + stack.shape[2]] = caption(
                name, stack.shape[2]
            )
            sheet[
                top + _CAPTION : top + _CAPTION + stack.shape[1], left : left + stack.shape[2]
            ] = tile
        return sheet


def caption(text: str, width: int) -> np.ndarray:
    """White letters on black, uint8 (CAPTION, width, 3)."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (width, _CAPTION))
    ImageDraw.Draw(strip).text((3, 3), text, fill=(255, 255, 255))
    return np.array(strip)
