"""Cells that nobody measured: a plan's wells, latent points decoded, counts drawn around means.

Counts are drawn at the price of the counts that come out, not of the zeros. A negative binomial
count is a Poisson number of clusters, each of a logarithmic size:

    number ~ Poisson(λ), λ = r log(1 + m/r)        size ~ Logarithmic(θ), θ = m/(m + r)

As λ <= m, the clusters of a cell are a Poisson process of intensity m laid over its genes one after
the other, of whose points λ/m are kept: one addition a gene, and the logarithms only where a point
falls. Genes of large means are drawn one by one as gamma mixtures of Poisson counts. Nothing is
approximated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numba import njit
from numpy.typing import NDArray

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.system import keep_freed_memory
from perturbgen.core.tables import CONDITION
from perturbgen.data import CovariateEncoder
from perturbgen.generate.latents import Latents
from perturbgen.generate.sampler import CellSampler
from perturbgen.generate.wells import WELL

if TYPE_CHECKING:
    import torch

    from perturbgen.models import LatentModel

_KEY: Final = [*CONDITION, *WELL]
_CELLS, _DRAWS = 1, 2  # what a stream of random numbers is for

_PIECE: Final = 512  # cells decoded by one thread at once; blocks of many wells gain nothing
_AHEAD: Final = 32  # pieces that wait to be drawn, or to be fetched
_WORKERS: Final = 16
_KEPT: Final = 1 << 28  # bytes of the largest array of a piece


@dataclass(frozen=True)
class Plan:
    """Which wells are generated, with how many cells of which depth, for any replicate.

    Numbers of cells and depths come from one stream for (seed, replicate), since forests draw for
    all wells at once; latent points and counts from a stream of their own for each (seed,
    replicate, well).
    """

    sampler: CellSampler
    conditions: pd.DataFrame
    seed: int
    vehicle: str | None = None  # whose wells those compounds get that no measured cell has

    @cached_property
    def wells(self) -> pd.DataFrame:
        """A row for each condition and well of the design."""
        wells = self.sampler.table.design(self.conditions, vehicle=self.vehicle)
        # By label: the same draws whatever the order in which conditions were asked for.
        return wells.sort_values(_KEY, ignore_index=True)

    def libraries(self, replicate: int) -> list[NDArray[np.float64]]:
        """Library sizes of the cells of each well; an empty array where none was drawn."""
        rng = np.random.default_rng([_CELLS, self.seed, replicate])
        n_cells = self.sampler.cell_numbers(self.wells, 1, rng)[0].to_numpy()
        sizes = self.sampler.libraries(self.wells, n_cells, rng)
        return [np.maximum(np.rint(part), 1.0) for part in sizes]

    def rng(self, replicate: int, well: pd.Series) -> np.random.Generator:
        """The stream of one well's latent points and counts."""
        text = "\0".join(str(well[name]) for name in _KEY)
        # Python's own hash differs from process to process.
        label = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
        return np.random.default_rng([_DRAWS, self.seed, replicate, label])


class _WellCells(NamedTuple):
    """Cells drawn for a well: its position in the plan, and counts (cells, genes) int32."""

    well: int
    counts: sp.csr_array


