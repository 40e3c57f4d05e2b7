"""The fields of RxRx1 that a network reads: their files, their labels, the part of the split they belong to."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.errors import InputError, SchemaError, shorten, suggest
from perturbgen.profiles.imaging import rxrx1
from perturbgen.profiles.imaging.images import fields, find_images
from perturbgen.profiles.imaging.network.settings import ImageData
from perturbgen.profiles.imaging.sources import kind_of

log = logging.getLogger(__name__)

KINDS: Final = ("rxrx1", "rxrx1-kaggle")
LABELS: Final = (
    "site_id",
    "well_id",
    "cell_type",
    "dataset",
    "experiment",
    "plate",
    "well",
    "site",
    "well_type",
    "sirna_id",
)


@dataclass(frozen=True, eq=False)
class Fields:
    """``table`` (fields): labels and ``part``; ``files``, the path of each channel of the same fields."""

    table: pd.DataFrame
    files: tuple[dict[int, Path], ...]
    channels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.table)

    def part(self, *names: str) -> Fields:
        """The fields of some parts of the split."""
        return self.where(self.table["part"].isin(names).to_numpy())

    def where(self, mask: np.ndarray) -> Fields:
        """The fields of a mask."""
        rows = np.flatnonzero(mask)
        return Fields(self.table.iloc[rows].reset_index(drop=True), tuple(self.files[i] for i in rows), self.channels)


def read_fields(data: ImageData) -> Fields:
    """Every field that has labels and all its channels; the others are left out, and named in the log."""
    kind = kind_of(data.path)
    if kind not in KINDS:
        raise InputError(
            f"{data.path} is {kind}", expected="RxRx1: metadata and images", fix="see images fixture rxrx1"
        )
    meta, images = rxrx1.read_metadata(data.path), find_images(data.path)
    channels = tuple(sorted(int(c) for c in images["channel"].unique()))
    found = {key: files for key, files in fields(images).items() if len(files) == len(channels)}
    keys = pd.DataFrame(list(found), columns=["place", "well", "site"]).assign(file=range(len(found)))
    meta = meta.assign(place=meta["experiment"] + "_" + meta["plate"].astype(str))
    on = ["place", "well", "site"] if "site" in meta else ["place", "well"]
    table = meta.merge(keys, on=on, how="left", validate="one_to_one" if "site" in meta else "one_to_many")
    absent = table["file"].isna()
    if absent.all():
        raise SchemaError(
            f"no image of {data.path} belongs to a row of its metadata", expected="the same plates and wells"
        )
    if absent.any():
        log.warning("%d fields left out for want of an image of each of channels %s: %s", int(absent.sum()),
                    ", ".join(map(str, channels)), shorten(table.loc[absent, "well_id"].unique()))  # fmt: skip
    table = table[~absent].astype({"site": int})
    table = table.assign(site_id=table["well_id"] + "_" + table["site"].astype(str)).sort_values(
        "site_id", ignore_index=True
    )
    files = tuple(list(found.values())[int(i)] for i in table["file"])
    table = table[[name for name in LABELS if name in table]].assign(part=parts(table, data))
    return chosen_cells(Fields(table, files, channels), data)


def chosen_cells(fields: Fields, data: ImageData) -> Fields:
    """The fields of the cell types that were asked for."""
    known = sorted(fields.table["cell_type"].unique())
    for name in data.cell_types:
        if name not in known:
            raise SchemaError(
                f"no cell type {name!r} in {data.path}", expected=", ".join(known), fix=suggest(name, known)
            )
    return fields.where(fields.table["cell_type"].isin(data.cell_types).to_numpy()) if data.cell_types else fields


def parts(table: pd.DataFrame, data: ImageData) -> np.ndarray:
    """train, validation, id_test or test for each field.

    ``kaggle``: training experiments, without those of the validation, and the test ones. ``wilds``: site 1 of training
    experiments; their site 2 is id_test; the first test experiment of each cell type is the validation.
    """
    held = held_experiments(table, data)
    training = (table["dataset"] == "train").to_numpy()
    part = np.where(training, "train", "test").astype(object)
    if data.split == "wilds":
        part[training & (table["site"] != 1).to_numpy()] = "id_test"
    part[table["experiment"].isin(held).to_numpy()] = "validation"
    return part


def held_experiments(table: pd.DataFrame, data: ImageData) -> list[str]:
    """The experiments of the validation."""
    plan = table[["experiment", "cell_type", "dataset"]].drop_duplicates().sort_values("experiment")
    for name in data.validation:
        if name not in set(plan["experiment"]):
            raise SchemaError(f"no experiment {name!r}", expected="experiments to validate on",
                              fix=suggest(name, plan["experiment"].tolist()))  # fmt: skip
    if data.validation:
        return list(data.validation)
    side = "train" if data.split == "kaggle" else "test"
    grouped = plan[plan["dataset"] == side].groupby("cell_type")["experiment"]
    many = grouped.transform("size") > 1
    chosen = plan.loc[many[many].index].groupby("cell_type")["experiment"]
    return (chosen.last() if data.split == "kaggle" else chosen.first()).tolist()


def class_names(fields: Fields, *, controls: bool) -> list[int]:
    """The siRNAs of the training part, in order."""
    train = fields.part("train").table
    wanted = train["sirna_id"].notna() & (controls | (train["well_type"] == "treatment"))
    names = sorted(int(i) for i in train.loc[wanted, "sirna_id"].unique())
    if len(names) < 2:
        raise SchemaError(
            f"{len(names)} siRNAs to tell apart among {len(train)} training fields", expected="two at least"
        )
    return names
