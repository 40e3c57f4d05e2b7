"""``perturbgen score``: predictions against the truth, between their controls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli.options import Json, listed
from perturbgen.core.console import say, show_table
from perturbgen.core.errors import ConfigError
from perturbgen.core.files import require_writable

if TYPE_CHECKING:
    import pandas as pd

    from perturbgen.evaluate import Scorecard

_DUPLICATE = "interpolated_duplicate"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("score")(_score)


def _score(
    truth: Annotated[Path, typer.Argument(metavar="TRUTH", help="The measured DE table.")],
    predictions: Annotated[
        list[str],
        typer.Argument(metavar="PREDICTION...", help="Files, or NAME=FILE to name the method."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for scorecard.md, .parquet, .json and report.html.")
    ] = None,
    id_map: Annotated[
        Path | None, typer.Option(help="id_map.csv, for files whose rows are ids.")
    ] = None,
    statistic: Annotated[
        str, typer.Option(help="Statistic of a perturbgen DE table.")
    ] = "signed_log10_p",
    layer: Annotated[str | None, typer.Option(help="Layer of Open Problems' h5ad files.")] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Metrics, separated by commas (default: all).")
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
    conditions: Annotated[
        Path | None,
        typer.Option(help="CSV of cell_type, compound and columns to stratify by, e.g. n_cells."),
    ] = None,
    clusters: Annotated[
        str | None,
        typer.Option(help="Resample conditions of one compound (or any column) together."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="DE table of the training rows: their mean is the perturbed mean."),
    ] = None,
    duplicate: Annotated[
        Path | None, typer.Option(help="DE table of held-back replicates: the positive control.")
    ] = None,
    level: Annotated[float, typer.Option(help="A gene responds where p is at most this.")] = 0.05,
    raw_p: Annotated[
        bool, typer.Option("--raw-p", help="Do not adjust p for the number of genes.")
    ] = False,
    resamples: Annotated[
        int, typer.Option(min=1, help="Bootstrap resamples of the conditions.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples.")] = 0,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html into --out.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Score predictions of signed -log10 p against the measured table, between a negative and a positive control.

    TRUTH and PREDICTION are DE tables of perturbgen de, a parquet or CSV with columns cell_type and compound (or
    sm_name) and one a gene, Open Problems' h5ad, or with --id-map a submission file. Labels must agree; --genes and
    --rows say what may differ. All zeros are the negative control unless you name others.

    Example: [bold]perturbgen score de_test.parquet ridge=ridge.parquet submission.csv --id-map id_map.csv
    --out scores[/bold]
    """
    from perturbgen.de import DETable, read_table
    from perturbgen.evaluate import interpolated_duplicate, scorecard

    if out is not None:
        require_writable(out / "scorecard.md")
    DETable.require_statistic(statistic)
    files = _name_files(predictions)
    read: dict[str, Any] = {"id_map": id_map, "statistic": statistic, "layer": layer}
    true = read_table(truth, **read)
    tables = {name: read_table(path, **read) for name, path in files.items()}
    mean = read_table(reference, **read).mean() if reference else None
    if duplicate is not None:
        tables[_DUPLICATE] = interpolated_duplicate(read_table(duplicate, **read))
        positive = positive or _DUPLICATE
    card = scorecard(
        true,
        tables,
        negatives=listed(negative),
        positive=positive,
        baselines=listed(baseline),
        conditions=_read_conditions(conditions) if conditions else None,
        clusters=clusters,
        metrics=listed(metrics) or None,
        genes=genes,
        rows=rows,
        level=level,
        adjust=not raw_p,  # type: ignore[arg-type]
        reference=mean,
        resamples=resamples,
        seed=seed,
        info={
            "truth": str(truth),
            "predictions": {name: str(path) for name, path in files.items()},
        },
    )
    _show(card, as_json=as_json)
    if out is not None:
        paths = _save(card, out, true if report else None, tables, seed=seed)
        if not as_json:
            say(f"wrote {', '.join(path.name for path in paths)} in {out}")


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
    from perturbgen.evaluate import write_report, write_scorecard

    paths = write_scorecard(card, out)
    if truth is not None:
        paths.append(
            write_report(out / "report.html", card, truth, tables, metadata=environment(seed))
        )
    return paths


def _name_files(predictions: list[str]) -> dict[str, Path]:
    """Methods and their files: ``NAME=FILE``, or the file's own name."""
    files: dict[str, Path] = {}
    for text in predictions:
        name, separator, path = text.partition("=")
        found = Path(path if separator else text)
        name = name if separator else found.stem
        if name in files:
            raise ConfigError(
                f"two predictions are called {name!r}: {files[name]} and {found}",
                fix=f"name them: other={found}",
            )
        files[name] = found
    return files


def _read_conditions(path: Path) -> pd.DataFrame:
    """A CSV about conditions, labelled as the truth."""
    from perturbgen.core.labels import CONDITION
    from perturbgen.core.tables import read_frame
    from perturbgen.de.table import NAMES, labelled

    return labelled(read_frame(path, text=(*CONDITION, *NAMES)), path)


def _show(card: Scorecard, *, as_json: bool) -> None:
    """Print the ranking with the mean of every metric, or everything as JSON."""
    from perturbgen.evaluate import headline_note, headline_records, to_record

    if as_json:
        show_table([to_record(card)], as_json=True)
        return
    show_table(headline_records(card), title=headline_note(card))
    means = card.overall.table.pivot(index="metric", columns="method", values="value")
    order = card.ranking["method"].tolist()
    shown = [
        {
            "metric": metric.title,
            "": "↑" if metric.higher_is_better else "↓",
            "range": "yes" if ranks else "no",
        }
        | {name: float(means.loc[metric.name, name]) for name in order}
        for metric, ranks in zip(card.metrics, card.overall.ranks, strict=True)
    ]
    show_table(shown, title=f"means over {card.scores.shape[1]} conditions")
