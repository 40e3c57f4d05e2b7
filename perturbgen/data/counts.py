"""Raw counts in a matrix: finding what is not one, and bringing the rest to one form (CSR, int32).

The three inner loops over sparse counts, compiled by numba; they release the interpreter lock.

Everywhere ``values``, ``columns`` and ``offsets`` are the arrays of a CSR matrix: row ``r`` holds ``values[a:b]`` in
the genes ``columns[a:b]``, with ``a, b = offsets[r], offsets[r + 1]``. Import this module where it is used: numba takes
half a second to load.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray
from scipy import sparse

from perturbgen.core.errors import CountsError

_LARGEST = np.iinfo(np.int32).max
_BLOCK = 1 << 22


@dataclass(frozen=True)
class _BadCount:
    """An entry that is no raw count: what is wrong with it, and where it stands."""

    kind: str
    row: int
    column: int
    value: float


def first_bad_count(matrix: Any) -> _BadCount | None:
    """The first entry of a matrix (cells, genes), sparse or dense, that is not a non-negative integer of 32 bits."""
    if matrix.dtype.kind not in "biuf":
        raise CountsError(
            f"the counts are of type {matrix.dtype}", expected="numbers", cause="a matrix of text"
        )
    if not is_sparse(matrix):
        return _first_bad_dense(np.asarray(matrix))
    csr = matrix if matrix.format == "csr" else matrix.tocsr()
    for start, values in _blocks(csr.data):
        position = _first_bad(values)
        if position is not None:
            at = start + position
            row = int(np.searchsorted(csr.indptr, at, side="right")) - 1
            return _BadCount(
                _describe(values[position]), row, int(csr.indices[at]), float(values[position])
            )
    return None


def is_sparse(matrix: object) -> bool:
    """Whether a matrix is one of scipy's sparse ones."""
    return sparse.issparse(matrix)


def _first_bad_dense(matrix: NDArray[Any]) -> _BadCount | None:
    """As :func:`first_bad_count`, row by row in blocks."""
    rows = max(1, _BLOCK // max(matrix.shape[1], 1))
    for start in range(0, matrix.shape[0], rows):
        values = matrix[start : start + rows].ravel()
        position = _first_bad(values)
        if position is not None:
            row, column = divmod(position, matrix.shape[1])
            return _BadCount(
                _describe(values[position]), start + row, column, float(values[position])
            )
    return None


def _blocks(values: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """An array in pieces small enough that a check of each takes little memory."""
    for start in range(0, len(values), _BLOCK):
        yield start, values[start : start + _BLOCK]


def _first_bad(values: NDArray[Any]) -> int | None:
    """The position of the first value that is NaN, infinite, negative, fractional or beyond 32 bits."""
    bad = ~((values >= 0) & (values <= _LARGEST))
    if values.dtype.kind == "f":
        bad |= values != np.rint(values)
    return int(np.argmax(bad)) if bad.any() else None


def _describe(value: float) -> str:
    """What is wrong with a value that is no raw count."""
    if not np.isfinite(value):
        return "missing or infinite values"
    if value < 0:
        return "negative values"
    return "non-integers" if value != np.rint(value) else "values beyond 32 bits"


def counts_error(bad: _BadCount, cells: pd.Index, genes: pd.Index, where: str) -> CountsError:
    """The error that names the cell and the gene."""
    return CountsError(
        f"{where} holds {bad.kind}: cell '{cells[bad.row]}' has {bad.value:.6g} in gene '{genes[bad.column]}'.",
        expected="raw UMI counts (non-negative integers)",
        cause="the matrix was normalised, log-transformed or corrected",
        fix="pass the raw matrix, or name its layer: --layer counts",
    )


def to_counts(matrix: Any, cells: pd.Index, genes: pd.Index, where: str) -> sparse.csr_matrix:
    """A matrix (cells, genes) as CSR int32, sorted, without stored zeros; or an error naming cell and gene."""
    bad = first_bad_count(matrix)
    if bad is not None:
        raise counts_error(bad, cells, genes, where)
    counts = sparse.csr_matrix(matrix).astype(np.int32, copy=False)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


_Array = np.ndarray[Any, Any]


@njit(nogil=True, cache=True)
def densify(values: _Array, columns: _Array, offsets: _Array, rows: _Array, out: _Array) -> None:
    """Write the rows into ``out`` (rows, genes). A row is zeroed just before it is filled: it is then in the cache."""
    for k in range(len(rows)):
        row = out[k]
        row[:] = 0
        for j in range(offsets[rows[k]], offsets[rows[k] + 1]):
            row[columns[j]] = values[j]


@njit(nogil=True, cache=True)
def gather(
    values: _Array,
    columns: _Array,
    offsets: _Array,
    rows: _Array,
    out_offsets: _Array,
    out_values: _Array,
    out_columns: _Array,
) -> None:
    """Copy the non-zeros of the rows, one row after the other."""
    for k in range(len(rows)):
        start, at = offsets[rows[k]], out_offsets[k]
        for j in range(out_offsets[k + 1] - at):
            out_values[at + j] = values[start + j]
            out_columns[at + j] = columns[start + j]


@njit(nogil=True, cache=True)
def group_sums(
    values: _Array,
    columns: _Array,
    offsets: _Array,
    cells: _Array,
    starts: _Array,
    total: _Array,
    out_values: _Array,
    out_columns: _Array,
    out_offsets: _Array,
) -> None:
    """The product of a group indicator and the counts: group ``k`` is ``cells[starts[k]:starts[k + 1]]``.

    ``total`` (genes,) is a zeroed accumulator, zero again at the end; the sums come out as CSR with sorted columns.
    A zero is written too and then overwritten, hence one place more than there are sums: a branch here would be
    mispredicted for a third of the genes and cost as much as the additions.
    """
    at = 0
    for k in range(len(starts) - 1):
        for i in range(starts[k], starts[k + 1]):
            for j in range(offsets[cells[i]], offsets[cells[i] + 1]):
                total[columns[j]] += values[j]
        for gene in range(len(total)):
            out_values[at] = total[gene]
            out_columns[at] = gene
            at += total[gene] != 0
            total[gene] = 0
        out_offsets[k + 1] = at
