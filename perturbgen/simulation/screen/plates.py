"""A simulated L1000 screen, plate by plate: level-4 z-scores in memory, or as files.

The files are a GCTX, the tables of GEO or of LINCS2020, and the truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pandas as pd

from perturbgen.core.console import progress
from perturbgen.core.errors import InputError
from perturbgen.core.files import atomic_path, disk_errors, require_writable
from perturbgen.l1000 import GctxWriter, robust_z, unify
from perturbgen.simulation.screen.world import WELLS, ScreenSettings, ScreenWorld

if TYPE_CHECKING:
    from anndata import AnnData

_HILL: Final = 1.2
_ROWS, _COLUMNS = 16, 24
_BATCH: Final = "B19"
_TABLES: Final = {
    "geo": {"samples": "inst_info.txt", "genes": "gene_info.txt", "perturbagens": "pert_info.txt"},
    "lincs2020": {
        "samples": "instinfo_beta.txt",
        "genes": "geneinfo_beta.txt",
        "perturbagens": "compoundinfo_beta.txt",
    },
}
_TO_2020: Final = {"inst_id": "sample_id", "pert_iname": "cmap_name", "cell_id": "cell_iname"}
_SETTINGS: Final = "simulation.toml"


def screen_anndata(settings: ScreenSettings, *, seed: int) -> AnnData:
    """A screen in memory, samples x genes, in our words.

    obs has its mechanisms and the truth (``true_...``).
    """
    import anndata

    world, plates = _simulate_screen(settings, seed=seed)
    drawn = list(plates)
    info = pd.concat([plate.info for plate in drawn])
    truth = pd.concat([plate.truth for plate in drawn]).add_prefix("true_")
    moas = world.compounds.set_index("pert_id")["moa"]
    obs = unify(info.assign(moa=info["pert_id"].map(moas))).join(truth)
    var = world.genes_in_file.set_index("gene_id").rename_axis(None)
    values = np.concatenate([plate.values for plate in drawn])
    uns = {"state_programme": world.state.astype(np.float32)}
    return anndata.AnnData(
        values, obs=obs.rename_axis(None), var=var.drop(columns="place"), uns=uns
    )


def write_screen(
    settings: ScreenSettings, out: str | Path, *, seed: int, force: bool = False
) -> Path:
    """Write a screen of any size into a folder, which appears when it is complete.

    It holds the matrix, the tables of samples, genes and perturbagens, ``truth.tsv`` (one row a
    sample), ``truth.npz`` (effects and the state's programme over the landmarks) and
    ``simulation.toml``.
    """
    out = Path(out)
    require_writable(out)
    is_screen = (out / _SETTINGS).is_file()
    in_the_way = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if in_the_way and not (force and is_screen):
        raise InputError(
            f"{out} exists{'' if is_screen else ' and is no simulated screen'}",
            expected="a new folder",
            fix="--force replaces a simulated screen" if is_screen else "choose another folder",
        )
    with atomic_path(out) as part, disk_errors(out):
        part.mkdir()
        world = _write_plates(part, settings, seed=seed)
        _write_world(part, settings, world)
        # beside the seed all settings lie one table deeper
        tables = settings.to_toml().replace("\n[", "\n[settings.")
        tables = tables.replace("\n[settings.[", "\n[settings.")
        (part / _SETTINGS).write_text(f"seed = {seed}\n\n[settings]\n{tables}")
    return out


def _write_plates(part: Path, settings: ScreenSettings, *, seed: int) -> ScreenWorld:
    """The matrix and the tables of samples, a plate at a time: memory stays that of a plate."""
    world, plates = _simulate_screen(settings, seed=seed)
    var = pd.DataFrame(index=pd.Index(world.genes_in_file["gene_id"], dtype=object))
    # as CMap calls it, but for the number of samples
    kind = "ZSPCQNORM" if settings.genes == settings.landmarks else "ZSPCINF"
    matrix = part / f"SIM_Level4_{kind}_x{settings.genes}.gctx"
    written = settings.plates * WELLS
    with ExitStack() as stack:
        samples, truth = (
            stack.enter_context(open(part / name, "w", encoding="utf-8", newline="\n"))
            for name in (_TABLES[settings.names]["samples"], "truth.tsv")
        )
        writer = stack.enter_context(
            GctxWriter(
                matrix, var, samples=written, compression=settings.compression, source="simulated"
            )
        )
        tick = stack.enter_context(progress("plates", settings.plates))
        for plate in plates:
            writer.append(plate.values, pd.DataFrame(index=plate.info.index))
            _append_table(samples, _in_words(plate.info, settings.names))
            _append_table(truth, plate.truth.reset_index())
            tick()
    return world


def _append_table(handle: IO[str], table: pd.DataFrame) -> None:
    """Add rows to a tab-separated file, with a header before the first."""
    table.to_csv(handle, sep="\t", index=False, header=handle.tell() == 0, lineterminator="\n")


def _in_words(info: pd.DataFrame, names: str) -> pd.DataFrame:
    """The table of samples in GEO's or in LINCS2020's columns."""
    table = info.reset_index()
    if names == "geo":
        return table
    missing = table["pert_dose"] == -666
    return table.rename(columns=_TO_2020).assign(
        bead_batch=_BATCH,
        det_plate=table["rna_plate"] + f"_{_BATCH}",
        det_well=table["rna_well"],
        pert_idose=np.where(missing, "", table["pert_dose"].map("{:g} uM".format)),
        pert_itime=table["pert_time"] + " h",
        pert_dose=np.where(missing, "", table["pert_dose"].astype(str)),
        pert_dose_unit=np.where(missing, "", "uM"),
        qc_pass=1,
    )


def _write_world(part: Path, settings: ScreenSettings, world: ScreenWorld) -> None:
    """The tables of genes and perturbagens, and the truth of them."""
    names, genes, compounds = _TABLES[settings.names], world.genes_in_file, world.compounds
    if settings.names == "geo":
        lm = genes["landmark"].astype(int)
        table = pd.DataFrame(
            {"pr_gene_id": genes["gene_id"], "pr_gene_symbol": genes["gene_symbol"]}
        )
        table = table.assign(pr_gene_title="-666", pr_is_lm=lm, pr_is_bing=lm)
        drugs = compounds[["pert_id", "name", "pert_type", "moa"]].rename(
            columns={"name": "pert_iname"}
        )
    else:
        space = np.where(genes["landmark"], "landmark", "inferred")
        table = genes[["gene_id", "gene_symbol"]].assign(feature_space=space)
        drugs = compounds[["pert_id", "name", "moa"]].rename(columns={"name": "cmap_name"})
    table.to_csv(part / names["genes"], sep="\t", index=False, lineterminator="\n")
    drugs.to_csv(part / names["perturbagens"], sep="\t", index=False, lineterminator="\n")
    np.savez_compressed(
        part / "truth.npz",
        pert_id=compounds["pert_id"].to_numpy(str),
        gated=compounds["gated"].to_numpy(),
        effects=(world.effects @ world.pathways).astype(np.float32),
        state=world.state.astype(np.float32),
        gene_id=world.genes["gene_id"].to_numpy(str)[: settings.landmarks],
    )


@dataclass(frozen=True)
class _Plate:
    """A plate: z-scores (wells, genes) in file order, what is known of its wells, the truth."""

    values: np.ndarray
    info: pd.DataFrame
    truth: pd.DataFrame


class _Treatment(NamedTuple):
    """Which plate this is."""

    map: int
    line: int
    hours: float
    replicate: int


def _simulate_screen(
    settings: ScreenSettings, *, seed: int
) -> tuple[ScreenWorld, Iterator[_Plate]]:
    """The world of a screen, and its plates one at a time, replicates next to each other."""
    design = settings.design
    # a stream of its own for each plate: what it holds does not depend on the others
    world_seed, *plate_seeds = np.random.SeedSequence(seed).spawn(1 + settings.plates)
    world = ScreenWorld.draw(settings, np.random.default_rng(world_seed))
    layout_rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    wells = [layout_rng.permutation(WELLS) for _ in range(design.maps)]
    lines, replicates = range(len(design.cell_lines)), range(design.replicates)
    about = product(range(design.maps), lines, design.hours, replicates)
    return world, (
        _draw_plate(world, settings, wells[plate.map], plate, np.random.default_rng(plate_seed))
        for plate, plate_seed in zip(map(_Treatment._make, about), plate_seeds, strict=True)
    )


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
    by_well = np.argsort(wells)
    z = robust_z(_with_inferred(expression, world, settings, rng)[by_well])
    values = np.empty(z.shape, np.float32)
    values[:, world.genes["place"].to_numpy()] = z
    info = _well_info(world, settings, plate, compound, dose, wells)
    truth = {"response": response, "state": np.sign(state), "gated": gated}
    known = pd.DataFrame(truth, index=info.index)
    return _Plate(values, info.iloc[by_well], known.iloc[by_well])


def _contents(settings: ScreenSettings, number: int) -> tuple[np.ndarray, np.ndarray]:
    """What is in every used well of a map (-1: DMSO), and its dose (NaN: DMSO, hairpins)."""
    design = settings.design
    size, controls = design.compounds_per_map, design.compounds + design.positive_controls
    library = np.concatenate([np.arange(design.compounds), controls + np.arange(design.genetic)])
    positive = design.compounds + np.arange(design.positive_controls)
    used = np.concatenate([library[number * size : (number + 1) * size], positive])
    vehicle = design.vehicle_wells
    compound = np.concatenate([np.full(vehicle, -1), np.repeat(used, len(design.doses))])
    dose = np.concatenate([np.full(vehicle, np.nan), np.tile(design.doses, len(used))])
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
    rank = len(world.nuisance)
    # the size is that of all directions together, however many there are
    shared = noise.nuisance * rng.normal(size=(len(wells), rank)) / np.sqrt(max(rank, 1))
    plate = noise.plate * rng.normal(size=genes)
    # t with 6 degrees of freedom has a variance of 1.5
    wobble = rng.standard_t(6, (len(wells), genes)) / np.sqrt(1.5)
    return wobble + shared @ world.nuisance + plate + tilt @ world.edge


def _with_inferred(
    expression: np.ndarray, world: ScreenWorld, settings: ScreenSettings, rng: np.random.Generator
) -> np.ndarray:
    """Landmarks and, after them, inferred genes: weighted sums of a few landmarks."""
    noise, extra = settings.noise, world.parents.shape[1]
    if not extra:
        return expression
    inferred = noise.inferred * noise.gene_sd * rng.normal(size=(len(expression), extra))
    for parent, weight in zip(world.parents, world.parent_weights, strict=True):
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
        index=pd.Index([f"{rna_plate}_{_BATCH}:{name}" for name in names], name="inst_id"),
    )
