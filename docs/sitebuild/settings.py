"""The settings of every configuration, written from the classes that read them."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from perturbgen.compare import CompareSettings
from perturbgen.core.config import Settings
from perturbgen.data.h5ad import _ColumnMap
from perturbgen.generate.forest import SamplerSettings
from perturbgen.images.network.settings import ImageSettings
from perturbgen.l1000.embedder.settings import EmbedSettings
from perturbgen.simulation import SimulationSettings
from perturbgen.simulation.screen.world import ScreenSettings
from perturbgen.train import RunSettings
from sitebuild.tables import markdown_cell

_ROOTS: dict[str, tuple[type[Settings], str]] = {
    "A column map": (_ColumnMap, "`--columns MAP.toml`, and what `perturbgen init` writes."),
    "perturbgen train": (RunSettings, "A model of cells."),
    "perturbgen samplers": (SamplerSettings, "Forests of cell numbers and depths."),
    "perturbgen compare": (CompareSettings, "Methods, splits, and how they are scored."),
    "perturbgen simulate": (SimulationSettings, "The defaults are those before any preset."),
    "perturbgen l1000 simulate": (ScreenSettings, "The defaults are those before any preset."),
    "perturbgen l1000 train": (EmbedSettings, "A network on L1000 profiles."),
    "perturbgen images train": (ImageSettings, "A network on microscope images."),
}
_HEAD = """# Settings

What a configuration (TOML) may say, section by section, with the defaults. Every setting can also
be given on the command line: `--set section.name=value`. `--dry-run` prints a whole configuration
as it was understood; a name that does not exist is refused, with the nearest that does.
"""


def pages() -> dict[str, str]:
    """The page: its name and its text."""
    parts = [_HEAD]
    for title, (root, about) in _ROOTS.items():
        parts += [f"## {title}\n", f"{about}\n", *_sections(root, "", {})]
    return {"settings.md": "\n".join(parts)}


def _sections(kind: type[Settings], path: str, given: dict[str, Any]) -> Iterator[str]:
    """A table of a section's own values, then the sections within it.

    ``given`` are values that the section above has in place of the defaults.
    """
    comments, rows, below = _comments(kind), [], []
    for name, field in kind.model_fields.items():
        inner, many = _inner(field.annotation)
        if inner is not None:
            preset = None if many or field.is_required() else field.default
            place = ".".join(filter(None, (path, name, "NAME" * many)))
            below.append((inner, place, dict(preset) if isinstance(preset, Settings) else {}))
            continue
        value = given.get(name, field.get_default(call_default_factory=True))
        default = "required" if field.is_required() else _value(value)
        text = _markdown(field.description or comments.get(name, ""))
        rows.append(f"| `{name}` | {_type(field.annotation)} | {default} | {text} |")
    if path:
        yield f"**`[{path}]`**\n"
        yield _markdown(inspect.cleandoc(kind.__doc__ or "")) + "\n"
    if rows:
        yield "\n".join(["| setting | value | default | |", "|---|---|---|---|", *rows, ""])
    for section in below:
        yield from _sections(*section)


def _inner(annotation: Any) -> tuple[type[Settings] | None, bool]:
    """The section that a field is, and whether there may be many of them, each with a name."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation, False
    for part in get_args(annotation):
        inner, _ = _inner(part)
        if inner is not None:
            return inner, get_origin(annotation) is dict
    return None, False


def _value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple | list):
        value = list(value)
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"`{text.replace(chr(39), chr(34))}`" if len(text) < 60 else "(long)"


def _markdown(text: str) -> str:
    return markdown_cell(text.replace("``", "`"))


_WORDS = {"int": "number", "float": "number", "str": "text", "Path": "path", "bool": "true, false"}


def _type(annotation: Any) -> str:
    """In words: the choices of a literal, a number, a text, a list."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) in (tuple, list):
        return f"list of {_type(get_args(annotation)[0])}s"
    parts = [part for part in get_args(annotation) if not hasattr(part, "gt")]
    if get_origin(annotation) is dict:
        return "table"
    if parts and not isinstance(annotation, type):
        found = [_type(part) for part in parts if isinstance(part, type) or get_args(part)]
        return " or ".join(dict.fromkeys(word for word in found if word))
    return _WORDS.get(getattr(annotation, "__name__", ""), "")


def _comments(kind: type[Settings]) -> dict[str, str]:
    """What the code says of each setting: the comment on its line, or those above it."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if issubclass(owner, Settings) and owner is not Settings:
            lines = textwrap.dedent(inspect.getsource(owner)).splitlines()
            for node in ast.parse("\n".join(lines)).body[0].body:  # type: ignore[attr-defined]
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    found[node.target.id] = _comment(lines, node)
    return found


def _comment(lines: list[str], node: ast.AnnAssign) -> str:
    above = []
    for line in reversed(lines[: node.lineno - 1]):
        if not (match := re.match(r"\s+# (.*)", line)):
            break
        above.append(match[1])
    end = node.end_col_offset
    after = re.match(r"\s*# (.*)", lines[(node.end_lineno or node.lineno) - 1][end:])
    return " ".join([*reversed(above), *([after[1]] if after else [])])
