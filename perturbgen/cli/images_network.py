"""``perturbgen images train``, ``embed`` and ``evaluate``: networks, and any profiles' worth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

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
    found_run,
    listed,
    opened_profiles,
)
from perturbgen.core.console import show_table
from perturbgen.core.errors import ConfigError, InputError, suggest
from perturbgen.core.files import check_output

_Parts = Annotated[
    str,
    typer.Option(
        help="Which part of the run's data, or several with commas: train, validation, id_test, "
        "test; '' for all."
    ),
]
_Norm = Annotated[
    str,
    typer.Option(
        help="Statistics of batch normalisation: running, batch, own; '' for what the run says."
    ),
]
_Turns = Annotated[
    bool | None,
    typer.Option(
        "--turns/--no-turns",
        help="Average over all flips and turns of an image; by default as the run says.",
    ),
]
_Folder = Annotated[
    Path | None, typer.Argument(metavar="FOLDER", help="Images (default: the run's own).")
]


_RUN_PAGE = (
    "Shares that are right. Only independent decoding asks among all classes; plate_group and "
    "assignment know which siRNAs share a plate, an easier question. NSC: the nearest treatment of "
    "another compound has the mechanism; NSCB: of another week, too; of new compounds: the network "
    "never saw them."
)
_PROFILE_PAGE = "Wells are averaged first. Nulls are drawn at random; their size is an option."


def _train_classifier(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.toml", help="What to train on what.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="The data, in place of the configuration's: a folder of RxRx1 or BBBC021 with "
            "images."
        ),
    ] = None,
    overrides: Overrides = None,
    resume: Resume = None,
    runs: Runs = Path("runs"),
    devices: Devices = 1,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a network to tell siRNAs (RxRx1), or treatments, compounds or mechanisms (BBBC021)
    apart from images.

    By default a batch holds images of one experiment or plate, so that batch normalisation takes
    its stain away. Validation is by experiments or plates that are not trained on;
    data.compounds.fold withholds a group of compounds. Ctrl-C saves, --resume goes on, perturbgen
    board shows the run.

    Example: [bold]perturbgen images train --data rxrx1/ --set model.backbone=resnet18
    --set data.shrink=2[/bold]

    Example: [bold]perturbgen images train --data bbbc021/ --set data.compounds.fold=0[/bold]
    """
    from perturbgen.cli.train import train_or_resume
    from perturbgen.images.network import IMAGES

    # a run has its data and settings in a config.toml of its own
    if resume is not None and (config or data or dry_run):
        raise ConfigError(
            "CONFIG.toml, --data and --dry-run do not go with --resume", fix="leave them out"
        )
    if resume is None and config is None and data is None:
        raise ConfigError(
            "nothing to train on", expected="CONFIG.toml, --data FOLDER or --resume RUN"
        )
    train_or_resume(
        IMAGES,
        resume,
        config=config,
        paths={"data.path": data},
        overrides=overrides or [],
        runs=runs,
        dry_run=dry_run,
        as_json=as_json,
        devices=devices,
        accelerator=device,
    )


