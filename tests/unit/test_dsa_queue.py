"""Queues of the software DSA: portals, shared WQs, PASIDs, abort, and saved state."""

from __future__ import annotations

import mmap
import random
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from dsa_machine import GUEST_PASID, PAGE, PRIMARY, SECONDARY, Machine, descriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from vdcm_devices.dsa._fastpath import ffi, lib

RECORD = lib.DSA_FLAG_COMPLETION_VALID | lib.DSA_FLAG_REQUEST_COMPLETION
A, B, COMPLETION = 0x10000, 0x200000, 0x800000
EAGAIN, EBUSY, EINVAL, ENOSPC = 11, 16, 22, 28
RETRY = b"\xff" * 8


@pytest.fixture
def machine() -> Iterator[Machine]:
    m = Machine()
    furnish(m)
    yield m
    m.close()


def furnish(m: Machine) -> None:
    m.map(A, random.Random(1).randbytes(1 << 20))
    m.map(B, 1 << 20)
    m.map(COMPLETION, PAGE, pasid=SECONDARY)
    m.map(COMPLETION, PAGE)


def noop(n: int = 0, **fields: int) -> bytes:
    return descriptor(lib.DSA_OP_NOOP, RECORD, completion=COMPLETION + 32 * n, **fields)


def fill(n: int, value: int = 0x0101010101010101, size: int = 8) -> bytes:
    return descriptor(
        lib.DSA_OP_FILL,
        RECORD,
        completion=COMPLETION + 32 * n,
        source=value,
        destination=B + 8 * n,
        size=size,
    )


def statuses(m: Machine, count: int, pasid: int = SECONDARY) -> list[int]:
    return [m.completion(COMPLETION + 32 * n, pasid).status for n in range(count)]


# ---- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": lib.DSA_MAX_SIZE + 1},
        {"max_transfer": 0},
        {"max_transfer": (1 << 31) + 1},
        {"max_batch": 0},
        {"max_batch": (1 << 15) + 1},
    ],
)
def test_settings_out_of_range(machine: Machine, wrong: dict[str, int]) -> None:
    values = {"size": 4, "max_transfer": 4096, "max_batch": 4} | wrong
    assert lib.dsa_queue_configure(machine.queue, ffi.new("dsa_settings *", values)) == -EINVAL


@pytest.mark.parametrize(("size", "threshold"), [(0, 0), (4, 0), (4, 5), (4097, 1)])
def test_a_shared_wq_out_of_range(size: int, threshold: int) -> None:
    assert lib.dsa_wq_new(size, threshold, 0) == ffi.NULL
    assert ffi.errno == EINVAL


def test_services_of_another_version_are_refused() -> None:
    table = ffi.new("uint32_t[32]", [0xFFFF])
    assert lib.dsa_queue_new(ffi.NULL, int(ffi.cast("uintptr_t", table))) == ffi.NULL
    assert ffi.errno == EINVAL


def test_no_settings_while_there_is_work(machine: Machine) -> None:
    machine.submit(noop())
    values = {"size": 4, "max_transfer": 4096, "max_batch": 4}
    settings = ffi.new("dsa_settings *", values)
    assert lib.dsa_queue_configure(machine.queue, settings) == -EBUSY
    machine.run()
    assert lib.dsa_queue_configure(machine.queue, settings) == 0


def test_what_is_out_of_range_is_refused(machine: Machine) -> None:
    assert machine.submit(noop(), portal=4) == [-EINVAL]
    assert lib.dsa_queue_portal(machine.queue, 4, 0) == -EINVAL
    assert lib.dsa_queue_portal(machine.queue, 0, 8) == -EINVAL
    assert lib.dsa_queue_handle(machine.queue, lib.DSA_HANDLES, 0, 0) == -EINVAL
    assert lib.dsa_queue_handle(machine.queue, 0, 2**31 - 1, 0) == -EINVAL


# ---- intercepted submission ----------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 60))
def test_a_dedicated_wq_holds_its_size(size: int, count: int) -> None:
    m = Machine(size=size)
    furnish(m)
    for turn in range(3):
        answers = m.submit(*[fill(n, turn) for n in range(count)])
        accepted = min(size, count)
        assert answers == [0] * accepted + [-EAGAIN] * (count - accepted)
        assert lib.dsa_queue_occupancy(m.queue) == accepted
        m.run()
        assert statuses(m, accepted) == [lib.DSA_STATUS_SUCCESS] * accepted
        assert not m.pending
    assert m.counters().retried == 3 * max(count - size, 0)
    m.close()


