"""``perturbgen images ...``: check, ingest, correct, score and map profiles of images.

``correct`` and ``map`` take any profiles, those of L1000 as well.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli import images_network
from perturbgen.cli.options import Json, Seed, Verbs, listed, opened_profiles
from perturbgen.core.console import say, show_table
from perturbgen.core.errors import InputError, SchemaError, suggest
from perturbgen.core.export import write_table
from perturbgen.core.files import check_output

if TYPE_CHECKING:
    import pandas as pd

    from perturbgen.profiles import Profiles

_Source = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="A folder of BBBC021, RxRx1, RxRx19a/b or RxRx3, a csv/parquet with Metadata_ "
        "columns, an h5ad (X), a GCTX, or ours.",
    ),
]
_Nan = Annotated[str, typer.Option(help="What to do with NaN: error, drop-features or drop-rows.")]


def _fixture(
    kind: Annotated[
        str, typer.Argument(help="bbbc021, cellpainting, rxrx1, rxrx19a, rxrx19b or rxrx3.")
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    seed: Seed = 0,
) -> None:
    """Write a tiny data set in the exact format of a real one, with a planted truth, to try the
    other verbs on.

    Example: [bold]perturbgen images fixture rxrx19a covid/[/bold]
    """
    from perturbgen.simulation.images import WRITERS

    if kind not in WRITERS:
        raise InputError(
            f"no fixture {kind!r}", expected=", ".join(WRITERS), fix=suggest(kind, WRITERS)
        )
    # made-up rows beside real ones could not be told from them
    if out.exists():
        raise InputError(
            f"{out} exists already", expected="a new folder", fix="choose another name"
        )
    say(f"wrote {WRITERS[kind](out, seed=seed)}")


def _check_source(
    source: _Source,
    picture: Annotated[
        Path | None, typer.Option(help="PNG: the first whole field, its channels and all as RGB.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Decode at most so many fields.")] = 200,
    as_json: Json = False,
) -> None:
    """Check tables, joins, plates and image files (by plate, well and site); exit code 2 if
    something is wrong.

    Example: [bold]perturbgen images check rxrx1/ --picture six_channels.png[/bold]
    """
    from perturbgen.images.fields import check_source

    # asked before the images are decoded, which takes longest
    if picture:
        check_output(picture, ".png", option="--picture")
    rows = check_source(source, limit=limit)
    show_table(rows, title=f"{source}", as_json=as_json)
    if picture:
        say(f"wrote {_write_first_field(source, picture)}")
    # last: the code ends the command, and every row has been shown by now
    if not all(row["ok"] for row in rows):
        raise typer.Exit(SchemaError.exit_code)


def _write_first_field(source: Path, picture: Path) -> Path:
    """The picture of the first field that has all its channels."""
    from perturbgen.images.fields import FieldFiles, read_field
    from perturbgen.images.pictures import ChannelColours

    images = FieldFiles.find(source)
    # without one of its channels a field would be drawn in wrong colours
    first = next(iter(images.whole().values()), None)
    if first is None:
        raise SchemaError(
            f"no field in {source} has all of channels {images.channels}", expected="one to draw"
        )
    stack = read_field(first, images.channels)
    return ChannelColours(len(stack)).write_sheet(stack, picture)


def _ingest(
    source: _Source,
    out: Annotated[
        Path,
        typer.Option(
            help="Output: a profile folder of values.npy (float32), meta.parquet, features.json."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Read embeddings once into a memory map joined to their labels; rows without a partner are
    left out and reported.

    Example: [bold]perturbgen images ingest RxRx19a/ --out covid.profiles[/bold]
    """
    from perturbgen.images.readers import STREAMED, kind_of_source, stream_embeddings

    kind = kind_of_source(source)
    # these tables may be larger than memory, and are written a block at a time
    if kind in STREAMED:
        profiles = stream_embeddings(source, out)[0]
    else:
        with _open_source(source) as profiles:
            profiles.write(out)
    show_table(
        [{"wrote": str(out), "rows": len(profiles), "features": len(profiles.features)}],
        as_json=as_json,
    )


