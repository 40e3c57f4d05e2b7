"""``perturbgen check-extension``: what other packages bring, and whether it can be relied on."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from perturbgen.cli.options import Json
from perturbgen.core.console import say, show_table


def _check_extension(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME...]",
            help="Entry points, or module:Object; without any, all that is installed.",
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="Which kind: model, metric or baseline, where the name is of several."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Hold models, metrics and baselines of other packages to what all of their kind promise.

    They are tried on small tables and cells: shapes, missing values and conditions, the same
    numbers from the same seed, inputs left as they were, nothing printed. Packages name what they
    bring as entry points perturbgen.models, perturbgen.metrics and perturbgen.baselines; a file in
    the working directory goes by module:Object, here and wherever a name is asked for.

    Example: [bold]perturbgen check-extension my_package:Thing[/bold]
    """
    from perturbgen.contract import breaches, find_extensions
    from perturbgen.core.errors import ExtensionError

    found = find_extensions(names or [], kind)
    if not found:
        say("no installed package brings a model, a metric or a baseline")
        return
    broken = {extension: breaches(extension) for extension in found}
    rows: list[dict[str, Any]] = []
    for extension, wrong in broken.items():
        row = {name: getattr(extension, name) for name in ("kind", "name", "where", "package")}
        said: Any = wrong if as_json else f"breaks {len(wrong)}" if wrong else "keeps all"
        rows.append(row | {"promises": said})
    show_table(rows, title="extensions", as_json=as_json)
    told = []
    for extension, wrong in broken.items():
        if wrong:
            told.append(f"{extension} breaks {len(wrong)} of its promises:")
            told += [f"  {number}. {text}" for number, text in enumerate(wrong, 1)]
    if told:
        raise ExtensionError("\n".join(told))


VERBS = {"check-extension": _check_extension}
