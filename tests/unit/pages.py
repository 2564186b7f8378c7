"""README and the pages of docs/: the code in them, their links, the places that links can name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
README: Final = ROOT / "README.md"
PAGES: Final = (README, *sorted((ROOT / "docs").glob("*.md")))
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    found: list[str] = re.findall(
        rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
    )
    return found


def files(page: Path) -> dict[str, str]:
    """The files that a page has its reader write, by name.

    A block is a file, or the next part of one, if its first line is a comment of that name and
    nothing else: ``# edu.py``, ``/* edu.c */``. That line stays in the file where it began.
    """
    found: dict[str, str] = {}
    for block in blocks(page, r"[a-z]+"):
        first, _, rest = block.partition("\n")
        named = re.fullmatch(
            r"(?:#|//|/\*|<!--) ([\w./-]+\.\w+|[\w/]*Makefile)(?: \*/| -->)?", first
        )
        if named:
            name = named[1]
            found[name] = found[name] + rest if name in found else block
    return found


def links(page: Path) -> list[str]:
    """Where its links and pictures lead, those in code left out."""
    text = re.sub(r"`[^`\n]*`", "", _FENCED.sub("", page.read_text()))
    return list(re.findall(r"\]\(([^)\s]+)\)", text))


def places(page: Path) -> set[str]:
    """The anchors of its headings, as forges and the site make them."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}
