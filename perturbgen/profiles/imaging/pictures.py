"""Many channels as one picture: each channel has a colour, and the colours add."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from perturbgen.errors import SchemaError
from perturbgen.files import atomic_path

Colour = tuple[int, int, int]

# The colour map published with RxRx1: for each channel its colour, and the grey value that is shown in full.
SIX: Final[tuple[tuple[str, Colour, int], ...]] = (
    ("w1 nuclei", (19, 0, 249), 51),
    ("w2 ER", (42, 255, 31), 107),
    ("w3 actin", (255, 0, 25), 64),
    ("w4 nucleoli, RNA", (45, 255, 252), 191),
    ("w5 mitochondria", (250, 0, 253), 89),
    ("w6 Golgi, membrane", (254, 255, 40), 191),
)
# RxRx19a has no mitochondria; its fifth channel is the stain of RxRx1's sixth.
FIVE: Final = (*SIX[:4], ("w5 Golgi, membrane", SIX[5][1], SIX[5][2]))
# BBBC021 is 16-bit and has no display range of its own: percentiles of the image.
THREE: Final[tuple[tuple[str, Colour, None], ...]] = (
    ("DAPI", (0, 0, 255), None),
    ("tubulin", (0, 255, 0), None),
    ("actin", (255, 0, 0), None),
)
MAPS: Final = {6: SIX, 5: FIVE, 3: THREE}
GAP = 4
CAPTION = 18


def shown(image: np.ndarray, full: int | None) -> np.ndarray:
    """Brightness between 0 and 1, (height, width): up to ``full``, or from the 0.1st to the 99.9th percentile."""
    low, high = (0.0, float(full)) if full else np.percentile(image, [0.1, 99.9])
    return np.clip((image - low) / max(high - low, 1e-12), 0, 1)


def layers(stack: np.ndarray) -> list[np.ndarray]:
    """Each channel of (channels, height, width) in its colour, float (height, width, 3) up to 255."""
    if len(stack) not in MAPS:
        raise SchemaError(f"{len(stack)} channels", expected=f"{', '.join(map(str, MAPS))} have a colour map")
    return [
        shown(image, full)[..., None] * np.array(colour)
        for image, (_, colour, full) in zip(stack, MAPS[len(stack)], strict=True)
    ]


def colours(channels: int) -> tuple[list[list[float]], list[float]]:
    """The colour of each channel and the brightness that is shown in full, both from 0 to 1 (8-bit images)."""
    if channels not in MAPS:
        raise SchemaError(f"{channels} channels", expected=f"{', '.join(map(str, MAPS))} have a colour map")
    rows = MAPS[channels]
    return [[part / 255 for part in colour] for _, colour, _ in rows], [(full or 255) / 255 for _, _, full in rows]


def composite(stack: np.ndarray) -> np.ndarray:
    """All channels added up, uint8 (height, width, 3)."""
    return np.clip(np.sum(layers(stack), axis=0), 0, 255).astype(np.uint8)


def contact_sheet(stack: np.ndarray) -> np.ndarray:
    """The composite and each channel, four to a row, each with its name, uint8 (height, width, 3)."""
    names = ["all channels", *(name for name, _, _ in MAPS[len(stack)])]
    tiles = [composite(stack), *(np.clip(layer, 0, 255).astype(np.uint8) for layer in layers(stack))]
    height, width = stack.shape[1] + CAPTION + GAP, stack.shape[2] + GAP
    across = min(4, len(tiles))
    sheet = np.zeros((height * -(-len(tiles) // across), width * across, 3), np.uint8)
    for i, (name, tile) in enumerate(zip(names, tiles, strict=True)):
        top, left = height * (i // across), width * (i % across)
        sheet[top : top + CAPTION, left : left + stack.shape[2]] = caption(name, stack.shape[2])
        sheet[top + CAPTION : top + CAPTION + stack.shape[1], left : left + stack.shape[2]] = tile
    return sheet


def caption(text: str, width: int) -> np.ndarray:
    """White letters on black, uint8 (CAPTION, width, 3)."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (width, CAPTION))
    ImageDraw.Draw(strip).text((3, 3), text, fill=(255, 255, 255))
    return np.array(strip)


def write_picture(pixels: np.ndarray, path: str | Path) -> Path:
    """Save as PNG."""
    from PIL import Image

    with atomic_path(path) as part:
        Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8)).save(part)
    return Path(path)
