"""A self-contained HTML page of text, tables and plotly figures; it needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
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
        marks = {}
        for key in rows[0]:
            kinds = {type(row[key]) for row in rows} - {type(None)}
            numeric = all(issubclass(kind, (int, float)) and kind is not bool for kind in kinds)
            marks[key] = ' class="number"' if numeric else ""
        head = "".join(f"<th{marks[key]} scope=col>{escape(str(key))}</th>" for key in rows[0])
        body = ""
        for row in rows:
            cells = (f"<td{marks[key]}>{escape(format_value(row[key]))}</td>" for key in rows[0])
            body += f"<tr>{''.join(cells)}</tr>"
        # A table that is wider than the window scrolls, by keyboard too.
        self._parts.append(
            f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def figure(self, figure: Figure, caption: str) -> None:
        """A plotly figure, with a caption that says what to see in it."""
        margin = {"l": 60, "r": 20, "t": 64, "b": 50}
        figure.update_layout(
            template="plotly_white", colorway=PALETTE, font={"size": 13}, margin=margin
        )
        config = {"displaylogo": False, "responsive": True}
        # plotly's own script comes once a page, not once a figure
        html = figure.to_html(full_html=False, include_plotlyjs=False, config=config)
        self._parts.append(f"<figure>{html}<figcaption>{escape(caption)}</figcaption></figure>")

    def block(self, html: str) -> None:
        """A piece of HTML as it is: controls, scripts; its maker escapes what needs escaping."""
        self._parts.append(html)

    def html(self) -> str:
        """The whole page."""
        from plotly.offline import get_plotlyjs

        style = files("perturbgen.core").joinpath("page.css").read_text(encoding="utf-8")
        links = "".join(f'<a href="#{slug(name)}">{escape(name)}</a>' for name in self._sections)
        head = (
            '<meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>\n{style}</style>"
            f"<script>{get_plotlyjs()}</script>"
        )
        top = f'<h1>{escape(self.title)}</h1><p class="lead">{escape(self.lead)}</p>'
        body = "".join(self._parts)
        head = f'<!doctype html><html lang="en"><head>{head}</head>'
        return f"{head}<body>{top}<nav>{links}</nav>{body}</body></html>"

    def write(self, path: str | Path) -> Path:
        """Save the page."""
        with atomic_path(path) as part:
            part.write_text(self.html(), encoding="utf-8")
        return Path(path)
