"""An embedding is judged by what was withheld, and every rival is shown the same genes."""

import json

import numpy as np
import pandas as pd
import pytest

from perturbgen.l1000.embedder import EMBEDDING
from perturbgen.l1000.embedder.data import EmbedProfiles
from perturbgen.l1000.embedder.evaluation import Judged
from perturbgen.retrieval import retrieve


def turned(table: EmbedProfiles) -> EmbedProfiles:
    """The profiles with their genes in another order."""
    order = np.random.default_rng(1).permutation(len(table.features))
    return EmbedProfiles(table.dense()[:, order], table.meta, table.features[order])


def with_more_genes(table: EmbedProfiles) -> EmbedProfiles:
    """The profiles with three genes before their own that no training profile has."""
    values = np.hstack([table.dense()[:, -3:], table.dense()])
    return EmbedProfiles(values, table.meta, pd.Index(["x", "y", "z", *table.features]))


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("other", [turned, with_more_genes])
def test_rivals_are_judged_alike_whatever_order_or_number_of_genes_a_file_has(
    settings, tmp_path, other
):
    embedder = EMBEDDING.load(
        EMBEDDING.train(settings("training.epochs=1"), runs=tmp_path, accelerator="cpu")
    )
    table = embedder.profiles(part="test")
    judged = [
        Judged.of(embedder, some, seed=0, plate="plate", well="well")
        for some in (table, other(table))
    ]
    pd.testing.assert_frame_equal(
        *(pd.DataFrame(found.rows()) for found in judged), check_exact=True
    )
    pd.testing.assert_frame_equal(*(found.controls for found in judged), check_exact=True)


def test_a_run_is_judged_by_withheld_perturbagens_and_says_who_they_were(settings, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = EMBEDDING.train(settings("training.epochs=12"), runs=tmp_path, accelerator="cpu")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["validation/map"] > rows[0]["validation/map"]
    assert rows[-1]["train/margin"] < rows[0]["train/margin"]
    embedder = EMBEDDING.load(run)
    parts = embedder.parts()
    table = EmbedProfiles.read(embedder.settings.data.path).treatments(embedder.settings.data)
    held = table.take((parts == "validation").to_numpy())
    assert not set(held.meta["perturbagen"].astype(str)) & set(embedder.card.classes)
    labels = held.meta[["perturbagen"]].astype(str)
    summary = retrieve(embedder.embed(held), labels, same="perturbagen").summary()
    best = max(row["validation/map"] for row in rows)
    assert summary.loc["per query", "ap"] == pytest.approx(best, abs=1e-6)
    tags = EventAccumulator(str(run)).Reload().Tags()
    assert {"validation/map", "validation/auc", "schedule/margin", "schedule/scale"} <= set(
        tags["scalars"]
    )
    assert "embedding/principal components" in tags["images"]
    assert next(run.glob("*/embedding/metadata.tsv")).read_text().startswith("perturbagen\t")
