"""Does the nearest neighbour in a network's embedding share the mechanism? BBBC021's questions, each with its own name.

A network that was trained on all treatments, without their mechanisms, is asked NSC and NSCB. One that was trained
without a group of compounds is asked about these only, and the neighbours are the treatments of all other groups (where
mechanisms were learned, of the group it was validated on, too): the question a new compound poses. The two numbers are
never one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.errors import SchemaError
from perturbgen.profiles.imaging.bbbc021 import VEHICLE
from perturbgen.profiles.imaging.correct import ControlScaler, Correction, Pipeline, Sphering, tvn
from perturbgen.profiles.imaging.correct.build import marked, rows_to_fit
from perturbgen.profiles.imaging.nsc import ONE_BATCH, Matching, admissible, cosines, match_table, nearest, treatments
from perturbgen.profiles.imaging.profiles import Profiles


def corrections() -> dict[str, Correction]:
    """What is done to wells before they are compared, fitted on the vehicle's."""
    return {
        "raw": Pipeline(),
        "z + TVN": tvn(),
        "z in each plate + TVN": Pipeline(ControlScaler(["plate"], shrink=12), Sphering()),
    }


def corrected_wells(fields: Profiles, *, withhold: float = 0.0) -> dict[str, Profiles]:
    """Wells, the means over their fields, under each correction, labelled by whether it was fitted on them.

    ``withhold`` is the share of each plate's vehicle wells that is left out of the fit.
    """
    wells = fields.averaged(["plate", "well"])
    control = (wells.meta["compound"] == VEHICLE).to_numpy()
    if not control.any():
        raise SchemaError(
            f"{fields.source}: no {VEHICLE} well to correct by", expected="the vehicle's wells among them"
        )
    fitted = rows_to_fit(wells.meta, control, withhold=withhold, rng=np.random.default_rng(0))
    return {
        name: marked(wells.with_values(step.fit_transform(wells.values, wells.meta, control=fitted)), fitted)
        for name, step in corrections().items()
    }


def matchings(wells: Profiles, *, withheld: Sequence[str] = ()) -> dict[str, Matching]:
    """NSC and NSCB over all treatments, or over those of ``withheld`` compounds with the others as neighbours."""
    profiled = treatments(wells, vehicle=VEHICLE)
    found = {}
    for name, without, other_batch in (("NSC", (), False), ("NSCB", ONE_BATCH, True)):
        kept = profiled.where(~profiled.meta["moa"].isin(without))
        allowed = admissible(kept.meta, other_batch=other_batch)
        away = kept.meta["compound"].isin(list(withheld)).to_numpy()
        if withheld:
            allowed &= ~away[None]
        table = match_table(kept.meta, nearest(cosines(kept.values), allowed))
        asked = table[away].reset_index(drop=True) if withheld else table
        found[f"{name} of new compounds" if withheld else name] = Matching(name, asked)
    return found


def matching_rows(fields: Profiles, part: Sequence[str]) -> list[dict[str, Any]]:
    """Share of treatments matched under each correction; ``fields`` are all of a run's.

    If the run withheld compounds, only they are asked about, and only where ``part`` holds ``test``.
    """
    away = fields.meta.loc[fields.meta["part"] == "test", "compound"].dropna().unique().tolist()
    if away and part and "test" not in part:
        return []
    rows = []
    for correction, wells in corrected_wells(fields).items():
        for name, found in matchings(wells, withheld=away).items():
            share = found.correct / found.total if found.total else float("nan")
            cells = dict.fromkeys(fields.meta["cell_type"].unique(), share)
            rows.append(
                {"of": "treatment", "decoding": f"{name}, {correction}", "n": found.total, **cells, "all": share}
            )
    return rows


def pooled(parts: Sequence[Mapping[str, Matching]]) -> dict[str, Matching]:
    """The answers about each group of compounds, by the network that was trained without it, as one table."""
    return {
        name: Matching(name, pd.concat([found[name].table for found in parts], ignore_index=True)) for name in parts[0]
    }


def by_chance(wells: Profiles, *, draws: int, rng: np.random.Generator) -> dict[str, float]:
    """Mean share matched when mechanisms are dealt out to compounds at random, as many of each as there are."""
    compounds = wells.meta.loc[wells.meta["moa"].notna() & (wells.meta["compound"] != VEHICLE), ["compound", "moa"]]
    compounds = compounds.drop_duplicates("compound")
    shares: dict[str, list[float]] = {}
    for _ in range(draws):
        dealt = dict(zip(compounds["compound"], rng.permutation(compounds["moa"].to_numpy()), strict=True))
        meta = wells.meta.assign(moa=wells.meta["compound"].map(dealt))
        for name, found in matchings(Profiles(wells.values, meta, wells.features)).items():
            shares.setdefault(name, []).append(found.correct / found.total)
    return {name: float(np.mean(values)) for name, values in shares.items()}
