"""``perturbgen submit`` and ``check-submission``: submission files, written and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perturbgen.cli.options import Json
from perturbgen.core.console import say, show_table
from perturbgen.core.errors import UserError

_IdMap = Annotated[Path, typer.Option("--id-map", help="id_map.csv: the condition of each row id.")]
_Like = Annotated[
    Path, typer.Option(help="sample_submission.csv, or an h5ad: the genes and their order.")
]


def _submit(
    predictions: Annotated[
        Path, typer.Argument(help="Parquet or CSV: cell_type, sm_name (or compound), genes.")
    ],
    id_map: _IdMap,
    like: _Like,
    out: Annotated[
        Path, typer.Option(help="Output: submission.csv (Kaggle) or .h5ad (Open Problems).")
    ],
    dataset_id: Annotated[
        str | None,
        typer.Option(help=".h5ad: the data set that is predicted, e.g. neurips-2023-data."),
    ] = None,
    method_id: Annotated[
        str | None, typer.Option(help=".h5ad: what the benchmark is to call the method.")
    ] = None,
) -> None:
    """Write predictions as a submission. Rows and genes are joined by name, in any order.

    Nothing is written if a condition or a gene is missing or a value is no number; every such place
    is named. Open Problems asks for --dataset-id and --method-id, too; a .csv has no place for
    them.

    Example: [bold]perturbgen submit predictions.parquet --id-map id_map.csv
    --like sample_submission.csv --out submission.csv[/bold]

    Example: [bold]perturbgen submit predictions.parquet --id-map id_map.csv --like de_train.h5ad
    --out prediction.h5ad --dataset-id neurips-2023-data --method-id mine[/bold]
    """
    from perturbgen import submission
    from perturbgen.core.files import check_output

    # the ending decides the format, so another one is refused
    check_output(out, ".csv", ".h5ad")
    given = {"dataset_id": dataset_id, "method_id": method_id}
    about = {name: value for name, value in given.items() if value}
    submission.write(predictions, id_map, like, out, about=about)
    say(f"wrote {out}")


def _check_submission(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A submission, .csv or .h5ad.")],
    id_map: _IdMap,
    like: _Like,
    as_json: Json = False,
) -> None:
    """Check a submission file: ids, genes, their order, every value (counts: data check). Exit
    code 2 if it is invalid.

    Values that are numbers but hardly possible (beyond 200) are warnings.

    Example: [bold]perturbgen check-submission submission.csv --id-map id_map.csv
    --like sample_submission.csv[/bold]
    """
    from perturbgen import submission

    findings = submission.check(source, id_map, like)
    errors = sum(finding.severity == "error" for finding in findings)
    # JSON in any case: to a program an empty list says that nothing was found
    if findings or as_json:
        show_table([finding.record() for finding in findings], title=f"{source}", as_json=as_json)
    if not as_json:
        verdict = f"{errors} errors, {len(findings) - errors} warnings" if findings else "valid"
        say(f"{source}: {verdict}")
    # last: all that is wrong has been shown
    if errors:
        raise typer.Exit(UserError.exit_code)


VERBS = {"submit": _submit, "check-submission": _check_submission}
