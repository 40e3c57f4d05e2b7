"""``perturbgen l1000``: look at CMap's files, extract landmarks from them, simulate a screen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli import l1000_embed
from perturbgen.cli.options import (
    Config,
    DryRun,
    Force,
    Json,
    Overrides,
    Seed,
    Verbs,
    show_settings,
)
from perturbgen.core.console import show_table

if TYPE_CHECKING:
    from perturbgen.l1000 import GctxFile

_Files = Annotated[list[Path], typer.Argument(help="GCTX or GCT files, whatever they are called.")]
_Meta = Annotated[
    list[Path] | None,
    typer.Option(
        "--meta",
        help="Table of the samples: inst_info (GEO), instinfo_beta (LINCS2020); sig_info for "
        "level 5.",
    ),
]
_Landmarks = Annotated[
    Path | None,
    typer.Option(help="The genes to take: a list of ids, or a gene table. Default: the 978."),
]
_Transposed = Annotated[
    bool, typer.Option("--transposed", help="The files' rows are samples, against the convention.")
]


def _check(
    files: _Files,
    landmarks: _Landmarks = None,
    transposed: _Transposed = False,
    as_json: Json = False,
) -> None:
    """Look at files: what they are, how large, of which level, where their landmarks are.

    Also says what is odd. Reads the header and one block of values, so that it takes seconds
    whatever the size.

    Example: [bold]perturbgen l1000 check GSE92742_Level4_ZSPCINF_mlr12k_n1319138x12328.gctx[/bold]
    """
    from perturbgen.l1000 import GctxFile, read_genes

    wanted = read_genes(landmarks)
    rows = []
    for path in files:
        with GctxFile(path, transposed=transposed) as file:
            rows.append(_describe_file(file, wanted))
    show_table(rows, title="L1000 files", as_json=as_json)


def _describe_file(file: GctxFile, wanted: Any) -> dict[str, Any]:
    import numpy as np

    from perturbgen.l1000 import level_of

    places = file.find_genes(wanted)
    found = places[places >= 0]
    # the first block stands for a file that may be 60 GB
    first = next((file.values(block, found) for block in file.slices()), np.zeros((0, 0)))
    known = np.isfinite(first)
    return {
        "file": file.path.name,
        "format": file.format,
        "samples": file.shape[0],
        "genes": file.shape[1],
        "type": str(file.dtype),
        "chunks": "x".join(map(str, file.chunks)) if file.chunks else "none",
        "ids of": level_of(file.samples[:1000]),
        "wanted genes": f"{len(found)} of {len(wanted)}",
        "last at": int(found.max()) if len(found) else None,
        "fields": f"{len(file.fields('samples'))} + {len(file.fields('genes'))}",
        "repeated ids": int(file.samples.duplicated().sum() + file.genes.duplicated().sum()),
        "not finite": int((~known).sum()),
        "largest": float(np.nanmax(np.abs(first))) if known.any() else None,
    }


def _extract(
    files: _Files,
    out: Annotated[
        Path, typer.Option("--out", help="Output: a folder; OUT.part holds what is half done.")
    ],
    meta: _Meta = None,
    landmarks: _Landmarks = None,
    dtype: Annotated[str, typer.Option(help="float32, or float16 for half the size.")] = "float32",
    clip: Annotated[
        float | None, typer.Option(min=0, help="Limit |value|; z-scores of raw plates reach 76.")
    ] = None,
    fill: Annotated[
        float | None, typer.Option(help="Write this for missing values instead of NaN.")
    ] = None,
    common_genes: Annotated[
        bool, typer.Option(help="Leave out genes that a file lacks, rather than refuse.")
    ] = False,
    keep_unknown: Annotated[
        bool, typer.Option(help="Keep samples that are in no table, rather than refuse.")
    ] = False,
    transposed: _Transposed = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Extract the landmark genes of any number of matrices into one folder of profiles.

    It holds a memory map, tables of samples and genes, and a manifest. One pass, in bounded memory.
    Genes are found by id and joined by id; controls are flagged by CMap's types. Stop it when you
    like: the same command goes on where it stopped.

    Example: [bold]perturbgen l1000 extract GSE92742_Level4.gctx GSE70138_Level4.gctx
    --meta GSE92742_inst_info.txt.gz --meta GSE70138_inst_info.txt.gz --out data/landmarks
    --dtype float16 --clip 10[/bold]
    """
    from perturbgen.core.errors import ConfigError, suggest
    from perturbgen.l1000 import ExtractionOptions
    from perturbgen.l1000 import extract as run

    kinds = ("float32", "float16")
    if dtype not in kinds:
        raise ConfigError(
            f"--dtype {dtype}", expected=" or ".join(kinds), fix=suggest(dtype, kinds)
        )
    profiles = run(
        files,
        out,
        metadata=meta or (),
        genes=landmarks,
        options=ExtractionOptions(dtype, clip=clip, fill=fill),  # type: ignore[arg-type]
        common_genes=common_genes,
        keep_unknown=keep_unknown,
        transposed=transposed,
        force=force,
    )
    found = json.loads((out / "manifest.json").read_text())
    treated = profiles.meta[~profiles.meta["control"]]
    row = {name: found[name] for name in ("samples", "genes", "level", "controls")}
    row |= {
        "perturbagens": int(treated["perturbagen"].nunique()),
        "missing values": found["missing_values"],
        "zero profiles": found["zero_profiles"],
        "MB": (out / found["matrix"]).stat().st_size / 1e6,
    }
    show_table([row], title=f"extracted: {out}", as_json=as_json)


def _simulate(
    out: Annotated[
        Path, typer.Argument(help="Folder to write; it appears only when it is complete.")
    ],
    preset: Annotated[
        str, typer.Option(help="Which preset: tiny, small, nonlinear or genome (12,328 genes).")
    ] = "small",
    seed: Seed = 0,
    config: Config = None,
    overrides: Overrides = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Simulate an L1000 screen with a known truth: plates, cell lines, doses, mechanisms.

    Writes a real GCTX of level-4 z-scores beside the tables of GEO (or LINCS2020), plate by plate,
    at any size. One of the mechanisms is non-linear.

    Example: [bold]perturbgen l1000 simulate data/screen --preset nonlinear
    --set design.compounds=500[/bold]
    """
    from perturbgen.simulation.screen import screen_settings, write_screen

    settings = screen_settings(preset, config=config, overrides=overrides or ())
    if dry_run:
        show_settings(settings)
        return
    folder = write_screen(settings, out, seed=seed, force=force)
    files = sorted(folder.iterdir())
    rows = [{"file": path.name, "MB": path.stat().st_size / 1e6} for path in files]
    show_table(rows, title=f"simulated: {folder}, {settings.plates} plates", as_json=as_json)


VERBS = {
    "l1000": Verbs(
        {"check": _check, "extract": _extract, "simulate": _simulate, **l1000_embed.VERBS},
        help="L1000 profiles: check CMap's files, extract landmarks, simulate, learn an embedding.",
        rich_markup_mode="rich",
    )
}
