"""Do the links of a built site lead somewhere? Files and the places in them; no network."""

from __future__ import annotations

from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


def broken_links(site: Path) -> list[str]:
    """``page: link`` for every link of the site's pages whose file or place is not there."""
    pages = [page for page in sorted(site.rglob("*.html")) if _has_furniture(page)]
    return [
        f"{page.relative_to(site)}: {link}"
        for page in pages
        for link in sorted(_read(page).links)
        if not _resolves(page, link)
    ]


def _has_furniture(page: Path) -> bool:
    # a report that a tutorial wrote is one file, with links that scripts make
    return (page.with_suffix(".html")).read_text(errors="replace").count("sidebar") > 0


def _resolves(page: Path, link: str) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True  # another site: not asked
    target = page if not parts.path else (page.parent / unquote(parts.path)).resolve()
    if target.is_dir():
        target /= "index.html"
    if not target.exists():
        return False
    if not parts.fragment or target.suffix != ".html":
        return True
    return unquote(parts.fragment) in _read(target).places


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = {"", "top"}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value and not value.startswith(("data:", "mailto:")):
                self.links.add(value)
            if name in ("id", "name") and value:
                self.places.add(value)


@cache
def _read(page: Path) -> _Page:
    parser = _Page()
    parser.feed(page.read_text(errors="replace"))
    return parser
