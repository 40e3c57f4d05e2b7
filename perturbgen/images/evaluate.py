"""What profiles are worth: measured as L1000 and latent spaces are, and by mechanisms that match.

Not-same-compound matching asks whether the nearest treatment of another compound has the same
mechanism: Ljosa et al. 2013 (NSC) and Ando et al. 2017 (NSCB, also not the same batch) on BBBC021.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.tables import require_columns
from perturbgen.profiles import Profiles
from perturbgen.profiles.linear import unit
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
    rows = _replicates(treated, same, draws, rng)
    if control:
        wells, mask, note = _out_of_sample(wells, mask)
        rows += _noted(_against_controls(wells, mask, same, draws, rng), note)
    if relations is not None:
        rows.append(_recall(treated, same, relations, draws, rng))
    if batch:
        among = wells.where(mask) if control else wells
        rows += _noted(_mixing(among, batch, "" if control else same), note)
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
    chance = None if chance is None else float(chance)
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
        _line("mAP among all wells", found["ap"].mean(), found["chance"].mean(), len(found)),
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
        _line("mAP against controls", found["ap"].mean(), found["chance"].mean(), len(found)),
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
    measure = f"recall of known relations (p {found['p']:.2g})"
    return _line(measure, found["recall"], found["chance"], found["pairs"])


def _mixing(profiles: Profiles, batch: str, within: str) -> _Rows:
    """Do batches mix, among controls or within each perturbation?"""
    among = [within] if within else []
    meta = profiles.meta.astype(dict.fromkeys([batch, *among], str))
    found = mixing_summary(knn_mixing(np.asarray(profiles.values), meta, batch=batch, within=among))
    name = f"neighbours of the same {batch}"
    return [
        _line(name, found["same_batch"], found["expected"], found["rows"]),
        _line(f"iLISI of {batch} (1 is mixed)", found["ilisi"], None, found["rows"]),
    ]


# All compounds of these mechanisms lie in one week, so no neighbour of another week can match.
ONE_BATCH: Final = ("Cholesterol-lowering", "Kinase inhibitors")


@dataclass(frozen=True)
class Matching:
    """Treatments with their mechanisms, their neighbours and these one's mechanisms."""

    name: str
    table: pd.DataFrame

    @classmethod
    def of(cls, name: str, meta: pd.DataFrame, neighbour: np.ndarray) -> Matching:
        """By the row of each treatment's neighbour; of -1, none, the columns are missing."""
        found = meta.iloc[neighbour].reset_index(drop=True).where(pd.Series(neighbour >= 0))
        columns = {"neighbour": found["compound"], "neighbour_moa": found["moa"]}
        return cls(name, meta[["compound", "concentration", "moa"]].assign(**columns))

    @staticmethod
    def admissible(meta: pd.DataFrame, *, other_batch: bool) -> np.ndarray:
        """Treatments that may be neighbours: of two compounds and, for NSCB, of no common batch."""
        compound = meta["compound"].to_numpy()
        # doses of one compound resemble each other whatever the mechanism
        allowed = compound[:, None] != compound[None]
        if other_batch:
            rows = [dict.fromkeys(names, 1.0) for names in meta["batches"]]
            member = pd.DataFrame(rows).fillna(0.0).to_numpy()
            allowed &= member @ member.T == 0
        return allowed

    @staticmethod
    def nearest(similarity: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """The most similar allowed column of each row, -1 where none is allowed."""
        # of a row of -inf alone argmax is 0, hence the second line
        best = np.where(allowed, similarity, -np.inf).argmax(axis=1)
        return np.where(allowed.any(axis=1), best, -1)

    @classmethod
    def by(cls, name: str, profiled: Profiles, allowed: np.ndarray) -> Matching:
        """Each treatment with the nearest of its ``allowed`` ones (treatments, treatments).

        With ``folds[:, None] != folds[None]`` it is stricter than NSC: no compound of the own group
        is a neighbour.
        """
        return cls.of(name, profiled.meta, cls.nearest(cosines(profiled.values), allowed))

    @classmethod
    def nsc(cls, profiled: Profiles, *, withheld: Sequence[str] = ()) -> Matching:
        """Not the same compound: all treatments are asked, or only ``withheld`` compounds' ones.

        Withheld compounds are matched among the others.
        """
        return cls._among("NSC", profiled, withheld, other_batch=False)

    @classmethod
    def nscb(cls, profiled: Profiles, *, withheld: Sequence[str] = ()) -> Matching:
        """Not the same compound nor batch; mechanisms of one batch are left out."""
        # in other batches they have no neighbour
        kept = profiled.where(~profiled.meta["moa"].isin(ONE_BATCH))
        return cls._among("NSCB", kept, withheld, other_batch=True)

    @classmethod
    def _among(
        cls, name: str, profiled: Profiles, withheld: Sequence[str], *, other_batch: bool
    ) -> Matching:
        allowed = cls.admissible(profiled.meta, other_batch=other_batch)
        if not withheld:
            return cls.by(name, profiled, allowed)
        away = profiled.meta["compound"].isin(withheld).to_numpy()
        table = cls.by(name, profiled, allowed & ~away[None]).table
        return cls(f"{name} of new compounds", table[away].reset_index(drop=True))

    @property
    def correct(self) -> int:
        """Treatments of which the neighbour shares the mechanism."""
        return int((self.table["moa"] == self.table["neighbour_moa"]).sum())

    @property
    def total(self) -> int:
        """Treatments that were asked, with or without an admissible neighbour."""
        return len(self.table)

    def __str__(self) -> str:
        return f"{self.correct}/{self.total}"


def treatment_profiles(
    profiles: Profiles, *, vehicle: str, how: Literal["mean", "median"] = "median"
) -> Profiles:
    """One profile a treatment (compound, concentration) that has a mechanism, the vehicle left out.

    ``batches`` in its meta are the weeks of the wells that were profiled, which NSCB compares.
    """
    wanted = ["compound", "concentration", "moa", "week"]
    require_columns(profiles.meta.columns, wanted, profiles.source)
    keep = profiles.meta["moa"].notna() & (profiles.meta["compound"] != vehicle)
    if not keep.any():
        raise SchemaError(
            f"{profiles.source}: no treated well has a mechanism",
            expected="a moa for some treatments",
        )
    kept = profiles.where(keep)
    by = ["compound", "concentration"]
    # a treatment profiled in several weeks shares a batch with the treatments of each
    weeks = kept.meta.groupby(by)["week"].apply(lambda names: tuple(sorted(set(names))))
    result = kept.averaged(by, how=how)
    meta = result.meta[[*by, "moa"]].join(weeks.rename("batches"), on=by)
    return Profiles(result.values, meta, result.features, result.source)


def cosines(values: np.ndarray) -> np.ndarray:
    """Cosine similarity of every pair of rows, (rows, rows)."""
    if not np.isfinite(values).all() or not np.abs(values).any(axis=1).all():
        raise SchemaError(
            "a treatment's profile is zero or not finite",
            expected="numbers, some of them not zero",
            fix="profiles.tidy() names the wells",
        )
    rows = unit(values)
    return rows @ rows.T


def mechanism_folds(meta: pd.DataFrame, folds: int, *, rng: np.random.Generator) -> np.ndarray:
    """A fold for each treatment: a compound's together, a mechanism's compounds over all folds.

    Every mechanism is tested, and none is ever tested without another compound to learn it from.
    """
    compounds = meta.drop_duplicates("compound")[["compound", "moa"]]
    count = compounds.groupby("moa").size()
    if (count < 2).any():
        raise SchemaError(
            f"{shorten(count.index[count < 2])} have one compound: withheld, nothing is left to "
            "learn from",
            expected="two compounds or more for every mechanism",
        )
    if folds < 2:
        raise SchemaError(f"{folds} folds", expected="2 or more")
    fold: dict[str, int] = {}
    # dealt on from mechanism to mechanism, so that small ones do not all begin in the first fold
    for _, names in compounds.sort_values(["moa", "compound"]).groupby("moa")["compound"]:
        for name in rng.permutation(names.to_numpy()):
            fold[str(name)] = len(fold) % folds
    return meta["compound"].map(fold).to_numpy()
