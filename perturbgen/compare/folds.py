"""From a split's settings to folds: which rows of the table are learnt from, which are predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from perturbgen.baselines import mimic_folds
from perturbgen.compare.settings import DataSettings, SplitSettings
from perturbgen.compare.tables import Book, find
from perturbgen.core.errors import SchemaError, shorten, suggest
from perturbgen.data import KNOWN_IN_TARGETS, Split

_TRAIN = "train"


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows of the table, as positions: ``train`` (rows,) to learn from, ``test`` (rows,) to predict.

    ``part`` names the part of the split that each predicted row belongs to (rows,).
    """

    split: str
    name: str
    train: np.ndarray
    test: np.ndarray
    part: np.ndarray


def make_folds(splits: Mapping[str, SplitSettings], book: Book, data: DataSettings) -> list[Fold]:
    """The folds of every split, in order."""
    made = {"kaggle": _kaggle_fold, "compounds": _compound_folds, "cell_types": _cell_type_folds}
    folds = []
    for name, split in splits.items():
        found = (
            _file_folds(name, split, book, data)
            if split.kind == "file"
            else made[split.kind](name, split, book)
        )
        folds += [_usable(fold) for fold in found]
    return folds


def _usable(fold: Fold) -> Fold:
    """The fold, if there is something to learn from and something to predict."""
    for rows, what in ((fold.train, "learn from"), (fold.test, "predict")):
        if not len(rows):
            raise SchemaError(
                f"split {fold.split!r}, {fold.name}: no condition to {what}",
                expected="at least one",
                fix="another split, or a table of more conditions",
            )
    return fold


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
    hidden = conditions["cell_type"].isin(targets) & ~conditions["compound"].isin(known)
    public = split.public
    if public is None:
        public = min(50, conditions.loc[hidden, "compound"].nunique() // 2)
    drawn = Split.kaggle(
        conditions,
        rng=np.random.default_rng(split.seed),
        known=known,
        targets=targets,
        public=public,
    ).parts.to_numpy()
    parts = np.asarray(drawn, object)
    chosen = split.test or tuple(part for part in ("public", "private") if part not in split.learn)
    return [_of_parts(name, "all", parts, chosen, learn=(_TRAIN, *split.learn))]


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
    if book.released.all():
        return list(KNOWN_IN_TARGETS)
    rows = book.table.index[book.released]
    return sorted(
        rows[rows.get_level_values("cell_type").isin(targets)].get_level_values("compound").unique()
    )


def _of_parts(
    split: str,
    name: str,
    parts: np.ndarray,
    test: tuple[str, ...],
    *,
    learn: tuple[str, ...] = (_TRAIN,),
) -> Fold:
    """A fold from the part of each row (rows,): ``learn`` parts are learnt from, ``test`` parts are predicted."""
    for chosen, barred, what in ((learn, (), "learn from"), (test, learn, "predict")):
        there = sorted(set(parts) - {*barred})
        for part in chosen:
            if part not in there:
                raise SchemaError(
                    f"split {split!r} has no part {part!r} to {what}", fix=suggest(part, there)
                )
    predicted = np.flatnonzero(np.isin(parts.astype(str), test))
    learnt = np.flatnonzero(np.isin(parts.astype(str), learn))
    return Fold(split, name, learnt, predicted, parts[predicted].astype(str))


def _compound_folds(name: str, split: SplitSettings, book: Book) -> list[Fold]:
    """Compounds withheld in all target cell types at once, and in no other."""
    rows = _eligible(split, book)
    index = pd.MultiIndex.from_tuples(list(book.table.index[rows]), names=book.table.index.names)
    rng = np.random.default_rng(split.seed)
    found = mimic_folds(index, folds=split.folds, rng=rng, targets=split.targets)
    return [_without(name, fold, rows, index.isin(out)) for fold, out in found.items()]


def _cell_type_folds(name: str, split: SplitSettings, book: Book) -> list[Fold]:
    """One cell type left out at a time."""
    rows = _eligible(split, book)
    conditions = book.table.index[rows].to_frame(index=False)
    chosen = split.cell_types or tuple(sorted(conditions["cell_type"].unique()))
    return [
        _without(
            name,
            cell_type,
            rows,
            (Split.leave_out(conditions, "cell_type", [cell_type]).parts == "test").to_numpy(),
        )
        for cell_type in chosen
    ]


def _file_folds(name: str, split: SplitSettings, book: Book, data: DataSettings) -> list[Fold]:
    """The parts of a file: all but ``train`` are predicted; where there is no ``train``, each part in turn."""
    found = Split.read(find(data, split.file, "split"))
    if found.parts.index.nlevels != 2:
        raise SchemaError(
            f"{split.file} is a split of cells", expected="one of conditions (cell_type, compound)"
        )
    found.check_leaks(book.table.index.to_frame(index=False))
    parts = found.parts.reindex(book.table.index).to_numpy(object)
    names = tuple(sorted(set(parts) - {_TRAIN}))
    if _TRAIN in parts:
        return [_of_parts(name, "all", parts, split.test or names)]
    unknown = [part for part in split.test if part not in names]
    if unknown:
        raise SchemaError(
            f"split {name!r} has no part {unknown[0]!r}", fix=suggest(unknown[0], names)
        )
    rows = np.arange(len(parts))
    return [_without(name, part, rows, parts == part) for part in split.test or names]


def _eligible(split: SplitSettings, book: Book) -> np.ndarray:
    """Positions of the rows that a split divides (rows,)."""
    return np.flatnonzero(book.released) if split.rows == "train" else np.arange(len(book.table))


def _without(split: str, name: str, rows: np.ndarray, withheld: np.ndarray) -> Fold:
    """A fold of ``rows`` (rows,), positions in the table, some of them withheld (rows,)."""
    test = rows[withheld]
    return Fold(split, name, rows[~withheld], test, np.full(len(test), name, object))


def describe(fold: Fold, index: pd.MultiIndex) -> pd.DataFrame:
    """What strata need to know of the predicted rows: their part, and whether their labels were learnt from."""
    labels, learnt = index[fold.test], index[fold.train]
    seen = {
        f"{name} seen": labels.get_level_values(name).isin(learnt.get_level_values(name))
        for name in ("cell_type", "compound")
    }
    return pd.DataFrame({"part": fold.part, **seen}, labels)
