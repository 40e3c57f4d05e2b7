"""The API reference: a page for each room, with what its face has; texts are the docstrings'."""

from __future__ import annotations

import inspect
import types
from importlib import import_module
from typing import Any

import perturbgen


def pages() -> dict[str, str]:
    """The pages of the reference: names of files and their text."""
    rooms = list(perturbgen._FACE)
    written = {f"{room}.rst": _page(room) for room in rooms}
    rows = [f"| [`perturbgen.{room}`]({room}.rst) | {_sentence(room)} |" for room in rooms]
    toctree = "\n".join(rooms)
    written["index.md"] = _INDEX.format(rows="\n".join(rows), toctree=toctree, top=_top())
    return written


_INDEX = """# Python

`import perturbgen as pg` has the names that a script needs most; a room has more behind its own
door. Modules below a room (`perturbgen.data.splits`) are not part of the interface and may move.

| room | what is in it |
|---|---|
{rows}

## At the top

{top}

:::{{toctree}}
:hidden:

{toctree}
:::
"""


def names(room: str) -> list[str]:
    """The public names of a room's face that are ours, functions and classes first."""
    module = import_module(f"perturbgen.{room}")
    found = {name: value for name, value in vars(module).items() if _is_ours(name, value, room)}
    return sorted(found, key=lambda name: _is_constant(found[name]))


def _is_ours(name: str, value: Any, room: str) -> bool:
    if name.startswith("_") or isinstance(value, types.ModuleType):
        return False
    home = getattr(value, "__module__", None) or ""
    if _is_constant(value):
        # what typing and __future__ put into a room that is one file
        foreign = home.startswith(("typing", "__future__", "collections")) and name not in _TYPES
        return not foreign and name != "TYPE_CHECKING"
    whole = import_module(f"perturbgen.{room}")
    if hasattr(whole, "__path__"):
        return home.startswith("perturbgen")
    # a room of one file has imports of its own
    return home == whole.__name__


# names of types that several rooms share
_TYPES = {"Route", "Estimator", "Measure"}


def _is_constant(value: Any) -> bool:
    return not (inspect.isroutine(value) or inspect.isclass(value))


def _page(room: str) -> str:
    module = import_module(f"perturbgen.{room}")
    title = f"perturbgen.{room}"
    parts = [title, "=" * len(title), "", f".. py:module:: {title}", "", _text(module), ""]
    for name in names(room):
        value = getattr(module, name)
        if _is_constant(value):
            parts += [f".. py:data:: {name}", ""]
            parts += [f"   {line}" for line in _shown(value)]
        elif inspect.isclass(value):
            parts += [f".. autoclass:: {title}.{name}", "   :members:"]
        else:
            parts += [f".. autofunction:: {title}.{name}"]
        parts.append("")
    return "\n".join(parts)


def _shown(value: Any) -> list[str]:
    """What a constant is, where that is short."""
    text = repr(dict(value)) if isinstance(value, types.MappingProxyType) else repr(value)
    text = text.replace("typing.", "")
    if len(text) > 300 or " at 0x" in text:
        return [f"A table of {len(value)} entries." if hasattr(value, "__len__") else "An object."]
    return [f"``{text}``"]


def _text(module: types.ModuleType) -> str:
    return escape(inspect.getdoc(module) or "")


def _sentence(room: str) -> str:
    text = (inspect.getdoc(import_module(f"perturbgen.{room}")) or "").split("\n\n")[0]
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def _top() -> str:
    rows = [
        f"| `pg.{name}` | [`perturbgen.{room}`]({room}.rst) |"
        for name, room in perturbgen._ROOM_OF.items()
    ]
    return "\n".join(["| name | room |", "|---|---|", *rows])


def escape(text: str) -> str:
    """A docstring as reStructuredText: ``literals``, lists, examples, and otherwise plain text."""
    lines: list[str] = []
    literal = False
    for line in text.split("\n"):
        if literal and line.strip() and not line.startswith(" "):
            literal = False
        bullet = line.lstrip().startswith("* ")
        if bullet and lines and lines[-1].strip() and not literal:
            lines.append("")  # a list begins after an empty line
        example = line.lstrip().startswith((">>>", "..."))
        if literal or example:
            lines.append(line)
        elif bullet:
            indent = line[: line.index("*") + 2]
            lines.append(indent + _escape_line(line.removeprefix(indent)))
        else:
            lines.append(_escape_line(line))
        literal = literal or line.rstrip().endswith("::")
    return "\n".join(lines)


def _escape_line(line: str) -> str:
    pieces = line.split("``")
    for at in range(0, len(pieces), 2):
        for mark in "\\*|`":
            pieces[at] = pieces[at].replace(mark, "\\" + mark)
        # a word that ends in an underscore would be a link
        pieces[at] = pieces[at].replace("_ ", "\\_ ")
    return "``".join(pieces)
