"""One self-contained HTML page of text, tables and plotly figures; it needs no network to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perturbgen.core.console import format_value
from perturbgen.core.files import atomic_path, slug

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Okabe and Ito's colours: told apart by readers with any colour vision.
PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7F5539",
    "#595959",
    "#B8A800",
    "#6A4C93",
)

_STYLE = """
:root { --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --accent: #0072B2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 20px 60px; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.25rem; margin: 44px 0 6px; padding-top: 12px; border-top: 1px solid var(--line); }
p { max-width: 75ch; margin: 6px 0 14px; }
.lead { color: var(--soft); }
nav a { display: inline-block; margin: 4px 16px 4px 0; color: var(--accent); }
a:focus-visible, .scroll:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 8px 0 16px; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; }
figure { margin: 10px 0 26px; }
figcaption { color: var(--soft); font-size: .92rem; max-width: 85ch; }
"""


class Page:
    """Collects the parts of a page in order; ``write`` saves it."""

    def __init__(self, title: str, lead: str = "") -> None:
        self.title, self.lead = title, lead
        self._parts: list[str] = []
        self._sections: list[str] = []

    def section(self, title: str, text: str = "") -> None:
        """Begin a section, with a paragraph of plain text."""
        self._sections.append(title)
        self._parts.append(f'<h2 id="{slug(title)}">{escape(title)}</h2>')
        if text:
            self.text(text)

    def text(self, text: str) -> None:
        """A paragraph of plain text."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Records as a table; numbers to the right."""
        if not rows:
            return
        numeric = {
            key: all(_is_number(row[key]) or row[key] is None for row in rows) for key in rows[0]
        }
        marks = {key: ' class="number"' if yes else "" for key, yes in numeric.items()}
        head = "".join(f"<th{marks[key]} scope=col>{escape(str(key))}</th>" for key in rows[0])
        body = "".join(
            "<tr>"
            + "".join(f"<td{marks[key]}>{escape(format_value(row[key]))}</td>" for key in rows[0])
            + "</tr>"
            for row in rows
        )
        self._parts.append(
            f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def figure(self, figure: Figure, caption: str) -> None:
        """A plotly figure, with a caption that says what to see in it."""
        figure.update_layout(
            template="plotly_white",
            colorway=PALETTE,
            font={"size": 13},
            margin={"l": 60, "r": 20, "t": 64, "b": 50},
        )
        html = figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            config={"displaylogo": False, "responsive": True},
        )
        self._parts.append(f"<figure>{html}<figcaption>{escape(caption)}</figcaption></figure>")

    def block(self, html: str) -> None:
        """A piece of HTML as it is: controls, scripts; who makes it escapes what needs escaping."""
        self._parts.append(html)

    def html(self) -> str:
        """The whole page."""
        from plotly.offline import get_plotlyjs

        links = "".join(f'<a href="#{slug(name)}">{escape(name)}</a>' for name in self._sections)
        head = (
            '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style><script>{get_plotlyjs()}</script>"
        )
        top = f'<h1>{escape(self.title)}</h1><p class="lead">{escape(self.lead)}</p><nav>{links}</nav>'
        body = "".join(self._parts)
        return f'<!doctype html><html lang="en"><head>{head}</head><body>{top}{body}</body></html>'

    def write(self, path: str | Path) -> Path:
        """Save the page."""
        with atomic_path(path) as part:
            part.write_text(self.html(), encoding="utf-8")
        return Path(path)


def _is_number(value: Any) -> bool:
    """Whether a table should align it to the right."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
