"""Comparisons of arrays at a stated tolerance."""

from __future__ import annotations

import numpy as np


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest relative difference; relative to 1e-3 of the typical size near zero."""
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    assert found.shape == expected.shape
    assert (np.isnan(found) == np.isnan(expected)).all()
    floor = 1e-3 * np.nanmedian(np.abs(expected))
    return float(np.nanmax(np.abs(found - expected) / np.maximum(np.abs(expected), floor)))


def close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """The largest absolute difference is below the tolerance."""
    np.testing.assert_allclose(
        np.asarray(found, dtype=float), np.asarray(expected, dtype=float), rtol=0, atol=tolerance
    )
