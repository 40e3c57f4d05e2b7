"""The options that several verbs share, declared once, and what is done with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from inspect import Parameter, Signature, signature
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from perturbgen.core.console import say
from perturbgen.core.errors import ConfigError, InputError
from perturbgen.core.files import protected
from perturbgen.core.runs import find_run
from perturbgen.core.system import limit_threads

if TYPE_CHECKING:
    import pandas as pd

    from perturbgen.core.config import Settings
    from perturbgen.profiles import Profiles


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if torch sees one.")]
_Threads = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads in all; by default the cores that may be used."),
]
Devices = Annotated[int, typer.Option(min=1, help="Devices (processes) on each node.")]
Seed = Annotated[
    int,
    # numpy takes no negative seed, scikit-learn and UMAP none of more than 32 bits
    typer.Option(
        min=0, max=2**32 - 1, help="Seed of everything random: the same seed gives the same result."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting, over everything else; repeatable."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is already there.")]


def found_run(path: Path | None) -> Path | None:
    """What every option and argument that names a run takes: runs/latest is one, too."""
    return None if path is None else find_run(path)


_A_RUN = "A run directory, or runs/latest, or runs/latest-NAME"
RunFolder = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help=f"{_A_RUN}: what train made.", show_default=False, callback=found_run
    ),
]
Resume = Annotated[
    Path | None, typer.Option(help="Go on with this run, e.g. runs/latest.", callback=found_run)
]
Runs = Annotated[Path, typer.Option(help="Where the run directory is made.")]

# what a file of counts calls things
Columns = Annotated[Path | None, typer.Option(help="TOML that maps the file's columns to ours.")]
Layer = Annotated[
    str | None,
    typer.Option(help="Layer of the h5ad: the raw counts ('raw' is .raw), if they are not in X."),
]
Config = Annotated[Path | None, typer.Option(help="TOML file of settings, over the preset.")]
Conditions = Annotated[
    Path,
    typer.Option(help="The conditions to predict: id_map.csv, or a csv of cell_type and compound."),
]
Vehicle = Annotated[
    str | None, typer.Option(help="The compound which all others are compared with.")
]


# parameters that name what a verb writes; every other path is read
_WRITTEN = {"out", "plots", "picture", "calibration_out", "runs"}


# verbs that are called something else, and how
_RENAMED_VERBS = {
    "check": "check-submission (of a submission), or data check (of counts)",
    "baselines": "baseline (without a name it lists them; with a name alone, what can be set)",
}


# options that are called something else: one name for one thing, and no two for the same
_RENAMED = {
    "--accelerator": "--device",
    "--baseline": "--means",
    "--conditions": "--strata",
    "--config": "CONFIG.toml as an argument",
    "--control": "--controls",
    "--data": "FOLDER as an argument",
    "--genes": "--landmarks",
    "--layout": "--plan",
    "--most": "--top",
    "--page": "--plots",
    "--reference": "--train",
    "--statistics": "--norm",
}


class _Group(TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in self.commands and name in _RENAMED_VERBS and ctx.parent is None:
            raise ConfigError(
                f"there is no verb {name!r}", fix=f"perturbgen {_RENAMED_VERBS[name]}"
            )
        return super().resolve_command(ctx, args)


class Verbs(typer.Typer):
    """Verbs by name, or groups of more; none writes over what it reads.

    ``panels`` names the panel of ``--help`` in which a verb stands.
    """

    def __init__(
        self, verbs: Mapping[str, Any], panels: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        super().__init__(cls=_Group, no_args_is_help=True, **options)
        for name, verb in verbs.items():
            panel = panels[name] if panels else None
            if isinstance(verb, Verbs):
                self.add_typer(verb, name=name, rich_help_panel=panel)
            else:
                limited = verb if name in _IDLE else _with_threads(verb)
                self.command(name, cls=_Verb, rich_help_panel=panel)(limited)


# verbs that compute nothing worth a thread
_IDLE = {"board", "doctor", "get", "list"}


class _Verb(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # a shell makes an empty word of a variable that is not set; as a path it would be "."
        for option, value in pairwise(args):
            if not value and option.lstrip("-").replace("-", "_") in _WRITTEN:
                raise InputError(f"{option} is empty", expected="a name", fix=f"{option} NAME")
        self._tell_renamed(args)
        return super().parse_args(ctx, args)

    def _tell_renamed(self, args: list[str]) -> None:
        """An old option is told by its new name."""
        own = {name for one in self.params for name in (*one.opts, *one.secondary_opts)}
        taken = own | {one.metavar for one in self.params}
        for option in args:
            new = _RENAMED.get(option.partition("=")[0])
            if new and option.partition("=")[0] not in own and new.split()[0] in taken:
                raise ConfigError(f"there is no {option.partition('=')[0]} here", fix=new)

    def invoke(self, ctx: Any) -> Any:
        with protected(_inputs(ctx.params)):
            return super().invoke(ctx)


def _with_threads(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb with ``--threads``, which hold for all libraries and for the processes it starts."""

    @wraps(verb)
    def limited(*args: Any, threads: int | None, **options: Any) -> None:
        limit_threads(threads)
        verb(*args, **options)

    # typer reads the options of a verb from its signature; names are resolved where it stands
    hints = {**get_type_hints(verb, include_extras=True), "threads": _Threads}
    last = Parameter("threads", Parameter.KEYWORD_ONLY, default=None)
    given = [*signature(verb).parameters.values(), last]
    own = Signature([part.replace(annotation=hints[part.name]) for part in given])
    limited.__signature__ = own  # type: ignore[attr-defined]
    limited.__annotations__ = hints
    return limited


