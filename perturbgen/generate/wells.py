"""The wells that were measured, and what they tell of one to foretell.

How many cells of each type were counted in every well, and how deep each was sequenced. Samplers of
cell numbers and depths are fitted on this table. The wells that a prediction generates are those of
``predict.wells``.
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
from perturbgen.data import complete

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

WELL: Final = ["plate", "well"]
GROUP: Final = [*WELL, "cell_type"]
_CONDITION: Final = list(CONDITION)
OPTIONAL: Final = ("donor", "library", "control")
_WELL_NAME: Final = r"^([A-Za-z]+)0*(\d+)$"


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
    def is_bulk(self) -> bool:
        """Whether a "cell" is all there is of a sample: there are no numbers of cells to draw."""
        return bool((self.groups["n_cells"] == 1).all())

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

    def design(self, conditions: pd.DataFrame, *, vehicle: str | None = None) -> pd.DataFrame:
        """The wells of conditions (cell_type, compound): one row for each condition and well.

        The compound's wells are known from its other cell types, since all types share a well. One
        that no measured cell has stands in the ``vehicle``'s wells, where that is named, as many on
        a plate as compounds usually have. The result has the covariates of those wells.
        """
        wanted = wanted_conditions(conditions)
        wells = self.wells
        known = set(wells["compound"])
        new = [name for name in wanted["compound"].unique() if name not in known]
        if new and vehicle in known:
            places = _some_wells(wells, str(vehicle))
            wells = pd.concat([wells, *(places.assign(compound=name) for name in new)])
            log.info(
                "no sample of %s is at hand: %s generated in %d samples of %s",
                shorten(new, 3),
                "it is" if len(new) == 1 else "they are",
                len(places),
                vehicle,
            )
        columns = [("compound", "compound", known | {*wells["compound"]})]
        columns.append(("cell_type", "cell type", {*self.groups["cell_type"]}))
        for column, what, names in columns:
            absent = [value for value in wanted[column].unique() if value not in names]
            if absent:
                raise SchemaError(
                    f"no well of {what} {shorten(absent)} was measured",
                    expected=f"a {what} that stands in the data",
                    fix=suggest(absent[0], sorted(names)),
                )
        return wanted.merge(wells, on="compound", how="left", validate="many_to_many")


def _some_wells(wells: pd.DataFrame, vehicle: str) -> pd.DataFrame:
    """Wells of the vehicle, on each plate as many as a compound usually has there."""
    counts = wells.groupby(["plate", "compound"]).size()
    others = counts[counts.index.get_level_values("compound") != vehicle]
    usual = max(1, round(float((others if len(others) else counts).median())))
    own = wells[wells["compound"] == vehicle].sort_values(WELL)
    plates = own.groupby("plate")
    # evenly over the plate's sorted wells, which are often in the order of its rows
    step = plates.cumcount() * usual // plates["well"].transform("size").clip(lower=usual)
    return own[~pd.concat([own["plate"], step], axis=1).duplicated()].reset_index(drop=True)


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
    names = [*WELL, *CONDITION, *(name for name in OPTIONAL if name in obs)]
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
