"""A look into an h5ad of any size: some of its cells' labels, and which matrices hold counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import CountsError, SchemaError, shorten
from perturbgen.core.files import require_file
from perturbgen.core.tables import reading

if TYPE_CHECKING:
    import h5py

_MOST: Final = 200_000  # cells whose labels are read: all of them up to here
_BLOCKS: Final = 40  # places of the file that they are read at
_VALUES: Final = 200_000  # of a matrix that are looked at


@dataclass(frozen=True)
class Survey:
    """What was seen of a file: ``obs`` of some cells, and what is wrong with each matrix.

    ``matrices`` says for X, every layer and ``raw`` why it holds no counts; "" where it does.
    """

    path: Path
    n_cells: int
    n_genes: int
    obs: pd.DataFrame
    matrices: Mapping[str, str]

    @property
    def whole(self) -> bool:
        """Whether every cell was looked at."""
        return len(self.obs) == self.n_cells

    @classmethod
    def of(cls, path: str | Path) -> Survey:
        """The survey of an h5ad; of a large one, from some rows here and there."""
        import h5py

        path = require_file(path, "h5ad file")
        with reading(path, "h5ad"), h5py.File(path, "r") as file:
            obs, index = file["obs"], _names(file["obs"])
            n_cells, n_genes = len(obs[index]), len(file["var"][_names(file["var"])])
            rows = _rows(n_cells)
            columns = {
                str(name): _column(obs[name], rows)
                for name in _order(obs)
                if name != index and name in obs
            }
            names = pd.Index(_column(obs[index], rows).astype(str))
            matrices = {name: _problem(item) for name, item in _matrices(file)}
        return cls(path, n_cells, n_genes, pd.DataFrame(columns).set_axis(names), matrices)

    def genes(self, layer: str | None) -> tuple[list[str], dict[str, pd.Series]]:
        """The names of the genes of a matrix, and what its var says of them in text."""
        import h5py

        with reading(self.path, "h5ad"), h5py.File(self.path, "r") as file:
            var = file["raw"]["var"] if layer == "raw" else file["var"]
            index = _names(var)
            rows = [slice(0, len(var[index]))]
            columns = {str(name): _column(var[name], rows) for name in _order(var) if name in var}
            ids = _column(var[index], rows).astype(str).tolist()
        return ids, {k: v for k, v in columns.items() if v.dtype == "category" and k != index}

    def layer(self) -> tuple[str | None, str]:
        """Which matrix holds the counts (None: X), and why; an error where none does."""
        if self.matrices.get("X") == "":
            return None, "X holds whole numbers"
        good = [name for name, problem in self.matrices.items() if not problem]
        if good:
            best = min(good, key=lambda name: (name not in ("counts", "raw"), name))
            x = self.matrices.get("X")
            return best, f"holds whole numbers{f', and X {x}' if x else ''}"
        found = [f"{name} {problem}" for name, problem in self.matrices.items()]
        raise CountsError(
            f"{self.path} has no raw counts: {'; '.join(found) or 'it has no matrix at all'}",
            expected="raw UMI counts (whole numbers) in X, in a layer, or in raw",
            cause="the file was normalised or log-transformed, and the counts were not kept",
            fix="get the counts from where the data come from: they cannot be had back",
        )


def _names(table: h5py.Group) -> str:
    """The member of obs or var that names its rows."""
    import h5py

    if not isinstance(table, h5py.Group):
        raise SchemaError(
            "the file was written by an anndata of before 2020",
            expected="an h5ad of anndata 0.8 or later",
            fix="read and write it once: anndata.read_h5ad(path).write_h5ad(other)",
        )
    return str(table.attrs.get("_index", "_index"))


def _order(obs: h5py.Group) -> list[str]:
    return [str(name) for name in obs.attrs.get("column-order", list(obs))]


def _rows(n: int) -> list[slice]:
    """Blocks of rows, all of them or some that are spread over the file."""
    if n <= _MOST:
        return [slice(0, n)]
    size = _MOST // _BLOCKS
    starts = np.linspace(0, n - size, _BLOCKS).astype(int)
    return [slice(int(start), int(start) + size) for start in starts]


def _column(item: Any, rows: list[slice]) -> pd.Series:
    """Some rows of a column, whatever its encoding; text as a category."""
    import h5py

    def taken(dataset: Any) -> np.ndarray:
        values = np.concatenate([np.asarray(dataset[part]) for part in rows])
        is_text = h5py.check_string_dtype(dataset.dtype) is not None
        return _decoded(values) if is_text else values

    if isinstance(item, h5py.Group) and "codes" in item:
        names = np.asarray(item["categories"][:])
        codes = taken(item["codes"])
        if h5py.check_string_dtype(item["categories"].dtype) is not None:
            names = _decoded(names)
        return pd.Series(pd.Categorical.from_codes(codes, pd.Index(names)))
    if isinstance(item, h5py.Group):  # values beside a mask of those that are missing
        values = pd.Series(taken(item["values"]))
        return values.where(~taken(item["mask"])) if "mask" in item else values
    values = pd.Series(taken(item))
    return values.astype("category") if values.dtype == object else values


def _decoded(values: np.ndarray) -> np.ndarray:
    return np.array([v.decode() if isinstance(v, bytes) else v for v in values], object)


def _matrices(file: h5py.File) -> list[tuple[str, Any]]:
    """X, the layers and raw, where the file has them."""
    found = [("X", file["X"])] if "X" in file else []
    found += [(str(name), item) for name, item in file.get("layers", {}).items()]
    if "raw" in file and "X" in file["raw"]:
        found.append(("raw", file["raw"]["X"]))
    return found


def _problem(item: Any) -> str:
    """Why a matrix holds no counts, from some of its values; "" where it does."""
    import h5py

    dataset = item["data"] if isinstance(item, h5py.Group) else item
    if dataset.dtype.kind not in "biuf":
        return f"is of type {dataset.dtype}"
    width = 1 if dataset.ndim == 1 else max(dataset.shape[1], 1)
    size = max(1, _VALUES // width // 10)
    starts = np.unique(np.linspace(0, max(0, len(dataset) - size), 10).astype(int))
    values = np.concatenate([np.ravel(dataset[int(i) : int(i) + size]) for i in starts])
    if not len(values) or not values.any():
        return "has no value but 0"
    if not np.isfinite(values).all():
        return "has missing or infinite values"
    if (values < 0).any():
        return f"has negative values ({shorten([f'{values.min():.3g}'])})"
    odd = values[values != np.rint(values)]
    return f"has fractions ({odd[0]:.3g})" if len(odd) else ""
