"""A correction put together from named steps, and applied to profiles of any size.

How well a batch can be told from its controls, before a correction and after, on controls it has not seen.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError, suggest
from perturbgen.profiles.correct.base import Correction, Pipeline
from perturbgen.profiles.correct.centre import Compress, ControlScaler, NestedCentre
from perturbgen.profiles.correct.whiten import Coral, Sphering
from perturbgen.profiles.groups import group_means, grouping
from perturbgen.profiles.table import Profiles

_MOST = 2000  # wells whose neighbours are sought; more say nothing new


@dataclass(frozen=True)
class _Predictability:
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
    correction: Correction,
    profiles: Profiles,
    *,
    control: np.ndarray,
    batch: Sequence[str],
    split: Sequence[str],
    well: Sequence[str],
    rng: np.random.Generator,
    neighbours: int = 5,
) -> _Predictability:
    """Fit on half of the controls of each group of ``split`` (a plate), name the batch of the other half by neighbours.

    ``well`` are the labels of a well: its sites stay on one side and are never each other's neighbours. Before the
    correction the features are standardised on the same half, so that their units do not decide.
    """
    controls = profiles.where(control)
    fitted = _part_of_each(
        *(grouping(controls.meta, names)[1] for names in (split, well)), withhold=0.5, rng=rng
    )
    if not (fitted.any() and (~fitted).any()):
        raise SchemaError(
            f"no {'/'.join(split)} has two control wells: none can be held out",
            expected="two or more",
        )
    before = ControlScaler().fit(controls.values, controls.meta, control=fitted)
    after = correction.fit(controls.values, controls.meta, control=fitted)
    held = controls.where(~fitted)
    rows = np.sort(rng.permutation(len(held))[:_MOST])
    keys, codes = grouping(held.meta, batch)
    wells = grouping(held.meta, well)[1]
    views = [step.transform(held.values, held.meta)[rows] for step in (before, after)]
    told = [_neighbour_accuracy(view, codes[rows], wells[rows], neighbours) for view in views]
    shares = [_batch_variance(view, codes[rows]) for view in views]
    return _Predictability(told[0], told[1], 1 / len(keys), shares[0], shares[1], rows=len(rows))


def _batch_variance(values: np.ndarray, batch: np.ndarray) -> float:
    """Omega squared over all features: (SS_between - (k - 1) MS_within) / (SS_total + MS_within), k batches."""
    names, codes = np.unique(batch, return_inverse=True)
    count, means = group_means(values, np.arange(len(values)), codes, len(names))
    within = float(((values - means[codes]) ** 2).sum())
    total = float(((values - values.mean(axis=0)) ** 2).sum())
    noise = within / max(len(values) - len(names), 1)
    return (total - within - (len(count) - 1) * noise) / max(total + noise, 1e-300)


def _part_of_each(
    groups: np.ndarray, wells: np.ndarray, *, withhold: float, rng: np.random.Generator
) -> np.ndarray:
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


def _neighbour_accuracy(
    values: np.ndarray, batch: np.ndarray, well: np.ndarray, neighbours: int
) -> float:
    """Mean over batches of the share of rows whose nearest rows of other wells are mostly of their own batch."""
    square = (values**2).sum(axis=1)
    distance = square[:, None] + square[None] - 2 * values @ values.T
    distance[well[:, None] == well[None]] = np.inf
    nearest = batch[np.argsort(distance, axis=1, kind="stable")[:, :neighbours]]
    votes = np.zeros((len(values), batch.max() + 1))
    for rank in range(nearest.shape[1]):  # ties go to the batch of the nearest row
        np.add.at(
            votes,
            (np.arange(len(values)), nearest[:, rank]),
            1 + 0.01 * (neighbours - rank) / neighbours,
        )
    correct = votes.argmax(axis=1) == batch
    return float(np.mean([correct[batch == name].mean() for name in np.unique(batch)]))


log = logging.getLogger(__name__)

_SCALES = ("sd", "mad", "percentile", "none")
_FITTED = "fitted"  # label of the wells that a correction was fitted on


def correction(
    *,
    centre: Sequence[str] = (),
    strength: float = 0.0,
    scale: str = "sd",
    compress: bool = False,
    whiten: float | None = None,
    align: Sequence[str] = (),
) -> Pipeline:
    """The steps that were asked for, in this order: scale, compress, centre, whiten, align."""
    if scale not in _SCALES:
        raise InputError(
            f"--scale {scale!r}", expected=", ".join(_SCALES), fix=suggest(scale, _SCALES)
        )
    steps: list[Correction] = []
    if scale != "none":
        steps.append(ControlScaler(method=scale))  # type: ignore[arg-type]
    if compress:
        steps.append(Compress())
    if centre:
        steps.append(NestedCentre(centre, strength=strength))
    if whiten is not None:
        steps.append(Sphering(ridge=whiten))
    if align:
        steps.append(Coral(align))
    if not steps:
        raise InputError(
            "no correction was asked for",
            expected="--scale, --centre, --compress, --whiten or --align",
        )
    return Pipeline(*steps)


def told_apart(
    step: Correction,
    profiles: Profiles,
    *,
    control: np.ndarray,
    batch: Sequence[str],
    inner: Sequence[str],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Batch predictability as a table of two rows; none, with a warning, where no group has two controls.

    A well is held out with all of its sites, even where the correction centres each site by itself.
    """
    groups = [name for name in inner if name != "site"] or list(batch)
    try:
        found = batch_predictability(
            step,
            profiles,
            control=control,
            batch=batch,
            split=groups,
            well=well_labels(profiles.meta),
            rng=rng,
        )
    except SchemaError as error:
        log.warning("batch predictability not measured: %s", error.what)
        return []
    sides = {
        "before": (found.before, found.variance_before),
        "after": (found.after, found.variance_after),
    }
    return [
        {
            "": side,
            "nearest neighbours": accuracy,
            "chance": found.chance,
            "variance between": share,
        }
        for side, (accuracy, share) in sides.items()
    ]


