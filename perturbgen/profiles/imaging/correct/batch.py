"""How well a batch can be told from its controls, before a correction and after, on controls it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perturbgen.errors import SchemaError
from perturbgen.profiles.imaging.correct.base import Correction
from perturbgen.profiles.imaging.correct.scale import ControlScaler
from perturbgen.profiles.imaging.groups import group_means, grouping
from perturbgen.profiles.imaging.profiles import Profiles

MOST = 2000  # wells whose neighbours are sought; more say nothing new


@dataclass(frozen=True)
class Predictability:
    """How much of the batch is in the held-out controls, before a correction and after it.

    ``before`` and ``after``: balanced accuracy with which the nearest neighbours name the batch. It sees what is left
    of a shift in a thousand features together, so it falls late. ``variance_before`` and ``variance_after``: the share
    of the variance that lies between batches (omega squared, about 0 where there is no effect).
    """

    before: float
    after: float
    chance: float
    variance_before: float
    variance_after: float
    rows: int


def batch_predictability(
    correction: Correction, profiles: Profiles, *, control: np.ndarray, batch: Sequence[str], split: Sequence[str],
    well: Sequence[str], rng: np.random.Generator, neighbours: int = 5,
) -> Predictability:  # fmt: skip
    """Fit on half of the controls of each group of ``split`` (a plate), name the batch of the other half by neighbours.

    ``well`` are the labels of a well: its sites stay on one side and are never each other's neighbours. Before the
    correction the features are standardised on the same half, so that their units do not decide.
    """
    controls = profiles.where(control)
    fitted = part_of_each(*(grouping(controls.meta, names)[1] for names in (split, well)), withhold=0.5, rng=rng)
    if not (fitted.any() and (~fitted).any()):
        raise SchemaError(f"no {'/'.join(split)} has two control wells: none can be held out", expected="two or more")
    before = ControlScaler().fit(controls.values, controls.meta, control=fitted)
    after = correction.fit(controls.values, controls.meta, control=fitted)
    held = controls.where(~fitted)
    rows = np.sort(rng.permutation(len(held))[:MOST])
    keys, codes = grouping(held.meta, batch)
    wells = grouping(held.meta, well)[1]
    views = [step.transform(held.values, held.meta)[rows] for step in (before, after)]
    told = [neighbour_accuracy(view, codes[rows], wells[rows], neighbours) for view in views]
    shares = [batch_variance(view, codes[rows]) for view in views]
    return Predictability(told[0], told[1], 1 / len(keys), shares[0], shares[1], rows=len(rows))


def batch_variance(values: np.ndarray, batch: np.ndarray) -> float:
    """Omega squared over all features: (SS_between - (k - 1) MS_within) / (SS_total + MS_within), k batches."""
    names, codes = np.unique(batch, return_inverse=True)
    count, means = group_means(values, np.arange(len(values)), codes, len(names))
    within = float(((values - means[codes]) ** 2).sum())
    total = float(((values - values.mean(axis=0)) ** 2).sum())
    noise = within / max(len(values) - len(names), 1)
    return (total - within - (len(count) - 1) * noise) / max(total + noise, 1e-300)


def part_of_each(groups: np.ndarray, wells: np.ndarray, *, withhold: float, rng: np.random.Generator) -> np.ndarray:
    """A mask of the rows to fit on: a share of the wells of each group is left out at random, one at least of two.

    ``groups`` and ``wells`` (rows,) number the group and the well of each row.
    """
    fitted = np.zeros(len(groups), bool)
    for group in range(groups.max() + 1):
        names = np.unique(wells[groups == group])
        held = max(int(withhold * len(names)), 1)
        taken = rng.permutation(names)[: max(len(names) - held, 1)]
        fitted |= (groups == group) & np.isin(wells, taken)
    return fitted


def neighbour_accuracy(values: np.ndarray, batch: np.ndarray, well: np.ndarray, neighbours: int) -> float:
    """Mean over batches of the share of rows whose nearest rows of other wells are mostly of their own batch."""
    square = (values**2).sum(axis=1)
    distance = square[:, None] + square[None] - 2 * values @ values.T
    distance[well[:, None] == well[None]] = np.inf
    nearest = batch[np.argsort(distance, axis=1, kind="stable")[:, :neighbours]]
    votes = np.zeros((len(values), batch.max() + 1))
    for rank in range(nearest.shape[1]):  # ties go to the batch of the nearest row
        np.add.at(votes, (np.arange(len(values)), nearest[:, rank]), 1 + 0.01 * (neighbours - rank) / neighbours)
    correct = votes.argmax(axis=1) == batch
    return float(np.mean([correct[batch == name].mean() for name in np.unique(batch)]))
