"""Event counters of the software DSA: each event against a program whose numbers are written down
here, filters, overflow, freezing, resets, and what a hostile guest may write (chapter 6)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from dsa_machine import GUEST_PASID, PAGE, PRIMARY, SECONDARY, Machine, descriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from vdcm.errors import DeferredError
from vdcm.parent import build
from vdcm.registers import RegisterSpace
from vdcm_devices.dsa import Dsa
from vdcm_devices.dsa._fastpath import lib
from vdcm_devices.dsa.perfmon import Perfmon
from vdcm_devices.dsa.vdev import DsaVdev

RECORD = lib.DSA_FLAG_COMPLETION_VALID | lib.DSA_FLAG_REQUEST_COMPLETION
INTERRUPT = lib.DSA_FLAG_REQUEST_INTERRUPT
A, B, C, COMPLETION = 0x100000, 0x200000, 0x300000, 0x800000
WQ, ENGINE, OPERATIONS, COMPLETIONS = 0, 1, 3, 4
ENABLE, ON_OVERFLOW, FREEZE = 1, 2, 4
PERFRST, PERFFRZ, OVFSTATUS = 0x10, 0x20, 0x30
TC, PAGE_SIZE, SIZE, ENGINE_NUMBER, PASID = 1, 2, 3, 4, 5
LAST = (1 << 48) - 1
INDEX, ENGINE_OF_WQ = 3, 2  # the work queue is WQ 3, its engine number 2, its classes 1 and 5


class Counted:
    """A queue, and the guest's view of the counters that it counts into."""

    def __init__(self, shared: Any = None, version: int = 0x200, **settings: Any) -> None:
        self.interrupts = 0
        self.perfmon = Perfmon(version, self._interrupt)
        self.space = RegisterSpace("perfmon", 0x1000)
        self.space.place(0, self.perfmon.registers)
        settings = {"engine": ENGINE_OF_WQ, "traffic_classes": [1, 5], **settings}
        self.machine = Machine(shared, **settings)
        lib.dsa_queue_set_perfmon(self.machine.queue, self.perfmon.native)
        lib.dsa_queue_handle(self.machine.queue, 1, 0, 0xFFFF_FFFF)
        for address in (A, B, C):
            self.machine.map(address, 16 * PAGE)
        self.machine.map(COMPLETION, PAGE, pasid=SECONDARY)
        self.machine.map(COMPLETION, PAGE, pasid=PRIMARY)

    def _interrupt(self) -> None:
        self.interrupts += 1

    def write(self, offset: int, value: int, width: int = 4) -> None:
        self.space.write(offset, width, value)

    def read(self, offset: int, width: int = 4) -> int:
        return self.space.read(offset, width)

    def filter(self, counter: int, kind: int, value: int) -> None:
        self.write(0x300 + 32 * counter + 4 * kind, value)

    def count(self, counter: int, category: int, events: int, flags: int = 0) -> None:
        """Begin."""
        self.write(0x100 + 8 * counter, events << 32 | category << 8 | flags | ENABLE, 8)

    def stop(self, counter: int) -> None:
        self.write(0x100 + 8 * counter, 0, 8)

    def preset(self, counter: int, value: int) -> None:
        self.write(0x200 + 8 * counter, value, 8)

    def value(self, counter: int = 0) -> int:
        return self.read(0x200 + 8 * counter, 8)

    def told(self) -> int:
        """Reports of overflows, as the host driver would have got them."""
        found = len([code for code, _ in self.machine.reports if code == lib.DSA_REPORT_OVERFLOW])
        self.machine.reports.clear()
        self.perfmon.look()
        return found

    def close(self) -> None:
        self.machine.close()


@pytest.fixture
def counted() -> Iterator[Counted]:
    made = Counted()
    yield made
    made.close()


@pytest.fixture
def shared() -> Iterator[Any]:
    wq = lib.dsa_wq_new(4, 2, 0)
    yield wq
    lib.dsa_wq_free(wq)


def op(name: str, flags: int = 0, **fields: Any) -> bytes:
    code = getattr(lib, f"DSA_OP_{name}")
    return descriptor(code, RECORD | flags, completion=COMPLETION, **fields)


