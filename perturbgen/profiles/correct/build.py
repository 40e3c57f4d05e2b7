"""A correction put together from named steps, applied to profiles of any size, and judged.

A correction pulls the controls that it is fitted on together, in as many directions as they are
many. So a share of each plate's control wells is withheld from the fit, and the label ``fitted``
says which wells were not.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError, suggest
from perturbgen.profiles.correct.base import Correction, Pipeline
from perturbgen.profiles.correct.steps import Compress, ControlScaler, Coral, NestedCentre, Sphering
from perturbgen.profiles.table import VALUES, Groups, Profiles

log = logging.getLogger(__name__)

_MOST = 2000  # wells whose neighbours are sought; more say nothing new
_NEIGHBOURS = 5
_SCALES = ("sd", "mad", "percentile", "none")


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


def correct_to(
    out: Path,
    step: Correction,
    profiles: Profiles,
    *,
    control: np.ndarray,
    withhold: float,
    batch: Sequence[str],
    inner: Sequence[str],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Fit on controls but a withheld share, and write the corrected profiles as a folder.

    Block by block: neither they nor the result need to fit into memory. Returns how well a
    ``batch`` is told before and after: no line without batches.
    """
    # 454 features of pure noise, whitened on 24 wells: 98 to 100 % of null compounds were active
    # against these wells, 0 % with a quarter of them withheld.
    fitted = rows_to_fit(profiles, control, withhold=withhold, rng=rng)
    rows = []
    if batch:
        rows = _told_apart(step, profiles, control=control, batch=batch, inner=inner, rng=rng)
    step.fit(profiles.values, profiles.meta, control=fitted)
    profiles = profiles.marked(fitted)
    first = step.apply(np.asarray(profiles.values[:1], np.float64), profiles.meta.iloc[:1])
    with tempfile.TemporaryDirectory(dir=out.parent if out.parent.is_dir() else None) as folder:
        shape = (len(profiles), first.shape[1])
        path = Path(folder) / VALUES
        mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        step.transform(profiles.values, profiles.meta, out=mapped)
        profiles.with_values(mapped).write(out)
    return rows


def rows_to_fit(
    profiles: Profiles, control: np.ndarray, *, withhold: float, rng: np.random.Generator
) -> np.ndarray:
    """The mask of controls without a share of each plate's control wells, one at least of two."""
    if not withhold:  # as corrections were before there was a choice
        return control
    plate = [name for name in ("experiment", "plate") if name in profiles.meta]
    groups = Groups.of(profiles.meta[control], plate).codes
    wells = profiles.well_numbers()[control]
    fitted = control.copy()
    fitted[control] = _part_of_each(groups, wells, withhold=withhold, rng=rng)
    return fitted


def _part_of_each(
    groups: np.ndarray, wells: np.ndarray, *, withhold: float, rng: np.random.Generator
) -> np.ndarray:
    """A mask of the rows to fit on: a share of the wells of each group is left out at random.

    ``groups`` and ``wells`` (rows,) number the group and the well of each row.
    """
    fitted = np.zeros(len(groups), bool)
    for group in range(groups.max() + 1):
        names = np.unique(wells[groups == group])
        held = max(int(withhold * len(names)), 1)
        # whole wells: sites of a well share its noise, and would tell on each other
        taken = rng.permutation(names)[: max(len(names) - held, 1)]
        fitted |= (groups == group) & np.isin(wells, taken)
    return fitted


