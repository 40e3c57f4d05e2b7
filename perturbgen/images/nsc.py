"""Not-same-compound matching: has the nearest treatment of another compound the same mechanism?

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
from perturbgen.profiles import Profiles
from perturbgen.profiles.linear import unit

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
            member = pd.DataFrame([dict.fromkeys(names, 1.0) for names in meta["batches"]]).fillna(
                0.0
            )
            allowed &= member.to_numpy() @ member.to_numpy().T == 0
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
        neighbour = cls.nearest(cosines(profiled.values), allowed)
        return cls.of(name, profiled.meta, neighbour)

    @classmethod
    def nsc(cls, profiled: Profiles) -> Matching:
        """Not the same compound: all treatments are asked."""
        return cls.by("NSC", profiled, cls.admissible(profiled.meta, other_batch=False))

    @classmethod
    def nscb(cls, profiled: Profiles, *, without: Sequence[str] = ONE_BATCH) -> Matching:
        """Not the same compound nor batch; mechanisms of one batch are no neighbours either."""
        kept = profiled.where(~profiled.meta["moa"].isin(list(without)))
        return cls.by("NSCB", kept, cls.admissible(kept.meta, other_batch=True))

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
    # a treatment profiled in several weeks shares a batch with the treatments of each
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
