"""docs/howto-fastpath.md: its package is built as one outside this repository is, and works."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_package import Package
from pages import ROOT, files

PAGE = ROOT / "docs/howto-fastpath.md"


def test_it_is_built_without_a_warning_and_passes_its_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFLAGS", "-Werror")
    package = Package(tmp_path, files=files(PAGE))
    assert "1 passed" in package.run("pytest")
    assert "\ntally " in package.run("vdcm", "types")
