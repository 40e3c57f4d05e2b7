"""What cells of one well and type differ by: cell cycle, activation, maturation, and their genes.

A cell's means are its well's times exp(scores · loadings), each gene divided by the mean of that
factor over the law of the states. So a well's expected expression stays what the truth says, and
states are seen between cells alone. Compounds move activation along what they do to expression
anyway: its programme is the main direction of their true effects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd
from scipy import special, stats

from perturbgen.core.tables import VEHICLE
from perturbgen.simulation.op3.effects import Effects
from perturbgen.simulation.op3.settings import CELL_TYPES, SimulationSettings

# A cell's states, as the simulated files name them.
STATES: Final = ("cycle_phase", "activation", "maturation", "subtype")
# Programmes of on and off (a phase, a subtype) move their genes more than a standard deviation of
# a continuous state does: their share of the variance would be small.
_DISCRETE: Final = 2.0
# The first component within a type holds half of what the first five do: activation leads.
_ACTIVATION: Final = 1.5
# Loadings end at this multiple of the strength: exp(x²/2) of a heavier tail is one gene's cell.
_LARGEST: Final = 2.0
# The scores that carry the cycle (cycling, and cosine and sine of the phase), activation and
# maturation; the subtypes come behind them.
_CONTINUOUS: Final = 5
# Dispersion that stays with a gene whose states explain all that its trend allows.
_SMALLEST_DISPERSION: Final = 0.02
# How much more a selective compound harms its cell type than by chance: a gamma law of mean one.
_SELECTIVE: Final = stats.gamma(3.0, scale=1 / 3)
# Of the cells in three donors' Dabrafenib wells .06 to .07 are NK, .50 to .59 T, .21 to .25 myeloid
# and .11 to .22 B cells: NK cells die, myeloid ones do not.
_KNOWN_LOSS: Final = {"Dabrafenib": {"NK cells": 1.85, "B cells": 0.5, "T cells": 0.35}}


@dataclass(frozen=True)
class Programmes:
    """How states show in genes, and how compounds move activation.

    * ``loading`` (cell types, states, genes), float32; ``log_mean`` (cell types, genes): log of the
      mean of exp(scores · loading);
    * ``r`` (cell types, genes): NB sizes of the rest, so that a gene's variance stays what it was;
      ``total_r``: of a well's sum, in which dealt states do not vary;
    * ``moved`` (cell types, compounds): mean activation in standard deviations, the vehicle's 0.
    """

    loading: np.ndarray
    log_mean: np.ndarray
    r: np.ndarray
    total_r: np.ndarray
    moved: pd.DataFrame
    settings: SimulationSettings

    @classmethod
    def draw(
        cls,
        effects: Effects,
        r: np.ndarray,
        settings: SimulationSettings,
        *,
        rng: np.random.Generator,
    ) -> Programmes:
        """Programmes of all cell types: the cell cycle is one for all, the others are their own."""
        about, genes = settings.states, len(r)
        cycle, phase = (
            np.abs(_sparse(1, genes, settings, rng=rng))[0],
            rng.uniform(0, 2 * np.pi, genes),
        )
        cycle *= _DISCRETE
        loading = np.empty((len(CELL_TYPES), _CONTINUOUS + about.subtypes, genes), np.float32)
        moved = np.empty(effects.log2_fold_change.shape[:2])
        for i, fold in enumerate(effects.log2_fold_change * np.log(2)):
            loading[i, :3] = cycle, cycle * np.cos(phase), cycle * np.sin(phase)
            loading[i, 3], moved[i] = _activation(fold, settings, rng=rng)
            loading[i, 4] = _sparse(1, genes, settings, rng=rng)[0]
            loading[i, _CONTINUOUS:] = _DISCRETE * _sparse(about.subtypes, genes, settings, rng=rng)
        first, second = (
            np.stack([_log_moment(x * power, i, settings) for i, x in enumerate(loading)])
            for power in (1, 2)
        )
        variance = np.expm1(second - 2 * first)  # of the factor, whose mean is one
        # Var = m + m²((1 + v) d + v): what the states add to a dispersion is taken out of it
        rest = np.maximum(
            (1 / r - variance) / (1 + variance), np.minimum(_SMALLEST_DISPERSION, 1 / r)
        )
        table = pd.DataFrame(moved, index=list(CELL_TYPES), columns=effects.compounds.index)
        of_sums = 1 / (rest * (1 + variance))
        return cls(loading, first.astype(np.float32), 1 / rest, of_sums, table, settings)

    def scores(self, cell_type: str, n: int, *, rng: np.random.Generator) -> np.ndarray:
        """Scores (n, states) of cells: each state is dealt to the cells of a well, not drawn."""
        # a well's mean would else wander from what is true of it, and the table of tests with it
        dealt = _dealt(rng, (n, 4))
        phase = rng.uniform(0, 2 * np.pi, n)
        cycling = dealt[:, 0] < self.settings.states.cycling[cell_type]
        stage = np.searchsorted(
            np.cumsum(_subtype_shares(self.settings))[:-1], dealt[:, 3], "right"
        )
        return np.column_stack(
            [
                cycling,
                cycling * np.cos(phase),
                cycling * np.sin(phase),
                special.ndtri(dealt[:, 1]),
                special.ndtri(dealt[:, 2]),
                np.eye(self.settings.states.subtypes)[stage],
            ]
        ).astype(np.float32)

    def tilt(self, cell_type: str, scores: np.ndarray) -> np.ndarray:
        """Log of what multiplies each mean (genes, cells)."""
        i = CELL_TYPES.index(cell_type)
        return self.loading[i].T @ scores.T - self.log_mean[i][:, None]

    def table(self, cell_type: str, compound: str, scores: np.ndarray) -> pd.DataFrame:
        """Scores as a user reads them.

        The phase in radians, missing where a cell does not cycle; activation and maturation in
        standard deviations of vehicle cells, what the compound moved included.
        """
        phase = np.arctan2(scores[:, 2], scores[:, 1]) % (2 * np.pi)
        names = np.array([f"{cell_type} {k + 1}" for k in range(self.settings.states.subtypes)])
        values = (
            np.where(scores[:, 0] > 0, phase, np.nan),
            scores[:, 3] + self.moved.loc[cell_type, compound],
            scores[:, 4],
            names[scores[:, _CONTINUOUS:].argmax(axis=1)],
        )
        return pd.DataFrame(dict(zip(STATES, values, strict=True)))


def _dealt(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Uniform numbers (cells, states), one in each of as many equal parts of 0 to 1 as cells."""
    places = rng.permuted(np.tile(np.arange(shape[0])[:, None], (1, shape[1])), axis=0)
    return (places + rng.random(shape)) / max(shape[0], 1)