def test_descriptors_are_executed_in_order(machine: Machine) -> None:
    """Each adds to what the one before it has written."""
    chain = [
        descriptor(
            lib.DSA_OP_MEMORY_MOVE, source=A + 100 * n, destination=A + 100 * (n + 1), size=100
        )
        for n in range(16)
    ]
    machine.execute(*chain, budget=1)
    assert machine.read(A + 1600, 100) == machine.read(A, 100)


def test_a_drain_ends_after_what_came_before_it(machine: Machine) -> None:
    drain = descriptor(lib.DSA_OP_DRAIN, RECORD, completion=COMPLETION + 32)
    big = descriptor(
        lib.DSA_OP_MEMORY_MOVE,
        RECORD,
        completion=COMPLETION,
        source=A,
        destination=B,
        size=1 << 20,
    )
    machine.submit(big, drain)
    while machine.pending:
        machine.run(4096)
        first, second = statuses(machine, 2)
        assert first == lib.DSA_STATUS_SUCCESS or second == 0
    assert statuses(machine, 2) == [lib.DSA_STATUS_SUCCESS] * 2


# ---- direct portals ------------------------------------------------------------------------------


class Portal:
    """A direct portal as a driver uses it: slots as a ring, word 0 last."""

    def __init__(self, m: Machine, index: int = 0) -> None:
        self.page = mmap.mmap(-1, PAGE)
        self._address = ffi.from_buffer(self.page)
        self.next = 0
        address = int(ffi.cast("uintptr_t", self._address))
        assert lib.dsa_queue_portal(m.queue, index, address) == 0

    def write(self, raw: bytes) -> int:
        slot = self.next
        self.page[slot * 64 + 8 : slot * 64 + 64] = raw[8:]
        self.page[slot * 64 : slot * 64 + 8] = raw[:8]
        self.next = (slot + 1) % 64
        return slot

    def word(self, slot: int) -> bytes:
        return bytes(self.page[slot * 64 : slot * 64 + 8])


def test_slots_are_taken_as_a_ring(machine: Machine) -> None:
    portal = Portal(machine)
    assert not machine.take()
    for n in range(200):
        slot = portal.write(fill(n % 16, n))
        assert machine.take()
        assert portal.word(slot) == bytes(8)
        machine.run()
    assert machine.counters().succeeded == 200
    assert not machine.take()


def test_a_slot_out_of_turn_is_not_looked_at(machine: Machine) -> None:
    portal = Portal(machine)
    portal.next = 1
    portal.write(noop())
    assert not machine.take()
    portal.next = 0
    portal.write(noop(1))
    assert machine.take()
    machine.run()
    assert statuses(machine, 2) == [lib.DSA_STATUS_SUCCESS] * 2


def test_a_full_dedicated_wq_leaves_the_slot(machine: Machine) -> None:
    portal = Portal(machine)
    slots = [portal.write(fill(n)) for n in range(20)]
    assert machine.take()
    assert [portal.word(slot) == bytes(8) for slot in slots] == [True] * 16 + [False] * 4
    assert portal.word(slots[16]) == fill(16)[:8]
    machine.run()
    assert machine.take()
    machine.run()
    assert statuses(machine, 20) == [lib.DSA_STATUS_SUCCESS] * 20


def test_the_guest_sees_no_second_reading_of_a_slot(machine: Machine) -> None:
    """What counts is what was there when the slot was taken."""
    portal = Portal(machine)
    portal.write(fill(0, 5))
    machine.take()
    portal.page[0:64] = b"\xff" * 64
    machine.run()
    assert machine.read(B, 8) == struct.pack("<Q", 5)


def test_all_portals_lead_to_the_queue(machine: Machine) -> None:
    portals = [Portal(machine, index) for index in range(4)]
    for n, portal in enumerate(portals):
        portal.write(fill(n))
    assert machine.take()
    machine.run()
    assert statuses(machine, 4) == [lib.DSA_STATUS_SUCCESS] * 4
    lib.dsa_queue_portal(machine.queue, 2, 0)
    portals[2].write(fill(4))
    assert not machine.take()


