"""What the latent points of a trained model hold of the states that the simulation planted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Dimensions that vary by less over cells carry nothing (Burda et al. 2016), as the gauge counts.
_ACTIVE: Final = 0.01
_CONDITION: Final = ["cell_type", "compound"]


def active_dimensions(latents: np.ndarray) -> int:
    """How many dimensions of latent points (cells, latent) vary over cells."""
    return int((latents.var(axis=0) > _ACTIVE).sum())


def followed(latents: np.ndarray, states: pd.DataFrame, obs: pd.DataFrame) -> pd.DataFrame:
    """R² of each planted state on latent points (cells, latent) by a line, out of sample.

    By cell type, since programmes differ, and among cells of one condition: what the compounds move
    is taken off. The last row is the mean over cells. Missing where a type has too few cells.
    """
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import cross_val_predict

    keys = [obs[name].astype(str).to_numpy() for name in _CONDITION]
    planted = _numbers(states)
    points = _within(pd.DataFrame(latents), keys).to_numpy()
    centred, kinds = _within(planted.reset_index(drop=True), keys), keys[0]
    table = pd.DataFrame(index=sorted(set(kinds)), columns=planted.columns, dtype=float)
    for kind in table.index:
        here = kinds == kind
        for name in table.columns:
            y = centred[name].to_numpy()[here]
            if here.sum() >= 100 and y.var() > 1e-6:
                fit = cross_val_predict(LinearRegression(), points[here], y, cv=5)
                table.loc[kind, name] = 1 - np.mean((y - fit) ** 2) / y.var()
    counts = pd.Series(kinds).value_counts()[table.index].to_numpy()
    table.loc["all"] = [
        np.average(table[name].fillna(0), weights=counts * table[name].notna()) for name in table
    ]
    return table


def _within(values: pd.DataFrame, keys: list[np.ndarray]) -> pd.DataFrame:
    return values - values.groupby(keys).transform("mean")


def _numbers(states: pd.DataFrame) -> pd.DataFrame:
    """States as columns of numbers; a phase as cosine and sine, 0 for cells that do not cycle."""
    phase = states["cycle_phase"]
    number = states["subtype"].astype(str).str.split().str[-1]
    columns = {
        "cycling": phase.notna().astype(float),
        "phase (cos)": np.cos(phase).fillna(0.0),
        "phase (sin)": np.sin(phase).fillna(0.0),
        "activation": states["activation"].astype(float),
        "maturation": states["maturation"].astype(float),
        **{f"subtype {k}": (number == k).astype(float) for k in sorted(number.unique())},
    }
    return pd.DataFrame(columns)


def picture(latents: np.ndarray, states: pd.DataFrame, obs: pd.DataFrame, kind: str) -> Figure:
    """The latent points of cells of one type in three of their planes, coloured by the states."""
    from matplotlib.figure import Figure

    here = (obs["cell_type"] == kind).to_numpy()
    points = latents[here]
    order = np.argsort(points.var(axis=0))[::-1]
    planted = _numbers(states)[here]
    figure = Figure(figsize=(13, 4), layout="constrained")
    names = ("activation", "cycling", "subtype 1")
    for axes, name in zip(figure.subplots(1, 3), names, strict=True):
        y = planted[name].to_numpy()
        # the two of the active dimensions that vary most with this state
        tied = [abs(np.corrcoef(points[:, d], y)[0, 1]) for d in order[:5]]
        first, second = order[np.argsort(tied)[::-1][:2]]
        low, high = np.quantile(y, [0.02, 0.98])
        shown = axes.scatter(
            *points[:, [first, second]].T,
            c=y,
            s=3,
            cmap="viridis",
            rasterized=True,
            vmin=low,
            vmax=max(high, low + 1e-9) if name != "cycling" else 1,
        )
        axes.set(title=name, xlabel=f"dimension {first}", ylabel=f"dimension {second}")
        figure.colorbar(shown, ax=axes)
    return figure
