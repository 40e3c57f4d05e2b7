"""The likelihood of cells that a model was not trained on, by importance sampling."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from perturbgen.models.batch import CellBatch
from perturbgen.models.latent import LatentModel


@torch.no_grad()
def log_evidence(model: LatentModel, batch: CellBatch, *, samples: int, generator: torch.Generator) -> Tensor:
    """Log p(x | c) ≈ log ¹⁄ₛ Σ_s p(x | z_s, c) p(z_s) / q(z_s), z_s ~ q, (cells,).

    In expectation it is never above the truth, and approaches it as ``samples`` grow.
    """
    proposal = model.propose(batch)
    total = torch.full((len(batch.codes),), -torch.inf, device=batch.codes.device)
    for _ in range(samples):
        z, log_q = proposal.sample(generator)
        total = torch.logaddexp(total, model.log_likelihood(z, batch) + model.prior_log_prob(z) - log_q)
    return total - math.log(samples)
