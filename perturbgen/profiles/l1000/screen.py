"""Plates of a simulated L1000 screen: level-3 expression, from it level-4 z-scores, and the truth behind them.

The one non-linear thing: of a gated mechanism, cells of state -1 show the inverse of what cells of state +1 show. The
state is to be seen in a programme of its own, so no linear map and no cosine can undo it, while a function of both can.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.profiles.l1000.screen_settings import WELLS, DesignSettings, ScreenSettings
from perturbgen.profiles.l1000.screen_world import PARENTS, ScreenWorld, build_screen
from perturbgen.profiles.l1000.signatures import robust_z

HILL: Final = 1.2
ROWS, COLUMNS = 16, 24
BATCH: Final = "B19"


@dataclass(frozen=True)
class Plate:
    """One plate: level-4 z-scores (wells, genes) in file order, what is known of its wells, and the truth."""

    values: np.ndarray
    info: pd.DataFrame
    truth: pd.DataFrame


@dataclass(frozen=True)
class Treatment:
    """Which plate this is."""

    map: int
    line: int
    hours: float
    replicate: int


def simulate_screen(settings: ScreenSettings, *, seed: int) -> tuple[ScreenWorld, Iterator[Plate]]:
    """The world of a screen, and its plates one at a time; each plate has its own stream of random numbers."""
    world_seed, *plate_seeds = np.random.SeedSequence(seed).spawn(1 + settings.plates)
    world = build_screen(settings, np.random.default_rng(world_seed))
    layout_rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    wells = [layout_rng.permutation(WELLS) for _ in range(settings.design.maps)]
    drawn = zip(treatments(settings.design), plate_seeds, strict=True)
    return world, (draw_plate(world, settings, wells[t.map], t, np.random.default_rng(s)) for t, s in drawn)


def treatments(design: DesignSettings) -> Iterator[Treatment]:
    """All plates, replicates of a map next to each other."""
    for number in range(design.maps):
        for line in range(len(design.cell_lines)):
            for hours in design.hours:
                for replicate in range(design.replicates):
                    yield Treatment(number, line, hours, replicate)


def draw_plate(
    world: ScreenWorld, settings: ScreenSettings, order: np.ndarray, plate: Treatment, rng: np.random.Generator
) -> Plate:
    """A plate: who is in which well, what the wells show, its z-scores."""
    design = settings.design
    compound, dose = contents(design, plate.map)
    wells = (order if design.same_wells else rng.permutation(WELLS))[: len(compound)]
    state = rng.choice([-1.0, 1.0], len(wells)) + rng.normal(0, 0.2, len(wells))
    response = responses(world, compound, dose, plate.line)
    latent = response[:, None] * world.effects[np.maximum(compound, 0)]
    gated = world.compounds["gated"].to_numpy()[np.maximum(compound, 0)] & (compound >= 0)
    latent = np.where(gated[:, None], np.sign(state)[:, None] * latent, latent)
    noise = well_noise(world, settings, wells, rng)
    shift = latent @ world.pathways + settings.biology.state * state[:, None] * world.state
    expression = world.baseline[plate.line] + world.gene_sd * (shift + noise)
    order_by_well = np.argsort(wells)
    z = robust_z(with_inferred(expression, world, settings, rng)[order_by_well])
    values = np.empty(z.shape, np.float32)
    values[:, world.genes["place"].to_numpy()] = z
    info = well_info(world, settings, plate, compound, dose, wells).iloc[order_by_well]
    truth = pd.DataFrame(
        {"response": response, "state": np.sign(state), "gated": gated}, index=info.index[np.argsort(order_by_well)]
    )
    return Plate(values, info, truth.loc[info.index])


def contents(design: DesignSettings, number: int) -> tuple[np.ndarray, np.ndarray]:
    """What is in every used well of a plate map (-1: DMSO), and its dose (NaN for DMSO and hairpins), as laid out."""
    size, controls = design.compounds_per_map, design.compounds + design.positive_controls
    library = np.concatenate([np.arange(design.compounds), controls + np.arange(design.genetic)])
    positive = design.compounds + np.arange(design.positive_controls)
    used = np.concatenate([library[number * size : (number + 1) * size], positive])
    compound = np.concatenate([np.full(design.vehicle_wells, -1), np.repeat(used, len(design.doses))])
    dose = np.concatenate([np.full(design.vehicle_wells, np.nan), np.tile(design.doses, len(used))])
    return compound, np.where(compound >= controls, np.nan, dose)


def responses(world: ScreenWorld, compound: np.ndarray, dose: np.ndarray, line: int) -> np.ndarray:
    """How much of its full effect each well shows: Hill's curve, times the cell line's sensitivity; 0 for DMSO.

    A hairpin has no dose and shows all of its effect.
    """
    about = world.compounds.iloc[np.maximum(compound, 0)]
    ratio = np.where(compound >= 0, dose, 0.0) / 10.0 ** about["log10_ec50"].to_numpy()
    shown = np.where(np.isnan(ratio), 1.0, ratio**HILL / (1 + ratio**HILL))
    return shown * world.sensitivity[line, about["mechanism"].to_numpy()]


def well_noise(world: ScreenWorld, settings: ScreenSettings, wells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What is not biology (wells, landmarks), in noise sd: wells, shared variation, plate, gradients and the edge."""
    noise, genes = settings.noise, settings.landmarks
    row, column = wells // COLUMNS, wells % COLUMNS
    edge = (row == 0) | (row == ROWS - 1) | (column == 0) | (column == COLUMNS - 1)
    place = np.stack([row / (ROWS - 1) - 0.5, column / (COLUMNS - 1) - 0.5, edge * 1.0], axis=1)
    tilt = noise.position * rng.normal(1, 0.5, 3) * place
    shared = noise.nuisance * rng.normal(size=(len(wells), len(world.nuisance))) / np.sqrt(max(len(world.nuisance), 1))
    plate = noise.plate * rng.normal(size=genes)
    return rng.standard_t(6, (len(wells), genes)) / np.sqrt(1.5) + shared @ world.nuisance + plate + tilt @ world.edge


def with_inferred(
    expression: np.ndarray, world: ScreenWorld, settings: ScreenSettings, rng: np.random.Generator
) -> np.ndarray:
    """Landmarks and, after them, inferred genes: weighted sums of a few landmarks."""
    if not world.parents.shape[1]:
        return expression
    inferred = (
        settings.noise.inferred * settings.noise.gene_sd * rng.normal(size=(len(expression), world.parents.shape[1]))
    )
    for parent, weight in zip(world.parents[:PARENTS], world.parent_weights, strict=True):
        inferred += weight * expression[:, parent]
    return np.concatenate([expression, inferred], axis=1)


def well_info(
    world: ScreenWorld,
    settings: ScreenSettings,
    plate: Treatment,
    compound: np.ndarray,
    dose: np.ndarray,
    wells: np.ndarray,
) -> pd.DataFrame:
    """The wells in GEO's words (GSE92742's inst_info), indexed by inst_id."""
    line = settings.design.cell_lines[plate.line]
    rna_plate = f"SIM{plate.map + 1:03d}_{line}_{plate.hours:g}H_X{plate.replicate + 1}"
    names = [f"{chr(65 + well // COLUMNS)}{well % COLUMNS + 1:02d}" for well in wells.tolist()]
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