# ---- shared WQs and PASIDs -----------------------------------------------------------------------


@pytest.fixture
def shared() -> Iterator[Any]:
    wq = lib.dsa_wq_new(8, 5, 0)
    yield wq
    lib.dsa_wq_free(wq)


@pytest.mark.conformance("R2.1-5", "R2.3-1", "R2.3-2", "R2.7-3")
def test_the_shares_of_a_wq_have_its_entries_in_common(shared: Any) -> None:
    one, two = Machine(shared), Machine(shared)
    for m in (one, two):
        furnish(m)
    mine = [with_pasid(fill(n)) for n in range(9)]
    assert one.submit(*mine[:5]) == [0] * 5
    assert two.submit(*mine[:4]) == [0] * 3 + [-EAGAIN]
    assert lib.dsa_wq_occupancy(shared) == 8
    one.abort()
    assert not one.pending and two.pending
    assert lib.dsa_wq_occupancy(shared) == 3
    assert one.counters().aborted == 5
    two.run()
    assert statuses(two, 3, PRIMARY) == [lib.DSA_STATUS_SUCCESS] * 3
    assert statuses(one, 5, PRIMARY) == [0] * 5
    assert lib.dsa_wq_occupancy(shared) == 0
    one.submit(mine[0])
    one.close()
    assert lib.dsa_wq_occupancy(shared) == 0
    two.close()


@pytest.mark.conformance("R2.6-1")
def test_no_share_is_kept_out_by_the_others() -> None:
    """Whatever is in the WQ and stays there, each share has the entries reserved for it."""
    wq = lib.dsa_wq_new(8, 8, 2)
    raw = with_pasid(noop())
    greedy = Machine(wq)
    for _ in range(2):
        assert greedy.submit(*[raw] * 9) == [0] * 8 + [-EAGAIN], "alone it has all"
        greedy.run()
    shares = [Machine(wq) for _ in range(2)]
    for _ in range(3):
        assert greedy.submit(*[raw] * 5) == [0] * 4 + [-EAGAIN]
        for share in shares:
            assert share.submit(*[raw] * 3) == [0] * 2 + [-EAGAIN]
        assert lib.dsa_wq_occupancy(wq) == 8
        greedy.run()
        assert shares[0].submit(*[raw] * 3) == [0] * 2 + [-EAGAIN]
        shares[0].abort()
        shares[1].run()
    for share in shares:
        share.close()
    assert greedy.submit(*[raw] * 9) == [0] * 8 + [-EAGAIN]
    late = Machine(wq)
    assert late.submit(raw) == [-EAGAIN], "what was accepted before it came, stays"
    greedy.abort()
    assert late.submit(*[raw] * 3) == [0] * 3
    for machine in (late, greedy):
        machine.close()
    assert lib.dsa_wq_occupancy(wq) == 0
    lib.dsa_wq_free(wq)


def with_pasid(raw: bytes, pasid: int = GUEST_PASID) -> bytes:
    return struct.pack("<I", pasid) + raw[4:]


def test_a_limited_portal_gets_the_threshold(shared: Any) -> None:
    m = Machine(shared)
    raw = with_pasid(noop())
    assert m.submit(*[raw] * 6, portal=1) == [0] * 5 + [-EAGAIN]
    assert m.submit(*[raw] * 2, portal=0) == [0] * 2
    assert m.submit(raw, portal=3) == [-EAGAIN]
    m.abort()
    m.close()


@pytest.mark.conformance("R2.3-2", "R2.3-3", "R2.3-5")
def test_a_full_shared_wq_answers_retry_in_the_slot(shared: Any) -> None:
    m = Machine(shared)
    furnish(m)
    portal = Portal(m, 1)
    slots = [portal.write(with_pasid(fill(n))) for n in range(6)]
    assert m.take()
    assert [portal.word(slot) for slot in slots] == [bytes(8)] * 5 + [RETRY]
    assert not m.take()
    m.run()
    assert not m.take()  # the driver has not written it again
    portal.next = slots[5]
    portal.write(with_pasid(fill(5)))
    assert m.take()
    m.run()
    assert statuses(m, 6, PRIMARY) == [lib.DSA_STATUS_SUCCESS] * 6
    assert m.counters().retried == 1
    m.close()


