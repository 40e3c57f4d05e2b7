"""``perturbgen score``: predictions against the truth, between their controls."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli.data import Json, listed
from perturbgen.console import say, show_table
from perturbgen.errors import ConfigError, InputError, SchemaError, suggest
from perturbgen.files import require_file, require_writable

if TYPE_CHECKING:
    import pandas as pd

    from perturbgen.evaluate import Scorecard

logger = logging.getLogger(__name__)

LABELS = ("cell_type", "compound")
NAMES = {"sm_name": "compound"}  # Kaggle's and Open Problems' word
DUPLICATE = "interpolated_duplicate"
DESCRIBING = ("sm_lincs_id", "SMILES", "control", "id", "split")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(score)


def score(
    truth: Annotated[Path, typer.Argument(metavar="TRUTH", help="The measured DE table.")],
    predictions: Annotated[
        list[str], typer.Argument(metavar="PREDICTION...", help="Files, or NAME=FILE to name the method.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for scorecard.md, .parquet, .json and report.html.")] = None,
    id_map: Annotated[Path | None, typer.Option(help="id_map.csv, for files whose rows are ids.")] = None,
    statistic: Annotated[str, typer.Option(help="Statistic of a perturbgen DE table.")] = "signed_log10_p",
    layer: Annotated[str | None, typer.Option(help="Layer of Open Problems' h5ad files.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Metrics, separated by commas (default: all).")] = None,
    negative: Annotated[str, typer.Option(help="Negative controls, separated by commas.")] = "zeros",
    positive: Annotated[str | None, typer.Option(help="The method that is the positive control.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Methods that are baselines, separated by commas.")] = None,
    genes: Annotated[str, typer.Option(help="exact, truth (a prediction may have more) or intersection.")] = "exact",
    rows: Annotated[str, typer.Option(help="exact, truth or intersection.")] = "exact",
    conditions: Annotated[
        Path | None, typer.Option(help="CSV of cell_type, compound and columns to stratify by, e.g. n_cells.")
    ] = None,
    clusters: Annotated[
        str | None, typer.Option(help="Resample conditions of one compound (or any column) together.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="DE table of the training rows: their mean is the perturbed mean.")
    ] = None,
    duplicate: Annotated[
        Path | None, typer.Option(help="DE table of held-back replicates: the positive control.")
    ] = None,
    level: Annotated[float, typer.Option(help="A gene responds where p is at most this.")] = 0.05,
    raw_p: Annotated[bool, typer.Option("--raw-p", help="Do not adjust p for the number of genes.")] = False,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples of the conditions.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples.")] = 0,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html into --out.")] = True,
    as_json: Json = False,
) -> None:
    """Score predictions of signed -log10 p against the measured table, between a negative and a positive control.

    TRUTH and PREDICTION are DE tables of perturbgen de, a parquet or CSV with columns cell_type and compound (or
    sm_name) and one a gene, Open Problems' h5ad, or with --id-map a submission file. Labels must agree; --genes and
    --rows say what may differ. All zeros are the negative control unless you name others.

    Example: [bold]perturbgen score de_test.parquet ridge=ridge.parquet submission.csv --id-map id_map.csv
    --out scores[/bold]
    """
    from perturbgen.evaluate import interpolated_duplicate, scorecard

    if out is not None:
        require_writable(out / "scorecard.md")
    require_statistic(statistic)
    files = name_files(predictions)
    read: dict[str, Any] = {"id_map": id_map, "statistic": statistic, "layer": layer}
    true = read_table(truth, **read)
    tables = {name: read_table(path, **read) for name, path in files.items()}
    mean = read_table(reference, **read).mean() if reference else None
    if duplicate is not None:
        tables[DUPLICATE] = interpolated_duplicate(read_table(duplicate, **read))
        positive = positive or DUPLICATE
    card = scorecard(
        true, tables, negatives=listed(negative), positive=positive, baselines=listed(baseline),
        conditions=read_conditions(conditions) if conditions else None, clusters=clusters,
        metrics=listed(metrics) or None, genes=genes, rows=rows, level=level, adjust=not raw_p,  # type: ignore[arg-type]
        reference=mean, resamples=resamples, seed=seed,
        info={"truth": str(truth), "predictions": {name: str(path) for name, path in files.items()}},
    )  # fmt: skip
    show(card, as_json=as_json)
    if out is not None:
        paths = save(card, out, true if report else None, tables, seed=seed)
        if not as_json:
            say(f"wrote {', '.join(path.name for path in paths)} in {out}")


def save(
    card: Scorecard, out: Path, truth: pd.DataFrame | None, tables: dict[str, pd.DataFrame], *, seed: int
) -> list[Path]:
    """The scorecard's files, and with the truth the report."""
    from perturbgen.config import environment
    from perturbgen.evaluate.outputs import write_scorecard
    from perturbgen.evaluate.report import write_report

    paths = write_scorecard(card, out)
    if truth is not None:
        paths.append(write_report(out / "report.html", card, truth, tables, metadata=environment(seed)))
    return paths


