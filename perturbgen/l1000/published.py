"""What others publish beside CMap's matrices: leak-proof splits, gene sets, tables of signatures.

The Leak-Proof CMap benchmark (Shave 2024) has 25 splits with unseen lines and mechanisms. A split
has folds of training and validation blocks and one test block; a block is all profiles whose cell
line and mechanism are both in its lists. A profile that fits in no block is unused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError, suggest
from perturbgen.core.files import require_file
from perturbgen.l1000.metadata import read_metadata

if TYPE_CHECKING:
    from anndata import AnnData

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
            [
                _Block(*(frozenset(entry[kind]) for kind in ("cell_lines", "moas")))
                for entry in values[part]
            ]
            for part in ("train", "val", "test")
        )
        found = _LeakProof(values["name"], tuple(zip(train, val, strict=True)), test[0])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{path} is no leak-proof split: {str(error)[:100]}",
            expected="JSON with name, train, val and test blocks",
        ) from error
    _check_leaks(found, path)
    return found


def _check_leaks(split: _LeakProof, path: Path) -> None:
    """No cell line and no mechanism is in two blocks of a fold."""
    for number, (train, val) in enumerate(split.folds):
        blocks = {"train": train, "val": val, "test": split.test}
        for (name, one), (another, other) in combinations(blocks.items(), 2):
            shared = sorted((one.cell_lines & other.cell_lines) | (one.moas & other.moas))
            if shared:
                raise InputError(
                    f"{path}: fold {number} has {shared[0]!r} in {name} and {another}",
                    expected="blocks apart",
                )


def without_self(auroc: np.ndarray | float, group_size: np.ndarray | int) -> np.ndarray:
    """The published AUROC of groups without the query itself, which counts as a positive there.

    Published A' = (1 + (g - 1) A) / g of a group of g profiles, hence A = (g A' - 1) / (g - 1); NaN
    of a singleton.
    """
    size = np.asarray(group_size, dtype=float)
    others = np.where(size > 1, size - 1, np.nan)
    return (size * np.asarray(auroc, dtype=float) - 1) / others


def read_gmt(path: str | Path, *, suffix: str = "") -> dict[str, list[str]]:
    """Gene sets of a GMT file, without a ``suffix`` such as ``_UP`` of their names."""
    sets: dict[str, list[str]] = {}
    for line in require_file(path, "GMT file").read_text(encoding="utf-8").splitlines():
        cells = line.rstrip("\r").split("\t")
        if len(cells) < 3:
            raise InputError(
                f"{path}: a line has {len(cells)} cells", expected="a name, a description and genes"
            )
        sets[cells[0].removesuffix(suffix)] = [gene for gene in cells[2:] if gene]
    return sets


def read_level5(path: str | Path, metadata: str | Path) -> AnnData:
    """Level-5 signatures from an NPZ (X, rid, gene) and a table whose ``id`` names its rows."""
    import anndata

    path = require_file(path, "NPZ of signatures")
    try:
        # an object array could run code
        with np.load(path, allow_pickle=False) as arrays:
            values, probes, symbols = arrays["X"], arrays["rid"], arrays["gene"]
    except (ValueError, KeyError, OSError) as error:
        raise InputError(
            f"{path} is no NPZ of signatures: {error}", expected="arrays X, rid and gene"
        ) from error
    found = read_metadata(metadata)
    if len(found.ids) != len(values):
        raise SchemaError(
            f"{path} has {len(values):,} signatures, {metadata} describes {len(found.ids):,}"
        )
    obs = found.table.set_index(pd.Index(found.ids.to_pylist(), dtype=object))
    var = pd.DataFrame({"gene_symbol": symbols}, index=probes.astype(object))
    return anndata.AnnData(values, obs=obs, var=var)
