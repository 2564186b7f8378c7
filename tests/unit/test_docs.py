"""docs/control.md is in step with the control socket."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields

import pytest
from pages import ROOT, blocks

from vdcm import events
from vdcm.control import methods, server
from vdcm.definition import vdev_from_json
from vdcm.definition.checked import ParentDefinition
from vdcm.entry import Life, Origin
from vdcm.manager import Manager
from vdcm.registers import AccessRecord, Place
from vdcm.trace import LEAST_SHARE, QUEUE_LIMIT
from vdcm.vdev import VdevState
from vdcm_devices.idio16 import Idio16Card

PAGE = ROOT / "docs/control.md"
TEXT = PAGE.read_text()


def rows(heading: str) -> Iterator[list[str]]:
    """The cells of the table below a line that begins with ``heading``."""
    lines = TEXT[TEXT.index(heading) :].splitlines()
    for line in lines[2:]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_method_with_its_parameters() -> None:
    table = methods.Methods(Manager(), lambda *_: True).table
    said = {names(method)[0]: names(parameters) for method, parameters, _ in rows("| method")}
    assert said == {
        name: [*method.needed, *(f"[{key}]" for key in method.optional)]
        for name, method in table.items()
    }


def test_every_code() -> None:
    codes = {
        value for name, value in vars(methods).items() if name.isupper() and isinstance(value, int)
    }
    assert {int(code) for code, _ in rows("| `code`")} == codes
    assert len(codes) == 8


def test_every_state_and_origin() -> None:
    states = {name for cell, _ in rows("| `state`") for name in names(cell)}
    assert states == {
        *(life.value for life in Life if life is not Life.STARTED),
        *(state.value for state in VdevState if state is not VdevState.CLOSED),
    }
    assert {names(cell)[0] for cell, _ in rows("| `origin`")} == {one.value for one in Origin}


def test_the_limits() -> None:
    assert server.LINE_LIMIT == 1 << 20 and "at most 1 MiB" in TEXT
    for words in (
        f"at most {server.CLIENT_LIMIT} clients",
        f"within {server.PATIENCE:g} seconds",
        f"At most {QUEUE_LIMIT} events",
        f"at least {LEAST_SHARE}",
    ):
        assert words in TEXT


def test_every_kind_of_event_and_its_fields() -> None:
    said = {names(kind)[0]: set(names(told)) for kind, _, told in rows("| `kind`")}
    record = AccessRecord(Place("access", "BAR0", 0, 4, (), ()), False, 0)
    declared: dict[str, set[str]] = {}
    for one in events.Event.__subclasses__():
        if one is not AccessRecord:
            declared.setdefault(one.kind, set()).update(field.name for field in fields(one))
    assert record.details().keys() <= said.pop("access")
    assert said == declared
    assert {*said, "access"} == {*events.KINDS, "dropped"}


def test_the_definition_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run")
    text, _trace = blocks(PAGE, "json")
    given = json.loads(text)
    parent = ParentDefinition("idio16", "idio16", Idio16Card)
    assert vdev_from_json(given, {"idio16": parent}).to_json() == given
