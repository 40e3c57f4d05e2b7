"""Optimisers for a model's groups of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perturbgen.train.settings import TrainingSettings

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

    from perturbgen.models import LatentModel


def make_optimisers(model: LatentModel, training: TrainingSettings) -> list[torch.optim.Optimizer]:
    """AdamW for the network and the mixture; for representations an Adam that touches only the rows of a batch."""
    import torch

    from perturbgen.models.dgd import BETAS

    groups = model.groups()
    dense = [{"params": groups["network"], "lr": training.learning_rate, "weight_decay": training.weight_decay}]
    if "mixture" in groups:
        dense.append({"params": groups["mixture"], "lr": training.mixture_rate, "weight_decay": 0.0})
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(dense, fused=True)]
    if "representations" in groups:
        rate = training.representation_rate
        optimisers.append(torch.optim.SparseAdam(groups["representations"], lr=rate, betas=BETAS))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["base_rate"] = group["lr"]
    return optimisers


def set_rates(optimisers: list[torch.optim.Optimizer], factor: float) -> None:
    """Learning rates as a part of those the run began with."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["base_rate"] * factor


def clip(model: torch.nn.Module, norm: float) -> float:
    """Scale dense gradients down to a total norm; returns the norm they had."""
    import torch

    dense = [p for p in model.parameters() if p.grad is not None and not p.grad.is_sparse]
    return float(torch.nn.utils.clip_grad_norm_(dense, norm, error_if_nonfinite=False))


def share_row_gradients(fabric: Fabric, model: torch.nn.Module, cells: int) -> None:
    """Add up, over processes, the gradients of the representations touched by a batch.

    Only these rows travel, and every process then makes the same step: the tables stay equal, and one checkpoint holds
    them all. ``cells`` is the largest number of rows that a process has.
    """
    import torch

    for parameter in model.parameters():
        if parameter.grad is None or not parameter.grad.is_sparse or fabric.world_size == 1:
            continue
        grad = parameter.grad.coalesce()
        rows = torch.zeros(cells, dtype=torch.int64, device=grad.device)
        values = torch.zeros(cells, parameter.shape[1], device=grad.device)
        rows[: grad._nnz()], values[: grad._nnz()] = grad.indices()[0], grad.values()
        gathered = torch.as_tensor(fabric.all_gather(rows)), torch.as_tensor(fabric.all_gather(values))
        all_rows, all_values = gathered[0].reshape(1, -1), gathered[1].flatten(0, 1)
        used = all_values.abs().sum(-1) > 0
        mean = all_values[used] / fabric.world_size
        parameter.grad = torch.sparse_coo_tensor(all_rows[:, used], mean, parameter.shape, check_invariants=False)
