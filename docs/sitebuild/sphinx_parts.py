"""What Sphinx has to be told: how our docstrings read, and where a name of a room's face lives."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import perturbgen
from sitebuild import api


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _read_docstring)
    app.connect("autodoc-skip-member", _skip_member)
    app.connect("missing-reference", _find_in_face)
    return {"parallel_read_safe": True}


def _read_docstring(
    app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Docstrings are plain text with ``literals``; an asterisk in one is no emphasis."""
    text = api.escape("\n".join(lines))
    lines[:] = text.split("\n")


def _skip_member(
    app: Any, what: str, name: str, value: Any, skip: bool, options: Any
) -> bool | None:
    """Fields of a NamedTuple say nothing but their number."""
    text = getattr(value, "__doc__", None) or ""
    return True if text.startswith("Alias for field number") else None


def _find_in_face(app: Any, env: Any, node: Any, content: Any) -> Any:
    """``perturbgen.data.splits.Split``, as annotations have it, is documented as ``data.Split``."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    face = _faces().get(target) or _faces().get(target.rpartition(".")[2])
    if face is None:
        # a type that no face has, such as the settings of a part: shown, not linked
        return content if node.get("reftype") in ("class", "data", "obj", "exc") else None
    domain = env.get_domain("py")
    found = domain.find_obj(env, None, None, face, None, 1)
    if not found:
        return content
    _, entry = found[0]
    from sphinx.util.nodes import make_refnode

    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, face)


_known: dict[str, str] = {}


def _faces() -> dict[str, str]:
    """Full and short names of what the rooms show, and where the reference has them."""
    if not _known:
        for room in perturbgen._FACE:
            module = import_module(f"perturbgen.{room}")
            for name in api.names(room):
                value = getattr(module, name)
                if inspect.isclass(value):
                    _known[f"{value.__module__}.{name}"] = f"perturbgen.{room}.{name}"
                    _known.setdefault(name, f"perturbgen.{room}.{name}")
    return _known
