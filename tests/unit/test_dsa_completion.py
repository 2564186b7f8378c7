"""How a descriptor of the software DSA ends: completion record, interrupt, SWERROR (3.6, 5.4)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from dsa_machine import GENCAP, PAGE, SECONDARY, Machine, descriptor

from vdcm_devices.dsa._fastpath import lib

RECORD = lib.DSA_FLAG_COMPLETION_VALID | lib.DSA_FLAG_REQUEST_COMPLETION
INTERRUPT = lib.DSA_FLAG_REQUEST_INTERRUPT
SOURCE, DESTINATION, COMPLETION = 0x10000, 0x20000, 0x100000


@pytest.fixture
def machine() -> Iterator[Machine]:
    m = Machine()
    m.map(SOURCE, bytes(range(256)) * 64)
    m.map(DESTINATION, 4 * PAGE)
    m.map(COMPLETION, PAGE, pasid=SECONDARY)
    yield m
    m.close()


def move(flags: int = RECORD, **fields: int) -> bytes:
    values = {"source": SOURCE, "destination": DESTINATION, "size": 64}
    if flags & lib.DSA_FLAG_COMPLETION_VALID:
        values["completion"] = COMPLETION
    return descriptor(lib.DSA_OP_MEMORY_MOVE, flags, **(values | fields))


def swerror(machine: Machine) -> tuple[int, int, int, int]:
    """The four words of the one report there is."""
    ((code, data),) = machine.reports
    assert code == lib.DSA_REPORT_SWERROR
    return struct.unpack("<4Q", data)


@pytest.mark.conformance("R2.2-10")
def test_success_is_recorded_where_the_secondary_pasid_leads(machine: Machine) -> None:
    machine.execute(move())
    done = machine.completion(COMPLETION)
    assert (done.status, done.result, done.completed) == (lib.DSA_STATUS_SUCCESS, 0, 0)
    assert machine.read(DESTINATION, 64) == bytes(range(64))
    assert machine.raised == [] and machine.reports == []


def test_success_is_not_recorded_unless_that_was_asked_for(machine: Machine) -> None:
    machine.execute(move(lib.DSA_FLAG_COMPLETION_VALID), move(0, destination=DESTINATION + 64))
    assert machine.completion(COMPLETION).status == 0
    assert machine.read(DESTINATION, 128) == bytes(range(64)) * 2


@pytest.mark.conformance("R2.6-10")
def test_a_fault_is_recorded_even_if_no_record_was_asked_for(machine: Machine) -> None:
    machine.execute(move(lib.DSA_FLAG_COMPLETION_VALID, source=SOURCE + 0x3FF0))
    done = machine.completion(COMPLETION)
    assert done.status == lib.DSA_STATUS_PAGE_FAULT
    assert (done.completed, done.fault_address) == (16, SOURCE + 0x4000)
    assert done.fault_info == 1 << 1  # the source


def test_a_write_that_faults_says_so(machine: Machine) -> None:
    machine.execute(move(destination=DESTINATION + 4 * PAGE - 8))
    done = machine.completion(COMPLETION)
    assert done.status == lib.DSA_STATUS_PAGE_FAULT | lib.DSA_STATUS_WRITE
    assert (done.completed, done.fault_address) == (8, DESTINATION + 4 * PAGE)
    assert machine.read(DESTINATION + 4 * PAGE - 8, 8) == bytes(range(8))


def test_without_fault_info_the_field_stays_0(machine: Machine) -> None:
    machine.configure(gencap=GENCAP & ~lib.DSA_CAP_FAULT_INFO)
    machine.execute(move(source=0))
    assert machine.completion(COMPLETION).fault_info == 0


def test_the_interrupt_comes_after_the_record(machine: Machine) -> None:
    lib.dsa_queue_handle(machine.queue, 5, 2, 0xFFFF_FFFF)
    machine.execute(move(RECORD | INTERRUPT, handle=5))
    assert machine.raised == [2]
    assert machine.counters().interrupts == 1


def test_an_ignored_handle_is_valid_and_interrupts_nobody(machine: Machine) -> None:
    lib.dsa_queue_handle(machine.queue, 5, lib.DSA_IGNORE, 0xFFFF_FFFF)
    machine.execute(move(RECORD | INTERRUPT, handle=5))
    assert machine.completion(COMPLETION).status == lib.DSA_STATUS_SUCCESS
    assert (machine.raised, machine.counters().interrupts) == ([], 0)


@pytest.mark.parametrize("handle", [0, 4, 127, 128, 0xFFFF])
def test_an_invalid_interrupt_handle_is_an_error_and_no_interrupt(
    machine: Machine, handle: int
) -> None:
    lib.dsa_queue_handle(machine.queue, 5, 2, 0xFFFF_FFFF)
    machine.execute(move(RECORD | INTERRUPT, handle=handle))
    assert machine.completion(COMPLETION).status == lib.DSA_STATUS_BAD_HANDLE
    assert machine.raised == []
    assert swerror(machine)[0] >> 8 & 0xFF == lib.DSA_STATUS_BAD_HANDLE
    assert swerror(machine)[1] >> 32 == handle
    assert machine.read(DESTINATION, 64) == bytes(64)


@pytest.mark.conformance("R2.5.2-3")
def test_a_message_that_the_adi_has_not_is_not_raised(machine: Machine) -> None:
    lib.dsa_queue_handle(machine.queue, 5, 40, 0xFFFF_FFFF)
    machine.execute(move(RECORD | INTERRUPT, handle=5))
    assert machine.completion(COMPLETION).status == lib.DSA_STATUS_SUCCESS
    assert machine.raised == [] and machine.counters().interrupts == 0


@pytest.mark.parametrize(
    ("completion", "error", "address"),
    [
        (COMPLETION + 8, "DSA_STATUS_COMPLETION_MISALIGNED", 0),
        (COMPLETION + PAGE, "DSA_STATUS_COMPLETION_FAULT", COMPLETION + PAGE),
        (0, "DSA_STATUS_COMPLETION_FAULT", 0),
    ],
)
def test_a_record_that_cannot_be_written_is_reported_in_swerror(
    machine: Machine, completion: int, error: str, address: int
) -> None:
    lib.dsa_queue_handle(machine.queue, 0, 0, 0xFFFF_FFFF)
    machine.execute(move(RECORD | INTERRUPT, completion=completion))
    status = getattr(lib, error)
    write = 1 << 5 if status == lib.DSA_STATUS_COMPLETION_FAULT else 0
    valid, descriptor_valid, index_valid = 1, 4, 8
    first, _, third, _ = swerror(machine)
    assert first == (
        valid
        | descriptor_valid
        | index_valid
        | write
        | 1 << 7
        | status << 8
        | 3 << 16
        | lib.DSA_OP_MEMORY_MOVE << 32
        | 0x55 << 40
    )
    assert third == address
    assert machine.raised == []
    assert machine.read(DESTINATION, 64) == bytes(64)  # discarded before it was begun


def test_a_read_only_completion_record_is_reported(machine: Machine) -> None:
    machine.map(COMPLETION + PAGE, PAGE, pasid=SECONDARY, writable=False)
    machine.execute(move(completion=COMPLETION + PAGE))
    assert swerror(machine)[0] >> 8 & 0xFF == lib.DSA_STATUS_COMPLETION_FAULT


def test_a_record_that_went_away_meanwhile_is_reported(machine: Machine) -> None:
    machine.map(0x400000, 1 << 20)
    machine.map(0x800000, 1 << 20)
    machine.on_leave = lambda: machine.unmap(COMPLETION, SECONDARY)
    machine.execute(move(source=0x400000, destination=0x800000, size=1 << 20))
    assert swerror(machine)[0] >> 8 & 0xFF == lib.DSA_STATUS_COMPLETION_FAULT
    assert swerror(machine)[2] == COMPLETION


def test_an_error_without_a_completion_address_is_reported(machine: Machine) -> None:
    machine.execute(move(0, source=0x3000))
    first, second, third, _ = swerror(machine)
    assert first >> 8 & 0xFF == lib.DSA_STATUS_PAGE_FAULT
    assert first >> 5 & 1 == 0  # a read
    assert second >> 61 == 1  # the source
    assert third == 0x3000


def test_counters_tell_operations_and_bytes(machine: Machine) -> None:
    machine.execute(move(), move(), move(source=0), descriptor(0xFF))
    counters = machine.counters()
    assert (counters.accepted, counters.succeeded, counters.failed) == (4, 2, 2)
    assert counters.descriptors[lib.DSA_OP_MEMORY_MOVE] == 3
    assert counters.bytes[lib.DSA_OP_MEMORY_MOVE] == 128
    assert counters.reported == 1
