"""The fields that a network reads: their files, their labels, the part of the split they are in.

RxRx1 has the parts of the Kaggle and of the WILDS split. In BBBC021 nearly every compound lies in
one week. A network that is to know compounds it has not seen is trained without a group of them
(``data.compounds.fold``), each mechanism being spread over the groups. Wells of one treatment never
lie in training and validation on the same plate: a replicate is withheld, not fields of wells that
were trained on.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError, shorten, suggest
from perturbgen.core.files import require_folder
from perturbgen.images import bbbc021
from perturbgen.images.evaluate import mechanism_folds
from perturbgen.images.fields import FieldFiles
from perturbgen.images.network.settings import ImageData
from perturbgen.images.readers import kind_of_source, read_rxrx1_metadata

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Name = int | str

_SIX = tuple(range(1, 7))
_CHANNELS = {"rxrx1": _SIX, "rxrx1-kaggle": _SIX, "bbbc021": tuple(bbbc021.CHANNELS.values())}
_UNKNOWN = "UNKNOWN"  # wells of BBBC021 whose treatment the table does not name


@dataclass(frozen=True)
class Vocabulary:
    """What labels are called; a label's number is its place among the names.

    ``label`` is the column that classes are names in.
    """

    classes: tuple[Name, ...]
    cells: tuple[str, ...]
    experiments: tuple[str, ...]
    label: str = "sirna_id"

    def codes(self, table: pd.DataFrame) -> dict[str, torch.Tensor]:
        """The numbers of a table's labels, each (rows,); what was not trained on is -1."""
        import torch

        names = ("label", "cell", "experiment")
        return {name: torch.from_numpy(self.codes_of(table, name)) for name in names}

    def codes_of(self, table: pd.DataFrame, what: str) -> np.ndarray:
        """The places of a table's labels, cells or experiments among the names, int64 (rows,)."""
        column, names = {
            "label": (self.label, self.classes),
            "cell": ("cell_type", self.cells),
            "experiment": ("experiment", self.experiments),
        }[what]
        places = dict(zip(names, range(len(names)), strict=True))
        return table[column].astype(object).map(places).fillna(-1).astype(np.int64).to_numpy()


@dataclass(frozen=True, eq=False)
class Fields:
    """``table`` (fields): labels and ``part``; ``files``, the path of each channel of each field.

    ``label`` is the column of what is told apart: sirna_id, treatment, compound or moa.
    """

    table: pd.DataFrame
    files: tuple[dict[int, Path], ...]
    channels: tuple[int, ...]
    label: str = "sirna_id"

    @classmethod
    def read(cls, data: ImageData) -> Fields:
        """Every field with labels and all its channels; the log names those that are left out."""
        kind = kind_of_source(require_folder(data.path, "folder of images"))
        if kind in ("rxrx1", "rxrx1-kaggle"):
            if data.compounds != type(data.compounds)():
                raise InputError(
                    f"data.compounds has no effect: {data.path} is RxRx1", fix="leave it out"
                )
            # a row a site, or a well where no sites are named
            meta = read_rxrx1_metadata(data.path).drop(
                columns=["site_id", "sirna"], errors="ignore"
            )
            place = meta["experiment"] + "_" + meta["plate"].astype(str)
            found = _with_files(meta.assign(place=place), data, "sirna_id")
            part = _sirna_parts(found.table, data)
        elif kind == "bbbc021":
            if data.split != "kaggle":
                raise InputError(
                    f"data.split has no effect: {data.path} is BBBC021", fix="leave it out"
                )
            found = _with_files(_compound_labels(data), data, data.compounds.label)
            part = _compound_parts(found.table, data)
        else:
            raise InputError(
                f"{data.path} is {kind}",
                expected="RxRx1 or BBBC021: tables and images",
                fix="see images fixture rxrx1",
            )
        known = sorted(found.table["cell_type"].unique())
        if unknown := [name for name in data.cell_types if name not in known]:
            raise SchemaError(
                f"no cell type {unknown[0]!r} in {data.path}",
                expected=", ".join(known),
                fix=suggest(unknown[0], known),
            )
        found = replace(found, table=found.table.assign(part=part))
        if not data.cell_types:
            return found
        return found.where(found.table["cell_type"].isin(data.cell_types).to_numpy())

    def __len__(self) -> int:
        return len(self.table)

    def part(self, *names: str) -> Fields:
        """The fields of some parts of the split."""
        return self.where(self.table["part"].isin(names).to_numpy())

    def where(self, mask: np.ndarray) -> Fields:
        """The fields of a mask."""
        rows = np.flatnonzero(mask)
        table = self.table.iloc[rows].reset_index(drop=True)
        return replace(self, table=table, files=tuple(self.files[i] for i in rows))

    def class_names(self, *, controls: bool) -> list[Name]:
        """What the training part holds, in order: siRNAs, treatments, compounds or mechanisms."""
        train = self.part("train").table
        wanted = train[self.label].notna() & (controls | (train["well_type"] == "treatment"))
        names = sorted(train.loc[wanted, self.label].unique().tolist())
        if len(names) < 2:
            raise SchemaError(
                f"{len(names)} of {self.label} to tell apart among {len(train)} training fields",
                expected="two at least",
            )
        return names


