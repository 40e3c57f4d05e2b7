"""``perturbgen retrieve`` and ``perturbgen neighbours``: does an embedding bring together what belongs together?"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli.options import Json, listed
from perturbgen.core.console import say, show_table
from perturbgen.core.errors import ConfigError, SchemaError, shorten, suggest

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from perturbgen.retrieval import Retrieval

_Embedding = Annotated[
    Path, typer.Argument(metavar="FILE", help="An .h5ad with the embedding in obsm, or a .parquet.")
]
_Key = Annotated[
    str | None, typer.Option(help="Entry of obsm; of a parquet, how its feature columns begin.")
]
_Same = Annotated[str, typer.Option(help="Columns in which positives agree, with commas.")]
_Differ = Annotated[
    str | None, typer.Option(help="Columns in each of which they differ, with commas.")
]
_Controls = Annotated[
    str | None,
    typer.Option(
        "--controls", help="Which rows are controls, COLUMN=VALUE (default: column 'control')."
    ),
]


class _Similar(StrEnum):
    """Similarities by name."""

    COSINE = "cosine"
    CORRELATION = "correlation"
    SPEARMAN = "spearman"
    EUCLIDEAN = "euclidean"


class _Against(StrEnum):
    """Who serves as a negative."""

    OTHERS = "others"
    CONTROLS = "controls"


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("retrieve")(_retrieve)
    app.command("neighbours")(_neighbours)


def _retrieve(
    source: _Embedding,
    same: _Same,
    key: _Key = None,
    differ: _Differ = None,
    controls: _Controls = None,
    negatives: Annotated[
        _Against, typer.Option(help="Rank positives against the others, or the controls.")
    ] = _Against.OTHERS,
    negatives_same: Annotated[
        str | None, typer.Option(help="Columns in which negatives agree, e.g. the plate.")
    ] = None,
    similarity: Annotated[_Similar, typer.Option(help="How rows are compared.")] = _Similar.COSINE,
    plate: Annotated[str | None, typer.Option(help="Plate column: adds plate controls.")] = None,
    well: Annotated[
        str | None, typer.Option(help="Well-position column: adds position controls.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for the tables and the page.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    chunk: Annotated[int | None, typer.Option(min=1, help="Queries in one block.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="For shuffled labels, drawn nulls and intervals.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Rank all rows for each row and say how well it finds its own kind; exact, the row itself left out.

    Prints means by group, by query and by pair, then the controls: labels shuffled (within the plate), and with --plate
    and --well what another plate, another position, and the plate itself give. --out also writes queries.parquet,
    groups.parquet (with p-values) and report.html. Control rows take no part unless they are the negatives.

    Example: [bold]perturbgen retrieve latent.h5ad --key X_latent --same compound --differ plate --out retrieval[/bold]

    Example, is a compound unlike the vehicle on its plate: [bold]perturbgen retrieve cp.parquet --same compound
    --controls compound=DMSO --negatives controls --negatives-same plate[/bold]
    """
    import numpy as np

    from perturbgen.retrieval import controlled
    from perturbgen.retrieval import retrieve as run

    check_folder(out)
    _require_device_word(device)
    _require_named(same)
    vectors, labels = _read(source, key)
    masks = _split_controls(labels, controls, negatives, source)
    rule: dict[str, Any] = {
        "same": listed(same),
        "differ": listed(differ),
        "negatives_same": listed(negatives_same),
        **masks,
        "similarity": similarity.value,
        "device": device,
        "chunk": chunk,
        "seed": seed,
    }
    result = run(vectors, labels, **rule)
    checks = controlled(
        vectors, labels, plate=plate, well=well, rng=np.random.default_rng(seed), **rule
    )
    if as_json:
        _show_json(result, checks)
    else:
        show_table(
            tidy(result.summary(), "mean"), title=f"{source}: {rule['same']} by {similarity.value}"
        )
        show_table(tidy(checks, "variant"), title="controls")
    if out is not None:
        lead = f"{source.name}, {key or 'all features'}: rows with the same {same}, by {similarity.value}."
        _write(out, result, checks, f"Retrieval of {same}", lead, quiet=as_json)