class _Piece(NamedTuple):
    """Some of a well's cells: latent points (cells, latent), the codes (1, covariates) of all."""

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
    def _counts_are_nb(self) -> bool:
        """Whether the decoder gives negative binomial means; a Gaussian one draws by itself."""
        from perturbgen.models import GaussianVAE

        return not isinstance(self.model, GaussianVAE)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def codes(self, wells: pd.DataFrame, **replaced: str) -> np.ndarray:
        """Condition codes (wells, covariates); ``replaced`` puts one value in all of a column."""
        absent = [name for name in self.encoder.categories if name not in wells]
        if absent:
            raise SchemaError(
                f"the run is conditioned on {shorten(absent)}, which the wells do not say",
                expected=shorten(wells),
            )
        return self.encoder.codes(wells.assign(**replaced))

    def draw(self, plan: Plan, wells: pd.DataFrame, *, replicate: int) -> Iterator[_WellCells]:
        """Cells of every well that has some; ``wells`` are the plan's, with all covariates."""
        pieces = self._pieces(plan, wells, plan.libraries(replicate), replicate)
        # In the plan's order, and never more than some pieces ahead: memory stays bounded.
        drawn = deque[Future[_WellCells]]()
        with _drawing_threads() as pool:
            for piece in pieces:
                drawn.append(pool.submit(self.draw_piece, piece))
                if len(drawn) >= _AHEAD:
                    yield drawn.popleft().result()
            while drawn:
                yield drawn.popleft().result()

    def drawn_sums(
        self, plan: Plan, wells: pd.DataFrame, *, replicate: int
    ) -> tuple[sp.csr_array, np.ndarray]:
        """Sums (wells, genes) int64 of each well's drawn cells, and their numbers; none is kept."""
        # Limma needs sums alone: twenty replicates of all cells would fill the memory.
        rows: list[sp.csr_array] = [sp.csr_array((1, len(self.genes)), dtype=np.int64)] * len(wells)
        cells = np.zeros(len(wells), np.int64)
        for well, counts in self.draw(plan, wells, replicate=replicate):
            rows[well] = rows[well] + sp.csr_array(counts.sum(axis=0, dtype=np.int64)[None])
            cells[well] += counts.shape[0]
        return sp.vstack(rows, format="csr"), cells

    def expected_sums(
        self, plan: Plan, wells: pd.DataFrame, *, replicate: int, **replaced: str
    ) -> np.ndarray:
        """Noise-free sums (wells, genes) of cells' means; ``replaced`` as in :meth:`codes`."""
        sums = np.zeros((len(wells), len(self.genes)))
        for piece in self._pieces(plan, wells, plan.libraries(replicate), replicate, **replaced):
            sums[piece.well] += self.means(piece)[0].sum(axis=0)
        return sums

    def _pieces(
        self,
        plan: Plan,
        wells: pd.DataFrame,
        sizes: Sequence[np.ndarray],
        replicate: int,
        **replaced: str,
    ) -> Iterator[_Piece]:
        """The wells' cells with their latent points, at most ``_PIECE`` at once."""
        import torch

        codes = torch.from_numpy(self.codes(wells, **replaced))
        for i, size in enumerate(sizes):
            if not len(size):
                continue
            well, rng = wells.iloc[i], plan.rng(replicate, wells.iloc[i])
            z = self.latents.draw(well, codes[[i]].expand(len(size), -1), rng)
            # One row of codes for all cells: the additive term is then one more bias, not a product
            # of its own.
            own = codes[[i]].to(self._device)
            points, depths = z.split(_PIECE), torch.from_numpy(size).float().split(_PIECE)
            for point, depth, stream in zip(points, depths, rng.spawn(len(points)), strict=True):
                yield _Piece(i, point.to(self._device), own, depth.to(self._device), stream)

    def means(self, piece: _Piece) -> tuple[np.ndarray, np.ndarray]:
        """Means (cells, genes), each cell's adding up to its size, and r (1 or cells, genes)."""
        import torch

        with torch.inference_mode():
            if not self._counts_are_nb:
                mean = self.model.expected(piece.z, piece.codes, piece.size)
                return mean.cpu().numpy(), np.full((1, len(self.genes)), np.inf)
            # The shares times the size: no logarithm is taken only to be undone.
            share, log_r = self.model.composition(piece.z, piece.codes)
            mean = share.mul_(piece.size[:, None])
            return mean.cpu().numpy(), np.atleast_2d(log_r.exp().cpu().numpy())

    def draw_piece(self, piece: _Piece) -> _WellCells:
        """Counts around the means, from the piece's own stream."""
        import torch

        if self._counts_are_nb:
            return _WellCells(piece.well, _draw_counts(*self.means(piece), piece.rng))
        generator = torch.Generator(self._device).manual_seed(int(piece.rng.integers(2**62)))
        counts = self.model.sample(piece.codes, piece.size, generator, piece.z)
        return _WellCells(piece.well, sp.csr_array(counts.cpu().numpy().astype(np.int32)))