def batch_predictability(
    correction: Correction,
    profiles: Profiles,
    *,
    control: np.ndarray,
    batch: Sequence[str],
    split: Sequence[str],
    well: Sequence[str],
    rng: np.random.Generator,
) -> pd.DataFrame:
    """How well the batch of half of the controls is told from the other half: before, and after.

    The halves are of each group of ``split`` (a plate). ``well`` are the labels of a well: its
    sites stay on one side and are never each other's neighbours. Columns:

    * ``nearest neighbours``: balanced accuracy with which they name the batch (``chance``: by
      chance). It sees what is left of a shift in a thousand features together, so it falls late.
    * ``variance between``: the share of the variance that lies between batches (omega squared,
      about 0 where there is no effect).
    """
    controls = profiles.where(control)
    groups, wells = (Groups.of(controls.meta, names).codes for names in (split, well))
    fitted = _part_of_each(groups, wells, withhold=0.5, rng=rng)
    if not (fitted.any() and (~fitted).any()):
        raise SchemaError(
            f"no {'/'.join(split)} has two control wells: none can be withheld",
            expected="two or more",
        )
    # standardised on the same half, so that before the correction units do not decide either
    before = ControlScaler().fit(controls.values, controls.meta, control=fitted)
    after = correction.fit(controls.values, controls.meta, control=fitted)
    held = controls.where(~fitted)
    rows = np.sort(rng.permutation(len(held))[:_MOST])
    batches = Groups.of(held.meta, batch)
    codes, wells = batches.codes[rows], Groups.of(held.meta, well).codes[rows]
    views = [step.transform(held.values, held.meta)[rows] for step in (before, after)]
    found = {
        "nearest neighbours": [_neighbour_accuracy(view, codes, wells) for view in views],
        "chance": 1 / len(batches),
        "variance between": [_batch_variance(view, codes) for view in views],
    }
    return pd.DataFrame(found, index=["before", "after"])


def _told_apart(
    step: Correction,
    profiles: Profiles,
    *,
    control: np.ndarray,
    batch: Sequence[str],
    inner: Sequence[str],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Batch predictability as two rows of a table; none, with a warning, if it cannot be asked."""
    # a well is withheld with all of its sites, even where the correction centres each by itself
    groups = [name for name in inner if name != "site"] or list(batch)
    try:
        found = batch_predictability(
            step,
            profiles,
            control=control,
            batch=batch,
            split=groups,
            well=profiles.well_labels,
            rng=rng,
        )
    except SchemaError as error:
        log.warning("batch predictability not measured: %s", error.what)
        return []
    rows: Any = found.reset_index(names="").to_dict("records")
    return list(rows)


def _neighbour_accuracy(values: np.ndarray, batch: np.ndarray, well: np.ndarray) -> float:
    """Mean over batches of the share of rows whose nearest rows are mostly of their own batch."""
    square = (values**2).sum(axis=1)
    distance = square[:, None] + square[None] - 2 * values @ values.T
    # a well's own sites are nearest to it whatever the batch
    distance[well[:, None] == well[None]] = np.inf
    nearest = batch[np.argsort(distance, axis=1, kind="stable")[:, :_NEIGHBOURS]]
    votes = np.zeros((len(values), batch.max() + 1))
    for rank in range(nearest.shape[1]):
        # ties go to the batch of the nearest row
        vote = 1 + 0.01 * (_NEIGHBOURS - rank) / _NEIGHBOURS
        np.add.at(votes, (np.arange(len(values)), nearest[:, rank]), vote)
    correct = votes.argmax(axis=1) == batch
    return float(np.mean([correct[batch == name].mean() for name in np.unique(batch)]))


def _batch_variance(values: np.ndarray, batch: np.ndarray) -> float:
    """Omega squared over all features: (SS_between - (k - 1) MS_within) / (SS_total + MS_within).

    Unlike the plain share it does not grow with the number k of batches where there is no effect.
    """
    # It falls to 0 after centring, where neighbours still tell batches: a plate shares the noise of
    # its centre.
    names, codes = np.unique(batch, return_inverse=True)
    count, means = Groups(list(names), codes).means(values)
    within = float(((values - means[codes]) ** 2).sum())
    total = float(((values - values.mean(axis=0)) ** 2).sum())
    noise = within / max(len(values) - len(names), 1)
    return (total - within - (len(count) - 1) * noise) / max(total + noise, 1e-300)
