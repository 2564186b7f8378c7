"""The DSA's data path on the real sweep and real guest memory: what only they can do to it."""

from __future__ import annotations

import mmap
import os
import random
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from dsa_machine import PAGE, Completion, descriptor

from vdcm.dma import SecondLevel
from vdcm.pasid import PASIDS, GuestPasids
from vdcm.sweep import AdiPath, QueueState, Sweep, services
from vdcm.transport import GuestMemory
from vdcm_devices.dsa._fastpath import ffi, lib

RECORD = lib.DSA_FLAG_COMPLETION_VALID | lib.DSA_FLAG_REQUEST_COMPLETION
MIB = 1 << 20
SOURCE, DESTINATION, COMPLETION = 0x1000_0000, 0x2000_0000, 0x3000_0000
PATIENCE = 20.0


class Guest:
    """Memory of one guest, a memfd for each range, behind a PASID of its own."""

    def __init__(self) -> None:
        self.memory = GuestMemory()
        self.fds: dict[int, int] = {}
        self.views: dict[int, mmap.mmap] = {}
        self.space = SecondLevel()
        self.space.attach(self.memory)
        self.pasid = PASIDS.allocate(self.space)

    def map(self, address: int, size: int) -> mmap.mmap:
        fd = os.memfd_create("guest")
        os.ftruncate(fd, size)
        self.memory.map(address, size, fd)
        self.fds[address] = fd
        self.views[address] = mmap.mmap(fd, size)
        return self.views[address]

    def completion(self, n: int = 0) -> Completion:
        return Completion.parse(self.views[COMPLETION][32 * n : 32 * n + 32])

    def close(self) -> None:
        PASIDS.release(self.pasid)
        self.space.detach()
        for address, fd in self.fds.items():
            self.views[address].close()
            os.close(fd)


class Device:
    """A queue of the DSA on a sweep, and the guest that it works for."""

    def __init__(self, sweep: Sweep, wq: Any = None, doorbells: bool = False) -> None:
        self.guest = Guest()
        self.path: AdiPath = sweep.adi(lambda _path: None)
        self.path.set_pasids(self.guest.pasid, self.guest.pasid)
        self.path.set_bus_master(True)
        self.native = lib.dsa_queue_new(wq or ffi.NULL, services())
        settings = {
            "size": 128,
            "max_transfer": 1 << 21,
            "max_batch": 32,
            "gencap": lib.DSA_CAP_OVERLAPPING_COPY,
            "operations": [(1 << 64) - 1] * 4,
        }
        assert lib.dsa_queue_configure(self.native, ffi.new("dsa_settings *", settings)) == 0
        address = int(ffi.cast("uintptr_t", self.native))
        self.queue = self.path.queue(lib.dsa_fastpath(), address, doorbells=doorbells)
        self.source = self.guest.map(SOURCE, MIB)
        self.destination = self.guest.map(DESTINATION, MIB)
        self.guest.map(COMPLETION, 16 * PAGE)
        self.source[:] = random.Random(1).randbytes(MIB)

    def start(self) -> None:
        self.queue.state = QueueState.RUNNING

    def submit(self, raw: bytes) -> None:
        assert lib.dsa_submit(self.native, 0, raw) == 0
        self.queue.kick()

    def close(self) -> None:
        self.path.close()
        lib.dsa_queue_free(self.native)
        self.guest.close()


@pytest.fixture
def sweep() -> Iterator[Sweep]:
    made = Sweep(0, stepped=True)
    yield made
    made.close()


@pytest.fixture
def device(sweep: Sweep) -> Iterator[Device]:
    made = Device(sweep)
    made.start()
    yield made
    made.close()


def run(sweep: Sweep, device: Device, steps: int = 1000) -> None:
    """Until it has been idle for some steps, or for so many steps."""
    idle = 0
    for step in range(steps):
        done, _ = sweep.step(10**12 + step * 1000)
        idle = 0 if done or lib.dsa_queue_occupancy(device.native) else idle + 1
        if idle == 4:
            return


def move(n: int = 0, size: int = MIB, offset: int = 0) -> bytes:
    return descriptor(
        lib.DSA_OP_MEMORY_MOVE,
        RECORD,
        completion=COMPLETION + 32 * n,
        source=SOURCE + offset,
        destination=DESTINATION + offset,
        size=size,
    )


def test_a_move_of_1_mib(sweep: Sweep, device: Device) -> None:
    device.submit(move())
    run(sweep, device)
    assert device.guest.completion().status == lib.DSA_STATUS_SUCCESS
    assert device.destination[:] == device.source[:]


def test_memory_that_was_cut_short_costs_its_own_time(sweep: Sweep, device: Device) -> None:
    """A signal for each descriptor takes long; others must not wait for a thousand of them."""
    os.ftruncate(device.guest.fds[SOURCE], 0)
    for n in range(64):
        device.submit(move(n, size=64))
    sweep.step(10**12)
    left = lib.dsa_queue_occupancy(device.native)
    assert 64 - 8 <= left < 64
    run(sweep, device)
    assert {device.guest.completion(n).status for n in range(64)} == {lib.DSA_STATUS_PAGE_FAULT}


