"""RxRx1: the plan of its plates, and siRNAs from scores with and without it.

Four fixed groups of siRNAs share a plate in every experiment, turned round, so that which 277 of
the 1,108 siRNAs are on a plate can be read off the plate as a whole. Results that use this leak
(``plate_group``, ``assignment``) answer an easier question and are never put beside those that do
not.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten

_Mode = Literal["independent", "plate_group", "assignment"]
MODES: tuple[_Mode, ...] = ("independent", "plate_group", "assignment")


def decode_wells(
    log_p: pd.DataFrame, wells: pd.DataFrame, *, mode: _Mode, groups: pd.Series | None = None
) -> pd.Series:
    """The siRNA of each treated well, from ``log_p`` (wells, siRNAs).

    ``wells`` has the same index, and columns experiment and plate.

    * ``independent``: the best of all siRNAs;
    * ``plate_group``: the best of the plate's group, the groups of an experiment's plates chosen
      together;
    * ``assignment``: the same, and no siRNA twice on a plate (the best one-to-one assignment).
    """
    if not log_p.index.equals(wells.index):
        raise SchemaError(
            "scores and wells have different labels", expected="the same index in the same order"
        )
    if mode == "independent":
        best = log_p.to_numpy().argmax(axis=1)
        return pd.Series(log_p.columns.to_numpy()[best], index=log_p.index)
    if groups is None:
        raise SchemaError(
            f"mode {mode!r} needs the groups of the siRNAs",
            expected="PlatePlan.sirna_groups(train metadata)",
        )
    group = groups.reindex(log_p.columns)
    if group.isna().any():
        raise SchemaError(
            f"siRNA {group.index[group.isna()][0]} belongs to no group",
            expected="a group for each siRNA",
        )
    # the plates of an experiment hold different groups, so they are decided together
    result = pd.Series(index=log_p.index, dtype=log_p.columns.dtype)
    for _, part in wells.groupby("experiment", sort=True):
        for plate, number in plate_groups(log_p.loc[part.index], part["plate"], group).items():
            rows = part.index[part["plate"] == plate]
            result[rows] = _sirnas_of(log_p.loc[rows, group.index[group == number]], mode)
    return result


def plate_groups(log_p: pd.DataFrame, plate: pd.Series, group: pd.Series) -> dict[int, int]:
    """Which group lies on which plate of one experiment: the permutation with the most evidence.

    A plate's evidence for a group is the sum over its wells of log P(siRNA of the group), which is
    the log of the sum over the group's siRNAs.
    """
    plates, numbers = sorted(plate.unique()), sorted(int(n) for n in group.unique())
    if len(plates) > len(numbers):
        raise SchemaError(
            f"{len(plates)} plates and {len(numbers)} groups of siRNAs",
            expected="a group for each plate",
        )
    evidence = np.zeros((len(plates), len(numbers)))
    for row, name in enumerate(plates):
        here = log_p[plate == name].to_numpy()
        for column, number in enumerate(numbers):
            members = (group == number).to_numpy()
            evidence[row, column] = np.logaddexp.reduce(here[:, members], axis=1).sum()
    rows = np.arange(len(plates))
    orders = list(permutations(range(len(numbers)), len(plates)))
    best = max(orders, key=lambda order: evidence[rows, list(order)].sum())
    return {int(p): numbers[i] for p, i in zip(plates, best, strict=True)}


def _sirnas_of(log_p: pd.DataFrame, mode: _Mode) -> np.ndarray:
    """The siRNAs of one plate's wells among the plate's own."""
    from scipy.optimize import linear_sum_assignment

    names = log_p.columns.to_numpy()
    if mode == "plate_group":
        return names[log_p.to_numpy().argmax(axis=1)]
    if mode != "assignment":
        raise SchemaError(f"no decoding mode {mode!r}", expected=", ".join(MODES))
    if len(log_p) > len(names):
        raise SchemaError(
            f"{len(log_p)} wells and {len(names)} siRNAs on a plate",
            expected="a siRNA at most once",
        )
    # no siRNA lies twice on a plate: the best one-to-one assignment, by the sum of log P
    return names[linear_sum_assignment(log_p.to_numpy(), maximize=True)[1]]


def accuracy(predicted: pd.Series, truth: pd.Series, by: pd.Series) -> pd.Series:
    """Share of wells named rightly for each value of ``by`` (a cell type), and ``all`` of them."""
    right = predicted.eq(truth.reindex(predicted.index))
    shares = right.groupby(by.reindex(predicted.index)).mean()
    return pd.concat([shares, pd.Series({"all": right.mean()})])


def _plate_labels(part: pd.DataFrame, known: pd.Series, experiment: str) -> dict[int, int]:
    """The group of each plate of an experiment; every known siRNA of the plate must agree."""
    labels: dict[int, int] = {}
    for plate, found in known.groupby(part["plate"]):
        names = found.dropna().unique()
        if len(names) != 1:
            raise SchemaError(
                f"{experiment}, plate {plate}: its siRNAs are of groups "
                f"{shorten(names) or 'unknown'}",
                expected="one group of siRNAs on a plate, the same ones in every experiment",
                cause="another plan than RxRx1's, or treatments and controls mixed",
            )
        labels[int(plate)] = int(names[0])
    return labels


@dataclass(frozen=True)
class PlatePlan:
    """The group of siRNAs on each plate, (experiments, plates)."""

    table: pd.DataFrame

    @classmethod
    def of(cls, meta: pd.DataFrame, groups: pd.Series) -> PlatePlan:
        """As the treated wells of known siRNA say."""
        wells = cls.treated_wells(meta)
        rows = {
            str(experiment): _plate_labels(part, part["sirna_id"].map(groups), str(experiment))
            for experiment, part in wells.groupby("experiment", sort=True)
        }
        table = pd.DataFrame.from_dict(rows, orient="index").sort_index(axis=1)
        return cls(table.rename_axis(index="experiment", columns="plate"))

    @staticmethod
    def treated_wells(meta: pd.DataFrame) -> pd.DataFrame:
        """One row a treated well of known siRNA: experiment, plate, well, sirna_id."""
        known = (meta["well_type"] == "treatment") & meta["sirna_id"].notna()
        wells = meta.loc[known, ["experiment", "plate", "well", "sirna_id"]].drop_duplicates()
        return wells.astype({"sirna_id": int})

    @staticmethod
    def sirna_groups(meta: pd.DataFrame) -> pd.Series:
        """The group 0 to 3 of each siRNA: those that share a plate in every experiment.

        The first experiment's plates name the groups; an experiment that follows names its plates
        by the siRNAs already known, and so adds the ones that the first had lost.
        """
        wells = PlatePlan.treated_wells(meta)
        group: dict[int, int] = {}
        for experiment, part in wells.groupby("experiment", sort=True):
            # a siRNA in two wells of a plate counts once
            part = part.drop_duplicates("sirna_id")
            known = part["sirna_id"].map(group)
            if group:
                label = _plate_labels(part, known, str(experiment))
            else:
                label = {plate: plate - 1 for plate in part["plate"].unique()}
            new = part[known.isna()]
            group |= dict(zip(new["sirna_id"], new["plate"].map(label), strict=True))
        return pd.Series(group, name="group", dtype=int).rename_axis("sirna_id").sort_index()

    def counts(self) -> list[int]:
        """How often each pattern occurs among the experiments, the most frequent first."""
        return sorted(Counter(map(tuple, self.table.to_numpy())).values(), reverse=True)

    def is_rotation(self) -> bool:
        """Whether every experiment's plates are those of the first, turned round by some places."""
        first = self.table.iloc[0].tolist()
        turned = {tuple(first[k:] + first[:k]) for k in range(len(first))}
        return all(tuple(row) in turned for row in self.table.to_numpy())
