"""Image files by plate, well, site and channel, never by row; what a source holds, checked."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.console import track
from perturbgen.core.errors import InputError, SchemaError, shorten
from perturbgen.core.files import BROKEN, require_file, require_folder
from perturbgen.core.tables import find_optional
from perturbgen.images import bbbc021
from perturbgen.images.readers import (
    STREAMED,
    kind_of_source,
    opened,
    read_rxrx1_metadata,
    stream_embeddings,
)
from perturbgen.images.rxrx1 import PlatePlan
from perturbgen.profiles import Profiles
from perturbgen.profiles.table import blocks

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


@dataclass(frozen=True)
class FieldFiles:
    """The files of each field (plate, well, site), by channel, and every channel that occurs."""

    files: dict[tuple[str, str, int], dict[int, Path]]
    channels: list[int]

    @classmethod
    def find(cls, root: str | Path) -> FieldFiles:
        """All images of a folder; a channel that occurs twice in a field is an error.

        RxRx trees (``.../HUVEC-01/Plate1/B02_s1_w1.png``; the plate is called ``HUVEC-01_1``),
        single files (``HUVEC-01_1_B02_w1.png``, site 1 where none is named) and BBBC021's tables.
        """
        root = require_folder(root, "folder of images")
        is_table = find_optional(root, bbbc021.IMAGES)
        images = (_table_images if is_table else _tree_images)(root)
        images = images.sort_values([*_KEY, "channel"], ignore_index=True)
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
        files: dict[tuple[str, str, int], dict[int, Path]] = {}
        rows = images[[*_KEY, "channel", "path"]].itertuples(index=False, name=None)
        for plate, well, site, channel, path in rows:
            files.setdefault((str(plate), str(well), int(site)), {})[int(channel)] = path
        return cls(files, sorted(int(channel) for channel in images["channel"].unique()))

    def whole(self) -> dict[tuple[str, str, int], dict[int, Path]]:
        """The fields that have all channels."""
        return {k: files for k, files in self.files.items() if len(files) == len(self.channels)}


def _tree_images(root: Path) -> pd.DataFrame:
    """One row a file of a tree: plate, well, site, channel, path."""
    rows = [row for path in sorted(root.rglob("*.png")) if (row := _parse_path(path, root))]
    if not rows:
        raise InputError(
            f"no images of a known layout in {root}",
            expected="{experiment}/Plate{n}/{well}_s{site}_w{channel}.png, or BBBC021's tables "
            "beside its folders",
        )
    return pd.DataFrame(rows)


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
    return files[[path.exists() for path in files["path"]]]


def _read_channel(path: str | Path) -> np.ndarray:
    """One grey image (height, width), uint8 or uint16."""
    from PIL import Image

    path = require_file(path, "image")
    known = (OSError, SyntaxError, ValueError, TypeError, EOFError)
    try:
        with warnings.catch_warnings():
            # Pillow only warns of a TIFF that ends too soon, and fills up with zeros
            warnings.simplefilter("error")
            with Image.open(path) as image:
                # Pillow passes over the checksums of a PNG's pixels unless it is asked, and
                # afterwards the image has to be opened anew
                image.verify()
            with Image.open(path) as image:
                _require_strips(image)
                pixels = np.array(image)
    except (*known, Image.DecompressionBombError, Warning) as error:
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


def _require_strips(image: Any) -> None:
    """The strips of a TIFF that is not compressed hold the rows of the picture, and no others.

    Pillow reads by the picture's shape alone. A count of 0 is an old writer's way to leave it out.
    """
    tags = getattr(image, "tag_v2", {})
    compression, samples = int(tags.get(259, 1)), int(tags.get(277, 1))
    if 279 not in tags or compression != 1 or samples != 1:
        return
    width, height = image.size
    bits = [int(n) for n in np.ravel(tags.get(258, 1))]
    per_row = -(-width * bits[0] // 8)
    each = min(int(tags.get(278, height)), height) or height
    wanted = [min(each, height - first) * per_row for first in range(0, height, each)]
    found = [int(n) for n in np.ravel(tags[279])]
    # less than a row more is padding
    if len(found) != len(wanted) or any(
        n and not need <= n < need + per_row for n, need in zip(found, wanted, strict=True)
    ):
        raise ValueError(
            f"its {len(found)} strips have {sum(found):,} bytes, but {width} x {height} pixels of "
            f"{bits[0]} bits take {sum(wanted):,} in {len(wanted)}"
        )


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


_Lines = list[dict[str, Any]]


def check_source(source: Path, *, limit: int) -> _Lines:
    """Findings about the profiles of a source, its plates and, where there are any, its images."""
    # a folder of images without tables is a source, too
    try:
        kind = kind_of_source(source)
    except InputError:
        return _check_images(FieldFiles.find(source), limit=limit)
    lines = [_finding("kind", kind)]
    if kind == "rxrx1-kaggle":
        lines += _check_plan(read_rxrx1_metadata(source))
    elif kind in STREAMED:
        lines += _check_streamed(source, kind)
    else:
        with opened(source) as profiles:
            lines += _check_profiles(profiles)
    if source.is_dir():
        with suppress(InputError):  # tables without images are no mistake
            lines += _check_images(FieldFiles.find(source), limit=limit)
    return lines


def _check_streamed(source: Path, kind: str) -> _Lines:
    """As :func:`_check_profiles`, and which rows have no partner in the other table."""
    # joined as ingest joins them: what has no partner is known only when all rows were seen
    with tempfile.TemporaryDirectory() as folder:
        profiles, orphans = stream_embeddings(source, Path(folder) / "profiles")
        lines = _check_profiles(profiles)
    for what, names in (
        ("profiles without labels", orphans.without_labels),
        ("labels without a profile", orphans.without_values),
    ):
        lines.append(_finding(what, f"{len(names)}: {shorten(names, 2)}" if names else "none"))
    if kind == "rxrx1":
        lines += _check_plan(profiles.meta)
        lines.append(_finding("wells with a site missing", len(_missing_sites(profiles.meta))))
    return lines


def _check_profiles(profiles: Profiles) -> _Lines:
    """Size, plates, values that are no numbers, features that never vary, rows that are copies."""
    low, high = np.full(len(profiles.features), np.inf), np.full(len(profiles.features), -np.inf)
    bad, seen = 0, set()
    for rows in blocks(len(profiles)):
        values = np.asarray(profiles.values[rows])
        bad += int((~np.isfinite(values)).any(axis=1).sum())
        # fmin and fmax pass over NaN, which are counted beside
        low, high = np.fmin(low, np.fmin.reduce(values)), np.fmax(high, np.fmax.reduce(values))
        # hashes, not rows: the embeddings of RxRx19a are 300,000 x 1,024
        seen |= {hash(row.tobytes()) for row in values}
    plates = [name for name in ("experiment", "experiment_name", "plate") if name in profiles.meta]
    constant = profiles.features[~(high > low)]
    copies = len(profiles) - len(seen)
    lines = [
        _finding("rows and features", f"{len(profiles):,} x {len(profiles.features):,}"),
        _finding("rows with NaN or infinite values", bad, ok=not bad),
        _finding(
            "features that never vary",
            shorten(constant, 3) if len(constant) else "none",
            ok=not len(constant),
        ),
        _finding("rows equal to another row", copies, ok=not copies),
    ]
    if plates:
        lines.insert(1, _finding("plates", profiles.meta.groupby(plates).ngroups))
    return lines


def _check_plan(meta: pd.DataFrame) -> _Lines:
    """RxRx1: wells, controls on each plate, groups of siRNAs and how the plates turn."""
    # the metadata of 2020 have a row a site
    wells = meta.drop_duplicates("well_id")
    controls = wells[wells["well_type"] != "treatment"].groupby(["experiment", "plate"]).size()
    groups = PlatePlan.sirna_groups(wells)
    plan = PlatePlan.of(wells, groups)
    without = wells.groupby(["experiment", "plate"]).ngroups - len(controls)
    return [
        _finding("wells", len(wells)),
        _finding("controls on a plate", f"{controls.min()} to {controls.max()}", ok=not without),
        _finding("groups of siRNAs", " ".join(str(n) for n in groups.value_counts().sort_index())),
        _finding(
            "patterns of groups on plates",
            " ".join(str(n) for n in plan.counts()),
            ok=plan.is_rotation(),
        ),
    ]


def _missing_sites(meta: pd.DataFrame) -> pd.DataFrame:
    """RxRx1's wells with one site: they happen (154 in the release) and must not shift anything."""
    if "site" not in meta:
        raise InputError(
            "this metadata has a row a well, not a site", expected="the metadata.csv of 2020"
        )
    count = meta.groupby(["experiment", "plate", "well"]).size().rename("sites")
    return count[count < 2].reset_index()


