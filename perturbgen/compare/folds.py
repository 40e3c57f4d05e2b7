"""The folds that splits make of the measured table: what is learnt from, what is withheld."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from perturbgen.baselines import mimic_folds
from perturbgen.compare.settings import SplitSettings, TableSettings
from perturbgen.compare.tables import Book
from perturbgen.core.errors import SchemaError, shorten, suggest
from perturbgen.core.tables import CONDITION
from perturbgen.data import KNOWN_IN_TARGETS, Split

log = logging.getLogger(__name__)

_TRAIN = "train"


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows of the table, as positions: ``train`` to learn from, ``test`` to predict.

    ``part`` names the part of the split that each predicted row belongs to (rows,).
    """

    split: str
    name: str
    train: np.ndarray
    test: np.ndarray
    part: np.ndarray

    def describe(self, index: pd.MultiIndex) -> pd.DataFrame:
        """What strata need of each predicted row: its part, which labels were learnt."""
        labels, learnt = index[self.test], index[self.train]
        seen = {
            f"{name} seen": labels.get_level_values(name).isin(learnt.get_level_values(name))
            for name in CONDITION
        }
        return pd.DataFrame({"part": self.part, **seen}, labels)

    @classmethod
    def tested(
        cls, splits: Mapping[str, SplitSettings], folds: list[Fold], index: pd.MultiIndex
    ) -> list[str]:
        """How many conditions are tested, where a split tests those of sparse cell types alone."""
        said = []
        for name, split in splits.items():
            own = [fold for fold in folds if fold.split == name]
            rows = np.unique(np.concatenate([fold.test for fold in own]))
            types = sorted(index[rows].get_level_values("cell_type").unique())
            every = index[np.unique(np.concatenate([own[0].test, own[0].train]))]
            others = every.get_level_values("cell_type").nunique() - len(types)
            if split.kind == "compounds" and split.targets is None and others:
                said.append(
                    f"{len(rows)} of {len(every)} conditions are tested: those of "
                    f"{shorten(types)}, measured with less than half of the compounds, which is "
                    f"where predictions are wanted (splits.{name}.targets names other cell types)."
                )
        return said

    @classmethod
    def all(
        cls, splits: Mapping[str, SplitSettings], book: Book, data: TableSettings
    ) -> list[Fold]:
        """The folds of every split, in order."""
        made = {
            "kaggle": _kaggle_fold,
            "compounds": _withheld_compounds,
            "cell_types": _withheld_cell_types,
        }
        folds: list[Fold] = []
        for name, split in splits.items():
            if split.kind == "file":
                folds += _file_folds(name, split, book, data)
            else:
                folds += made[split.kind](name, split, book)
        for fold in folds:
            for rows, what in ((fold.train, "learn from"), (fold.test, "predict")):
                if not len(rows):
                    raise SchemaError(
                        f"split {fold.split!r}, {fold.name}: no condition to {what}",
                        expected="at least one",
                        fix="another split, or a table of more conditions",
                    )
        return folds


