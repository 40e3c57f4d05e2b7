"""How much cells of one type and sample differ by more than counting: principal components of their
log-normalised counts, beside those of independent genes with the same means, dispersions, depths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import sparse

from perturbgen.simulation import sample_nb_sparse

COMPONENTS: Final = 5
# Genes with fewer counts a cell hold hardly more than counting noise.
_LEAST_MEAN: Final = 0.1


@dataclass(frozen=True)
class Genes:
    """Relative expression and NB dispersion (genes,) of the cells of one sample."""

    share: np.ndarray
    dispersion: np.ndarray

    @classmethod
    def of(cls, counts: sparse.csr_array) -> Genes:
        """By moments: with relative sizes s, Var(k/s) = m E(1/s) + dispersion m²."""
        size = sizes(counts) / sizes(counts).mean()
        scaled = sparse.csr_array(counts.multiply(1 / size[:, None]))
        mean = np.asarray(scaled.mean(axis=0)).ravel()
        square = np.asarray(scaled.power(2).mean(axis=0)).ravel()
        with np.errstate(invalid="ignore", divide="ignore"):
            dispersion = (square - mean**2 - mean * np.mean(1 / size)) / mean**2
        # a gene never seen has no dispersion, and one that varies less than a Poisson's none to add
        return cls(mean / mean.sum(), np.maximum(np.nan_to_num(dispersion), 1e-3))

    def draw(self, size: np.ndarray, *, rng: np.random.Generator) -> sparse.csr_array:
        """Cells of these sizes without any state: each gene varies by itself."""
        return sample_nb_sparse(rng, size=size, share=self.share, r=1 / self.dispersion)


@dataclass(frozen=True)
class StateShare:
    """Cumulative shares of variance of the first components (components,), and of chance's.

    ``beyond`` counts the components with a larger share than the largest that chance ever had.
    """

    cells: int
    genes: int
    found: np.ndarray
    chance: np.ndarray
    beyond: int

    @classmethod
    def of(
        cls, samples: Sequence[sparse.csr_array], *, rng: np.random.Generator, draws: int = 5
    ) -> StateShare:
        """Of the cells of one type: a matrix (cells, genes) of each sample, its mean taken off."""
        mean = np.mean([np.asarray(counts.mean(axis=0)).ravel() for counts in samples], axis=0)
        kept = mean > _LEAST_MEAN
        depth = float(np.median(np.concatenate([sizes(counts) for counts in samples])))
        found = _shares(samples, kept, depth)
        genes = [Genes.of(counts) for counts in samples]
        chance = []
        for _ in range(draws):
            drawn = [g.draw(sizes(c), rng=rng) for g, c in zip(genes, samples, strict=True)]
            chance.append(_shares(drawn, kept, depth))
        most = max(shares[0] for shares in chance)
        return cls(
            cells=sum(counts.shape[0] for counts in samples),
            genes=int(kept.sum()),
            found=np.cumsum(found)[:COMPONENTS],
            chance=np.cumsum(np.mean(chance, axis=0))[:COMPONENTS],
            beyond=int((found > most).sum()),
        )

    @property
    def first(self) -> float:
        """Share of the first component beyond chance."""
        return float(self.found[0] - self.chance[0])

    @property
    def all(self) -> float:
        """Share of the first components beyond chance."""
        return float(self.found[-1] - self.chance[-1])


def sizes(counts: sparse.csr_array) -> np.ndarray:
    """Counts of each cell (cells,), at least one."""
    return np.maximum(np.asarray(counts.sum(axis=1), dtype=float).ravel(), 1)


def _shares(samples: Sequence[sparse.csr_array], kept: np.ndarray, depth: float) -> np.ndarray:
    """Shares of variance of the components (components,), largest first."""
    parts = []
    for counts in samples:
        values = np.log1p(
            counts[:, np.flatnonzero(kept)].toarray() * (depth / sizes(counts))[:, None]
        )
        parts.append(values - values.mean(axis=0))
    x = np.vstack(parts)
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    values = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0)
    return values / values.sum()
