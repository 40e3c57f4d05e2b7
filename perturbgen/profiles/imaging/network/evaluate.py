"""A trained network asked about parts of its data: accuracies by decoding, and its embedding as profiles."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from perturbgen.errors import InputError, SchemaError, shorten
from perturbgen.profiles.imaging import platemap
from perturbgen.profiles.imaging.bbbc021 import VEHICLE
from perturbgen.profiles.imaging.network.fields import Fields, read_fields
from perturbgen.profiles.imaging.network.mechanisms import matching_rows
from perturbgen.profiles.imaging.network.predict import Predictions, accuracy_rows, predict
from perturbgen.profiles.imaging.network.run import ImageRun, read_list
from perturbgen.profiles.imaging.network.settings import Statistics
from perturbgen.profiles.imaging.profiles import Profiles

log = logging.getLogger(__name__)

PARTS = ("train", "validation", "id_test", "test")


def chosen_fields(run: ImageRun, part: Sequence[str], data: Path | None = None) -> Fields:
    """The fields of some parts of the run's own data, or of another folder's."""
    wrong = [name for name in part if name not in PARTS]
    if wrong:
        raise InputError(f"no part {wrong[0]!r}", expected=", ".join(PARTS))
    settings = run.settings.data if data is None else run.settings.data.model_copy(update={"path": data})
    every = read_fields(settings)
    found = every.part(*part) if part else every
    if not len(found):
        there = sorted(every.table["part"].unique())
        raise SchemaError(f"no field of {settings.path} is in {shorten(part)}", expected=f"one of {shorten(there)}",
                          fix=f"--part {','.join(name for name in PARTS if name in there)}")  # fmt: skip
    return found


def evaluate(
    run: ImageRun, *, part: Sequence[str], data: Path | None = None, statistics: Statistics | None = None,
    turns: bool | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Accuracies by decoding and cell type; the decodings that use the plan of the plates are rows of their own.

    Of BBBC021 also how many treatments of the parts have a neighbour of their mechanism (:mod:`.mechanisms`).
    """
    fields = chosen_fields(run, part, data)
    found = asked(run, fields, statistics, turns)
    rows = accuracy_rows(found, groups_of_training(run))
    if fields.label != "sirna_id":
        every = chosen_fields(run, (), data)
        if has_mechanisms(every.table):
            rows += matching_rows(embedded(asked(run, every, statistics, turns), str(run.path)), part)
    if not rows:
        raise SchemaError(f"no treated well of {shorten(part)} has a known {fields.label}",
                          expected="labels", cause="Kaggle's test wells have none")  # fmt: skip
    return rows


def asked(run: ImageRun, fields: Fields, statistics: Statistics | None, turns: bool | None) -> Predictions:
    """What a run says of fields, as its settings or these say."""
    return predict(run.model, run.feed(fields), statistics or run.settings.model.statistics, turns=turns)


def has_mechanisms(table: pd.DataFrame) -> bool:
    """Whether neighbours can be asked for: some treatments have a mechanism, and there is a vehicle to correct by."""
    vehicle = table["compound"] == VEHICLE
    if not vehicle.any() or not (table["moa"].notna() & ~vehicle).any():
        log.warning("no neighbours: %s", "no treatment has a mechanism" if vehicle.any() else f"no well of {VEHICLE}")
        return False
    return True


def groups_of_training(run: ImageRun) -> pd.Series | None:
    """The groups of siRNAs that share a plate, from the training part only; None where they follow no such plan."""
    if run.card.label != "sirna_id":
        return None
    table = read_list(run.path)
    train = table[(table["part"] == "train") & table["sirna_id"].isin(run.card.classes)]
    try:
        groups = platemap.sirna_groups(train)
    except SchemaError as error:
        log.warning("only independent decoding: %s", error.what)
        return None
    return groups


def embedded(found: Predictions, source: str) -> Profiles:
    """The embedding of fields as profiles, a row a field."""
    features = pd.Index([f"feature_{i}" for i in range(found.embedding.shape[1])])
    return Profiles(found.embedding, found.table, features, source)


def embed(
    run: ImageRun, *, part: Sequence[str], data: Path | None = None, statistics: Statistics | None = None,
    turns: bool | None = None,
) -> Profiles:  # fmt: skip
    """Embeddings of the fields of some parts (all, if none is named), as profiles."""
    return embedded(asked(run, chosen_fields(run, part, data), statistics, turns), str(run.path))
