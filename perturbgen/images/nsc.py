"""Not-same-compound matching: does a treatment's nearest neighbour, of another compound, share its mechanism?

Ljosa et al. 2013 (NSC) and Ando et al. 2017 (NSCB, also not the same batch) on BBBC021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.tables import require_columns
from perturbgen.profiles.table import Profiles

# All compounds of these mechanisms lie in one week, so no neighbour of another week can match.
ONE_BATCH: Final = ("Cholesterol-lowering", "Kinase inhibitors")


@dataclass(frozen=True)
class Matching:
    """How many treatments matched, and the table behind it: treatment, moa, neighbour and the neighbour's moa."""

    name: str
    table: pd.DataFrame

    @property
    def correct(self) -> int:
        """Treatments whose neighbour shares the mechanism."""
        return int((self.table["moa"] == self.table["neighbour_moa"]).sum())

    @property
    def total(self) -> int:
        """Treatments that were asked, with or without an admissible neighbour."""
        return len(self.table)

    def __str__(self) -> str:
        return f"{self.correct}/{self.total}"


def treatments(
    profiles: Profiles, *, vehicle: str, how: Literal["mean", "median"] = "median"
) -> Profiles:
    """One profile a treatment (compound, concentration) that has a mechanism, the vehicle left out.

    ``batches`` in its meta holds the weeks of the wells that were profiled, which are what NSCB compares.
    """
    require_columns(
        profiles.meta.columns, ["compound", "concentration", "moa", "week"], profiles.source
    )
    keep = profiles.meta["moa"].notna() & (profiles.meta["compound"] != vehicle)
    if not keep.any():
        raise SchemaError(
            f"{profiles.source}: no treated well has a mechanism",
            expected="a moa for some treatments",
        )
    kept = profiles.where(keep)
    by = ["compound", "concentration"]
    weeks = (
        kept.meta.groupby(by)["week"]
        .apply(lambda names: tuple(sorted(set(names))))
        .rename("batches")
    )
    result = kept.averaged(by, how=how)
    meta = result.meta[[*by, "moa"]].merge(weeks.reset_index(), on=by, how="left", validate="1:1")
    return Profiles(result.values, meta, result.features, result.source)


def cosines(values: np.ndarray) -> np.ndarray:
    """Cosine similarity of every pair of rows, (rows, rows)."""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    if not np.isfinite(values).all() or not length.all():
        raise SchemaError(
            "a treatment's profile is zero or not finite",
            expected="numbers, some of them not zero",
            fix="tidy(profiles) names the wells",
        )
    unit = values / length
    return unit @ unit.T


def admissible(meta: pd.DataFrame, *, other_batch: bool) -> np.ndarray:
    """Which treatment may be which one's neighbour: another compound and, for NSCB, no batch in common."""
    compound = meta["compound"].to_numpy()
    allowed = compound[:, None] != compound[None]
    if other_batch:
        member = (
            pd.DataFrame([dict.fromkeys(names, 1.0) for names in meta["batches"]])
            .fillna(0.0)
            .to_numpy()
        )
        allowed &= member @ member.T == 0
    return allowed


def nearest(similarity: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The most similar allowed column of each row, -1 where none is allowed."""
    best = np.where(allowed, similarity, -np.inf).argmax(axis=1)
    return np.where(allowed.any(axis=1), best, -1)


def match_table(meta: pd.DataFrame, neighbour: np.ndarray) -> pd.DataFrame:
    """Each treatment with its neighbour; the neighbour's columns are missing where there is none."""
    found = meta.iloc[neighbour].reset_index(drop=True).where(pd.Series(neighbour >= 0))
    columns = {"neighbour": found["compound"], "neighbour_moa": found["moa"]}
    return meta[["compound", "concentration", "moa"]].assign(**columns)


def nsc(profiled: Profiles) -> Matching:
    """Not the same compound: all treatments are asked."""
    allowed = admissible(profiled.meta, other_batch=False)
    return Matching("NSC", match_table(profiled.meta, nearest(cosines(profiled.values), allowed)))


def nscb(profiled: Profiles, *, without: Sequence[str] = ONE_BATCH) -> Matching:
    """Not the same compound nor batch; mechanisms that lie in one batch are neither asked nor neighbours."""
    kept = profiled.where(~profiled.meta["moa"].isin(list(without)))
    allowed = admissible(kept.meta, other_batch=True)
    return Matching("NSCB", match_table(kept.meta, nearest(cosines(kept.values), allowed)))


def mechanism_folds(meta: pd.DataFrame, folds: int, *, rng: np.random.Generator) -> np.ndarray:
    """A fold for each treatment: a compound's treatments together, a mechanism's compounds spread over the folds.

    Every mechanism is tested, and none is ever tested without another compound to learn it from.
    """
    compounds = meta.drop_duplicates("compound")[["compound", "moa"]]
    count = compounds.groupby("moa").size()
    if (count < 2).any():
        raise SchemaError(
            f"{shorten(count.index[count < 2])} have one compound: held out, nothing is left to learn from",
            expected="two compounds or more for every mechanism",
        )
    if folds < 2:
        raise SchemaError(f"{folds} folds", expected="2 or more")
    fold: dict[str, int] = {}
    start = 0
    for _, names in compounds.sort_values(["moa", "compound"]).groupby("moa")["compound"]:
        for name in rng.permutation(names.to_numpy()):
            fold[str(name)] = start % folds
            start += 1
    return meta["compound"].map(fold).to_numpy()


def fold_matching(profiled: Profiles, folds: np.ndarray) -> Matching:
    """The nearest treatment of the other folds: stricter than NSC, since whole groups of compounds are away at once."""
    allowed = folds[:, None] != folds[None]
    return Matching(
        "k-fold", match_table(profiled.meta, nearest(cosines(profiled.values), allowed))
    )
