"""The fields that a network reads: their files, their labels, the part of the split they belong to.

What the numbers of a network's labels mean.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from perturbgen.core.errors import InputError, SchemaError, shorten, suggest
from perturbgen.core.files import require_folder
from perturbgen.images import bbbc021
from perturbgen.images.fields import fields, find_images
from perturbgen.images.network import compounds, sirnas
from perturbgen.images.network.settings import CompoundData, ImageData
from perturbgen.images.readers import kind_of_source

Name = int | str


@dataclass(frozen=True)
class Vocabulary:
    """What labels are called; a label's number is its place. ``label`` is the column that classes are names in."""

    classes: tuple[Name, ...]
    cells: tuple[str, ...]
    experiments: tuple[str, ...]
    label: str = "sirna_id"

    def codes(self, table: pd.DataFrame) -> dict[str, torch.Tensor]:
        """The numbers of a table's labels; what was not trained on is -1."""
        columns = (
            ("label", self.label, self.classes),
            ("cell", "cell_type", self.cells),
            ("experiment", "experiment", self.experiments),
        )
        return {
            key: torch.from_numpy(place_of(table[column], names)) for key, column, names in columns
        }


def place_of(values: pd.Series, names: Sequence[Name]) -> np.ndarray:
    """The place of each value among the names, int64 (values,); -1 for another one, or none."""
    return (
        values.astype(object)
        .map(dict(zip(names, range(len(names)), strict=True)))
        .fillna(-1)
        .astype(np.int64)
        .to_numpy()
    )


log = logging.getLogger(__name__)

_SIX = tuple(range(1, 7))
_CHANNELS = {"rxrx1": _SIX, "rxrx1-kaggle": _SIX, "bbbc021": tuple(bbbc021.CHANNELS.values())}


@dataclass(frozen=True, eq=False)
class Fields:
    """``table`` (fields): labels and ``part``; ``files``, the path of each channel of the same fields.

    ``label`` is the column of what is told apart: sirna_id, treatment, compound or moa.
    """

    table: pd.DataFrame
    files: tuple[dict[int, Path], ...]
    channels: tuple[int, ...]
    label: str = "sirna_id"

    def __len__(self) -> int:
        return len(self.table)

    def part(self, *names: str) -> Fields:
        """The fields of some parts of the split."""
        return self.where(self.table["part"].isin(names).to_numpy())

    def where(self, mask: np.ndarray) -> Fields:
        """The fields of a mask."""
        rows = np.flatnonzero(mask)
        return replace(
            self,
            table=self.table.iloc[rows].reset_index(drop=True),
            files=tuple(self.files[i] for i in rows),
        )


def read_fields(data: ImageData) -> Fields:
    """Every field that has labels and all its channels; the others are left out, and named in the log."""
    kind = kind_of_source(require_folder(data.path, "folder of images"))
    if kind in ("rxrx1", "rxrx1-kaggle"):
        if data.compounds != CompoundData():
            raise InputError(
                f"data.compounds has no effect: {data.path} is RxRx1", fix="leave it out"
            )
        table, files, channels = _with_files(sirnas.labels(data), data)
        part, label = sirnas.parts(table, data), "sirna_id"
    elif kind == "bbbc021":
        if data.split != "kaggle":
            raise InputError(
                f"data.split has no effect: {data.path} is BBBC021", fix="leave it out"
            )
        table, files, channels = _with_files(compounds.labels(data), data)
        part, label = compounds.parts(table, data), data.compounds.label
    else:
        raise InputError(
            f"{data.path} is {kind}",
            expected="RxRx1 or BBBC021: tables and images",
            fix="see images fixture rxrx1",
        )
    return _chosen_cells(Fields(table.assign(part=part), files, channels, label), data)


def _with_files(
    labels: pd.DataFrame, data: ImageData
) -> tuple[pd.DataFrame, tuple[dict[int, Path], ...], tuple[int, ...]]:
    """The rows of ``labels`` that have images, with site_id and sorted by it; the files of each; the channels.

    Images are joined by ``place`` (the plate as files call it), well and, where labels know them, site.
    """
    images = find_images(data.path)
    if not len(images):
        raise InputError(
            f"none of the images that the tables of {data.path} name is there",
            expected="the folders Week1_22123 and so on beside the tables",
        )
    channels = tuple(sorted(int(c) for c in images["channel"].unique()))
    lost = [c for c in _CHANNELS[kind_of_source(data.path)] if c not in channels]
    if lost:
        log.warning(
            "no image of channels %s at all: the network does without them",
            ", ".join(map(str, lost)),
        )
    found = {key: files for key, files in fields(images).items() if len(files) == len(channels)}
    keys = pd.DataFrame(list(found), columns=["place", "well", "site"]).assign(
        file=range(len(found))
    )
    on = ["place", "well", "site"] if "site" in labels else ["place", "well"]
    table = labels.merge(
        keys.astype({"site": int}),
        on=on,
        how="left",
        validate="one_to_one" if "site" in labels else "one_to_many",
    )
    absent = table["file"].isna()
    if absent.all():
        raise SchemaError(
            f"no image of {data.path} belongs to a row of its metadata",
            expected="the same plates and wells",
        )
    if absent.any():
        log.warning(
            "%d fields left out for want of an image of each of channels %s: %s",
            int(absent.sum()),
            ", ".join(map(str, channels)),
            shorten(table.loc[absent, "well_id"].unique()),
        )
    table = table[~absent].astype({"site": int})
    table = table.assign(site_id=table["well_id"] + "_" + table["site"].astype(str))
    table = table.sort_values("site_id", ignore_index=True)
    every = list(found.values())
    return (
        table.drop(columns=["place", "file"]),
        tuple(every[int(i)] for i in table["file"]),
        channels,
    )


def _chosen_cells(fields: Fields, data: ImageData) -> Fields:
    """The fields of the cell types that were asked for."""
    known = sorted(fields.table["cell_type"].unique())
    for name in data.cell_types:
        if name not in known:
            raise SchemaError(
                f"no cell type {name!r} in {data.path}",
                expected=", ".join(known),
                fix=suggest(name, known),
            )
    return (
        fields.where(fields.table["cell_type"].isin(data.cell_types).to_numpy())
        if data.cell_types
        else fields
    )


def class_names(fields: Fields, *, controls: bool) -> list[Name]:
    """What the training part holds, in order: siRNAs, treatments, compounds or mechanisms."""
    train = fields.part("train").table
    wanted = train[fields.label].notna() & (controls | (train["well_type"] == "treatment"))
    names = sorted(train.loc[wanted, fields.label].unique().tolist())
    if len(names) < 2:
        raise SchemaError(
            f"{len(names)} of {fields.label} to tell apart among {len(train)} training fields",
            expected="two at least",
        )
    return names
