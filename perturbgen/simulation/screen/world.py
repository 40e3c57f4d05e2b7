"""A simulated L1000 screen: every number it depends on, and what is fixed before the first plate.

The one non-linear thing: of a gated mechanism, cells of state -1 show the inverse of what cells of
state +1 show. The state is to be seen in a programme of its own, so no linear map and no cosine can
undo it, while a function of both can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from perturbgen.core.config import Count, NonNegative, Positive, Settings, Share
from perturbgen.core.errors import ConfigError, suggest
from perturbgen.l1000 import landmarks
from perturbgen.profiles.linear import unit

_LANDMARKS: Final = 978
WELLS: Final = 384
# Landmarks that an inferred gene is a mean of.
_PARENTS: Final = 4
_POSITIVE: Final = (
    "bortezomib",
    "vorinostat",
    "geldanamycin",
    "mitoxantrone",
    "radicicol",
    "withaferin-a",
)
_Several = Field(min_length=1)


class _DesignSettings(Settings):
    """What is on the plates."""

    compounds: Annotated[int, Field(ge=2)] = 100  # of the library
    # Hairpins (trt_sh) that act by the compounds' mechanisms, without a dose.
    genetic: Annotated[int, Field(ge=0)] = 0
    cell_lines: Annotated[tuple[str, ...], _Several] = ("A375", "MCF7", "PC3")
    doses: Annotated[tuple[Positive, ...], _Several] = (0.12, 1.11, 10.0)  # in uM
    hours: Annotated[tuple[Positive, ...], _Several] = (24,)  # times of treatment
    replicates: Count = 3  # replicate plates of each plate map, line and time
    vehicle_wells: Annotated[int, Field(ge=2)] = 26  # DMSO wells of a plate
    positive_controls: Annotated[int, Field(ge=0)] = 2  # compounds, at all doses on every plate
    same_wells: bool = True  # replicates of a treatment share their well, as in CMap

    @model_validator(mode="after")
    def fits(self) -> _DesignSettings:
        """A plate has room for one compound at least."""
        lines = self.cell_lines
        if self.compounds_per_map < 1:
            raise ValueError(
                f"{WELLS} wells do not hold the controls and one compound at "
                f"{len(self.doses)} doses"
            )
        if len({*lines}) < len(lines) or any("_" in name or ":" in name for name in lines):
            raise ValueError(
                "cell lines need different names without '_' and ':', which separate the parts of "
                "an id"
            )
        return self

    @property
    def compounds_per_map(self) -> int:
        """How many compounds a plate map holds, at all doses; hairpins take as many wells."""
        return (WELLS - self.vehicle_wells) // len(self.doses) - self.positive_controls

    @property
    def maps(self) -> int:
        """How many plate maps hold the library."""
        return -(-(self.compounds + self.genetic) // self.compounds_per_map)


class _BiologySettings(Settings):
    """What compounds do, in a space of pathways."""

    pathways: Annotated[int, Field(ge=2)] = 30  # directions that responses are made of
    mechanisms: Count = 10  # mechanisms of action
    gated_share: Share = 0.3  # of the mechanisms: cells of the other state answer inversely
    own_share: Share = 0.5  # share of a compound's effect that is its own, not its mechanism's
    strength: NonNegative = 1.2  # effect at full response, in SD of a well's noise
    strength_log_sd: NonNegative = 0.4  # of the strength over compounds
    potency_log_sd: NonNegative = 0.7  # SD of log10 EC50 around 1 uM
    line_sd: NonNegative = 0.4  # log-sd of a cell line's sensitivity to a mechanism
    state: NonNegative = 2.0  # size of the cell state's programme, as that of the strength


class _NoiseSettings(Settings):
    """What else is in the numbers, in SD of a well's noise."""

    gene_sd: Positive = 0.35  # typical SD of a gene between wells, log2
    nuisance: NonNegative = 1.0  # size of shared variation between wells
    nuisance_rank: Annotated[int, Field(ge=0)] = 8  # directions of it
    plate: NonNegative = 1.0  # shift of a plate; z-scores take most of it away
    position: NonNegative = 0.6  # gradients over rows and columns, and the edge
    inferred: NonNegative = 0.5  # noise of inferred genes


class ScreenSettings(Settings):
    """The whole simulated screen: its design, biology and noise, and how its files are written."""

    design: _DesignSettings = _DesignSettings()
    biology: _BiologySettings = _BiologySettings()
    noise: _NoiseSettings = _NoiseSettings()
    # Genes of the matrix; those beyond 978 are inferred.
    genes: Annotated[int, Field(ge=10, le=100_000)] = _LANDMARKS
    shuffled_genes: bool = False  # landmarks scattered among the genes, as in newer builds
    names: Literal["geo", "lincs2020"] = "geo"  # whose files and columns are written
    compression: Annotated[int, Field(ge=0, le=9)] | None = None  # gzip level of the matrix

    @property
    def landmarks(self) -> int:
        """How many of the genes are landmarks."""
        return min(self.genes, _LANDMARKS)

    @property
    def plates(self) -> int:
        """How many plates there are."""
        design = self.design
        return design.maps * len(design.cell_lines) * len(design.hours) * design.replicates


_PRESETS: Final[dict[str, dict[str, Any]]] = {
    "tiny": {
        "design": {
            "compounds": 24,
            "cell_lines": ["A375", "MCF7"],
            "doses": [1.0, 10.0],
            "replicates": 2,
        },
        "biology": {"mechanisms": 6, "pathways": 12},
        "genes": 100,
    },
    "small": {},
    "nonlinear": {"biology": {"gated_share": 1.0}, "design": {"compounds": 200}},
    "genome": {"genes": 12_328, "shuffled_genes": True},
}


