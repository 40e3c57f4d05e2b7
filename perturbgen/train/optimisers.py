"""Optimisers: their rates, the norm of their gradients, and gradients that are shared row by row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric


def adamw(*groups: tuple[Iterable[torch.nn.Parameter], float, float]) -> torch.optim.Optimizer:
    """AdamW for groups of (parameters, learning rate, weight decay)."""
    import torch

    return torch.optim.AdamW([{"params": list(p), "lr": rate, "weight_decay": decay} for p, rate, decay in groups],
                             fused=True)  # fmt: skip


def remember_rates(optimisers: list[torch.optim.Optimizer]) -> None:
    """Note the rates that a run begins with; a schedule multiplies them."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["base_rate"] = group["lr"]


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


def share_row_gradients(fabric: Fabric, model: torch.nn.Module, samples: int) -> None:
    """Add up, over processes, the gradients of the representations touched by a batch.

    Only these rows travel, and every process then makes the same step: the tables stay equal, and one checkpoint holds
    them all. ``samples`` is the largest number of rows that a process has.
    """
    import torch

    for parameter in model.parameters():
        if parameter.grad is None or not parameter.grad.is_sparse or fabric.world_size == 1:
            continue
        grad = parameter.grad.coalesce()
        rows = torch.zeros(samples, dtype=torch.int64, device=grad.device)
        values = torch.zeros(samples, parameter.shape[1], device=grad.device)
        rows[: grad._nnz()], values[: grad._nnz()] = grad.indices()[0], grad.values()
        gathered = torch.as_tensor(fabric.all_gather(rows)), torch.as_tensor(fabric.all_gather(values))
        all_rows, all_values = gathered[0].reshape(1, -1), gathered[1].flatten(0, 1)
        used = all_values.abs().sum(-1) > 0
        mean = all_values[used] / fabric.world_size
        parameter.grad = torch.sparse_coo_tensor(all_rows[:, used], mean, parameter.shape, check_invariants=False)
