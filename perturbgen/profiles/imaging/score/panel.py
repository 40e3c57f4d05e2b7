"""A well described by the controls of its own plate: RxRx1's 30 siRNAs and the empty well, on every plate."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np

from perturbgen.errors import SchemaError, shorten
from perturbgen.profiles.imaging.groups import group_means, grouping
from perturbgen.profiles.imaging.profiles import Profiles

log = logging.getLogger(__name__)


def control_relative(
    profiles: Profiles, *, panel: np.ndarray, control: str, origin: str, by: Sequence[str] = ("experiment", "plate"),
    similarity: Literal["cosine", "distance"] = "cosine",
) -> Profiles:  # fmt: skip
    """For each row, how much it resembles each control of its plate: (rows, controls).

    ``panel`` marks the control rows, ``control`` is the column that names them, and ``origin`` the one all are seen
    from (EMPTY): r_k = cos(x - m_0, m_k - m_0), or -|x - m_k|. Nothing that adds to a whole plate changes it; with
    cosine nothing that scales it either. A control that a plate lacks is taken from its parent (the labels ``by`` but
    the last); a control's own row never counts in its own centroid.
    """
    names = sorted(profiles.meta.loc[panel, control].astype(str).unique())
    if origin not in names:
        raise SchemaError(f"no control {origin!r} in the panel", expected="the untreated control", fix=shorten(names))
    values = np.asarray(profiles.values, np.float64)
    code = np.where(
        panel, np.array([names.index(n) if n in names else 0 for n in profiles.meta[control].astype(str)]), -1
    )
    columns = [one_control(profiles, values, code == number, by, name) for number, name in enumerate(names)]
    centre = columns[names.index(origin)]
    if similarity == "distance":
        result = np.stack([-np.linalg.norm(values - mean, axis=1) for mean in columns], axis=1)
        return profiles.with_values(result, names)
    others = [i for i, name in enumerate(names) if name != origin]
    result = np.stack([cosine(values - centre, columns[i] - centre) for i in others], axis=1)
    return profiles.with_values(result, [names[i] for i in others])


def one_control(profiles: Profiles, values: np.ndarray, rows: np.ndarray, by: Sequence[str], name: str) -> np.ndarray:
    """For each row the mean of one control on its plate, the row itself left out; its parent's where there is none."""
    result, open_rows = np.empty_like(values), np.ones(len(values), bool)
    for level in range(len(by), 0, -1):
        keys, codes = grouping(profiles.meta, by[:level], profiles.source)
        count, mean = group_means(values, np.flatnonzero(rows), codes, len(keys))
        left = count[codes] - rows
        usable = open_rows & (left > 0)
        total = mean[codes[usable]] * count[codes[usable]][:, None] - np.where(rows[usable][:, None], values[usable], 0)
        result[usable] = total / left[usable][:, None]
        open_rows &= ~usable
        if open_rows.any() and level > 1:
            log.debug("control %s: %d rows take the mean of %s", name, open_rows.sum(), "/".join(by[: level - 1]))
    if open_rows.any():
        raise SchemaError(f"{int(open_rows.sum())} rows have no control {name!r} in their {by[0]}",
                          expected=f"every control in every {by[0]}")  # fmt: skip
    return result


def cosine(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Row by row; 0 where a row is zero (the origin seen from itself)."""
    length = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return (left * right).sum(axis=1) / np.where(length > 0, length, 1)