def noop(**fields: Any) -> bytes:
    return op("NOOP", **fields)


# Name, descriptor; bytes of source 1, source 2, destination 1 and destination 2, by hand.
PROGRAM: list[tuple[str, bytes, tuple[int, int, int, int]]] = [
    ("NOOP", noop(), (0, 0, 0, 0)),
    ("MEMORY_MOVE", op("MEMORY_MOVE", source=A, destination=B, size=100), (100, 0, 100, 0)),
    ("FILL", op("FILL", source=0x11, destination=C, size=4096), (0, 0, 4096, 0)),
    ("COMPARE", op("COMPARE", source=A, destination=B, size=1000), (1000, 1000, 0, 0)),
    ("COMPARE_PATTERN", op("COMPARE_PATTERN", source=A, size=64), (64, 0, 0, 0)),
    (  # all of 64 bytes differ: 8 entries of 10 bytes
        "CREATE_DELTA",
        op(
            "CREATE_DELTA",
            source=A,
            destination=C,
            size=64,
            specific=struct.pack("<QI", B + PAGE, 160),
        ),
        (64, 64, 80, 0),
    ),
    (
        "APPLY_DELTA",
        op(
            "APPLY_DELTA",
            source=B + PAGE,
            destination=A + PAGE,
            size=64,
            specific=struct.pack("<I", 80),
        ),
        (80, 0, 64, 0),
    ),
    (
        "DUALCAST",
        op(
            "DUALCAST",
            source=A,
            destination=B,
            size=33,
            specific=struct.pack("<Q", C + 2 * PAGE),
        ),
        (33, 0, 33, 33),
    ),
    ("CRC", op("CRC", source=A, size=31), (31, 0, 0, 0)),
    ("COPY_CRC", op("COPY_CRC", source=A, destination=B, size=65), (65, 0, 65, 0)),
    (
        "DIF_INSERT",
        op("DIF_INSERT", source=A, destination=B + 4 * PAGE, size=1024, specific=bytes(24)),
        (1024, 0, 1040, 0),
    ),
    (
        "DIF_CHECK",
        op("DIF_CHECK", source=B + 4 * PAGE, size=1040, specific=bytes(24)),
        (1040, 0, 0, 0),
    ),
    (
        "DIF_STRIP",
        op("DIF_STRIP", source=B + 4 * PAGE, destination=C, size=1040, specific=bytes(24)),
        (1040, 0, 1024, 0),
    ),
    (
        "DIF_UPDATE",
        op("DIF_UPDATE", source=B + 4 * PAGE, destination=C, size=1040, specific=bytes(24)),
        (1040, 0, 1040, 0),
    ),
    ("CACHE_FLUSH", op("CACHE_FLUSH", destination=C, size=64), (0, 0, 0, 0)),
    ("DRAIN", op("DRAIN"), (0, 0, 0, 0)),
]
OPERATION_EVENTS = {  # appendix D.1.1, category 3
    "NOOP": 0x1,
    "BATCH": 0x2,
    "DRAIN": 0x4,
    "MEMORY_MOVE": 0x8,
    "FILL": 0x10,
    "COMPARE": 0x20,
    "COMPARE_PATTERN": 0x40,
    "CREATE_DELTA": 0x80,
    "APPLY_DELTA": 0x100,
    "DUALCAST": 0x200,
    "CRC": 0x400,
    "COPY_CRC": 0x800,
    "DIF_CHECK": 0x1000,
    "DIF_INSERT": 0x2000,
    "DIF_STRIP": 0x4000,
    "DIF_UPDATE": 0x8000,
    "CACHE_FLUSH": 0x10000,
}


