"""The command reference, written from the command line itself: a page for each panel of verbs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import typer

from perturbgen.cli import _app

_MARKUP = re.compile(r"(?<!\\)\[(/?)(?:bold|italic|dim|cyan|yellow|green|red)\]")


class Verb(NamedTuple):
    """A verb with its words (``data check``) and typer's command."""

    words: str
    command: Any
    panel: str


def verbs() -> list[Verb]:
    """Every verb of the command line, in the order of ``--help``."""
    return list(_walk(typer.main.get_command(_app), (), ""))


def _walk(command: Any, words: tuple[str, ...], panel: str) -> Iterator[Verb]:
    named = getattr(command, "rich_help_panel", None)
    # a group's own is typer's placeholder where it has none
    panel = named if isinstance(named, str) and named else panel
    if hasattr(command, "commands"):
        for name, below in command.commands.items():
            if not below.hidden:
                yield from _walk(below, (*words, name), panel)
    else:
        yield Verb(" ".join(words), command, panel)


def pages() -> dict[str, str]:
    """The pages of the reference: names of files and their text."""
    found = verbs()
    panels = dict.fromkeys(verb.panel for verb in found)
    written = {f"{_slug(panel)}.md": _page(panel, found) for panel in panels}
    links = "\n".join(_slug(panel) for panel in panels)
    rows = "\n".join(
        f"| [`{verb.words}`]({_slug(verb.panel)}.md#{_slug(verb.words)}) | {_first(verb)} |"
        for verb in found
    )
    written["index.md"] = (
        "# Commands\n\nWritten from the command line when the site was built. "
        "`perturbgen VERB --help` says the same.\n\n"
        f"| verb | what it does |\n|---|---|\n{rows}\n\n"
        f":::{{toctree}}\n:hidden:\n\n{links}\n:::\n"
    )
    return written


def _page(panel: str, found: list[Verb]) -> str:
    parts = [f"# {panel}\n"]
    parts += [_section(verb) for verb in found if verb.panel == panel]
    return "\n".join(parts)


def _section(verb: Verb) -> str:
    shown = [p for p in verb.command.params if not getattr(p, "hidden", False)]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    options = [p for p in shown if p.param_type_name == "option" and p.name != "help"]
    usage = " ".join(["perturbgen", verb.words, *map(_usage, arguments)])
    required = [f"{option.opts[0]} {_value(option)}" for option in options if option.required]
    usage += "".join(f" {text}" for text in required) + " [OPTIONS]" * bool(options)
    parts = [
        f"({_slug(verb.words)})=\n## {verb.words}\n",
        f"```text\n{usage}\n```\n",
        _markdown(verb.command.help or ""),
        "",
        _table("argument", [(f"`{_usage(p)}`", p) for p in arguments]),
        _table("option", [(_names(p), p) for p in options]),
    ]
    return "\n".join(parts)


def _usage(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    name = name if argument.required or name.startswith("[") else f"[{name}]"
    return name + "..." * (argument.nargs != 1 and not name.endswith("..."))


def _names(option: Any) -> str:
    names = [*option.opts, *option.secondary_opts]
    value = f" {_value(option)}" if _value(option) else ""
    return ", ".join(f"`{name}{value}`" for name in names)


def _value(option: Any) -> str:
    """What follows an option: a name for its value, nothing for a flag."""
    if option.is_flag:
        return ""
    if option.metavar:
        return str(option.metavar)
    annotation = getattr(getattr(option, "type_descriptor", None), "annotation", None)
    known = {"Path": "PATH", "int": "NUMBER", "float": "NUMBER"}
    name = known.get(getattr(annotation, "__name__", ""), "TEXT")
    return "PATH" if "Path" in str(annotation) else name


def _table(what: str, rows: list[tuple[str, Any]]) -> str:
    if not rows:
        return ""
    lines = [f"| {what} | | default |", "|---|---|---|"]
    for name, parameter in rows:
        text = _markdown(getattr(parameter, "help", None) or "").replace("|", "\\|")
        lines.append(
            f"| {name.replace('|', '/')} | {' '.join(text.split())} | {_default(parameter)} |"
        )
    return "\n".join([*lines, ""])


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    # an option whose default is another's doing says so in its help
    if value is None or value is False or callable(value) or parameter.show_default is False:
        return ""
    if value is True:
        return f"`{parameter.opts[0]}`"
    value = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value
    return f"`{value}`" if str(value) else ""


def _first(verb: Verb) -> str:
    sentence = re.split(r"(?<=[.:])\s", " ".join((verb.command.help or "").split()))[0]
    return _markdown(sentence).rstrip(":").replace("|", "\\|")


def _markdown(text: str) -> str:
    """Help as Markdown: bold becomes code, whatever stands in brackets stays."""
    paragraphs = re.split(r"\n\s*\n", text.strip("\n"))
    return "\n\n".join(_paragraph(text) for text in paragraphs)


def _paragraph(text: str) -> str:
    plain = _plain(text)
    if text.startswith("    "):
        return f"```text\n{re.sub('^    ', '', plain, flags=re.M)}\n```"
    example = re.fullmatch(r"\s*Examples?: \[bold\](.*)\[/bold\]\.?\s*", text, re.S)
    if example:
        return f"Example:\n\n```bash\n{' '.join(_plain(example[1]).split())}\n```"
    pieces = re.split(r"(\[bold\].*?\[/bold\]|`[^`]+`)", text, flags=re.S)
    return "".join(
        f"`{' '.join(_plain(piece).strip('`').split())}`" if number % 2 else _escape(_plain(piece))
        for number, piece in enumerate(pieces)
    )


def _plain(text: str) -> str:
    """Without rich's markup, and without the backslashes that protect brackets from it."""
    return re.sub(r"\\(\[)", r"\1", _MARKUP.sub("", text))


def _escape(text: str) -> str:
    # options are words with two dashes, which typography would make one
    text = re.sub(r"(?<![\w`-])(--[a-z][\w-]*)", r"`\1`", text)
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(
        piece if number % 2 else re.sub(r"([*_<>\[\]#$~])", r"\\\1", piece)
        for number, piece in enumerate(pieces)
    )


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