@pytest.mark.conformance("R2.3-4", "R2.3-6")
def test_a_shared_wq_works_with_the_pasid_of_the_descriptor(shared: Any) -> None:
    m = Machine(shared)
    m.bound = {1: 100, 2: 200}
    for host in (100, 200):
        m.map(B, PAGE, pasid=host)
        m.map(COMPLETION, PAGE, pasid=host)
    m.execute(with_pasid(fill(0, 11), 1), with_pasid(fill(0, 22), 2))
    assert m.read(B, 8, 100) == struct.pack("<Q", 11)
    assert m.read(B, 8, 200) == struct.pack("<Q", 22)
    assert statuses(m, 1, 100) == statuses(m, 1, 200) == [lib.DSA_STATUS_SUCCESS]
    m.close()


@pytest.mark.conformance("R2.3-4", "R2.6-2", "R2.6-10")
@pytest.mark.parametrize(
    ("flags", "status"),
    [(RECORD, "DSA_STATUS_COMPLETION_FAULT"), (0, "DSA_STATUS_TRANSLATION")],
)
def test_an_unbound_pasid_is_refused(shared: Any, flags: int, status: str) -> None:
    m = Machine(shared)
    furnish(m)
    raw = descriptor(lib.DSA_OP_NOOP, flags, completion=COMPLETION if flags else 0, pasid=0x999)
    m.execute(raw)
    ((_, data),) = m.reports
    (first, *_) = struct.unpack("<4Q", data)
    assert first >> 8 & 0xFF == getattr(lib, status)
    assert first >> 40 & 0xFFFFF == 0x999
    assert m.counters().failed == 1
    m.close()


def test_a_pasid_that_is_unbound_in_the_middle_reaches_nothing_more(shared: Any) -> None:
    m = Machine(shared, max_transfer=1 << 20)
    furnish(m)
    move = descriptor(
        lib.DSA_OP_MEMORY_MOVE,
        RECORD,
        completion=COMPLETION,
        source=A,
        destination=B,
        size=1 << 20,
        pasid=GUEST_PASID,
    )
    m.submit(move)
    m.run(64 << 10)
    m.bound = {}
    while m.pending:
        m.run(64 << 10)
    assert m.read(B + (64 << 10), (1 << 20) - (64 << 10)) == bytes((1 << 20) - (64 << 10))
    assert m.completion(COMPLETION, PRIMARY).status == 0
    assert len(m.reports) == 1
    m.close()


@pytest.mark.parametrize("mode", [True, False])
def test_privileged_descriptors_need_privileged_mode(shared: Any, mode: bool) -> None:
    m = Machine(shared, flags=lib.DSA_PRIVILEGED_MODE if mode else 0)
    furnish(m)
    lib.dsa_queue_handle(m.queue, 1, 3, 0xFFFF_FFFF)
    raw = descriptor(
        lib.DSA_OP_NOOP,
        RECORD | lib.DSA_FLAG_REQUEST_INTERRUPT,
        completion=COMPLETION,
        handle=1,
        pasid=1 << 31 | GUEST_PASID,
    )
    m.execute(raw)
    if mode:
        assert statuses(m, 1, PRIMARY) == [lib.DSA_STATUS_SUCCESS] and m.raised == [3]
    else:
        assert statuses(m, 1, PRIMARY) == [0] and m.raised == []
        assert struct.unpack("<Q", m.reports[0][1][:8])[0] >> 8 & 0xFF == lib.DSA_STATUS_PRIVILEGE
    m.close()


def test_a_handle_may_belong_to_a_pasid(shared: Any) -> None:
    m = Machine(shared, flags=lib.DSA_USER_INTERRUPTS)
    furnish(m)
    m.bound[0x124] = PRIMARY
    lib.dsa_queue_handle(m.queue, 1, 3, GUEST_PASID)
    flags = RECORD | lib.DSA_FLAG_REQUEST_INTERRUPT
    for n, pasid in enumerate((GUEST_PASID, 0x124)):
        m.execute(
            descriptor(
                lib.DSA_OP_NOOP, flags, completion=COMPLETION + 32 * n, handle=1, pasid=pasid
            )
        )
    assert statuses(m, 2, PRIMARY) == [lib.DSA_STATUS_SUCCESS, lib.DSA_STATUS_BAD_HANDLE]
    assert m.raised == [3]
    m.close()