def _embed_images(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Output: a profile folder, a row a field.")],
    folder: _Folder = None,
    part: _Parts = "",
    norm: _Norm = "",
    turns: _Turns = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Embed images with a trained network: profiles that correct, evaluate and map read.

    Example: [bold]perturbgen images embed runs/latest-run --part test --out test.profiles[/bold]
    """
    from perturbgen.images.network import IMAGES
    from perturbgen.images.network.evaluate import embed_run
    from perturbgen.profiles import Profiles

    # before the images are read; a folder of other things than profiles is never replaced
    Profiles.require_replaceable(out)
    profiles = embed_run(
        IMAGES.load(run, device=device),
        part=listed(part),
        data=folder,
        statistics=_chosen(norm),
        turns=turns,
    )
    profiles.write(out)
    row = {"wrote": str(out), "rows": len(profiles), "features": len(profiles.features)}
    show_table([row], as_json=as_json)


def _evaluate_images(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|SOURCE",
            help="A run of images train (runs/latest is one), or any profiles.",
            callback=found_run,
        ),
    ],
    folder: _Folder = None,
    # validation chose the epoch, so test is the honest part
    part: _Parts = "test",
    norm: _Norm = "",
    turns: _Turns = None,
    device: Device = "auto",
    same: Annotated[
        str, typer.Option(help="Columns in which positives agree: of profiles, the perturbation's.")
    ] = "",
    controls: Annotated[
        str, typer.Option(help="Which rows are controls: of profiles, compound=DMSO.")
    ] = "",
    batch: Annotated[str, typer.Option(help="The column of batches, of profiles.")] = "",
    relations: Annotated[
        Path | None,
        typer.Option(help="Of profiles: CSV of known pairs of perturbations, entity1,entity2."),
    ] = None,
    # of 99 draws the least p-value is .01
    draws: Annotated[
        int, typer.Option(min=99, help="Random draws for p-values: of profiles.")
    ] = 1000,
    plots: Annotated[Path | None, typer.Option(help="A page (.html), of the table.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say how good a trained network, or any profile, is.

    A run: accuracy by cell type, under each decoding apart, since plate_group and assignment know
    the plan of the plates. Of BBBC021 also NSC and NSCB of the embedding or, if the run withheld
    compounds, those of new compounds. Profiles (wells are averaged first): replicate mAP, percent
    replicating, consistency, magnitude against controls, recall of known relations, and how batches
    mix. Of the controls of images correct those count that its fit has not seen (--withhold); where
    it has seen all, the lines say that they are in-sample.

    Example: [bold]perturbgen images evaluate runs/latest-run --part test[/bold]

    Example: [bold]perturbgen images evaluate test.profiles --same sirna_id
    --controls well_type=negative_control --batch experiment[/bold]
    """
    from perturbgen.images.network import IMAGES

    if plots:
        check_output(plots, ".html", option="--plots")
    # a run and a folder of profiles are both folders; only a run has a card
    if (source / IMAGES.card.FILE).exists():
        # an option that is silently ignored would look as if it had been obeyed
        given = {"--same": same, "--controls": controls, "--batch": batch, "--relations": relations}
        _refuse(given, f"{source} is a run")
        from perturbgen.images.network.evaluate import evaluate_run

        rows = evaluate_run(
            IMAGES.load(source, device=device),
            part=listed(part),
            data=folder,
            statistics=_chosen(norm),
            turns=turns,
        )
        show_table(rows, title=f"{source}, {part or 'all'}: accuracy", as_json=as_json)
        text = _RUN_PAGE
    else:
        _refuse(
            {
                "FOLDER": folder,
                "--norm": norm,
                "--turns": turns is not None,
                "--device": device != "auto",
            },
            f"{source} is no run",
        )
        if not same:
            raise InputError(
                "profiles are evaluated by a column",
                expected="--same treatment, or a run of images train",
            )
        rows = _profile_rows(source, same, controls, batch, relations, draws, seed)
        show_table(rows, title=str(source), as_json=as_json)
        text = _PROFILE_PAGE + _in_sample(rows)
    if plots:
        parts = f", {part or 'all parts'}" if text == _RUN_PAGE else ""
        _write_page(plots, rows, title=f"{source.name}{parts}", text=text)


def _in_sample(rows: list[dict[str, Any]]) -> str:
    """What the page says where the correction has seen all controls; else nothing."""
    from perturbgen.images.evaluate import IN_SAMPLE, WHY

    # controls that the fit has seen stand nearer together than new ones would
    return (
        f" Warning, {IN_SAMPLE}. {WHY}" if any(IN_SAMPLE in row["measure"] for row in rows) else ""
    )


def _write_page(path: Path, rows: list[dict[str, Any]], *, title: str, text: str) -> None:
    """The table as a page, with what its rows mean."""
    from perturbgen.core.page import Page

    page = Page(f"Images: {title}", text)
    page.table(rows)
    page.write(path)


def _profile_rows(
    source: Path,
    same: str,
    controls: str,
    batch: str,
    relations: Path | None,
    draws: int,
    seed: int,
) -> list[dict[str, Any]]:
    """The measures of a source of profiles."""
    import numpy as np

    from perturbgen.core.tables import read_frame
    from perturbgen.images.evaluate import measures

    pairs = None if relations is None else read_frame(relations, columns=["entity1", "entity2"])
    # what lies in obsm are embeddings, which retrieve is for
    key = "X" if source.suffix == ".h5ad" else None
    with opened_profiles(source, key) as profiles:
        return measures(
            profiles,
            same=same,
            control=controls,
            batch=batch,
            relations=pairs,
            draws=draws,
            rng=np.random.default_rng(seed),
        )


def _refuse(given: Mapping[str, object], why: str) -> None:
    """An option without effect is an error."""
    for name, value in given.items():
        if value:
            raise InputError(f"{name} has no effect: {why}", fix="leave it out")


def _chosen(statistics: str) -> Any:
    """What --norm may be."""
    choices = ("running", "batch", "own")
    if statistics and statistics not in choices:
        raise InputError(
            f"--norm {statistics!r}", expected=", ".join(choices), fix=suggest(statistics, choices)
        )
    return statistics or None


VERBS = {"train": _train_classifier, "embed": _embed_images, "evaluate": _evaluate_images}
