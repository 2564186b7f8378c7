"""Hints: what is noticed of a guest that waits or asks in vain, and what is not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from vdcm.bars import Bar, PagePolicy, Pages
from vdcm.events import Event, Hint
from vdcm.hints import LIMIT
from vdcm.pci import Identity, MsiX
from vdcm.protocol import Irq, Region
from vdcm.registers import Access, Field, Register, RegisterMap
from vdcm.transport import IrqAction, Written
from vdcm.vdev import Vdev

COMMAND, STATUS, CLOCK, LIMITS, ASK, CAUSE = 0x0, 0x4, 0x8, 0xC, 0x10, 0x14


class Registers(RegisterMap):
    COMMAND = Register(COMMAND, 32, fields={"GO": Field(0, access=Access.WO), "SPEED": Field(1, 3)})
    STATUS = Register(STATUS, 32, Access.RO, fields={"BUSY": Field(0), "ERROR": Field(1, 4)})
    CLOCK = Register(CLOCK, 32, Access.RO)
    LIMITS = Register(LIMITS, 32)
    ASK = Register(ASK, 32, answered=True)
    CAUSE = Register(CAUSE, 32, Access.W1C)


class Machine(Vdev):
    """It is told to go, and is busy ever after."""

    identity = Identity(vendor=0x1234, device=0x0001, class_code=0xFF0000)

    def __init__(self) -> None:
        self.registers: Final = Registers(self)
        bar = Bar(0, 0x4000, pages=[Pages(0x3000, 0x1000, PagePolicy.MEMORY)])
        bar.place(0, self.registers)
        msix = MsiX(4, table_bar=0, table_offset=0x1000, pba_bar=0, pba_offset=0x2000)
        super().__init__("machine", [bar], [msix])

    def on_write_COMMAND(self, value: int) -> None:
        self.registers.STATUS.BUSY = value & 1

    def on_read_CLOCK(self) -> int:
        return 7


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


@pytest.fixture
def heard(machine: Machine) -> list[Hint]:
    hints: list[Hint] = []

    def hear(event: Event) -> None:
        if isinstance(event, Hint):
            hints.append(event)

    machine.observe(hear, accesses=False)
    return hints


def said(machine: Machine) -> list[tuple[str, int]]:
    return [(one["hint"], one["times"]) for one in machine.describe()["hints"]]


# Places that no register has


def test_an_uncovered_place_is_reported_once_and_counted(
    machine: Machine, heard: list[Hint], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert machine.read(0, 0x104, 4) == 0
    machine.write(0, 0x104, 4, 0xBEEF)
    assert [str(hint) for hint in heard] == [
        "the guest read 4 bytes at BAR0+0x104, which no register covers: it got 0x0; the last "
        "register before is CAUSE at 0x14",
        "the guest wrote 0xbeef to BAR0+0x104, 4 bytes that no register covers: it was ignored; "
        "the last register before is CAUSE at 0x14",
    ]
    assert said(machine) == [("uncovered", 3), ("uncovered", 1)]
    logged = [r for r in caplog.records if r.name == "vdcm.hints"]
    assert [r.levelno for r in logged] == [logging.WARNING] * 2
    assert logged[0].getMessage().startswith("machine: the guest read 4 bytes")


def test_what_registers_cover_in_part_is_theirs(machine: Machine, heard: list[Hint]) -> None:
    machine.read(0, ASK, 8)
    machine.write(0, ASK, 8, 1)
    machine.read(0, COMMAND + 1, 1)
    machine.read(0, 0x3004, 4)  # memory
    machine.write(0, 0x3004, 4, 1)
    assert heard == []


def test_configuration_space_may_be_read_but_not_written_anywhere(
    machine: Machine, heard: list[Hint]
) -> None:
    for at in range(0, 0x1000, 4):
        machine.read(Region.CONFIG, at, 4)
    assert heard == []
    machine.write(Region.CONFIG, 0x800, 4, 1)
    assert [hint.hint for hint in heard] == ["uncovered"]


def test_no_guest_makes_more_of_them_than_are_kept(
    machine: Machine, heard: list[Hint], caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(LIMIT + 100):
        machine.read(0, 0x200 + n, 1)
    assert len(heard) == LIMIT == len([r for r in caplog.records if r.name == "vdcm.hints"])
    assert said(machine)[-1] == ("untold", 100) and len(said(machine)) == LIMIT + 1


# Polling, as native/watch.c tells it


def poll(machine: Machine, offset: int, value: int, times: int = 64, seconds: float = 0.2) -> None:
    """As many reads, of which we are told at each power of two."""
    n = 4
    while n <= times:
        machine.repeated(0, (offset, 4, value), n, seconds * n / times, WROTE)
        n *= 2


WROTE: Final = Written(0, COMMAND, 4, 3, 0.0, 0.25, 0)


def test_polling_names_register_fields_and_what_changed_it(
    machine: Machine, heard: list[Hint]
) -> None:
    machine.write(0, COMMAND, 4, 3)
    poll(machine, STATUS, 1)
    (hint,) = heard
    assert (hint.hint, hint.registers) == ("polling", ("STATUS",))
    assert str(hint) == (
        "the guest reads STATUS (BAR0+0x04) again and again: 16 times in 0.05 s, and always sees "
        "0x1 (BUSY=1, ERROR=0), without an interrupt meanwhile; the device has changed STATUS last "
        "when the guest wrote COMMAND; before that it wrote 0x3 (GO=1, SPEED=1) to COMMAND "
        "(BAR0+0x00) 0.25 s ago"
    )
    assert said(machine) == [("polling", 3)], "at 16, 32 and 64 reads"


def on_its_own(machine: Machine) -> None:
    machine.registers.STATUS.BUSY = 1


@pytest.mark.parametrize(
    ("before", "offset", "words"),
    [
        (lambda _: None, STATUS, "STATUS has not changed since the last reset"),
        (on_its_own, STATUS, "the device has changed STATUS last, on its own"),
        (lambda m: m.write(0, LIMITS, 4, 5), LIMITS, "the guest's write of it has changed LIMITS"),
        (lambda _: None, CLOCK, "on_read_CLOCK of the device model says what CLOCK is"),
        (
            lambda m: (on_its_own(m), m.reset()),
            STATUS,
            "STATUS has not changed since the last reset",
        ),
    ],
)
def test_what_changed_it_last(
    machine: Machine,
    heard: list[Hint],
    before: Callable[[Machine], Any],
    offset: int,
    words: str,
) -> None:
    before(machine)
    poll(machine, offset, 1)
    assert words in str(heard[0])


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        (STATUS, "if writing 1 is to clear these bits, they have to be Access.W1C"),
        (CAUSE, "these bits are cleared by writing 1: the device sets them again"),
    ],
)
def test_what_is_written_back_each_time_is_to_be_cleared(
    machine: Machine, heard: list[Hint], offset: int, words: str
) -> None:
    back = WROTE._replace(offset=offset, value=1)
    for times in (4, 8):
        machine.repeated(0, (offset, 4, 1), times, 0.001, back)
    machine.repeated(0, (offset, 4, 1), 16, 0.001, back._replace(value=2))
    assert heard == []
    machine.repeated(0, (offset, 4, 1), 16, 0.001, back)
    (hint,) = heard
    assert hint.hint == "uncleared"
    assert "and writes back what it has read, again and again: 16 times in 0.001 s" in str(hint)
    assert str(hint).endswith(words)


def test_few_or_quick_reads_are_no_polling(machine: Machine, heard: list[Hint]) -> None:
    poll(machine, STATUS, 0, times=4, seconds=0.9)
    poll(machine, STATUS, 0, times=32, seconds=0.01)
    poll(machine, 0x100, 0)  # no register
    machine.repeated(5, (0, 4, 0), 64, 1.0, None)
    assert heard == []
    poll(machine, STATUS, 0, times=64, seconds=0.01)
    assert len(heard) == 1


def test_who_gets_interrupts_is_not_stuck(machine: Machine, heard: list[Hint]) -> None:
    class Source:
        """Of an ADI: it delivers past everybody."""

        pending = False
        delivered = 0

        def bind(self, eventfd: int) -> None: ...
        def block(self, blocked: bool) -> None: ...
        def take(self) -> bool:
            return False

        def clear(self) -> None: ...

    source = Source()
    machine.interrupts.connect(0, source)
    for n in range(2, 10):
        source.delivered += 1
        machine.repeated(0, (STATUS, 4, 0), 1 << n, 1.0, None)
    assert heard == []
    machine.repeated(0, (STATUS, 4, 0), 1 << 10, 1.0, None)
    assert len(heard) == 1
    machine.interrupts.disconnect(0, source)


# Commands without an answer


def written(offset: int, value: int, interrupts: int = 0) -> Written:
    return Written(0, offset, 4, value, 100.0, 1.25, interrupts)


def bind(machine: Machine) -> None:
    control = next(c for c in machine.config.capabilities if isinstance(c, MsiX)).offset + 2
    machine.write(Region.CONFIG, control, 2, 0x8000)
    machine.irqs_changed(Irq.MSIX, IrqAction.BOUND, 0, 2)


def test_a_command_without_an_interrupt_is_named(machine: Machine, heard: list[Hint]) -> None:
    machine.silent(written(COMMAND, 3))
    assert heard == [], "nothing is bound: its driver polls"
    bind(machine)
    machine.silent(written(LIMITS, 3))
    machine.silent(written(COMMAND, 2))
    machine.silent(written(0x100, 2))
    assert heard == [], "no command"
    machine.silent(written(COMMAND, 3))
    assert str(heard[0]) == (
        "the guest wrote 0x3 (GO=1, SPEED=1) to COMMAND (BAR0+0x00) 1.2 s ago, and has done "
        "nothing since; no interrupt was raised: if its driver waits for one (MSIX 0, 1), that is "
        "why it times out"
    )
    machine.silent(written(ASK, 0))
    machine.silent(written(ASK, 0, interrupts=1))
    assert said(machine) == [("unanswered", 1), ("unanswered", 1)]


def test_a_write_upon_which_the_device_writes_memory_wants_an_interrupt(
    machine: Machine, heard: list[Hint]
) -> None:
    bind(machine)
    machine.hints.wrote = 99.9
    machine.silent(written(0x104, 7))
    machine.hints.wrote = 100.1
    machine.silent(written(0x104, 7, interrupts=1))
    assert heard == [], "that was before it, or there was an interrupt"
    machine.silent(written(0x104, 7))
    assert str(heard[0]) == (
        "the guest wrote 0x7 to BAR0+0x104 1.2 s ago, and has done nothing since; the device has "
        "written to its memory, and no interrupt was raised: if its driver waits for one "
        "(MSIX 0, 1), that is why it times out"
    )


def test_a_device_that_interrupts_may_leave_a_command_unanswered(
    machine: Machine, heard: list[Hint]
) -> None:
    class Signals:
        memory = None
        peer = 1

        def trigger(self, *_: object) -> bool:
            return True

        def eventfd(self, *_: object) -> int:
            return -1

        def observe(self, observed: bool) -> None: ...

        def counters(self) -> dict[str, Any]:
            return {}

    machine.interrupts.attach(Signals())
    machine.write(Region.CONFIG, 4, 2, 4)
    bind(machine)
    machine.interrupts.signal(0)
    machine.silent(written(COMMAND, 1))
    assert heard == []
    machine.hints.attached()
    machine.silent(written(COMMAND, 1))
    assert len(heard) == 1
