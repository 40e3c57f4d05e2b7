"""Cells that nobody measured: latent points, decoded, and counts drawn around what comes out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbgen.data.covariates import CovariateEncoder
from perturbgen.errors import SchemaError, shorten
from perturbgen.machine import keep_freed_memory
from perturbgen.sampling.latents import Latents

if TYPE_CHECKING:
    import torch

    from perturbgen.models import LatentModel
    from perturbgen.sampling.plan import Plan

PIECE = 512  # cells decoded by one thread at once
AHEAD = 32  # pieces that wait to be drawn, or to be fetched
WORKERS = 16
KEPT = 1 << 28  # bytes of the largest array of a piece


class WellCells(NamedTuple):
    """Cells drawn for a well: its position in the plan, and counts (cells, genes) int32."""

    well: int
    counts: sp.csr_array


class Piece(NamedTuple):
    """Some of a well's cells on their way through the decoder: latent points, and the codes (1, covariates) of all."""

    well: int
    z: torch.Tensor
    codes: torch.Tensor
    size: torch.Tensor
    rng: np.random.Generator


@dataclass(frozen=True)
class CellGenerator:
    """A trained model and a source of latent points, which turn a plan's wells into cells."""

    model: LatentModel
    genes: pd.Index
    encoder: CovariateEncoder
    latents: Latents

    @cached_property
    def counts_are_nb(self) -> bool:
        """Whether the decoder gives negative binomial means; a Gaussian one draws by itself."""
        from perturbgen.models import GaussianVAE

        return not isinstance(self.model, GaussianVAE)

    def codes(self, wells: pd.DataFrame, **replaced: str) -> np.ndarray:
        """Condition codes (wells, covariates); ``replaced`` puts one value for all wells in a column."""
        absent = [name for name in self.encoder.categories if name not in wells]
        if absent:
            raise SchemaError(
                f"the run is conditioned on {shorten(absent)}, which the wells do not say", expected=shorten(wells)
            )
        return self.encoder.codes(wells.assign(**replaced))

    def draw(self, plan: Plan, wells: pd.DataFrame, *, replicate: int) -> Iterator[WellCells]:
        """Cells of every well that has some, in the plan's order; ``wells`` are the plan's, with all covariates."""
        pieces, drawn = self.pieces(plan, wells, plan.libraries(replicate), replicate), deque[Future[WellCells]]()
        with drawing_threads() as pool:
            for piece in pieces:
                drawn.append(pool.submit(self.draw_piece, piece))
                if len(drawn) >= AHEAD:
                    yield drawn.popleft().result()
            while drawn:
                yield drawn.popleft().result()

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    def pieces(
        self, plan: Plan, wells: pd.DataFrame, sizes: Sequence[np.ndarray], replicate: int, **replaced: str
    ) -> Iterator[Piece]:
        """The wells' cells with their latent points, in pieces of at most a block."""
        import torch

        codes = torch.from_numpy(self.codes(wells, **replaced))
        for i, size in enumerate(sizes):
            if not len(size):
                continue
            well, rng = wells.iloc[i], plan.rng(replicate, wells.iloc[i])
            z = self.latents.draw(well, codes[[i]].expand(len(size), -1), rng)
            own = codes[[i]].to(self.device)
            points, depths = z.split(PIECE), torch.from_numpy(size).float().split(PIECE)
            for point, depth, stream in zip(points, depths, rng.spawn(len(points)), strict=True):
                yield Piece(i, point.to(self.device), own, depth.to(self.device), stream)

    def means(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        """Means (cells, genes), each cell's adding up to its size, and r (1 or cells, genes)."""
        import torch

        with torch.inference_mode():
            if not self.counts_are_nb:
                mean = self.model.expected(piece.z, piece.codes, piece.size)
                return mean.cpu().numpy(), np.full((1, len(self.genes)), np.inf)
            share, log_r = self.model.composition(piece.z, piece.codes)
            return share.mul_(piece.size[:, None]).cpu().numpy(), np.atleast_2d(log_r.exp().cpu().numpy())

    def draw_piece(self, piece: Piece) -> WellCells:
        """Counts around the means, from the piece's own stream."""
        from perturbgen.sampling.draw import draw_counts

        if not self.counts_are_nb:
            return self.draw_gaussian(piece)
        return WellCells(piece.well, draw_counts(*self.means(piece), piece.rng))

    def draw_gaussian(self, piece: Piece) -> WellCells:
        """Counts of a model of real numbers, which rounds by itself."""
        import torch

        generator = torch.Generator(self.device).manual_seed(int(piece.rng.integers(2**62)))
        counts = self.model.sample(piece.codes, piece.size, generator, piece.z)
        return WellCells(piece.well, sp.csr_array(counts.cpu().numpy().astype(np.int32)))

    def expected_sums(self, plan: Plan, wells: pd.DataFrame, *, replicate: int, **replaced: str) -> np.ndarray:
        """Noise-free sums (wells, genes) of the means of each well's cells; ``replaced`` as in :meth:`codes`."""
        sums = np.zeros((len(wells), len(self.genes)))
        for piece in self.pieces(plan, wells, plan.libraries(replicate), replicate, **replaced):
            sums[piece.well] += self.means(piece)[0].sum(axis=0)
        return sums

    def drawn_sums(self, plan: Plan, wells: pd.DataFrame, *, replicate: int) -> tuple[sp.csr_array, np.ndarray]:
        """Sums (wells, genes) int64 of each well's drawn cells, and how many cells they are; no cell is kept."""
        rows: list[sp.csr_array] = [sp.csr_array((1, len(self.genes)), dtype=np.int64)] * len(wells)
        cells = np.zeros(len(wells), np.int64)
        for well, counts in self.draw(plan, wells, replicate=replicate):
            rows[well] = rows[well] + sp.csr_array(counts.sum(axis=0, dtype=np.int64)[None])
            cells[well] += counts.shape[0]
        return sp.vstack(rows, format="csr"), cells


@contextmanager
def drawing_threads() -> Iterator[Executor]:
    """As many threads as torch has, each of which decodes and draws alone: torch then uses one for each product."""
    import torch

    keep_freed_memory(KEPT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(WORKERS, threads), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