def units(size: int) -> int:
    """Of 32 bytes."""
    return -(-size // 32)


@pytest.mark.parametrize(("name", "raw", "streams"), PROGRAM, ids=[name for name, *_ in PROGRAM])
def test_what_each_operation_counts(
    counted: Counted, name: str, raw: bytes, streams: tuple[int, int, int, int]
) -> None:
    for _, before, _ in PROGRAM:  # its memory is as those before it leave it
        if before == raw:
            break
        counted.machine.execute(before)
    expected = {
        (ENGINE, 0x1): units(streams[0]) + units(streams[1]),
        (ENGINE, 0x2): units(streams[2]) + units(streams[3]),
        (ENGINE, 0x4): streams[0] > 0,
        (ENGINE, 0x8): streams[2] > 0,
        (ENGINE, 0x200): streams[1] > 0,
        (ENGINE, 0x400): streams[3] > 0,
        (OPERATIONS, OPERATION_EVENTS[name]): 1,
        (OPERATIONS, 0x1FFFF & ~OPERATION_EVENTS[name]): 0,
    }
    for counter, (category, events) in enumerate(expected):
        counted.count(counter, category, events)
    counted.machine.execute(raw)
    assert counted.machine.completion(COMPLETION).status == 1
    assert [counted.value(counter) for counter in range(len(expected))] == list(expected.values())


def test_the_program_has_every_operation() -> None:
    assert {name for name, *_ in PROGRAM} | {"BATCH"} == set(OPERATION_EVENTS)


def test_a_counter_adds_all_that_its_events_count(counted: Counted) -> None:
    """Of one category, also where several happen at once (6.2)."""
    counted.count(0, ENGINE, 0x1 | 0x2 | 0x4 | 0x8)
    counted.count(1, OPERATIONS, 0x1FFFF)
    for _, raw, _ in PROGRAM:
        counted.machine.execute(raw)
    bytes_of = [streams for _, _, streams in PROGRAM]
    expected = sum(units(size) for streams in bytes_of for size in streams)
    expected += sum((streams[0] > 0) + (streams[2] > 0) for streams in bytes_of)
    assert (counted.value(0), counted.value(1)) == (expected, len(PROGRAM))


def test_batches(counted: Counted) -> None:
    """The descriptors in one are dispatched, are operations and end as those outside."""
    good, bad = noop(), op("FILL", destination=C, size=0)
    counted.machine.map(0x500000, (good * 3 + bad) * 1, pasid=SECONDARY)
    for counter, (category, events) in enumerate(
        [
            (ENGINE, 0x10),
            (ENGINE, 0x20),
            (OPERATIONS, 0x1),
            (OPERATIONS, 0x2),
            (COMPLETIONS, 0x10),
            (COMPLETIONS, 0x8),
            (COMPLETIONS, 0x20),
            (COMPLETIONS, 0x4),
        ]
    ):
        counted.count(counter, category, events)
    counted.machine.execute(op("BATCH", source=0x500000, size=4), noop())
    assert [counted.value(i) for i in range(8)] == [4, 2, 4, 1, 4, 2, 6, 0]


def test_completions(counted: Counted) -> None:
    machine = counted.machine
    events = (0x1, 0x4, 0x8, 0x10, 0x20)
    for counter, event in enumerate(events):
        counted.count(counter, COMPLETIONS, event)
    machine.execute(
        noop(flags=INTERRUPT, handle=1),
        noop(flags=INTERRUPT, handle=9),  # error, and no interrupt
        op("MEMORY_MOVE", source=A + 15 * PAGE, destination=B, size=2 * PAGE),  # a fault half way
        op("COMPARE", lib.DSA_FLAG_CHECK_RESULT, source=A, destination=C, size=8),
        descriptor(lib.DSA_OP_NOOP),  # without a record
        descriptor(0xFF, RECORD, completion=COMPLETION),
    )
    assert [counted.value(i) for i in range(len(events))] == [1, 1, 2, 3, 5]
    counters = machine.counters()
    assert (counters.succeeded, counters.failed, counters.interrupts) == (3, 3, 1)


def test_a_part_counts_as_far_as_it_came(counted: Counted) -> None:
    counted.count(0, ENGINE, 0x1)
    counted.count(1, ENGINE, 0x2)
    counted.count(2, ENGINE, 0x4 | 0x8)
    counted.machine.execute(
        op("MEMORY_MOVE", source=A + 15 * PAGE, destination=B, size=2 * PAGE),
        op("MEMORY_MOVE", source=0x1000, destination=B, size=100),
        op("MEMORY_MOVE", source=A, destination=B, size=0),
    )
    assert [counted.value(i) for i in range(3)] == [128, 128, 2]


def test_a_program_in_slices_counts_the_same(counted: Counted) -> None:
    counted.count(0, ENGINE, 0x1 | 0x2)
    counted.count(1, COMPLETIONS, 0x10)
    move = op("MEMORY_MOVE", source=A, destination=B, size=13 * PAGE)
    counted.machine.execute(move, move, budget=1)
    assert (counted.value(0), counted.value(1)) == (2 * 2 * 13 * 128, 2)


# ---- submission ----------------------------------------------------------------------------------


def test_submission_to_a_dedicated_queue(counted: Counted) -> None:
    counted.machine.configure(size=3)
    for counter, event in enumerate((0x10, 0x20, 0x40, 0x0F)):
        counted.count(counter, WQ, event)
    answers = counted.machine.submit(*[noop()] * 5)
    assert [answer == 0 for answer in answers] == [True] * 3 + [False] * 2
    assert [counted.value(i) for i in range(4)] == [3, 2, 2, 0]


def test_submission_to_a_shared_queue(shared: Any) -> None:
    """Its limited portal takes 2 of 4 entries."""
    counted = Counted(shared)
    for counter, event in enumerate((0x1, 0x2, 0x4, 0x8, 0x70)):
        counted.count(counter, WQ, event)
    raw = noop(pasid=GUEST_PASID)
    counted.machine.submit(raw, raw, raw, portal=1)
    counted.machine.submit(raw, raw, raw, portal=0)
    assert [counted.value(i) for i in range(5)] == [2, 1, 2, 1, 0]
    counted.close()


def test_the_first_version_has_fewer_events() -> None:
    counted = Counted(version=0x100)
    assert [counted.read(0x80 + 8 * i, 8) for i in range(5)] == [0x3F, 0x3F & 0xF | 0x30, 0, *REST]
    counted.machine.configure(size=1)
    counted.count(0, WQ, 0x60)
    counted.count(1, ENGINE, 0x600)
    counted.machine.submit(noop(), noop())
    counted.machine.run()
    counted.machine.execute(op("COMPARE", source=A, destination=B, size=64))
    assert (counted.value(0), counted.value(1)) == (1, 0)
    counted.filter(0, PASID, 0)
    assert counted.read(0x314) == 0, "no such filter"
    counted.close()


REST = (0x1FFFF, 0x3D)


def test_writes_to_a_queue_that_is_not_enabled() -> None:
    dsa = build(Dsa, "dsa0", {})
    vdev = dsa.create("dsa-2dwq-1swq", "v", {})
    assert isinstance(vdev, DsaVdev)
    for counter, (events, wqs) in enumerate(((0x40, 1), (0x40, 3), (0x2, 4), (0x8, 4), (0x2, 3))):
        vdev.write(0, 0x1300 + 32 * counter, 4, wqs)
        vdev.write(0, 0x1100 + 8 * counter, 8, events << 32 | 1)
    for page in (0, 1, 2, 5, 5):  # page 2 would be an IMS portal, which there is not
        for word in range(8):
            vdev.write(2, 0x1000 * page + 8 * word, 8, 0)
    for page in (8, 9, 9):
        for word in range(7):
            vdev.write(2, 0x1000 * page + 8 * word, 8, 0)
        with pytest.raises(DeferredError):
            vdev.write(2, 0x1000 * page + 56, 8, 0)
    assert [vdev.read(0, 0x1200 + 8 * i, 8) for i in range(5)] == [2, 4, 2, 1, 0]
    vdev.close()
    dsa.close()


# ---- filters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("category", "events", "kind", "picked", "others"),
    [
        (WQ, 0x10, 0, 1 << INDEX, 0xFFFF & ~(1 << INDEX)),
        (OPERATIONS, 0x8, 0, 1 << INDEX | 1, 7),
        (COMPLETIONS, 0x10, 0, 1 << INDEX, 0),
        (ENGINE, 0x20, 0, 1 << INDEX, 1 << 15),
        (ENGINE, 0x20, ENGINE_NUMBER, 1 << ENGINE_OF_WQ, 0xFFFB),
        (ENGINE, 0x8, ENGINE_NUMBER, 1 << ENGINE_OF_WQ, 0xFFFB),
        (ENGINE, 0x8, SIZE, 1 << 3, 0xF7),
        (ENGINE, 0x4, TC, 1 << 1, 0xFFFD),
        (ENGINE, 0x8, TC, 1 << 5, 0xFFDF),
        (WQ, 0x10, PASID, 0x55, 0x56),
        (OPERATIONS, 0x8, PASID, 1 << 20, 2 << 20),
        (COMPLETIONS, 0x10, PASID, 3 << 20 | 0x55, 2 << 20 | 0x55),
        (ENGINE, 0x20, PASID, 0x55, 0x1055),
    ],
)
def test_filters(
    counted: Counted, category: int, events: int, kind: int, picked: int, others: int
) -> None:
    """One counter whose filter has the descriptor, and one whose filter has all but it."""
    for counter, value in enumerate((picked, others)):
        counted.filter(counter, kind, value)
        counted.count(counter, category, events)
    flags = lib.DSA_FLAG_ADDRESS2_TC  # TC-A for the source, TC-B for the destination
    counted.machine.execute(op("MEMORY_MOVE", flags, source=A, destination=B, size=4096))
    assert (counted.value(0), counted.value(1)) == (1, 0)