def _kaggle_fold(name: str, split: SplitSettings, book: Book) -> list[Fold]:
    """In the target cell types only the known compounds are learnt from, as in the competition."""
    conditions = book.table.index.to_frame(index=False)
    targets = split.target_types
    absent = [target for target in targets if target not in set(conditions["cell_type"])]
    if absent:
        raise SchemaError(
            f"split {name!r}: the table has no cell type {shorten(absent)}",
            fix=f"splits.{name}.targets: {suggest(absent[0], conditions['cell_type'].unique())}",
        )
    known = _known_compounds(split, book, targets)
    withheld = conditions["cell_type"].isin(targets) & ~conditions["compound"].isin(known)
    # The competition had 50 public compounds; a small table has not as many.
    public = split.public
    if public is None:
        public = min(50, conditions.loc[withheld, "compound"].nunique() // 2)
    rng = np.random.default_rng(split.seed)
    drawn = Split.kaggle(conditions, rng=rng, known=known, targets=targets, public=public)
    parts = np.asarray(drawn.parts.to_numpy(), object)
    chosen = split.test or tuple(part for part in ("public", "private") if part not in split.learn)
    return [_of_parts(name, parts, chosen, learn=(_TRAIN, *split.learn))]


def _known_compounds(split: SplitSettings, book: Book, targets: tuple[str, ...]) -> list[str]:
    """The compounds that were measured in the targets, too."""
    if split.known is not None:
        there = book.conditions.get_level_values("compound").unique()
        absent = [name for name in split.known if name not in there]
        if absent:
            raise SchemaError(
                f"the table has no compound {shorten(absent)}",
                fix=f"splits.*.known: {suggest(absent[0], there)}",
            )
        return list(split.known)
    # Without withheld rows nothing tells which were known: the competition's own list does.
    if book.released.all():
        return list(KNOWN_IN_TARGETS)
    rows = book.table.index[book.released]
    in_targets = rows[rows.get_level_values("cell_type").isin(targets)]
    return sorted(in_targets.get_level_values("compound").unique())


def _of_parts(
    split: str, parts: np.ndarray, test: tuple[str, ...], *, learn: tuple[str, ...] = (_TRAIN,)
) -> Fold:
    """A fold from the part of each row (rows,): ``learn`` is learnt from, ``test`` is predicted."""
    for chosen, barred, what in ((learn, (), "learn from"), (test, learn, "predict")):
        there = sorted(set(parts) - {*barred})
        for part in chosen:
            if part not in there:
                raise SchemaError(
                    f"split {split!r} has no part {part!r} to {what}", fix=suggest(part, there)
                )
    predicted = np.flatnonzero(np.isin(parts.astype(str), test))
    learnt = np.flatnonzero(np.isin(parts.astype(str), learn))
    return Fold(split, "all", learnt, predicted, parts[predicted].astype(str))


def _withheld_compounds(name: str, split: SplitSettings, book: Book) -> list[Fold]:
    """Compounds withheld in all target cell types at once, and in no other.

    Without ``targets`` these are the sparse cell types; where none is sparse, each fold withholds
    its compounds in a single cell type (see ``mimic_folds``).
    """
    # Labels anew: a slice keeps the levels of rows that are not in it.
    rows = _eligible(split, book)
    index = pd.MultiIndex.from_tuples(list(book.table.index[rows]), names=book.table.index.names)
    rng = np.random.default_rng(split.seed)
    try:
        found = mimic_folds(index, folds=split.folds, rng=rng, targets=split.targets)
    except SchemaError as error:
        way = 'kind = "cell_types" withholds one cell type at a time'
        raise SchemaError(
            f"split {name!r}: {error.what}",
            expected=error.expected,
            fix=f"{error.fix}; or {way}" if error.fix else f"{way} (splits.{name})",
        ) from None
    return [_without(name, fold, rows, index.isin(out)) for fold, out in found.items()]


def _withheld_cell_types(name: str, split: SplitSettings, book: Book) -> list[Fold]:
    """One cell type withheld at a time."""
    rows = _eligible(split, book)
    conditions = book.table.index[rows].to_frame(index=False)
    folds = []
    for cell_type in split.cell_types or tuple(sorted(conditions["cell_type"].unique())):
        parts = Split.leave_out(conditions, "cell_type", [cell_type]).parts
        folds.append(_without(name, cell_type, rows, (parts == "test").to_numpy()))
    return folds


def _file_folds(name: str, split: SplitSettings, book: Book, data: TableSettings) -> list[Fold]:
    """All parts but ``train`` are predicted; where there is no ``train``, each part in turn."""
    found = Split.read(data.find(split.file, "split"))
    if found.parts.index.nlevels != 2:
        raise SchemaError(
            f"{split.file} is a split of cells", expected="one of conditions (cell_type, compound)"
        )
    # A split of cells' conditions names the vehicle, and what had too few samples to be compared.
    learnt = found.parts.index[found.parts == _TRAIN]
    absent = learnt.difference(book.table.index)
    if 0 < len(absent) < len(learnt):
        found = Split(found.parts.drop(absent), found.kind, found.apart)
        labels = shorten([" | ".join(key) for key in absent], 3)
        log.info("%d conditions of %s are not in the table: %s", len(absent), split.file, labels)
    found.check_leaks(book.table.index.to_frame(index=False))
    parts = found.parts.reindex(book.table.index).to_numpy(object)
    names = tuple(sorted(set(parts) - {_TRAIN}))
    # A file with a part to learn from is one division; without one its parts are folds.
    if _TRAIN in parts:
        return [_of_parts(name, parts, split.test or names)]
    for part in split.test:
        if part not in names:
            raise SchemaError(f"split {name!r} has no part {part!r}", fix=suggest(part, names))
    rows = np.arange(len(parts))
    return [_without(name, part, rows, parts == part) for part in split.test or names]


def _eligible(split: SplitSettings, book: Book) -> np.ndarray:
    """Positions of the rows that a split divides (rows,)."""
    # By default the released rows alone: what is withheld in the end must not choose anything.
    return np.flatnonzero(book.released) if split.rows == "train" else np.arange(len(book.table))


def _without(split: str, name: str, rows: np.ndarray, withheld: np.ndarray) -> Fold:
    """A fold of ``rows`` (rows,), positions in the table, some of them withheld (rows,)."""
    test = rows[withheld]
    return Fold(split, name, rows[~withheld], test, np.full(len(test), name, object))
