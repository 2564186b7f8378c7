"""``vdcm new`` makes a package that is in order at once, whatever its name's length."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_package import Package

from vdcm.new import LONGEST


@pytest.mark.parametrize("name", ["x", "my-adder", "y" * LONGEST])
def test_it_passes_its_own_tests_and_checks(tmp_path: Path, name: str) -> None:
    package = Package(tmp_path, name)
    assert f"\n{name} " in package.run("vdcm", "types")
    assert "8 passed" in package.run("pytest", "tests/test_model.py", "tests/test_wire.py")
    package.run("ruff", "check", ".")
    package.run("ruff", "format", "--check", ".")
    package.run("mypy")
