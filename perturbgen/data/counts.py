"""Raw counts in a matrix: finding what is none, and bringing the rest to one form (CSR, int32)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from perturbgen.core.errors import CountsError

_LARGEST = np.iinfo(np.int32).max
_BLOCK = 1 << 22  # values looked at together: the masks of a whole data set would take gigabytes


def to_counts(matrix: Any, cells: pd.Index, genes: pd.Index, where: str) -> sparse.csr_matrix:
    """A matrix (cells, genes) as CSR int32, sorted, no stored zeros; or an error."""
    if error := count_problem(matrix, cells, genes, where):
        raise error
    counts = sparse.csr_matrix(matrix).astype(np.int32, copy=False)
    # One form for all, so that the same counts have the same bytes whatever file they came from.
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def count_problem(
    matrix: Any, cells: Sequence[Any] | pd.Index, genes: Sequence[Any] | pd.Index, where: str
) -> CountsError | None:
    """The error that names the first entry that is no count, a non-negative integer of 32 bits."""
    if matrix.dtype.kind not in "biuf":
        raise CountsError(
            f"the counts are of type {matrix.dtype}", expected="numbers", cause="a matrix of text"
        )
    is_sparse: bool = sparse.issparse(matrix)
    if is_sparse:
        csr = matrix.tocsr()
        at = _first_bad(csr.data[i : i + _BLOCK] for i in range(0, len(csr.data), _BLOCK))
        if at is None:
            return None
        row, column = int(np.searchsorted(csr.indptr, at, side="right")) - 1, int(csr.indices[at])
        value = csr.data[at]
    else:
        dense = np.asarray(matrix)
        rows = max(1, _BLOCK // max(dense.shape[1], 1))
        at = _first_bad(dense[i : i + rows].ravel() for i in range(0, len(dense), rows))
        if at is None:
            return None
        row, column = divmod(at, dense.shape[1])
        value = dense[row, column]
    if not np.isfinite(value):
        kind = "missing or infinite values"
    elif value < 0:
        kind = "negative values"
    else:
        kind = "non-integers" if value != np.rint(value) else "values beyond 32 bits"
    return CountsError(
        f"{where} holds {kind}: cell '{cells[row]}' has {float(value):.6g} "
        f"in gene '{genes[column]}'.",
        expected="raw UMI counts (non-negative integers)",
        cause="the matrix was normalised, log-transformed or corrected",
        fix="pass the raw matrix, or name its layer: --layer counts",
    )


def bad_counts(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values are NaN, infinite, negative, fractional or beyond 32 bits."""
    bad = ~((values >= 0) & (values <= _LARGEST))  # so that NaN is bad, too
    if values.dtype.kind == "f":
        bad |= values != np.rint(values)
    return bad


def _first_bad(blocks: Iterable[NDArray[Any]]) -> int | None:
    """The position of the first value that is no count, in blocks that follow each other."""
    start = 0
    for values in blocks:
        bad = bad_counts(values)
        if bad.any():
            return start + int(np.argmax(bad))
        start += len(values)
    return None
