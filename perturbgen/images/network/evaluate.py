"""A trained network asked about parts of its data: accuracies, and its embedding as profiles.

Of BBBC021 also: does the nearest neighbour in the embedding share the mechanism? A network that was
trained on all treatments, without their mechanisms, is asked NSC and NSCB. One that was trained
without a group of compounds is asked about these only, and the neighbours are the treatments of all
other groups (where mechanisms were learned, of the group it was validated on, too): the question
that a new compound poses. The two numbers are never one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError, shorten
from perturbgen.images.bbbc021 import VEHICLE
from perturbgen.images.evaluate import Matching, treatment_profiles
from perturbgen.images.network.fields import Fields
from perturbgen.images.network.predict import Predictions
from perturbgen.images.network.recipe import ImageRun
from perturbgen.images.network.settings import Statistics
from perturbgen.images.rxrx1 import PlatePlan
from perturbgen.profiles import Profiles
from perturbgen.profiles.correct import (
    ControlScaler,
    Correction,
    Pipeline,
    Sphering,
    rows_to_fit,
    tvn,
)

log = logging.getLogger(__name__)

_PARTS = ("train", "validation", "id_test", "test")


def evaluate_run(
    run: ImageRun,
    *,
    part: Sequence[str],
    data: Path | None = None,
    statistics: Statistics | None = None,
    turns: bool | None = None,
) -> list[dict[str, Any]]:
    """Accuracies by decoding and cell type; each decoding that uses the plates' plan has its rows.

    Of BBBC021 also how many treatments of the parts have a neighbour of their mechanism.
    """
    fields = _chosen_fields(run, part, data)
    found = _asked(run, fields, statistics, turns)
    rows = found.accuracy_rows(_groups_of_training(run))
    if fields.label != "sirna_id":
        every = _chosen_fields(run, (), data)
        if _has_mechanisms(every.table):
            found = _asked(run, every, statistics, turns)
            rows += _matching_rows(_as_profiles(found, str(run.path)), part)
    if not rows:
        raise SchemaError(
            f"no treated well of {shorten(part)} has a known {fields.label}",
            expected="labels",
            cause="Kaggle's test wells have none",
        )
    return rows


def embed_run(
    run: ImageRun,
    *,
    part: Sequence[str],
    data: Path | None = None,
    statistics: Statistics | None = None,
    turns: bool | None = None,
) -> Profiles:
    """Embeddings of the fields of some parts (all, if none is named), as profiles."""
    found = _asked(run, _chosen_fields(run, part, data), statistics, turns)
    return _as_profiles(found, str(run.path))


def _chosen_fields(run: ImageRun, part: Sequence[str], data: Path | None = None) -> Fields:
    """The fields of some parts of the run's own data, or of another folder's."""
    wrong = [name for name in part if name not in _PARTS]
    if wrong:
        raise InputError(f"no part {wrong[0]!r}", expected=", ".join(_PARTS))
    settings = run.settings.data
    if data is not None:
        settings = settings.model_copy(update={"path": data})
    every = Fields.read(settings)
    found = every.part(*part) if part else every
    if not len(found):
        there = sorted(every.table["part"].unique())
        raise SchemaError(
            f"no field of {settings.path} is in {shorten(part)}",
            expected=f"one of {shorten(there)}",
            fix=f"--part {','.join(name for name in _PARTS if name in there)}",
        )
    return found


def _asked(
    run: ImageRun, fields: Fields, statistics: Statistics | None, turns: bool | None
) -> Predictions:
    """What a run says of fields, normalised as its settings or the arguments say."""
    chosen = statistics or run.settings.model.statistics
    return Predictions.of(run.model, run.feed(fields), chosen, turns=turns)


def _as_profiles(found: Predictions, source: str) -> Profiles:
    """The embedding of fields as profiles, a row a field."""
    features = pd.Index([f"feature_{i}" for i in range(found.embedding.shape[1])])
    return Profiles(found.embedding, found.table, features, source)


def _groups_of_training(run: ImageRun) -> pd.Series | None:
    """Groups of siRNAs that share a plate, from the training part; None without such a plan."""
    if run.card.label != "sirna_id":
        return None
    table = run.card.read_members(run.path)
    train = table[(table["part"] == "train") & table["sirna_id"].isin(run.card.classes)]
    try:
        return PlatePlan.sirna_groups(train)
    except SchemaError as error:
        log.warning("only independent decoding: %s", error.what)
        return None


def _has_mechanisms(table: pd.DataFrame) -> bool:
    """Whether some treatments have a mechanism, and there is a vehicle to correct by."""
    vehicle = table["compound"] == VEHICLE
    absent = "" if (table["moa"].notna() & ~vehicle).any() else "no treatment has a mechanism"
    absent = absent if vehicle.any() else f"no well of {VEHICLE}"
    if absent:
        log.warning("no neighbours: %s", absent)
    return not absent


def _matching_rows(fields: Profiles, part: Sequence[str]) -> list[dict[str, Any]]:
    """Share of treatments matched under each correction; ``fields`` are all of a run's.

    If the run withheld compounds, only they are asked about, if ``part`` holds ``test``.
    """
    away = fields.meta.loc[fields.meta["part"] == "test", "compound"].dropna().unique().tolist()
    # matches of compounds that were trained on would pass for those of new ones
    if away and part and "test" not in part:
        return []
    rows = []
    for correction, wells in corrected_wells(fields).items():
        for name, found in matchings(wells, withheld=away).items():
            share = found.correct / found.total if found.total else float("nan")
            row = {"of": "treatment", "decoding": f"{name}, {correction}", "n": found.total}
            cells = dict.fromkeys(fields.meta["cell_type"].unique(), share)
            rows.append({**row, **cells, "all": share})
    return rows


def corrected_wells(fields: Profiles, *, withhold: float = 0.0) -> dict[str, Profiles]:
    """Wells, the means over their fields, under each correction, which vehicle wells are fitted on.

    ``withhold`` is the share of each plate's vehicle wells that is left out of the fit; the wells
    are labelled by whether it was fitted on them.
    """
    wells = fields.averaged(["plate", "well"])
    control = (wells.meta["compound"] == VEHICLE).to_numpy()
    if not control.any():
        raise SchemaError(
            f"{fields.source}: no {VEHICLE} well to correct by",
            expected="the vehicle's wells among them",
        )
    fitted = rows_to_fit(wells, control, withhold=withhold, rng=np.random.default_rng(0))
    corrections: dict[str, Correction] = {
        "raw": Pipeline(),
        "z + TVN": tvn(),
        # Shrunk, since the six vehicle wells of a plate make a poor scale of their own.
        "z in each plate + TVN": Pipeline(ControlScaler(["plate"], shrink=12), Sphering()),
    }
    found = {}
    for name, correction in corrections.items():
        values = correction.fit_transform(wells.values, wells.meta, control=fitted)
        found[name] = wells.with_values(values).marked(fitted)
    return found


def matchings(wells: Profiles, *, withheld: Sequence[str] = ()) -> dict[str, Matching]:
    """NSC and NSCB over all treatments, or of ``withheld`` compounds among the others."""
    profiled = treatment_profiles(wells, vehicle=VEHICLE)
    both = (match(profiled, withheld=withheld) for match in (Matching.nsc, Matching.nscb))
    return {found.name: found for found in both}
