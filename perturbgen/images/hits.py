"""Drug candidates: which treatments bring diseased wells back to health, how surely, at what cost.

On and off the axis from healthy to diseased (Cuccarese et al. 2020):

    mu = mean(healthy),  v = mean(diseased) - mu,  L = |v|
    on(x)  = <x - mu, v> / L^2                    0 for healthy, 1 for diseased on average
    off(x) = sqrt(|x - mu|^2 - (on L)^2)          what else was done to the cells
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.tables import require_columns
from perturbgen.profiles import Profiles
from perturbgen.profiles.correct import NestedCentre
from perturbgen.profiles.table import Groups

log = logging.getLogger(__name__)
_ROLES = ("healthy", "diseased", "treated")


@dataclass(frozen=True)
class _WellScores:
    """The labels of each well with role, on, off, rescue, z_off and hit; and Z' of each group."""

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
    """Project every well, a row of ``profiles``, on the axis of its own group's controls.

        rescue = (on_d - on) / (on_d - on_h)      0 for a well like the untreated, 1 for a healthy
        hit    = rescue - weight max(0, z_off)

    on_d and on_h are the mean on of diseased and healthy controls, each scored without itself;
    z_off is off in standard deviations of the diseased controls. Groups with fewer than two
    controls of a kind, or whose Z' is not above ``gate``, are left out, and said to be.
    """
    if (healthy & diseased).any():
        raise SchemaError(
            "some wells are both healthy and diseased controls",
            expected="two sets without overlap",
            fix="check --healthy and --diseased",
        )
    groups = Groups.of(profiles.meta, by, profiles.source)
    role = np.select([healthy, diseased], _ROLES[:2], _ROLES[2])
    parts, gates = [], []
    for number, key in enumerate(groups.keys):
        rows = np.flatnonzero(groups.codes == number)
        values = np.asarray(profiles.values[rows], np.float64)
        scores, line = _score_group(values, role[rows], side_effect_weight)
        # in a group whose controls overlap, rescue divides by noise
        passed = scores is not None and line["Z'"] > gate
        gates.append(dict(zip(by, key, strict=True)) | line | {"passed": passed})
        if scores is not None and passed:
            meta = profiles.meta.iloc[rows].reset_index(drop=True)
            parts.append(pd.concat([meta, scores], axis=1))
    table = pd.DataFrame(gates)
    _report_gate(table, by)
    return _WellScores(pd.concat(parts, ignore_index=True), table)


def _score_group(
    values: np.ndarray, role: np.ndarray, weight: float
) -> tuple[pd.DataFrame | None, dict[str, Any]]:
    """The scores of one group's wells, or None if it has too few controls, and its gate's line."""
    healthy, diseased = role == "healthy", role == "diseased"
    line: dict[str, Any] = {"healthy": int(healthy.sum()), "diseased": int(diseased.sum())}
    line["Z'"] = float("nan")
    if min(healthy.sum(), diseased.sum()) < 2:
        return None, line
    on, off = _project(values, values[healthy], values[diseased])
    # each control is scored without itself
    own = _project_controls(values[healthy], values[diseased])
    for mask, (control_on, control_off) in zip((healthy, diseased), own, strict=True):
        on[mask], off[mask] = control_on, control_off
    # off has no zero of its own: noise alone puts every well off the axis
    z_off = (off - off[diseased].mean()) / max(off[diseased].std(ddof=1), 1e-12)
    line["Z'"] = _z_prime(on[healthy], on[diseased])
    rescue = (on[diseased].mean() - on) / (on[diseased].mean() - on[healthy].mean())
    hit = rescue - weight * np.maximum(0, z_off)
    scores = {"role": role, "on": on, "off": off, "rescue": rescue, "z_off": z_off, "hit": hit}
    return pd.DataFrame(scores), line


