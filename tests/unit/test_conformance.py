"""docs/conformance.md is complete, and says of each requirement which tests show it."""

from __future__ import annotations

import ast
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs/conformance.md"
NOT_APPLICABLE: Final = "not applicable: "

# Requirements of each section, by level, as counted in the specification's text.
COUNTS: Final[dict[str, dict[str, int]]] = {
    "2.1": {"may": 3, "is": 3},
    "2.2": {"must": 5, "may": 4, "is": 4},
    "2.3": {"may": 3, "is": 3},
    "2.4": {"must": 3, "should": 1, "may": 1, "is": 2},
    "2.5": {"must": 3, "may": 2},
    "2.5.1": {"must": 3, "should": 3, "may": 7, "is": 3},
    "2.5.2": {"is": 4},
    "2.6": {"must": 4, "should": 1, "may": 3, "is": 2},
    "2.7": {"must": 7, "should": 1, "may": 5, "is": 2},
    "2.8": {"must": 7, "may": 3, "is": 10},
    "4": {"may": 1},
    "4.1": {"is": 12},
    "4.2": {"may": 4, "is": 2},
    "4.3": {"is": 1},
    "4.4": {"may": 6, "is": 2},
    "4.4.1": {"must": 1, "may": 6, "is": 2},
    "4.4.2": {"may": 4, "is": 3},
    "4.4.3": {"may": 3, "is": 2},
    "4.4.4": {"is": 2},
}


class Requirement(NamedTuple):
    line: int
    id: str
    section: str
    """Of the heading that it is under."""
    level: str
    text: str
    shown_by: str


def requirements() -> list[Requirement]:
    found, section = [], ""
    for number, line in enumerate(TABLE.read_text().splitlines(), 1):
        if heading := re.match(r"#+ ([0-9.]+) ", line):
            section = heading[1]
        elif line.startswith("| R"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            assert len(cells) == 4, f"{TABLE.name}:{number}: {len(cells)} cells instead of 4"
            found.append(Requirement(number, cells[0], section, *cells[1:]))
    return found


def marked(path: Path) -> Iterator[tuple[str, str]]:
    """(requirement, test) of each ``conformance`` mark in a file."""
    for node in ast.parse(path.read_text(), str(path)).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == (
                "pytest.mark.conformance"
            ):
                for argument in decorator.args:
                    yield ast.literal_eval(argument), f"{path.relative_to(ROOT)}::{node.name}"


def by_requirement() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for requirement, test in marked(path):
            found.setdefault(requirement, []).append(test)
    return found


def cell(tests: list[str]) -> str:
    return "<br>".join(f"`{test}`" for test in tests)


def test_requirements_are_numbered_in_order() -> None:
    expected, seen = [], Counter[str]()
    for requirement in requirements():
        seen[requirement.section] += 1
        expected.append(f"R{requirement.section}-{seen[requirement.section]}")
    assert [requirement.id for requirement in requirements()] == expected


def test_every_section_has_all_its_requirements() -> None:
    counts: dict[str, Counter[str]] = {}
    for requirement in requirements():
        counts.setdefault(requirement.section, Counter())[requirement.level] += 1
    assert list(counts) == list(COUNTS), "sections in the order of the specification"
    assert counts == COUNTS


def test_no_cell_is_empty() -> None:
    for requirement in requirements():
        assert all(requirement), f"{TABLE.name}:{requirement.line}: an empty cell"


def test_what_is_not_applicable_says_why() -> None:
    for requirement in requirements():
        if requirement.shown_by.startswith(NOT_APPLICABLE):
            assert len(requirement.shown_by.removeprefix(NOT_APPLICABLE).split()) >= 4


def test_table_and_tests_name_each_other() -> None:
    tests = by_requirement()
    if os.environ.get("VDCM_UPDATE_GOLDEN"):
        fill(tests)
    named = {
        requirement.id: requirement.shown_by
        for requirement in requirements()
        if not requirement.shown_by.startswith(NOT_APPLICABLE)
    }
    assert named == {requirement: cell(names) for requirement, names in tests.items()}, (
        f"VDCM_UPDATE_GOLDEN=1 takes the tests' marks over into {TABLE.name}"
    )


def fill(tests: dict[str, list[str]]) -> None:
    lines = TABLE.read_text().splitlines()
    for requirement in requirements():
        if not requirement.shown_by.startswith(NOT_APPLICABLE):
            head = f"| {requirement.id} | {requirement.level} | {requirement.text} | "
            lines[requirement.line - 1] = head + cell(tests.get(requirement.id, [])) + " |"
    TABLE.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_marks_are_on_tests_that_are_collected(path: Path) -> None:
    on_tests = set(marked(path))
    assert all(test.split("::")[1].startswith("test_") for _, test in on_tests)
    assert not on_tests or path.name.startswith("test_")
    # A mark anywhere else, on a class or as pytestmark, would not be found above.
    nodes = ast.walk(ast.parse(path.read_text()))
    marks = [n for n in nodes if isinstance(n, ast.Attribute) and n.attr == "conformance"]
    decorated = {test for _, test in on_tests}
    assert len(marks) == len(decorated)
