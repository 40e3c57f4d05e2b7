"""An embedding beside its rivals: every method is shown the same genes."""

import numpy as np
import pandas as pd
import pytest

from perturbgen.l1000.embedder import EMBEDDING, load_embedder
from perturbgen.l1000.embedder.data import EmbedProfiles
from perturbgen.l1000.embedder.evaluation import judge


def turned(table: EmbedProfiles) -> EmbedProfiles:
    """The profiles with their genes in another order."""
    order = np.random.default_rng(1).permutation(len(table.features))
    return EmbedProfiles(table.dense()[:, order], table.meta, table.features[order])


def with_more_genes(table: EmbedProfiles) -> EmbedProfiles:
    """The profiles with three genes before their own that no training profile has."""
    values = np.hstack([table.dense()[:, -3:], table.dense()])
    return EmbedProfiles(values, table.meta, pd.Index(["x", "y", "z", *table.features]))


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
