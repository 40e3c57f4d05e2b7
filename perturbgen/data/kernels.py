"""The three inner loops over sparse counts, compiled by numba; they release the interpreter lock.

Everywhere ``values``, ``columns`` and ``offsets`` are the arrays of a CSR matrix: row ``r`` holds ``values[a:b]`` in
the genes ``columns[a:b]``, with ``a, b = offsets[r], offsets[r + 1]``. Import this module where it is used: numba takes
half a second to load.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

Array = np.ndarray[Any, Any]


@njit(nogil=True, cache=True)
def densify(values: Array, columns: Array, offsets: Array, rows: Array, out: Array) -> None:
    """Write the rows into ``out`` (rows, genes). A row is zeroed just before it is filled: it is then in the cache."""
    for k in range(len(rows)):
        row = out[k]
        row[:] = 0
        for j in range(offsets[rows[k]], offsets[rows[k] + 1]):
            row[columns[j]] = values[j]


@njit(nogil=True, cache=True)
def gather(
    values: Array,
    columns: Array,
    offsets: Array,
    rows: Array,
    out_offsets: Array,
    out_values: Array,
    out_columns: Array,
) -> None:
    """Copy the non-zeros of the rows, one row after the other."""
    for k in range(len(rows)):
        start, at = offsets[rows[k]], out_offsets[k]
        for j in range(out_offsets[k + 1] - at):
            out_values[at + j] = values[start + j]
            out_columns[at + j] = columns[start + j]


@njit(nogil=True, cache=True)
def group_sums(
    values: Array,
    columns: Array,
    offsets: Array,
    cells: Array,
    starts: Array,
    total: Array,
    out_values: Array,
    out_columns: Array,
    out_offsets: Array,
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
