"""Progress, tables and lines: all that the package shows on a terminal, its log aside."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from perturbgen.core.system import STOP

_T = TypeVar("_T")


class _Tick(Protocol):
    """What a progress bar offers the code that does the work."""

    def __call__(self, advance: float = 1) -> None:
        """Move the bar on."""


log = logging.getLogger(__name__)

_TRIED = 3.0  # seconds after which a forecast is worth something
_LONG = 60.0  # seconds: what takes longer is said at its start, and every half minute
_EVERY = 30.0


class _Spoken:
    """Progress in the log: how long it will take, if that is over a minute, then how far it is."""

    def __init__(self, description: str, total: float | None) -> None:
        self.description, self.total = description, total
        self.began, self.done, self.said = time.monotonic(), 0.0, 0.0
        self.first: tuple[float, float] | None = None  # when and how far the first step ended

    def __call__(self, advance: float = 1) -> None:
        STOP.check()
        self.done += advance
        spent = time.monotonic() - self.began
        waiting = spent < (self.said + _EVERY if self.said else _TRIED)
        if self.first is None:
            self.first = spent, self.done
        if waiting or not self.total or not self.done:
            return
        each = self._seconds_each(spent)
        if each is None:
            return
        left = each * max(0.0, self.total - self.done)
        if not self.said:
            if spent + left < _LONG:
                return
            log.info("%s: about %s", self.description, duration(spent + left))
        else:
            share = min(1.0, self.done / self.total)
            log.info("%s: %.0f%%, about %s left", self.description, 100 * share, duration(left))
        self.said = spent

    def _seconds_each(self, spent: float) -> float | None:
        """Seconds for each unit of work; None while only the first step is known."""
        assert self.first is not None
        began, done = self.first
        if self.done > done:
            # the first step waits for imports and compilers: of three minutes it made 41
            return (spent - began) / (self.done - done)
        return spent / self.done if spent > _LONG else None


@contextmanager
def progress(description: str, total: float | None = None) -> Iterator[_Tick]:
    """A progress bar on stderr; lines in the log where that is no terminal; with ``-q`` nothing."""
    quiet = logging.getLogger("perturbgen").getEffectiveLevel() > logging.INFO
    if quiet or not sys.stderr.isatty():
        yield _Spoken(description, None if quiet else total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)

        def tick(advance: float = 1) -> None:
            STOP.check()
            bar.advance(task, advance)

        yield tick


def track(items: Iterable[_T], description: str, total: int | None = None) -> Iterator[_T]:
    """Iterate with a progress bar."""
    if total is None and isinstance(items, Sequence):
        total = len(items)
    with progress(description, total) as tick:
        for item in items:
            yield item
            tick()


_Rows = Sequence[Mapping[str, Any]]


def show_table(rows: _Rows, *, title: str = "", as_json: bool = False) -> None:
    """Print records as a table, or as JSON for other programs, on stdout."""
    if as_json:
        sys.stdout.write(json.dumps(plain(list(rows)), indent=1, default=str) + "\n")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*(escape(str(name)) for name in (rows[0] if rows else ())), header_style="bold")
    for row in rows:
        table.add_row(*(escape(format_value(value)) for value in row.values()))
    # rich would fold to 80 columns what is piped into a file.
    console = Console(width=None if sys.stdout.isatty() else 160)
    if title:
        # Not the table's own title, which would be folded to its width, paths and all.
        console.print(title, style="italic", markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def plain(value: Any) -> Any:
    """The same values with None for what JSON cannot say: NaN and infinities."""
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def said_once(*rooms: str) -> Iterator[None]:
    """While this lasts, the log of some rooms says the same thing once and not again."""
    said: set[tuple[object, ...]] = set()

    def is_new(record: logging.LogRecord) -> bool:
        key = (record.name, record.getMessage())
        if key in said:
            return False
        said.add(key)
        return True

    # a filter hears what its own logger says, and not what those below it say
    known = list(logging.root.manager.loggerDict)
    loggers = [logging.getLogger(name) for name in known if name.startswith(rooms)]
    for logger in loggers:
        logger.addFilter(is_new)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_new)


def duration(seconds: float) -> str:
    """A time as one says it: ``40 s``, ``4 min``, ``1.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say(text: str) -> None:
    """Print a line of a command's own result on stdout."""
    sys.stdout.write(text + "\n")


def format_value(value: Any) -> str:
    """Numbers short, None as a dash, the rest as text."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
