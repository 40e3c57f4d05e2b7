"""How well samplers foretell wells that they never saw, withheld as the competition does.

Drawn distributions are scored by CRPS, the coverage of their intervals and PIT; a page shows what
was foretold of withheld wells, and what was there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.core.page import PALETTE, Page
from perturbgen.core.stats import deal
from perturbgen.core.tables import CONDITION
from perturbgen.generate.forest import SamplerSettings
from perturbgen.generate.sampler import CellSampler
from perturbgen.generate.wells import GROUP, WellTable

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_Floats = NDArray[np.float64]


def _crps(draws: NDArray[np.generic], observed: NDArray[np.generic]) -> _Floats:
    """Continuous ranked probability score (rows,) of draws (rows, n); lower is better.

    E|X - y| - E|X - X'| / 2 (Gneiting and Raftery 2007), in the fair form for a finite number of
    draws: pairs of a draw with itself do not count. A single draw is a point forecast: its CRPS
    is the absolute error.
    """
    ordered = np.sort(np.asarray(draws, float), axis=1)
    n = ordered.shape[1]
    error = np.abs(ordered - np.asarray(observed, float)[:, None]).mean(axis=1)
    if n == 1:
        return error
    # Sorted, Σ|X - X'| over pairs is a weighted sum: n log n, not n².
    rank = 2 * np.arange(n) - n + 1
    return error - (ordered @ rank) / (n * (n - 1))


def _pit(
    draws: NDArray[np.generic], observed: NDArray[np.generic], *, rng: np.random.Generator
) -> _Floats:
    """Probability integral transform (rows,), random between P(X < y) and P(X <= y)."""
    y = np.asarray(observed)[:, None]
    below, equal = (draws < y).sum(axis=1), (draws == y).sum(axis=1)
    return (below + rng.random(len(y)) * (equal + 1)) / (draws.shape[1] + 1)


def coverage(values: _Floats, level: float) -> float:
    """Share of PIT values (rows,) inside the central interval of this probability."""
    return float((np.abs(values - 0.5) <= level / 2).mean())


TARGETS: Final = ("cells", "depth")
LEVELS: Final = (0.5, 0.8, 0.95)
_ROWS_AT_ONCE: Final = 8192
_FEWEST_CELLS: Final = 5  # the median library size of fewer cells says nothing of the well


def _withheld_folds(
    groups: pd.DataFrame, folds: int, *, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The fold that withholds each row, -1 for never: a compound's cell types are dealt out.

    Controls, which stand in more than twice as many wells as the median compound, are always
    measured: never withheld.
    """
    by = list(CONDITION)
    wells = groups.drop_duplicates(["plate", "well"]).groupby("compound").size()
    controls = wells.index[wells > 2 * wells.median()]
    conditions = groups[by].drop_duplicates().sort_values(by[::-1], ignore_index=True)
    compounds = conditions.groupby("compound")["compound"]
    conditions["fold"] = compounds.transform(lambda part: deal(len(part), folds, rng))
    conditions.loc[conditions["compound"].isin(controls), "fold"] = -1
    fold = groups[by].merge(conditions, on=by, how="left", validate="many_to_one")["fold"]
    if not (fold >= 0).any():
        raise SchemaError(
            "every compound is a control: no condition can be withheld",
            expected="compounds in few wells",
        )
    return fold.to_numpy()


def cross_validate(
    table: WellTable,
    settings: SamplerSettings,
    *,
    rng: np.random.Generator,
    folds: int = 3,
    draws: int = 100,
) -> pd.DataFrame:
    """The scores of every well x cell type, each withheld once, by :func:`score_samplers`."""
    if folds < 2:
        raise ConfigError(f"{folds} folds", expected="2 or more")
    fold = _withheld_folds(table.groups, folds, rng=rng)
    parts = []
    for i in range(folds):
        if (fold == i).any():
            sampler = CellSampler.fit(table.take(fold != i), rng=rng, settings=settings)
            parts.append(score_samplers(sampler, table.take(fold == i), draws=draws, rng=rng))
    return pd.concat(parts, ignore_index=True)


