"""The links inside a built site: each has to lead to a page, and to a place on it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """Where a page's links lead, and the places on it that a link can name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.places.add(value)
            elif value and (name == "src" or (name == "href" and tag != "link")):
                self.links.append(value)


def broken(html: Path) -> list[str]:
    """``page: link`` of those that lead nowhere, links to other sites left out."""
    pages = {path: _Page(path.read_text()) for path in sorted(html.resolve().rglob("*.html"))}
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            there = target in pages if target.suffix == ".html" else target.is_file()
            if not there or (place and target in pages and place not in pages[target].places):
                found.append(f"{path.name}: {link}")
    return found