def _correct(
    source: _Source,
    out: Annotated[Path, typer.Option(help="Output: a profile folder.")],
    controls: Annotated[
        str,
        typer.Option(
            help="Which rows are controls: compound=DMSO, or "
            "well_type=negative_control|positive_control."
        ),
    ],
    centre: Annotated[
        str,
        typer.Option(
            help="Labels whose groups are centred: one inside the other, as experiment,plate,site."
        ),
    ] = "",
    strength: Annotated[
        float, typer.Option(min=0, help="Shrink a group's centre to its parent's, in controls.")
    ] = 0.0,
    scale: Annotated[
        str, typer.Option(help="Unit of a feature, over all controls: sd, mad, percentile or none.")
    ] = "sd",
    compress: Annotated[
        bool, typer.Option("--compress", help="asinh of the standardised values.")
    ] = False,
    whiten: Annotated[
        float | None, typer.Option(min=0, help="Ridge of the whitening (TVN); 1 is the usual one.")
    ] = None,
    align: Annotated[
        str, typer.Option(help="Labels of the batches that CORAL aligns: experiment.")
    ] = "",
    # A fit pulls its own controls together: with those for negatives even noise is active
    # (images evaluate). So a quarter of each plate's is left out unless it is asked for.
    withhold: Annotated[
        float,
        typer.Option(
            min=0, max=0.9, help="Share of each plate's control wells to leave out of the fit."
        ),
    ] = 0.25,
    nan: _Nan = "error",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Take batch effects out of profiles: scale, compress, centre, whiten, align, by controls.

    Of images, or of any other assay: a GCTX or a folder of l1000 extract is a source, too. Prints
    how well a batch can be told from withheld controls before and after. A fit pulls its own
    controls together: --withhold keeps some out of it, at random, and the label 'fitted' tells
    images evaluate --controls which.

    Example: [bold]perturbgen images correct bbbc021/ --controls compound=DMSO --centre plate
    --strength 6 --compress --whiten 0.3 --out corrected[/bold]
    """
    import numpy as np

    from perturbgen.profiles.correct import correct_to, correction

    keys, batches = listed(centre), listed(align)
    step = correction(
        centre=keys, strength=strength, scale=scale, compress=compress, whiten=whiten, align=batches
    )
    batch = batches or keys[:2]
    # inside: what is streamed is gone when its source is closed
    with _open_source(source) as raw:
        profiles = raw.tidy(nan=_nan_choice(nan))
        rows = correct_to(
            out,
            step,
            profiles,
            control=profiles.chosen(controls, str(source)),
            withhold=withhold,
            batch=batch,
            inner=keys or batch,
            rng=np.random.default_rng(seed),
        )
    if rows:
        show_table(rows, title="batches told from withheld controls", as_json=as_json)
    if not as_json:
        say(f"wrote {out}")


def _open_source(source: Path) -> AbstractContextManager[Profiles]:
    """The profiles of a source; of an h5ad X."""
    return opened_profiles(source, "X" if source.suffix == ".h5ad" else None)


def _nan_choice(text: str) -> Any:
    """What --nan may be."""
    choices = ("error", "drop-features", "drop-rows")
    if text not in choices:
        raise InputError(f"--nan {text!r}", expected=", ".join(choices), fix=suggest(text, choices))
    return text


def _hits(
    source: _Source,
    out: Annotated[Path, typer.Option(help="Output: a CSV of the ranked treatments.")],
    healthy: Annotated[
        str, typer.Option(help="Healthy controls.")
    ] = "disease_condition=Mock|UV Inactivated SARS-CoV-2",
    diseased: Annotated[
        str, typer.Option(help="Untreated diseased controls.")
    ] = "disease_condition=Active SARS-CoV-2&treatment=",
    treatment: Annotated[str, typer.Option(help="The column of treatments.")] = "treatment",
    dose: Annotated[str, typer.Option(help="The column of doses.")] = "treatment_conc",
    centre: Annotated[
        str,
        typer.Option(
            help="Labels whose groups are centred: on their healthy wells; '' for what is already "
            "corrected."
        ),
    ] = "experiment,plate,site",
    by: Annotated[
        str,
        typer.Option(help="What tells groups apart: each has its own axis and gate; '' for one."),
    ] = "experiment",
    within: Annotated[
        str,
        typer.Option(
            help="Strata in which treatments are pooled, ranked and adjusted; '' for one."
        ),
    ] = "cell_type",
    gate: Annotated[float, typer.Option(help="Least Z' of a group's controls.")] = 0.0,
    draws: Annotated[
        int, typer.Option(min=100, help="Random draws for p-values: controls drawn again.")
    ] = 20_000,
    top: Annotated[int, typer.Option(min=1, help="How many to show, of each stratum.")] = 8,
    nan: _Nan = "error",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Rank drugs by how far they bring diseased wells back to health: in the full space, with
    intervals, p and q.

    Sites are averaged to wells. Only healthy wells centre a plate: the diseased controls are
    compared with the drugs, so they must be treated as the drugs are.

    Example: [bold]perturbgen images hits covid/ --out hits.csv[/bold]
    """
    # before the heavy imports: a mistyped name is told at once
    check_output(out, ".csv")
    import numpy as np

    from perturbgen.images.hits import centred_wells, hit_table, score_wells

    with _open_source(source) as raw:
        wells = centred_wells(
            raw.tidy(nan=_nan_choice(nan)), healthy, listed(centre), raw.well_labels
        )
    is_healthy, is_diseased = wells.chosen(healthy), wells.chosen(diseased)
    scores = score_wells(wells, healthy=is_healthy, diseased=is_diseased, by=listed(by), gate=gate)
    table = hit_table(
        scores.wells,
        treatment=treatment,
        dose=dose,
        within=listed(within),
        draws=draws,
        rng=np.random.default_rng(seed),
    )
    write_table(table, out)
    best = (
        table.groupby(listed(within), sort=False).head(top) if listed(within) else table.head(top)
    )
    # JSON is one table: two after each other would not parse
    if not as_json:
        show_table(_records(scores.gate), title="assay: are the controls told apart?")
    show_table(
        _records(best),
        title=f"{len(table)} treatments, {int((table['q'] < 0.05).sum())} with q < 0.05: {out}",
        as_json=as_json,
    )


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _draw(
    source: _Source,
    out: Annotated[Path, typer.Option(help="Output: an HTML page.")],
    colour: Annotated[
        list[str] | None, typer.Option(help="A column; may be given more than once.")
    ] = None,
    method: Annotated[str, typer.Option(help="umap, tsne (openTSNE) or pca.")] = "umap",
    nan: _Nan = "error",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Draw profiles in two dimensions (50 components, then UMAP or t-SNE), coloured by any columns,
    and say what the map preserves.

    Example: [bold]perturbgen images map corrected --colour moa --colour week --out map.html[/bold]
    """
    # before the heavy imports: a mistyped name is told at once
    check_output(out, ".html")
    from perturbgen.core.tables import require_columns
    from perturbgen.images.pictures import LAYOUTS, draw_map

    if method not in LAYOUTS:
        raise InputError(
            f"--method {method!r}", expected=", ".join(LAYOUTS), fix=suggest(method, LAYOUTS)
        )
    with _open_source(source) as raw:
        # a csv of CellProfiler has its labels under Metadata_
        usual = [name for name in ("moa", "Metadata_moa", "cell_type", "plate") if name in raw.meta]
        colours = colour or usual[:2] or [str(raw.meta.columns[0])]
        require_columns(raw.meta.columns, colours, str(source))
        # inside: what is streamed is gone when its source is closed
        profiles = raw.tidy(nan=_nan_choice(nan))
        drawn = draw_map(profiles, method=method, seed=seed)
        drawn.page(profiles, colours, title=f"Map of {source.name}").write(out)
    row = {
        "rows": len(profiles),
        "kept by components": drawn.kept_by_components,
        "kept by map": drawn.kept_by_map,
        "page": str(out),
    }
    show_table([row], title="ten nearest neighbours kept", as_json=as_json)


VERBS = {
    "images": Verbs(
        {
            "check": _check_source,
            "ingest": _ingest,
            "correct": _correct,
            "hits": _hits,
            "map": _draw,
            "fixture": _fixture,
            **images_network.VERBS,
        },
        help="Microscope images: check, correct, find hits, map, train networks.",
    )
}
