"""``perturbgen init``: a look at a stranger's h5ad, a column map and a configuration for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from perturbgen.cli.init_files import seen_obs, texts
from perturbgen.cli.options import Force, Json, Layer, Vehicle
from perturbgen.core.console import say, show_table
from perturbgen.core.errors import InputError, SchemaError
from perturbgen.core.files import require_file, require_writable, staged

if TYPE_CHECKING:
    from perturbgen.data.guess import Guess, Guesses
    from perturbgen.data.survey import Survey

_COLUMNS: Final = ("cell_type", "compound", "sample", "batch", "donor", "dose")


def _init(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Your cells (.h5ad).")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output: a folder for columns.toml, config.toml, ... \\[default: FILE's name]."
        ),
    ] = None,
    cell_type: Annotated[
        str | None, typer.Option(help="The column of cell types or lines.")
    ] = None,
    compound: Annotated[
        str | None, typer.Option(help="The column of perturbations: drugs, stimuli, genes.")
    ] = None,
    sample: Annotated[
        str | None, typer.Option(help="The column of samples or replicates (tubes, wells).")
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(help="The column of batches: what was processed together (plates, lanes)."),
    ] = None,
    donor: Annotated[str | None, typer.Option(help="The column of donors or patients.")] = None,
    dose: Annotated[str | None, typer.Option(help="The column of doses.")] = None,
    vehicle: Vehicle = None,
    layer: Layer = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take every guess.")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Look at an h5ad, guess what its columns mean, and write a column map and a configuration.

    Each guess is a line with its reason: read columns.toml, and change what is wrong, or say it
    with an option. Of a large file some rows are read. What is not sure is asked, at a terminal.

    Example: [bold]perturbgen init my.h5ad[/bold], then [bold]perturbgen data check my.h5ad
    --columns my/columns.toml[/bold]
    """
    from perturbgen.data.guess import Guesses
    from perturbgen.data.survey import Survey

    folder = out or Path(source.stem)
    if folder.suffix == ".h5ad" or folder.is_file():
        raise InputError(f"--out {folder} is a file", expected="a folder")
    if (folder / "columns.toml").exists() and not force:
        raise InputError(
            f"{folder / 'columns.toml'} is there already",
            expected="a new folder: what you changed in it would be lost",
            fix="--force, or another --out",
        )
    require_writable(folder / "columns.toml")
    survey = Survey.of(require_file(source, "h5ad file"))
    where = _layer_of(survey, layer)
    given = dict(zip(_COLUMNS, (cell_type, compound, sample, batch, donor, dose), strict=True))
    given["plate"] = given.pop("batch")
    guesses = Guesses.of(survey, vehicle=vehicle, **given)
    # both: a question that goes into a file is not seen
    if sys.stdin.isatty() and sys.stdout.isatty() and not yes and not as_json:
        guesses = _asked(survey, guesses, {**given, "vehicle": vehicle})
    files = texts(survey, guesses, where, folder)
    with staged(folder) as part:
        for name, text in files.items():
            (part / name).write_text(text, encoding="utf-8")
    title = f"{survey.n_cells:,} cells x {survey.n_genes:,} genes of {source.name}"
    if as_json:
        show_table(guesses.records(), as_json=True)
        return
    if not survey.whole:
        title += f", {len(survey.obs):,} of which were looked at"
    show_table(guesses.records(), title=title)
    for note in _notes(survey, guesses, folder):
        say(note)
    say(f"\nwrote {', '.join(files)} in {folder}. Read them; then:\n")
    say(_commands(source, folder, guesses))


def _layer_of(survey: Survey, asked: str | None) -> tuple[str | None, str]:
    """The matrix of counts, or why that which was asked for is none."""
    from perturbgen.core.errors import CountsError, suggest

    if asked is None:
        return survey.layer()
    if asked not in survey.matrices:
        raise InputError(
            f"{survey.path} has no layer {asked!r}", fix=suggest(asked, survey.matrices)
        )
    if problem := survey.matrices[asked]:
        raise CountsError(f"layer {asked!r} {problem}", expected="raw counts (whole numbers)")
    return asked, "as you said"