@pytest.mark.parametrize(
    ("category", "events", "kinds"),
    [
        (WQ, 0x10, (TC, PAGE_SIZE, SIZE, ENGINE_NUMBER)),
        (OPERATIONS, 0x8, (TC, PAGE_SIZE, SIZE, ENGINE_NUMBER)),
        (COMPLETIONS, 0x10, (TC, PAGE_SIZE, SIZE, ENGINE_NUMBER)),
        (ENGINE, 0x20, (TC, PAGE_SIZE, SIZE)),
        (ENGINE, 0x8, (0, PAGE_SIZE, PASID)),
    ],
)
def test_filters_that_an_event_does_not_have(
    counted: Counted, category: int, events: int, kinds: tuple[int, ...]
) -> None:
    """Appendix D: they do not matter."""
    for kind in kinds:
        counted.filter(0, kind, 0)
    counted.count(0, category, events)
    counted.machine.execute(op("MEMORY_MOVE", source=A, destination=B, size=64))
    assert counted.value() == 1


def test_all_filters_have_to_pass(counted: Counted) -> None:
    for counter, (size, engine) in enumerate(((1, 4), (1, 8), (2, 4), (0xFFFF, 0xFFFF))):
        counted.filter(counter, SIZE, size)
        counted.filter(counter, ENGINE_NUMBER, engine)
        counted.count(counter, ENGINE, 0x8)
    counted.machine.execute(op("FILL", destination=B, size=511))
    assert [counted.value(i) for i in range(4)] == [1, 0, 0, 1]


