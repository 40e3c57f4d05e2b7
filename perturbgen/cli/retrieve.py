"""``perturbgen retrieve`` and ``neighbours``: does an embedding bring like things together?"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli.options import (
    Device,
    Json,
    Seed,
    check_folder,
    listed,
    opened_profiles,
    records,
)
from perturbgen.core.console import say, show_table
from perturbgen.core.errors import ConfigError, SchemaError, shorten, suggest
from perturbgen.core.export import write_table
from perturbgen.core.files import staged
from perturbgen.core.system import choose_device

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_Embedding = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="An .h5ad with the embedding in obsm, a parquet or csv, or profiles."
    ),
]
_Key = Annotated[
    str | None,
    typer.Option(
        help="Entry of obsm, of the embedding; of a parquet, how its feature columns begin."
    ),
]
_Same = Annotated[str, typer.Option(help="Columns in which positives agree, with commas.")]
_Differ = Annotated[
    str | None, typer.Option(help="Columns in each of which they differ, with commas.")
]
_Controls = Annotated[
    str | None,
    typer.Option(
        "--controls", help="Which rows are controls: COLUMN=VALUE (default: column 'control')."
    ),
]


class _Similar(StrEnum):
    """Similarities by name."""

    COSINE = "cosine"
    CORRELATION = "correlation"
    SPEARMAN = "spearman"
    EUCLIDEAN = "euclidean"


class _Against(StrEnum):
    """What serves as negatives."""

    OTHERS = "others"
    CONTROLS = "controls"


_Similarity = Annotated[_Similar, typer.Option(help="How rows are compared.")]


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
    similarity: _Similarity = _Similar.COSINE,
    plate: Annotated[
        str | None, typer.Option(help="The column of plates: adds plate controls.")
    ] = None,
    well: Annotated[
        str | None, typer.Option(help="The column of wells: adds position controls.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Output: a folder for the tables and the page.")
    ] = None,
    device: Device = "cpu",
    chunk: Annotated[int | None, typer.Option(min=1, help="Queries in one block.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Rank all other rows for each row and say how well it finds its own kind, exactly (to see
    which rows are near: neighbours).

    Prints means by group, by query and by pair, then the controls: labels shuffled (within the
    plate), and with --plate and --well what another plate, another position, and the plate itself
    give. --out also writes queries.parquet, groups.parquet (with p-values) and report.html. Control
    rows take no part unless they are the negatives.

    Example: [bold]perturbgen retrieve latent.h5ad --key X_latent --same compound --differ plate
    --out retrieval[/bold]

    Example, is a compound unlike the vehicle on its plate: [bold]perturbgen retrieve cp.parquet
    --same compound --controls compound=DMSO --negatives controls --negatives-same plate[/bold]
    """
    import numpy as np

    from perturbgen.retrieval import controlled
    from perturbgen.retrieval import retrieve as run

    check_folder(out)
    # whether there is a GPU is asked later: first the word, before a large file is read
    if device not in ("auto", "cpu") and not device.startswith("cuda"):
        raise ConfigError(f"--device {device}", expected="auto, cpu or cuda", fix="--device cpu")
    device = choose_device() if device == "auto" else device
    # before the file is read, which may take minutes
    names = _require_named(same)
    vectors, labels = _read(source, key)
    rule: dict[str, Any] = {
        "same": names,
        "differ": listed(differ),
        "negatives_same": listed(negatives_same),
        **_split_controls(labels, controls, negatives, source),
        "similarity": similarity.value,
        "device": device,
        "chunk": chunk,
        "seed": seed,
    }
    result = run(vectors, labels, **rule)
    rng = np.random.default_rng(seed)
    checks = controlled(vectors, labels, plate=plate, well=well, rng=rng, **rule)
    if as_json:
        intervals = result.intervals()
        flat = intervals.set_axis([f"{row}, {side}" for row, side in intervals.index])
        everything = {
            "summary": records(result.summary(), "mean"),
            "intervals": records(flat, "mean"),
            "groups": records(result.groups, "group"),
            "controls": records(checks, "variant"),
        }
        show_table([everything], as_json=True)
    else:
        title = f"{source}: {names} by {similarity.value}"
        show_table(records(result.summary(), "mean"), title=title)
        show_table(records(checks, "variant"), title="controls")
    if out is not None:
        from perturbgen.retrieval import retrieval_page

        features = key or "all features"
        lead = f"{source.name}, {features}: rows with the same {same}, by {similarity.value}."
        page = retrieval_page(result, title=f"Retrieval of {same}", lead=lead, controls=checks)
        with staged(out) as folder:
            write_table(result.queries, folder / "queries.parquet", index=None)
            write_table(result.groups, folder / "groups.parquet", index=None)
            page.write(folder / "report.html")
        if not as_json:
            say(f"wrote {out}/queries.parquet, groups.parquet and report.html")


