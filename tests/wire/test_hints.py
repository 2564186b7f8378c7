"""Hints of a client that really polls, and one that really waits."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from typing import Final

import pytest

from vdcm import Access, Bar, Field, Identity, MsiX, Register, RegisterMap, Vdev
from vdcm.client import Client, Irq, Region
from vdcm.testing import Host

COMMAND, STATUS, LIMITS, ANSWER = 0x0, 0x4, 0x8, 0xC
MEMORY = 0x10000
DEADLINE = 10.0


class Registers(RegisterMap):
    COMMAND = Register(COMMAND, 32, Access.WO)
    STATUS = Register(STATUS, 32, Access.RO, fields={"BUSY": Field(0)})
    LIMITS = Register(LIMITS, 32)
    ANSWER = Register(ANSWER, 32)


class Stuck(Vdev):
    """It takes commands, and never ends one."""

    identity = Identity(vendor=0x1234, device=0x0001, class_code=0xFF0000)

    def __init__(self, name: str) -> None:
        self.registers: Final = Registers(self)
        bar = Bar(0, 0x4000)
        bar.place(0, self.registers)
        msix = MsiX(2, table_bar=0, table_offset=0x1000, pba_bar=0, pba_offset=0x2000)
        super().__init__(name, [bar], [msix])

    def on_write_COMMAND(self, value: int) -> None:
        self.registers.STATUS.BUSY = 1
        if value == 2:
            self.interrupts.signal(0)

    def on_write_ANSWER(self, value: int) -> None:
        self.dma_write(MEMORY, b"done")
        if value == 2:
            self.interrupts.signal(0)


@pytest.fixture
def device(host: Host) -> Iterator[tuple[Stuck, Client]]:
    vdev = host.serve(Stuck, "stuck").vdev
    with host.connect("stuck") as client:
        client.config.write(4, 2, 6)
        client.irq_enable(Irq.MSIX, count=1)
        memory = os.memfd_create("memory")
        os.ftruncate(memory, 0x1000)
        client.dma_map(MEMORY, 0x1000, memory)
        os.close(memory)
        yield vdev, client


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "vdcm.hints"]


def test_a_client_that_polls(
    device: tuple[Stuck, Client], caplog: pytest.LogCaptureFixture
) -> None:
    vdev, client = device
    client.write(0, COMMAND, 4, 1)
    for _ in range(200):
        assert client.read(0, STATUS, 4) == 1
    (line,) = said(caplog)
    assert line.startswith("stuck: the guest reads STATUS (BAR0+0x04) again and again: ")
    assert "0x1 (BUSY=1)" in line
    assert "the device has changed STATUS last when the guest wrote COMMAND" in line
    assert "before that it wrote 0x1 to COMMAND (BAR0+0x00)" in line
    (hint,) = vdev.describe()["hints"]
    assert hint["hint"] == "polling" and hint["times"] >= 2


@pytest.mark.parametrize("other", [(COMMAND, 1), (LIMITS, 0), (COMMAND, 2)])
def test_reads_between_which_something_happens_are_no_polling(
    device: tuple[Stuck, Client], caplog: pytest.LogCaptureFixture, other: tuple[int, int]
) -> None:
    _, client = device
    for _ in range(200):
        client.read(0, STATUS, 4)
        client.write(0, other[0], 4, other[1])
    assert said(caplog) == []


def test_two_that_are_polled_in_turns(
    device: tuple[Stuck, Client], caplog: pytest.LogCaptureFixture
) -> None:
    _, client = device
    for _ in range(200):
        client.read(0, STATUS, 4)
        client.read(0, LIMITS, 4)
        client.config.read(0, 4)
    assert [line.split()[4] for line in said(caplog)] == ["STATUS", "LIMITS"]


@pytest.mark.parametrize(("back", "hints"), [(1, 1), (3, 0)])
def test_a_client_that_clears_in_vain(
    device: tuple[Stuck, Client], caplog: pytest.LogCaptureFixture, back: int, hints: int
) -> None:
    _, client = device
    client.write(0, COMMAND, 4, 1)
    for _ in range(32):
        assert client.read(0, STATUS, 4) == 1
        client.write(0, STATUS, 4, back)
    found = said(caplog)
    assert len(found) == hints
    assert all("STATUS (BAR0+0x04) and writes back what it has read" in one for one in found)


def test_what_is_written_back_is_followed_by_nothing_else(
    device: tuple[Stuck, Client], caplog: pytest.LogCaptureFixture
) -> None:
    _, client = device
    client.write(0, COMMAND, 4, 1)
    for _ in range(100):
        client.read(0, STATUS, 4)
        client.write(0, STATUS, 4, 1)
        client.write(0, LIMITS, 4, 0)
    assert said(caplog) == []


@pytest.mark.parametrize("signals", [False, True])
def test_a_client_that_waits_when_the_device_has_written_its_memory(
    device: tuple[Stuck, Client], caplog: pytest.LogCaptureFixture, signals: bool
) -> None:
    _, client = device
    client.write(0, ANSWER, 4, 2 if signals else 1)
    deadline = time.monotonic() + (2.0 if signals else DEADLINE)
    while not said(caplog) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(said(caplog)) == (not signals)
    assert all("the device has written to its memory" in one for one in said(caplog))


def test_slow_reads_are_a_watchdog(
    device: tuple[Stuck, Client], caplog: pytest.LogCaptureFixture
) -> None:
    _, client = device
    for _ in range(10):
        client.read(0, STATUS, 4)
        time.sleep(0.3)
    assert said(caplog) == []


def test_a_client_that_waits(
    device: tuple[Stuck, Client], caplog: pytest.LogCaptureFixture
) -> None:
    _, client = device
    client.write(0, COMMAND, 4, 1)
    deadline = time.monotonic() + DEADLINE
    while not said(caplog) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.5)  # it is said once
    (line,) = said(caplog)
    assert line.startswith("stuck: the guest wrote 0x1 to COMMAND (BAR0+0x00) ")
    assert "(MSIX 0)" in line


@pytest.mark.parametrize("last", ["read", "interrupt", "harmless"])
def test_a_client_that_does_not_wait(
    device: tuple[Stuck, Client], caplog: pytest.LogCaptureFixture, last: str
) -> None:
    _, client = device
    client.write(0, COMMAND, 4, 2 if last == "interrupt" else 1)
    if last == "read":
        client.read(Region.BAR0, STATUS, 4)
    elif last == "harmless":
        client.write(0, LIMITS, 4, 1)
    time.sleep(2.0)
    assert said(caplog) == []


def test_an_uncovered_place(device: tuple[Stuck, Client], caplog: pytest.LogCaptureFixture) -> None:
    vdev, client = device
    caplog.set_level(logging.WARNING)
    client.write_multi([(0, 0x100, 4, n) for n in range(50)], post=True)
    assert client.read(0, 0x100, 4) == 0
    assert [one["times"] for one in vdev.describe()["hints"]] == [50, 1]
    assert len(said(caplog)) == 2
