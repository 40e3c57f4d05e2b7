"""BBBC021 in small: weeks of plates, a few mechanisms, both file-name conventions, 16-bit TIFF.

Cells are bright spots whose look a treatment changes, seen through the stains of their week.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from perturbgen.core.files import atomic_path
from perturbgen.images.bbbc021 import CHANNELS, IMAGE_COLUMNS, IMAGES, MECHANISMS, PROFILES

_N = len(CHANNELS)
_STRENGTH = (0.7, 1.0)  # of the first and the last concentration
_CELLS = 7
_RADIUS = 3.0
# SD over mechanisms of log brightness of each channel, log number, log radius, log length, and of
# the grain of each channel.
_SPREAD = np.array([0.15] * _N + [0.25, 0.2, 0.45] + [0.35] * _N)
_OWN = 0.6  # a compound's own part, in units of the mechanisms' spread


def blobs(
    rng: np.random.Generator,
    *,
    shape: tuple[int, int],
    cells: int = 6,
    radius: float = 4.0,
    long: float = 1.0,
) -> np.ndarray:
    """Bright spots, from 0 to 1, at random places and turned, ``long`` times as long as wide."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    centres = rng.random((cells, 2)) * shape
    dy, dx = y[None] - centres[:, 0, None, None], x[None] - centres[:, 1, None, None]
    if long != 1.0:
        angle = rng.random(cells)[:, None, None] * np.pi
        along = np.cos(angle) * dx + np.sin(angle) * dy
        across = np.cos(angle) * dy - np.sin(angle) * dx
        dy, dx = along / np.sqrt(long), across * np.sqrt(long)
    return np.exp(-(dy**2 + dx**2) / (2 * radius**2)).max(axis=0)


def _treatment_looks(
    wells: pd.DataFrame, rng: np.random.Generator, *, effect: float
) -> dict[tuple[str, str], np.ndarray]:
    """How cells look under each (compound, concentration), (9,); 0 without a mechanism."""
    mechanisms = sorted(set(wells["moa"].dropna()) - {"DMSO"})
    shared = {name: rng.normal(0, _SPREAD) for name in mechanisms}
    looks = {}
    for compound, part in wells.groupby("compound"):
        moa, own = part["moa"].iloc[0], _OWN * rng.normal(0, _SPREAD)
        doses = sorted(part["concentration"].unique(), key=float)
        for dose in doses:
            strength = effect * _STRENGTH[0 if dose == doses[0] and len(doses) > 1 else 1]
            look = strength * (shared[moa] + own) if moa in shared else np.zeros(len(_SPREAD))
            looks[str(compound), str(dose)] = look
    return looks


