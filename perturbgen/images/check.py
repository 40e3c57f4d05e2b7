"""What a source holds and what is wrong with it, as lines of a table."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError, shorten
from perturbgen.images.fields import fields, find_images, read_field
from perturbgen.images.readers import (
    STREAMED,
    kind_of_source,
    opened,
    read_rxrx1_metadata,
    stream_embeddings,
)
from perturbgen.images.rxrx1 import PlatePlan
from perturbgen.profiles import Profiles
from perturbgen.profiles.table import blocks

_Lines = list[dict[str, Any]]


def check_source(source: Path, *, limit: int) -> _Lines:
    """Findings about the profiles of a source, its plates and, where there are any, its images."""
    # a folder of images without tables is a source, too
    try:
        kind = kind_of_source(source)
    except InputError:
        return _check_images(find_images(source), limit=limit)
    lines = [_finding("kind", kind)]
    if kind == "rxrx1-kaggle":
        lines += _check_plan(read_rxrx1_metadata(source))
    elif kind in STREAMED:
        lines += _check_streamed(source, kind)
    else:
        with opened(source) as profiles:
            lines += _check_profiles(profiles)
    if source.is_dir():
        with suppress(InputError):  # tables without images are no mistake
            lines += _check_images(find_images(source), limit=limit)
    return lines


def _check_streamed(source: Path, kind: str) -> _Lines:
    """As :func:`_check_profiles`, and which rows have no partner in the other table."""
    # joined as ingest joins them: what has no partner is known only when all rows were seen
    with tempfile.TemporaryDirectory() as folder:
        profiles, orphans = stream_embeddings(source, Path(folder) / "profiles")
        lines = _check_profiles(profiles)
    for what, names in (
        ("profiles without labels", orphans.without_labels),
        ("labels without a profile", orphans.without_values),
    ):
        lines.append(_finding(what, f"{len(names)}: {shorten(names, 2)}" if names else "none"))
    if kind == "rxrx1":
        lines += _check_plan(profiles.meta)
        lines.append(_finding("wells with a site missing", len(_missing_sites(profiles.meta))))
    return lines


def _check_profiles(profiles: Profiles) -> _Lines:
    """Size, plates, values that are no numbers, features that never vary, rows that are copies."""
    low, high = np.full(len(profiles.features), np.inf), np.full(len(profiles.features), -np.inf)
    bad, seen = 0, set()
    for rows in blocks(len(profiles)):
        values = np.asarray(profiles.values[rows])
        bad += int((~np.isfinite(values)).any(axis=1).sum())
        # fmin and fmax pass over NaN, which are counted beside
        low, high = np.fmin(low, np.fmin.reduce(values)), np.fmax(high, np.fmax.reduce(values))
        # hashes, not rows: the embeddings of RxRx19a are 300,000 x 1,024
        seen |= {hash(row.tobytes()) for row in values}
    plates = [name for name in ("experiment", "experiment_name", "plate") if name in profiles.meta]
    constant = profiles.features[~(high > low)]
    copies = len(profiles) - len(seen)
    lines = [
        _finding("rows and features", f"{len(profiles):,} x {len(profiles.features):,}"),
        _finding("rows with NaN or infinite values", bad, ok=not bad),
        _finding(
            "features that never vary",
            shorten(constant, 3) if len(constant) else "none",
            ok=not len(constant),
        ),
        _finding("rows equal to another row", copies, ok=not copies),
    ]
    if plates:
        lines.insert(1, _finding("plates", profiles.meta.groupby(plates).ngroups))
    return lines


def _check_plan(meta: pd.DataFrame) -> _Lines:
    """RxRx1: wells, controls on each plate, groups of siRNAs and how the plates turn."""
    # the metadata of 2020 have a row a site
    wells = meta.drop_duplicates("well_id")
    controls = wells[wells["well_type"] != "treatment"].groupby(["experiment", "plate"]).size()
    groups = PlatePlan.sirna_groups(wells)
    plan = PlatePlan.of(wells, groups)
    without = wells.groupby(["experiment", "plate"]).ngroups - len(controls)
    return [
        _finding("wells", len(wells)),
        _finding("controls on a plate", f"{controls.min()} to {controls.max()}", ok=not without),
        _finding("groups of siRNAs", " ".join(str(n) for n in groups.value_counts().sort_index())),
        _finding(
            "patterns of groups on plates",
            " ".join(str(n) for n in plan.counts()),
            ok=plan.is_rotation(),
        ),
    ]


def _missing_sites(meta: pd.DataFrame) -> pd.DataFrame:
    """RxRx1's wells with one site: they happen (154 in the release) and must not shift anything."""
    if "site" not in meta:
        raise InputError(
            "this metadata has a row a well, not a site", expected="the metadata.csv of 2020"
        )
    count = meta.groupby(["experiment", "plate", "well"]).size().rename("sites")
    return count[count < 2].reset_index()


def _check_images(images: pd.DataFrame, *, limit: int | None = None) -> list[dict[str, Any]]:
    """Findings about a set of images: fields, channels, missing ones, sizes, depths, broken files.

    At most ``limit`` fields are decoded, spread evenly over the set.
    """
    from perturbgen.core.console import track

    found = fields(images)
    channels = sorted(images["channel"].unique().tolist())
    short = [" ".join(map(str, key)) for key, files in found.items() if len(files) < len(channels)]
    complete = [key for key, files in found.items() if len(files) == len(channels)]
    # evenly spread, since the first fields are all of one plate
    step = max(1, -(-len(complete) // limit)) if limit else 1
    kinds: set[str] = set()
    broken: list[str] = []
    for key in track(complete[::step], "images"):
        try:
            stack = read_field(found[key], channels)
        except (InputError, SchemaError) as error:
            broken.append(error.what)
        else:
            kinds.add(f"{stack.shape[1]} x {stack.shape[2]}, {stack.dtype}")
    return [
        _finding("fields (plate, well, site)", len(found)),
        _finding("channels", ", ".join(f"w{channel}" for channel in channels)),
        _finding("fields without all channels", shorten(short) if short else "none", ok=not short),
        _finding("decoded fields", len(complete[::step])),
        _finding("sizes and depths", "; ".join(sorted(kinds)) or "none", ok=len(kinds) == 1),
        _finding("unreadable or mixed", "; ".join(broken[:3]) if broken else "none", ok=not broken),
    ]


def _finding(what: str, found: object, *, ok: bool = True) -> dict[str, Any]:
    """One line of a check."""
    return {"what": what, "found": found, "ok": ok}