@pytest.mark.conformance("R2.2-5", "R2.6-2")
def test_an_adi_without_a_pasid_reaches_nothing(machine: Machine) -> None:
    machine.primary = machine.secondary = 0xFFFF_FFFF
    machine.execute(noop(), fill(1))
    assert statuses(machine, 2) == [0, 0]
    assert len(machine.reports) == 2


# ---- batches -------------------------------------------------------------------------------------

LIST = 0x900000


def batch(count: int, n: int = 127, flags: int = RECORD, **fields: int) -> bytes:
    values = {"completion": COMPLETION + 32 * n if flags & 4 else 0, "source": LIST, "size": count}
    return descriptor(lib.DSA_OP_BATCH, flags, **(values | fields))


def with_flags(raw: bytes, flags: int) -> bytes:
    return raw[:4] + struct.pack("<I", struct.unpack_from("<I", raw, 4)[0] | flags) + raw[8:]


@pytest.mark.parametrize("budget", [None, 1])
def test_a_batch_executes_its_list(machine: Machine, budget: int | None) -> None:
    machine.map(LIST, b"".join(fill(n, n) for n in range(40)), pasid=SECONDARY)
    machine.execute(batch(40), budget=budget)
    assert statuses(machine, 40) == [lib.DSA_STATUS_SUCCESS] * 40
    done = machine.completion(COMPLETION + 32 * 127)
    assert (done.status, done.completed) == (lib.DSA_STATUS_SUCCESS, 40)
    assert [machine.read(B + 8 * n, 1) for n in range(40)] == [bytes([n]) for n in range(40)]
    assert machine.counters().succeeded == 41


def test_the_batch_record_comes_last(machine: Machine) -> None:
    machine.map(LIST, b"".join(fill(n) for n in range(20)), pasid=SECONDARY)
    machine.submit(batch(20))
    while machine.pending:
        assert machine.completion(COMPLETION + 32 * 127).status == 0
        machine.run(1)
    assert machine.completion(COMPLETION + 32 * 127).status == lib.DSA_STATUS_SUCCESS


@pytest.mark.parametrize("fence", [False, True])
def test_a_fence_stops_behind_a_failure(machine: Machine, fence: bool) -> None:
    parts = [fill(n) for n in range(6)]
    parts[2] = descriptor(0x0E, RECORD, completion=COMPLETION + 64)
    parts[4] = with_flags(parts[4], lib.DSA_FLAG_FENCE if fence else 0)
    machine.map(LIST, b"".join(parts), pasid=SECONDARY)
    machine.execute(batch(6))
    done = machine.completion(COMPLETION + 32 * 127)
    assert done.status == lib.DSA_STATUS_BATCH_FAILED
    assert done.completed == (4 if fence else 6)
    good, bad = lib.DSA_STATUS_SUCCESS, lib.DSA_STATUS_BAD_OPERATION
    rest = [0, 0] if fence else [good, good]
    assert statuses(machine, 6) == [good, good, bad, good, *rest]


def test_a_fence_lets_pass_what_succeeded(machine: Machine) -> None:
    parts = [with_flags(fill(n), lib.DSA_FLAG_FENCE) for n in range(3)]
    machine.map(LIST, b"".join(parts), pasid=SECONDARY)
    machine.execute(batch(3))
    assert statuses(machine, 3) == [lib.DSA_STATUS_SUCCESS] * 3


def test_a_false_predicate_stops_at_the_fence(machine: Machine) -> None:
    compare = descriptor(
        lib.DSA_OP_COMPARE,
        RECORD | lib.DSA_FLAG_CHECK_RESULT,
        completion=COMPLETION,
        source=A,
        destination=B,
        size=8,
    )
    parts = [compare, with_flags(fill(1), lib.DSA_FLAG_FENCE)]
    machine.map(LIST, b"".join(parts), pasid=SECONDARY)
    machine.execute(batch(2))
    assert statuses(machine, 2) == [lib.DSA_STATUS_FALSE_PREDICATE, 0]
    done = machine.completion(COMPLETION + 32 * 127)
    assert (done.status, done.completed) == (lib.DSA_STATUS_BATCH_FAILED, 1)


