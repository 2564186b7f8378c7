"""Administrative commands of a virtual DSA against the specification's tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from dsa_client import DsaClient, Wq
from dsa_command_table import (
    BUS_MASTER,
    CANNOT_BE,
    CASES,
    CODES,
    HARDWARE,
    NAMES,
    SUPPORTED,
    WQ_INDEX,
    Case,
)
from dsa_lab import Lab

DISABLED, ENABLED = 0, 1
COMPLETION = 1 << 1  # in INTCAUSE
DEDICATED, SHARED = 1, 0
MODES = {
    "dsa-2dwq-1swq": [DEDICATED, DEDICATED, SHARED],
    "dsa-1dwq": [DEDICATED],
    "dsa-1swq": [SHARED],
}


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, DsaClient]]:
    """A client of a VDEV of each type that is needed."""
    lab = Lab(tmp_path_factory.mktemp("lab"), dwqs=16)
    yield {kind: lab.client(lab.vdev(kind)) for kind in MODES}
    lab.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def begin(dsa: DsaClient, kind: str, start: str, empty: int | None = None) -> None:
    """``empty``: this WQ has no entries."""
    dsa.client.reset()
    dsa.set_bus_master()
    dsa.enable_pasid()
    wqs = [Wq(16, mode, pasid=None if mode else 1) for mode in MODES[kind]]
    dsa.configure([None if index == empty else wq for index, wq in enumerate(wqs)])
    if start == "configured":
        return
    assert dsa.command(1) == 0
    if start == "running":
        assert [dsa.command(6, wq) for wq in range(len(wqs))] == [0] * len(wqs)
    if start == "halted":
        dsa.client.config.write(dsa.extended(0x1B) + 6, 2, 0)
        assert dsa.state & 3 == 3


def write(dsa: DsaClient, offset: int, width: int, value: int) -> None:
    if offset == BUS_MASTER:
        dsa.client.config.write(4, width, value)
    else:
        dsa.write(offset, value, width)


def look(dsa: DsaClient) -> tuple[int, ...]:
    """The states, and all that a command could have changed."""
    states = (dsa.state, *(dsa.wq_state(wq) for wq in range(dsa.wqs)))
    tables = (*range(0x400, 0x420, 4), *range(0x600, 0x640, 4), *range(0x800, 0x800 + 64 * 3, 4))
    return (*states, *(dsa.read(at) for at in tables if at % 64 != 24 or at < 0x800))


def ident(case: Case) -> str:
    return f"{NAMES.get(case.command, case.command)}-{case.why}-{case.start}".replace(" ", "_")


@pytest.mark.parametrize("case", CASES, ids=ident)
def test_what_a_command_answers(clients: dict[str, DsaClient], case: Case) -> None:
    dsa = clients[case.kind]
    for interrupt in (False, True):
        begin(dsa, case.kind, case.start, empty=0 if case.error == 0x22 else None)
        for offset, width, value in case.writes:
            write(dsa, offset, width, value)
        dsa.write(0x98, 0xFFFF_FFFF)
        before = look(dsa)
        status = dsa.command(case.command, case.operand, interrupt=interrupt)
        assert status & 0xFF == case.error
        assert status >> 31 == 0
        assert dsa.read(0x98) == (COMPLETION if interrupt else 0)
        assert dsa.read(0xC0) & 1 == (case.start == "halted"), "no error but that of the halt"
        if case.error:
            assert look(dsa) == before, "a command that is refused changes nothing"
        elif case.command == 13:
            assert status >> 8 == case.operand, "handles are the entries' numbers here"
        else:
            assert status == 0


def test_every_code_of_the_specification_is_provoked_or_cannot_be() -> None:
    provoked = {(case.command, case.error) for case in CASES} | {(13, 0x42)}
    for command, codes in CODES.items():
        for code in codes:
            assert (code in CANNOT_BE) != ((command, code) in provoked), (NAMES[command], hex(code))
    known = {(command, code) for command, codes in CODES.items() for code in codes}
    for command, code in provoked:
        assert code <= 0x05 or (command, code) in known


def test_the_capability_register_has_the_commands_that_are_known(
    clients: dict[str, DsaClient],
) -> None:
    dsa = clients["dsa-1dwq"]
    assert dsa.read(0x10, 8) >> 4 & 1, "there is a CMDCAP"
    begin(dsa, "dsa-1dwq", "configured")
    for code in range(32):
        known = dsa.command(code) & 0xFF != 0x01
        assert known == bool(dsa.read(0xB0, 8) >> code & 1) == (code in SUPPORTED)
    assert dsa.read(0xB0, 8) >> 32 == 0


# What a command does (table 9-5 and 3.15): the device's state and its WQs' afterwards.
EFFECTS = {
    (1, 0, "configured"): (ENABLED, [0, 0, 0]),
    (2, 0, "running"): (DISABLED, [0, 0, 0]),
    (3, 0, "running"): (ENABLED, [1, 1, 1]),
    (4, 0, "running"): (ENABLED, [1, 1, 1]),
    (5, 0, "running"): (DISABLED, [0, 0, 0]),
    (6, 1, "enabled"): (ENABLED, [0, 1, 0]),
    (7, 0b101, "running"): (ENABLED, [0, 1, 0]),
    (8, 0b111, "running"): (ENABLED, [1, 1, 1]),
    (9, 0b111, "running"): (ENABLED, [1, 1, 1]),
    (10, 0b110, "running"): (ENABLED, [1, 0, 0]),
    (11, 1, "running"): (ENABLED, [1, 1, 1]),
    (12, 1, "running"): (ENABLED, [1, 1, 1]),
}


@pytest.mark.parametrize("what", EFFECTS, ids=lambda what: f"{NAMES[what[0]]}-{what[1]}")
def test_what_a_command_does(clients: dict[str, DsaClient], what: tuple[int, int, str]) -> None:
    command, operand, start = what
    dsa = clients["dsa-2dwq-1swq"]
    begin(dsa, "dsa-2dwq-1swq", start)
    before = look(dsa)[4:]
    assert dsa.command(command, operand) == 0
    state, wqs = EFFECTS[what]
    assert (dsa.state, [dsa.wq_state(wq) for wq in range(3)]) == (state, wqs)
    if command not in (5, 10):
        assert look(dsa)[4:] == before, "the configuration stays"
    for wq in range(3):
        at = 0x800 + 64 * wq
        gone = command == 5 or (command == 10 and operand >> wq & 1)
        assert dsa.read(at) == (0 if command == 5 else 16), "Reset WQ keeps its size"
        assert (dsa.read(at + 4), dsa.read(at + 8), dsa.read(at + 12)) == (0, 0, 0) or not gone
        assert dsa.read(at + 32, 8) == dsa.read(0x40, 8)


def test_every_supported_command_is_looked_at() -> None:
    assert {command for command, *_ in EFFECTS} | {13, 14} == set(SUPPORTED)


def test_all_bits_of_a_group_number(clients: dict[str, DsaClient]) -> None:
    dsa = clients["dsa-2dwq-1swq"]
    begin(dsa, "dsa-2dwq-1swq", "running")
    for command, number in itertools.product((7, 8, 9, 10), range(1, 16)):
        assert dsa.command(command, number << 16 | 1) == WQ_INDEX
    assert [dsa.wq_state(wq) for wq in range(3)] == [1, 1, 1]


def test_no_handle_is_left(tmp_path: Path) -> None:
    lab = Lab(tmp_path, ims=1)
    dsa = lab.client(lab.vdev())
    assert dsa.command(13, 1) == 1 << 8
    assert dsa.command(13, 1) == 1 << 8, "the same one again"
    assert dsa.command(13, 0) == 0x42
    lab.close()


def test_what_the_host_has_suspended_is_a_hardware_error(lab: Lab) -> None:
    vdev = lab.vdev()
    dsa = lab.client(vdev)
    dsa.start()
    (adi,) = vdev.adis
    lab.host.run(adi.driver.suspend, adi)
    assert dsa.command(3) == HARDWARE
    lab.host.run(adi.driver.resume, adi)
    assert dsa.command(3) == 0


def test_a_command_whose_pasid_capability_is_off(lab: Lab) -> None:
    dsa = lab.client(lab.vdev())
    dsa.set_bus_master()
    dsa.configure([Wq(16, DEDICATED, pasid=1)])
    assert dsa.command(1) == 0
    assert dsa.command(6, 0) == 0x26
