"""Every link of README and docs/ leads somewhere, and README leads to every page."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pages import PAGES, README, ROOT, links, places


def broken(page: Path, root: Path = ROOT) -> list[str]:
    wrong = []
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme:
            continue
        target = (page.parent / parts.path).resolve() if parts.path else page
        if not target.is_relative_to(root) or not target.exists():
            wrong.append(f"{link}: there is no {parts.path}")
        elif parts.fragment and parts.fragment not in places(target):
            wrong.append(f"{link}: no heading of {target.name} makes that")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_links_lead_somewhere(page: Path) -> None:
    assert not broken(page)


def test_readme_names_every_page() -> None:
    linked = {(README.parent / link).resolve() for link in links(README) if ":" not in link}
    assert set(PAGES) - {README} <= linked


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n[a](#one) [b](#two) [c](other.md) `[d](no.md)`\n```\n[e](f)\n```\n")
    assert links(page) == ["#one", "#two", "other.md"]
    assert len(broken(page, tmp_path)) == 2
