"""What a source holds and what is wrong with it, as lines of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, shorten
from perturbgen.images import decode as platemap
from perturbgen.images.fields import check_images, find_images, finding
from perturbgen.images.readers import (
    STREAMED,
    kind_of,
    missing_sites,
    opened,
    read_rxrx1_metadata,
    stream_embeddings,
)
from perturbgen.profiles.groups import blocks
from perturbgen.profiles.table import Profiles

_Lines = list[dict[str, Any]]


def check_source(source: Path, *, limit: int) -> _Lines:
    """Findings about the profiles of a source, its plates and, where there are any, its images."""
    try:
        kind = kind_of(source)
    except InputError:
        return check_images(find_images(source), limit=limit)
    lines = [finding("kind", kind)]
    if kind == "rxrx1-kaggle":
        lines += _check_plan(read_rxrx1_metadata(source))
    elif kind in STREAMED:
        lines += _check_streamed(source, kind)
    else:
        with opened(source) as profiles:
            lines += _check_profiles(profiles)
    images = _has_images(source)
    return lines + (check_images(images, limit=limit) if images is not None else [])


def _has_images(source: Path) -> pd.DataFrame | None:
    """The images under a folder, None where there are none."""
    if not source.is_dir():
        return None
    try:
        images = find_images(source)
    except InputError:
        return None
    return images if len(images) else None


def _check_streamed(source: Path, kind: str) -> _Lines:
    """As :func:`check_profiles`, and who has no partner in the other table."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        profiles, orphans = stream_embeddings(source, Path(folder) / "profiles")
        lines = _check_profiles(profiles)
    for what, names in (
        ("profiles without labels", orphans.without_labels),
        ("labels without a profile", orphans.without_values),
    ):
        lines.append(finding(what, f"{len(names)}: {shorten(names, 2)}" if names else "none"))
    if kind == "rxrx1":
        lines += _check_plan(profiles.meta)
        lines.append(finding("wells with a site missing", len(missing_sites(profiles.meta))))
    return lines


def _check_profiles(profiles: Profiles) -> _Lines:
    """Size, labels, values that are no numbers, features that never vary, rows that are copies of others."""
    low, high = np.full(len(profiles.features), np.inf), np.full(len(profiles.features), -np.inf)
    bad, seen = 0, set()
    for rows in blocks(len(profiles)):
        values = np.asarray(profiles.values[rows])
        bad += int((~np.isfinite(values)).any(axis=1).sum())
        low, high = np.fmin(low, np.fmin.reduce(values)), np.fmax(high, np.fmax.reduce(values))
        seen |= {hash(row.tobytes()) for row in values}
    plates = [name for name in ("experiment", "experiment_name", "plate") if name in profiles.meta]
    constant = profiles.features[~(high > low)]
    copies = len(profiles) - len(seen)
    lines = [
        finding("rows and features", f"{len(profiles):,} x {len(profiles.features):,}"),
        finding("rows with NaN or infinite values", bad, ok=not bad),
        finding(
            "features that never vary",
            shorten(constant, 3) if len(constant) else "none",
            ok=not len(constant),
        ),
        finding("rows equal to another row", copies, ok=not copies),
    ]
    if plates:
        lines.insert(1, finding("plates", profiles.meta.groupby(plates).ngroups))
    return lines


def _check_plan(meta: pd.DataFrame) -> _Lines:
    """RxRx1: wells, controls on each plate, groups of siRNAs and how the plates turn."""
    wells = meta.drop_duplicates("well_id")
    controls = wells[wells["well_type"] != "treatment"].groupby(["experiment", "plate"]).size()
    groups = platemap.sirna_groups(wells)
    plan = platemap.rotations(wells, groups)
    without = wells.groupby(["experiment", "plate"]).ngroups - len(controls)
    return [
        finding("wells", len(wells)),
        finding("controls on a plate", f"{controls.min()} to {controls.max()}", ok=not without),
        finding("groups of siRNAs", " ".join(str(n) for n in groups.value_counts().sort_index())),
        finding(
            "patterns of groups on plates",
            " ".join(str(n) for n in platemap.rotation_counts(plan)),
            ok=bool(platemap.is_rotation(plan).all()),
        ),
    ]
