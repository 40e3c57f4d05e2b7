"""The truth of a simulated screen: genes, pathways, mechanisms, compounds, cell lines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from perturbgen.profiles.l1000.genes import landmarks
from perturbgen.profiles.l1000.screen_settings import BiologySettings, ScreenSettings
from perturbgen.profiles.linear import unit

PARENTS = 4  # landmarks that an inferred gene is a mean of
POSITIVE = ("bortezomib", "vorinostat", "geldanamycin", "mitoxantrone", "radicicol", "withaferin-a")


@dataclass(frozen=True)
class ScreenWorld:
    """All that is fixed before the first plate.

    ``pathways`` (pathways, landmarks) have rows of length sqrt(landmarks), so that an effect of size 1 in pathway space
    moves a typical gene by about its noise; ``effects`` (compounds, pathways) are at full response; ``sensitivity``
    is (cell lines, mechanisms); ``state`` and ``nuisance`` are directions of landmarks.
    """

    genes: pd.DataFrame
    compounds: pd.DataFrame
    pathways: np.ndarray
    effects: np.ndarray
    sensitivity: np.ndarray
    baseline: np.ndarray
    gene_sd: np.ndarray
    state: np.ndarray
    nuisance: np.ndarray
    edge: np.ndarray
    parents: np.ndarray
    parent_weights: np.ndarray


def build_screen(settings: ScreenSettings, rng: np.random.Generator) -> ScreenWorld:
    """Draw a world."""
    biology, genes = settings.biology, settings.landmarks
    extra = settings.genes - genes
    mechanism_effects = unit(sparse_normal((biology.mechanisms, biology.pathways), 0.25, rng))
    compounds = draw_compounds(settings, rng)
    baseline = rng.normal(8, 2, genes) + rng.normal(0, 1, (len(settings.design.cell_lines), genes))
    return ScreenWorld(
        genes=gene_table(settings, rng),
        compounds=compounds,
        pathways=directions((biology.pathways, genes), 0.2, rng),
        effects=compound_effects(compounds, mechanism_effects, biology, rng),
        sensitivity=np.exp(rng.normal(0, biology.line_sd, (len(settings.design.cell_lines), biology.mechanisms))),
        baseline=np.clip(baseline, 3.5, 14.5),
        gene_sd=settings.noise.gene_sd * np.exp(rng.normal(0, 0.3, genes)),
        state=directions((1, genes), 0.15, rng)[0],
        nuisance=directions((settings.noise.nuisance_rank, genes), 0.5, rng),
        edge=directions((3, genes), 0.5, rng),
        parents=rng.integers(genes, size=(PARENTS, extra)),
        parent_weights=rng.normal(0, 1 / np.sqrt(PARENTS), (PARENTS, extra)).astype(np.float32),
    )


def sparse_normal(shape: tuple[int, int], share: float, rng: np.random.Generator) -> np.ndarray:
    """Normal numbers, all but a share of them zero, at least one in every row not."""
    values = rng.normal(size=shape)
    keep = rng.random(shape) < share
    keep[np.arange(shape[0]), rng.integers(shape[1], size=shape[0])] = True
    return values * keep


def directions(shape: tuple[int, int], share: float, rng: np.random.Generator) -> np.ndarray:
    """Sparse directions over genes whose mean square is 1."""
    return unit(sparse_normal(shape, share, rng)) * np.sqrt(shape[1]) if shape[0] else np.zeros(shape)


def gene_table(settings: ScreenSettings, rng: np.random.Generator) -> pd.DataFrame:
    """Real landmarks first, then made-up inferred genes; ``place`` is where the file has them."""
    known = landmarks().iloc[: settings.landmarks]
    extra = [str(9_000_001 + i) for i in range(settings.genes - len(known))]
    table = pd.DataFrame(
        {
            "gene_id": [*known["gene_id"], *extra],
            "gene_symbol": [*known["gene_symbol"], *(f"INFERRED{i + 1}" for i in range(len(extra)))],
            "landmark": [True] * len(known) + [False] * len(extra),
        }
    )
    places = rng.permutation(len(table)) if settings.shuffled_genes else np.arange(len(table))
    return table.assign(place=places)


def draw_compounds(settings: ScreenSettings, rng: np.random.Generator) -> pd.DataFrame:
    """The library, then the positive controls, then hairpins: id, name, mechanism, potency, strength."""
    design, biology = settings.design, settings.biology
    total = design.compounds + design.positive_controls + design.genetic
    numbers = rng.choice(90_000_000, total, replace=False) + 10_000_000
    gated = np.arange(biology.mechanisms) < round(biology.gated_share * biology.mechanisms)
    mechanism = np.arange(total) % biology.mechanisms
    genetic = np.arange(total) >= total - design.genetic
    positive = (np.arange(total) >= design.compounds) & ~genetic
    positive_names = [POSITIVE[i] if i < len(POSITIVE) else f"poscon-{i + 1}" for i in range(design.positive_controls)]
    return pd.DataFrame(
        {
            "pert_id": [
                f"TRCN{n:010d}" if hairpin else f"BRD-K{n:08d}" for n, hairpin in zip(numbers, genetic, strict=True)
            ],
            "name": [
                *(f"compound-{i + 1}" for i in range(design.compounds)),
                *positive_names,
                *(f"hairpin-{i + 1}" for i in range(design.genetic)),
            ],
            "pert_type": np.select([positive, genetic], ["trt_poscon", "trt_sh"], "trt_cp"),
            "mechanism": mechanism,
            "moa": [f"mechanism {k + 1}{' (state-gated)' if gated[k] else ''}" for k in mechanism],
            "gated": gated[mechanism] & ~positive,
            "log10_ec50": rng.normal(0, biology.potency_log_sd, total),
            "strength": biology.strength * np.exp(rng.normal(0, biology.strength_log_sd, total)) * (1 + positive),
        }
    )


def compound_effects(
    compounds: pd.DataFrame, mechanisms: np.ndarray, biology: BiologySettings, rng: np.random.Generator
) -> np.ndarray:
    """Effects at full response (compounds, pathways): the mechanism's and the compound's own part."""
    own = unit(sparse_normal((len(compounds), biology.pathways), 0.25, rng))
    mixed = np.sqrt(1 - biology.own_share) * mechanisms[compounds["mechanism"]] + np.sqrt(biology.own_share) * own
    return unit(mixed) * compounds["strength"].to_numpy()[:, None]