def test_ranges_of_transfer_sizes() -> None:
    """Table 6-2; memory ends long before the largest does, and its first page counts."""
    counted = Counted(max_transfer=1 << 31)
    ends = (512, 2 << 10, 4 << 10, 16 << 10, 1 << 20, 64 << 20, 1 << 30)
    sizes = [1, *(end + more for end in ends for more in (-1, 0)), 1 << 31]
    for counter in range(8):
        counted.filter(counter, SIZE, 1 << counter)
        counted.count(counter, ENGINE, 0x8)
    for size in sizes:
        counted.machine.execute(op("FILL", destination=B, size=size))
    assert [counted.value(i) for i in range(8)] == [2] * 8
    counted.close()


def test_work_without_a_pasid() -> None:
    counted = Counted(flags=0)
    for counter, value in enumerate((0x55, 1 << 20, 2 << 20, 3 << 20)):
        counted.filter(counter, PASID, value)
        counted.count(counter, OPERATIONS, 0x1)
    counted.machine.execute(noop())
    assert [counted.value(i) for i in range(4)] == [0, 0, 1, 1]
    counted.close()


def test_pasids_of_a_shared_queue(shared: Any) -> None:
    """Each descriptor's own; those in a batch have the batch's."""
    counted = Counted(shared)
    counted.machine.bound[0x77] = PRIMARY
    for counter, value in enumerate((GUEST_PASID, 0x77, 1 << 20, 2 << 20)):
        counted.filter(counter, PASID, value)
        counted.count(counter, OPERATIONS, 0x1)
    counted.machine.map(0x500000, noop(pasid=0x77) * 2, pasid=PRIMARY)
    counted.machine.execute(noop(pasid=0x77))
    counted.machine.execute(op("BATCH", source=0x500000, size=2, pasid=GUEST_PASID))
    assert [counted.value(i) for i in range(4)] == [2, 1, 3, 0]
    counted.close()


