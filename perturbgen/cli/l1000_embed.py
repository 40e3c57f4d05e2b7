"""``perturbgen l1000 train | embed | evaluate | neighbours``: embeddings of profiles."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli.options import (
    Device,
    Devices,
    DryRun,
    Json,
    Overrides,
    Resume,
    RunFolder,
    Runs,
    Seed,
    check_folder,
    found_run,
    records,
)
from perturbgen.core.console import say, show_table
from perturbgen.core.errors import ConfigError, SchemaError, shorten, suggest
from perturbgen.core.export import write_table
from perturbgen.core.files import check_output, staged

if TYPE_CHECKING:
    from perturbgen.l1000.embedder import Embedder
    from perturbgen.l1000.embedder.evaluation import Judged

_Profiles = Annotated[
    Path | None,
    typer.Argument(
        metavar="FILE", help="An extraction, GCTX, GCT or h5ad (default: the run's own)."
    ),
]
_Meta = Annotated[
    Path | None, typer.Option("--meta", help="Table of the samples: inst_info, of a GCTX.")
]


class _Part(StrEnum):
    """Which of the run's profiles."""

    TEST = "test"
    VALIDATION = "validation"
    TRAIN = "train"
    ALL = "all"


def _train_embedder(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.toml", help="What to train on what.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="The data, in place of the configuration's: an extraction (l1000 extract), GCTX, "
            "GCT or h5ad."
        ),
    ] = None,
    overrides: Overrides = None,
    start: Annotated[
        Path | None,
        typer.Option(help="Fine-tune: start from the encoder of this run.", callback=found_run),
    ] = None,
    resume: Resume = None,
    runs: Runs = Path("runs"),
    devices: Devices = 1,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train an embedding in which profiles of one perturbagen come together (Donner et al. 2018).

    A network is trained to tell perturbagens apart by a margin softmax; its last layer is the
    embedding. Perturbagens, not profiles, are withheld: after every epoch it is judged by how well
    profiles of perturbagens that it never saw find their own kind, and the best epoch is kept.
    Controls are no class, positive ones only where data.types names them. Ctrl-C saves, --resume
    goes on, perturbgen board shows the run.

    Example: [bold]perturbgen l1000 train --data data/landmarks --set data.test=0.2
    --set model.noise=0.5[/bold]

    Example, transfer: [bold]perturbgen l1000 train --data data/landmarks
    --set 'data.types=["trt_sh"]' --set name=genetic[/bold], then [bold]perturbgen l1000 train
    --data data/landmarks --set 'data.types=["trt_cp"]' --start runs/latest-genetic[/bold]
    """
    from perturbgen.cli.train import train_or_resume
    from perturbgen.l1000.embedder import EMBEDDING

    # a run has its data and settings in a config.toml of its own
    if resume is not None and (data or config or start or dry_run):
        raise ConfigError(
            "--resume goes with --set, --devices and --device only", fix="leave the rest out"
        )
    if resume is None and data is None and config is None:
        raise ConfigError(
            "nothing to train on", expected="CONFIG.toml, --data FILE or --resume RUN"
        )
    if config is not None and config.suffix != ".toml":
        raise ConfigError(f"{config} is no configuration (.toml)", fix=f"--data {config}")
    train_or_resume(
        EMBEDDING,
        resume,
        config=config,
        paths={"data.path": data, "start": start},
        overrides=overrides or [],
        runs=runs,
        dry_run=dry_run,
        as_json=as_json,
        devices=devices,
        accelerator=device,
    )


def _embed_profiles(
    run: RunFolder,
    file: _Profiles = None,
    out: Annotated[
        Path, typer.Option(help="Output: an h5ad of obs, and of the embedding in obsm.")
    ] = Path("embedding.h5ad"),
    key: Annotated[str, typer.Option(help="Entry of obsm, of the embedding.")] = "X_embedding",
    meta: _Meta = None,
    device: Device = "auto",
) -> None:
    """Embed profiles, controls as well, by a trained network.

    Example: [bold]perturbgen l1000 embed runs/latest-embedder data/landmarks
    --out embedding.h5ad[/bold], then [bold]perturbgen retrieve embedding.h5ad --key X_embedding
    --same moa --differ perturbagen[/bold]
    """
    import pandas as pd
    from anndata import AnnData

    from perturbgen.data import write_h5ad
    from perturbgen.l1000.embedder import EMBEDDING
    from perturbgen.l1000.embedder.data import EmbedProfiles

    # told before the network and the profiles are read
    check_output(out, ".h5ad")
    embedder = EMBEDDING.load(run, device=device)
    data = embedder.settings.data
    table = EmbedProfiles.read(file or data.path, meta or data.metadata)
    found = embedder.embed(table)
    adata = AnnData(
        obs=table.meta.rename_axis(None),
        # no genes: the profiles stay in their own file, the embedding is what is new
        var=pd.DataFrame(index=pd.Index([], dtype=str)),
        obsm={key: found},
    )
    # an embedding that has lost its network could not be made again
    adata.uns["perturbgen_run"] = str(run)
    write_h5ad(adata, out)
    say(f"wrote {out}: {found.shape[0]:,} profiles in {found.shape[1]} dimensions")


def _evaluate_embedder(
    run: RunFolder,
    file: _Profiles = None,
    part: Annotated[
        _Part, typer.Option(help="Which part of the run's data; all: every treatment of FILE.")
        # validation helped to choose the epoch, so test is the honest part
    ] = _Part.TEST,
    plate: Annotated[
        str | None, typer.Option(help="The column of plates, for the leak checks (default: plate).")
    ] = None,
    well: Annotated[
        str | None, typer.Option(help="The column of wells, for the leak checks (default: well).")
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(help="Column that classifiers try to read from the places: moa. Repeatable."),
    ] = None,
    perturbagens: Annotated[
        Path | None,
        typer.Option(
            help="Table of perturbagens (pert_info, compoundinfo) that holds the --probe columns."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Output: a folder for the tables and the page.")
    ] = None,
    meta: _Meta = None,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Judge an embedding on perturbagens that it never saw, beside all the baselines that it must
    beat.

    Every profile ranks all others; those of its perturbagen should come first. Beside the
    embedding: the same network untrained, z-scores by cosine, Spearman and Euclid, PCA, WCCN and a
    metric learned from replicates. Profiles of validation helped to choose the epoch: the honest
    part is test (train with --set data.test=0.2, or a split).

    --probe moa asks what classifiers read from each method's places: logistic regression, a plain
    network and a 1D-CNN learn the mechanism from some perturbagens and are tested on others, beside
    shuffled labels. --probe plate shows what should not be there.

    Example: [bold]perturbgen l1000 evaluate runs/latest-embedder --part test
    --out evaluation[/bold]

    Example, mechanisms: [bold]perturbgen l1000 evaluate runs/latest-embedder --probe moa
    --perturbagens compoundinfo_beta.txt --out evaluation[/bold]
    """
    from perturbgen.core.tables import require_columns
    from perturbgen.l1000.embedder import EMBEDDING
    from perturbgen.l1000.embedder.evaluation import Judged

    check_folder(out)
    embedder = EMBEDDING.load(run, device=device)
    table = embedder.profiles(file, meta, part=part)
    # a column that is named must be there; the usual ones are used where they are
    for name in (plate, well):
        if name is not None:
            require_columns(table.meta, [name], "the table of samples")
    if perturbagens is not None:
        table = table.with_perturbagen_values(perturbagens, probe or [])
    places = {"plate": plate or "plate", "well": well or "well"}
    judged = Judged.of(embedder, table, seed=seed, **places, probes=probe or [])
    _show_judged(judged, f"{part} profiles of {run}", as_json=as_json)
    if out is not None:
        written = _write_judged(judged, embedder, out, f"Embedding {run.name}, {part}")
        if not as_json:
            say(f"wrote {out}/{', '.join(written)}")


