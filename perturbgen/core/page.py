"""A self-contained HTML page of text, tables and plotly figures; it needs no network."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perturbgen.core.console import format_value, plain
from perturbgen.core.files import atomic_path, slug

if TYPE_CHECKING:
    import numpy as np
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
    """Collects the parts of a page in order; ``write`` saves it.

    ``answer`` is the sentence that a reader came for, ``lead`` what the page is about.
    """

    def __init__(self, title: str, lead: str = "", *, answer: str = "") -> None:
        self.title, self.lead, self.answer = title, lead, answer
        self._parts: list[str] = []
        self._sections: list[str] = []
        self._drawn = False  # whether anything needs plotly's script

    def section(self, title: str, text: str = "") -> None:
        """Begin a section, with a paragraph of plain text."""
        self._sections.append(title)
        self._parts.append(f'<h2 id="{slug(title)}">{escape(title)}</h2>')
        if text:
            self.text(text)

    def text(self, text: str) -> None:
        """A paragraph of plain text."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def warning(self, text: str) -> None:
        """A paragraph that is marked, of plain text."""
        self._parts.append(f'<p class="warning">{escape(text)}</p>')

    def table(self, rows: Sequence[Mapping[str, Any]], *, search: str = "") -> None:
        """Records as a table; numbers to the right.

        ``search`` is the label of a field that leaves only the rows with what is typed there.
        """
        if not rows:
            return
        marks = {}
        for key in rows[0]:
            kinds = {type(row[key]) for row in rows} - {type(None)}
            numeric = all(issubclass(kind, (int, float)) and kind is not bool for kind in kinds)
            marks[key] = ' class="number"' if numeric else ""
        head = "".join(f"<th{marks[key]} scope=col>{_cell(str(key))}</th>" for key in rows[0])
        body = ""
        for row in rows:
            cells = (f"<td{marks[key]}>{_cell(format_value(row[key]))}</td>" for key in rows[0])
            body += f"<tr>{''.join(cells)}</tr>"
        number = len(self._parts)
        if search:
            self._parts.append(
                f'<div class="controls"><label>{escape(search)}<input type="search" '
                f'autocomplete="off" data-filters="table{number}"></label></div>'
            )
        # A table that is wider than the window scrolls, by keyboard too.
        tall = " tall" if search else ""
        self._parts.append(
            f'<div class="scroll{tall}" tabindex="0"><table id="table{number}">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def figure(self, figure: Figure, caption: str) -> None:
        """A plotly figure, with a caption that says what to see in it."""
        margin = {"l": 60, "r": 20, "t": 64, "b": 50}
        figure.update_layout(
            template="plotly_white", colorway=PALETTE, font={"size": 13}, margin=margin
        )
        # Drawn by page.js, which has to know how wide the window is.
        text = str(figure.to_json()).replace("<", "\\u003c")
        self._drawn = True
        self._parts.append(
            f'<figure><div class="plot"></div><script type="application/json" class="figure">{text}'
            f"</script><figcaption>{escape(caption)}</figcaption></figure>"
        )

    def block(self, html: str, *, draws: bool = False) -> None:
        """A piece of HTML as it is: controls, scripts; its maker escapes what needs escaping.

        A script that ``draws`` waits for page.js's promise ``PLOTLY``.
        """
        self._drawn |= draws
        self._parts.append(html)

    @staticmethod
    def packed(values: np.ndarray[Any, Any], kind: str = "") -> Any:
        """Values for a page's script, in base64: as they are in a ``kind`` such as ``<f4``.

        Else as 16-bit integers with one scale a row, exact to 1/32,767 of the row's largest value.
        """
        import numpy as np

        if kind:
            return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode()
        # Half of what floats take, and nothing that a screen can show is lost.
        scale = np.abs(values).max(axis=1, initial=0) / 32767
        scale[scale == 0] = 1
        data = Page.packed(np.round(values / scale[:, None]), "<i2")
        return {"scale": [float(f"{s:.7g}") for s in scale], "data": data}

    @staticmethod
    def json(record: Mapping[str, Any]) -> str:
        """JSON that may stand in a script element, which a name with ``</script>`` would end."""
        text = json.dumps(plain(dict(record)), separators=(",", ":"), allow_nan=False)
        return text.replace("<", "\\u003c")

    def html(self) -> str:
        """The whole page."""
        here = files("perturbgen.core")
        style, script = (
            here.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
        )
        links = "".join(f'<a href="#{slug(name)}">{escape(name)}</a>' for name in self._sections)
        head = (
            '<meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>\n{style}</style>"
            f"<script>{script}</script>"
        )
        top = f"<h1>{escape(self.title)}</h1>"
        for name, text in (("answer", self.answer), ("lead", self.lead)):
            top += f'<p class="{name}">{escape(text)}</p>' if text else ""
        body = "".join(self._parts)
        if self._drawn:
            body += f'<script type="text/plain" id="plotly">{_packed_plotly()}</script>'
        head = f'<!doctype html><html lang="en"><head>{head}</head>'
        return f"{head}<body>{top}<nav>{links}</nav>{body}</body></html>"

    def write(self, path: str | Path) -> Path:
        """Save the page."""
        with atomic_path(path) as part:
            part.write_text(self.html(), encoding="utf-8")
        return Path(path)


def _cell(text: str) -> str:
    """Text of a table, in which a long name may end a line after an underscore."""
    return escape(text).replace("_", "_<wbr>")


@cache
def _packed_plotly() -> str:
    """plotly's own script, gzipped, in base64: 2.0 MB in place of 4.8.

    Bundles of fewer kinds of figures (.7 MB so packed) do not come with the Python package, draw
    no WebGL, and a copy of one would be of another version than the package some day.
    """
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
