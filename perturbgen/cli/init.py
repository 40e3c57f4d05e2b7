"""``perturbgen init``: a look at a stranger's h5ad, a column map and a configuration for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from perturbgen.cli.options import Force, Json, Layer, Vehicle
from perturbgen.core.console import say, show_table
from perturbgen.core.errors import InputError, SchemaError
from perturbgen.core.files import require_file, require_writable, staged

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from perturbgen.data.guess import Guess, Guesses
    from perturbgen.data.survey import Survey

_STEPS: Final = 4000  # of 128 cells: what a small model learns in
_EPOCHS: Final = (10, 200)
_WITHHELD: Final = 0.25  # of a cell type's compounds
_SHOWN: Final = 10  # conditions to predict where nothing can be withheld
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
    files = _files(survey, guesses, where, folder)
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
        answer = typer.prompt(f"Enter if so, or {what}", default=guess.value, show_default=False)
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


def _files(
    survey: Survey, guesses: Guesses, where: tuple[str | None, str], folder: Path
) -> dict[str, str]:
    """The texts of the folder's files by name."""
    title = f"Columns of {survey.path.name}, by perturbgen init."
    columns = guesses.to_toml(where, title)
    files = {"columns.toml": columns}
    obs = _our_obs(survey, columns)
    withheld, split = _withheld(obs, guesses)
    if len(withheld):
        files["conditions.csv"] = withheld.to_csv(index=False)
    if split is not None:
        files["split.csv"] = split
    files["config.toml"] = _config(survey, obs, guesses, folder, split=split is not None)
    return files


def _our_obs(survey: Survey, columns: str) -> pd.DataFrame:
    """What was seen of obs, in our words, by the very map that is written."""
    from tempfile import TemporaryDirectory

    from perturbgen.data import our_obs

    with TemporaryDirectory() as folder:
        path = Path(folder) / "columns.toml"
        path.write_text(columns, encoding="utf-8")
        return our_obs(survey.obs, path, survey.path)


