"""Simple features of an image, without training: how bright, how even, how fine, which channels
lie together.

They stand for what a network has to beat, not for CellProfiler: no cell is found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.images.fields import read_field
from perturbgen.profiles import Profiles

_QUANTILES: Final = (5, 25, 50, 75, 95, 99)
_SCALES: Final = (1, 2, 4)  # pixels


def _feature_names(channels: Sequence[int]) -> list[str]:
    """The names of :func:`measure`'s features."""
    each = [
        "mean",
        "SD",
        *(f"quantile {q}" for q in _QUANTILES),
        *(f"detail {s}" for s in _SCALES),
        "slope",
        "bright area",
    ]
    pairs = [f"correlation w{a} w{b}" for a, b in combinations(channels, 2)]
    return [f"w{channel} {name}" for channel in channels for name in each] + pairs


def _measure(stack: np.ndarray) -> np.ndarray:
    """Features (features,) of a field (channels, height, width)."""
    images = stack.astype(np.float64)
    pairs = [_correlation(a, b) for a, b in combinations(images, 2)]
    return np.concatenate([*(_of_channel(image) for image in images), pairs])


def _of_channel(image: np.ndarray) -> np.ndarray:
    """Brightness, its quantiles, the SD of what is finer than 1, 2 and 4 pixels, slopes, and the
    share above half.
    """
    from scipy.ndimage import gaussian_filter

    detail = [(image - gaussian_filter(image, scale)).std() for scale in _SCALES]
    slope = np.hypot(*np.gradient(image)).mean()
    low, high = np.percentile(image, [1, 99])
    area = (image > (low + high) / 2).mean()
    return np.array(
        [image.mean(), image.std(), *np.percentile(image, _QUANTILES), *detail, slope, area]
    )


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson correlation of the pixels of two channels; 0 where one is empty."""
    spread = one.std() * other.std()
    return (
        float(((one - one.mean()) * (other - other.mean())).mean() / spread) if spread > 0 else 0.0
    )


def measured(
    files: Sequence[Mapping[int, Path]], meta: pd.DataFrame, channels: Sequence[int]
) -> Profiles:
    """Features of fields with their labels; ``files``, by channel, are of the rows of ``meta``."""
    from perturbgen.core.console import track

    values = np.array(
        [_measure(read_field(one, list(channels))) for one in track(list(files), "fields")]
    )
    return Profiles(values, meta, pd.Index(_feature_names(channels)), "simple image features")