@pytest.mark.parametrize("range_", [SOURCE, DESTINATION])
def test_an_unmap_in_the_middle_stops_it_there(sweep: Sweep, device: Device, range_: int) -> None:
    device.submit(move())
    run(sweep, device, 4)
    device.guest.memory.unmap(range_, MIB)
    run(sweep, device)
    done = device.guest.completion()
    write = lib.DSA_STATUS_WRITE if range_ == DESTINATION else 0
    assert done.status == lib.DSA_STATUS_PAGE_FAULT | write
    assert 0 < done.completed < MIB
    assert done.fault_address == range_ + done.completed
    assert device.destination[: done.completed] == device.source[: done.completed]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("cut", [0, PAGE, 300 << 10, 333 * 1024])
def test_a_file_that_is_cut_short_is_a_fault_at_the_page(
    sweep: Sweep, device: Device, cut: int, backwards: bool
) -> None:
    """The kernel takes the page away under the copy: SIGBUS, and nobody else notices."""
    os.ftruncate(device.guest.fds[DESTINATION], cut)
    before = bytes(device.source[:])
    if backwards:  # on itself: from the end, where there is nothing
        raw = descriptor(
            lib.DSA_OP_MEMORY_MOVE,
            RECORD,
            completion=COMPLETION,
            source=DESTINATION,
            destination=DESTINATION + 8,
            size=MIB - 8,
        )
    else:
        raw = move()
    device.submit(raw)
    run(sweep, device)
    done = device.guest.completion()
    if backwards:
        assert done.status == lib.DSA_STATUS_PAGE_FAULT
        assert (done.result, done.completed) == (1, 0)
        assert done.fault_address == DESTINATION + MIB - 9
    else:
        rest = -cut % PAGE  # the last page is there as a whole
        assert done.status == lib.DSA_STATUS_PAGE_FAULT | lib.DSA_STATUS_WRITE
        assert done.completed == cut + rest
        assert done.fault_address == DESTINATION + cut + rest
        assert os.pread(device.guest.fds[DESTINATION], cut, 0) == before[:cut]


