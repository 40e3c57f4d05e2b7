"""``perturbgen score`` and ``compare``: predictions, or whole methods, between their controls."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli.options import DryRun, Json, Overrides, Seed, listed, show_settings
from perturbgen.core.console import say, show_table
from perturbgen.core.errors import ConfigError, PerturbgenError
from perturbgen.core.files import require_writable, staged

if TYPE_CHECKING:
    import pandas as pd

    from perturbgen.compare import Comparison
    from perturbgen.evaluate import Scorecard

_Report = Annotated[
    bool, typer.Option("--report/--no-report", help="Write report.html beside the tables.")
]
_DUPLICATE = "interpolated_duplicate"
_LEADERBOARD = Path("experiments") / "LEADERBOARD.md"


def _score_predictions(
    truth: Annotated[Path, typer.Argument(metavar="TRUTH", help="The measured DE table.")],
    predictions: Annotated[
        list[str],
        typer.Argument(metavar="PREDICTION...", help="Files, or NAME=FILE to name the method."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Output: a folder for scorecard.md, .parquet, .json and report.html."),
    ] = None,
    id_map: Annotated[
        Path | None,
        typer.Option(help="id_map.csv: the condition of each row id, where files have such rows."),
    ] = None,
    statistic: Annotated[
        str, typer.Option(help="Statistic of a perturbgen DE table.")
    ] = "signed_log10_p",
    layer: Annotated[
        str | None, typer.Option(help="Layer of the h5ad: a statistic of Open Problems' files.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Metrics, separated by commas (default: all).")
    ] = None,
    headline: Annotated[
        str | None,
        typer.Option(help="Metrics whose mean ranks (default: those no rescaling moves)."),
    ] = None,
    negative: Annotated[
        str, typer.Option(help="Negative controls, separated by commas.")
    ] = "zeros",
    positive: Annotated[
        str | None, typer.Option(help="The method that is the positive control.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Methods that are baselines, separated by commas.")
    ] = None,
    genes: Annotated[
        str, typer.Option(help="exact, truth (a prediction may have more) or intersection.")
    ] = "exact",
    rows: Annotated[str, typer.Option(help="exact, truth or intersection.")] = "exact",
    missing: Annotated[
        str, typer.Option(help="Missing predictions: refuse, or zeros (count them as 0).")
    ] = "refuse",
    strata: Annotated[
        Path | None,
        typer.Option(help="CSV of cell_type, compound and columns to stratify by, e.g. n_cells."),
    ] = None,
    clusters: Annotated[
        str, typer.Option(help="Column whose equals are resampled together; none: each condition.")
    ] = "compound",
    layout: Annotated[
        str | None, typer.Option(help="Column of --strata that says where each was measured.")
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(help="The DE table to learn from: its mean is the perturbed mean."),
    ] = None,
    duplicate: Annotated[
        Path | None, typer.Option(help="DE table of withheld replicates: the positive control.")
    ] = None,
    level: Annotated[float, typer.Option(help="A gene responds where p is at most this.")] = 0.05,
    raw_p: Annotated[
        bool, typer.Option("--raw-p", help="Do not adjust p for the number of genes.")
    ] = False,
    resamples: Annotated[
        int, typer.Option(min=1, help="Bootstrap resamples of the conditions.")
    ] = 1000,
    seed: Seed = 0,
    report: _Report = True,
    as_json: Json = False,
) -> None:
    """Score tables of predicted signed -log10 p against the measured one, between two controls (to
    fit the methods, too: compare; of a trained model's cells: evaluate; of any: score-cells).

    TRUTH and PREDICTION are DE tables of perturbgen de, a parquet or CSV with columns cell_type and
    compound (or sm_name) and one a gene, Open Problems' h5ad, or with --id-map a submission file.
    Labels must agree; --genes and --rows say what may differ. All zeros are the negative control
    unless you name others.

    Example: [bold]perturbgen score de_test.parquet ridge=ridge.parquet submission.csv
    --id-map id_map.csv --out scores[/bold]
    """
    from perturbgen.de import DETable, read_de_table
    from perturbgen.evaluate import interpolated_duplicate, scorecard

    if out is not None:
        require_writable(out / "scorecard.md")
    # told before large files are read, and even where none of them is a DE table
    DETable.require_statistic(statistic)
    files = _name_files(predictions)
    _check_layer(layer, [truth, train, duplicate, *files.values()])
    read: dict[str, Any] = {"id_map": id_map, "statistic": statistic, "layer": layer}
    true = read_de_table(truth, **read)
    tables = {name: read_de_table(path, **read) for name, path in files.items()}
    mean = read_de_table(train, **read).mean() if train else None
    if duplicate is not None:
        tables[_DUPLICATE] = interpolated_duplicate(read_de_table(duplicate, **read))
        positive = positive or _DUPLICATE
    named = {name: str(path) for name, path in files.items()}
    card = scorecard(
        true,
        tables,
        negatives=listed(negative),
        positive=positive,
        baselines=listed(baseline),
        conditions=_read_conditions(strata) if strata else None,
        clusters=None if clusters == "none" else clusters,
        layout=layout,
        metrics=listed(metrics) or None,
        headline=listed(headline) or None,
        genes=genes,  # type: ignore[arg-type]
        rows=rows,  # type: ignore[arg-type]
        missing=missing,  # type: ignore[arg-type]
        level=level,
        adjust=not raw_p,
        reference=mean,
        resamples=resamples,
        seed=seed,
        info={"truth": str(truth), "predictions": named},
    )
    _show_card(card, as_json=as_json)
    if out is not None:
        paths = _save(card, out, true if report else None, tables, seed=seed)
        if not as_json:
            say(f"wrote {', '.join(path.name for path in paths)} in {out}")


def _check_layer(layer: str | None, files: list[Path | None]) -> None:
    # an option that is silently ignored would look as if it had been obeyed
    if layer is not None and not any(path and path.suffix == ".h5ad" for path in files):
        raise ConfigError(f"--layer {layer} has no effect: no file is an h5ad", fix="leave it out")


def _name_files(predictions: list[str]) -> dict[str, Path]:
    """Methods and their files: ``NAME=FILE``, or the file's own name."""
    files: dict[str, Path] = {}
    for text in predictions:
        name, separator, path = text.partition("=")
        found = Path(path if separator else text)
        name = name if separator else found.stem
        # the second would silently take the place of the first
        if name in files:
            raise ConfigError(
                f"two predictions are called {name!r}: {files[name]} and {found}",
                fix=f"name them: other={found}",
            )
        files[name] = found
    return files


def _read_conditions(path: Path) -> pd.DataFrame:
    """A CSV about conditions, labelled as the truth is."""
    from perturbgen.core.tables import CONDITION, NAMES, read_frame
    from perturbgen.de import labelled

    # as text: a name of digits alone is no number, and would not be found in the truth
    return labelled(read_frame(path, text=(*CONDITION, *NAMES)), path)


def _show_card(card: Scorecard, *, as_json: bool) -> None:
    """Print the ranking with the mean of every metric, or everything as JSON."""
    from perturbgen.evaluate import ScorecardText

    text = ScorecardText(card)
    if as_json:
        show_table([text.record()], as_json=True)
        return
    show_table(text.headline_records(), title=text.headline_note())
    say(text.describe())
    means = card.overall.table.pivot(index="metric", columns="method", values="value")
    order = card.ranking["method"].tolist()
    titles = text.titles()
    shown = []
    for metric, ranks in zip(card.metrics, card.overall.ranks, strict=True):
        arrow, ranges = "↑" if metric.higher_is_better else "↓", "yes" if ranks else "no"
        values = {name: float(means.loc[metric.name, name]) for name in order}
        shown.append({"metric": titles[metric.name], "": arrow, "range": ranges} | values)
    show_table(shown, title=f"means over {card.scores.shape[1]} conditions")


def _save(
    card: Scorecard,
    out: Path,
    truth: pd.DataFrame | None,
    tables: dict[str, pd.DataFrame],
    *,
    seed: int,
) -> list[Path]:
    """The scorecard's files, and with the truth the report."""
    from perturbgen.core.runs import environment
    from perturbgen.evaluate import ScorecardText, report_page

    with staged(out) as folder:
        paths = ScorecardText(card).write(folder)
        if truth is not None:
            about = environment(seed)
            page = report_page(card, truth, tables, metadata=about)
            paths.append(page.write(folder / "report.html"))
    return [out / path.name for path in paths]


def _compare(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", help="Data, splits, methods, controls.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Output: a folder of results \\[default: runs/compare-CONFIG]."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="The data, in place of the configuration's: a folder.")
    ] = None,
    scheduler: Annotated[
        str, typer.Option(help="processes, or the address of a Dask scheduler.")
    ] = "processes",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes \\[default: one a core].")
    ] = None,
    report: _Report = True,
    leaderboard: Annotated[
        bool,
        typer.Option(
            "--leaderboard",
            help="Add a row to experiments/LEADERBOARD.md (of the working directory).",
        ),
    ] = False,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compare methods on a DE table: fit each on every split with every seed, and score them all
    (of predictions that you have: score).

    What has been computed is kept in the folder of results: run the same again and nothing is
    fitted twice, change a method and only its jobs are, interrupt it and it goes on where it was.
    A method that fails is named, the others are ranked, and the exit code is 1. A file of two lines
    will do (12 methods, 3 folds of compounds):

        \\[data]
        folder = "data/small"

    Splits are [bold]\\[splits.NAME][/bold] of kind kaggle, compounds, cell_types or file. Methods
    are [bold]\\[methods.NAME][/bold], a baseline (perturbgen baseline lists them, or module:Class
    of your own) or predictions = "file.parquet".

    Example: [bold]perturbgen compare experiments/op3_semireal/compare.toml
    --data data/semireal[/bold]
    """
    from perturbgen.compare import CompareSettings, Leaderboard, write_outputs
    from perturbgen.compare import compare as run
    from perturbgen.core.files import slug

    # last, so that the option wins over --set data.folder
    asked = [*(overrides or []), *([f"data.folder={data!r}"] if data is not None else [])]
    settings = CompareSettings.load(config, overrides=asked)
    if dry_run:
        show_settings(settings)
        return
    # Read first: an hour of fits must not end in a table that cannot be written.
    board = Leaderboard(_LEADERBOARD) if leaderboard else None
    folder = out or Path("runs") / f"compare-{slug(config.stem)}"
    found = run(settings, folder, scheduler=scheduler, workers=workers)
    page = "report.html" if report else None
    paths = write_outputs(found, folder, title=f"Comparison: {config.stem}", report=page)
    show_comparison(found, as_json=as_json)
    if board:
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        board.add(found, config=str(config), command=command, out=folder)
    if not as_json:
        say(f"wrote {', '.join(path.name for path in paths)} in {folder}")
    raise_failures(found, folder)  # last: what did run through has been written and shown


def show_comparison(found: Comparison, *, as_json: bool = False) -> None:
    """Print the ranking, and how the jobs went."""
    from perturbgen.evaluate import ScorecardText

    text = ScorecardText(found.card)
    if as_json:
        record: dict[str, Any] = text.record() | {"cells": found.jobs.to_dict("records")}
        show_table([record], as_json=True)
        return
    # a method's time is that of all its jobs together
    times = found.jobs.groupby("method", sort=False)[["seconds", "processor"]].sum().T.to_dict()
    rows = [row | times[row["method"]] for row in text.headline_records()]
    show_table(rows, title=text.headline_note())
    for note in [*found.tested, text.describe()]:
        say(note)
    states = found.jobs["state"].value_counts()
    counts = [f"{states[name]} {name}" for name in ("done", "cached", "failed") if name in states]
    say(f"jobs: {', '.join(counts)}")


def raise_failures(found: Comparison, folder: Path) -> None:
    """Where a job failed, end with exit code 1; the results of the others are written."""
    if found.failures:
        names = dict.fromkeys(job.method.name for job in found.failures)
        raise PerturbgenError(
            f"{len(found.failures)} of {len(found.outcomes)} jobs failed, of {', '.join(names)}; "
            "the rest is scored",
            fix=f"{folder / 'failures.txt'} says why; run again to try these jobs only",
        )


VERBS = {"score": _score_predictions, "compare": _compare}