def _inputs(parameters: Mapping[str, Any]) -> Iterator[Path]:
    """The paths among the values that a verb was given, those in NAME=FILE,FILE as well."""
    for name, given in parameters.items():
        if name in _WRITTEN:
            continue
        if isinstance(given, Path):
            yield given
        for value in given if isinstance(given, list | tuple) else []:
            yield from map(Path, filter(None, str(value).rpartition("=")[2].split(",")))


def listed(text: str | None) -> list[str]:
    """The names between the commas of an option."""
    # what stands after a last comma names nothing
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def check_folder(out: Path | None) -> None:
    """``--out`` is, or may become, a folder that can be written."""
    from perturbgen.core.files import require_writable

    if out is None:
        return
    if out.is_file():
        raise ConfigError(f"--out {out} is a file", expected="a folder", fix="choose another name")
    # told before hours of work; which file is tried does not matter
    require_writable(out / "queries.parquet")


def show_settings(settings: Settings, *, as_json: bool = False) -> None:
    """What ``--dry-run`` prints: TOML that can be saved and run, or JSON."""
    import json

    say(json.dumps(settings.model_dump(mode="json"), indent=1) if as_json else settings.to_toml())


def records(table: pd.DataFrame, name: str) -> list[dict[str, Any]]:
    """A table's rows, its index first under ``name``, None for what has no value."""
    rows = table.reset_index(names=name).to_dict("records")
    # NaN alone differs from itself, and JSON has none
    return [{str(k): None if v != v else v for k, v in row.items()} for row in rows]


def write_predictions(values: pd.DataFrame, path: Path) -> None:
    """A parquet file of cell_type, sm_name and the genes, which reads as de_train.parquet does."""
    from perturbgen.core.export import write_table

    # the competition's words, which submit, score and other programs read
    write_table(values.rename_axis(["cell_type", "sm_name"]).reset_index(), path)


@contextmanager
def opened_profiles(source: Path, key: str | None = None) -> Iterator[Profiles]:
    """Profiles of an L1000 matrix, a known set of images, or a table, h5ad or folder of either.

    ``key`` says which entry of an h5ad, or how the feature columns of a table begin.
    """
    if source.suffix in (".gctx", ".gct"):
        from perturbgen.l1000 import read_plate
        from perturbgen.profiles import Profiles

        yield Profiles.from_anndata(read_plate(source), str(source))
    else:
        from perturbgen.images import opened

        with opened(source, key=key) as profiles:
            yield profiles
