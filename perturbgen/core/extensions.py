"""What others bring: models, metrics and baselines, by the names that packages give them.

An installed package names what it has as entry points, in its pyproject.toml:

    [project.entry-points."perturbgen.metrics"]
    gene_sign = "my_package:GENE_SIGN"

Anything else, a file in the working directory included, goes by ``module:Object`` wherever the name
of something built in is taken. What an extension breaks ends in an error that names it.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, reduce
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from textwrap import fill
from types import ModuleType
from typing import Any, Final, TypeVar

from pydantic import create_model

from perturbgen.core.config import Settings
from perturbgen.core.errors import ConfigError, ExtensionError, PerturbgenError, suggest

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

GROUPS: Final = {
    "model": "perturbgen.models",
    "metric": "perturbgen.metrics",
    "baseline": "perturbgen.baselines",
}
_LISTED_BY: Final = {
    "model": "perturbgen check-extension lists what is installed",
    "metric": "perturbgen check-extension lists what is installed",
    "baseline": "perturbgen baseline lists them",
}


@dataclass(frozen=True)
class Extension:
    """Something of somebody else: ``where`` it is (``module:Object``), and how it is asked for.

    ``package`` is the distribution that names it, empty where it was asked for by its place.
    """

    kind: str
    name: str
    where: str
    package: str = ""

    def __str__(self) -> str:
        place = f" of {self.package}" if self.package else ""
        also = f" ({self.where})" if self.name != self.where else ""
        return f"the {self.kind} {self.name!r}{also}{place}"

    def load(self) -> Any:
        """The object; an error that names the extension where it cannot be had."""
        return _load(self)

    @property
    def code(self) -> str:
        """A hash of its sources: results that are kept are never those of other code."""
        self.load()
        top = sys.modules[self.where.partition(":")[0].partition(".")[0]]
        files = [Path(top.__file__)] if top.__file__ else []
        if hasattr(top, "__path__"):
            files = sorted(path for root in top.__path__ for path in Path(root).rglob("*.py"))
        found = hashlib.sha256(self.where.encode())
        for path in files:
            found.update(path.read_bytes())
        return found.hexdigest()[:24]

    def broken(self, what: str, *, expected: str = "", cause: str = "") -> ExtensionError:
        """The error that says what it broke."""
        return ExtensionError(
            f"{self} {what}",
            expected=expected or None,
            cause=cause or None,
            fix=f"perturbgen check-extension {self.name} says what else, to its author",
        )

    @contextmanager
    def blamed(self, what: str) -> Iterator[None]:
        """Any failure inside is the extension's: ``what`` it did when it failed."""
        try:
            yield
        except PerturbgenError:
            raise  # it explains itself
        except (Exception, SystemExit) as error:
            _log.debug("%s failed", self, exc_info=True)  # its author asks with --verbose
            words = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise self.broken(f"{what}: {words}{self._line_of(error)}") from error

    def _line_of(self, error: BaseException) -> str:
        """Where in the extension's own files it went wrong; its author looks there first."""
        top = self.where.partition(":")[0].partition(".")[0]
        frames = traceback.extract_tb(error.__traceback__)
        own = [
            frame
            for frame in frames
            if top in {*Path(frame.filename).parts, Path(frame.filename).stem}
        ]
        return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


