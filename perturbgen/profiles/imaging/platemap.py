"""The plan of RxRx1: four fixed groups of siRNAs, and which plate of an experiment holds which group."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd

from perturbgen.errors import SchemaError, shorten

PLATES = 4


def treatment_wells(meta: pd.DataFrame) -> pd.DataFrame:
    """One row a treated well of known siRNA: experiment, plate, well, sirna_id."""
    known = (meta["well_type"] == "treatment") & meta["sirna_id"].notna()
    return meta.loc[known, ["experiment", "plate", "well", "sirna_id"]].drop_duplicates().astype({"sirna_id": int})


def sirna_groups(meta: pd.DataFrame) -> pd.Series:
    """The group 0 to 3 of each siRNA: those that share a plate in every experiment.

    The first experiment's plates name the groups; an experiment that follows names its plates by the siRNAs already
    known, and so adds the ones the first had lost.
    """
    wells = treatment_wells(meta)
    group: dict[int, int] = {}
    for experiment, part in wells.groupby("experiment", sort=True):
        part = part.drop_duplicates("sirna_id")
        known = part["sirna_id"].map(group)
        names = part.groupby("plate")["sirna_id"].size().index
        label = {plate: plate - 1 for plate in names} if not group else plate_labels(part, known, str(experiment))
        new = part[known.isna()]
        group |= dict(zip(new["sirna_id"], new["plate"].map(label), strict=True))
    return pd.Series(group, name="group", dtype=int).rename_axis("sirna_id").sort_index()


def plate_labels(part: pd.DataFrame, known: pd.Series, experiment: str) -> dict[int, int]:
    """The group of each plate of an experiment; every known siRNA of the plate must agree."""
    labels: dict[int, int] = {}
    for plate, found in known.groupby(part["plate"]):
        names = found.dropna().unique()
        if len(names) != 1:
            raise SchemaError(
                f"{experiment}, plate {plate}: its siRNAs are of groups {shorten(names) or 'unknown'}",
                expected="one group of siRNAs on a plate, the same ones in every experiment",
                cause="another plan than RxRx1's, or treatments and controls mixed",
            )
        labels[int(plate)] = int(names[0])
    return labels


def rotations(meta: pd.DataFrame, groups: pd.Series) -> pd.DataFrame:
    """The group on each plate, (experiments, plates)."""
    wells = treatment_wells(meta)
    rows = {
        str(experiment): plate_labels(part, part["sirna_id"].map(groups), str(experiment))
        for experiment, part in wells.groupby("experiment", sort=True)
    }
    return (
        pd.DataFrame.from_dict(rows, orient="index").sort_index(axis=1).rename_axis(index="experiment", columns="plate")
    )


def rotation_counts(plan: pd.DataFrame) -> list[int]:
    """How often each pattern occurs among the experiments, the most frequent first."""
    return sorted(Counter(map(tuple, plan.to_numpy())).values(), reverse=True)


def is_rotation(plan: pd.DataFrame) -> np.ndarray:
    """Whether each experiment's plates are those of the first, turned round by some number of places."""
    first = plan.iloc[0].tolist()
    turned = {tuple(first[k:] + first[:k]) for k in range(len(first))}
    return np.array([tuple(row) in turned for row in plan.to_numpy()])