@contextmanager
def _drawing_threads() -> Iterator[Executor]:
    """As many threads as torch has, each of which decodes and draws alone.

    All cores for a product and then for the draws waste both: threads wait for each other at every
    barrier. One thread a piece is worth a factor of 1.5.
    """
    import torch

    # Arrays of a piece are freed and wanted again at once: the system shall not clear them anew.
    keep_freed_memory(_KEPT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(
            min(_WORKERS, threads), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


_Array = np.ndarray[Any, Any]

# Beyond this mean a gamma mixture of Poisson counts is cheaper: its price does not grow with them.
_HEAVY: Final = 2.0
# Genes passed at once where none gets a count: one by one they took half of the time of the draws.
_STRIDE: Final = 32


def _draw_counts(mean: _Array, r: _Array, rng: np.random.Generator) -> sp.csr_array:
    """Counts (cells, genes) int32 of means (cells, genes) and r, (1, genes) or (cells, genes)."""
    cells, genes = mean.shape
    # Pages of an empty array are taken when written: this reserves room for the worst case, and
    # uses what is needed.
    values, columns = np.empty(cells * genes, np.int32), np.empty(cells * genes, np.int32)
    offsets = np.zeros(cells + 1, np.int64)
    _walk(mean, r, rng, values, columns, offsets)
    used = offsets[-1]
    return sp.csr_array(
        (values[:used].copy(), columns[:used].copy(), offsets), shape=(cells, genes)
    )


@njit(nogil=True, cache=True)
def _walk(
    mean: _Array,
    r: _Array,
    rng: np.random.Generator,
    values: _Array,
    columns: _Array,
    offsets: _Array,
) -> None:
    """Fill the CSR arrays cell by cell, skipping strides of genes that no point falls into."""
    used, genes = 0, mean.shape[1]
    for cell in range(mean.shape[0]):
        own = cell if r.shape[0] > 1 else 0
        reached, point = 0.0, rng.standard_exponential()
        for start in range(0, genes, _STRIDE):
            stop = min(start + _STRIDE, genes)
            total = _sum(mean, cell, start, stop)
            if total <= _HEAVY and point >= reached + total:
                reached += total
                continue
            for gene in range(start, stop):
                m, count = np.float64(mean[cell, gene]), 0
                if m > _HEAVY:
                    shape = r[own, gene]  # a Poisson count around a gamma-distributed mean
                    rate = m if np.isinf(shape) else m / shape * rng.standard_gamma(shape)
                    count = rng.poisson(rate)
                else:
                    reached += m
                    if point >= reached:
                        continue
                    ratio = m / r[own, gene]
                    while point < reached:
                        u = rng.random()
                        # u < log(1 + m/r) / (m/r), the share of the points that are kept;
                        # 2 / (2 + m/r) is below that share, and spares most of the logarithms.
                        if u * (2 + ratio) < 2 or u * ratio < np.log1p(ratio):
                            count += _logarithmic(ratio, rng)
                        point += rng.standard_exponential()
                if count > 0:
                    values[used] = count
                    columns[used] = gene
                    used += 1
        offsets[cell + 1] = used


@njit(nogil=True, cache=True, fastmath={"reassoc"})
def _sum(mean: _Array, cell: int, start: int, stop: int) -> float:
    """The sum of a cell's means of some genes, in any order of addition."""
    total = mean[cell, start]
    for gene in range(start + 1, stop):
        total += mean[cell, gene]
    return np.float64(total)


@njit(nogil=True, cache=True)
def _logarithmic(ratio: float, rng: np.random.Generator) -> int:
    """P(k) ∝ θ^k / k with θ = ratio / (1 + ratio) (Kemp 1981: geometric, random parameter)."""
    v = rng.random()
    if v * (1 + ratio) >= ratio:
        return 1
    q = -np.expm1(-np.log1p(ratio) * rng.random())
    if v >= q:
        return 1
    if v > q * q:
        return 2
    return 1 + int(np.log(max(v, 1e-300)) / np.log(q))
