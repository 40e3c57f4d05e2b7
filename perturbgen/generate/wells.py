"""What was counted in every well: how many cells of each type, and how deep each cell was sequenced.

What a well would hold if no compound did anything: plates, cell types, sequencing libraries.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import CountsError, SchemaError, shorten, suggest
from perturbgen.data.covariates import complete

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

WELL: Final = ["plate", "well"]
GROUP: Final = [*WELL, "cell_type"]
CONDITION: Final = ["cell_type", "compound"]
_OPTIONAL: Final = ("donor", "library", "control")
_WELL_NAME: Final = r"^([A-Za-z]+)0*(\d+)$"


@dataclass(frozen=True)
class WellTable:
    """One row for every measured (plate, well, cell type), in sorted order, and the library sizes of its cells.

    ``groups`` has the covariates, ``n_cells`` and ``log_library`` (mean log library size; NaN without cells). The cells
    of row i are ``log_libraries[starts[i]:starts[i + 1]]``. A condition with cells in one of its wells was measured
    in all of them: where it has none, the row says zero. A condition without any cell was not measured, and has no row.
    """

    groups: pd.DataFrame
    log_libraries: np.ndarray
    starts: np.ndarray

    @property
    def wells(self) -> pd.DataFrame:
        """The covariates that all cells of a well share, one row for each well."""
        columns = [
            name for name in self.groups if name not in ("cell_type", "n_cells", "log_library")
        ]
        return self.groups[columns].drop_duplicates(WELL, ignore_index=True)

    def take(self, chosen: np.ndarray) -> WellTable:
        """The table of some rows, given as a mask (groups,)."""
        lengths = np.diff(self.starts)
        starts = np.concatenate([[0], np.cumsum(lengths[chosen])])
        return WellTable(
            self.groups[chosen].reset_index(drop=True),
            self.log_libraries[np.repeat(chosen, lengths)],
            starts,
        )


def well_table(cells: AnnData) -> WellTable:
    """The table of an AnnData of raw counts, its obs and its sums taken from the same object."""
    from perturbgen.data.schema import depth

    return tabulate(cells.obs, pd.Series(depth(cells), cells.obs_names))


def tabulate(obs: pd.DataFrame, totals: pd.Series) -> WellTable:
    """The table of cells given as ``obs`` and their total counts, which are joined by the cells' names."""
    totals = _aligned(totals, obs.index)
    labels = covariates(obs)
    has_counts = totals.to_numpy() > 0
    if not has_counts.all():
        log.warning(
            "%d cells without a count are counted, but have no library size", (~has_counts).sum()
        )
    log_library = pd.Series(np.log(totals.where(has_counts)).to_numpy(), labels.index)
    groups = labels.groupby(GROUP, observed=True)["compound"].size().rename("n_cells").reset_index()
    groups = _with_zeros(groups, labels)
    row = pd.MultiIndex.from_frame(groups[GROUP]).get_indexer(
        pd.MultiIndex.from_frame(labels[GROUP])
    )
    order = np.flatnonzero(has_counts)[np.argsort(row[has_counts], kind="stable")]
    lengths = np.bincount(row[has_counts], minlength=len(groups))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    values = log_library.to_numpy()[order]
    sums = np.bincount(row[order], weights=values, minlength=len(groups))
    groups["log_library"] = np.divide(
        sums, lengths, out=np.full(len(groups), np.nan), where=lengths > 0
    )
    return WellTable(groups, values, starts)


def _aligned(totals: pd.Series, names: pd.Index) -> pd.Series:
    """The totals in the order of the cells' names; both must name the same cells, once."""
    for index, what in ((names, "obs"), (totals.index, "totals")):
        if not index.is_unique:
            twice = index[index.duplicated()].unique()
            raise SchemaError(
                f"{what} names cells more than once: {shorten(twice)}",
                expected="a unique name each",
            )
    absent, extra = names.difference(totals.index), totals.index.difference(names)
    if len(absent) or len(extra):
        raise SchemaError(
            f"obs and totals are of other cells: {len(absent)} without a total, {len(extra)} without obs",
            cause="one of them was filtered",
            fix="take both from one AnnData",
        )
    totals = totals.reindex(names).astype(float)
    if not np.isfinite(totals.to_numpy()).all() or (totals < 0).any():
        bad = names[~np.isfinite(totals.to_numpy()) | (totals < 0).to_numpy()]
        raise CountsError(
            f"total counts of {shorten(bad)} are negative or no number",
            expected="sums of raw counts",
        )
    return totals


def covariates(obs: pd.DataFrame) -> pd.DataFrame:
    """The covariates of cells or of conditions as text, with ``row`` and ``column`` read off the well's name."""
    absent = [name for name in (*CONDITION, *WELL) if name not in obs]
    if absent:
        raise SchemaError(
            f"no column {shorten(absent)}: the samplers need to know who stood where",
            expected="cell_type, compound, plate and well",
            fix=suggest(absent[0], obs.columns),
        )
    names = [*WELL, *CONDITION, *(name for name in _OPTIONAL if name in obs)]
    table = pd.DataFrame({name: complete(obs, name).astype(str) for name in names})
    position = table["well"].str.extract(_WELL_NAME)
    return table.assign(row=position[0].fillna("none"), column=position[1].fillna("none"))


