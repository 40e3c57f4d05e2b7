"""Counts with their labels, delivered in batches from memory, from a file or from a GPU."""

from perturbgen.data.store.base import SparseRows
from perturbgen.data.store.count_store import Batch, CountStore