def _plate_stains(
    wells: pd.DataFrame, rng: np.random.Generator, *, spread: float
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Gain and ground (channels,) of each plate; plates of a week are alike."""
    names = wells["week"].unique()
    weeks = {name: (rng.normal(0, spread, _N), 300 + 400 * rng.random(_N)) for name in names}
    stains = {}
    for plate, week in dict(zip(wells["plate"], wells["week"], strict=True)).items():
        stain, ground = weeks[week]
        gain = np.exp(stain + rng.normal(0, spread / 2, _N))
        stains[plate] = gain, ground + 50 * rng.random(_N)
    return stains


def _draw_cells(
    look: np.ndarray, rng: np.random.Generator, *, shape: tuple[int, int]
) -> np.ndarray:
    """One field, (channels, height, width), about 0 to 1."""
    bright, grain = look[:_N], look[-_N:]
    number, radius, long = np.exp(look[_N:-_N])
    cells = max(1, int(rng.poisson(_CELLS * number)))
    ground = blobs(rng, shape=shape, cells=cells, radius=_RADIUS * radius, long=max(long, 1 / long))
    # nuclei are small, the other channels spread around them
    stack = [np.exp(b) * ground**power for b, power in zip(bright, (2.0, 1.0, 0.6), strict=True)]
    texture = 2 * rng.random((_N, *shape)) - 1
    grained = zip(stack, grain, texture, strict=True)
    return np.array([image * (1 + np.abs(g) * noise) for image, g, noise in grained])


def _spoil(stack: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The field out of focus, or with dust that shines in one channel, as often as not."""
    from scipy.ndimage import gaussian_filter

    if rng.random() < 0.5:
        return np.array([gaussian_filter(image, 4.0) for image in stack])
    dusty, channel = stack.copy(), rng.integers(_N)
    dusty[channel] += 4 * blobs(rng, shape=stack.shape[1:], cells=1, radius=6.0)
    return dusty


_VEHICLE_WELLS = ("B02", "C02", "D02", "E11", "F11", "G11")
_MECHANISM_NAMES = (
    "Actin disruptors",
    "DNA damage",
    "Eg5 inhibitors",
    "Microtubule stabilizers",
    "Protein synthesis",
)
_CONCENTRATIONS = ("0.003", "10")
_BY_WEEK = 2  # compounds of a mechanism in each week
_FEATURES = 24


@dataclass(frozen=True)
class ImageLayout:
    """How much there is of everything, and how the images differ."""

    weeks: int = 2
    replicates: int = 2  # plates of a week, all of the same treatments
    mechanisms: int = 3
    sites: int = 2
    shape: tuple[int, int] = (32, 40)
    effect: float = 1.0  # how far mechanisms are from the vehicle
    stain: float = 0.3  # SD of a channel's log brightness between weeks; half of it between plates
    artefacts: int = 0  # fields that are out of focus or hold dust, listed in artefacts.csv

    @property
    def names(self) -> list[str]:
        """Week1, Week2, ..."""
        return [f"Week{number}" for number in range(1, self.weeks + 1)]


def write_bbbc021(
    root: str | Path, *, seed: int = 0, images: bool = True, layout: ImageLayout | None = None
) -> Path:
    """A folder with the image and mechanism tables, per-well profiles, and the images.

    Each mechanism has two compounds in each week, and its effect differs a little between weeks: a
    neighbour of the same week is easier to find, so NSC is above NSCB. One well of each plate is
    UNKNOWN, and one compound has no mechanism.
    """
    rng, layout = np.random.default_rng(seed), layout or ImageLayout()
    wells = _well_table(layout)
    with atomic_path(root) as part:
        part.mkdir()
        table = _image_table(wells, rng, sites=layout.sites)
        table.to_csv(part / f"{IMAGES}.gz", index=False)
        _mechanism_table(layout).to_csv(part / MECHANISMS, index=False)
        _profile_table(wells, rng).to_csv(part / f"{PROFILES}.gz", index=False)
        if images:
            _write_images(part, table, wells, rng, layout)
    return Path(root)


def _compounds(layout: ImageLayout) -> pd.DataFrame:
    """compound, moa (None for the last), week."""
    rows: list[tuple[str, str | None, str]] = [
        (f"compound {'ABCDE'[m]}{i + 1}", name, layout.names[i // _BY_WEEK])
        for m, name in enumerate(_MECHANISM_NAMES[: layout.mechanisms])
        for i in range(_BY_WEEK * layout.weeks)
    ]
    rows.append(("nobody knows", None, layout.names[-1]))
    return pd.DataFrame(rows, columns=["compound", "moa", "week"])


def _well_table(layout: ImageLayout) -> pd.DataFrame:
    """plate, well, week, replicate, compound, concentration, moa."""
    rows: list[tuple[object, ...]] = []
    free = [f"{row}{column:02d}" for row in "BCDEFG" for column in range(3, 11)]
    for week in layout.names:
        here = _compounds(layout).query("week == @week")
        treated = [
            (name, c, moa)
            for name, moa in zip(here["compound"], here["moa"], strict=True)
            for c in _CONCENTRATIONS
        ]
        placed = zip(free, [*treated, ("UNKNOWN", "0.003", None)], strict=False)
        wells = [(well, "DMSO", "0", "DMSO") for well in _VEHICLE_WELLS]
        wells += [(well, *treatment) for well, treatment in placed]
        for replicate in range(1, layout.replicates + 1):
            plate = f"{week}_{22120 + replicate}"
            rows += [(plate, week, replicate, *well) for well in wells]
    names = ["plate", "week", "replicate", "well", "compound", "concentration", "moa"]
    return pd.DataFrame(rows, columns=names)


def _image_table(wells: pd.DataFrame, rng: np.random.Generator, *, sites: int) -> pd.DataFrame:
    """The 13 columns of ``BBBC021_v1_image.csv``; every second week's names have a prefix."""
    rows: list[dict[str, object]] = []
    for well in wells.to_dict("records"):
        # real weeks have names of either convention
        even = int(well["week"].removeprefix("Week")) % 2 == 0
        prefix = f"{well['week']}_180607_" if even else ""
        for site in range(1, sites + 1):
            row: dict[str, object] = {"TableNumber": 4, "ImageNumber": 233 + len(rows)}
            for channel, number in CHANNELS.items():
                guid = str(uuid.UUID(bytes=rng.bytes(16))).upper()
                name = f"{prefix}{well['well']}_s{site}_w{number}{guid}.tif"
                row[f"Image_FileName_{channel}"] = name
                row[f"Image_PathName_{channel}"] = f"{well['week']}/{well['plate']}"
            rows.append(row | {theirs: well[ours] for theirs, ours in IMAGE_COLUMNS.items()})
    return pd.DataFrame(rows)


def _mechanism_table(layout: ImageLayout) -> pd.DataFrame:
    """``BBBC021_v1_moa.csv``: concentrations written with six decimals, as the real table does."""
    known = _compounds(layout).dropna(subset="moa")
    rows = [
        {"compound": name, "concentration": f"{float(c):.6f}", "moa": moa}
        for name, moa in zip(known["compound"], known["moa"], strict=True)
        for c in _CONCENTRATIONS
    ]
    return pd.DataFrame([*rows, {"compound": "DMSO", "concentration": "0.0", "moa": "DMSO"}])


def _profile_table(wells: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Per-well features: a mechanism's effect, its week's share, a plate's shift and noise."""
    known = [name for name in _MECHANISM_NAMES if name in set(wells["moa"])]
    shared = dict(zip(known, 1.5 * rng.normal(size=(len(known), _FEATURES)), strict=True))
    by_week = {
        (name, week): 4 * rng.normal(size=_FEATURES)
        for name in known
        for week in wells["week"].unique()
    }
    shift = {plate: rng.normal(size=_FEATURES) for plate in wells["plate"].unique()}
    values = []
    for plate, week, moa in zip(wells["plate"], wells["week"], wells["moa"], strict=True):
        effect = shared[moa] + by_week[moa, week] if moa in shared else 0
        values.append(shift[plate] + effect + rng.normal(size=_FEATURES))
    keys = wells[["plate", "well"]].rename(
        columns={"plate": "Image_Metadata_Plate", "well": "Image_Metadata_Well"}
    )
    names = [f"Cells_Feature_{i}" for i in range(_FEATURES)]
    return pd.concat([keys, pd.DataFrame(np.array(values), columns=names)], axis=1)


def _write_images(
    root: Path,
    table: pd.DataFrame,
    wells: pd.DataFrame,
    rng: np.random.Generator,
    layout: ImageLayout,
) -> None:
    """A 16-bit TIFF for each file of the table."""
    from PIL import Image

    looks = _treatment_looks(wells, rng, effect=layout.effect)
    stains = _plate_stains(wells, rng, spread=layout.stain)
    spoilt = set(rng.permutation(len(table))[: layout.artefacts].tolist())
    labels = wells.set_index(["plate", "well"])
    for number, row in enumerate(table.to_dict("records")):
        plate, well = row["Image_Metadata_Plate_DAPI"], row["Image_Metadata_Well_DAPI"]
        label = labels.loc[(plate, well)]
        look = looks[label["compound"], label["concentration"]]
        stack = _draw_cells(look, rng, shape=layout.shape)
        if number in spoilt:
            stack = _spoil(stack, rng)
        gain, ground = stains[plate]
        for channel, image, g, b in zip(CHANNELS, stack, gain, ground, strict=True):
            path = root / row[f"Image_PathName_{channel}"] / row[f"Image_FileName_{channel}"]
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = b + 6000 * g * image + 50 * rng.random(layout.shape)
            Image.fromarray(pixels.clip(0, 65535).astype(np.uint16)).save(path, format="TIFF")
    if spoilt:
        keys = table.iloc[sorted(spoilt)].rename(columns=IMAGE_COLUMNS)
        site = keys["Image_FileName_DAPI"].str.extract(r"_s(\d)_w", expand=False)
        listed = keys[["plate", "well"]].assign(site=site)
        listed.to_csv(root / "artefacts.csv", index=False)
