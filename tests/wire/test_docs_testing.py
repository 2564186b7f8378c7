"""docs/testing.md is in step with vdcm.testing: its tables, and its code, which runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from testing_examples import EXAMPLES, TEXT, run_example

from vdcm.testing import Faults, Machine, plugin


def column(heading: str, number: int = 0) -> list[str]:
    """A column of the table whose first line begins so."""
    lines = TEXT[TEXT.index(heading) :].splitlines()[2:]
    end = next(i for i, line in enumerate(lines) if not line.startswith("|"))
    return [line.strip("|").split("|")[number].strip() for line in lines[:end]]


def test_every_fixture() -> None:
    said = {cell.strip("`") for cell in column("| fixture")}
    there = {
        name
        for name, one in vars(plugin).items()
        if type(one).__name__ == "FixtureFunctionDefinition"
    }
    assert said == there and len(said) == 6


def test_every_fault_with_its_parameters() -> None:
    said = dict(re.match(r"`(\w+)\((.*)\)`", cell).groups() for cell in column("| fault"))  # type: ignore[union-attr]
    there = {
        name: list(inspect.signature(one).parameters)[1:]
        for name, one in vars(Faults).items()
        if inspect.isfunction(one) and not name.startswith("_") and name != "clear"
    }
    assert {
        name: re.findall(r"(\w+)(?:=[^,]*)?(?:,|$)", text) for name, text in said.items()
    } == there
    for name, text in said.items():
        parameters = inspect.signature(getattr(Faults, name)).parameters
        for parameter, default in re.findall(r"(\w+)=([^,]+)", text):
            assert parameters[parameter].default == eval(default), (name, parameter)


def test_every_option() -> None:
    said = {name for cell in column("| option of") for name in re.findall(r"`(\w+)`", cell)}
    assert said == set(inspect.signature(Machine).parameters) - {"environment", "log_dir"}
    assert [cell.strip("`") for cell in column("| option |")] == [
        f"--vdcm-{name}" for name in plugin._OPTIONS
    ]
    assert [cell.strip("`") for cell in column("| option |", 1)] == [
        f"vdcm_{name}" for name in plugin._OPTIONS
    ]


@pytest.mark.parametrize("name", [name for name in EXAMPLES if "boot" not in EXAMPLES[name]])
def test_the_code_runs(tmp_path: Path, name: str) -> None:
    assert "1 passed" in run_example(tmp_path, name)


def test_there_is_code_of_each_kind() -> None:
    """That with a guest is run by tests/guest/test_testing.py."""
    assert len(EXAMPLES) == 5
    assert sum("boot" in code for code in EXAMPLES.values()) == 1