def name_files(predictions: list[str]) -> dict[str, Path]:
    """Methods and their files: ``NAME=FILE``, or the file's own name."""
    files: dict[str, Path] = {}
    for text in predictions:
        name, separator, path = text.partition("=")
        found = Path(path if separator else text)
        name = name if separator else found.stem
        if name in files:
            raise ConfigError(
                f"two predictions are called {name!r}: {files[name]} and {found}", fix=f"name them: other={found}"
            )
        files[name] = found
    return files


def read_conditions(path: Path) -> pd.DataFrame:
    """A CSV about conditions, labelled as the truth."""
    from perturbgen.data.tables import read_csv

    return label(read_csv(path, text=(*LABELS, *NAMES)), path, None)


def read_table(path: Path, *, id_map: Path | None, statistic: str, layer: str | None) -> pd.DataFrame:
    """A table conditions (cell_type, compound) x genes, from any of the files that a method may leave behind."""
    path = require_file(path, "DE table")
    if path.suffix == ".h5ad":
        return read_h5ad(path, id_map, statistic, layer)
    if path.suffix == ".parquet":
        return read_parquet(path, id_map, statistic)
    if path.suffixes[-1:] == [".csv"] or path.suffixes[-2:] == [".csv", ".gz"]:
        from perturbgen.data.tables import read_csv

        return label(read_csv(path, text=(*LABELS, *NAMES, *DESCRIBING[:2])), path, id_map)
    raise InputError(f"{path} is no table that score can read", expected="a .parquet, .h5ad, .csv or .csv.gz file")


def read_parquet(path: Path, id_map: Path | None, statistic: str) -> pd.DataFrame:
    """A DE table of ``perturbgen de``, or a flat table."""
    from perturbgen.data.tables import open_parquet, parquet_errors
    from perturbgen.de import DETable
    from perturbgen.de.table import METADATA_KEY

    with open_parquet(path) as file, parquet_errors(path):
        ours = METADATA_KEY in (file.schema_arrow.metadata or {})
        table = None if ours else file.read().to_pandas()
    return of_table(DETable.read(path), statistic) if table is None else label(table, path, id_map)


def read_h5ad(path: Path, id_map: Path | None, statistic: str, layer: str | None) -> pd.DataFrame:
    """A DE table of ours, or Open Problems' ``de_test.h5ad`` or ``prediction.h5ad``."""
    import pandas as pd

    from perturbgen.data.h5ad import open_h5ad
    from perturbgen.data.openproblems import LAYER
    from perturbgen.de import DETable

    adata = open_h5ad(path)
    if "de" in adata.uns:
        return of_table(DETable.from_anndata(adata), statistic)
    chosen = layer or ("prediction" if "prediction" in adata.layers else LAYER)
    if chosen not in adata.layers:
        raise SchemaError(f"{path} has no layer {chosen!r}", fix=f"--layer: {suggest(chosen, adata.layers)}")
    values = pd.DataFrame(adata.layers[chosen], columns=adata.var_names)
    named = [name for name in (*LABELS, *NAMES) if name in adata.obs]
    labels = adata.obs[named].astype(str).reset_index(drop=True) if named else pd.DataFrame({"id": adata.obs_names})
    return label(pd.concat([labels, values], axis=1), path, id_map)