def well_labels(meta: pd.DataFrame) -> list[str]:
    """The labels that name a well."""
    if "well_id" in meta:
        return ["well_id"]
    names = [name for name in ("experiment", "plate", "well") if name in meta]
    if "well" not in names:
        raise SchemaError(
            "these profiles name no wells", expected="a column well_id, or plate and well"
        )
    return names


def _well_numbers(meta: pd.DataFrame) -> np.ndarray:
    """(rows,) the number of each row's well; each row is one where none are named."""
    return (
        grouping(meta, well_labels(meta))[1]
        if {"well_id", "well"} & set(meta)
        else np.arange(len(meta))
    )


def rows_to_fit(
    meta: pd.DataFrame, control: np.ndarray, *, withhold: float, rng: np.random.Generator
) -> np.ndarray:
    """The mask of controls without a share of each plate's control wells, drawn at random: one at least of two.

    A correction pulls the controls it is fitted on together, so activity is measured against the others.
    """
    if not withhold:
        return control
    plate = [name for name in ("experiment", "plate") if name in meta]
    groups, wells = grouping(meta[control], plate)[1], _well_numbers(meta)[control]
    fitted = control.copy()
    fitted[control] = _part_of_each(groups, wells, withhold=withhold, rng=rng)
    return fitted


def fitted_rows(profiles: Profiles) -> np.ndarray:
    """The mask of rows that a correction was fitted on, as their label says; none without it."""
    if _FITTED not in profiles.meta:
        return np.zeros(len(profiles), bool)
    if profiles.meta[_FITTED].dtype != bool:
        raise SchemaError(
            f"{profiles.source}: label {_FITTED!r} is {profiles.meta[_FITTED].dtype}",
            expected="True or False, as images correct writes it",
            fix="rename the column",
        )
    return profiles.meta[_FITTED].to_numpy()


def marked(profiles: Profiles, fitted: np.ndarray) -> Profiles:
    """The profiles with the label of wells that this correction, or one before it, was fitted on."""
    wells = _well_numbers(profiles.meta)
    seen = np.isin(wells, wells[fitted | fitted_rows(profiles)])
    return replace(profiles, meta=profiles.meta.assign(**{_FITTED: seen}))


def write_corrected(step: Correction, profiles: Profiles, out: Path) -> Path:
    """Corrected profiles as a folder, block by block: neither they nor the result need to fit into memory."""
    columns = step.apply(np.asarray(profiles.values[:1], np.float64), profiles.meta.iloc[:1]).shape[
        1
    ]
    with tempfile.TemporaryDirectory(dir=out.parent if out.parent.is_dir() else None) as folder:
        mapped = np.lib.format.open_memmap(
            f"{folder}/values.npy", mode="w+", dtype=np.float32, shape=(len(profiles), columns)
        )
        step.transform(profiles.values, profiles.meta, out=mapped)
        return profiles.with_values(mapped).write(out)