def score_samplers(
    sampler: CellSampler, withheld: WellTable, *, draws: int, rng: np.random.Generator
) -> pd.DataFrame:
    """What was observed in each withheld well x cell type, the drawn median, CRPS and PIT.

    ``cells`` is the number of cells; ``depth`` the median library size, given nothing but the
    condition.
    """
    if draws < 2:
        raise ConfigError(f"{draws} draws", expected="2 or more")
    groups = withheld.groups
    n_cells = sampler.cell_numbers(groups, draws, rng)
    medians = _draw_medians(sampler, groups, n_cells, rng)
    drawn = {"cells": n_cells.to_numpy(float), "depth": medians}
    observed = observed_wells(withheld)
    scores = (score_draws(name, drawn[name], observed[name], rng=rng) for name in TARGETS)
    return pd.concat([observed, *scores], axis=1)


def observed_wells(table: WellTable) -> pd.DataFrame:
    """The wells' labels, ``cells``, and median library size as ``depth`` (NaN below five cells)."""
    sizes = np.split(table.log_libraries, table.starts[1:-1])
    depth = [np.exp(np.median(s)) if len(s) >= _FEWEST_CELLS else np.nan for s in sizes]
    return table.groups[[*GROUP, "compound"]].assign(cells=table.groups["n_cells"], depth=depth)


