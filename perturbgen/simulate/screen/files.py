"""A simulated screen as files: a real GCTX beside the tables of GEO or of LINCS2020, and the truth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from perturbgen.core.console import progress
from perturbgen.core.errors import InputError
from perturbgen.core.files import atomic_path, disk_errors, require_writable
from perturbgen.l1000.metadata import unify
from perturbgen.l1000.writer import GctxWriter
from perturbgen.simulate.screen.plates import BATCH, Plate, ScreenWorld, simulate_screen
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


def _matrix_name(settings: ScreenSettings) -> str:
    """What the matrix is called, as CMap calls it but for the number of samples."""
    kind = "ZSPCQNORM" if settings.genes == settings.landmarks else "ZSPCINF"
    return f"SIM_Level4_{kind}_x{settings.genes}.gctx"


def screen_anndata(settings: ScreenSettings, *, seed: int) -> AnnData:
    """A screen in memory, samples x genes, in our words; obs has its mechanisms and the truth (``true_...``)."""
    import anndata

    world, plates = simulate_screen(settings, seed=seed)
    drawn = list(plates)
    info = pd.concat([plate.info for plate in drawn])
    truth = pd.concat([plate.truth for plate in drawn]).add_prefix("true_")
    moas = world.compounds.set_index("pert_id")["moa"]
    obs = unify(info.assign(moa=info["pert_id"].map(moas))).join(truth)
    var = _in_file_order(world).set_index("gene_id").rename_axis(None)
    values = np.concatenate([plate.values for plate in drawn])
    uns = {"state_programme": world.state.astype(np.float32)}
    return anndata.AnnData(
        values, obs=obs.rename_axis(None), var=var.drop(columns="place"), uns=uns
    )


def _in_file_order(world: ScreenWorld) -> pd.DataFrame:
    """The genes as the matrix has them."""
    return world.genes.sort_values("place").reset_index(drop=True)


def write_screen(
    settings: ScreenSettings, out: str | Path, *, seed: int, force: bool = False
) -> Path:
    """Write a screen of any size into a folder, plate by plate; the folder appears when it is complete.

    It holds the matrix, the tables of samples, genes and perturbagens, ``truth.tsv`` (one row a sample),
    ``truth.npz`` (effects and the state's programme over the landmarks) and ``simulation.toml``.
    """
    out = Path(out)
    require_writable(out)
    if (
        out.exists()
        and not (force and (out / _SETTINGS).is_file())
        and (not out.is_dir() or any(out.iterdir()))
    ):
        raise InputError(
            f"{out} exists{'' if (out / _SETTINGS).is_file() else ' and is no simulated screen'}",
            expected="a new folder",
            fix="--force replaces a simulated screen"
            if (out / _SETTINGS).is_file()
            else "choose another folder",
        )
    with atomic_path(out) as part, disk_errors(out):
        part.mkdir()
        world, plates = simulate_screen(settings, seed=seed)
        _write_plates(part, settings, world, plates)
        _write_world(part, settings, world)
        (part / _SETTINGS).write_text(f"seed = {seed}\n\n{_nested(settings.to_toml())}")
    return out


def _nested(text: str) -> str:
    """The settings' tables, below the seed."""
    return "[settings]\n" + text.replace("\n[", "\n[settings.").replace(
        "\n[settings.[", "\n[settings."
    )


def _write_plates(
    part: Path, settings: ScreenSettings, world: ScreenWorld, plates: Iterator[Plate]
) -> None:
    """The matrix and the tables of samples, a plate at a time: memory does not grow with the screen."""
    genes = _in_file_order(world)
    var = pd.DataFrame(index=pd.Index(genes["gene_id"], dtype=object))
    names = _TABLES[settings.names]
    with ExitStack() as stack:
        samples = stack.enter_context(
            open(part / names["samples"], "w", encoding="utf-8", newline="\n")
        )
        truth = stack.enter_context(open(part / "truth.tsv", "w", encoding="utf-8", newline="\n"))
        writer = stack.enter_context(
            GctxWriter(
                part / _matrix_name(settings),
                var,
                samples=settings.plates * WELLS,
                compression=settings.compression,
                source="simulated",
            )
        )
        tick = stack.enter_context(progress("plates", settings.plates))
        for plate in plates:
            writer.append(plate.values, pd.DataFrame(index=plate.info.index))
            _append_table(samples, _in_words(plate.info, settings.names))
            _append_table(truth, plate.truth.reset_index())
            tick()


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


def _append_table(handle: IO[str], table: pd.DataFrame) -> None:
    """Add rows to a tab-separated file, with a header before the first."""
    table.to_csv(handle, sep="\t", index=False, header=handle.tell() == 0, lineterminator="\n")


def _write_world(part: Path, settings: ScreenSettings, world: ScreenWorld) -> None:
    """The tables of genes and perturbagens, and the truth of them."""
    names, genes, compounds = _TABLES[settings.names], _in_file_order(world), world.compounds
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
