"""Drug candidates: which treatments bring diseased wells back to health, how surely, and at what cost elsewhere.

From sites to centred wells, the rows that hits are scored on.

A well described by the controls of its own plate: RxRx1's 30 siRNAs and the empty well, on every plate.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.tables import require_columns
from perturbgen.images.onoff import fit_axis, project_controls, z_prime
from perturbgen.profiles.correct import NestedCentre
from perturbgen.profiles.groups import Key, group_means, grouping
from perturbgen.profiles.table import Profiles, chosen

log = logging.getLogger(__name__)

_ROLES = ("healthy", "diseased", "treated")


@dataclass(frozen=True)
class _WellScores:
    """``wells``: the labels of each well with role, on, off, rescue, z_off and hit; ``gate``: Z' of each group, and if
    it passed.
    """

    wells: pd.DataFrame
    gate: pd.DataFrame


def score_wells(
    profiles: Profiles,
    *,
    healthy: np.ndarray,
    diseased: np.ndarray,
    by: Sequence[str] = ("experiment",),
    side_effect_weight: float = 0.25,
    gate: float = 0.0,
) -> _WellScores:
    """Project every well on the axis of its own group's controls; one row of ``profiles`` is one well.

    rescue = (on_d - on) / (on_d - on_h), on_d and on_h the mean on of diseased and healthy controls, each scored
    without itself: 0 for a well like the untreated, 1 for a healthy one. hit = rescue - weight max(0, z_off), where
    z_off is off in standard deviations of the diseased controls. Groups with fewer than two controls of a kind, or
    whose Z' is not above ``gate``, are left out, and said to be.
    """
    if (healthy & diseased).any():
        raise SchemaError(
            "some wells are both healthy and diseased controls",
            expected="two sets without overlap",
            fix="check --healthy and --diseased",
        )
    keys, codes = grouping(profiles.meta, by, profiles.source)
    role = np.select([healthy, diseased], _ROLES[:2], _ROLES[2])
    parts, gates = [], []
    for number, key in enumerate(keys):
        rows = np.flatnonzero(codes == number)
        scores, line = _score_group(
            np.asarray(profiles.values[rows], np.float64), role[rows], side_effect_weight
        )
        passed = scores is not None and line["Z'"] > gate
        gates.append(dict(zip(by, key, strict=True)) | line | {"passed": passed})
        if scores is not None and passed:
            parts.append(
                pd.concat([profiles.meta.iloc[rows].reset_index(drop=True), scores], axis=1)
            )
    table = pd.DataFrame(gates)
    _report_gate(table, by)
    return _WellScores(pd.concat(parts, ignore_index=True), table)


def _score_group(
    values: np.ndarray, role: np.ndarray, weight: float
) -> tuple[pd.DataFrame | None, dict[str, Any]]:
    """The scores of one group's wells, or None where its controls are too few, and its line for the gate."""
    healthy, diseased = role == "healthy", role == "diseased"
    line: dict[str, Any] = {
        "healthy": int(healthy.sum()),
        "diseased": int(diseased.sum()),
        "Z'": float("nan"),
    }
    if min(healthy.sum(), diseased.sum()) < 2:
        return None, line
    on, off = fit_axis(values[healthy], values[diseased]).project(values)
    own = project_controls(values[healthy], values[diseased])
    for mask, (control_on, control_off) in zip((healthy, diseased), own, strict=True):
        on[mask], off[mask] = control_on, control_off
    z_off = (off - off[diseased].mean()) / max(off[diseased].std(ddof=1), 1e-12)
    line["Z'"] = z_prime(on[healthy], on[diseased])
    rescue = (on[diseased].mean() - on) / (on[diseased].mean() - on[healthy].mean())
    hit = rescue - weight * np.maximum(0, z_off)
    return pd.DataFrame(
        {"role": role, "on": on, "off": off, "rescue": rescue, "z_off": z_off, "hit": hit}
    ), line


def _report_gate(table: pd.DataFrame, by: Sequence[str]) -> None:
    """Name the groups that are left out; an error when none is left."""
    failed = table[~table["passed"]]
    names = [" ".join(map(str, row)) for row in failed[list(by)].itertuples(index=False)]
    if len(failed) == len(table):
        raise SchemaError(
            f"the controls of no group can be told apart: {shorten(names)}",
            expected="two controls of each kind or more in a group, and a Z' above the gate",
            cause="too few controls, noise, or a correction that removed the disease",
            fix="average sites to wells, correct batches first, or --gate -1 to see the scores anyway",
        )
    if names:
        log.warning(
            "%d of %d groups left out (controls too few, or not told apart): %s",
            len(names),
            len(table),
            shorten(names),
        )