def _subtype_shares(settings: SimulationSettings) -> np.ndarray:
    """Shares of the subtypes (subtypes,), each two thirds of the one before."""
    shares = (2 / 3) ** np.arange(settings.states.subtypes)
    return shares / shares.sum()


def _sparse(
    count: int, genes: int, settings: SimulationSettings, *, rng: np.random.Generator
) -> np.ndarray:
    """Loadings (count, genes) of random genes, normal and not too large; 0 in all other genes."""
    about = settings.states
    chosen = rng.random((count, genes)) < about.genes
    return about.strength * np.where(chosen, _limited(rng.normal(size=(count, genes))), 0)


def _limited(values: np.ndarray) -> np.ndarray:
    return np.clip(values, -_LARGEST, _LARGEST)


def _activation(
    fold: np.ndarray, settings: SimulationSettings, *, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Activation's loadings (genes,) and how far compounds move it (compounds,).

    From the natural log fold changes (compounds, genes) of one cell type: the genes that load most
    on their leading direction.
    """
    about = settings.states
    values, vectors = np.linalg.eigh(fold @ fold.T)
    leading = vectors[:, -1] @ fold
    if not about.strength or values[-1] <= 0:
        return _ACTIVATION * _sparse(1, fold.shape[1], settings, rng=rng)[0], np.zeros(len(fold))
    least = np.quantile(np.abs(leading), 1 - about.genes)
    chosen = np.where(np.abs(leading) >= least, leading, 0)
    # an experiment's usual compound activates
    unit = (
        chosen / np.sqrt(np.mean(chosen[chosen != 0] ** 2)) * (np.sign((fold @ chosen).sum()) or 1)
    )
    loading = about.strength * _ACTIVATION * _limited(unit)
    return loading, fold @ loading / (loading @ loading)


def _log_moment(loading: np.ndarray, cell_type: int, settings: SimulationSettings) -> np.ndarray:
    """Log E exp(scores · loading) (genes,): the cycle, normal states, subtypes are independent."""
    cycling = settings.states.cycling[CELL_TYPES[cell_type]]
    base, swing = loading[0].astype(float), np.hypot(*loading[1:3].astype(float))
    # a uniform phase: E exp(a cos) is a Bessel function
    cycle = np.log1p(cycling * (np.exp(base) * special.i0(swing) - 1))
    normal = (loading[3:_CONTINUOUS].astype(float) ** 2).sum(axis=0) / 2
    shares = _subtype_shares(settings)
    return cycle + normal + np.log(shares @ np.exp(loading[_CONTINUOUS:].astype(float)))


def select_survivors(
    effects: Effects, settings: SimulationSettings, *, rng: np.random.Generator
) -> Effects:
    """Effects under which some compounds harm one cell type more than the others.

    Without them all cell types of a well die alike, within a quarter, and no compound changes what
    a well is made of.
    """
    about = settings.states
    survival = effects.survival.copy()
    free = [str(name) for name in survival if name != VEHICLE and name not in _KNOWN_LOSS]
    count = round(about.selective * len(free)) if about.selectivity else 0
    chosen, types = rng.permutation(free)[:count], rng.integers(len(CELL_TYPES), size=count)
    loss = rng.permutation(_SELECTIVE.ppf((np.arange(count) + 0.5) / max(count, 1)))
    for name, i, amount in zip(chosen, types, loss, strict=True):
        survival.loc[CELL_TYPES[i], name] *= np.exp(-about.selectivity * amount)
    for name, losses in _KNOWN_LOSS.items() if about.known_losses else ():
        for start, amount in losses.items():
            harmed = [kind for kind in CELL_TYPES if kind.startswith(start)]
            survival.loc[harmed, survival.columns == name] *= np.exp(-amount)
    return replace(effects, survival=survival)
