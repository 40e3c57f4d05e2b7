"""RxRx1: the plan of its plates, siRNAs from scores with and without it, wells seen from controls.

Four fixed groups of siRNAs share a plate in every experiment, turned round, so that which 277 of
the 1,108 siRNAs are on a plate can be read off the plate as a whole. Results that use this leak
(``plate_group``, ``assignment``) answer an easier question and are never put beside those that do
not.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.profiles import Profiles
from perturbgen.profiles.groups import Groups

log = logging.getLogger(__name__)

_Mode = Literal["independent", "plate_group", "assignment"]
MODES: tuple[_Mode, ...] = ("independent", "plate_group", "assignment")


def decode_wells(
    log_p: pd.DataFrame, wells: pd.DataFrame, *, mode: _Mode, groups: pd.Series | None = None
) -> pd.Series:
    """The siRNA of each treated well, from ``log_p`` (wells, siRNAs).

    ``wells`` has the same index, experiment and plate. ``independent``: the best of all siRNAs.
    ``plate_group``: the best of the plate's group, the groups of an experiment's plates chosen
    together. ``assignment``: the same, and no siRNA twice on a plate (the best one-to-one
    assignment).
    """
    if not log_p.index.equals(wells.index):
        raise SchemaError(
            "scores and wells have different labels", expected="the same index in the same order"
        )
    if mode == "independent":
        return pd.Series(
            log_p.columns.to_numpy()[log_p.to_numpy().argmax(axis=1)], index=log_p.index
        )
    if groups is None:
        raise SchemaError(
            f"mode {mode!r} needs the groups of the siRNAs", expected="sirna_groups(train metadata)"
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
            result[rows] = _choose(log_p.loc[rows, group.index[group == number]], mode)
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


def _choose(log_p: pd.DataFrame, mode: _Mode) -> np.ndarray:
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
    return pd.concat(
        [right.groupby(by.reindex(predicted.index)).mean(), pd.Series({"all": right.mean()})]
    )


def treatment_wells(meta: pd.DataFrame) -> pd.DataFrame:
    """One row a treated well of known siRNA: experiment, plate, well, sirna_id."""
    known = (meta["well_type"] == "treatment") & meta["sirna_id"].notna()
    return (
        meta.loc[known, ["experiment", "plate", "well", "sirna_id"]]
        .drop_duplicates()
        .astype({"sirna_id": int})
    )


def sirna_groups(meta: pd.DataFrame) -> pd.Series:
    """The group 0 to 3 of each siRNA: those that share a plate in every experiment.

    The first experiment's plates name the groups; an experiment that follows names its plates by
    the siRNAs already known, and so adds the ones that the first had lost.
    """
    wells = treatment_wells(meta)
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
        wells = treatment_wells(meta)
        rows = {
            str(experiment): _plate_labels(part, part["sirna_id"].map(groups), str(experiment))
            for experiment, part in wells.groupby("experiment", sort=True)
        }
        table = pd.DataFrame.from_dict(rows, orient="index").sort_index(axis=1)
        return cls(table.rename_axis(index="experiment", columns="plate"))

    def counts(self) -> list[int]:
        """How often each pattern occurs among the experiments, the most frequent first."""
        return sorted(Counter(map(tuple, self.table.to_numpy())).values(), reverse=True)

    def is_rotation(self) -> bool:
        """Whether every experiment's plates are those of the first, turned round by some places."""
        first = self.table.iloc[0].tolist()
        turned = {tuple(first[k:] + first[:k]) for k in range(len(first))}
        return all(tuple(row) in turned for row in self.table.to_numpy())


def control_relative(
    profiles: Profiles,
    *,
    panel: np.ndarray,
    control: str,
    origin: str,
    by: Sequence[str] = ("experiment", "plate"),
    similarity: Literal["cosine", "distance"] = "cosine",
) -> Profiles:
    """For each row, how much it resembles each control of its plate: (rows, controls).

    ``panel`` marks the control rows, ``control`` is the column that names them, and ``origin`` the
    one all are seen from (EMPTY): r_k = cos(x - m_0, m_k - m_0), or -|x - m_k|. Nothing that adds
    to a whole plate changes it; with cosine nothing that scales it either. A control that a plate
    lacks is taken from its parent (the labels ``by`` but the last); a control's own row never
    counts in its own centroid.
    """
    names = sorted(profiles.meta.loc[panel, control].astype(str).unique())
    if origin not in names:
        raise SchemaError(
            f"no control {origin!r} in the panel",
            expected="the untreated control",
            fix=shorten(names),
        )
    values = np.asarray(profiles.values, np.float64)
    label = profiles.meta[control].astype(str).to_numpy()
    columns = [_one_control(profiles, values, panel & (label == name), by, name) for name in names]
    centre = columns[names.index(origin)]
    if similarity == "distance":
        result = np.stack([-np.linalg.norm(values - mean, axis=1) for mean in columns], axis=1)
        return profiles.with_values(result, names)
    others = [i for i, name in enumerate(names) if name != origin]
    result = np.stack([_cosine(values - centre, columns[i] - centre) for i in others], axis=1)
    return profiles.with_values(result, [names[i] for i in others])


def _one_control(
    profiles: Profiles, values: np.ndarray, rows: np.ndarray, by: Sequence[str], name: str
) -> np.ndarray:
    """For each row the mean of one control on its plate, the row itself left out.

    Where there is none it is the parent's (the experiment's).
    """
    result, open_rows = np.empty_like(values), np.ones(len(values), bool)
    # from the plate up, until every row has a control to be compared with
    for level in range(len(by), 0, -1):
        groups = Groups.of(profiles.meta, by[:level], profiles.source)
        codes = groups.codes
        count, mean = groups.means(values, np.flatnonzero(rows))
        # a control row in its own centroid would resemble itself
        left = count[codes] - rows
        usable = open_rows & (left > 0)
        total = mean[codes[usable]] * count[codes[usable]][:, None] - np.where(
            rows[usable][:, None], values[usable], 0
        )
        result[usable] = total / left[usable][:, None]
        open_rows &= ~usable
        if open_rows.any() and level > 1:
            parent = "/".join(by[: level - 1])
            log.debug("control %s: %d rows take the mean of %s", name, open_rows.sum(), parent)
    if open_rows.any():
        raise SchemaError(
            f"{int(open_rows.sum())} rows have no control {name!r} in their {by[0]}",
            expected=f"every control in every {by[0]}",
        )
    return result


def _cosine(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Row by row; 0 where a row is zero (the origin seen from itself)."""
    length = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return (left * right).sum(axis=1) / np.where(length > 0, length, 1)
