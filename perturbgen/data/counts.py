"""What may call itself a raw count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from perturbgen.errors import CountsError, SchemaError, suggest

if TYPE_CHECKING:
    from anndata import AnnData


def named_matrix(adata: AnnData, layer: str | None) -> tuple[str, Any]:
    """X or a layer, with what errors call it."""
    if layer is None:
        return "X", adata.X
    if layer not in adata.layers:
        raise SchemaError(f"no layer {layer!r}", fix=suggest(layer, adata.layers))
    return f"layer {layer!r}", adata.layers[layer]


def require_counts(
    matrix: sparse.csr_matrix,
    *,
    where: str,
    cells: Sequence[Any] | Any,
    genes: Sequence[Any] | Any,
    fractional: bool = False,
) -> None:
    """Complain about the first value (cells, genes) that is negative, infinite, missing or, unless allowed, fractional."""
    values = matrix.data
    if not len(values) or (values.dtype.kind in "bu"):
        return
    sound = values.min() >= 0
    if values.dtype.kind == "f":
        sound = sound and np.isfinite(values.max()) and (fractional or np.array_equal(values, np.rint(values)))
    if not sound:
        raise first_wrong(matrix, where, cells, genes, fractional)


def first_wrong(matrix: sparse.csr_matrix, where: str, cells: Any, genes: Any, fractional: bool) -> CountsError:
    """The error that names the first cell and gene whose value is no count."""
    values = matrix.data
    wrong = ~((values >= 0) & np.isfinite(values) & (fractional | (values == np.rint(values))))
    at = int(np.flatnonzero(wrong)[0])
    cell = int(np.searchsorted(matrix.indptr, at, side="right")) - 1
    kind = "fractions" if 0 <= values[at] < np.inf else "values that are no counts"
    return CountsError(
        f"{where} holds {kind}: cell {str(cells[cell])!r} has {values[at]:.4g} "
        f"in gene {str(genes[int(matrix.indices[at])])!r}",
        expected="non-negative numbers" if fractional else "raw UMI counts (non-negative integers)",
        cause="the matrix was normalised, scaled or log-transformed, or means were generated instead of draws",
        fix="pass the raw matrix, or name its layer (layer=..., --layer)",
    )