@pytest.mark.parametrize("operation", [lib.DSA_OP_BATCH, lib.DSA_OP_DRAIN])
def test_no_batch_and_no_drain_in_a_batch(machine: Machine, operation: int) -> None:
    inner = descriptor(operation, RECORD, completion=COMPLETION, source=LIST, size=2)
    machine.map(LIST, inner + fill(1), pasid=SECONDARY)
    machine.execute(batch(2))
    assert statuses(machine, 2) == [lib.DSA_STATUS_BAD_OPERATION, lib.DSA_STATUS_SUCCESS]


def test_a_list_that_ends_in_nothing(machine: Machine) -> None:
    machine.map(LIST, b"".join(fill(n) for n in range(64)), pasid=SECONDARY)
    machine.configure(max_batch=128)
    machine.execute(batch(65))
    done = machine.completion(COMPLETION + 32 * 127)
    assert (done.status, done.completed) == (lib.DSA_STATUS_BATCH_PAGE_FAULT, 64)
    assert done.fault_address == LIST + 64 * 64
    assert statuses(machine, 64) == [lib.DSA_STATUS_SUCCESS] * 64


def test_the_batch_gives_its_pasid_and_its_index(shared: Any) -> None:
    m = Machine(shared)
    furnish(m)
    parts = [with_pasid(fill(0), 0x777), with_pasid(descriptor(0x0E), 0x777)]
    m.map(LIST, b"".join(parts))
    m.execute(with_pasid(batch(2)))
    assert statuses(m, 1, PRIMARY) == [lib.DSA_STATUS_SUCCESS]
    (first, second, *_) = struct.unpack("<4Q", m.reports[0][1])
    assert first >> 4 & 1 == 1  # member of a batch
    assert first >> 40 & 0xFFFFF == GUEST_PASID
    assert second & 0xFFFF == 1
    m.close()


def test_a_failed_batch_alone_is_not_an_error_to_report(machine: Machine) -> None:
    machine.map(LIST, descriptor(0x0E, RECORD, completion=COMPLETION) + fill(1), pasid=SECONDARY)
    machine.execute(batch(2, flags=0), batch(2, flags=lib.DSA_FLAG_COMPLETION_VALID))
    assert machine.reports == []
    assert machine.completion(COMPLETION + 32 * 127).status == 0


def test_the_guest_may_change_the_list_as_it_likes(machine: Machine) -> None:
    """What was read is what is executed, however the list changes meanwhile."""
    machine.map(LIST, b"".join(fill(n, n) for n in range(64)), pasid=SECONDARY)
    machine.submit(batch(64))
    rng = random.Random(3)
    turns = 0
    while machine.pending:
        machine.run(1)
        memory = machine.find(SECONDARY, LIST)
        assert memory is not None
        memory.memory[rng.randrange(64 * 64)] = rng.randrange(256)
        turns += 1
    assert turns <= 200
    assert machine.counters().succeeded + machine.counters().failed == 65


# ---- abort, save, restore ------------------------------------------------------------------------


def busy(m: Machine) -> None:
    """In the middle of a batch whose descriptor is in the middle; more waits behind it."""
    big = descriptor(
        lib.DSA_OP_COPY_CRC,
        RECORD,
        completion=COMPLETION,
        source=A,
        destination=B,
        size=1 << 20,
    )
    m.map(LIST, big + fill(1), pasid=SECONDARY)
    assert m.submit(batch(2), fill(2), fill(3)) == [0] * 3
    m.run(200_000)
    assert m.pending and statuses(m, 1) == [0]


def test_abort_leaves_no_trace(machine: Machine) -> None:
    busy(machine)
    machine.abort()
    assert not machine.pending
    assert machine.run() == 0
    assert statuses(machine, 128) == [0] * 128
    assert machine.reports == [] and machine.counters().aborted == 4
    machine.execute(fill(5))
    assert machine.completion(COMPLETION + 32 * 5).status == lib.DSA_STATUS_SUCCESS


