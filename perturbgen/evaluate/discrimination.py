"""Whether a prediction is nearer to its own truth than to the truth of other perturbations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from perturbgen.evaluate.rowwise import Array, divide, norms

Distance = Literal["cosine", "euclidean", "l1"]


def discrimination(truth: Array, prediction: Array, groups: Array, *, distance: Distance = "cosine") -> Array:
    """Share of the other conditions of the group whose truth is farther from the prediction than its own (conditions,).

    Ties count ½, so that any constant prediction has mean ½ exactly; 1 is perfect. ``groups`` (conditions,) says who is
    compared with whom; NaN where a group has one member. Cosine distance is blind to the size of a prediction, which
    the others are not: inflating predictions raises them.
    """
    result = np.full(len(truth), np.nan)
    for members in each_group(groups):
        if len(members) > 1:
            result[members] = rank_share(distances(prediction[members], truth[members], distance))
    return result


def each_group(groups: Array) -> Iterator[Array]:
    """The positions of each group's members, in order of first appearance."""
    names: dict[object, list[int]] = {}
    for position, name in enumerate(groups):
        names.setdefault(name, []).append(position)
    yield from (np.array(members) for members in names.values())


def rank_share(distances: Array) -> Array:
    """Share of each row's other entries above its diagonal one, ties ½ (conditions,), from (conditions, conditions)."""
    own = np.diag(distances)[:, None]
    farther = (distances > own).sum(axis=1)
    equal = (distances == own).sum(axis=1) - 1
    return (farther + equal / 2) / (len(distances) - 1)


def distances(prediction: Array, truth: Array, kind: Distance) -> Array:
    """Distances (predictions, truths) between rows; those of identical predictions are identical.

    A row of zeros has cosine similarity 0 with everything.
    """
    if kind == "l1":
        from scipy.spatial.distance import cdist

        return cdist(prediction, truth, "cityblock")
    products = prediction @ truth.T
    if kind == "cosine":
        return -round_off(divide(products, norms(prediction)[:, None] * norms(truth)[None]), 1.0)
    squares = np.square(truth).sum(axis=1)
    return round_off(squares[None] - 2 * products, squares.max(initial=0) + np.abs(products).max(initial=0))


def round_off(values: Array, scale: float) -> Array:
    """Values without their last digits, in which a matrix product of equal rows may differ."""
    return np.round(values / scale, 12) if scale > 0 else values
