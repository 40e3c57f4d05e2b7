"""A correction put together from named steps, and applied to profiles of any size."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.errors import InputError, SchemaError, suggest
from perturbgen.profiles.imaging.correct.base import Correction, Pipeline
from perturbgen.profiles.imaging.correct.batch import batch_predictability, part_of_each
from perturbgen.profiles.imaging.correct.centre import NestedCentre
from perturbgen.profiles.imaging.correct.scale import Compress, ControlScaler
from perturbgen.profiles.imaging.correct.whiten import Coral, Sphering
from perturbgen.profiles.imaging.groups import grouping
from perturbgen.profiles.imaging.profiles import Profiles

log = logging.getLogger(__name__)

SCALES = ("sd", "mad", "percentile", "none")
FITTED = "fitted"  # label of the wells that a correction was fitted on


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
    if scale not in SCALES:
        raise InputError(f"--scale {scale!r}", expected=", ".join(SCALES), fix=suggest(scale, SCALES))
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
        raise InputError("no correction was asked for", expected="--scale, --centre, --compress, --whiten or --align")
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
            step, profiles, control=control, batch=batch, split=groups, well=well_labels(profiles.meta), rng=rng
        )
    except SchemaError as error:
        log.warning("batch predictability not measured: %s", error.what)
        return []
    sides = {"before": (found.before, found.variance_before), "after": (found.after, found.variance_after)}
    return [
        {"": side, "nearest neighbours": accuracy, "chance": found.chance, "variance between": share}
        for side, (accuracy, share) in sides.items()
    ]


def well_labels(meta: pd.DataFrame) -> list[str]:
    """The labels that name a well."""
    if "well_id" in meta:
        return ["well_id"]
    names = [name for name in ("experiment", "plate", "well") if name in meta]
    if "well" not in names:
        raise SchemaError("these profiles name no wells", expected="a column well_id, or plate and well")
    return names


def well_numbers(meta: pd.DataFrame) -> np.ndarray:
    """(rows,) the number of each row's well; each row is one where none are named."""
    return grouping(meta, well_labels(meta))[1] if {"well_id", "well"} & set(meta) else np.arange(len(meta))


def rows_to_fit(meta: pd.DataFrame, control: np.ndarray, *, withhold: float, rng: np.random.Generator) -> np.ndarray:
    """The mask of controls without a share of each plate's control wells, drawn at random: one at least of two.

    A correction pulls the controls it is fitted on together, so activity is measured against the others.
    """
    if not withhold:
        return control
    plate = [name for name in ("experiment", "plate") if name in meta]
    groups, wells = grouping(meta[control], plate)[1], well_numbers(meta)[control]
    fitted = control.copy()
    fitted[control] = part_of_each(groups, wells, withhold=withhold, rng=rng)
    return fitted


def fitted_rows(profiles: Profiles) -> np.ndarray:
    """The mask of rows that a correction was fitted on, as their label says; none without it."""
    if FITTED not in profiles.meta:
        return np.zeros(len(profiles), bool)
    if profiles.meta[FITTED].dtype != bool:
        raise SchemaError(f"{profiles.source}: label {FITTED!r} is {profiles.meta[FITTED].dtype}",
                          expected="True or False, as images correct writes it", fix="rename the column")  # fmt: skip
    return profiles.meta[FITTED].to_numpy()


def marked(profiles: Profiles, fitted: np.ndarray) -> Profiles:
    """The profiles with the label of wells that this correction, or one before it, was fitted on."""
    wells = well_numbers(profiles.meta)
    seen = np.isin(wells, wells[fitted | fitted_rows(profiles)])
    return replace(profiles, meta=profiles.meta.assign(**{FITTED: seen}))


def write_corrected(step: Correction, profiles: Profiles, out: Path) -> Path:
    """Corrected profiles as a folder, block by block: neither they nor the result need to fit into memory."""
    columns = step.apply(np.asarray(profiles.values[:1], np.float64), profiles.meta.iloc[:1]).shape[1]
    with tempfile.TemporaryDirectory(dir=out.parent if out.parent.is_dir() else None) as folder:
        mapped = np.lib.format.open_memmap(
            f"{folder}/values.npy", mode="w+", dtype=np.float32, shape=(len(profiles), columns)
        )
        step.transform(profiles.values, profiles.meta, out=mapped)
        return profiles.with_values(mapped).write(out)