# ---- overflow, freezing, resets ------------------------------------------------------------------


def test_an_overflow_is_told_once(counted: Counted) -> None:
    counted.preset(0, LAST - 1)
    counted.count(0, OPERATIONS, 0x1, ON_OVERFLOW)
    counted.machine.execute(noop())
    assert (counted.value(), counted.read(OVFSTATUS), counted.told()) == (LAST, 0, 0)
    counted.machine.execute(noop(), noop())
    assert (counted.value(), counted.read(OVFSTATUS)) == (1, 1), "it goes on"
    assert (counted.told(), counted.interrupts) == (1, 1)
    assert (counted.told(), counted.interrupts) == (0, 1)
    counted.write(OVFSTATUS, 0xFE)
    assert counted.read(OVFSTATUS) == 1
    counted.write(OVFSTATUS, 1)
    assert counted.read(OVFSTATUS) == 0


def test_an_overflow_past_zero(counted: Counted) -> None:
    counted.preset(0, LAST - 9)
    counted.count(0, ENGINE, 0x2, ON_OVERFLOW)
    counted.machine.execute(op("FILL", destination=B, size=32 * 100))
    assert (counted.value(), counted.read(OVFSTATUS), counted.told()) == (90, 1, 1)


def test_overflows_of_several_counters(counted: Counted) -> None:
    for counter, flags in ((1, ON_OVERFLOW), (2, 0), (7, ON_OVERFLOW)):
        counted.preset(counter, LAST)
        counted.count(counter, OPERATIONS, 0x1, flags)
    counted.machine.execute(noop())
    assert counted.read(OVFSTATUS) == 0x86
    assert (counted.told(), counted.interrupts) == (1, 1)


def test_a_lost_report_is_made_up_for_by_the_next_one(counted: Counted) -> None:
    counted.preset(0, LAST)
    counted.count(0, OPERATIONS, 0x1, ON_OVERFLOW)
    counted.machine.execute(noop())
    counted.machine.reports.clear()
    counted.perfmon.look()
    assert counted.interrupts == 1


def test_an_overflow_on_submission_is_for_the_caller_to_look_at(counted: Counted) -> None:
    """The control thread has no worker that it could report through."""
    counted.preset(0, LAST)
    counted.count(0, WQ, 0x10, ON_OVERFLOW)
    counted.machine.submit(noop())
    assert (counted.told(), counted.interrupts) == (0, 1)


def test_an_overflow_freezes_all(counted: Counted) -> None:
    counted.preset(3, LAST)
    counted.count(0, OPERATIONS, 0x1)
    counted.count(3, OPERATIONS, 0x1, FREEZE)
    counted.count(5, COMPLETIONS, 0x10)
    counted.machine.execute(noop(), noop())
    assert [counted.value(i) for i in (0, 3, 5)] == [1, 0, 1], "at the end of the first"
    assert (counted.read(PERFFRZ), counted.read(OVFSTATUS), counted.told()) == (0xFF, 8, 0)
    counted.write(PERFFRZ, 0xDF)
    assert counted.read(PERFFRZ) == 0x09, "those that are enabled, but for number 5"
    counted.machine.execute(noop())
    assert [counted.value(i) for i in (0, 3, 5)] == [1, 0, 2]
    counted.write(PERFFRZ, 0)
    counted.machine.execute(noop())
    assert [counted.value(i) for i in (0, 3, 5)] == [2, 1, 3]