def test_work_goes_on_where_it_was_saved(machine: Machine) -> None:
    busy(machine)
    state = machine.save()
    other = Machine()
    other.spaces = machine.spaces
    machine.abort()
    assert other.restore(state) == 0
    assert other.restore(state) == -EBUSY
    assert other.save() == state
    while other.pending:
        other.run(50_000)
    assert [statuses(other, 128)[n] for n in (0, 1, 2, 3, 127)] == [lib.DSA_STATUS_SUCCESS] * 5
    source = other.read(A, 1 << 20)
    (crc,) = struct.unpack_from("<I", other.completion(COMPLETION).specific)
    assert crc == lib.dsa_crc32c(0, source, 1 << 20, False)
    assert other.read(B + (1 << 19), 1 << 19) == source[1 << 19 :]
    other.close()


@pytest.mark.parametrize("fault", [False, True])
def test_a_copy_from_the_end_goes_on_from_there(machine: Machine, fault: bool) -> None:
    size, distance = 400_000, 1000
    before = machine.read(A, size + distance)
    machine.submit(
        descriptor(
            lib.DSA_OP_MEMORY_MOVE,
            RECORD,
            completion=COMPLETION,
            source=A,
            destination=A + distance,
            size=size,
        )
    )
    machine.run(64 << 10)
    other = Machine()
    other.spaces = machine.spaces
    assert other.restore(machine.save()) == 0
    if fault:
        other.unmap(A)
    while other.pending:
        other.run(64 << 10)
    done = other.completion(COMPLETION)
    if fault:
        assert (done.result, done.completed) == (1, 64 << 10)
        assert done.status == lib.DSA_STATUS_PAGE_FAULT
        assert done.fault_address == A + size - (64 << 10) - 1
    else:
        assert done.status == lib.DSA_STATUS_SUCCESS
        assert other.read(A, size + distance) == before[:distance] + before[:size]
    other.close()


def test_the_place_of_a_portal_is_saved(machine: Machine) -> None:
    portal = Portal(machine)
    for _ in range(3):
        portal.write(noop())
    machine.take()
    state = machine.save()
    other = Machine()
    furnish(other)
    page = Portal(other)
    assert other.restore(state) == 0
    page.next = 3
    page.write(fill(1))
    assert other.take()
    other.run()
    assert statuses(other, 2) == [lib.DSA_STATUS_SUCCESS] * 2
    other.close()


def test_a_restored_record_is_aligned_or_not_written(machine: Machine) -> None:
    busy(machine)
    state = bytearray(machine.save())
    completion = 32 + 8  # behind the header: the descriptor that is being executed
    state[completion] += 4
    other = Machine()
    other.spaces = machine.spaces
    assert other.restore(bytes(state)) == 0
    while other.pending:
        other.run(1 << 20)
    (first, *_) = struct.unpack("<4Q", other.reports[0][1])
    assert first >> 8 & 0xFF == lib.DSA_STATUS_COMPLETION_FAULT
    assert statuses(other, 2) == [0, lib.DSA_STATUS_SUCCESS]
    other.close()


@settings(deadline=None)
@given(st.data())
def test_a_damaged_state_is_refused_or_harmless(data: st.DataObject) -> None:
    m = Machine()
    furnish(m)
    busy(m)
    state = bytearray(m.save())
    other = Machine()
    other.spaces = m.spaces
    for _ in range(data.draw(st.integers(1, 5))):
        state[data.draw(st.integers(0, len(state) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(state)))
    if data.draw(st.booleans()):
        state = state[:cut]
    answer = other.restore(bytes(state))
    assert answer in (0, -EINVAL, -ENOSPC)
    assert answer == 0 or not other.pending
    for _ in range(2000):
        if not other.pending:
            break
        other.run(1 << 20)
    assert not other.pending
    m.close()
    other.close()


def test_a_restored_share_takes_its_entries(shared: Any) -> None:
    one, two = Machine(shared), Machine(shared)
    one.submit(*[with_pasid(noop())] * 5)
    state = one.save()
    assert two.restore(state) == -ENOSPC
    assert not two.pending and lib.dsa_wq_occupancy(shared) == 5
    one.abort()
    assert two.restore(state) == 0
    assert lib.dsa_wq_occupancy(shared) == 5
    two.abort()
    for m in (one, two):
        m.close()