def _with_zeros(groups: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Counts for every well x cell type whose condition was measured anywhere, with the well's covariates."""
    wells = labels.drop(columns="cell_type").drop_duplicates()
    twice = wells[wells.duplicated(WELL)]
    if len(twice):
        plate, well = twice.iloc[0][WELL]
        here = wells[(wells["plate"] == plate) & (wells["well"] == well)]
        differing = [name for name in wells if here[name].nunique() > 1]
        raise SchemaError(
            f"cells of well {well} on plate {plate} differ in {shorten(differing)}: {shorten(here[differing[0]])}",
            expected="one compound, donor and library in a well",
            cause="obs was sorted or joined apart from the counts",
        )
    measured = labels[CONDITION].drop_duplicates()
    table = wells.merge(measured, on="compound").merge(
        groups, on=GROUP, how="left", validate="one_to_one"
    )
    table["n_cells"] = table["n_cells"].fillna(0).astype(int)
    return table.sort_values(GROUP, ignore_index=True)


def design_wells(table: WellTable, conditions: pd.DataFrame) -> pd.DataFrame:
    """The wells of conditions (cell_type, compound), as the design has them: one row for each condition and well.

    The compound's wells are known from its other cell types. The result has the covariates of those wells.
    """
    wanted = pd.DataFrame({name: complete(conditions, name).astype(str) for name in CONDITION})
    twice = wanted[wanted.duplicated()]
    if len(twice):
        raise SchemaError(
            f"conditions occur twice: {shorten(twice.agg(' | '.join, axis=1))}",
            expected="each once",
        )
    _require_known(wanted["compound"], table.groups["compound"], "compound")
    _require_known(wanted["cell_type"], table.groups["cell_type"], "cell type")
    return wanted.merge(table.wells, on="compound", how="left", validate="many_to_many")


def _require_known(values: Iterable[str], known: pd.Series, what: str) -> None:
    """Every value occurs among the known ones."""
    names = known.unique().tolist()
    absent = [value for value in dict.fromkeys(values) if value not in set(names)]
    if absent:
        raise SchemaError(
            f"no well of {what} {shorten(absent)} was measured",
            expected=f"a {what} that stands in the data",
            fix=suggest(absent[0], names),
        )


_ROUNDS: Final = 30
# Prior weights: of half a well that follows plate x cell type, of ten cells without any effect.
_PRIOR_WELLS: Final = 0.5
_PRIOR_CELLS: Final = 10.0


@dataclass(frozen=True)
class Reference:
    """Expected cells of an unharmed well, and mean log library size, by label.

    ``cells`` (plate, cell_type) -> expected number; ``depth``: an effect for each level of each factor, which add up.
    """

    cells: pd.Series
    depth: dict[str, pd.Series]

    def expected_cells(self, labels: pd.DataFrame) -> np.ndarray:
        """Expected number of cells (rows,)."""
        found = self.cells.reindex(
            pd.MultiIndex.from_frame(labels[["plate", "cell_type"]])
        ).to_numpy()
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
            (labels[name].map(effect).to_numpy(float) for name, effect in self.depth.items()),
            np.zeros(len(labels)),
        )


def fit_reference(groups: pd.DataFrame) -> Reference:
    """The reference of a table of groups, the compounds' own effects taken out."""
    return Reference(_fit_cells(groups), _fit_depth(groups))


def _fit_cells(groups: pd.DataFrame) -> pd.Series:
    """Rates of n ~ Poisson(rate[plate, cell type] x effect[compound]), shrunk a little, by alternating closed forms."""
    n = groups["n_cells"].to_numpy(float)
    plate, plates = pd.factorize(groups["plate"], sort=True)
    kind, kinds = pd.factorize(groups["cell_type"], sort=True)
    compound, compounds = pd.factorize(groups["compound"])
    effect = np.ones(len(compounds))
    rate = np.empty((len(plates), len(kinds)))
    cell = plate * len(kinds) + kind
    sums = np.bincount(cell, n, rate.size).reshape(rate.shape)
    for _ in range(_ROUNDS):
        exposure = np.bincount(cell, effect[compound], rate.size).reshape(rate.shape)
        prior = _independent_rates(sums, exposure)
        rate = (sums + _PRIOR_WELLS * prior) / (exposure + _PRIOR_WELLS)
        expected = np.bincount(compound, rate.ravel()[cell], len(compounds))
        effect = (np.bincount(compound, n, len(compounds)) + _PRIOR_CELLS) / (
            expected + _PRIOR_CELLS
        )
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
    """Effects of cell type, plate and library on mean log library size, beside compounds, weighted by cells."""
    seen = groups[groups["log_library"].notna()]
    factors = [name for name in ("cell_type", "plate", "library") if name in groups]
    effects = _backfit(
        seen["log_library"].to_numpy(),
        seen["n_cells"].to_numpy(float),
        [seen[name] for name in (*factors, "compound")],
    )
    levels = {name: sorted(groups[name].unique()) for name in factors}
    found = dict(zip(factors, effects, strict=False))
    return {
        name: found[name].reindex(levels[name]).fillna(_fill_value(name, found[name]))
        for name in factors
    }


def _fill_value(name: str, effect: pd.Series) -> float:
    """For a level without cells: nothing known, but the first factor carries the level of all."""
    return float(effect.mean()) if name == "cell_type" else 0.0


def _backfit(y: np.ndarray, weights: np.ndarray, factors: Sequence[pd.Series]) -> list[pd.Series]:
    """Additive effects of factors on y (rows,), the first unpenalised, the rest with a prior of some cells at zero."""
    codes = [pd.factorize(factor, sort=True) for factor in factors]
    effects = [np.zeros(len(levels)) for _, levels in codes]
    totals = [np.bincount(code, weights, len(levels)) for code, levels in codes]
    rest = y.astype(float).copy()
    for _ in range(_ROUNDS):
        for i, (code, levels) in enumerate(codes):
            rest += effects[i][code]
            prior = _PRIOR_CELLS if i else 1e-9
            effects[i] = np.bincount(code, weights * rest, len(levels)) / (totals[i] + prior)
            rest -= effects[i][code]
    return [pd.Series(effect, levels) for effect, (_, levels) in zip(effects, codes, strict=True)]
