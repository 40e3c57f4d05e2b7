"""The measured table that is compared on, and the folds that splits make of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from perturbgen.baselines import mimic_folds
from perturbgen.compare.settings import SplitSettings, TableSettings
from perturbgen.core.errors import ConfigError, SchemaError, shorten, suggest
from perturbgen.core.files import atomic_path
from perturbgen.core.tables import CONDITION, require_columns, require_unique
from perturbgen.data import KNOWN_IN_TARGETS, Split
from perturbgen.de import read_de_table
from perturbgen.evaluate import place

_TRAIN = "train"


@dataclass(frozen=True)
class Book:
    """All measured rows, conditions x genes; those of ``data.train`` are ``released``.

    What is learnt from and compared is within ± ``clip``; which genes respond is seen in the table
    as it is, since a limit makes the strongest genes equal.
    """

    table: pd.DataFrame
    released: np.ndarray
    clip: float | None = None

    @classmethod
    def of(cls, data: TableSettings) -> Book:
        """The rows of ``data.train`` and, where given, of ``data.truth``, with the same genes."""
        train = read_effects(data.find(data.train, "table"), statistic=data.statistic)
        if not data.truth:
            return cls(_complete(train, data.train), np.ones(len(train), bool), data.clip)
        path = data.find(data.truth, "table of withheld rows")
        truth = read_effects(path, statistic=data.statistic)
        odd = [*train.columns.difference(truth.columns), *truth.columns.difference(train.columns)]
        # On the genes in common the scores would be those of another task, and nobody would notice.
        if odd:
            raise SchemaError(
                f"{data.train} and {data.truth} have other genes: {shorten(odd)}",
                expected="the same genes",
            )
        both = pd.concat([train, truth[train.columns]])
        require_unique(both.index, "condition", f"{data.train} with {data.truth}")
        return cls(_complete(both, data.train), np.arange(len(both)) < len(train), data.clip)

    @property
    def conditions(self) -> pd.MultiIndex:
        """The labels of the rows."""
        return cast("pd.MultiIndex", self.table.index)

    def rows(self, positions: np.ndarray) -> pd.DataFrame:
        """Some rows (positions,), limited."""
        return self.limit(self.table.iloc[positions])

    def limit(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table of conditions x genes within ± ``clip``."""
        return table if self.clip is None else table.clip(-self.clip, self.clip)

    @property
    def hash(self) -> str:
        """Of values and labels."""
        # Of what is compared, not of the file: the same table in another format keeps its results.
        found = hashlib.sha256(np.ascontiguousarray(self.table.to_numpy()).tobytes())
        rows = [self.table.index.get_level_values(name) for name in CONDITION]
        for labels in (*rows, self.table.columns):
            found.update("\0".join(map(str, labels)).encode())
        return found.hexdigest()

    def write(self, path: Path) -> Path:
        """Save for the workers."""
        index = self.table.index
        labels = {name: np.array(index.get_level_values(name), str) for name in CONDITION}
        # On disk, for every job would have to pass the table through a pipe.
        with atomic_path(path) as part:
            np.savez(
                part,
                values=self.table.to_numpy(),
                released=self.released,
                clip=np.nan if self.clip is None else self.clip,
                genes=np.array(self.table.columns, str),
                **labels,  # type: ignore[arg-type]
            )
        return path

    @classmethod
    def read(cls, path: Path) -> Book:
        """What :meth:`write` saved."""
        with np.load(path) as file:
            labels = [file[name].astype(object) for name in CONDITION]
            index = pd.MultiIndex.from_arrays(labels, names=CONDITION)
            genes = pd.Index(file["genes"].astype(object), name="gene")
            table, clip = pd.DataFrame(file["values"], index, genes), float(file["clip"])
            return cls(table, file["released"], None if np.isnan(clip) else clip)


def _complete(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The table as float64, refused where a value is text, missing or infinite."""
    numeric = table.dtypes.map(pd.api.types.is_numeric_dtype).to_numpy(bool)
    text = [str(gene) for gene in table.columns[~numeric]]
    if text or not table.shape[1]:
        wrong = f"columns that are not numbers: {shorten(text)}" if text else "no column of a gene"
        raise SchemaError(
            f"{name} has {wrong}",
            expected="cell_type, compound (or sm_name), and a column of numbers for each gene",
        )
    values = table.astype(np.float64)
    bad = ~np.isfinite(values.to_numpy())
    if bad.any():
        raise SchemaError(
            f"{name} has {int(bad.sum())} values missing or infinite, the first "
            f"{place(bad, values)}",
            expected="a complete table",
            fix="drop these genes or conditions",
        )
    return values


def read_effects(path: Path, *, statistic: str = "signed_log10_p", layer: str = "") -> pd.DataFrame:
    """Conditions (cell_type, compound), each once, x genes, from any DE table."""
    if layer and path.suffix != ".h5ad":
        raise ConfigError(f"{path} has no layers", expected="an .h5ad file", fix="leave layer out")
    table = read_de_table(path, statistic=statistic, layer=layer)
    require_columns(table.index.names, CONDITION, path)
    labels = [table.index.get_level_values(name) for name in CONDITION]
    index = pd.MultiIndex.from_arrays(labels, names=CONDITION)
    # Tables come with further levels (id, SMILES), which are no part of a condition.
    require_unique(index, "condition", path)
    return table.set_axis(index, axis=0)


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
    found = mimic_folds(index, folds=split.folds, rng=rng, targets=split.targets)
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
