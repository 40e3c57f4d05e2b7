"""The wells that were measured, and what they tell of one to foretell.

How many cells of each type were counted in every well, and how deep each was sequenced; then what a
forest is told of a well and cell type: covariates, and what its other types hold, measured against
what a well would hold if no compound did anything. Samplers of cell numbers and depths are fitted
on this table. The wells that a prediction generates are those of ``predict.wells``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import pandas as pd

from perturbgen.core.errors import CountsError, SchemaError, shorten, suggest
from perturbgen.core.stats import divide
from perturbgen.core.tables import CONDITION
from perturbgen.data import CovariateEncoder, complete

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

WELL: Final = ["plate", "well"]
GROUP: Final = [*WELL, "cell_type"]
_CONDITION: Final = list(CONDITION)
_OPTIONAL: Final = ("donor", "library", "control")
_WELL_NAME: Final = r"^([A-Za-z]+)0*(\d+)$"
_ONE_HOT: Final = (*CONDITION, *WELL, "row", "column", *_OPTIONAL)
_MAY_BE_NEW: Final = ("compound", "well", "column", "row")
_ROUNDS: Final = 30
# Prior weights: of half a well that follows plate x cell type, of ten cells without any effect.
_PRIOR_WELLS: Final = 0.5
_PRIOR_CELLS: Final = 10.0
_PRIOR: Final = 1.0  # cells, so that ratios of nothing are one
_PRIOR_DEPTH: Final = 20.0  # cells of no depth effect


@dataclass(frozen=True)
class WellTable:
    """One row for every measured (plate, well, cell type), sorted, and the sizes of its cells.

    ``groups`` has the covariates, ``n_cells`` and ``log_library`` (mean log library size; NaN
    without cells). The cells of row i are ``log_libraries[starts[i]:starts[i + 1]]``. A condition
    with cells in one of its wells was measured in all of them: where it has none, the row says
    zero. A condition without any cell was not measured, and has no row.
    """

    groups: pd.DataFrame
    log_libraries: np.ndarray
    starts: np.ndarray

    @property
    def wells(self) -> pd.DataFrame:
        """The covariates that all cells of a well share, one row for each well."""
        # Everything else is true of the well, whatever its cells are.
        of_cells = ("cell_type", "n_cells", "log_library")
        columns = [name for name in self.groups if name not in of_cells]
        return self.groups[columns].drop_duplicates(WELL, ignore_index=True)

    def take(self, chosen: np.ndarray) -> WellTable:
        """The table of some rows, given as a mask (groups,)."""
        lengths = np.diff(self.starts)
        starts = np.concatenate([[0], np.cumsum(lengths[chosen])])
        groups = self.groups[chosen].reset_index(drop=True)
        return WellTable(groups, self.log_libraries[np.repeat(chosen, lengths)], starts)

    @classmethod
    def of(cls, cells: AnnData) -> Self:
        """The table of raw counts, obs and sums taken from the same object."""
        from perturbgen.data import depth

        return cls.tabulate(cells.obs, pd.Series(depth(cells), cells.obs_names))

    @classmethod
    def tabulate(cls, obs: pd.DataFrame, totals: pd.Series) -> Self:
        """The table of cells with these ``obs`` and total counts, joined by the cells' names."""
        totals = _aligned(totals, obs.index)
        labels = covariates(obs)
        has_counts = totals.to_numpy() > 0
        if not has_counts.all():
            empty = (~has_counts).sum()
            log.warning("%d cells without a count are counted, but have no library size", empty)
        counted = labels.groupby(GROUP, observed=True)["compound"].size()
        groups = _with_zeros(counted.rename("n_cells").reset_index(), labels)
        # By label, not by position: obs and totals may come in any order.
        places = pd.MultiIndex.from_frame(groups[GROUP])
        row = places.get_indexer(pd.MultiIndex.from_frame(labels[GROUP]))
        order = np.flatnonzero(has_counts)[np.argsort(row[has_counts], kind="stable")]
        lengths = np.bincount(row[has_counts], minlength=len(groups))
        values = np.log(totals.where(has_counts)).to_numpy()[order]
        sums = np.bincount(row[order], weights=values, minlength=len(groups))
        groups["log_library"] = divide(sums, lengths, np.nan)
        return cls(groups, values, np.concatenate([[0], np.cumsum(lengths)]))

    def design(self, conditions: pd.DataFrame) -> pd.DataFrame:
        """The wells of conditions (cell_type, compound): one row for each condition and well.

        The compound's wells are known from its other cell types, since all types share a well. The
        result has the covariates of those wells.
        """
        wanted = wanted_conditions(conditions)
        for column, what in (("compound", "compound"), ("cell_type", "cell type")):
            names = self.groups[column].unique().tolist()
            absent = [value for value in wanted[column].unique() if value not in set(names)]
            if absent:
                raise SchemaError(
                    f"no well of {what} {shorten(absent)} was measured",
                    expected=f"a {what} that stands in the data",
                    fix=suggest(absent[0], names),
                )
        return wanted.merge(self.wells, on="compound", how="left", validate="many_to_many")