def test_freezing_and_disabling(counted: Counted) -> None:
    counted.count(0, OPERATIONS, 0x1)
    counted.write(PERFFRZ, 0xFFFF_FFFF)
    assert counted.read(PERFFRZ) == 1, "what is not enabled cannot be frozen"
    counted.machine.execute(noop())
    assert counted.value() == 0
    counted.stop(0)
    assert counted.read(PERFFRZ) == 0
    counted.count(0, OPERATIONS, 0x1)
    counted.machine.execute(noop())
    assert counted.value() == 1


def test_what_is_enabled_keeps_its_configuration(counted: Counted) -> None:
    """But for the enable bit; after it has been disabled everything can be written (table 9-8)."""
    counted.count(0, OPERATIONS, 0x1)
    counted.write(0x100, 0x8_0000_0407, 8)
    counted.filter(0, 0, 0)
    counted.preset(0, 77)
    assert counted.read(0x100, 8) == 0x1_0000_0301
    assert counted.read(0x300) == 0xFFFF
    counted.machine.execute(noop())
    assert counted.value() == 1
    counted.write(0x100, 0x8_0000_0400, 8)
    assert counted.read(0x100, 8) == 0x1_0000_0300
    counted.write(0x200, 0x1234)  # the other half stays
    counted.preset(0, 1 << 63 | 1 << 47 | 5)
    assert counted.value() == 1 << 47 | 5
    counted.write(0x200, 6)
    assert counted.value() == 1 << 47 | 6
    counted.machine.execute(noop())
    assert counted.value() == 1 << 47 | 6


def test_resets(counted: Counted) -> None:
    counted.preset(0, LAST)
    counted.filter(0, SIZE, 0x7)
    counted.count(0, OPERATIONS, 0x1, ON_OVERFLOW | FREEZE)
    counted.machine.execute(noop())
    counted.preset(1, 55)
    counted.write(PERFRST, 1)
    assert (counted.read(PERFRST), counted.read(PERFFRZ), counted.read(OVFSTATUS)) == (0, 0, 0)
    assert (counted.read(0x100, 8), counted.read(0x30C)) == (0, 0xFFFF)
    assert counted.told() == 1 and counted.interrupts == 0, "it is not to be told any more"
    assert counted.value(1) == 55
    counted.machine.execute(noop())
    assert counted.value() == 0
    counted.count(2, OPERATIONS, 0x1)
    counted.machine.execute(noop())
    counted.write(PERFRST, 2)
    assert [counted.value(i) for i in range(3)] == [0, 0, 0]
    counted.machine.execute(noop())
    assert counted.value(2) == 1, "it is enabled still"
    counted.perfmon.reset()
    counted.machine.execute(noop())
    assert counted.value(2) == counted.read(0x110, 8) == 0


def test_what_is_not_supported_counts_nothing(counted: Counted) -> None:
    for counter, category in enumerate((2, 5, 15)):
        counted.count(counter, category, 0xFFF_FFFF)
    counted.count(3, COMPLETIONS, 0xFFF_FFFF & ~0x3D)
    counted.count(4, OPERATIONS, 0xFFE_0000)
    for _, raw, _ in PROGRAM:
        counted.machine.execute(raw)
    assert [counted.value(i) for i in range(5)] == [0] * 5


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 0x3FF),
            st.sampled_from((1, 2, 4, 8)),
            st.one_of(
                st.integers(0, (1 << 64) - 1), st.sampled_from((1, 0x1F_0000_0301, LAST << 8))
            ),
        ),
        max_size=40,
    )
)
def test_whatever_is_written(writes: list[tuple[int, int, int]]) -> None:
    """What is read stays within its bits, and what is frozen is enabled or was frozen by an
    overflow; after a reset all is as new."""
    counted = Counted()
    fresh = [counted.read(at) for at in range(0, 0x400, 4)]
    for at, width, value in writes:
        counted.write(at, value & (1 << 8 * width) - 1, width)
        counted.machine.execute(noop(), op("FILL", destination=B, size=100))
        assert counted.read(PERFFRZ) <= 0xFF and counted.read(OVFSTATUS) <= 0xFF
        assert all(counted.value(counter) <= LAST for counter in range(8))
    counted.write(PERFRST, 3)
    assert [counted.read(at) for at in range(0, 0x400, 4)] == fresh
    counted.close()