def _show_judged(judged: Judged, title: str, *, as_json: bool) -> None:
    """The methods, the trained embedding's controls and what was probed."""
    rows, controls = judged.rows(), records(judged.controls, "variant")
    probes = {name: judged.probe_rows(name) for name in judged.probes}
    if as_json:
        show_table([{"methods": rows, "controls": controls, "probes": probes}], as_json=True)
        return
    show_table(rows, title=title)
    show_table(controls, title="the trained embedding's controls")
    for name, lines in probes.items():
        how = "read by classifiers from perturbagens that they did not learn from"
        show_table(lines, title=f"{name}, {how}")


def _write_judged(judged: Judged, embedder: Embedder, out: Path, title: str) -> list[str]:
    """The tables and the page, in a folder; returns the names of the files."""
    from perturbgen.core.files import slug
    from perturbgen.l1000.embedder.evaluation import MINE

    groups, found = judged.neighbours(embedder.model.measure), judged.found[MINE]
    tables = {"queries": found.queries, "groups": found.groups, "neighbours": groups}
    # a column may be called anything, a file may not
    tables |= {f"probe_{slug(name)}": table for name, table in judged.probes.items()}
    with staged(out) as folder:
        for name, table in tables.items():
            write_table(table, folder / f"{name}.parquet", index=None)
        judged.page(embedder, groups, title=title).write(folder / "report.html")
    return [*(f"{name}.parquet" for name in tables), "report.html"]