def _dose_table(
    wells: pd.DataFrame, *, treatment: str, dose: str, within: Sequence[str]
) -> pd.DataFrame:
    """One row for each treatment and dose of each stratum: wells, and the means of rescue, z_off and hit."""
    require_columns(wells.columns, [treatment, dose, *within], "the wells")
    treated = wells[(wells["role"] == "treated") & wells[treatment].notna() & wells[dose].notna()]
    if treated.empty:
        raise SchemaError(
            f"no treated well has a {treatment} and a {dose}", expected="drugs and their doses"
        )
    table = treated.groupby([*within, treatment, dose], observed=True).agg(
        wells=("hit", "size"),
        rescue=("rescue", "mean"),
        rescue_sd=("rescue", "std"),
        z_off=("z_off", "mean"),
        hit=("hit", "mean"),
    )
    return table.reset_index()


def hit_table(
    wells: pd.DataFrame,
    *,
    treatment: str,
    dose: str,
    within: Sequence[str] = ("cell_type",),
    draws: int = 20_000,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Treatments ranked by how far their best dose stands above the untreated diseased wells of their stratum.

    score = max over doses of (mean hit - mean hit of controls) / (sd sqrt(1/n + 1/m)), n wells of the dose, m controls.
    p: the same with wells drawn from the controls, which are redrawn as well, so that both sides' errors count and the
    best of six doses is compared with the best of six. q: Benjamini and Hochberg within the stratum.
    """
    doses = _dose_table(wells, treatment=treatment, dose=dose, within=within)
    tables = []
    strata = doses.groupby(list(within), observed=True) if within else [((), doses)]
    for key, part in strata:
        here = (wells[list(within)] == list(key)).all(axis=1)
        pool = wells.loc[here & (wells["role"] == "diseased"), "hit"].to_numpy()
        null = _Null(pool, draws=draws, rng=rng)
        lines = [
            _summary(str(name), rows, wells[here & (wells[treatment] == name)], null, dose)
            for name, rows in part.groupby(treatment, observed=True)
        ]
        table = _with_q(pd.DataFrame(lines))
        tables.append(table.join(pd.DataFrame([key] * len(table), columns=list(within))))
    ranked = pd.concat(tables, ignore_index=True)
    return ranked[[*within, *ranked.columns.drop(list(within))]]


def _with_q(table: pd.DataFrame) -> pd.DataFrame:
    """Adjusted p and the order of the list: by p, then by score."""
    from scipy.stats import false_discovery_control

    table["q"] = false_discovery_control(table["p"].to_numpy(), method="bh")
    return table.sort_values(
        ["p", "score"], ascending=[True, False], kind="stable", ignore_index=True
    )


class _Null:
    """Controls redrawn: what the score of a treatment without effect looks like, for each design of doses and wells."""

    def __init__(self, pool: np.ndarray, *, draws: int, rng: np.random.Generator) -> None:
        if len(pool) < 3:
            raise SchemaError(
                f"{len(pool)} diseased control wells in a stratum", expected="3 or more to resample"
            )
        self.pool, self.draws, self.rng = pool, draws, rng
        chosen = [
            rng.choice(pool, (min(500, draws - start), len(pool))) for start in range(0, draws, 500)
        ]
        self.mean = np.concatenate([part.mean(axis=1) for part in chosen])
        self.sd = np.maximum(np.concatenate([part.std(axis=1, ddof=1) for part in chosen]), 1e-12)
        self.known: dict[Key, np.ndarray] = {}

    def scores(self, means: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Each dose's distance from the controls in standard errors, (doses,)."""
        error = self.pool.std(ddof=1) * np.sqrt(1 / counts + 1 / len(self.pool))
        return (means - self.pool.mean()) / np.maximum(error, 1e-12)

    def p(self, score: float, counts: np.ndarray) -> float:
        """The share of redrawn designs that score as high, never 0."""
        design = tuple(sorted(int(n) for n in counts))
        if design not in self.known:
            self.known[design] = self.simulate(design)
        return float((1 + (self.known[design] >= score).sum()) / (1 + self.draws))

    def simulate(self, design: Sequence[int]) -> np.ndarray:
        """Scores (draws,) of a design: for each dose so many wells of the pool, spread corrected for its size."""
        size, best = len(self.pool), np.full(self.draws, -np.inf)
        for count in design:
            drawn = self.rng.choice(self.pool, (self.draws, count)).mean(axis=1) - self.pool.mean()
            error = self.sd * np.sqrt(1 / count + 1 / size)
            away = drawn * np.sqrt(size / (size - 1)) - (self.mean - self.pool.mean())
            best = np.maximum(best, away / error)
        return best


def _summary(
    name: str, doses: pd.DataFrame, wells: pd.DataFrame, null: _Null, dose: str
) -> dict[str, Any]:
    """One treatment's line: its best dose with a 95 % interval of the rescue, its score, p, and the trend."""
    counts = doses["wells"].to_numpy()
    scores = null.scores(doses["hit"].to_numpy(), counts)
    best, score = doses.iloc[int(scores.argmax())], float(scores.max())
    low, high = _interval(float(best["rescue"]), float(best["rescue_sd"]), int(best["wells"]))
    return {
        "treatment": name,
        "doses": len(doses),
        "wells": int(counts.sum()),
        "best_dose": float(best[dose]),
        "rescue": float(best["rescue"]),
        "low": low,
        "high": high,
        "z_off": float(best["z_off"]),
        "score": score,
        "trend": _trend(wells[dose].to_numpy(float), wells["hit"].to_numpy(float)),
        "p": null.p(score, counts),
    }


def _interval(mean: float, sd: float, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean; unknown for a single well."""
    from scipy.stats import t

    if count < 2:
        return float("nan"), float("nan")
    half = float(t.ppf((1 + level) / 2, count - 1)) * sd / np.sqrt(count)
    return mean - half, mean + half


def _trend(dose: np.ndarray, hit: np.ndarray) -> float:
    """Spearman's correlation of hit with dose over wells; unknown where there is one dose."""
    from scipy.stats import rankdata

    ranks = rankdata(dose), rankdata(hit)
    if min(np.ptp(rank) for rank in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def centred_wells(
    profiles: Profiles, healthy: str, centre: Sequence[str], well: Sequence[str]
) -> Profiles:
    """Profiles centred on the healthy rows of each group of ``centre`` (none: as they are), averaged to wells.

    Held in memory: the centred sites for as long as it takes, then one row a well.
    """
    if centre:
        step = NestedCentre(centre).fit(
            profiles.values, profiles.meta, control=chosen(profiles.meta, healthy)
        )
        centred = np.empty(profiles.values.shape, np.float32)
        profiles = profiles.with_values(step.transform(profiles.values, profiles.meta, out=centred))
    return profiles.averaged(well)


def _control_relative(
    profiles: Profiles,
    *,
    panel: np.ndarray,
    control: str,
    origin: str,
    by: Sequence[str] = ("experiment", "plate"),
    similarity: Literal["cosine", "distance"] = "cosine",
) -> Profiles:
    """For each row, how much it resembles each control of its plate: (rows, controls).

    ``panel`` marks the control rows, ``control`` is the column that names them, and ``origin`` the one all are seen
    from (EMPTY): r_k = cos(x - m_0, m_k - m_0), or -|x - m_k|. Nothing that adds to a whole plate changes it; with
    cosine nothing that scales it either. A control that a plate lacks is taken from its parent (the labels ``by`` but
    the last); a control's own row never counts in its own centroid.
    """
    names = sorted(profiles.meta.loc[panel, control].astype(str).unique())
    if origin not in names:
        raise SchemaError(
            f"no control {origin!r} in the panel",
            expected="the untreated control",
            fix=shorten(names),
        )
    values = np.asarray(profiles.values, np.float64)
    code = np.where(
        panel,
        np.array([names.index(n) if n in names else 0 for n in profiles.meta[control].astype(str)]),
        -1,
    )
    columns = [
        _one_control(profiles, values, code == number, by, name)
        for number, name in enumerate(names)
    ]
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
    """For each row the mean of one control on its plate, the row itself left out; its parent's where there is none."""
    result, open_rows = np.empty_like(values), np.ones(len(values), bool)
    for level in range(len(by), 0, -1):
        keys, codes = grouping(profiles.meta, by[:level], profiles.source)
        count, mean = group_means(values, np.flatnonzero(rows), codes, len(keys))
        left = count[codes] - rows
        usable = open_rows & (left > 0)
        total = mean[codes[usable]] * count[codes[usable]][:, None] - np.where(
            rows[usable][:, None], values[usable], 0
        )
        result[usable] = total / left[usable][:, None]
        open_rows &= ~usable
        if open_rows.any() and level > 1:
            log.debug(
                "control %s: %d rows take the mean of %s",
                name,
                open_rows.sum(),
                "/".join(by[: level - 1]),
            )
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