def _asked(survey: Survey, guesses: Guesses, given: dict[str, str | None]) -> Guesses:
    """The guesses, after those that are not sure were asked, one after the other.

    An answer changes what is guessed next: another column of perturbations has other controls. One
    that fits nothing is asked again, for what was answered before it would be lost.
    """
    while (found := _doubtful(guesses)) is not None:
        name, guess = found
        say(f"{name} may be {guess.value}: {guess.why}")
        what = "its value" if name == "vehicle" else "its column"
        try:
            asked = f"Enter if so, or {what}"
            answer = typer.prompt(asked, default=guess.value, show_default=False)
        except typer.Abort:  # Ctrl-C, which every verb answers in the same way
            raise KeyboardInterrupt from None
        try:
            guesses = type(guesses).of(survey, **{**given, name: answer})
        except SchemaError as error:
            say(str(error))
            continue
        given = {**given, name: answer}
    return guesses


def _doubtful(guesses: Guesses) -> tuple[str, Guess] | None:
    """The first guess that is not sure; the control comes last, since it is a value of a column."""
    known = [*guesses.columns.items(), ("vehicle", guesses.vehicle)]
    return next(((name, one) for name, one in known if one is not None and not one.sure), None)


def _notes(survey: Survey, guesses: Guesses, folder: Path) -> list[str]:
    """What cannot be estimated, and what should be looked at."""
    from perturbgen.data import samples_of

    notes = [
        f"CHECK {name}: {guess.why} (--{name.replace('_', '-')} says it better)"
        for name, guess in {**guesses.columns, "vehicle": guesses.vehicle}.items()
        if guess is not None and not guess.sure
    ]
    if guesses.atlas:
        return [
            *notes,
            "No column looks like a perturbation (two values or more, one of them a control): "
            "this is an atlas. A model can be trained on it; there is nothing to compare. "
            "If there is one: --compound COLUMN",
        ]
    obs = seen_obs(survey, (folder / "columns.toml").read_text(encoding="utf-8"))
    table = samples_of(obs.dropna(subset=["cell_type", "compound"]))
    single = int((table["samples"] < 2).sum())
    if table["samples"].max() < 2:
        notes.append(
            f"Each of the {len(table)} conditions has one sample: no differential expression can "
            "be estimated, for cells of one sample are no replicates. Is there a column of them? "
            "--sample COLUMN"
        )
    elif single:
        notes.append(
            f"{single} of {len(table)} conditions have one sample: how much such samples vary is "
            "taken from the others"
        )
    if (folder / "unmeasured.csv").exists():
        n = len((folder / "unmeasured.csv").read_text(encoding="utf-8").splitlines()) - 1
        notes.append(
            f"{n} pairs of a cell type and a compound were not measured: unmeasured.csv asks for "
            "them. conditions.csv has measured ones that split.csv withholds, to judge by."
        )
    if not (folder / "split.csv").exists():
        notes.append(
            "No compound was measured in two cell types, and no combination beside its parts: none "
            "can be withheld and predicted. conditions.csv has conditions that the model is "
            "trained on: a score of them says how well it remembers."
        )
    return notes


def _commands(source: Path, folder: Path, guesses: Guesses) -> str:
    """What to type next."""
    from shlex import quote

    file, run = quote(str(source)), quote(f"{folder}/runs/latest")

    def own(name: str) -> str:
        return quote(f"{folder}/{name}")

    check = f"perturbgen data check {file} --columns {own('columns.toml')}"
    train = f"perturbgen train {own('config.toml')} --runs {own('runs')}"
    if guesses.atlas:
        encode = f"perturbgen encode {run} {file} --out {own('latents.h5ad')}"
        return "\n".join(f"    {line}" for line in (check, train, encode))
    predict = f"perturbgen predict {run} --cells {file}"
    sums = f"perturbgen pseudobulk {file} --columns {own('columns.toml')}"
    # what was not measured, if there is anything; else what is withheld
    wanted = "unmeasured" if (folder / "unmeasured.csv").exists() else "conditions"
    predicted = "predictions" if wanted == "conditions" else wanted
    lines = [
        check,
        train,
        f"{predict} --conditions {own(f'{wanted}.csv')} --out {own(f'{predicted}.parquet')} "
        f"--plots {own(f'{predicted}.html')}",
        f"{sums} --out {own('samples.h5ad')}",
        f"perturbgen de {own('samples.h5ad')} --by cell_type --out {own('de.parquet')} "
        f"--plots {own('de.html')}",
    ]
    if (folder / "compare.toml").exists():
        # how good it is, on conditions that were measured and that it has not seen
        lines.append(f"perturbgen compare {own('compare.toml')} --out {own('comparison')}")
    else:
        lines.append(
            f"perturbgen score {own('de.parquet')} {own('predictions.parquet')} "
            f"--rows intersection --genes intersection --out {own('scores')}"
        )
    return "\n".join(f"    {line}" for line in lines)


VERBS = {"init": _init}