def _list_neighbours(
    source: _Embedding,
    same: _Same,
    out: Annotated[Path | None, typer.Option(help="Output: a folder for the tables.")] = None,
    key: _Key = None,
    differ: _Differ = None,
    controls: _Controls = None,
    of: Annotated[
        str | None, typer.Option(help="Whose neighbours: a value of --same; else of all.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours of each row.")] = 10,
    similarity: _Similarity = _Similar.COSINE,
    as_json: Json = False,
) -> None:
    """The nearest rows of each row of an embedding in a file (of a trained embedder: l1000
    neighbours), and which other groups a group's neighbours belong to.

    Prints, for each group, how many of its rows' neighbours are its own, and its nearest other
    groups. --out writes neighbours.parquet (a line per row and neighbour) and groups.parquet. With
    --differ plate neighbours are looked for on other plates only.

    Example: [bold]perturbgen neighbours latent.h5ad --key X_latent --same compound --differ plate
    --out near[/bold]
    """
    from perturbgen.retrieval import group_neighbours, nearest, neighbour_table, require_labels

    check_folder(out)
    names = _require_named(same)
    vectors, labels = _read(source, key)
    require_labels(labels, names)
    # controls take no part, and a row without a label belongs to no group
    keep = ~_control_rows(labels, controls, source) & labels[names].notna().all(axis=1).to_numpy()
    vectors, labels = vectors[keep], labels[keep]
    rows, values = nearest(vectors, labels, k=k, differ=listed(differ), similarity=similarity.value)
    table = neighbour_table(labels, rows, values, same=names)
    groups = group_neighbours(table, same=names)
    if of is None:
        shown = _own_and_nearest(table, groups, names)
    else:
        shown = _neighbours_of(groups, names, of)
    show_table(shown, title=f"{source}: {k} nearest by {similarity.value}", as_json=as_json)
    if out is not None:
        with staged(out) as folder:
            write_table(table, folder / "neighbours.parquet", index=None)
            write_table(groups, folder / "groups.parquet", index=None)
        if not as_json:
            say(f"wrote {out}/neighbours.parquet and groups.parquet")


def _require_named(same: str) -> list[str]:
    """The columns of ``--same``, one at least."""
    names = listed(same)
    if not names:
        raise ConfigError(
            "--same names no column",
            expected="columns in which positives agree",
            fix="--same compound",
        )
    return names


def _read(source: Path, key: str | None) -> tuple[np.ndarray, pd.DataFrame]:
    """The embedding and its labels, every row with a name of its own."""
    import numpy as np

    with opened_profiles(source, key) as profiles:
        labels, values = profiles.meta, profiles.values
        # streamed embeddings are gone when they are closed
        values = np.array(values) if isinstance(values, np.memmap) else values
    # tables of neighbours name rows, which must then mean one each
    if not labels.index.is_unique:
        labels = labels.reset_index(drop=True)
    return values, labels


def _control_rows(labels: pd.DataFrame, rule: str | None, source: Path) -> np.ndarray:
    """Which rows are controls, by COLUMN=VALUE or the boolean column ``control``."""
    import numpy as np
    import pandas as pd

    if rule is None:
        # a column of that name may say something else: only one of truth values is taken
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
    # what is typed is text, whatever the column holds
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
    """The masks of ``retrieve``: controls are neither queries nor positives."""
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


def _own_and_nearest(
    table: pd.DataFrame, groups: pd.DataFrame, names: list[str], *, most: int = 20, near: int = 3
) -> list[dict[str, Any]]:
    """For the first groups: the share of neighbours of their own, and the nearest others."""
    own = table.groupby(_joined(table, names), sort=True)["agrees"].mean()
    query, other = _joined(groups, names), _joined(groups, [f"neighbour {name}" for name in names])
    rows: list[dict[str, Any]] = []
    # stable: equal shares stay in the order of names
    for name in own.sort_values(ascending=False, kind="stable").index[:most]:
        here = groups[query == name].head(near)
        nearest = "; ".join(f"{other[i]} ({here['share'][i]:.0%})" for i in here.index)
        rows.append({", ".join(names): name, "own": float(own[name]), "nearest others": nearest})
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
    columns = (other[here.index], here["share"], here["similarity"])
    return [
        {"neighbour": name, "share": float(share), "similarity": float(similarity)}
        for name, share, similarity in zip(*columns, strict=True)
    ]


def _joined(table: pd.DataFrame, names: list[str]) -> pd.Series:
    """The values of several columns as one text."""
    return table[names].astype(str).agg(", ".join, axis=1)


VERBS = {"retrieve": _retrieve, "neighbours": _list_neighbours}