def require_statistic(name: str) -> None:
    """A DE table has this statistic; a misspelt one is told even where no file is such a table."""
    from perturbgen.de.table import DERIVED, STATISTICS

    known = (*STATISTICS, *DERIVED)
    if name not in known:
        raise ConfigError(f"a DE table has no {name!r}", fix=f"--statistic: {suggest(name, known)}")


def of_table(table: Any, statistic: str) -> pd.DataFrame:
    """One statistic of a DE table, without the genes that were tested nowhere."""
    frame: pd.DataFrame = getattr(table, statistic)
    tested = frame.notna().any()
    if not tested.all():
        logger.warning("%s genes that were filtered out of the DE table are no part of it", f"{(~tested).sum():,}")
    return frame.loc[:, tested]


def label(table: pd.DataFrame, path: Path, id_map: Path | None) -> pd.DataFrame:
    """The table with its conditions as index: from its own columns or index, or from its ids and an id map."""
    table = table.reset_index() if any(table.index.names) else table
    table = table.rename(columns={old: new for old, new in NAMES.items() if new not in table})
    named = [name for name in LABELS if name in table]
    if not named and "id" in table:
        return with_ids(table, path, id_map)
    if not named:
        raise SchemaError(
            f"{path} says nothing of its conditions",
            expected="columns cell_type and compound (or sm_name), or id with --id-map",
            fix="--id-map id_map.csv for a submission file",
        )
    keys = table[named].astype(str)
    import pandas as pd

    index = pd.MultiIndex.from_frame(keys) if len(named) > 1 else pd.Index(keys[named[0]])
    drop = [name for name in table if name in (*named, *DESCRIBING, "index") or str(name).startswith("__index_level")]
    return table.drop(columns=drop).set_axis(index, axis=0)


def with_ids(table: pd.DataFrame, path: Path, id_map: Path | None) -> pd.DataFrame:
    """A submission's rows labelled by the id map, in its order."""
    import pandas as pd

    from perturbgen.data.kaggle_tables import read_id_map

    if id_map is None:
        raise SchemaError(f"the rows of {path} are ids", expected="their conditions, too", fix="--id-map id_map.csv")
    conditions = read_id_map(id_map)
    ids = table["id"].astype(str)
    known = dict(zip(conditions.index.astype(str), conditions.itertuples(index=False, name=None), strict=True))
    unknown = [name for name in ids if name not in known]
    if unknown:
        raise SchemaError(f"{path} has {len(unknown)} ids that {id_map} does not know, the first {unknown[0]!r}")
    index = pd.MultiIndex.from_tuples([known[name] for name in ids], names=LABELS)
    return table.drop(columns="id").set_axis(index, axis=0)


def show(card: Scorecard, *, as_json: bool) -> None:
    """Print the ranking with the mean of every metric, or everything as JSON."""
    from perturbgen.evaluate.outputs import headline_note, headline_records, to_record

    if as_json:
        show_table([to_record(card)], as_json=True)
        return
    show_table(headline_records(card), title=headline_note(card))
    means = card.overall.table.pivot(index="metric", columns="method", values="value")
    order = card.ranking["method"].tolist()
    shown = [
        {"metric": metric.title, "": "↑" if metric.higher_is_better else "↓", "range": "yes" if ranks else "no"}
        | {name: float(means.loc[metric.name, name]) for name in order}
        for metric, ranks in zip(card.metrics, card.overall.ranks, strict=True)
    ]
    show_table(shown, title=f"means over {card.scores.shape[1]} conditions")