def _neighbours(
    source: _Embedding,
    same: _Same,
    out: Annotated[Path | None, typer.Option(help="A folder for the tables.")] = None,
    key: _Key = None,
    differ: _Differ = None,
    controls: _Controls = None,
    of: Annotated[
        str | None, typer.Option(help="Show the neighbours of this value of --same only.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours of each row.")] = 10,
    similarity: Annotated[_Similar, typer.Option(help="How rows are compared.")] = _Similar.COSINE,
    as_json: Json = False,
) -> None:
    """The nearest rows of each row, and which other groups a group's neighbours belong to.

    Prints, for each group, how many of its rows' neighbours are its own, and its nearest other groups. --out writes
    neighbours.parquet (a line per row and neighbour) and groups.parquet. With --differ plate neighbours are looked for
    on other plates only.

    Example: [bold]perturbgen neighbours latent.h5ad --key X_latent --same compound --differ plate --out near[/bold]
    """
    from perturbgen.retrieval.nearest import group_neighbours, nearest, neighbour_table
    from perturbgen.retrieval.pairs import require_labels

    check_folder(out)
    _require_named(same)
    vectors, labels = _read(source, key)
    names = listed(same)
    require_labels(labels, names)
    keep = ~_control_rows(labels, controls, source) & labels[names].notna().all(axis=1).to_numpy()
    vectors, labels = vectors[keep], labels[keep]
    rows, values = nearest(vectors, labels, k=k, differ=listed(differ), similarity=similarity.value)
    table = neighbour_table(labels, rows, values, same=names)
    groups = group_neighbours(table, same=names)
    shown = (
        _neighbours_of(groups, names, of) if of is not None else _group_rows(table, groups, names)
    )
    show_table(shown, title=f"{source}: {k} nearest by {similarity.value}", as_json=as_json)
    if out is not None:
        write_parquet(out, {"neighbours": table, "groups": groups})
        if not as_json:
            say(f"wrote {out}/neighbours.parquet and groups.parquet")


def _require_named(same: str) -> None:
    """``--same`` names a column."""
    if not listed(same):
        raise ConfigError(
            "--same names no column",
            expected="columns in which positives agree",
            fix="--same compound",
        )


def _require_device_word(name: str) -> None:
    """``--device`` is a word that this verb knows; whether there is a GPU is asked later."""
    if name != "cpu" and not name.startswith("cuda"):
        raise ConfigError(f"--device {name}", expected="cpu or cuda", fix="--device cpu")


def _read(source: Path, key: str | None) -> tuple[np.ndarray, pd.DataFrame]:
    """The embedding and its labels, every row with a name of its own."""
    import numpy as np

    from perturbgen.profiles.readers import read_profiles

    profiles = read_profiles(source, key=key)
    labels = profiles.meta
    if not labels.index.is_unique:
        labels = labels.reset_index(drop=True)
    return np.asarray(profiles.values), labels


def check_folder(out: Path | None) -> None:
    """``--out`` is, or may become, a folder."""
    from perturbgen.core.files import require_writable

    if out is None:
        return
    if out.is_file():
        raise ConfigError(f"--out {out} is a file", expected="a folder", fix="choose another name")
    require_writable(out / "queries.parquet")


def _control_rows(labels: pd.DataFrame, rule: str | None, source: Path) -> np.ndarray:
    """(rows,) who is a control, by COLUMN=VALUE or the boolean column ``control``."""
    import numpy as np
    import pandas as pd

    if rule is None:
        flagged = "control" in labels and pd.api.types.is_bool_dtype(labels["control"])
        return labels["control"].to_numpy(bool) if flagged else np.zeros(len(labels), bool)
    name, separator, value = rule.partition("=")
    if not separator:
        raise ConfigError(
            f"--controls {rule!r} has no value",
            expected="COLUMN=VALUE",
            fix="--controls compound=DMSO",
        )
    if name not in labels:
        raise SchemaError(f"{source} has no column {name!r}", fix=suggest(name, labels.columns))
    found = (labels[name].astype(str) == value).to_numpy()
    if not found.any():
        values = [str(v) for v in labels[name].dropna().unique()]
        raise SchemaError(
            f"no row has {name} = {value!r}",
            expected="the name of a control",
            fix=suggest(value, values),
        )
    return found


