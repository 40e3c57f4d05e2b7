"""A trained model on cells of a file: latent points, likelihood, checks of what it generates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from perturbgen.core.console import track
from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.core.tables import require_unique
from perturbgen.data import CountStore
from perturbgen.data.covariates import require_same_genes
from perturbgen.train.board import between_ratio, joined, predictive_numbers, real_and_generated
from perturbgen.train.cells import open_store, refuse_empty
from perturbgen.train.feeds import cell_batches
from perturbgen.train.settings import CellData

if TYPE_CHECKING:
    from perturbgen.train.generative import TrainedRun


def open_cells(
    run: TrainedRun, path: Path, *, layer: str | None = None, part: str | None = None
) -> CountStore:
    """Cells of a file for a run, all or those of a part of the run's own.

    The genes are the run's, in any order; a category that training never saw is refused.
    """
    from anndata import AnnData

    store = open_store(CellData(path=path, layer=layer))
    if not len(store):
        raise SchemaError(f"{path} has no cells", expected="at least one")
    genes = pd.Index(run.card.genes)
    if not store.var_names.equals(genes):
        if store.var_names.is_unique and set(genes) == set(store.var_names):
            order = store.var_names.get_indexer(genes)
            store = CountStore.from_adata(
                AnnData(store.counts()[:, order], obs=store.obs, var=pd.DataFrame(index=genes))
            )
        else:
            require_same_genes(AnnData(var=pd.DataFrame(index=store.var_names)), run.card.genes)
    store = store.with_covariates(run.card.covariates)
    if part is not None:
        store = store.subset(_members(run, store, part))
    refuse_empty(store)
    return store


def _members(run: TrainedRun, store: CountStore, part: str) -> pd.Index:
    """The run's cells of one part, all of which the file must have."""
    require_unique(store.obs.index, "cell", "the file")
    parts = run.parts()
    names = parts.index[parts == part]
    if not len(names):
        raise ConfigError(
            f"the run has no cells in part {part!r}", expected=" or ".join(sorted(parts.unique()))
        )
    if not names.isin(store.obs.index).all():
        raise SchemaError(
            f"the file lacks cells of the run's part {part!r}",
            expected="the file it was trained on",
        )
    return names


def encode_cells(run: TrainedRun, store: CountStore, *, batch_size: int = 256) -> np.ndarray:
    """Latent points (cells, latent)."""
    batches = track(cell_batches(store, batch_size), "encoding", -(-len(store) // batch_size))
    return np.vstack([run.model.encode(batch).cpu().numpy() for batch in batches])


def log_likelihoods(
    run: TrainedRun, store: CountStore, *, samples: int, seed: int, batch_size: int = 128
) -> np.ndarray:
    """Log p(x | c) of every cell, (cells,), in nats, by importance sampling."""
    import torch

    from perturbgen.models import log_evidence

    device = next(run.model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    batches = track(cell_batches(store, batch_size), "likelihood", -(-len(store) // batch_size))
    parts = [log_evidence(run.model, b, samples=samples, generator=generator) for b in batches]
    return np.concatenate([part.cpu().numpy() for part in parts])


def likelihood_row(log_likelihood: np.ndarray, n_genes: int) -> dict[str, Any]:
    """Mean negative log-likelihood, nats per gene and cell, with its standard error over cells."""
    nll = -log_likelihood / n_genes
    error = float(nll.std(ddof=1) / np.sqrt(len(nll))) if len(nll) > 1 else float("nan")
    return {"cells": len(nll), "nll_per_gene": float(nll.mean()), "standard_error": error}


def predictive_row(
    run: TrainedRun, store: CountStore, *, seed: int, cells: int = 2000
) -> dict[str, float]:
    """Posterior-predictive checks on some of the cells."""
    chosen = np.random.default_rng(seed).permutation(len(store))[:cells]
    real, generated = real_and_generated(run.model, store, chosen, seed=seed)
    row = predictive_numbers(real, generated)
    if run.settings.conditions:
        groups = joined(store.obs.iloc[chosen], run.settings.conditions)
        row["between_conditions_generated_over_real"] = between_ratio(real, generated, groups)
    return row


def probe_rows(
    latents: np.ndarray, labels: pd.DataFrame, *, seed: int, cells: int = 5000
) -> list[dict[str, Any]]:
    """How well a linear classifier reads each label from latent points (cells, latent).

    Accuracy in cross-validation, beside that of always naming the most common value. A model that
    is given a condition should keep little of it in its latent space.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    chosen = np.random.default_rng(seed).permutation(len(latents))[:cells]
    rows = []
    for name in labels:
        values = labels[name].astype(str).to_numpy()[chosen]
        names, counts = np.unique(values, return_counts=True)
        enough = counts >= 5  # one for each of the five folds
        if enough.sum() < 2:
            continue
        common = np.isin(values, names[enough])
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        accuracy = cross_val_score(probe, latents[chosen][common], values[common], cv=folds).mean()
        majority = float(counts.max() / counts[enough].sum())
        rows.append({"label": name, "accuracy": float(accuracy), "most_common_alone": majority})
    return rows
