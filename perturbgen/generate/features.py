"""What a forest is told of a well and cell type, and what a well holds that no compound harmed.

Numbers of cells and depths of measured wells, against those that plate, donor and cell type alone
would let expect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError
from perturbgen.core.tables import CONDITION
from perturbgen.data import CovariateEncoder
from perturbgen.generate.wells import GROUP, OPTIONAL, WELL, covariates

_ONE_HOT: Final = (*CONDITION, *WELL, "row", "column", *OPTIONAL)
_MAY_BE_NEW: Final = ("compound", "well", "column", "row")
_ROUNDS: Final = 30
_MOST_LEVELS: Final = 400  # of a column: of more, a forest sees what is known of each, not its name
# Prior weights: of half a well that follows plate x cell type, of ten cells without any effect.
_PRIOR_WELLS: Final = 0.5
_PRIOR_CELLS: Final = 10.0
_PRIOR: Final = 1.0  # cells, so that ratios of nothing are one
_PRIOR_DEPTH: Final = 20.0  # cells of no depth effect


@dataclass(frozen=True)
class _UnharmedWells:
    """Expected cells of an unharmed well, and mean log library size, by label.

    ``cells`` (plate, cell_type) -> expected number; ``depth``: an effect for each level of each
    factor, which add up.
    """

    cells: pd.Series
    depth: dict[str, pd.Series]

    def expected_cells(self, labels: pd.DataFrame) -> np.ndarray:
        """Expected number of cells (rows,)."""
        places = pd.MultiIndex.from_frame(labels[["plate", "cell_type"]])
        found = self.cells.reindex(places).to_numpy()
        if np.isnan(found).any():
            plate, kind = places[np.isnan(found)][0]
            raise SchemaError(
                f"no well of plate {plate!r} and cell type {kind!r} can be expected",
                expected="plates and cell types that were measured",
                fix=f"plates: {', '.join(map(str, self.cells.index.unique('plate')))}",
            )
        return found

    def expected_depth(self, labels: pd.DataFrame) -> np.ndarray:
        """Expected mean log library size (rows,)."""
        effects = (labels[name].map(effect).to_numpy(float) for name, effect in self.depth.items())
        return sum(effects, np.zeros(len(labels)))


def _fit_cells(groups: pd.DataFrame) -> pd.Series:
    """Rates of n ~ Poisson(rate[plate, cell type] x effect[compound]), shrunk a little.

    By alternating closed forms: the mean of a gamma posterior of one, given the other.
    """
    n = groups["n_cells"].to_numpy(float)
    plate, plates = pd.factorize(groups["plate"], sort=True)
    kind, kinds = pd.factorize(groups["cell_type"], sort=True)
    compound, compounds = pd.factorize(groups["compound"])
    effect = np.ones(len(compounds))
    rate = np.empty((len(plates), len(kinds)))
    # One number a pair, so that sums by pair are one bincount.
    place = plate * len(kinds) + kind
    sums = np.bincount(place, n, rate.size).reshape(rate.shape)
    for _ in range(_ROUNDS):
        exposure = np.bincount(place, effect[compound], rate.size).reshape(rate.shape)
        # A plate and type with few wells leans on what plate and type say apart.
        prior = _independent_rates(sums, exposure)
        rate = (sums + _PRIOR_WELLS * prior) / (exposure + _PRIOR_WELLS)
        expected = np.bincount(compound, rate.ravel()[place], len(compounds))
        found = np.bincount(compound, n, len(compounds))
        effect = (found + _PRIOR_CELLS) / (expected + _PRIOR_CELLS)
    index = pd.MultiIndex.from_product([plates, kinds], names=["plate", "cell_type"])
    return pd.Series(rate.ravel(), index)


def _independent_rates(sums: np.ndarray, exposure: np.ndarray) -> np.ndarray:
    """Rates (plates, cell types) that are a product of both, with the given sums and exposures."""
    by_plate = np.ones(len(sums))
    for _ in range(10):
        by_kind = sums.sum(axis=0) / np.maximum(exposure.T @ by_plate, 1e-9)
        by_plate = sums.sum(axis=1) / np.maximum(exposure @ by_kind, 1e-9)
    return np.outer(by_plate, by_kind)


def _fit_depth(groups: pd.DataFrame) -> dict[str, pd.Series]:
    """Effects of cell type, plate and library on mean log library size, weighted by cells.

    Additive effects by backfitting, the compounds' among them, which are then dropped: the first
    factor is not penalised, the others have a prior of some cells at zero.
    """
    seen = groups[groups["log_library"].notna()]
    factors = [name for name in ("cell_type", "plate", "library") if name in groups]
    codes = [pd.factorize(seen[name], sort=True) for name in (*factors, "compound")]
    weights = seen["n_cells"].to_numpy(float)
    effects = [np.zeros(len(levels)) for _, levels in codes]
    totals = [np.bincount(code, weights, len(levels)) for code, levels in codes]
    rest = seen["log_library"].to_numpy().astype(float).copy()
    for _ in range(_ROUNDS):
        for i, (code, levels) in enumerate(codes):
            rest += effects[i][code]
            # The first factor carries the level of all, and must not be drawn towards zero.
            prior = _PRIOR_CELLS if i else 1e-9
            effects[i] = np.bincount(code, weights * rest, len(levels)) / (totals[i] + prior)
            rest -= effects[i][code]
    depth = {}
    for name, effect, (_, levels) in zip(factors, effects, codes, strict=False):
        known = pd.Series(effect, levels)
        # Nothing is known of a level without cells; but cell types carry the level of all.
        unknown = float(known.mean()) if name == "cell_type" else 0.0
        depth[name] = known.reindex(sorted(groups[name].unique())).fillna(unknown)
    return depth


class _OwnSample(NamedTuple):
    """Slopes (features,) of numbers of cells and of depths."""

    cells: np.ndarray
    depth: np.ndarray


@dataclass(frozen=True)
class FeatureMaker:
    """Turns conditions into features; holds what is known of the measured wells.

    ``known`` has a row for each measured group: its labels, ``n_cells``, ``expected`` cells,
    ``depth_sum`` (cells x deviation of their mean log library from the reference).
    """

    encoder: CovariateEncoder
    reference: _UnharmedWells
    known: pd.DataFrame

    @classmethod
    def fit(cls, groups: pd.DataFrame) -> FeatureMaker:
        """From the groups of a :class:`WellTable`."""
        columns = [
            name for name in _ONE_HOT if name in groups and groups[name].nunique() <= _MOST_LEVELS
        ]
        # A withheld compound, or its well, may have no training row at all.
        new = [name for name in _MAY_BE_NEW if name in columns]
        encoder = CovariateEncoder.fit(groups, columns, unknown=new)
        return cls.of(encoder, _fit_cells(groups), _fit_depth(groups), groups)

    @classmethod
    def of(
        cls,
        encoder: CovariateEncoder,
        cells: pd.Series,
        depth: dict[str, pd.Series],
        groups: pd.DataFrame,
    ) -> FeatureMaker:
        """With an encoder, expected cells and effects on depth that were fitted before."""
        reference = _UnharmedWells(cells, depth)
        deviation = groups["log_library"].to_numpy() - reference.expected_depth(groups)
        n = groups["n_cells"]
        known = groups[[*GROUP, "compound", "n_cells"]].assign(
            expected=reference.expected_cells(groups),
            depth_sum=np.where(n > 0, n * np.nan_to_num(deviation), 0.0),
        )
        return cls(encoder, reference, known)

    def features(self, conditions: pd.DataFrame) -> np.ndarray:
        """Features (conditions, features) float32: one-hot covariates, then what is known.

        What is known of a row never includes the row itself, or a forest would be told in training
        what it is to foretell: only *other* cell types of its well and of its compound.
        """
        labels = covariates(conditions)
        expected = self.reference.expected_cells(labels)
        well = self._others(labels, WELL, GROUP)
        compound = self._others(labels, ["compound"], list(CONDITION))
        known = [
            np.log(expected),
            _log_ratio(well),
            np.log(well["n_cells"] + _PRIOR),
            _log_ratio(compound),
            well["depth_sum"] / (well["n_cells"] + _PRIOR_DEPTH),
            compound["depth_sum"] / (compound["n_cells"] + _PRIOR_DEPTH),
        ]
        numbers = np.stack(known, axis=1).astype(np.float32)
        return np.hstack([self.encoder.features(labels), numbers])

    def own_sample(self, width: int) -> _OwnSample:
        """Slopes of ``width`` features that follow what a sample's other types say of it."""
        cells, depth = np.zeros(width), np.zeros(width)
        cells[-5] = 1.0  # of the six numbers that end the features: found over expected cells
        depth[-2] = 1.0  # and how much deeper than expected these are
        return _OwnSample(cells, depth)

    def _others(self, labels: pd.DataFrame, whole: list[str], own: list[str]) -> pd.DataFrame:
        """Sums over known rows that share ``whole`` with a condition, less those of ``own``."""
        values = ["n_cells", "expected", "depth_sum"]

        def sums(by: list[str]) -> pd.DataFrame:
            known = self.known.groupby(by)[values].sum()
            key = labels[by[0]] if len(by) == 1 else pd.MultiIndex.from_frame(labels[by])
            return known.reindex(key).fillna(0.0).set_axis(labels.index)

        # By subtraction: two sums for all rows, not a search for each.
        return sums(whole) - sums(own)


def _log_ratio(sums: pd.DataFrame) -> np.ndarray:
    """Log of found over expected cells (rows,)."""
    ratio = (sums["n_cells"] + _PRIOR) / (sums["expected"].clip(lower=0) + _PRIOR)
    return np.log(ratio.to_numpy())
