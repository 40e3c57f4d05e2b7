"""What a well would hold if no compound did anything: plates, cell types, sequencing libraries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.errors import SchemaError

ROUNDS: Final = 30
# Prior weights: of half a well that follows plate x cell type, of ten cells without any effect.
PRIOR_WELLS: Final = 0.5
PRIOR_CELLS: Final = 10.0


@dataclass(frozen=True)
class Reference:
    """Expected cells of an unharmed well, and mean log library size, by label.

    ``cells`` (plate, cell_type) -> expected number; ``depth``: an effect for each level of each factor, which add up.
    """

    cells: pd.Series
    depth: dict[str, pd.Series]

    def expected_cells(self, labels: pd.DataFrame) -> np.ndarray:
        """Expected number of cells (rows,)."""
        found = self.cells.reindex(pd.MultiIndex.from_frame(labels[["plate", "cell_type"]])).to_numpy()
        if np.isnan(found).any():
            row = labels[np.isnan(found)].iloc[0]
            raise SchemaError(
                f"no well of plate {row['plate']!r} and cell type {row['cell_type']!r} can be expected",
                expected="plates and cell types that were measured",
                fix=f"plates: {', '.join(map(str, self.cells.index.unique('plate')))}",
            )
        return found

    def expected_depth(self, labels: pd.DataFrame) -> np.ndarray:
        """Expected mean log library size (rows,)."""
        return sum(
            (labels[name].map(effect).to_numpy(float) for name, effect in self.depth.items()), np.zeros(len(labels))
        )


def fit_reference(groups: pd.DataFrame) -> Reference:
    """The reference of a table of groups, the compounds' own effects taken out."""
    return Reference(fit_cells(groups), fit_depth(groups))


def fit_cells(groups: pd.DataFrame) -> pd.Series:
    """Rates of n ~ Poisson(rate[plate, cell type] x effect[compound]), shrunk a little, by alternating closed forms."""
    n = groups["n_cells"].to_numpy(float)
    plate, plates = pd.factorize(groups["plate"], sort=True)
    kind, kinds = pd.factorize(groups["cell_type"], sort=True)
    compound, compounds = pd.factorize(groups["compound"])
    effect = np.ones(len(compounds))
    rate = np.empty((len(plates), len(kinds)))
    cell = plate * len(kinds) + kind
    sums = np.bincount(cell, n, rate.size).reshape(rate.shape)
    for _ in range(ROUNDS):
        exposure = np.bincount(cell, effect[compound], rate.size).reshape(rate.shape)
        prior = independent_rates(sums, exposure)
        rate = (sums + PRIOR_WELLS * prior) / (exposure + PRIOR_WELLS)
        expected = np.bincount(compound, rate.ravel()[cell], len(compounds))
        effect = (np.bincount(compound, n, len(compounds)) + PRIOR_CELLS) / (expected + PRIOR_CELLS)
    index = pd.MultiIndex.from_product([plates, kinds], names=["plate", "cell_type"])
    return pd.Series(rate.ravel(), index)


def independent_rates(sums: np.ndarray, exposure: np.ndarray) -> np.ndarray:
    """Rates (plates, cell types) that are a product of both, with the given sums and exposures."""
    by_plate = np.ones(len(sums))
    for _ in range(10):
        by_kind = sums.sum(axis=0) / np.maximum(exposure.T @ by_plate, 1e-9)
        by_plate = sums.sum(axis=1) / np.maximum(exposure @ by_kind, 1e-9)
    return np.outer(by_plate, by_kind)


def fit_depth(groups: pd.DataFrame) -> dict[str, pd.Series]:
    """Effects of cell type, plate and library on mean log library size, beside compounds, weighted by cells."""
    seen = groups[groups["log_library"].notna()]
    factors = [name for name in ("cell_type", "plate", "library") if name in groups]
    effects = backfit(
        seen["log_library"].to_numpy(), seen["n_cells"].to_numpy(float), [seen[name] for name in (*factors, "compound")]
    )
    levels = {name: sorted(groups[name].unique()) for name in factors}
    found = dict(zip(factors, effects, strict=False))
    return {name: found[name].reindex(levels[name]).fillna(fill_value(name, found[name])) for name in factors}


def fill_value(name: str, effect: pd.Series) -> float:
    """For a level without cells: nothing known, but the first factor carries the level of all."""
    return float(effect.mean()) if name == "cell_type" else 0.0


def backfit(y: np.ndarray, weights: np.ndarray, factors: Sequence[pd.Series]) -> list[pd.Series]:
    """Additive effects of factors on y (rows,), the first unpenalised, the rest with a prior of some cells at zero."""
    codes = [pd.factorize(factor, sort=True) for factor in factors]
    effects = [np.zeros(len(levels)) for _, levels in codes]
    totals = [np.bincount(code, weights, len(levels)) for code, levels in codes]
    rest = y.astype(float).copy()
    for _ in range(ROUNDS):
        for i, (code, levels) in enumerate(codes):
            rest += effects[i][code]
            prior = PRIOR_CELLS if i else 1e-9
            effects[i] = np.bincount(code, weights * rest, len(levels)) / (totals[i] + prior)
            rest -= effects[i][code]
    return [pd.Series(effect, levels) for effect, (_, levels) in zip(effects, codes, strict=True)]
