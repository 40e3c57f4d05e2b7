"""What data must be before a model or a statistic sees them; all violations are told at once.

Also the names of columns into which every reader translates those of its files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, UserError, shorten, suggest
from perturbgen.core.tables import CONDITION
from perturbgen.data.counts import count_problem
from perturbgen.data.samples import samples_of

if TYPE_CHECKING:
    from anndata import AnnData

# Open Problems' and Kaggle's names of our columns, {theirs: ours} in the order of their columns;
# every other map of columns is {ours: theirs}.
KAGGLE_COLUMNS: Final = {
    "cell_type": "cell_type",
    "sm_name": "compound",
    "dose_uM": "dose",
    "donor_id": "donor",
    "plate_name": "plate",
    "well": "well",
    "row": "row",
    "library_id": "library",
    "control": "control",
}

# Columns of obs, of which CONDITION (cell_type and compound) is required. `compound` is the
# perturbation's name, `control` is True for vehicle and positive-control wells alike; which
# compound is the vehicle (the reference of every contrast) is `adata.uns["vehicle"]`.
COLUMNS: Final = tuple(KAGGLE_COLUMNS.values())
_MANY_PLATES: Final = 6  # of which some may have lost the few vehicle cells that they had
ATLAS: Final = "atlas"  # in uns of cells that nothing was done to: they need no compound


def with_our_columns(obs: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """obs with our names beside theirs (``columns`` is ``{ours: theirs}``), text as categories."""
    added: dict[str, Any] = {ours: obs[theirs] for ours, theirs in columns.items()}
    obs = obs.assign(**added)
    # Categories are what h5ad stores anyway, and what takes least memory.
    text = [
        str(name)
        for name in obs
        if pd.api.types.is_object_dtype(obs[name]) or pd.api.types.is_string_dtype(obs[name])
    ]
    return obs.assign(**{name: obs[name].astype("category") for name in text})


@dataclass(frozen=True)
class _Violation:
    """One thing wrong with the data; a ``warning`` leaves them usable."""

    severity: Literal["error", "warning"]
    rule: str
    error: UserError

    def __str__(self) -> str:
        return f"{type(self.error).__name__}: {self.error}"

    def record(self) -> dict[str, str | None]:
        """As a row of a table."""
        said = {name: getattr(self.error, name) for name in ("what", "expected", "cause", "fix")}
        return {"severity": self.severity, "rule": self.rule, **said}


def find_violations(
    adata: AnnData,
    *,
    vehicle: str | None = None,
    by: Sequence[str] = ("cell_type",),
    required: Sequence[str] = CONDITION,
) -> list[_Violation]:
    """All violations, errors first; DE needs the vehicle in every group of the columns ``by``.

    ``required`` columns are those without which the data are of no use; an atlas has no compound.
    """
    obs = adata.obs
    if adata.uns.get(ATLAS) and "compound" not in obs:
        required = [name for name in required if name != "compound"]
    found = [
        *_in_counts(adata),
        *_in_ids(adata),
        *_in_columns(obs, required),
        *_in_categories(obs),
        *_in_vehicle(obs, vehicle or adata.uns.get("vehicle"), by),
        *_in_wells(obs),
        *_in_replicates(obs),
        *_in_depth(adata),
    ]
    return sorted(found, key=lambda violation: violation.severity != "error")


def validate(
    adata: AnnData,
    *,
    vehicle: str | None = None,
    by: Sequence[str] = ("cell_type",),
    required: Sequence[str] = CONDITION,
) -> list[_Violation]:
    """Raise one error that holds every error found; return the warnings."""
    found = find_violations(adata, vehicle=vehicle, by=by, required=required)
    errors = [violation for violation in found if violation.severity == "error"]
    if len(errors) == 1:
        raise errors[0].error
    if errors:
        raise SchemaError(
            f"{len(errors)} things are wrong with these data\n" + "\n".join(str(e) for e in errors)
        )
    return found


def _error(rule: str, what: str, **advice: str | None) -> _Violation:
    return _Violation("error", rule, SchemaError(what, **advice))


def _warning(rule: str, what: str, **advice: str | None) -> _Violation:
    return _Violation("warning", rule, SchemaError(what, **advice))


def _in_counts(adata: AnnData) -> Iterator[_Violation]:
    """X holds non-negative integers."""
    if adata.X is None or 0 in adata.shape:
        yield _error("counts", f"the data are empty: {adata.n_obs} cells x {adata.n_vars} genes")
    elif problem := count_problem(adata.X, adata.obs_names, adata.var_names, "X"):
        yield _Violation("error", "counts", problem)


def _in_ids(adata: AnnData) -> Iterator[_Violation]:
    """Cells and genes have unique names."""
    for what, table, names, cause in (
        ("cell", "obs", adata.obs_names, "data sets joined without a prefix"),
        ("gene", "var", adata.var_names, "gene symbols shared by several ids"),
    ):
        twice = names[names.duplicated()].unique()
        if len(twice):
            yield _error(
                "unique ids",
                f"{len(twice)} {what} names occur more than once: {shorten(twice)}",
                expected=f"a unique name for every {what}",
                cause=cause,
                fix=f"adata.{table}_names_make_unique(), or sum the repeated ones",
            )


def _in_columns(obs: pd.DataFrame, required: Sequence[str]) -> Iterator[_Violation]:
    """Required columns are there; the columns of our vocabulary have no holes."""
    for column in required:
        if column not in obs:
            near = suggest(column, map(str, obs.columns))
            yield _error(
                "columns",
                f"obs has no column {column!r}",
                expected=f"columns {shorten(CONDITION)}",
                cause="the file has its own names",
                fix=f"map it with --columns (perturbgen init FILE writes one); {near}",
            )
    for column in (name for name in COLUMNS if name in obs):
        absent = obs.index[obs[column].isna()]
        if len(absent):
            yield (_error if column in CONDITION else _warning)(
                "columns",
                f"{column!r} is missing in {len(absent)} cells: {shorten(absent, 3)}",
                expected="a value for every cell",
                fix="complete or drop these cells",
            )


def _in_categories(obs: pd.DataFrame) -> Iterator[_Violation]:
    """Names hold no surprises: none padded, none empty, none that differ in case only."""
    # Predictions are joined by these names, so a blank too many is a condition too many.
    for column in (name for name in COLUMNS if name in obs and name not in ("dose", "control")):
        names = sorted({str(value) for value in obs[column].dropna().unique()})
        blank = [name for name in names if name != name.strip() or not name]
        if blank:
            yield _error(
                "categories",
                f"{column!r} has names that are blank or padded: {shorten(blank)}",
                expected="names that other tables can be joined by",
                cause="a spreadsheet or a split string",
                fix=f"obs[{column!r}] = obs[{column!r}].str.strip()",
            )
        folded = [name.strip().casefold() for name in names]
        for _, alike in pd.Series(names, dtype=object).groupby(folded):
            # Names that differ in blanks alone were named above.
            if len({name.strip() for name in alike}) > 1:
                yield _warning(
                    "categories",
                    f"{column!r} has names that differ in case only: {shorten(alike)}",
                    expected="one spelling",
                    cause="tables of two sources",
                    fix="rename them if they mean the same",
                )


def _in_vehicle(obs: pd.DataFrame, vehicle: str | None, by: Sequence[str]) -> Iterator[_Violation]:
    """The vehicle is named, and present in every group and on every plate."""
    if "compound" not in obs:
        return
    known = [str(name) for name in obs["compound"].dropna().unique()]
    if vehicle is None:
        yield _error(
            "vehicle",
            "no vehicle is named",
            expected="the compound that every other is compared with",
            fix='vehicle = "DMSO" in the column map, or --vehicle',
        )
        return
    if vehicle not in known:
        yield _error(
            "vehicle",
            f"no cell was treated with the vehicle {vehicle!r}",
            expected="vehicle cells to compare with",
            fix=suggest(vehicle, known),
        )
        return
    # By plate, too: a plate's effect is told from its compounds' by its vehicle wells.
    for group in (name for name in dict.fromkeys([*by, "plate"]) if name in obs):
        has = (obs["compound"] == vehicle).groupby(obs[group], observed=True).any()
        lacking = has.index[~has]
        if group == "plate" and group not in by:
            # A compound that stands beside the vehicle elsewhere ties such a plate to the others.
            pairs = obs[["plate", "compound"]].drop_duplicates()
            tied = pairs.loc[pairs["plate"].isin(has.index[has]), "compound"]
            here = pairs["compound"].isin(tied).groupby(pairs["plate"], observed=True).any()
            few = len(has) >= _MANY_PLATES and len(lacking) < len(has) / 2
            linked = [plate for plate in lacking if few and here[plate]]
            lacking = lacking[~lacking.isin(linked)]
            if linked:
                yield _warning(
                    "vehicle",
                    f"no {vehicle!r} cell in {len(linked)} of {len(has)} plates: "
                    f"{shorten(linked, 3)}",
                    expected="vehicle cells on every plate",
                    cause="few cells a batch, or the file is a subset",
                    fix="none needed: their compounds are beside the vehicle on other plates",
                )
        if len(lacking):
            yield _error(
                "vehicle",
                f"no {vehicle!r} cell in {group} {shorten(lacking)}",
                expected=f"vehicle cells in every {group}, which DE compares with",
                cause="the file is a subset",
                fix=f"drop these {group}s or add their vehicle cells",
            )


def _in_wells(obs: pd.DataFrame) -> Iterator[_Violation]:
    """A well of a plate holds one compound."""
    labels = ["plate", "well", "compound"]
    if not {*labels} <= set(obs.columns):
        return
    wells = obs[labels].dropna().drop_duplicates().astype(str)
    mixed = wells[wells.duplicated(["plate", "well"], keep=False)].sort_values(labels)
    if len(mixed):
        named = [
            f"{plate} {well}: {' / '.join(rows['compound'])}"
            for (plate, well), rows in mixed.groupby(["plate", "well"])
        ]
        yield _error(
            "wells",
            f"{len(named)} wells hold more than one compound: {shorten(named, 3)}",
            expected="(plate, well) determines the compound",
            cause="plates of two libraries share a name, or rows were shuffled against each other",
            fix="give the plates different names, or restore the order of obs",
        )


def _in_replicates(obs: pd.DataFrame) -> Iterator[_Violation]:
    """A condition has several samples (wells, patients, batches), or its spread is unknown."""
    if not {*CONDITION, "plate", "well"} <= set(obs.columns):
        return
    sizes = samples_of(obs.dropna(subset=list(CONDITION)))["samples"]
    if len(sizes) > 1 and sizes.max() < 2:
        yield _warning(
            "replicates",
            f"each of the {len(sizes)} conditions has one sample",
            expected="two or more samples (wells, patients, batches) of some condition",
            cause="cells of one sample are no replicates of each other",
            fix="models can be trained, but no differential expression can be estimated. "
            "Is there a column of replicates? [columns] sample = ...",
        )


def _in_depth(adata: AnnData) -> Iterator[_Violation]:
    """Cells and wells without a single count are named."""
    if adata.X is None or 0 in adata.shape:
        return
    empty = depth(adata) == 0
    if empty.all():
        yield _error(
            "depth", "no cell has a single count", expected="raw counts", cause="another layer"
        )
    elif empty.any():
        yield _warning(
            "depth",
            f"{int(empty.sum())} cells have no counts: {shorten(adata.obs_names[empty], 3)}",
            expected="at least one count in every cell",
            fix="drop them: adata[adata.X.sum(axis=1) > 0]",
        )
    if {"plate", "well"} <= set(adata.obs.columns):
        keys = [adata.obs["plate"], adata.obs["well"]]
        wells = pd.Series(empty, index=adata.obs_names).groupby(keys, observed=True).all()
        if wells.any():
            named = [" ".join(map(str, well)) for well in wells.index[wells]]
            yield _warning(
                "depth",
                f"{len(named)} wells have no counts at all: {shorten(named)}",
                expected="a library in every well",
                fix="pseudobulk drops such wells; a design may lose its controls",
            )


def depth(adata: AnnData) -> np.ndarray:
    """The total count of each cell (cells,) float64."""
    return np.asarray(adata.X.sum(axis=1), dtype=np.float64).ravel()
