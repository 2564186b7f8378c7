"""Event counters through the native client: the same numbers on both paths, in registers and in
what the host shows, and the interrupt of an overflow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dsa_client import ALLOCATE_ADI, FILL, NOOP, UNLIMITED, DsaClient
from dsa_lab import PORTALS, TYPES, Lab
from dsa_program import PASID, run_program

from vdcm_devices.dsa.codes import Cause, Command
from vdcm_devices.dsa.vdev import DsaVdev

WQ, ENGINE, OPERATIONS, COMPLETIONS = 0, 1, 3, 4
EVENTS = {
    "from WQs": (ENGINE, 0x20),
    "from batches": (ENGINE, 0x10),
    "units in": (ENGINE, 0x1),
    "units out": (ENGINE, 0x2),
    "moves": (OPERATIONS, 0x8),
    "successes": (COMPLETIONS, 0x10),
    "errors": (COMPLETIONS, 0xC),
    "records": (COMPLETIONS, 0x20),
}
ENABLE, ON_OVERFLOW, FREEZE = 1, 2, 4


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path, dwqs=16)
    yield lab
    lab.close()


def offset(dsa: DsaClient) -> int:
    """Where the driver finds the registers (OFFSETS2)."""
    return 0x100 * (dsa.read(0x68, 8) & 0xFFFF)


def count(dsa: DsaClient, counter: int, category: int, events: int, flags: int = 0) -> None:
    at = offset(dsa) + 0x100 + 8 * counter
    dsa.write(at, events << 32 | category << 8 | flags | ENABLE, 8)


def value(dsa: DsaClient, counter: int) -> int:
    return dsa.read(offset(dsa) + 0x200 + 8 * counter, 8)


def counters(lab: Lab, vdev: DsaVdev, wq: int) -> dict[str, int]:
    found: dict[str, int] = lab.run(vdev.describe)["work_queues"][wq]["counters"]
    return found


@pytest.mark.parametrize("kind", TYPES)
def test_both_paths_count_the_same(lab: Lab, kind: str) -> None:
    first: dict[str, int] = {}
    for portals in PORTALS:
        vdev = lab.vdev(kind, portals=portals)
        dsa = lab.client(vdev)
        if kind == "dsa-dynamic":
            assert [dsa.ask(ALLOCATE_ADI, adi) for adi in (0, 0, 0, 1)] == [0, 1, 2, 3]
        dsa.start(pasid=PASID)
        for wq in range(dsa.wqs):
            dsa.write(offset(dsa) + 0x10, 3)
            for counter, (category, events) in enumerate(EVENTS.values()):
                count(dsa, counter, category, events)
            before = counters(lab, vdev, wq)
            outcomes = run_program(dsa, wq)
            assert dsa.command(Command.DRAIN_ALL) == 0
            found = {name: value(dsa, counter) for counter, name in enumerate(EVENTS)}
            first = first or found
            assert found == first, f"WQ {wq}, {portals}"
            after = counters(lab, vdev, wq)
            shown = {name: number - before[name] for name, number in after.items()}
            assert shown["accepted"] == found["from WQs"] == len(outcomes)
            assert shown["succeeded"] == found["successes"]
            assert shown["failed"] == found["errors"] == 2
            assert found["records"] == found["successes"] + found["errors"]
            assert shown["aborted"] == shown["retried"] == shown["interrupts"] == 0
    assert first["from batches"] == 3
    assert first["moves"] == 5, "of which one is refused, and three are in a batch"


@pytest.mark.parametrize("portals", PORTALS)
def test_submissions_are_counted_on_both_paths(lab: Lab, portals: str) -> None:
    """Of the work queue and the portal that they are for."""
    dsa = lab.started("dsa-2dwq-1swq", portals=portals)
    for counter, (events, wqs) in enumerate(
        ((0x10, 1), (0x10, 2), (0x10, 4), (0x1, 4), (0x4, 4), (0xF, 3))
    ):
        dsa.write(offset(dsa) + 0x300 + 32 * counter, wqs)
        count(dsa, counter, WQ, events)
    for wq, times in enumerate((1, 2, 3)):
        for _ in range(times):
            assert dsa.run(wq, NOOP, pasid=1).status == 1
    assert dsa.run(2, NOOP, portal=UNLIMITED, pasid=1).status == 1
    assert dsa.command(Command.DRAIN_ALL) == 0
    assert [value(dsa, counter) for counter in range(6)] == [1, 2, 0, 3, 1, 0]


@pytest.mark.parametrize("portals", PORTALS)
@pytest.mark.parametrize(
    ("category", "events"), [(WQ, 0x10), (ENGINE, 0x20), (OPERATIONS, 0x10), (COMPLETIONS, 0x10)]
)
def test_an_overflow_interrupts(lab: Lab, portals: str, category: int, events: int) -> None:
    """By MSI-X entry 0, and everything is frozen; wherever the event was counted."""
    dsa = lab.started(portals=portals)
    dsa.enable_interrupts()
    at = offset(dsa)
    dsa.write(at + 0x230, (1 << 48) - 2, 8)
    count(dsa, 6, category, events, ON_OVERFLOW | FREEZE)
    count(dsa, 0, ENGINE, 0x2)
    for _ in range(2):
        assert dsa.read(0x98) == 0
        target = dsa.memory.take(64)
        assert dsa.run(0, FILL, destination=target, size=64).status == 1
    dsa.events[0].wait(20.0)
    assert dsa.read(0x98) == Cause.PERFMON
    assert (dsa.read(at + 0x30), dsa.read(at + 0x20), value(dsa, 6)) == (0x40, 0xFF, 0)
    before = value(dsa, 0)
    assert dsa.run(0, FILL, destination=target, size=64).status == 1
    assert dsa.command(Command.DRAIN_ALL) == 0
    assert value(dsa, 0) == before
    dsa.write(0x98, Cause.PERFMON)
    dsa.write(at + 0x30, 0x40)
    dsa.write(at + 0x20, 0)
    assert dsa.run(0, FILL, destination=target, size=64).status == 1
    assert dsa.command(Command.DRAIN_ALL) == 0
    assert (value(dsa, 0) - before, value(dsa, 6), dsa.read(0x98)) == (2, 1, 0)


def test_reset_device_disables_the_counters(lab: Lab) -> None:
    dsa = lab.started()
    count(dsa, 0, OPERATIONS, 0x1)
    assert dsa.run(0, NOOP).status == 1
    assert dsa.command(Command.DRAIN_ALL) == 0
    assert value(dsa, 0) == 1
    dsa.start()
    assert dsa.run(0, NOOP).status == 1
    assert dsa.command(Command.DRAIN_ALL) == 0
    assert (value(dsa, 0), dsa.read(offset(dsa) + 0x100, 8)) == (0, 0)
