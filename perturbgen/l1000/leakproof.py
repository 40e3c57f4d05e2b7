"""The Leak-Proof CMap benchmark (Shave 2024): 25 splits with unseen lines and mechanisms.

A split has folds of training and validation blocks and one test block; a block is all profiles
whose cell line and mechanism are both in its lists. A profile that fits in no block is unused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError, suggest
from perturbgen.core.files import require_file, require_folder

if TYPE_CHECKING:
    from perturbgen.data import Split

_UNUSED = "unused"


@dataclass(frozen=True)
class _Block:
    """Cell lines and mechanisms; a profile belongs to it by both."""

    cell_lines: frozenset[str]
    moas: frozenset[str]

    def holds(self, samples: pd.DataFrame) -> np.ndarray:
        """Which samples (``cell_line``, ``moa``) are of the block; of several mechanisms, all."""
        moas = samples["moa"].astype(object)
        # all of them, or a mechanism of another block would be in this one, too
        known = {text: set(str(text).split("|")) <= self.moas for text in moas.dropna().unique()}
        by_moa = np.array([known.get(text, False) for text in moas], dtype=bool)
        return samples["cell_line"].astype(object).isin(self.cell_lines).to_numpy() & by_moa


@dataclass(frozen=True)
class _LeakProof:
    """One split: pairs of training and validation blocks (the folds), and the test block."""

    name: str
    folds: tuple[tuple[_Block, _Block], ...]
    test: _Block

    def split(self, samples: pd.DataFrame, *, fold: int = 0) -> Split:
        """The part of every sample in one fold: train, val, test, or unused."""
        from perturbgen.data import Split

        if not 0 <= fold < len(self.folds):
            raise SchemaError(
                f"{self.name} has no fold {fold}", expected=f"0 to {len(self.folds) - 1}"
            )
        for column in ("cell_line", "moa"):
            if column not in samples.columns:
                raise SchemaError(
                    f"the samples have no column {column!r}",
                    expected="cell_line and moa (Repurposing Hub)",
                    fix=suggest(column, samples.columns),
                )
        parts = pd.Series(_UNUSED, index=samples.index, dtype=object)
        train, val = self.folds[fold]
        for part, block in (("train", train), ("val", val), ("test", self.test)):
            parts[block.holds(samples)] = part
        if not (parts != _UNUSED).any():
            raise SchemaError(
                f"no sample is in {self.name}: its lines are such as "
                f"{sorted(self.test.cell_lines)[:3]}",
                expected="cell lines and mechanisms as CMap and the Repurposing Hub write them",
            )
        return Split(parts, kind=f"leak-proof {self.name} fold {fold}", apart=())


def read_leakproof(path: str | Path) -> _LeakProof:
    """A split from its JSON file, checked for leaks between its blocks."""
    path = require_file(path, "leak-proof split")
    try:
        values = json.loads(path.read_text())
        train, val, test = (
            [_block(entry) for entry in values[part]] for part in ("train", "val", "test")
        )
        found = _LeakProof(values["name"], tuple(zip(train, val, strict=True)), test[0])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{path} is no leak-proof split: {str(error)[:100]}",
            expected="JSON with name, train, val and test blocks",
        ) from error
    _check_leaks(found, path)
    return found


def read_leakproofs(folder: str | Path) -> list[_LeakProof]:
    """All splits of a folder, by name."""
    return sorted(
        (read_leakproof(p) for p in require_folder(folder).glob("*.json")),
        key=lambda split: split.name,
    )


def _block(entry: Mapping[str, Any]) -> _Block:
    """A block of the file."""
    return _Block(frozenset(entry["cell_lines"]), frozenset(entry["moas"]))


def _check_leaks(split: _LeakProof, path: Path) -> None:
    """No cell line and no mechanism is in two blocks of a fold."""
    for number, (train, val) in enumerate(split.folds):
        pairs = (
            (train, val, "train and val"),
            (train, split.test, "train and test"),
            (val, split.test, "val and test"),
        )
        for one, other, names in pairs:
            shared = sorted((one.cell_lines & other.cell_lines) | (one.moas & other.moas))
            if shared:
                raise InputError(
                    f"{path}: fold {number} has {shared[0]!r} in {names}", expected="blocks apart"
                )


def without_self(auroc: np.ndarray | float, group_size: np.ndarray | int) -> np.ndarray:
    """The published AUROC of groups without the query itself, which counts as a positive there.

    Published A' = (1 + (g - 1) A) / g of a group of g profiles, hence A = (g A' - 1) / (g - 1); NaN
    of a singleton.
    """
    size = np.asarray(group_size, dtype=float)
    others = np.where(size > 1, size - 1, np.nan)
    return (size * np.asarray(auroc, dtype=float) - 1) / others
