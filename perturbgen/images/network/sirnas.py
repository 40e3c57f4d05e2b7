"""RxRx1 for a network: the labels of its fields, and the parts of the Kaggle and the WILDS split."""

from __future__ import annotations

import numpy as np
import pandas as pd

from perturbgen.images.network.settings import ImageData
from perturbgen.images.readers import read_rxrx1_metadata


def labels(data: ImageData) -> pd.DataFrame:
    """A row a site, or a well where no sites are named; ``place`` is the plate as images call it."""
    meta = read_rxrx1_metadata(data.path).drop(columns=["site_id", "sirna"], errors="ignore")
    return meta.assign(place=meta["experiment"] + "_" + meta["plate"].astype(str))


def parts(table: pd.DataFrame, data: ImageData) -> np.ndarray:
    """train, validation, id_test or test for each field.

    ``kaggle``: training experiments, without those of the validation, and the test ones. ``wilds``: site 1 of training
    experiments; their site 2 is id_test; the first test experiment of each cell type is the validation.
    """
    held = _held_experiments(table, data)
    training = (table["dataset"] == "train").to_numpy()
    part = np.where(training, "train", "test").astype(object)
    if data.split == "wilds":
        part[training & (table["site"] != 1).to_numpy()] = "id_test"
    part[table["experiment"].isin(held).to_numpy()] = "validation"
    return part


def _held_experiments(table: pd.DataFrame, data: ImageData) -> list[str]:
    """The experiments of the validation."""
    plan = table[["experiment", "cell_type", "dataset"]].drop_duplicates().sort_values("experiment")
    if data.validation:
        return data.named(plan["experiment"], "experiment")
    side = "train" if data.split == "kaggle" else "test"
    grouped = plan[plan["dataset"] == side].groupby("cell_type")["experiment"]
    many = grouped.transform("size") > 1
    chosen = plan.loc[many[many].index].groupby("cell_type")["experiment"]
    return (chosen.last() if data.split == "kaggle" else chosen.first()).tolist()
