"""The command line: a file has the VERBS of a noun; this one turns errors into exit codes."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from perturbgen import __version__
from perturbgen.cli import (
    baselines,
    data,
    doctor,
    extensions,
    generate,
    images,
    init,
    l1000,
    predict,
    retrieve,
    score,
    score_cells,
    simulate,
    submit,
    tables,
    train,
)
from perturbgen.cli.options import Verbs
from perturbgen.core.errors import PerturbgenError
from perturbgen.core.system import STOP

# as shells do; 130 is also what typer exits with on Ctrl-C
_STOPPED = {130: "interrupted", 143: "ended by SIGTERM"}

_NOUNS = (
    doctor,
    init,
    data,
    simulate,
    tables,
    train,
    generate,
    predict,
    baselines,
    score,
    score_cells,
    retrieve,
    submit,
    l1000,
    images,
    extensions,
)
_VERBS = {name: verb for noun in _NOUNS for name, verb in noun.VERBS.items()}
# the panels of --help, and their order
_PANELS = {
    "Prepare": "init ingest data simulate pseudobulk de split",
    "Train": "train board encode samplers",
    "Predict": "generate predict baseline ensemble submit check-submission",
    "Judge": "evaluate score score-cells compare",
    "Profiles and images": "retrieve neighbours l1000 images",
    "Tools": "doctor check-extension",
}
_PANEL_OF = {name: panel for panel, names in _PANELS.items() for name in names.split()}
_app = Verbs(
    {name: _VERBS[name] for name in _PANEL_OF},
    _PANEL_OF,
    name="perturbgen",
    help="What will this perturbation do to these cells, and how sure can we be?",
    rich_markup_mode="rich",
    # an error that we did not foresee shows Python's own traceback, whole
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"perturbgen {__version__}\n")
        raise typer.Exit


@_app.callback()
def _common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Nothing but results and errors.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options of every command."""
    _setup_logging(-1 if quiet else int(verbose))


def main() -> NoReturn:
    """Run the command line; exit code 2 is a user's mistake, 1 a failure, 130 an interrupt."""
    _begin()
    sys.exit(_run())


def run_experiment(command: Callable[..., None]) -> NoReturn:
    """Make a function the main program of an experiment, with the errors of the command line."""
    _begin()
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command()(command)
    sys.exit(_run(program=program))


def _begin() -> None:
    """What a program does, and a test that calls verbs does not."""
    STOP.listen()
    for stream in (sys.stdout, sys.stderr):
        # a terminal whose code page lacks a letter shows its number, and not an error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Python's warnings are for callers of libraries; -W or PYTHONWARNINGS bring them back
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _run(arguments: list[str] | None = None, program: Callable[..., object] | None = None) -> int:
    """The exit code of the command line, or of another program of typer's; no traceback."""
    if sys.stdout is None:  # closed (>&-): the next file opened would be taken for it
        if sys.stderr is not None:
            sys.stderr.write(
                "OSError: standard output is closed; to see no results, send them to /dev/null\n"
            )
        return 1
    _setup_logging()
    try:
        (program or _app)(args=arguments)
    except SystemExit as stop:
        if stop.code in _STOPPED:
            word = _STOPPED[int(stop.code)]
            sys.stderr.write(f"{word}; nothing half-written is left under a final name\n")
        return int(stop.code or 0)
    except PerturbgenError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    except OSError as error:  # a full disk, no permission: what failed is the system's own words
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"{type(error).__name__}: {where}{error.strerror or error}\n")
        return 1
    except MemoryError as error:
        sys.stderr.write(f"MemoryError: {str(error) or 'not enough memory'}\n")
        return 1
    return 0


def _setup_logging(verbosity: int = 0) -> None:
    """Send the package's log to stderr: -1 quiet (errors), 0 normal (info), 1 verbose (debug)."""
    level = {-1: logging.ERROR, 0: logging.INFO}.get(verbosity, logging.DEBUG)
    handler = _log_handler(show_level=verbosity > 0)
    logger = logging.getLogger("perturbgen")
    # Replaced, not added: a process that sets it up twice must not say everything twice.
    logger.handlers[:] = [handler]
    logger.setLevel(level)


def _log_handler(*, show_level: bool) -> logging.Handler:
    if not sys.stderr.isatty():
        # A message stays on one line, fit for grep; rich would fold it.
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(
            logging.Formatter("%(levelname)-8s %(message)s" if show_level else "%(message)s")
        )
        return handler
    from rich.console import Console
    from rich.logging import RichHandler

    return RichHandler(
        console=Console(stderr=True), show_time=False, show_path=False, show_level=show_level
    )
