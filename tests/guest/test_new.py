"""The guest test of what ``vdcm new`` makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_package import Package


@pytest.mark.usefixtures("vdcm_environment")  # there is a guest to be had: none is skipped
def test_it_passes_its_guest_test(tmp_path: Path) -> None:
    package = Package(tmp_path, "my-adder")
    assert "1 passed" in package.run("pytest", "tests/test_guest.py")
