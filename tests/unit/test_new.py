"""``vdcm new``: which names it takes, and that it never writes over anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from vdcm import new
from vdcm.cli import app
from vdcm.errors import VdcmError

WRONG = {
    "": "no name for a device",
    "Adder": "no name for a device",
    "2d": "no name for a device",
    "a_b": "no name for a device",
    "a--b": "no name for a device",
    "a-": "no name for a device",
    "../a": "no name for a device",
    "a\n": "no name for a device",
    "a" * (new.LONGEST + 1): "no name for a device",
    "class": "a word of Python's own",
    "match": "a word of Python's own",
    "json": "a module of Python's library",
    "dsa": "there is a device dsa already",
    "pcie-idio-16": "there is a device pcie-idio-16 already",
    "vdcm": "is installed already",
    "vdcm-devices": "is installed already",
    "pytest": "is installed already",
    "pytest-timeout": "is installed already",
    "yaml": "is installed already",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_name_that_cannot_be(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "made"
    with pytest.raises(VdcmError, match=WRONG[name]):
        new.make(name, folder)
    assert not folder.exists()


@settings(max_examples=25, deadline=None)
@given(st.from_regex(r"\A[a-z][a-z0-9]{0,5}(-[a-z0-9]{1,4}){0,2}\Z").filter(len))
def test_a_name_is_taken_or_makes_an_identifier(name: str) -> None:
    try:
        new.check(name)
    except VdcmError:
        return
    assert name.replace("-", "_").isidentifier()


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("", "file", "link"):
        with pytest.raises(VdcmError, match="exists: name another with --directory"):
            new.make("adder", tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_nothing_is_left_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = tmp_path / "template"
    template.mkdir()
    (template / "a.in").write_text("$name")
    (template / "b.in").write_text("$unknown")
    monkeypatch.setattr(new, "TEMPLATE", template)
    with pytest.raises(KeyError):
        new.make("adder", tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_the_command_says_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["new", "my-adder"])
    assert done.exit_code == 0
    *files, last = done.output.splitlines()
    assert last == "next: cd my-adder && pip install -e '.[dev]' && pytest"
    there = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {Path(file) for file in files} == there
    assert Path("my-adder/src/my_adder/vdev.py") in there
    assert "$" not in (tmp_path / "my-adder/src/my_adder/vdev.py").read_text()
