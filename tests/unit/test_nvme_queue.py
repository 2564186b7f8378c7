"""I/O queues of the NVMe controller: doorbells in all modes, wrapping, a full completion queue,
interrupts and their coalescing, abort, and queues that are nowhere."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from guest_machine import EACCES, EFAULT, PAGE, SECONDARY
from hypothesis import given, settings
from hypothesis import strategies as st
from nvme_machine import CQ, DSM, EVENTIDX, READ, SHADOW, SQ, WRITE, Machine, command

from vdcm_devices.nvme._fastpath import ffi, lib

A = 0x800000
MODES = ("direct", "written", "shadow")
EBUSY, EINVAL, ENOENT, ERANGE, EEXIST = 16, 22, 2, 34, 17


@pytest.fixture(params=MODES)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    m = Machine(doorbells=request.param, entries=8)
    m.map(A, 16 * PAGE)
    yield m
    m.close()


def fill(block: int, value: int) -> bytes:
    """A write of page ``value`` of the buffer to ``block``."""
    return command(WRITE, prp1=A + PAGE * value, slba=block)


def test_commands_run_in_order_around_the_ring(machine: Machine) -> None:
    for turn in range(40):
        machine.write_memory(A, bytes([turn]) * 512)
        machine.write_memory(A + PAGE, bytes([turn + 1]) * 512)
        count = turn % 6 + 1
        done = machine.execute(*[fill(3, i % 2) for i in range(count)])
        assert [c.status for c in done] == [0] * count
        assert machine.content()[3 * 512] == turn + (count - 1) % 2
        assert {c.sqid for c in done} == {1}
        assert done[-1].sqhd == machine.tail
    assert not machine.pending
    state = machine.look()
    assert (state.tail, state.head, state.under_way) == (machine.tail, machine.tail, 0)
    assert state.completed == sum(turn % 6 + 1 for turn in range(40))


def test_nothing_is_posted_into_a_full_queue(machine: Machine) -> None:
    machine.submit(*[fill(i, 0) for i in range(7)])
    machine.step()
    first = machine.completions(ring=False)
    assert len(first) == 7
    machine.submit(*[fill(i, 0) for i in range(5)])
    machine.step()
    assert machine.completions(ring=False) == []
    assert machine.pending and not machine.ready
    assert machine.counters().full == 1
    machine.rest()
    exits = machine.exits
    machine.ring(3, 3)  # three places
    if machine.doorbells == "shadow":
        assert machine.exits == exits + 1, "the guest was not asked to tell of the head"
    machine.step()
    assert len(machine.completions(ring=False)) == 3
    machine.ring(3, machine.head)
    machine.step()
    assert len(machine.completions()) == 2
    assert not machine.pending


def test_two_submission_queues_share_a_completion_queue() -> None:
    m = Machine(entries=16)
    m.map(A, PAGE)
    m.map(0x110000, PAGE, pasid=SECONDARY)
    other = lib.nvme_sq_new(m.controller, 2, 0x110000, 4, m.cq)
    assert lib.nvme_cq_free(m.cq) == -EBUSY
    m.submit(fill(0, 0), fill(1, 0))
    m.write_memory(0x110000, fill(2, 0) * 2, SECONDARY)
    struct.pack_into("<I", m.page, 4 * 4, 2)
    m.of(lib.nvme_fastpath(), other)
    m.step()
    m.of(lib.nvme_fastpath(), m.sq)
    m.step()
    assert [(c.sqid, c.sqhd) for c in m.completions()] == [(2, 2), (2, 2), (1, 2), (1, 2)]
    lib.nvme_sq_free(other)
    m.close()


def test_a_queue_that_waits_for_a_place_sees_one_that_another_has_seen() -> None:
    m = Machine(entries=16, cq_entries=4)
    m.map(A, PAGE)
    m.map(0x110000, PAGE, pasid=SECONDARY)
    other = lib.nvme_sq_new(m.controller, 2, 0x110000, 8, m.cq)
    m.submit(*[fill(0, 0)] * 4)
    m.step()
    assert len(m.completions()) == 3 and m.pending
    m.write_memory(0x110000, fill(2, 0), SECONDARY)
    struct.pack_into("<I", m.page, 4 * 4, 1)
    m.of(lib.nvme_fastpath(), other)
    m.step()  # posts, so it has looked at the head
    m.of(lib.nvme_fastpath(), m.sq)
    m.step()
    assert sorted(c.sqid for c in m.completions()) == [1, 2]
    lib.nvme_sq_free(other)
    m.close()


# ---- doorbells -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["direct", "shadow"])
@pytest.mark.parametrize("value", [8, 0xFFFF, 0x10001, 0xFFFFFFFF])
def test_a_tail_that_is_none_is_reported_once(mode: str, value: int) -> None:
    m = Machine(doorbells=mode, entries=8)
    m.map(A, PAGE)
    for _ in range(3):
        if mode == "direct":
            struct.pack_into("<I", m.page, 8, value)
        else:
            m.write_memory(SHADOW + 8, value.to_bytes(4, "little"), SECONDARY)
        m.step()
    assert m.reports == [(lib.NVME_REPORT_DOORBELL, struct.pack("<II", 2, value))]
    assert not m.pending
    m.ring(2, 0)
    assert m.one(fill(0, 0)) == 0
    m.close()


@pytest.mark.parametrize("value", [4, 0x10000, 0xFFFFFFFF])
def test_a_head_beyond_what_was_posted_is_reported(value: int) -> None:
    m = Machine(entries=8, cq_entries=4)
    m.map(A, PAGE)
    m.submit(fill(0, 0), fill(0, 0))
    m.step()
    assert len(m.completions(ring=False)) == 2
    struct.pack_into("<I", m.page, 12, value)
    m.submit(fill(0, 0), fill(0, 0))
    m.step()
    assert m.reports == [(lib.NVME_REPORT_DOORBELL, struct.pack("<II", 3, value))]
    assert len(m.completions()) == 1, "it was believed"
    m.step()
    assert len(m.completions()) == 1
    m.close()


def test_written_doorbells_are_checked() -> None:
    m = Machine(doorbells="written", entries=8)
    write = lib.nvme_doorbell_write
    assert write(m.controller, 2, 8) == -ERANGE
    assert write(m.controller, 3, 8) == -ERANGE
    assert write(m.controller, 4, 0) == -ENOENT
    assert write(m.controller, 2 * 65, 0) == -ENOENT
    assert write(m.controller, 0xFFFFFFFF, 0) == -ENOENT
    assert write(m.controller, 2, 7) == 0
    assert lib.nvme_doorbell_read(m.controller, 2) == 7
    assert lib.nvme_doorbell_read(m.controller, 2 * 65) == 0
    m.close()


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 7), st.booleans()), max_size=80))
def test_a_guest_with_shadow_doorbells_is_never_left_alone(
    turns: list[tuple[int, bool]],
) -> None:
    """Some commands, and then perhaps a rest: what is written without an exit is seen by looking,
    what comes during a rest makes one."""
    m = Machine(doorbells="shadow", entries=8)
    m.map(A, PAGE)
    resting = False
    for count, rest in turns:
        exits = m.exits
        m.submit(*[fill(0, 0)] * count)
        assert not resting or m.exits > exits
        m.step()
        done = m.completions()
        assert [c.status for c in done] == [0] * count
        resting = rest and m.rest()
    m.close()


def test_a_busy_guest_makes_no_exits() -> None:
    m = Machine(doorbells="shadow", entries=64)
    m.map(A, PAGE)
    m.execute(fill(0, 0))
    exits = m.exits
    for turn in range(500):
        m.execute(*[fill(0, 0)] * (turn % 9 + 1))
    assert m.exits == exits
    m.close()


def test_rest_sees_what_came_meanwhile() -> None:
    m = Machine(doorbells="shadow", entries=8)
    m.map(A, PAGE)
    assert m.rest()
    m.write_memory(SQ, fill(0, 0), SECONDARY)
    m.write_memory(SHADOW + 8, b"\1\0\0\0", SECONDARY)  # whose event index was looked at before
    assert not m.rest()
    m.step()
    assert len(m.completions()) == 1
    m.close()


@pytest.mark.parametrize("gone", [SHADOW, EVENTIDX])
def test_doorbell_buffers_that_are_gone_end_the_controller(gone: int) -> None:
    m = Machine(doorbells="shadow", entries=8)
    m.map(A, PAGE)
    m.unmap(gone, SECONDARY)
    m.step()
    m.rest()
    code, data = m.reports[0]
    assert (code, struct.unpack_from("<QIi", data)) == (
        lib.NVME_REPORT_FATAL,
        (gone, 1, -EFAULT),
    )
    assert len(m.reports) == 1
    m.close()


def test_settings_and_doorbell_buffers_out_of_range() -> None:
    m = Machine()
    c = m.controller
    for wrong in (
        {"page_shift": 11},
        {"page_shift": 17},
        {"max_transfer": 4095},
        {"max_transfer": lib.NVME_MAX_TRANSFER + 1},
        {"namespaces": 33},
    ):
        values = {"page_shift": 12, "max_transfer": 4096, **wrong}
        assert lib.nvme_controller_configure(c, ffi.new("nvme_settings *", values)) == -EINVAL
    assert lib.nvme_doorbells_set(c, 4) == -EINVAL
    for shadow, eventidx in ((1, 4096), (4096, 1), (4096, 0), (0, 4096)):
        assert lib.nvme_shadow_set(c, shadow, eventidx) == -EINVAL
    assert lib.nvme_shadow_set(c, 0, 0) == 0
    m.close()


def test_queues_and_namespaces_out_of_range() -> None:
    m = Machine()
    c = m.controller
    for wrong in ((0, CQ, 4), (65, CQ, 4), (2, CQ + 8, 4), (2, CQ, 1), (2, CQ, 65537)):
        assert lib.nvme_cq_new(c, *wrong, False) == ffi.NULL
        assert ffi.errno == EINVAL
        assert lib.nvme_sq_new(c, *wrong, m.cq) == ffi.NULL
        assert ffi.errno == EINVAL
    assert lib.nvme_cq_new(c, 1, CQ, 4, False) == ffi.NULL
    assert ffi.errno == EEXIST
    assert lib.nvme_sq_new(c, 1, SQ, 4, m.cq) == ffi.NULL
    assert ffi.errno == EEXIST
    assert lib.nvme_sq_new(c, 2, SQ, 4, ffi.NULL) == ffi.NULL
    for wrong in (
        (0, m.store, 0, 1, 9),
        (33, m.store, 0, 1, 9),
        (1, ffi.NULL, 0, 1, 9),
        (1, m.store, 512, 1, 9),
        (1, m.store, 0, 1, 10),
        (1, m.store, 0, (1 << 11) + 1, 9),
        (1, m.store, 1 << 20, 1, 9),
        (1, m.store, 2 << 20, 1, 9),
        (1, m.store, 4096, (1 << 64) - 1, 9),
    ):
        assert lib.nvme_namespace_set(c, *wrong, False) == -EINVAL
    table = ffi.new("uint32_t[32]", [0xFFFF])
    assert lib.nvme_controller_new(int(ffi.cast("uintptr_t", table))) == ffi.NULL
    assert ffi.errno == EINVAL
    m.close()


# ---- interrupts ----------------------------------------------------------------------------------


def test_one_interrupt_for_a_run() -> None:
    m = Machine(entries=16)
    m.map(A, PAGE)
    m.execute(*[fill(0, 0)] * 12)
    assert m.raised == [0]
    assert (m.counters().interrupts, m.counters().fetches) == (1, 1)
    m.close()


def test_without_interrupts_there_are_none() -> None:
    m = Machine(interrupts=False)
    m.map(A, PAGE)
    m.execute(fill(0, 0))
    assert m.raised == []
    m.close()


def test_coalescing_by_threshold_and_by_time() -> None:
    m = Machine(entries=16, coalesce_threshold=4, coalesce_us=10_000_000)
    m.map(A, PAGE)
    m.submit(*[fill(0, 0)] * 3)
    m.step()
    assert m.raised == []
    assert not m.rest(), "an interrupt is held back, and nobody would see its time come"
    m.submit(fill(0, 0))
    m.step()
    assert m.raised == [0]
    assert m.rest()
    assert len(m.completions()) == 4
    m.submit(fill(0, 0))
    m.step()
    m.configure(coalesce_threshold=4, coalesce_us=1)
    m.step()
    assert m.raised == [0, 0]
    m.close()


@pytest.mark.parametrize("doorbells", MODES)
def test_a_guest_that_is_on_its_way_is_not_called_again(doorbells: str) -> None:
    m = Machine(doorbells=doorbells, recall_us=3_600_000_000)
    m.map(A, PAGE)
    for _ in range(3):
        m.submit(fill(0, 0))
        m.step()
    assert m.raised == [0], "it will come upon the others"
    assert not m.rest(), "if it does not, it must be called"
    assert len(m.completions()) == 3
    m.step()
    assert m.raised == [0] and m.rest(), "it has seen them"
    m.submit(fill(0, 0))
    m.step()
    m.submit(fill(0, 0))
    assert m.raised == [0, 0] and len(m.completions()) == 1
    m.step()
    assert m.raised == [0, 0, 0], "the next came behind what it has seen"
    m.submit(fill(0, 0))
    m.step()
    assert m.raised == [0, 0, 0]
    m.configure(recall_us=0)
    m.step()
    assert m.raised == [0, 0, 0, 0] and m.rest()
    m.close()


def test_a_guest_that_has_seen_it_by_itself_is_not_called(machine: Machine) -> None:
    machine.configure(coalesce_threshold=4, coalesce_us=10_000_000)
    machine.execute(fill(0, 0))
    machine.configure()
    machine.step()
    assert machine.raised == [] and machine.rest()


def test_a_vector_may_be_left_out_of_coalescing() -> None:
    m = Machine(entries=16, coalesce_threshold=4, coalesce_us=10_000_000)
    m.map(A, PAGE)
    m.submit(fill(0, 0))
    m.step()
    assert m.raised == []
    lib.nvme_cq_set_coalescing(m.cq, False)
    m.step()
    assert m.raised == [0], "nor is what was held back before"
    assert len(m.completions()) == 1
    m.submit(fill(0, 0))
    m.step()
    assert m.raised == [0, 0]
    assert len(m.completions()) == 1
    lib.nvme_cq_set_coalescing(m.cq, True)
    m.submit(*[fill(0, 0)] * 3)
    m.step()
    assert m.raised == [0, 0]
    m.close()


# ---- stores that come without Python ------------------------------------------------------------


def test_stores_to_io_doorbells_are_taken_and_others_are_passed_on() -> None:
    m = Machine(doorbells="written", entries=8)
    m.map(A, PAGE)
    m.submit(fill(0, 0))
    store = ffi.cast("int (*)(void *, uint64_t, uint32_t, uint64_t)", lib.nvme_doorbell_store())

    def write(doorbell: int, value: int, width: int = 4, skew: int = 0) -> int:
        return int(store(m.controller, 0x1000 + 4 * doorbell + skew, width, value))

    taken, passed = 0, -1
    assert write(2, 1) == passed, "nobody knows its engine's side"
    lib.nvme_sq_set_engine(m.sq, 0x1000)
    m.kicks = 0
    assert write(2, 1) == taken and m.kicks == 1
    m.step()
    assert len(m.completions(ring=False)) == 1
    assert write(3, 1) == taken and m.kicks == 2
    assert [lib.nvme_doorbell_read(m.controller, n) for n in (2, 3)] == [1, 1]
    for doorbell in (0, 1, 4, 5, 128, 129, 130, 1023):
        assert write(doorbell, 1) == passed
    for value in (8, 0xFFFF, 1 << 31):
        assert write(2, value) == write(3, value) == passed
    for width, skew in ((1, 0), (2, 0), (2, 2), (8, 0), (4, 2), (4, 1)):
        assert write(2, 2, width, skew) == passed
    assert [lib.nvme_doorbell_read(m.controller, n) for n in (2, 3)] == [1, 1]
    assert m.kicks == 2
    m.fastpath.closed(m.opaque)
    assert write(2, 1) == write(3, 1) == passed
    m.close()


def test_a_head_that_is_stored_kicks_all_queues_of_it() -> None:
    m = Machine(doorbells="written", entries=8)
    others = [lib.nvme_sq_new(m.controller, n, SQ, 8, m.cq) for n in (2, 64)]
    apart = lib.nvme_cq_new(m.controller, 9, CQ, 8, False)
    others.append(lib.nvme_sq_new(m.controller, 9, SQ, 8, apart))
    store = ffi.cast("int (*)(void *, uint64_t, uint32_t, uint64_t)", lib.nvme_doorbell_store())
    for n, queue in enumerate((m.sq, *others)):
        lib.nvme_sq_set_engine(queue, 0x1000 * (n + 1))
    for doorbell, kicks in ((3, 3), (19, 1)):
        m.kicks = 0
        assert store(m.controller, 0x1000 + 4 * doorbell, 4, 1) == 0
        assert m.kicks == kicks
    for queue in others:
        lib.nvme_sq_free(queue)
    assert lib.nvme_cq_free(apart) == 0
    m.close()


# ---- abort, and memory that is gone --------------------------------------------------------------


def test_abort_drops_without_completions(machine: Machine) -> None:
    big = command(DSM, prp1=A, cdw10=0, cdw11=4)
    machine.write_memory(A, struct.pack("<IIQ", 0, 2048, 0))
    machine.submit(big, fill(0, 1), fill(1, 1))
    machine.take()
    machine.run(1)
    assert machine.pending
    machine.abort()
    assert not machine.pending and not machine.ready
    assert machine.completions() == []
    assert machine.look().under_way == 0
    assert machine.one(fill(2, 0)) == 0


def test_a_namespace_in_use_is_not_changed() -> None:
    m = Machine(size=1 << 20)
    m.map(A, PAGE)
    m.write_memory(A, struct.pack("<IIQ", 0, 2047, 1))
    m.submit(command(DSM, prp1=A, cdw10=0, cdw11=4))
    m.take()
    m.run(1)
    assert lib.nvme_namespace_set(m.controller, 1, m.store, 0, 0, 9, False) == -EBUSY
    m.abort()
    assert lib.nvme_namespace_set(m.controller, 1, m.store, 0, 0, 9, False) == 0
    assert m.one(command(READ, prp1=A)) == 0x002
    m.close()


@pytest.mark.parametrize(("gone", "readonly"), [(SQ, False), (CQ, False), (CQ, True)])
def test_queue_memory_that_is_gone_ends_the_controller(gone: int, readonly: bool) -> None:
    m = Machine(entries=8)
    m.map(A, PAGE)
    m.submit(fill(0, 0))
    m.unmap(gone, SECONDARY)
    if readonly:
        m.map(gone, PAGE, pasid=SECONDARY, writable=False)
    m.step()
    assert len(m.reports) == 1
    code, data = m.reports[0]
    error = -EACCES if readonly else -EFAULT
    assert (code, struct.unpack_from("<QIi", data)) == (
        lib.NVME_REPORT_FATAL,
        (gone, 1, error),
    )
    assert not m.pending
    m.ring(2, 3)
    m.step()
    assert not m.pending and len(m.reports) == 1
    m.close()


# ---- the admin queue's doorbells -----------------------------------------------------------------


def test_the_admin_doorbell_is_reported_once_until_it_is_looked_at() -> None:
    m = Machine()
    admin = lib.nvme_admin_new(m.controller)
    m.of(lib.nvme_admin_fastpath(), admin)
    m.take()
    assert m.reports == []
    m.ring(0, 1)
    for _ in range(3):
        assert not m.take() and not m.pending
    assert m.reports == [(lib.NVME_REPORT_ADMIN, b"")]
    m.ring(0, 2)
    assert lib.nvme_admin_look(admin) == 2
    m.take()
    assert len(m.reports) == 1
    m.ring(1, 1)
    m.take()
    assert len(m.reports) == 2
    assert lib.nvme_admin_look(admin) == 0x10002
    lib.nvme_admin_free(admin)
    m.of(lib.nvme_fastpath(), m.sq)
    m.close()
