"""A simulated screen as files: a GCTX, the tables of GEO or of LINCS2020, and the truth."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from perturbgen.core.console import progress
from perturbgen.core.errors import InputError
from perturbgen.core.files import atomic_path, disk_errors, require_writable
from perturbgen.l1000 import GctxWriter, unify
from perturbgen.simulate.screen.plates import BATCH, ScreenWorld, simulate_screen
from perturbgen.simulate.screen.settings import WELLS, ScreenSettings

if TYPE_CHECKING:
    from anndata import AnnData

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

    world, plates = simulate_screen(settings, seed=seed)
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
    world, plates = simulate_screen(settings, seed=seed)
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
        bead_batch=BATCH,
        det_plate=table["rna_plate"] + f"_{BATCH}",
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
