"""``perturbgen ensemble``: a weighted sum of predictions, the weights from withheld conditions that were measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from perturbgen.cli.options import Json
from perturbgen.core.console import show_table
from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.files import check_output

if TYPE_CHECKING:
    import pandas as pd


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("ensemble")(_ensemble)


class _Member(NamedTuple):
    """A name, the predictions of the wanted conditions and those of measured ones that it was not shown."""

    name: str
    wanted: Path
    known: Path


def _ensemble(
    members: Annotated[
        list[str], typer.Argument(help="NAME=PREDICTIONS,CALIBRATION: two parquet files of each.")
    ],
    truth: Annotated[
        Path, typer.Option(help="The measured conditions: de_train.parquet or another DE table.")
    ],
    out: Annotated[
        Path, typer.Option(help="predictions.parquet: cell_type, sm_name, a column for each gene.")
    ],
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap of the gain.")] = 0,
    as_json: Json = False,
) -> None:
    """Combine predictions by non-negative weights whose sum is free, found on withheld, measured conditions.

    CALIBRATION holds a member's predictions of measured conditions that it did not learn from, the same ones for every
    member: perturbgen predict --calibration-out writes them for a generative model; a baseline is fitted without them.
    The gain is over the best member, with weights found without the condition's compound, and has a 95 % interval.

    Example: [bold]perturbgen ensemble vae=vae.parquet,vae_known.parquet xgb=xgb.parquet,xgb_known.parquet
    --truth de_train.parquet --out predictions.parquet[/bold]
    """
    import numpy as np

    from perturbgen.cli.baselines import write_predictions
    from perturbgen.compare.tables import read_table
    from perturbgen.predict.ensemble import as_row, fit_ensemble

    check_output(out, ".parquet")
    chosen = _read_members(members)
    wanted = {member.name: read_table(member.wanted) for member in chosen}
    known = {member.name: read_table(member.known) for member in chosen}
    _require_alike(wanted)
    measured = _measured_rows(read_table(truth), known[chosen[0].name], chosen[0].known, truth)
    found = fit_ensemble(known, measured, rng=np.random.default_rng(seed))
    write_predictions(found.apply(wanted), out)
    show_table([as_row(found, known, measured)], title=f"wrote {out}", as_json=as_json)


def _read_members(texts: list[str]) -> list[_Member]:
    """Members as they are typed, each name once."""
    members = []
    for text in texts:
        name, _, files = text.partition("=")
        wanted, _, known = files.partition(",")
        if not (name and wanted and known):
            raise ConfigError(f"member {text!r}", expected="NAME=PREDICTIONS,CALIBRATION")
        members.append(_Member(name, Path(wanted), Path(known)))
    names = [member.name for member in members]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"a name stands twice: {shorten(names)}", expected="another name for each member"
        )
    return members


def _require_alike(wanted: dict[str, pd.DataFrame]) -> None:
    """All members predict the same conditions and genes."""
    from perturbgen.predict.estimators import require_same

    first, *others = wanted.values()
    for name, table in zip(list(wanted)[1:], others, strict=True):
        require_same(first.index, table.index, f"conditions ({name})")
        require_same(first.columns, table.columns, f"genes ({name})")


def _measured_rows(
    table: pd.DataFrame, known: pd.DataFrame, known_path: Path, path: Path
) -> pd.DataFrame:
    """The measured values of the calibration conditions."""
    absent = known.index[~known.index.isin(table.index)]
    genes = known.columns[~known.columns.isin(table.columns)]
    for what, names in (
        ("conditions", [" | ".join(map(str, key)) for key in absent]),
        ("genes", list(genes)),
    ):
        if names:
            raise SchemaError(
                f"{path} does not have {len(names)} {what} of {known_path}: {shorten(names)}",
                expected="the measured values of every calibration condition",
            )
    return table.loc[known.index, known.columns]
