"""Which treatments do anything: replicate mean average precision against controls.

A correction that is fitted on the controls pulls these very controls together, in as many
directions as they are many. Treated wells then differ from them whatever they do.
``held_out_activity`` therefore fits on one half of the controls and takes the other half for
negatives.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError
from perturbgen.profiles import Profiles
from perturbgen.profiles.correct import Correction
from perturbgen.retrieval import retrieve

_KEPT = ["queries", "ap", "nap", "p", "p_bh"]


def activity(
    profiles: Profiles, *, control: np.ndarray, same: str, draws: int = 20_000
) -> pd.DataFrame:
    """Per treatment: wells, mAP and normalised mAP of finding its other wells among the controls.

    With p and q (Benjamini and Hochberg).
    """
    return _against(profiles, same=same, control=control, negatives=control, draws=draws)


def _against(
    profiles: Profiles,
    *,
    same: str,
    control: np.ndarray,
    negatives: np.ndarray,
    draws: int = 20_000,
) -> pd.DataFrame:
    """The treatments' wells among ``negatives`` (rows,), a part of the controls."""
    found = retrieve(
        np.asarray(profiles.values),
        profiles.meta,
        same=same,
        queries=~control,
        candidates=~control,
        negatives=negatives,
        null_draws=draws,
    )
    return found.groups.set_index(same)[_KEPT].rename(
        columns={"queries": "wells", "ap": "map", "nap": "nmap"}
    )


def held_out_activity(
    profiles: Profiles,
    step: Correction,
    *,
    control: np.ndarray,
    same: str,
    splits: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """As :func:`activity` of corrected profiles, with negatives that the correction was not fitted
    on.

    ``splits`` times the controls are halved at random; each half is once fitted on and once the
    negatives. Means over the 2 x splits rounds; ``active`` is the share of rounds in which q is
    under .05.
    """
    rows = np.flatnonzero(control)
    if len(rows) < 4:
        raise SchemaError(
            f"{len(rows)} controls cannot be halved", expected="4 or more", fix="use activity()"
        )
    rounds = []
    for _ in range(splits):
        order = rng.permutation(rows)
        for fitted in (order[: len(rows) // 2], order[len(rows) // 2 :]):
            mask = np.isin(np.arange(len(profiles)), fitted)
            values = step.fit_transform(profiles.values, profiles.meta, control=mask)
            found = _against(
                profiles.with_values(values),
                same=same,
                control=control,
                negatives=control & ~mask,
                draws=2000,
            )
            rounds.append(found.assign(active=found["p_bh"] < 0.05)[["map", "nmap", "active"]])
    return pd.concat(rounds).groupby(level=0, sort=False).mean()
