"""What is trained on and what is tested: the part of every cell or condition, in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError, shorten, suggest
from perturbgen.core.export import csv_text
from perturbgen.core.files import atomic_path, require_file
from perturbgen.core.stats import deal
from perturbgen.core.tables import CONDITION, conditions_of
from perturbgen.data.covariates import complete

TARGETS: Final = ("B cells", "Myeloid cells")  # the competition's test cell types

# The compounds that the competition measured in B and myeloid cells too.
_KNOWN = """
Alvocidib, Belinostat, CHIR-99021, Crizotinib, Dabrafenib, Dactolisib, Foretinib, Idelalisib,
LDN 193189, Linagliptin, MLN 2238, O-Demethylated Adapalene, Oprozomib (ONX 0912), Palbociclib,
Penfluridol, Porcn Inhibitor III, R428
"""
KNOWN_IN_TARGETS: Final = tuple(name.strip() for name in _KNOWN.split(","))


@dataclass(frozen=True)
class Split:
    """The part of every cell (index: its id) or condition (index: cell_type, compound).

    No value of the columns in ``apart`` occurs in two parts; ``check_leaks`` proves it.
    """

    parts: pd.Series
    kind: str
    apart: tuple[str, ...] = ()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {n:,}" for name, n in self.parts.value_counts().items())
        apart = f", apart by {', '.join(self.apart)}" if self.apart else ""
        return f"Split({self.kind}: {sizes}{apart})"

    def members(self, part: str) -> pd.Index:
        """The ids of one part, in order."""
        known = list(self.parts.unique())
        if part not in known:
            raise SchemaError(f"the split has no part {part!r}", fix=suggest(part, known))
        return self.parts.index[self.parts == part]

    def write(self, path: str | Path) -> None:
        """Save as CSV, with its kind in a first line that begins with ``#``.

        Names are joined by, so they stand as they are, even where a spreadsheet would compute them.
        """
        header = json.dumps({"kind": self.kind, "apart": self.apart})
        with atomic_path(path) as part:
            text = csv_text(self.parts.rename("part").to_frame(), index=True)
            part.write_text(f"# {header}\n{text}", encoding="utf-8", newline="")

    @classmethod
    def read(cls, path: str | Path) -> Split:
        """The split that :meth:`write` saved."""
        path = require_file(path, "split")
        try:
            text = path.read_text(encoding="utf-8")
            header = json.loads(text.partition("\n")[0].removeprefix("# "))
            # skipped, not taken for a comment: a name may hold a #
            table = pd.read_csv(path, skiprows=1, dtype=str, keep_default_na=False)
            parts = table.set_index(list(table.columns[:-1]))["part"]
            return cls(parts, header["kind"], tuple(header["apart"]))
        except (ValueError, KeyError, TypeError) as error:
            expected = "a first line '# {\"kind\": ...}', then a table whose last column is 'part'"
            raise InputError(f"{path} is not a split file: {error}", expected=expected) from None

    @classmethod
    def random_cells(
        cls,
        obs: pd.DataFrame,
        *,
        rng: np.random.Generator,
        fraction: float = 0.032,
        force_train: np.ndarray | None = None,
    ) -> Split:
        """A ``fraction`` of the cells for validation, none of those in ``force_train`` (cells,)."""
        if not 0 < fraction < 1:
            raise SchemaError(f"a validation fraction of {fraction}", expected="between 0 and 1")
        free = np.ones(len(obs), bool) if force_train is None else ~np.asarray(force_train, bool)
        wanted = round(fraction * len(obs))
        if wanted > free.sum():
            few = f"but only {free.sum()} are not forced into train"
            raise SchemaError(f"{wanted} validation cells wanted, {few}")
        if not wanted:
            what = f"{fraction:g} of {len(obs)} cells is not one validation cell"
            raise SchemaError(what, expected="some", fix="a larger fraction, or more cells")
        chosen = rng.choice(np.flatnonzero(free), size=wanted, replace=False)
        parts = np.full(len(obs), "train", object)
        parts[chosen] = "validation"
        return cls(pd.Series(parts, _ids(obs)), "random cells")

    @classmethod
    def leave_out(
        cls,
        table: pd.DataFrame,
        column: str,
        values: Sequence[str],
        *,
        except_compounds: Sequence[str] = (),
        part: str = "test",
    ) -> Split:
        """Cells or conditions with one of ``values`` in ``column`` are the test part.

        ``except_compounds`` stay in train even so (controls measured everywhere).
        """
        labels = complete(table, column).astype(str)
        unknown = [value for value in values if value not in set(labels)]
        if unknown:
            fix = suggest(unknown[0], labels.unique())
            raise SchemaError(f"no {column} {shorten(unknown)} to leave out", fix=fix)
        out = labels.isin(list(values))
        if except_compounds:
            out &= ~complete(table, "compound").astype(str).isin(list(except_compounds))
        parts = pd.Series(np.where(out, part, "train").astype(object), _ids(table))
        return cls(parts, f"leave out {column}", () if except_compounds else (column,))

    @classmethod
    def kfold(
        cls, table: pd.DataFrame, k: int, *, rng: np.random.Generator, by: str | None = None
    ) -> Split:
        """``k`` parts of near-equal size, ``fold_0`` and on; values of ``by`` stay whole."""
        labels = pd.Series(range(len(table))) if by is None else complete(table, by).astype(str)
        # Sorted: the folds depend on the seed, and not on the order of the rows.
        values = np.sort(labels.unique())
        if not 2 <= k <= len(values):
            what = f"{k} folds of {len(values)} {by or 'rows'}"
            raise SchemaError(what, expected=f"2 to {len(values)} folds")
        fold = pd.Series(deal(len(values), k, rng), values)
        parts = pd.Series([f"fold_{i}" for i in fold[labels]], _ids(table), dtype=object)
        return cls(parts, f"{k}-fold", (by,) if by else ())

    @classmethod
    def kaggle(
        cls,
        conditions: pd.DataFrame,
        *,
        rng: np.random.Generator,
        known: Sequence[str] = KNOWN_IN_TARGETS,
        targets: Sequence[str] = TARGETS,
        public: int = 50,
    ) -> Split:
        """The competition's split: of the target cell types only known compounds are in train.

        The other compounds of the target cell types are divided by compound into ``public`` of them
        and the private rest.
        """
        index = _complete_conditions(conditions)
        cell_type, compound = (index.get_level_values(name) for name in CONDITION)
        test = cell_type.isin(list(targets)) & ~compound.isin(list(known))
        compounds = np.sort(compound[test].unique())
        if not 0 <= public <= len(compounds):
            what = f"{public} public compounds of {len(compounds)} to predict"
            raise SchemaError(what, fix="public=0 makes all private")
        # Which compounds were public is not known, so they are drawn.
        shown = set(rng.choice(compounds, size=public, replace=False))
        parts = np.where(~test, "train", np.where(compound.isin(shown), "public", "private"))
        return cls(pd.Series(parts.astype(object), index), "kaggle")

    @classmethod
    def for_calibration(
        cls,
        obs: pd.DataFrame,
        wanted: pd.DataFrame,
        *,
        rng: np.random.Generator,
        share: float,
        validation: float,
        vehicle: str | None = None,
    ) -> Split:
        """Cells to train on, to validate on, and to calibrate a prediction of ``wanted`` on.

        ``wanted`` are conditions (cell_type, compound); their cells, if there are any, are the part
        "hidden". Of the compounds known in the wanted cell types (``vehicle`` and those flagged in
        ``control``, where there is such a column, aside), a ``share``, two at least, go into the
        part "calibration" in all of these types; a share of 0 withholds none. A share
        ``validation`` of the rest is the part of that name.
        """
        if not 0 <= share <= 1:
            raise SchemaError(f"a calibration fraction of {share}", expected="between 0 and 1")
        condition, asked = _complete_conditions(obs), _complete_conditions(wanted)
        kinds = asked.unique(level="cell_type")
        in_kinds = condition.get_level_values("cell_type").isin(kinds)
        withheld = condition.isin(asked)
        compound = condition.get_level_values("compound")
        flagged = (compound == vehicle).copy()
        if "control" in obs:
            flagged |= complete(obs, "control").astype(str).str.lower().isin(["true", "1"])
        there = compound[in_kinds & ~withheld].unique()
        known = np.sort(there.difference(compound[flagged].unique()))
        chosen = rng.permutation(known)[: max(2, round(share * len(known))) if share else 0]
        if share and len(chosen) < 2:
            what = f"{len(known)} compounds are known in {shorten(kinds)}"
            raise SchemaError(
                what,
                expected="two or more, to calibrate on",
                fix="predict with an estimator that calibrates on nothing: "
                "--estimator mean_t --replicates 10",
            )
        parts = np.where(rng.random(len(obs)) < validation, "validation", "train").astype(object)
        parts[in_kinds & compound.isin(chosen)] = "calibration"
        # Last, since a wanted condition is never learnt from, whatever else was drawn.
        parts[withheld] = "hidden"
        kind = "known compounds hidden in the wanted cell types"
        return cls(pd.Series(parts, _ids(obs)), kind)

    def check_leaks(self, table: pd.DataFrame) -> None:
        """Refuse a split of other rows than ``table`` has, or with parts that share a value."""
        ids = self.parts.index
        index = _complete_conditions(table) if ids.nlevels > 1 else table.index
        if not index.is_unique:
            raise SchemaError(
                f"ids occur more than once: {shorten(index[index.duplicated()].unique())}",
                expected="a unique id for every row, since a split is joined by it",
                fix="adata.obs_names_make_unique()",
            )
        for odd, what in (
            (ids[ids.duplicated()], "are assigned twice"),
            (index.difference(ids), "have no part"),
            (ids.difference(index), "are in the split but not in the data"),
        ):
            if len(odd):
                cause = "the split was made for other data"
                raise SchemaError(f"{len(odd)} rows {what}: {shorten(odd)}", cause=cause)
        part = self.parts.loc[index].to_numpy()
        for column in self.apart:
            values = complete(table, column).astype(str).to_numpy()
            homes = pd.Series(part).groupby(values).nunique()
            shared = homes.index[homes > 1]
            if len(shared):
                where = f"{column} {shorten(shared)} in more than one part"
                raise SchemaError(f"the split leaks: {where}")


def _complete_conditions(table: pd.DataFrame) -> pd.MultiIndex:
    """The condition of each row; a missing one is told as such, and not called "nan"."""
    for name in CONDITION:
        complete(table, name)
    return conditions_of(table)


def _ids(table: pd.DataFrame) -> pd.Index:
    """The rows' ids, their levels named so that a file can hold them."""
    index = table.index
    return index if index.nlevels > 1 else index.astype(str).rename(index.name or "obs_id")