@pytest.mark.parametrize(
    ("operation", "fields"),
    [
        (lib.DSA_OP_COMPARE, {"source": SOURCE, "destination": DESTINATION}),
        (lib.DSA_OP_CRC, {"source": DESTINATION}),
        (lib.DSA_OP_DIF_CHECK, {"source": DESTINATION, "size": 520 * 100}),
        (lib.DSA_OP_CREATE_DELTA, {"source": SOURCE, "destination": DESTINATION}),
        (lib.DSA_OP_APPLY_DELTA, {"source": DESTINATION, "destination": SOURCE}),
        (lib.DSA_OP_DUALCAST, {"source": SOURCE, "destination": SOURCE + MIB // 2}),
    ],
)
def test_no_operation_dies_of_memory_that_is_gone(
    sweep: Sweep, device: Device, operation: int, fields: dict[str, int]
) -> None:
    specific = {
        lib.DSA_OP_CREATE_DELTA: struct.pack("<QI", SOURCE + MIB // 2, 4000),
        lib.DSA_OP_APPLY_DELTA: struct.pack("<I", 4000),
        lib.DSA_OP_DUALCAST: struct.pack("<Q", DESTINATION),
    }.get(operation, b"")
    os.ftruncate(device.guest.fds[DESTINATION], 0)
    values = {"size": 0x4000} | fields
    device.submit(descriptor(operation, RECORD, completion=COMPLETION, specific=specific, **values))
    run(sweep, device)
    done = device.guest.completion()
    assert done.status & 0x7F == lib.DSA_STATUS_PAGE_FAULT
    assert (done.completed, done.fault_address) == (0, DESTINATION)


def test_a_record_in_memory_that_is_gone_is_reported(sweep: Sweep, device: Device) -> None:
    os.ftruncate(device.guest.fds[COMPLETION], 0)
    device.submit(move(size=64))
    run(sweep, device)
    (report,) = device.path.reports()
    (first, _, third, _) = struct.unpack("<4Q", report.data)
    assert report.code == lib.DSA_REPORT_SWERROR
    assert first >> 8 & 0xFF == lib.DSA_STATUS_COMPLETION_FAULT
    assert third == COMPLETION
    assert device.destination[:64] == device.source[:64]


def test_the_report_ring_has_an_end(sweep: Sweep, device: Device) -> None:
    for _ in range(40):
        device.submit(descriptor(0xFE))
    run(sweep, device)
    assert len(device.path.reports()) == 16
    counters = ffi.new("dsa_counters *")
    lib.dsa_queue_count(device.native, counters)
    assert counters.reported == 40


def test_stop_and_abort_in_the_middle(sweep: Sweep, device: Device) -> None:
    device.submit(move())
    device.submit(move(1))
    run(sweep, device, 3)
    device.queue.state = QueueState.STOPPED
    device.queue.abort()
    device.start()
    device.submit(move(2, 64))
    run(sweep, device)
    statuses = [device.guest.completion(n).status for n in range(3)]
    assert statuses == [0, 0, lib.DSA_STATUS_SUCCESS]


def test_drain_ends_when_all_is_done(sweep: Sweep, device: Device) -> None:
    device.submit(move())
    device.submit(move(1))
    run(sweep, device, 3)
    device.queue.state = QueueState.DRAINING
    run(sweep, device)
    assert device.queue.state == QueueState.STOPPED
    assert [device.guest.completion(n).status for n in range(2)] == [lib.DSA_STATUS_SUCCESS] * 2


def test_shares_of_two_guests_do_not_meet(sweep: Sweep) -> None:
    """One shared WQ, the same guest PASID and the same addresses: each has its own memory."""
    wq = lib.dsa_wq_new(16, 16, 0)
    devices = [Device(sweep, wq) for _ in range(2)]
    tables = []
    for n, device in enumerate(devices):
        table = GuestPasids(device.guest.space)
        table.bind(5, device.guest.pasid)
        device.path.set_guest_pasids(table)
        tables.append(table)
        device.source[:] = bytes([n + 1]) * MIB
        device.start()
        device.submit(struct.pack("<I", 5) + move(size=PAGE)[4:])
    tables[1].unbind(5)
    for device in devices:
        run(sweep, device)
    assert devices[0].destination[:PAGE] == b"\x01" * PAGE
    assert devices[1].destination[:PAGE] == bytes(PAGE)
    assert devices[0].guest.completion().status == lib.DSA_STATUS_SUCCESS
    assert devices[1].guest.completion().status == 0
    assert len(devices[1].path.reports()) == 1
    for device, table in zip(devices, tables, strict=True):
        device.path.set_guest_pasids(None)
        table.clear()
        device.close()
    lib.dsa_wq_free(wq)


def test_pasids_of_the_guest_need_a_bus_master_too(sweep: Sweep) -> None:
    wq = lib.dsa_wq_new(16, 16, 0)
    device = Device(sweep, wq)
    table = GuestPasids(device.guest.space)
    table.bind(5, device.guest.pasid)
    device.path.set_guest_pasids(table)
    device.path.set_bus_master(False)
    device.source[:] = b"\x01" * MIB
    device.start()
    device.submit(struct.pack("<I", 5) + move(size=PAGE)[4:])
    run(sweep, device)
    assert device.destination[:PAGE] == bytes(PAGE)
    assert (device.guest.completion().status, len(device.path.reports())) == (0, 1)
    device.path.set_guest_pasids(None)
    table.clear()
    device.close()
    lib.dsa_wq_free(wq)


def wait_for(view: mmap.mmap, at: int, value: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while view[at] == value:
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0)


def test_a_driver_on_direct_portals_and_a_thread_that_sweeps() -> None:
    """Two drivers at once, each in its ring, beside one that is stopped and started."""
    sweep = Sweep()
    devices = [Device(sweep, doorbells=True) for _ in range(2)]
    pages = [mmap.mmap(-1, PAGE) for _ in devices]
    views = [ffi.from_buffer(page) for page in pages]
    for device, view in zip(devices, views, strict=True):
        assert lib.dsa_queue_portal(device.native, 0, int(ffi.cast("uintptr_t", view))) == 0
        device.start()
    failures: list[BaseException] = []

    def drive(device: Device, page: mmap.mmap, seed: int) -> None:
        rng = random.Random(seed)
        records = device.guest.views[COMPLETION]
        # Word 0 in one store: a copy of 8 bytes may be two that overlap, and ring twice.
        words = memoryview(page).cast("Q")
        for n in range(1000):
            slot = n % 64
            size = rng.choice([1, 64, 4096, 100_000])
            offset = rng.randrange(MIB - size)
            wait_for_slot(page, slot)
            records[32 * slot : 32 * slot + 32] = bytes(32)
            raw = move(slot, size, offset)
            page[64 * slot + 8 : 64 * slot + 64] = raw[8:]
            words[8 * slot] = int.from_bytes(raw[:8], "little")
            wait_for(records, 32 * slot, 0)
            assert records[32 * slot] == lib.DSA_STATUS_SUCCESS
            last = offset + size - 1
            assert device.destination[last] == device.source[last]

    def wait_for_slot(page: mmap.mmap, slot: int) -> None:
        assert page[64 * slot : 64 * slot + 8] == bytes(8)

    def guarded(*arguments: Any) -> None:
        try:
            drive(*arguments)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=guarded, args=(device, page, seed))
        for seed, (device, page) in enumerate(zip(devices, pages, strict=True))
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        devices[0].queue.state = QueueState.STOPPED
        devices[0].start()
        for thread in threads:
            thread.join(0.005)
    for device in devices:
        device.close()
    sweep.close()
    assert failures == []