def _withheld(obs: pd.DataFrame, guesses: Guesses) -> tuple[pd.DataFrame, str | None]:
    """Conditions to predict, and the split that withholds them; none where nothing can be.

    A condition can be withheld where other cell types have its compound: a quarter of those of one
    cell type are, the one of median size.
    """
    import pandas as pd

    from perturbgen.core.tables import CONDITION, conditions_of

    if guesses.atlas:
        return pd.DataFrame(), None
    vehicle = None if guesses.vehicle is None else guesses.vehicle.value
    complete = obs.dropna(subset=list(CONDITION))
    sizes = conditions_of(complete).value_counts().rename("cells").reset_index()
    sizes = sizes.set_axis([*CONDITION, "cells"], axis=1)
    treated = sizes[sizes["compound"] != vehicle].sort_values(list(CONDITION))
    shared = treated[treated["compound"].duplicated(keep=False)]
    if shared.empty and len(pairs := _known_pairs(treated, vehicle)):
        # A combination can be predicted where each part was measured alone.
        return _split_off(pairs, sizes)
    if shared.empty:
        # half of them at the most: the others say how far to trust the model
        most = min(_SHOWN, max(1, len(treated) // 2))
        some = treated.sort_values("cells", ascending=False, kind="stable").head(most)
        return some[list(CONDITION)], None
    totals = shared.groupby("cell_type")["cells"].sum().sort_values()
    return _split_off(shared[shared["cell_type"] == totals.index[len(totals) // 2]], sizes)


def _split_off(own: pd.DataFrame, sizes: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """A quarter of some conditions, and the split that withholds them."""
    import pandas as pd

    from perturbgen.core.tables import CONDITION

    step = round(1 / _WITHHELD)
    chosen = own[own["compound"].rank(method="first") % step == (1 if len(own) < step else 0)]
    labels = pd.MultiIndex.from_frame(sizes[list(CONDITION)])
    hidden = labels.isin(pd.MultiIndex.from_frame(chosen[list(CONDITION)]))
    return chosen[list(CONDITION)], _split_text(labels, hidden)


def _known_pairs(treated: pd.DataFrame, vehicle: str | None) -> pd.DataFrame:
    """Those of combinations whose parts were each measured alone."""
    from perturbgen.data import parts_of_label

    parts = [parts_of_label(str(name), vehicle) for name in treated["compound"]]
    alone = {own[0] for own in parts if len(own) == 1}
    return treated[[len(own) > 1 and set(own) <= alone for own in parts]]


def _split_text(labels: pd.MultiIndex, hidden: np.ndarray) -> str:
    """A split file of conditions."""
    from tempfile import TemporaryDirectory

    import numpy as np
    import pandas as pd

    from perturbgen.data import Split

    parts = pd.Series(np.where(hidden, "test", "train").astype(object), labels)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "split.csv"
        Split(
            parts.sort_index(), "conditions whose compounds, or parts, are known elsewhere"
        ).write(path)
        return path.read_text(encoding="utf-8")


def _config(
    survey: Survey, obs: pd.DataFrame, guesses: Guesses, folder: Path, *, split: bool
) -> str:
    """A training configuration, a reason beside what is not a default."""
    from perturbgen.core.files import slug

    epochs = round(min(max(_STEPS * 128 / survey.n_cells, _EPOCHS[0]), _EPOCHS[1]))
    path = os.path.relpath(survey.path, folder)
    lines = [
        f"# Training on {survey.path.name}, by perturbgen init. Paths are relative to this file.",
        f'name = "{slug(survey.path.stem)}"',
        "",
        "[data]",
        f"path = {_literal(path)}",
        'columns = "columns.toml"',
    ]
    if split:
        lines.append('split = "split.csv"  # its part "test" is what conditions.csv asks for')
        lines.append("validation = 0.1  # of the training cells")
    lines += ["", "# What the model is told of a cell."]
    for name in ("cell_type", "compound", "plate"):
        if name in obs and (name != "plate" or 1 < obs[name].nunique() <= 200):
            lines.append(f"[conditions.{name}]")
            if name == "compound" and guesses.vehicle and _has_pairs(obs, guesses):
                lines.append('encoding = "combination"  # A+B is A and B')
                lines.append(f"control = {_literal(guesses.vehicle.value)}")
    lines += [
        "",
        "[model]",
        'kind = "nbvae"  # or dgd, gaussian_vae',
        "latent = 10",
        "",
        "[model.decoder]",
        "hidden = [128]",
        "additive = true  # without it, a small model may ignore the conditions",
        "",
        "[training]",
        f"epochs = {epochs}  # {survey.n_cells:,} cells",
        "",
        "[annealing]",
        f"warmup = {max(1, epochs // 5)}",
    ]
    return "\n".join(lines) + "\n"


def _has_pairs(obs: pd.DataFrame, guesses: Guesses) -> bool:
    """Whether some perturbations are combinations of others."""
    from perturbgen.data import parts_of_label

    vehicle = None if guesses.vehicle is None else guesses.vehicle.value
    names = [str(name) for name in obs["compound"].dropna().unique()]
    parts = [parts_of_label(name, vehicle) for name in names]
    single = {own[0] for own in parts if len(own) == 1}
    return any(len(own) > 1 and set(own) <= single for own in parts)


def _literal(text: str) -> str:
    return f"'{text}'" if "'" not in text else '"' + text.replace('"', '\\"') + '"'


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
    obs = _our_obs(survey, (folder / "columns.toml").read_text(encoding="utf-8"))
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
    lines = [
        check,
        train,
        f"perturbgen predict {run} --cells {file} --conditions {own('conditions.csv')} "
        f"--out {own('predictions.parquet')}",
        f"perturbgen pseudobulk {file} --columns {own('columns.toml')} --out {own('samples.h5ad')}",
        f"perturbgen de {own('samples.h5ad')} --by cell_type --out {own('de.parquet')}",
        f"perturbgen score {own('de.parquet')} {own('predictions.parquet')} --rows intersection "
        f"--genes intersection --out {own('scores')}",
    ]
    return "\n".join(f"    {line}" for line in lines)


VERBS = {"init": _init}