def _check_images(found: FieldFiles, *, limit: int) -> _Lines:
    """Findings about a set of images: fields, channels, missing ones, sizes, depths, broken files.

    At most ``limit`` fields are decoded.
    """
    whole = found.whole()
    short = [" ".join(map(str, key)) for key in found.files if key not in whole]
    # evenly spread, since the first fields are all of one plate
    decoded = list(whole.values())[:: max(1, -(-len(whole) // limit))]
    kinds: set[str] = set()
    broken: list[str] = []
    for files in track(decoded, "images"):
        try:
            stack = read_field(files, found.channels)
        except (InputError, SchemaError) as error:
            broken.append(error.what)
        else:
            kinds.add(f"{stack.shape[1]} x {stack.shape[2]}, {stack.dtype}")
    return [
        _finding("fields (plate, well, site)", len(found.files)),
        _finding("channels", ", ".join(f"w{channel}" for channel in found.channels)),
        _finding("fields without all channels", shorten(short) if short else "none", ok=not short),
        _finding("decoded fields", len(decoded)),
        _finding("sizes and depths", "; ".join(sorted(kinds)) or "none", ok=len(kinds) == 1),
        _finding("unreadable or mixed", "; ".join(broken[:3]) if broken else "none", ok=not broken),
    ]


def _finding(what: str, found: object, *, ok: bool = True) -> dict[str, Any]:
    """One line of a check."""
    return {"what": what, "found": found, "ok": ok}