def screen_settings(
    preset: str = "small", *, config: str | Path | None = None, overrides: Sequence[str] = ()
) -> ScreenSettings:
    """The settings of a preset, then of a TOML file, then of ``a.b=value`` overrides."""
    if preset not in _PRESETS:
        raise ConfigError(
            f"there is no preset {preset!r}",
            expected=", ".join(_PRESETS),
            fix=suggest(preset, _PRESETS),
        )
    return ScreenSettings.load(config, overrides=overrides, base=_PRESETS[preset])


@dataclass(frozen=True)
class ScreenWorld:
    """All that is fixed before the first plate.

    ``pathways`` (pathways, landmarks) have rows of length sqrt(landmarks), so that an effect of
    size 1 in pathway space moves a typical gene by about its noise; ``effects`` (compounds,
    pathways) are at full response; ``sensitivity`` is (cell lines, mechanisms); ``state`` and
    ``nuisance`` are directions of landmarks.
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

    @classmethod
    def draw(cls, settings: ScreenSettings, rng: np.random.Generator) -> ScreenWorld:
        """Draw a world; the order of the draws decides every number."""
        biology, noise, genes = settings.biology, settings.noise, settings.landmarks
        extra, lines = settings.genes - genes, len(settings.design.cell_lines)
        mechanisms = unit(_sparse_normal((biology.mechanisms, biology.pathways), 0.25, rng))
        compounds = _draw_compounds(settings, rng)
        baseline = rng.normal(8, 2, genes) + rng.normal(0, 1, (lines, genes))
        return cls(
            genes=_draw_genes(settings, rng),
            compounds=compounds,
            pathways=_directions((biology.pathways, genes), 0.2, rng),
            effects=_compound_effects(compounds, mechanisms, biology.own_share, rng),
            sensitivity=np.exp(rng.normal(0, biology.line_sd, (lines, biology.mechanisms))),
            baseline=np.clip(baseline, 3.5, 14.5),
            gene_sd=noise.gene_sd * np.exp(rng.normal(0, 0.3, genes)),
            state=_directions((1, genes), 0.15, rng)[0],
            nuisance=_directions((noise.nuisance_rank, genes), 0.5, rng),
            edge=_directions((3, genes), 0.5, rng),
            parents=rng.integers(genes, size=(_PARENTS, extra)),
            parent_weights=rng.normal(0, 1 / np.sqrt(_PARENTS), (_PARENTS, extra)).astype(
                np.float32
            ),
        )

    @property
    def genes_in_file(self) -> pd.DataFrame:
        """The genes as the matrix has them."""
        return self.genes.sort_values("place").reset_index(drop=True)


def _sparse_normal(shape: tuple[int, int], share: float, rng: np.random.Generator) -> np.ndarray:
    """Normal numbers, all but a share of them zero, at least one in every row not."""
    values = rng.normal(size=shape)
    keep = rng.random(shape) < share
    keep[np.arange(shape[0]), rng.integers(shape[1], size=shape[0])] = True
    return values * keep


def _directions(shape: tuple[int, int], share: float, rng: np.random.Generator) -> np.ndarray:
    """Sparse directions over genes whose mean square is 1."""
    if not shape[0]:
        return np.zeros(shape)
    return unit(_sparse_normal(shape, share, rng)) * np.sqrt(shape[1])


def _draw_genes(settings: ScreenSettings, rng: np.random.Generator) -> pd.DataFrame:
    """Real landmarks first, then made-up inferred genes; ``place`` is where the file has them."""
    known = landmarks().iloc[: settings.landmarks]
    extra = range(settings.genes - len(known))
    table = pd.DataFrame(
        {
            "gene_id": [*known["gene_id"], *(str(9_000_001 + i) for i in extra)],
            "gene_symbol": [*known["gene_symbol"], *(f"INFERRED{i + 1}" for i in extra)],
            "landmark": [True] * len(known) + [False] * len(extra),
        }
    )
    places = rng.permutation(len(table)) if settings.shuffled_genes else np.arange(len(table))
    return table.assign(place=places)


def _draw_compounds(settings: ScreenSettings, rng: np.random.Generator) -> pd.DataFrame:
    """The library, positive controls and hairpins: id, name, mechanism, potency, strength."""
    design, biology = settings.design, settings.biology
    total = design.compounds + design.positive_controls + design.genetic
    numbers = rng.choice(90_000_000, total, replace=False) + 10_000_000
    gated = np.arange(biology.mechanisms) < round(biology.gated_share * biology.mechanisms)
    mechanism = np.arange(total) % biology.mechanisms
    # hairpins come last: the places of compounds and positive controls do not depend on them
    genetic = np.arange(total) >= total - design.genetic
    positive = (np.arange(total) >= design.compounds) & ~genetic
    positive_names = [
        _POSITIVE[i] if i < len(_POSITIVE) else f"poscon-{i + 1}"
        for i in range(design.positive_controls)
    ]
    return pd.DataFrame(
        {
            "pert_id": [
                f"TRCN{n:010d}" if hairpin else f"BRD-K{n:08d}"
                for n, hairpin in zip(numbers, genetic, strict=True)
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
            "strength": biology.strength
            * np.exp(rng.normal(0, biology.strength_log_sd, total))
            * (1 + positive),
        }
    )


def _compound_effects(
    compounds: pd.DataFrame, mechanisms: np.ndarray, own_share: float, rng: np.random.Generator
) -> np.ndarray:
    """Effects at full response (compounds, pathways): the mechanism's and the compound's own."""
    own = unit(_sparse_normal((len(compounds), mechanisms.shape[1]), 0.25, rng))
    mixed = np.sqrt(1 - own_share) * mechanisms[compounds["mechanism"]] + np.sqrt(own_share) * own
    return unit(mixed) * compounds["strength"].to_numpy()[:, None]