def _split_controls(
    labels: pd.DataFrame, rule: str | None, negatives: _Against, source: Path
) -> dict[str, Any]:
    """The masks of :func:`perturbgen.retrieval.retrieve`: controls ask nothing and are nobody's positive."""
    control = _control_rows(labels, rule, source)
    masks: dict[str, Any] = {"queries": ~control, "candidates": ~control}
    if negatives is _Against.CONTROLS:
        if not control.any():
            raise SchemaError(
                f"{source} names no control row",
                expected="a boolean column 'control'",
                fix="--controls compound=DMSO",
            )
        masks["negatives"] = control
    return masks


def tidy(table: pd.DataFrame, name: str) -> list[dict[str, Any]]:
    """A table's rows, its index first, dashes for what has no value."""
    records = table.reset_index(names=name).to_dict("records")
    return [{str(k): None if v != v else v for k, v in record.items()} for record in records]


def _show_json(result: Retrieval, checks: pd.DataFrame) -> None:
    """Summary, intervals, groups and controls."""
    intervals = result.intervals()
    flat = intervals.set_axis([f"{row}, {side}" for row, side in intervals.index])
    show_table(
        [
            {
                "summary": tidy(result.summary(), "mean"),
                "intervals": tidy(flat, "mean"),
                "groups": tidy(result.groups, "group"),
                "controls": tidy(checks, "variant"),
            }
        ],
        as_json=True,
    )


def _write(
    out: Path, result: Retrieval, checks: pd.DataFrame, title: str, lead: str, *, quiet: bool
) -> None:
    """The tables and the page."""
    from perturbgen.retrieval.report import retrieval_page

    write_parquet(out, {"queries": result.queries, "groups": result.groups})
    retrieval_page(result, title=title, lead=lead, controls=checks).write(out / "report.html")
    if not quiet:
        say(f"wrote {out}/queries.parquet, groups.parquet and report.html")


def write_parquet(out: Path, tables: dict[str, pd.DataFrame]) -> None:
    """Each table under its name."""
    from perturbgen.core.files import atomic_path

    for name, table in tables.items():
        with atomic_path(out / f"{name}.parquet") as part:
            table.to_parquet(part)


def _group_rows(
    table: pd.DataFrame, groups: pd.DataFrame, names: list[str], *, most: int = 20, near: int = 3
) -> list[dict[str, Any]]:
    """A row for each of the first groups: how many of its neighbours are its own, and the nearest other groups."""
    own = table.groupby(_joined(table, names), sort=True)["agrees"].mean()
    query, other = _joined(groups, names), _joined(groups, [f"neighbour {name}" for name in names])
    rows = []
    for name in own.sort_values(ascending=False, kind="stable").index[:most]:
        here = groups[query == name].head(near)
        listed = [f"{other[i]} ({here['share'][i]:.0%})" for i in here.index]
        rows.append(
            {", ".join(names): name, "own": float(own[name]), "nearest others": "; ".join(listed)}
        )
    return rows


def _neighbours_of(
    groups: pd.DataFrame, names: list[str], of: str, *, most: int = 20
) -> list[dict[str, Any]]:
    """The nearest other groups of one group."""
    query, other = _joined(groups, names), _joined(groups, [f"neighbour {name}" for name in names])
    here = groups[query == of].head(most)
    if here.empty:
        known = query.drop_duplicates()
        raise SchemaError(
            f"no row has {', '.join(names)} = {of!r}",
            expected=f"one of {shorten(known)}",
            fix=suggest(of, known),
        )
    return [
        {
            "neighbour": other[i],
            "share": float(here["share"][i]),
            "similarity": float(here["similarity"][i]),
        }
        for i in here.index
    ]


def _joined(table: pd.DataFrame, names: list[str]) -> pd.Series:
    """The values of several columns as one text."""
    return table[names].astype(str).agg(", ".join, axis=1)
