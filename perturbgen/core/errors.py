"""What users see when something is wrong: what failed, what was expected, the cause, the fix."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class PerturbgenError(Exception):
    """A failure that explains itself."""

    exit_code = 1  # of the command line

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        cause: str | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what, self.expected, self.cause, self.fix = what, expected, cause, fix

    def __str__(self) -> str:
        lines = [("expected", self.expected), ("usual cause", self.cause), ("fix", self.fix)]
        return "\n".join([self.what, *(f"  {label:<12} {text}" for label, text in lines if text)])


class UserError(PerturbgenError):
    """Something the user gave us is wrong."""

    exit_code = 2


class InputError(UserError):
    """A file or folder is missing, unreadable, truncated, empty or of another type."""


class SchemaError(UserError):
    """The data lack a column, a category, a control, or contradict themselves."""


class CountsError(UserError):
    """A matrix that should hold raw counts does not."""


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class DesignError(UserError):
    """A statistical design cannot answer what is asked of it."""


class MissingDependencyError(PerturbgenError):
    """A library or program needed for this step is not installed."""


class ExtensionError(PerturbgenError):
    """A model, metric or baseline of somebody else breaks what all of its kind promise."""


class DownloadError(PerturbgenError):
    """A file could not be fetched, or is not what was expected; what has arrived is kept."""


class StorageError(PerturbgenError):
    """Writing failed, for instance because the disk is full; nothing half-written remains."""


def shorten(names: Iterable[object], limit: int = 5) -> str:
    """The first names, quoted, and how many more there are."""
    listed = [repr(str(name)) for name in names]
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest} more" if rest > 0 else "")


def suggest(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` or the list of what is known."""
    known = [str(k) for k in known]
    if not known:
        return "there is none to choose from"
    close = get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {shorten(known, 8)}"
