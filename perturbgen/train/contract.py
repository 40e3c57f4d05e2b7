"""What a model of somebody else promises, tried on a few cells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from perturbgen.core.extensions import Extension
from perturbgen.data import CountStore, CovariateEncoder
from perturbgen.train.feeds import CellFeed
from perturbgen.train.settings import RunSettings

if TYPE_CHECKING:
    import torch

    from perturbgen.models import CellBatch, LatentModel

_CELLS, _GENES, _CATEGORIES = 48, 12, {"cell_type": 3, "compound": 2}


def model_breaches(extension: Extension) -> Iterator[str]:
    """Built, asked for its terms and their gradients, for latent points, and for cells."""
    import torch

    store = _store()
    batch, few = (next(iter(CellFeed(store, size).once())) for size in (16, 5))
    model, again = _built(extension), _built(extension)
    if any(not torch.equal(a, b) for a, b in _both(model, again)):
        yield "begins with other parameters: they are drawn from torch's own generator"
    counts = batch.counts.values.clone()
    yield from _of_terms(model, batch)
    model.eval()
    again.load_state_dict(model.state_dict())
    again.eval()
    yield from _of_points(model, again, batch, few)
    yield from _of_counts(model, batch)
    if not torch.equal(batch.counts.values, counts):
        yield "changes the counts of its batch"


def _built(extension: Extension) -> LatentModel:
    import torch

    from perturbgen.models import Blueprint, Covariate, build_model

    small = {"kind": extension.name, "latent": 3, "decoder": {"hidden": [8]}}
    conditions: dict[str, Any] = {name: {} for name in _CATEGORIES}
    base = {"data": {"path": "cells in memory"}, "conditions": conditions, "model": small}
    settings = RunSettings.load(base=base)
    covariates = [Covariate(name, size) for name, size in _CATEGORIES.items()]
    share = torch.full((_GENES,), 1 / _GENES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return build_model(extension.name, Blueprint(settings.model, covariates, share, _CELLS, 8))


def _both(one: LatentModel, other: LatentModel) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(one.state_dict().values(), other.state_dict().values(), strict=True)


def _store() -> CountStore:
    """Cells of three types under two compounds."""
    from anndata import AnnData
    from scipy import sparse

    rng = np.random.default_rng(0)
    names = {name: [f"{name} {i}" for i in range(size)] for name, size in _CATEGORIES.items()}
    index = [f"cell {i}" for i in range(_CELLS)]
    # In turn, so that every category has cells.
    obs = pd.DataFrame({k: (v * _CELLS)[:_CELLS] for k, v in names.items()}, index=index)
    counts = sparse.csr_matrix(rng.poisson(rng.gamma(1, 4, _GENES), (_CELLS, _GENES)))
    cells = AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene {i}" for i in range(_GENES)]))
    return CountStore.from_adata(cells, CovariateEncoder.fit(obs, list(_CATEGORIES)))


def _generator(seed: int) -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(seed)


def _terms(model: LatentModel, batch: CellBatch, numpys_seed: int) -> dict[str, torch.Tensor]:
    import torch

    from perturbgen.models import Draws

    np.random.seed(numpys_seed)  # noqa: NPY002  of whoever draws from it, against what is promised
    torch.manual_seed(3)  # dropout, which takes no generator
    return model(batch, Draws(_generator(2), total=len(batch.index)))


def _of_terms(model: LatentModel, batch: CellBatch) -> Iterator[str]:
    import torch

    model.train()
    first, second = (_terms(model, batch, seed) for seed in (0, 1))
    broken = [name for name, term in first.items() if not bool(torch.isfinite(term).all())]
    if broken:
        yield f"its term {broken[0]!r} is not finite"
        return
    if any(not torch.equal(term, second[name]) for name, term in first.items()):
        yield "gives other terms with the same draws: what is random comes from draws alone"
    torch.stack([term.sum() for term in first.values()]).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    dense = [g.to_dense() if g.is_sparse else g for g in gradients]
    if not any(bool(gradient.any()) for gradient in dense):
        yield "gives terms that no parameter has a gradient of"
    if not all(bool(torch.isfinite(gradient).all()) for gradient in dense):
        yield "has gradients that are not finite"
    stepped = {id(p) for group in model.groups().values() for p in group}
    forgotten = [name for name, p in model.named_parameters() if id(p) not in stepped]
    if forgotten:
        yield f"leaves {forgotten[0]!r} out of groups(), so that it is never trained"
    model.zero_grad()


def _of_points(
    model: LatentModel, again: LatentModel, batch: CellBatch, few: CellBatch
) -> Iterator[str]:
    import torch

    points = model.encode(batch).detach()
    if not torch.allclose(again.encode(batch), points, atol=1e-5):
        yield "encodes otherwise after its state_dict was loaded: what it learns is in there"
    alone = model.encode(few)
    if not torch.allclose(alone, points[: len(alone)], atol=1e-4):
        yield "encodes a cell otherwise among other cells"
    drawn, repeated, other = (model.prior_sample(6, _generator(seed)) for seed in (0, 0, 1))
    if drawn.shape != (6, model.n_latent):
        yield f"prior_sample gives {tuple(drawn.shape)}, and (6, {model.n_latent}) is asked for"
        return
    if not torch.equal(drawn, repeated) or torch.equal(drawn, other):
        yield "prior_sample does not draw from the generator that it is given"
    evidence = model.log_evidence(batch, samples=3, generator=_generator(0))
    if evidence.shape != (len(batch.codes),) or not bool(torch.isfinite(evidence).all()):
        yield "has no finite likelihood: propose, prior_log_prob and log_likelihood are for that"


def _of_counts(model: LatentModel, batch: CellBatch) -> Iterator[str]:
    import torch

    from perturbgen.models import sizes

    size = sizes(batch.counts, model.decoder.scaling)
    drawn, repeated, other = (model.sample(batch.codes, size, _generator(s)) for s in (0, 0, 1))
    if not torch.equal(drawn, drawn.round()):
        yield "samples numbers that are no counts"
    if not torch.equal(drawn, repeated):
        yield "samples other counts with the same generator"
    if torch.equal(drawn, other):
        yield "samples the same counts whatever is drawn: a mean is no cell"
    means = model.expected(model.encode(batch), batch.codes, size)
    if means.shape != drawn.shape or not bool(torch.isfinite(means).all()):
        yield f"expected gives {tuple(means.shape)}, not a finite mean of each count"