def _neighbours_of_perturbagen(
    run: RunFolder,
    of: Annotated[str, typer.Option(help="Whose neighbours: a perturbagen's id, or its name.")],
    file: _Profiles = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours of each row.")] = 10,
    part: Annotated[
        _Part, typer.Option(help="Which part of the run's data to look among.")
    ] = _Part.ALL,
    top: Annotated[int, typer.Option(min=1, help="How many to show.")] = 20,
    meta: _Meta = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Which perturbagens act like this one, by a run of l1000 train (by any other embedding:
    neighbours): those that the nearest profiles of its profiles belong to.

    Example: [bold]perturbgen l1000 neighbours runs/latest-embedder --of vorinostat[/bold]
    """
    from perturbgen.l1000.embedder import EMBEDDING
    from perturbgen.retrieval import group_neighbours

    embedder = EMBEDDING.load(run, device=device)
    table = embedder.profiles(file, meta, part=part)
    label = embedder.settings.data.label
    labels = table.meta.assign(**{label: table.meta[label].astype(str)})
    wanted = _found_label(labels, label, of)
    # a profile is no neighbour of itself
    k = min(k, len(labels) - 1)
    pairs = table.neighbours(embedder.embed(table), label, embedder.model.measure, k=k)
    mine = pairs[pairs[label] == wanted]
    groups = group_neighbours(mine, same=[label]).head(top)
    named = table.display_names(label)
    others = [named.get(other, other) for other in groups[f"neighbour {label}"]]
    shown = groups[["share", "similarity"]].set_axis(others)
    own = float(mine["agrees"].mean())
    title = f"{named.get(wanted, wanted)}: {own:.0%} of its {k} nearest are its own profiles"
    show_table(records(shown, "neighbour"), title=f"{title}; the others", as_json=as_json)


def _found_label(labels: Any, label: str, of: str) -> str:
    """The label that an id or a name means."""
    # an id comes first: it is unique, and a name need not be
    if (labels[label] == of).any():
        return of
    if "name" in labels:
        found = labels.loc[labels["name"].astype(str) == of, label].unique()
        if len(found) == 1:
            return str(found[0])
        if len(found) > 1:
            what = f"{of!r} is the name of {len(found)} values of {label}: {shorten(found)}"
            raise SchemaError(what, fix="give one")
    columns = [name for name in (label, "name") if name in labels]
    names = [value for name in columns for value in labels[name].unique()]
    raise SchemaError(
        f"no profile of {of!r}", expected=f"a {label} or its name", fix=suggest(of, names)
    )


VERBS = {
    "train": _train_embedder,
    "embed": _embed_profiles,
    "evaluate": _evaluate_embedder,
    "neighbours": _neighbours_of_perturbagen,
}