def _aligned(totals: pd.Series, names: pd.Index) -> pd.Series:
    """The totals in the order of the cells' names; both must name the same cells, once."""
    for index, what in ((names, "obs"), (totals.index, "totals")):
        twice = index[index.duplicated()].unique()
        if len(twice):
            raise SchemaError(
                f"{what} names cells more than once: {shorten(twice)}",
                expected="a unique name each",
            )
    absent, extra = names.difference(totals.index), totals.index.difference(names)
    if len(absent) or len(extra):
        raise SchemaError(
            f"obs and totals are of other cells: {len(absent)} without a total, "
            f"{len(extra)} without obs",
            cause="one of them was filtered",
            fix="take both from one AnnData",
        )
    totals = totals.reindex(names).astype(float)
    bad = ~np.isfinite(totals.to_numpy()) | (totals < 0).to_numpy()
    if bad.any():
        raise CountsError(
            f"total counts of {shorten(names[bad])} are negative or no number",
            expected="sums of raw counts",
        )
    return totals


def covariates(obs: pd.DataFrame) -> pd.DataFrame:
    """The covariates of cells or conditions as text, ``row`` and ``column`` from the well."""
    absent = [name for name in (*CONDITION, *WELL) if name not in obs]
    if absent:
        raise SchemaError(
            f"no column {shorten(absent)}: the samplers need to know what stood where",
            expected="cell_type, compound, plate and well",
            fix=suggest(absent[0], obs.columns),
        )
    names = [*WELL, *CONDITION, *(name for name in _OPTIONAL if name in obs)]
    table = pd.DataFrame({name: complete(obs, name).astype(str) for name in names})
    position = table["well"].str.extract(_WELL_NAME)
    return table.assign(row=position[0].fillna("none"), column=position[1].fillna("none"))


def _with_zeros(groups: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Counts for every well x cell type of a condition that was measured anywhere."""
    wells = labels.drop(columns="cell_type").drop_duplicates()
    twice = wells[wells.duplicated(WELL)]
    if len(twice):
        plate, well = twice.iloc[0][WELL]
        here = wells[(wells["plate"] == plate) & (wells["well"] == well)]
        differing = [name for name in wells if here[name].nunique() > 1]
        raise SchemaError(
            f"cells of well {well} on plate {plate} differ in {shorten(differing)}: "
            f"{shorten(here[differing[0]])}",
            expected="one compound, donor and library in a well",
            cause="obs was sorted or joined apart from the counts",
        )
    # All cell types share a well: one that a measured condition lacks has lost its cells.
    table = wells.merge(labels[_CONDITION].drop_duplicates(), on="compound")
    table = table.merge(groups, on=GROUP, how="left", validate="one_to_one")
    table["n_cells"] = table["n_cells"].fillna(0).astype(int)
    return table.sort_values(GROUP, ignore_index=True)


def wanted_conditions(conditions: pd.DataFrame) -> pd.DataFrame:
    """The columns ``cell_type`` and ``compound`` of a table as text, complete, each pair once."""
    table = pd.DataFrame({name: complete(conditions, name).astype(str) for name in CONDITION})
    twice = table[table.duplicated()]
    if len(twice):
        named = shorten(twice.agg(" | ".join, axis=1))
        raise SchemaError(f"conditions occur twice: {named}", expected="each once")
    return table


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
        columns = [name for name in _ONE_HOT if name in groups]
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
