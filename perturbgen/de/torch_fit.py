"""The weighted fits on a GPU: the algebra of ``perturbgen.de.voom``, in torch and float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from perturbgen.core.errors import ConfigError
from perturbgen.de.voom import LogCounts

if TYPE_CHECKING:
    from torch import Tensor

_Array = NDArray[np.float64]


class TorchFitter:
    """Least squares on one basis; what all blocks of genes share lies on the device.

    ``functions`` are (functions, groups) and (functions, q) of the basis' coefficients.
    """

    block = 2048  # genes at a time, whose (genes, q, groups) arrays fit the device together

    def __init__(self, logs: LogCounts, functions: tuple[csr_matrix, _Array], device: str) -> None:
        import torch

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(
                f"device={device!r}, but torch finds no CUDA device", fix='device="cpu"'
            )

        def put(values: _Array) -> Tensor:
            # float32 would lose the digits that R's numbers are compared to
            return torch.as_tensor(np.ascontiguousarray(values), dtype=torch.float64, device=device)

        solver, trend = logs.solver, logs.mean_variance.trend
        self.put, self.df_residual = put, solver.df_residual
        self.q = put(solver.q)
        self.indicators = put((solver.codes == np.arange(solver.groups)[:, None]).astype(float))
        self.group_sizes = self.indicators.sum(1, keepdim=True)
        self.knots, self.heights = put(trend.x), put(trend.y)
        self.depth = put(np.log2(logs.sizes + 1) - np.log2(1e6))[:, None]
        by_group, by_q = functions
        self.by_group, self.by_q = put(by_group.toarray()), put(by_q)

    def fit(self, e: _Array) -> tuple[_Array, _Array, _Array]:
        """Residual SD (genes,), effects and unscaled errors (functions, genes) of log CPM."""
        import torch

        y = self.put(e)
        fitted = self.predict(self.indicators @ y / self.group_sizes, self.q.T @ y)
        w = self.precision(fitted + self.depth)
        mass = self.indicators @ w
        cross = torch.einsum("dn,nq,ng->gqd", self.indicators, self.q, w)
        ratio = cross / mass.T[:, None, :]
        schur = torch.einsum("nq,np,ng->gqp", self.q, self.q, w) - ratio @ cross.transpose(1, 2)
        means = self.indicators @ (w * y) / mass
        right = (self.q.T @ (w * y)).T - (cross @ means.T[:, :, None])[:, :, 0]
        root = torch.linalg.cholesky(schur)
        on_q = torch.cholesky_solve(right[:, :, None], root)[:, :, 0].T
        on_groups = means - torch.einsum("gqd,qg->dg", ratio, on_q)
        sigma = ((w * (y - self.predict(on_groups, on_q)) ** 2).sum(0) / self.df_residual).sqrt()
        shifted = self.by_q.T - torch.einsum("gqd,md->gqm", ratio, self.by_group)
        spread = torch.linalg.solve_triangular(root, shifted, upper=False)
        variances = self.by_group**2 @ (1 / mass) + (spread**2).sum(1).T
        effects = self.by_group @ on_groups + self.by_q @ on_q
        return sigma.cpu().numpy(), effects.cpu().numpy(), variances.sqrt().cpu().numpy()

    def predict(self, on_groups: Tensor, on_q: Tensor) -> Tensor:
        """Fitted values (samples, genes)."""
        return self.indicators.T @ on_groups + self.q @ on_q

    def precision(self, fitted: Tensor) -> Tensor:
        """voom's weights at fitted log2 counts."""
        import torch

        place = fitted.clamp(self.knots[0], self.knots[-1]).contiguous()
        right = torch.searchsorted(self.knots, place).clamp(1, len(self.knots) - 1)
        left = right - 1
        share = (place - self.knots[left]) / (self.knots[right] - self.knots[left])
        return (self.heights[left] + share * (self.heights[right] - self.heights[left])) ** -4
