"""A simulated L1000 screen: its truth, and its plates as level-3 expression and level-4 z-scores.

The one non-linear thing: of a gated mechanism, cells of state -1 show the inverse of what cells of
state +1 show. The state is to be seen in a programme of its own, so no linear map and no cosine can
undo it, while a function of both can.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.l1000 import landmarks, robust_z
from perturbgen.profiles.linear import unit
from perturbgen.simulate.screen.settings import WELLS, ScreenSettings

# Landmarks that an inferred gene is a mean of.
_PARENTS: Final = 4
_HILL: Final = 1.2
_ROWS, _COLUMNS = 16, 24
BATCH: Final = "B19"
_POSITIVE: Final = (
    "bortezomib",
    "vorinostat",
    "geldanamycin",
    "mitoxantrone",
    "radicicol",
    "withaferin-a",
)


@dataclass(frozen=True)
class _Plate:
    """A plate: z-scores (wells, genes) in file order, what is known of its wells, the truth."""

    values: np.ndarray
    info: pd.DataFrame
    truth: pd.DataFrame


@dataclass(frozen=True)
class _Treatment:
    """Which plate this is."""

    map: int
    line: int
    hours: float
    replicate: int


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

    @property
    def genes_in_file(self) -> pd.DataFrame:
        """The genes as the matrix has them."""
        return self.genes.sort_values("place").reset_index(drop=True)


def simulate_screen(settings: ScreenSettings, *, seed: int) -> tuple[ScreenWorld, Iterator[_Plate]]:
    """The world of a screen, and its plates one at a time, replicates next to each other."""
    design = settings.design
    # a stream of its own for each plate: what it holds does not depend on the others
    world_seed, *plate_seeds = np.random.SeedSequence(seed).spawn(1 + settings.plates)
    world = _build_screen(settings, np.random.default_rng(world_seed))
    layout_rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    wells = [layout_rng.permutation(WELLS) for _ in range(design.maps)]
    treatments = (
        _Treatment(*about)
        for about in product(
            range(design.maps),
            range(len(design.cell_lines)),
            design.hours,
            range(design.replicates),
        )
    )
    return world, (
        _draw_plate(world, settings, wells[plate.map], plate, np.random.default_rng(plate_seed))
        for plate, plate_seed in zip(treatments, plate_seeds, strict=True)
    )


def _build_screen(settings: ScreenSettings, rng: np.random.Generator) -> ScreenWorld:
    """Draw a world; the order of the draws decides every number."""
    biology, noise, genes = settings.biology, settings.noise, settings.landmarks
    extra, lines = settings.genes - genes, len(settings.design.cell_lines)
    mechanisms = unit(_sparse_normal((biology.mechanisms, biology.pathways), 0.25, rng))
    compounds = _draw_compounds(settings, rng)
    baseline = rng.normal(8, 2, genes) + rng.normal(0, 1, (lines, genes))
    return ScreenWorld(
        genes=_gene_table(settings, rng),
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
        parent_weights=rng.normal(0, 1 / np.sqrt(_PARENTS), (_PARENTS, extra)).astype(np.float32),
    )


def _sparse_normal(shape: tuple[int, int], share: float, rng: np.random.Generator) -> np.ndarray:
    """Normal numbers, all but a share of them zero, at least one in every row not."""
    values = rng.normal(size=shape)
    keep = rng.random(shape) < share
    keep[np.arange(shape[0]), rng.integers(shape[1], size=shape[0])] = True
    return values * keep


def _directions(shape: tuple[int, int], share: float, rng: np.random.Generator) -> np.ndarray:
    """Sparse directions over genes whose mean square is 1."""
    return (
        unit(_sparse_normal(shape, share, rng)) * np.sqrt(shape[1]) if shape[0] else np.zeros(shape)
    )


def _gene_table(settings: ScreenSettings, rng: np.random.Generator) -> pd.DataFrame:
    """Real landmarks first, then made-up inferred genes; ``place`` is where the file has them."""
    known = landmarks().iloc[: settings.landmarks]
    extra = [str(9_000_001 + i) for i in range(settings.genes - len(known))]
    table = pd.DataFrame(
        {
            "gene_id": [*known["gene_id"], *extra],
            "gene_symbol": [
                *known["gene_symbol"],
                *(f"INFERRED{i + 1}" for i in range(len(extra))),
            ],
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


def _draw_plate(
    world: ScreenWorld,
    settings: ScreenSettings,
    order: np.ndarray,
    plate: _Treatment,
    rng: np.random.Generator,
) -> _Plate:
    """A plate: what is in which well, what the wells show, its z-scores."""
    compound, dose = _contents(settings, plate.map)
    wells = (order if settings.design.same_wells else rng.permutation(WELLS))[: len(compound)]
    state = rng.choice([-1.0, 1.0], len(wells)) + rng.normal(0, 0.2, len(wells))
    response = _responses(world, compound, dose, plate.line)
    # -1, DMSO, would be the last compound; its response of 0 makes any row do
    latent = response[:, None] * world.effects[np.maximum(compound, 0)]
    gated = world.compounds["gated"].to_numpy()[np.maximum(compound, 0)] & (compound >= 0)
    latent = np.where(gated[:, None], np.sign(state)[:, None] * latent, latent)
    noise = _well_noise(world, settings, wells, rng)
    shift = latent @ world.pathways + settings.biology.state * state[:, None] * world.state
    expression = world.baseline[plate.line] + world.gene_sd * (shift + noise)
    order_by_well = np.argsort(wells)
    z = robust_z(_with_inferred(expression, world, settings, rng)[order_by_well])
    values = np.empty(z.shape, np.float32)
    values[:, world.genes["place"].to_numpy()] = z
    info = _well_info(world, settings, plate, compound, dose, wells).iloc[order_by_well]
    truth = pd.DataFrame(
        {"response": response, "state": np.sign(state), "gated": gated},
        index=info.index[np.argsort(order_by_well)],
    )
    return _Plate(values, info, truth.loc[info.index])


def _contents(settings: ScreenSettings, number: int) -> tuple[np.ndarray, np.ndarray]:
    """What is in every used well of a map (-1: DMSO), and its dose (NaN: DMSO, hairpins)."""
    design = settings.design
    size, controls = design.compounds_per_map, design.compounds + design.positive_controls
    library = np.concatenate([np.arange(design.compounds), controls + np.arange(design.genetic)])
    positive = design.compounds + np.arange(design.positive_controls)
    used = np.concatenate([library[number * size : (number + 1) * size], positive])
    compound = np.concatenate(
        [np.full(design.vehicle_wells, -1), np.repeat(used, len(design.doses))]
    )
    dose = np.concatenate([np.full(design.vehicle_wells, np.nan), np.tile(design.doses, len(used))])
    return compound, np.where(compound >= controls, np.nan, dose)


def _responses(world: ScreenWorld, compound: np.ndarray, dose: np.ndarray, line: int) -> np.ndarray:
    """How much of its full effect each well shows: Hill's curve x the cell line's sensitivity.

    DMSO shows none; a hairpin has no dose and shows all of its effect.
    """
    about = world.compounds.iloc[np.maximum(compound, 0)]
    ratio = np.where(compound >= 0, dose, 0.0) / 10.0 ** about["log10_ec50"].to_numpy()
    shown = np.where(np.isnan(ratio), 1.0, ratio**_HILL / (1 + ratio**_HILL))
    return shown * world.sensitivity[line, about["mechanism"].to_numpy()]


def _well_noise(
    world: ScreenWorld, settings: ScreenSettings, wells: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """What is not biology (wells, landmarks), in noise sd: wells, plate, gradients, the edge."""
    noise, genes = settings.noise, settings.landmarks
    row, column = wells // _COLUMNS, wells % _COLUMNS
    edge = (row == 0) | (row == _ROWS - 1) | (column == 0) | (column == _COLUMNS - 1)
    place = np.stack([row / (_ROWS - 1) - 0.5, column / (_COLUMNS - 1) - 0.5, edge * 1.0], axis=1)
    tilt = noise.position * rng.normal(1, 0.5, 3) * place
    shared = (
        noise.nuisance
        * rng.normal(size=(len(wells), len(world.nuisance)))
        # the size is that of all directions together, however many there are
        / np.sqrt(max(len(world.nuisance), 1))
    )
    plate = noise.plate * rng.normal(size=genes)
    return (
        # t with 6 degrees of freedom has a variance of 1.5
        rng.standard_t(6, (len(wells), genes)) / np.sqrt(1.5)
        + shared @ world.nuisance
        + plate
        + tilt @ world.edge
    )


def _with_inferred(
    expression: np.ndarray, world: ScreenWorld, settings: ScreenSettings, rng: np.random.Generator
) -> np.ndarray:
    """Landmarks and, after them, inferred genes: weighted sums of a few landmarks."""
    if not world.parents.shape[1]:
        return expression
    inferred = (
        settings.noise.inferred
        * settings.noise.gene_sd
        * rng.normal(size=(len(expression), world.parents.shape[1]))
    )
    for parent, weight in zip(world.parents[:_PARENTS], world.parent_weights, strict=True):
        inferred += weight * expression[:, parent]
    return np.concatenate([expression, inferred], axis=1)


def _well_info(
    world: ScreenWorld,
    settings: ScreenSettings,
    plate: _Treatment,
    compound: np.ndarray,
    dose: np.ndarray,
    wells: np.ndarray,
) -> pd.DataFrame:
    """The wells in GEO's words (GSE92742's inst_info), indexed by inst_id."""
    line = settings.design.cell_lines[plate.line]
    rna_plate = f"SIM{plate.map + 1:03d}_{line}_{plate.hours:g}H_X{plate.replicate + 1}"
    names = [f"{chr(65 + well // _COLUMNS)}{well % _COLUMNS + 1:02d}" for well in wells.tolist()]
    about = world.compounds.iloc[np.maximum(compound, 0)]
    vehicle = compound < 0
    return pd.DataFrame(
        {
            "rna_plate": rna_plate,
            "rna_well": names,
            "pert_id": np.where(vehicle, "DMSO", about["pert_id"]),
            "pert_iname": np.where(vehicle, "DMSO", about["name"]),
            "pert_type": np.where(vehicle, "ctl_vehicle", about["pert_type"]),
            "pert_dose": np.nan_to_num(dose, nan=-666.0),
            "pert_dose_unit": np.where(np.isnan(dose), "-666", "um"),
            "pert_time": f"{plate.hours:g}",
            "pert_time_unit": "h",
            "cell_id": line,
        },
        index=pd.Index([f"{rna_plate}_{BATCH}:{name}" for name in names], name="inst_id"),
    )