def _draw_medians(
    sampler: CellSampler, conditions: pd.DataFrame, n_cells: pd.DataFrame, rng: np.random.Generator
) -> _Floats:
    """Median library sizes (conditions, draws) of the drawn numbers of cells, five at least."""
    columns = []
    at_once = max(1, _ROWS_AT_ONCE // max(len(conditions), 1))
    for start in range(0, n_cells.shape[1], at_once):
        part = n_cells.iloc[:, start : start + at_once].to_numpy()
        # Several draws as one long table, since a forest is slow on few rows.
        many = pd.concat([conditions] * part.shape[1], ignore_index=True)
        drawn = sampler.libraries(many, np.maximum(part.T.ravel(), _FEWEST_CELLS), rng)
        columns.append(np.array([np.median(sizes) for sizes in drawn]).reshape(part.T.shape))
    return np.concatenate(columns).T


def score_draws(
    name: str, draws: _Floats, observed: pd.Series, *, rng: np.random.Generator
) -> pd.DataFrame:
    """CRPS, PIT, median and 80 % interval of draws (rows, n); columns begin with ``name``."""
    known, values = observed.notna().to_numpy(), observed.fillna(0).to_numpy()
    low, middle, high = np.quantile(draws, [0.1, 0.5, 0.9], axis=1)
    columns = {
        "crps": np.where(known, _crps(draws, values), np.nan),
        "pit": np.where(known, _pit(draws, values, rng=rng), np.nan),
        "low": low,
        "median": middle,
        "high": high,
    }
    return pd.DataFrame(columns, index=observed.index).add_prefix(f"{name}_")


def summarise(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """CRPS and coverage of the 50, 80 and 95 % intervals, by quantity and cell type."""
    rows = []
    for name in TARGETS:
        known = scores[scores[f"{name}_pit"].notna()]
        for kind, part in [("all", known), *known.groupby("cell_type", observed=True)]:
            values = part[f"{name}_pit"].to_numpy()
            rows.append(
                {
                    "quantity": name,
                    "cell type": str(kind),
                    "wells": len(part),
                    "mean": float(part[name].mean()),
                    "CRPS": float(part[f"{name}_crps"].mean()),
                }
                | {f"{level:.0%}": coverage(values, level) for level in LEVELS}
            )
    return rows


_MEANING: Final = {"cells": "cells in the well", "depth": "median library size of the well"}
_ABOUT_SCORES: Final = (
    "CRPS: lower is better, in the quantity's own units. The last columns say how many of the "
    "withheld wells fell into the central 50, 80 and 95 % intervals."
)
_ABOUT_FOUND: Final = (
    "Observed against the median of the draws, a point for each withheld well and cell type. On "
    "the dashed line they agree; hovering shows the 80 % interval."
)
_ABOUT_PIT: Final = (
    "Where the observed value lies among the draws. A calibrated sampler gives flat bars: a hump "
    "in the middle is too wide, horns at the ends too narrow, a slope is bias."
)
_ABOUT_COVERAGE: Final = (
    "Share of the wells inside the central interval against the interval's probability. On the "
    "dashed line is calibrated; the grey band is five points either way."
)
_MOST_POINTS: Final = 3000
_BINS: Final = 20
_DASHED: Final = {"dash": "dash", "color": PALETTE[7]}


def calibration_page(
    scores: pd.DataFrame, summary: list[dict[str, Any]], *, title: str, lead: str
) -> Page:
    """A page of the scores of withheld wells (see :func:`score_samplers`) and their summary."""
    page = Page(title, lead)
    page.section("Scores", _ABOUT_SCORES)
    page.table(summary)
    for name in TARGETS:
        known = scores[scores[f"{name}_pit"].notna()]
        page.section(_MEANING[name].capitalize())
        page.figure(_found_figure(known, name), _ABOUT_FOUND)
        page.figure(_pit_figure(known, name), _ABOUT_PIT)
        page.figure(_coverage_figure(known, name), _ABOUT_COVERAGE)
    return page


def _found_figure(scores: pd.DataFrame, name: str) -> Figure:
    """Observed against predicted, both axes logarithmic."""
    import plotly.graph_objects as go

    step = -(-len(scores) // _MOST_POINTS)
    kinds = scores.iloc[::step].groupby("cell_type", observed=True)
    figure = go.Figure()
    shift = int(name == "cells")  # wells may be empty, and the axes are logarithmic
    for (kind, part), colour in zip(kinds, PALETTE, strict=False):
        low, high = (part[f"{name}_{end}"].map("{:,.0f}".format) for end in ("low", "high"))
        hover = part["compound"] + ", " + part["plate"] + ", 80 %: " + low + " to " + high
        marker = {"size": 5, "opacity": 0.6, "color": colour}
        points = {"mode": "markers", "name": str(kind), "text": hover, "marker": marker}
        figure.add_scattergl(x=part[f"{name}_median"] + shift, y=part[name] + shift, **points)
    both = scores[[name, f"{name}_median"]] + shift
    ends = [float(both.min().min()), float(both.max().max())]
    figure.add_scatter(x=ends, y=ends, mode="lines", name="equal", line=_DASHED)
    more = " + 1" if shift else ""
    figure.update_xaxes(title=f"predicted median{more}: {_MEANING[name]}", type="log", dtick="D2")
    figure.update_yaxes(title=f"observed{more}", type="log", dtick="D2")
    return figure.update_layout(height=460)


def _pit_figure(scores: pd.DataFrame, name: str) -> Figure:
    """Histogram of the PIT, with the band that chance alone would fill."""
    import plotly.graph_objects as go

    edges = np.linspace(0, 1, _BINS + 1)
    share = np.histogram(scores[f"{name}_pit"], edges)[0] / len(scores) * _BINS
    middle = (edges[1:] + edges[:-1]) / 2
    noise = np.sqrt(_BINS / len(scores))
    figure = go.Figure(go.Bar(x=middle, y=share, name="all wells", marker={"opacity": 0.6}))
    band = {"fillcolor": PALETTE[7], "opacity": 0.15, "line_width": 0}
    figure.add_hrect(y0=1 - 2 * noise, y1=1 + 2 * noise, **band)
    figure.add_hline(y=1, line=_DASHED)
    figure.update_xaxes(title="place of the observed value among the draws (PIT)", range=[0, 1])
    figure.update_yaxes(title="density (band: chance alone)", rangemode="tozero")
    return figure.update_layout(height=320, bargap=0.05)


def _coverage_figure(scores: pd.DataFrame, name: str) -> Figure:
    """Found against nominal coverage, a line for each cell type."""
    import plotly.graph_objects as go

    levels = np.linspace(0.02, 0.98, 49)
    figure = go.Figure()
    figure.add_scatter(
        x=np.concatenate([levels, levels[::-1]]),
        y=np.concatenate([levels - 0.05, levels[::-1] + 0.05]),
        fill="toself",
        name="within five points",
        line={"width": 0},
        fillcolor="rgba(89,89,89,0.15)",
        hoverinfo="skip",
    )
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="calibrated", line=_DASHED)
    kinds = scores.groupby("cell_type", observed=True)
    for (kind, part), colour in zip(kinds, PALETTE, strict=False):
        found = [coverage(part[f"{name}_pit"].to_numpy(), level) for level in levels]
        figure.add_scatter(x=levels, y=found, mode="lines", name=str(kind), line={"color": colour})
    figure.update_xaxes(title="probability of the interval", range=[0, 1])
    figure.update_yaxes(title="share of wells inside", range=[0, 1])
    return figure.update_layout(height=420)