class Catalogue(Mapping[str, _T]):
    """All there is of one kind, by name: built in, installed, or asked for as ``module:Object``.

    ``adopt`` makes of an extension what the built-ins are. One that cannot be had is an error where
    it is asked for, and a warning where all are gone through.
    """

    def __init__(
        self, kind: str, built_in: Mapping[str, _T], adopt: Callable[[Extension], _T]
    ) -> None:
        self.kind, self.built_in, self._adopt = kind, built_in, adopt
        self._adopted: dict[Extension, _T] = {}
        self._told: set[str] = set()

    def __getitem__(self, name: str) -> _T:
        if name in self.built_in:
            return self.built_in[name]
        extension = self.extension(name)
        if extension not in self._adopted:
            self._adopted[extension] = self._adopt(extension)
        return self._adopted[extension]

    def __iter__(self) -> Iterator[str]:
        yield from self.built_in
        for name in _named_in(self.kind):
            try:
                self._own_name(name)
                self[name]
            except PerturbgenError as error:
                if name not in self._told:  # once: a comparison goes through all of them often
                    _log.warning("%s; it is left out", error.what)
                    self._told.add(name)
            else:
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        brought = [name for name in self if name not in self.built_in]
        more = f", and from other packages {', '.join(brought)}" if brought else ""
        return fill(f"{len(self.built_in)} {self.kind}s: {', '.join(self.built_in)}{more}", 96)

    def __contains__(self, name: object) -> bool:
        return any(name == known for known in self)

    def extension(self, name: str) -> Extension:
        """The extension of a name; a name that nobody, or more than one, has is an error."""
        module, colon, place = name.partition(":")
        if colon:
            if not (module and place):
                raise ConfigError(f"{name!r} names no {self.kind}", expected="module:Object")
            return Extension(self.kind, name, name)
        found = _named_in(self.kind).get(name)
        if not found:
            raise ConfigError(
                f"there is no {self.kind} {name!r}: {suggest(name, self)}",
                fix=f"{_LISTED_BY[self.kind]}; module:Object names one of your own",
            )
        return self._own_name(name)

    def _own_name(self, name: str) -> Extension:
        """The one extension that has this entry point, which nothing built in has."""
        found = _named_in(self.kind)[name]
        fix = f"ask for it by its place: {found[0].where}"
        if name in self.built_in:
            raise ConfigError(f"{found[0]} has the name of a {self.kind} that is built in", fix=fix)
        if len(found) > 1:
            raise ConfigError(
                f"the {self.kind} {name!r} is named by {' and by '.join(e.package for e in found)}",
                fix=fix,
            )
        return found[0]


def installed(kind: str) -> list[Extension]:
    """All entry points of one kind, those that clash and those that are broken included."""
    return [extension for same in _named_in(kind).values() for extension in same]


def settings_of(
    call: Callable[..., Any], *, without: Iterable[str] = (), only_keywords: bool = False
) -> type[Settings]:
    """Settings that are the parameters which a class or function is called with."""
    fields: dict[str, Any] = {}
    for name, about in inspect.signature(call).parameters.items():
        alone = about.kind is about.KEYWORD_ONLY
        if name not in without and (
            alone or (about.kind is about.POSITIONAL_OR_KEYWORD and not only_keywords)
        ):
            fields[name] = (Any, ... if about.default is about.empty else about.default)
    return create_model("Settings", __base__=Settings, **fields)


@lru_cache
def _named_in(kind: str) -> dict[str, list[Extension]]:
    """The entry points of one kind by name, in order of name."""
    found: dict[str, list[Extension]] = {}
    for point in sorted(
        entry_points(group=GROUPS[kind]), key=lambda point: (point.name, point.value)
    ):
        extension = Extension(kind, point.name, _place(point), _package(point))
        # A distribution that lies on the path twice is one.
        if extension not in found.setdefault(point.name, []):
            found[point.name].append(extension)
    return found


def _place(point: EntryPoint) -> str:
    return point.value.partition("[")[0].replace(" ", "")


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "a package without a name"


@lru_cache
def _load(extension: Extension) -> Any:
    name, _, place = extension.where.partition(":")
    with extension.blamed("cannot be imported"):
        module = _module(name)
    if module is None:
        raise ConfigError(
            f"{extension}: there is no module {name!r}",
            expected="an installed package, or a file in the working directory",
            fix=f"run where {name.partition('.')[0]}.py is, or install its package",
        )
    try:
        return reduce(getattr, place.split("."), module)
    except AttributeError:
        # What it imports is not its own.
        known = [
            key
            for key, value in vars(module).items()
            if key[0] != "_"
            and not isinstance(value, ModuleType)
            and getattr(value, "__module__", name) in (name, type(value).__module__)
        ]
        raise ConfigError(
            f"{extension}: {name} has no {place!r}: {suggest(place, known)}"
        ) from None


def _module(name: str) -> ModuleType | None:
    """The module; a file in the working directory comes after all that is installed."""
    for _ in range(2):
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            # Another one that the extension itself lacks is its own failure.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            if os.getcwd() in sys.path:
                break
            # As a program of its own would see it; the console script has its folder there instead.
            sys.path.append(os.getcwd())
    return None
