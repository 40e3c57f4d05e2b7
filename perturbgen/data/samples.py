"""Samples: cells that were treated and sequenced together, a well or what stands in place of one.

Everything inside knows a sample as (plate, well): a well of a plate, a patient's tube, the cells of
one guide in one batch. Where a file has no plates or wells, they are made here of what it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import shorten
from perturbgen.core.tables import CONDITION

if TYPE_CHECKING:
    from anndata import AnnData

_NO_PLATE: Final = "all"  # what was processed together, where nothing says that it was not
_OF_SAMPLES: Final = ("compound", "donor", "library")  # of which a sample has one
_PARTS: Final = ("donor", "compound", "dose")  # tell samples apart that nobody named


def with_samples(obs: pd.DataFrame) -> pd.DataFrame:
    """obs with a ``plate`` and a ``well`` for every cell; those that are there stay.

    The plate is the donor, where there is one: what a patient's samples share is what a plate's
    wells share. The well is the ``sample``, and the compound beside it where a sample holds cells
    of several (pools, batches); without one it is whatever tells treated cells apart.
    """
    made = {}
    if "plate" not in obs:
        made["plate"] = obs["donor"] if "donor" in obs else _constant(obs, _NO_PLATE)
    if "well" not in obs and "sample" in obs:
        pooled = "compound" in obs and (
            obs[["sample", "compound"]].drop_duplicates()["sample"].duplicated().any()
        )
        made["well"] = _joined(obs, ["sample", "compound"] if pooled else ["sample"])
    elif "well" not in obs:
        named = [name for name in _PARTS if name in obs]
        made["well"] = _joined(obs, named) if named else _constant(obs, _NO_PLATE)
    return obs.assign(**made)


def _constant(obs: pd.DataFrame, value: str) -> pd.Series:
    return pd.Series(pd.Categorical([value] * len(obs)), obs.index)


def _joined(obs: pd.DataFrame, names: Iterable[str]) -> pd.Series:
    """The columns' values as one label."""
    names = list(names)
    if len(names) == 1:
        return obs[names[0]].astype("category")
    # By combination, not by cell: millions of cells have thousands of samples.
    codes = obs.groupby(names, observed=True, sort=True, dropna=False).ngroup().to_numpy()
    _, first = np.unique(codes, return_index=True)
    labels = obs[names].iloc[first].astype(str).agg(" | ".join, axis=1)
    return pd.Series(pd.Categorical(labels.to_numpy()[codes]), obs.index)


def samples_of(obs: pd.DataFrame) -> pd.DataFrame:
    """By condition: ``samples``, and ``cells``; sorted by label."""
    table = with_samples(obs)[[*CONDITION, "plate", "well"]].astype(str)
    groups = table.groupby(list(CONDITION), sort=True)
    wells = table.drop_duplicates().groupby(list(CONDITION), sort=True).size()
    return pd.DataFrame({"samples": wells, "cells": groups.size()})


def sample_problem(obs: pd.DataFrame) -> str:
    """What samplers of cells and depths will refuse of these cells; "" where they take them."""
    if not {*CONDITION} <= set(obs.columns):
        return ""  # an atlas: there is nothing to generate conditions of
    table = with_samples(obs)
    names = ["plate", "well", *(name for name in _OF_SAMPLES if name in table)]
    wells = table[names].astype(str).drop_duplicates()
    twice = wells[wells.duplicated(["plate", "well"], keep=False)]
    if len(twice):
        plate, well = twice.iloc[0][["plate", "well"]]
        own = twice[(twice["plate"] == plate) & (twice["well"] == well)]
        differs = [name for name in names if own[name].nunique() > 1]
        return f"cells of well {well!r} on plate {plate!r} differ in {shorten(differs)}"
    if len(wells) < 2 and table["cell_type"].nunique() < 2:
        return "all cells are of one sample, and of one type"
    return ""


def sampled(adata: AnnData) -> AnnData:
    """The cells, each in a plate and a well; the user's own object stays as it is."""
    if {"plate", "well"} <= set(adata.obs.columns):
        return adata
    from anndata import AnnData

    return AnnData(adata.X, obs=with_samples(adata.obs), var=adata.var, uns=adata.uns)


def parts_of_label(label: str, vehicle: str | None = None, *, between: str = "+") -> list[str]:
    """The perturbations of a combination, ``A+B``; the vehicle beside another one is nothing."""
    parts = [part.strip() for part in label.split(between)]
    if len(parts) < 2 or not all(parts):
        return [label]
    others = [part for part in parts if part != vehicle]
    return others or parts[:1]