def _with_files(labels: pd.DataFrame, data: ImageData, label: str) -> Fields:
    """The rows of ``labels`` that have images, with site_id and sorted by it.

    Images are joined by ``place`` (the plate as files call it), well and, where labels know them,
    site.
    """
    images = FieldFiles.find(data.path)
    if not images.files:
        raise InputError(
            f"none of the images that the tables of {data.path} name is there",
            expected="the folders Week1_22123 and so on beside the tables",
        )
    channels, found = tuple(images.channels), images.whole()
    lost = [str(c) for c in _CHANNELS[kind_of_source(data.path)] if c not in channels]
    if lost:
        what = "no image of channels %s at all: the network does without them"
        log.warning(what, ", ".join(lost))
    keys = pd.DataFrame(list(found), columns=["place", "well", "site"])
    keys = keys.assign(file=range(len(found))).astype({"site": int})
    on = [name for name in ("place", "well", "site") if name in labels]
    validate: Any = "one_to_one" if "site" in on else "one_to_many"
    table = labels.merge(keys, on=on, how="left", validate=validate)
    absent = table["file"].isna()
    if absent.all():
        raise SchemaError(
            f"no image of {data.path} belongs to a row of its metadata",
            expected="the same plates and wells",
        )
    if absent.any():
        what = "%d fields left out for want of an image of each of channels %s: %s"
        names = shorten(table.loc[absent, "well_id"].unique())
        log.warning(what, int(absent.sum()), ", ".join(map(str, channels)), names)
    table = table[~absent].astype({"site": int})
    table = table.assign(site_id=table["well_id"] + "_" + table["site"].astype(str))
    # files come in the order of the disk, which must decide nothing
    table = table.sort_values("site_id", ignore_index=True)
    every = list(found.values())
    files = tuple(every[int(i)] for i in table["file"])
    return Fields(table.drop(columns=["place", "file"]), files, channels, label)


def _sirna_parts(table: pd.DataFrame, data: ImageData) -> np.ndarray:
    """RxRx1: train, validation, id_test or test for each field.

    * ``kaggle``: training experiments, without those of the validation, and the test ones;
    * ``wilds``: site 1 of training experiments; their site 2 is id_test; the first test experiment
      of each cell type is the validation.
    """
    training = (table["dataset"] == "train").to_numpy()
    part = np.where(training, "train", "test").astype(object)
    if data.split == "wilds":
        part[training & (table["site"] != 1).to_numpy()] = "id_test"
    plan = table[["experiment", "cell_type", "dataset"]].drop_duplicates().sort_values("experiment")
    if data.validation:
        withheld = data.named(plan["experiment"], "experiment")
    else:
        # Of a cell type that has a single experiment on this side none can be spared.
        plan = plan[plan["dataset"] == ("train" if data.split == "kaggle" else "test")]
        many = plan.groupby("cell_type")["experiment"].transform("size") > 1
        chosen = plan[many].groupby("cell_type")["experiment"]
        withheld = (chosen.last() if data.split == "kaggle" else chosen.first()).tolist()
    part[table["experiment"].isin(withheld).to_numpy()] = "validation"
    return part


def _compound_labels(data: ImageData) -> pd.DataFrame:
    """BBBC021: a row a field; ``fold`` is the group of its compound, -1 without a mechanism."""
    images = bbbc021.read_images(data.path, mechanisms=True)
    meta = images.drop(columns=list(bbbc021.CHANNELS))
    known, vehicle = meta["compound"] != _UNKNOWN, meta["compound"] == bbbc021.VEHICLE
    return meta.assign(
        place=meta["plate"],
        well_id=meta["plate"] + "_" + meta["well"],
        cell_type="MCF-7",
        experiment=meta[data.compounds.batch],
        well_type=np.where(vehicle, "negative_control", "treatment"),
        treatment=(meta["compound"] + " " + meta["concentration"]).where(known),
        compound=meta["compound"].where(known),
        fold=_compound_groups(meta, data),
    )


def _compound_groups(meta: pd.DataFrame, data: ImageData) -> np.ndarray:
    """The group of each row's compound, (rows,); -1 for one in none, and for the vehicle."""
    settings = data.compounds
    if settings.fold is None:
        return np.full(len(meta), -1)
    asked = meta["moa"].notna() & (meta["compound"] != bbbc021.VEHICLE)
    if not asked.any():
        raise SchemaError(
            "no compound of the images has a mechanism, so no group of them can be withheld",
            expected="the compounds and concentrations of the image table in the table of "
            "mechanisms",
            cause="names or concentrations that do not join",
        )
    known = meta[asked].drop_duplicates(["compound", "concentration"])
    fold = mechanism_folds(known, settings.folds, rng=np.random.default_rng(settings.seed))
    of_compound = dict(zip(known["compound"], fold, strict=True))
    # by compound, not by treatment: its other doses are no new compound
    return meta["compound"].map(of_compound).fillna(-1).astype(int).to_numpy()


def _compound_parts(table: pd.DataFrame, data: ImageData) -> np.ndarray:
    """BBBC021: train, validation or test for each field.

    * test: the withheld group of compounds;
    * validation: of the others the withheld plates or, where mechanisms are learned, the next group
      of compounds.
    """
    settings = data.compounds
    part = np.full(len(table), "train", dtype=object)
    if settings.label == "moa" and settings.fold is not None:
        if data.validation:
            raise SchemaError(
                "data.validation names plates, and mechanisms are validated on compounds",
                fix="leave it out",
            )
        part[(table["fold"] == (settings.fold + 1) % settings.folds).to_numpy()] = "validation"
    else:
        plates = table[["plate", "week", "replicate"]].drop_duplicates().sort_values("plate")
        if data.validation:
            withheld = data.named(plates["plate"], "plate")
        else:  # those of the last replicate of each week that has two
            weeks = plates.groupby("week")["replicate"]
            last = plates["replicate"] == weeks.transform("max")
            withheld = plates.loc[last & (weeks.transform("nunique") > 1), "plate"].tolist()
        part[table["plate"].isin(withheld).to_numpy()] = "validation"
    if settings.fold is not None:
        part[(table["fold"] == settings.fold).to_numpy()] = "test"
    return part
