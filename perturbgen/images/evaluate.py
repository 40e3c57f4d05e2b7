"""What profiles are worth, by the evaluator that L1000 and latent spaces go through, too."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError
from perturbgen.core.tables import require_columns
from perturbgen.profiles import Profiles
from perturbgen.retrieval import (
    consistency,
    knn_mixing,
    magnitude,
    mixing_summary,
    percent_replicating,
    relationship_recall,
    retrieve,
)

log = logging.getLogger(__name__)

_Rows = list[dict[str, Any]]
IN_SAMPLE = "in-sample: not to be believed"
WHY = (
    "The correction was fitted on the controls that wells are compared with. It pulls them "
    "together, so that wells without any effect differ from them. Correct again with images "
    "correct --withhold 0.25, which leaves controls out of the fit, of every plate that has two "
    "wells of them or more."
)


def measures(
    profiles: Profiles,
    *,
    same: str,
    control: str = "",
    batch: str = "",
    relations: pd.DataFrame | None = None,
    draws: int = 1000,
    rng: np.random.Generator,
) -> _Rows:
    """Lines of measure, value, what chance gives, and how many groups or pairs it is a mean over.

    Sites are averaged to wells. Controls are in no group: magnitude and activity are measured
    against them, and how batches mix among them. Only those count that no correction was fitted on,
    which the label ``fitted`` says; where these are fewer than two, all count and the lines say
    ``IN_SAMPLE``.
    """
    require_columns(profiles.meta.columns, [same, *([batch] if batch else [])], profiles.source)
    raw, note = profiles.tidy(), ""
    named = "well" in raw.meta or "well_id" in raw.meta
    wells = raw.averaged(raw.well_labels) if named else raw
    mask = wells.chosen(control, wells.source) if control else np.zeros(len(wells), bool)
    # sites of a well are not replicates; a well without a label is in no group
    treated = wells.where(~mask & wells.meta[same].notna().to_numpy())
    rows = [*_replicates(treated, same, draws, rng)]
    if control:
        wells, mask, note = _out_of_sample(wells, mask)
        rows += _noted(_against_controls(wells, mask, same, draws, rng), note)
    if relations is not None:
        rows.append(_recall(treated, same, relations, draws, rng))
    if batch:
        among = _mixing(wells.where(mask) if control else wells, batch, same if not control else "")
        rows += _noted(among, note)
    return rows


def _out_of_sample(wells: Profiles, control: np.ndarray) -> tuple[Profiles, np.ndarray, str]:
    """The wells that no correction was fitted on, and their controls.

    All, and a note, if these leave fewer than two controls.
    """
    # whitened on 24 DMSO wells, 98 to 100 % of null compounds are "active" against these very wells
    seen = wells.fitted()
    if not seen.any() or (control & ~seen).sum() > 1:
        return wells.where(~seen), control[~seen], ""
    log.warning("%s: %s", IN_SAMPLE, WHY)
    return wells, control, IN_SAMPLE


def _noted(rows: _Rows, note: str) -> _Rows:
    return [{**row, "measure": f"{row['measure']}, {note}"} for row in rows] if note else rows


def _line(measure: str, value: float, chance: float | None, n: float) -> dict[str, Any]:
    return {"measure": measure, "value": float(value), "chance": chance, "n": int(n)}


def _replicates(treated: Profiles, same: str, draws: int, rng: np.random.Generator) -> _Rows:
    """Do wells of one perturbation find each other, and agree?"""
    values = np.asarray(treated.values)
    meta = treated.meta.assign(**{same: treated.meta[same].astype(str)})
    # q < .05 of hundreds of groups asks for p below what a few hundred draws can give
    found = retrieve(values, meta, same=same, null_draws=max(draws, 1000)).groups
    passing = percent_replicating(values, meta, same=same, null_groups=draws, rng=rng)
    agreed = consistency(values, meta, same=same, draws=draws, rng=rng)
    return [
        _line("mAP among all wells", found["ap"].mean(), float(found["chance"].mean()), len(found)),
        _line("retrieved (q < .05)", (found["p_bh"] < 0.05).mean(), None, len(found)),
        # 5 % pass by construction: the limit is the null's 95th percentile
        _line("percent replicating", passing["passes"].mean(), 0.05, len(passing)),
        _line("consistency (mean cosine)", agreed["consistency"].mean(), None, len(agreed)),
        _line("consistent (q < .05)", (agreed["q"] < 0.05).mean(), None, len(agreed)),
    ]


def _against_controls(
    wells: Profiles, control: np.ndarray, same: str, draws: int, rng: np.random.Generator
) -> _Rows:
    """Do perturbations differ from controls?"""
    values = np.asarray(wells.values)
    meta = wells.meta.assign(**{same: wells.meta[same].astype("string")})
    found = retrieve(
        values, meta, same=same, queries=~control, candidates=~control, negatives=control
    ).groups
    rows = [
        _line(
            "mAP against controls", found["ap"].mean(), float(found["chance"].mean()), len(found)
        ),
        _line("active (q < .05)", (found["p_bh"] < 0.05).mean(), None, len(found)),
    ]
    # too few controls for an energy distance are no reason to lose the other lines
    try:
        strength = magnitude(values, meta, same=same, control=control, draws=draws, rng=rng)
    except SchemaError as error:
        log.warning("magnitude not measured: %s; expected %s", error.what, error.expected)
        return rows
    return [
        *rows,
        _line("magnitude (energy distance)", strength["magnitude"].mean(), 0.0, len(strength)),
        _line("strong (q < .05)", (strength["q"] < 0.05).mean(), None, len(strength)),
    ]


def _recall(
    treated: Profiles, same: str, relations: pd.DataFrame, draws: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Are known relations among the most alike and the most opposite pairs?"""
    labels = treated.meta[same].astype(str).to_numpy()
    means = pd.DataFrame(np.asarray(treated.values)).groupby(labels).mean()
    found = relationship_recall(means, relations.astype(str), permutations=draws, rng=rng)
    return _line(
        f"recall of known relations (p {found['p']:.2g})",
        found["recall"],
        found["chance"],
        found["pairs"],
    )


def _mixing(profiles: Profiles, batch: str, within: str) -> _Rows:
    """Do batches mix, among controls or within each perturbation?"""
    meta = profiles.meta.assign(
        **{name: profiles.meta[name].astype(str) for name in (batch, within) if name}
    )
    among = [within] if within else []
    found = mixing_summary(knn_mixing(np.asarray(profiles.values), meta, batch=batch, within=among))
    name = f"neighbours of the same {batch}"
    return [
        _line(name, found["same_batch"], found["expected"], found["rows"]),
        _line(f"iLISI of {batch} (1 is mixed)", found["ilisi"], None, found["rows"]),
    ]