def _project(
    values: np.ndarray, healthy: np.ndarray, diseased: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """on and off (rows,) of profiles (rows, features), on the axis of two sets of controls."""
    origin = healthy.mean(axis=0)
    direction = diseased.mean(axis=0) - origin
    if not np.linalg.norm(direction) > 1e-12 * max(np.abs(diseased).max(), np.abs(healthy).max()):
        raise SchemaError(
            "healthy and diseased controls have the same mean profile: there is no axis between "
            "them",
            expected="controls that differ",
            cause="centring by the disease itself, which removes it",
            fix="centre by experiment, plate and site only",
        )
    return _on_off(values - origin, np.broadcast_to(direction, values.shape))


def _on_off(away: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """on and off of ``away`` = x - mu (rows, features), each row with its own ``direction``."""
    length = (direction**2).sum(axis=1)
    on = (away * direction).sum(axis=1) / length
    return on, np.sqrt(np.maximum((away**2).sum(axis=1) - on**2 * length, 0))


def _project_controls(
    healthy: np.ndarray, diseased: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """on and off of the controls, each on the axis of all controls *but itself*.

    With itself in the mean a diseased control lies at 1 by construction, while a well that merely
    resembles it lies below, by |error of v|^2 / |v|^2: every inert drug would look like a rescue.
    """
    origin, far = healthy.mean(axis=0), diseased.mean(axis=0)
    own_origin, own_far = _without_each(healthy), _without_each(diseased)
    of_healthy = _on_off(healthy - own_origin, far - own_origin)
    return of_healthy, _on_off(diseased - origin, own_far - origin)


def _without_each(values: np.ndarray) -> np.ndarray:
    """For each row the mean of all the others, (rows, features)."""
    return (values.sum(axis=0) - values) / (len(values) - 1)


def _z_prime(healthy: np.ndarray, diseased: np.ndarray) -> float:
    """1 - 3 (sd + sd) / |difference of means| of the controls' on scores.

    At or below 0 the two cannot be told apart.
    """
    apart = abs(diseased.mean() - healthy.mean())
    spread = healthy.std(ddof=1) + diseased.std(ddof=1)
    return float(1 - 3 * spread / apart) if apart > 0 else -np.inf


def _report_gate(table: pd.DataFrame, by: Sequence[str]) -> None:
    """Name the groups that are left out; an error when none is left."""
    failed = table[~table["passed"]]
    names = [" ".join(map(str, row)) for row in failed[list(by)].itertuples(index=False)]
    if len(failed) == len(table):
        raise SchemaError(
            f"the controls of no group can be told apart: {shorten(names)}",
            expected="two controls of each kind or more in a group, and a Z' above the gate",
            cause="too few controls, noise, or a correction that removed the disease",
            fix="average sites to wells, correct batches first, or --gate -1 to see the scores "
            "anyway",
        )
    if names:
        what = "%d of %d groups left out (controls too few, or not told apart): %s"
        log.warning(what, len(names), len(table), shorten(names))


def _dose_table(
    wells: pd.DataFrame, *, treatment: str, dose: str, within: Sequence[str]
) -> pd.DataFrame:
    """One row for each treatment and dose of each stratum: wells, and means of their scores."""
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
    """Treatments ranked by how far their best dose stands above the stratum's untreated wells.

        score = max over doses of (mean hit - mean hit of controls) / (sd sqrt(1/n + 1/m))

    with n wells of the dose and m diseased controls. p: the same with wells drawn from the
    controls, which are redrawn as well, so that both sides' errors count and the best of six doses
    is compared with the best of six. q: Benjamini and Hochberg within the stratum.
    """
    from scipy.stats import false_discovery_control

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
        table = pd.DataFrame(lines)
        table["q"] = false_discovery_control(table["p"].to_numpy(), method="bh")
        # p has a floor, 1 in draws: the score orders what lies there
        table = table.sort_values(
            ["p", "score"], ascending=[True, False], kind="stable", ignore_index=True
        )
        tables.append(table.join(pd.DataFrame([key] * len(table), columns=list(within))))
    ranked = pd.concat(tables, ignore_index=True)
    return ranked[[*within, *ranked.columns.drop(list(within))]]


class _Null:
    """Controls redrawn: scores of a treatment without effect, by design of doses and wells."""

    def __init__(self, pool: np.ndarray, *, draws: int, rng: np.random.Generator) -> None:
        if len(pool) < 3:
            raise SchemaError(
                f"{len(pool)} diseased control wells in a stratum", expected="3 or more to resample"
            )
        self.pool, self.draws, self.rng = pool, draws, rng
        # 500 redrawn pools at a time: all at once would be draws x controls in memory
        sizes = (min(500, draws - start) for start in range(0, draws, 500))
        chosen = [rng.choice(pool, (size, len(pool))) for size in sizes]
        self.mean = np.concatenate([part.mean(axis=1) for part in chosen])
        self.sd = np.maximum(np.concatenate([part.std(axis=1, ddof=1) for part in chosen]), 1e-12)
        self.known: dict[tuple[int, ...], np.ndarray] = {}

    def scores(self, means: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Each dose's distance from the controls in standard errors, (doses,)."""
        # the controls' mean is uncertain too, hence 1/m beside 1/n
        error = self.pool.std(ddof=1) * np.sqrt(1 / counts + 1 / len(self.pool))
        return (means - self.pool.mean()) / np.maximum(error, 1e-12)

    def p(self, score: float, counts: np.ndarray) -> float:
        """The share of redrawn designs that score as high, never 0."""
        # the null depends on numbers of wells only, which most treatments share
        design = tuple(sorted(int(n) for n in counts))
        if design not in self.known:
            self.known[design] = self._simulate(design)
        # the score itself is one of the draws, so that p is never 0
        return float((1 + (self.known[design] >= score).sum()) / (1 + self.draws))

    def _simulate(self, design: Sequence[int]) -> np.ndarray:
        """Scores (draws,) of a design: for each dose so many wells of the pool."""
        size, best = len(self.pool), np.full(self.draws, -np.inf)
        for count in design:
            drawn = self.rng.choice(self.pool, (self.draws, count)).mean(axis=1) - self.pool.mean()
            error = self.sd * np.sqrt(1 / count + 1 / size)
            # drawn from the pool itself, wells vary by (size - 1) / size too little
            away = drawn * np.sqrt(size / (size - 1)) - (self.mean - self.pool.mean())
            best = np.maximum(best, away / error)
        return best


def _summary(
    name: str, doses: pd.DataFrame, wells: pd.DataFrame, null: _Null, dose: str
) -> dict[str, Any]:
    """One treatment's line: best dose, 95 % interval of the rescue, score, p and trend."""
    counts = doses["wells"].to_numpy()
    scores = null.scores(doses["hit"].to_numpy(), counts)
    best, score = doses.iloc[int(scores.argmax())], float(scores.max())
    rescue = float(best["rescue"])
    low, high = _interval(rescue, float(best["rescue_sd"]), int(best["wells"]))
    return {
        "treatment": name,
        "doses": len(doses),
        "wells": int(counts.sum()),
        "best_dose": float(best[dose]),
        "rescue": rescue,
        "low": low,
        "high": high,
        "z_off": float(best["z_off"]),
        "score": score,
        "trend": _trend(wells[dose].to_numpy(float), wells["hit"].to_numpy(float)),
        "p": null.p(score, counts),
    }


def _interval(mean: float, sd: float, count: int) -> tuple[float, float]:
    """Student's 95 % interval of a mean."""
    from scipy.stats import t

    if count < 2:  # one well has no spread
        return float("nan"), float("nan")
    half = float(t.ppf(0.975, count - 1)) * sd / np.sqrt(count)
    return mean - half, mean + half


def _trend(dose: np.ndarray, hit: np.ndarray) -> float:
    """Spearman's correlation of hit with dose over wells; unknown where there is one dose."""
    from scipy.stats import rankdata

    # of ranks: doses are steps of a logarithm, and effects level off
    ranks = rankdata(dose), rankdata(hit)
    if min(np.ptp(rank) for rank in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def centred_wells(
    profiles: Profiles, healthy: str, centre: Sequence[str], well: Sequence[str]
) -> Profiles:
    """Wells centred on the healthy rows of each group of ``centre`` (none: as they are).

    Only healthy rows centre: with the diseased ones among them the disease is centred away (on
    RxRx19a 119 drugs were called, of which 8 were true). Held in memory: the centred sites for as
    long as it takes, then one row a well.
    """
    if centre:
        control = profiles.chosen(healthy)
        step = NestedCentre(centre).fit(profiles.values, profiles.meta, control=control)
        centred = np.empty(profiles.values.shape, np.float32)
        profiles = profiles.with_values(step.transform(profiles.values, profiles.meta, out=centred))
    return profiles.averaged(well)
