"""How well samplers foretell wells they never saw: conditions are hidden as the competition hides them, and scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.errors import ConfigError, SchemaError
from perturbgen.sampling.sampler import CellSampler, fit_samplers
from perturbgen.sampling.scores import coverage, crps, pit
from perturbgen.sampling.settings import SamplerSettings
from perturbgen.sampling.wells import CONDITION, GROUP, WellTable

Floats = NDArray[np.float64]
TARGETS: Final = ("cells", "depth")
LEVELS: Final = (0.5, 0.8, 0.95)
TUNING_DRAWS: Final = 50
ROWS_AT_ONCE: Final = 8192
FEWEST_CELLS: Final = 5  # the median library size of fewer cells says nothing of the well


def hidden_folds(groups: pd.DataFrame, folds: int, *, rng: np.random.Generator) -> NDArray[np.int64]:
    """The fold in which each row is hidden (rows,): the cell types of a compound are dealt to the folds; -1 is never.

    Controls, which stand in more than twice as many wells as the median compound, are always measured: never hidden.
    """
    wells = groups.drop_duplicates(["plate", "well"]).groupby("compound").size()
    controls = wells.index[wells > 2 * wells.median()]
    conditions = groups[CONDITION].drop_duplicates().sort_values(["compound", "cell_type"], ignore_index=True)
    conditions["turn"] = conditions.groupby("compound")["compound"].transform(lambda part: rng.permutation(len(part)))
    conditions["fold"] = conditions["turn"] % folds
    conditions.loc[conditions["compound"].isin(controls), "fold"] = -1
    fold = groups[CONDITION].merge(conditions, on=CONDITION, how="left", validate="many_to_one")["fold"]
    if not (fold >= 0).any():
        raise SchemaError("every compound is a control: no condition can be hidden", expected="compounds in few wells")
    return fold.to_numpy()


def cross_validate(
    table: WellTable, settings: SamplerSettings, *, rng: np.random.Generator, folds: int = 3, draws: int = 100
) -> pd.DataFrame:
    """The scores of every well x cell type that was hidden once, as :func:`score_wells` gives them."""
    if folds < 2:
        raise ConfigError(f"{folds} folds", expected="2 or more")
    fold = hidden_folds(table.groups, folds, rng=rng)
    parts = []
    for i in range(folds):
        if (fold == i).any():
            sampler = fit_samplers(table.take(fold != i), rng=rng, settings=settings)
            parts.append(score_wells(sampler, table.take(fold == i), draws=draws, rng=rng))
    return pd.concat(parts, ignore_index=True)


def score_wells(sampler: CellSampler, held: WellTable, *, draws: int, rng: np.random.Generator) -> pd.DataFrame:
    """One row for each held well x cell type: what was observed, the drawn median and interval, CRPS and PIT.

    ``cells`` is the number of cells; ``depth`` the median library size, given nothing but the condition.
    """
    if draws < 2:
        raise ConfigError(f"{draws} draws", expected="2 or more")
    counts = sampler.counts(held.groups, draws, rng)
    drawn = {"cells": counts.to_numpy(float), "depth": draw_medians(sampler, held.groups, counts, rng)}
    observed = observed_wells(held)
    parts = [observed, *(score_draws(name, drawn[name], observed[name], rng=rng) for name in TARGETS)]
    return pd.concat(parts, axis=1)


def observed_wells(held: WellTable) -> pd.DataFrame:
    """The labels of the wells, their ``cells`` and their median library size as ``depth`` (NaN below five cells)."""
    median = [np.exp(np.median(part)) if len(part) >= FEWEST_CELLS else np.nan for part in cells_of(held)]
    return held.groups[[*GROUP, "compound"]].assign(cells=held.groups["n_cells"], depth=median)


def cells_of(table: WellTable) -> list[Floats]:
    """Log library sizes of the cells of each row."""
    return np.split(table.log_libraries, table.starts[1:-1])


def draw_medians(
    sampler: CellSampler, conditions: pd.DataFrame, counts: pd.DataFrame, rng: np.random.Generator
) -> Floats:
    """Median library sizes (conditions, draws) for the drawn numbers of cells, five cells at the fewest."""
    columns = []
    at_once = max(1, ROWS_AT_ONCE // max(len(conditions), 1))
    for start in range(0, counts.shape[1], at_once):
        part = counts.iloc[:, start : start + at_once].to_numpy()
        many = pd.concat([conditions] * part.shape[1], ignore_index=True)
        drawn = sampler.libraries(many, np.maximum(part.T.ravel(), FEWEST_CELLS), rng)
        columns.append(np.array([np.median(sizes) for sizes in drawn]).reshape(part.T.shape))
    return np.concatenate(columns).T


def score_draws(name: str, draws: Floats, observed: pd.Series, *, rng: np.random.Generator) -> pd.DataFrame:
    """CRPS, PIT, median and the 80 % interval of draws (rows, n), as columns that begin with ``name``."""
    known = observed.notna().to_numpy()
    low, middle, high = np.quantile(draws, [0.1, 0.5, 0.9], axis=1)
    values = {
        "crps": np.where(known, crps(draws, observed.fillna(0).to_numpy()), np.nan),
        "pit": np.where(known, pit(draws, observed.fillna(0).to_numpy(), rng=rng), np.nan),
        "low": low, "median": middle, "high": high,
    }  # fmt: skip
    return pd.DataFrame({f"{name}_{key}": value for key, value in values.items()}, index=observed.index)


def summarise(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """One row for each quantity and cell type, and for all: wells, CRPS, coverage of the 50, 80 and 95 % intervals."""
    rows = []
    for name in TARGETS:
        known = scores[scores[f"{name}_pit"].notna()]
        for kind, part in [("all", known), *known.groupby("cell_type", observed=True)]:
            values = part[f"{name}_pit"].to_numpy()
            rows.append(
                {"quantity": name, "cell type": str(kind), "wells": len(part), "mean": float(part[name].mean()),
                 "CRPS": float(part[f"{name}_crps"].mean())}
                | {f"{level:.0%}": coverage(values, level) for level in LEVELS}
            )  # fmt: skip
    return rows


def choose_settings(
    table: WellTable, candidates: Sequence[SamplerSettings], *, rng: np.random.Generator, folds: int = 3
) -> tuple[SamplerSettings, list[dict[str, Any]]]:
    """The settings with the best CRPS on hidden conditions (relative, cells and depth alike), and all scores.

    Every candidate meets the same folds and the same random numbers.
    """
    seed = int(rng.integers(2**31))
    rows = []
    for settings in candidates:
        scores = cross_validate(table, settings, rng=np.random.default_rng(seed), folds=folds, draws=TUNING_DRAWS)
        relative = [scores[f"{name}_crps"].mean() / scores[name].mean() for name in TARGETS]
        rows.append(settings.model_dump() | dict(zip(TARGETS, relative, strict=True)) | {"mean": np.mean(relative)})
    best = int(np.argmin([row["mean"] for row in rows]))
    return candidates[best], rows
