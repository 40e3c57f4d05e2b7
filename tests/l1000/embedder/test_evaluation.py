"""An embedding beside its rivals: every method is shown the same genes."""

import numpy as np
import pandas as pd
import pytest

from perturbgen.l1000.embedder import EMBEDDING, load_embedder
from perturbgen.l1000.embedder.data import ProfileTable
from perturbgen.l1000.embedder.evaluation import judge


def turned(table: ProfileTable) -> ProfileTable:
    """The profiles with their genes in another order."""
    order = np.random.default_rng(1).permutation(len(table.genes))
    return ProfileTable(
        table.values()[:, order], np.arange(len(table)), table.samples, table.genes[order]
    )


def with_more_genes(table: ProfileTable) -> ProfileTable:
    """The profiles with three genes before their own that no training profile has."""
    values = np.hstack([table.values()[:, -3:], table.values()])
    return ProfileTable(
        values, np.arange(len(table)), table.samples, pd.Index(["x", "y", "z", *table.genes])
    )


@pytest.mark.parametrize("other", [turned, with_more_genes])
def test_rivals_are_judged_alike_whatever_order_or_number_of_genes_a_file_has(
    settings, tmp_path, other
):
    embedder = load_embedder(
        EMBEDDING.train(settings("training.epochs=1"), runs=tmp_path, accelerator="cpu")
    )
    table = embedder.profiles(part="test")
    judged = [
        judge(embedder, some, seed=0, plate="plate", well="well") for some in (table, other(table))
    ]
    pd.testing.assert_frame_equal(
        *(pd.DataFrame(found.rows()) for found in judged), check_exact=True
    )
    pd.testing.assert_frame_equal(*(found.controls for found in judged), check_exact=True)
