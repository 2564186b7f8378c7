"""Commands of the NVMe data path: checks, statuses, and data against a plain model of a disk."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
from guest_machine import PAGE
from hypothesis import given, settings
from hypothesis import strategies as st
from nvme_machine import (
    COMPARE,
    COMPARE_FAILURE,
    DATA_TRANSFER,
    DSM,
    FLUSH,
    INVALID_FIELD,
    INVALID_NAMESPACE,
    INVALID_OPCODE,
    LBA_RANGE,
    READ,
    VERIFY,
    WRITE,
    WRITE_PROTECTED,
    ZEROES,
    Machine,
    command,
)

from vdcm_devices.nvme._fastpath import ffi, lib

A, B = 0x800000, 0xA00000
BLOCKS = 2048
ALL = 0xFFFFFFFF


@pytest.fixture
def machine() -> Iterator[Machine]:
    m = Machine(namespaces=8)
    m.map(A, 1 << 20)
    m.map(B, PAGE, writable=False)
    yield m
    m.close()


@pytest.mark.parametrize(
    ("entry", "status"),
    [
        (command(0x04, prp1=A), INVALID_OPCODE),
        (command(0x7F, nsid=99), INVALID_OPCODE),
        (command(0xFF), INVALID_OPCODE),
        (command(READ, prp1=A, flags=0x01), INVALID_FIELD),
        (command(WRITE, prp1=A, flags=0x02), INVALID_FIELD),
        (command(READ, prp1=A, flags=0xC0), INVALID_FIELD),
        (command(READ, prp1=A, nsid=0), INVALID_NAMESPACE),
        (command(READ, prp1=A, nsid=9), INVALID_NAMESPACE),
        (command(READ, prp1=A, nsid=ALL), INVALID_NAMESPACE),
        (command(FLUSH, nsid=ALL - 1), INVALID_NAMESPACE),
        (command(READ, prp1=A, nsid=8), INVALID_FIELD),
        (command(FLUSH, nsid=8), INVALID_FIELD),
        (command(FLUSH), 0),
        (command(FLUSH, nsid=ALL), 0),
        (command(READ, prp1=A, slba=BLOCKS), LBA_RANGE),
        (command(READ, prp1=A, slba=BLOCKS - 1, blocks=2), LBA_RANGE),
        (command(READ, prp1=A, slba=BLOCKS - 1), 0),
        (command(WRITE, prp1=A, slba=(1 << 64) - 1), LBA_RANGE),
        (command(WRITE, prp1=A, slba=(1 << 64) - 1, blocks=2), LBA_RANGE),
        (command(WRITE, prp1=A, slba=1 << 55), LBA_RANGE),
        (command(ZEROES, slba=1, blocks=BLOCKS), LBA_RANGE),
        (command(VERIFY, slba=0, blocks=BLOCKS), 0),
        (command(VERIFY, slba=1, blocks=BLOCKS), LBA_RANGE),
        (command(COMPARE, prp1=A, slba=BLOCKS), LBA_RANGE),
        (command(WRITE, prp1=A, cdw12=1 << 20), INVALID_FIELD),
        (command(READ, prp1=B), DATA_TRANSFER),
        (command(WRITE, prp1=B), 0),
        (command(READ, prp1=0xDEAD000), DATA_TRANSFER),
        (command(WRITE, prp1=0xDEAD000), DATA_TRANSFER),
        (command(READ, prp1=(1 << 64) - PAGE), DATA_TRANSFER),
        (command(DSM, prp1=0xDEAD000, cdw11=4), DATA_TRANSFER),
    ],
)
def test_status(machine: Machine, entry: bytes, status: int) -> None:
    found = machine.execute(entry)[0]
    assert found.status == status
    if status == 0:
        assert machine.reports == []
        return
    assert not found.retry or status == DATA_TRANSFER
    assert found.more
    code, data = machine.reports[0]
    lba, nsid, sqid, cid, field, _ = struct.unpack_from("<QIHHHH", data)
    assert (code, nsid, sqid, cid) == (
        lib.NVME_REPORT_ERROR,
        struct.unpack_from("<I", entry, 4)[0],
        1,
        found.cid,
    )
    assert field >> 1 & 0x7FF == status
    has_lba = entry[0] in (READ, WRITE, COMPARE, ZEROES, VERIFY)
    assert lba == (struct.unpack_from("<Q", entry, 40)[0] if has_lba else 0)


def test_a_refused_command_is_told_of_with_its_own_block(machine: Machine) -> None:
    assert machine.one(command(READ, prp1=A, slba=7)) == 0
    for slba in (BLOCKS, 1 << 40):
        machine.reports.clear()
        assert machine.one(command(READ, prp1=A, slba=slba)) == LBA_RANGE
        assert struct.unpack_from("<Q", machine.reports[0][1])[0] == slba


def test_mdts(machine: Machine) -> None:
    machine.configure(max_transfer=8192, namespaces=8)
    for opcode in (READ, WRITE, COMPARE):
        assert machine.one(command(opcode, prp1=A, prp2=A + PAGE, blocks=16)) == 0
        assert machine.one(command(opcode, prp1=A, prp2=A + PAGE, blocks=17)) == INVALID_FIELD
    assert machine.one(command(ZEROES, blocks=BLOCKS)) == 0, "it moves no data"


def test_a_read_only_namespace() -> None:
    m = Machine(read_only=True)
    m.map(A, PAGE)
    for entry in (command(WRITE, prp1=A), command(ZEROES), command(DSM, prp1=A)):
        assert m.one(entry) == WRITE_PROTECTED
    for entry in (command(READ, prp1=A), command(FLUSH), command(COMPARE, prp1=A)):
        assert m.one(entry) == 0
    m.close()


def test_ranges_are_checked_before_the_first_is_deallocated(machine: Machine) -> None:
    machine.content()[:] = b"x" * len(machine.content())
    machine.write_memory(A, struct.pack("<IIQIIQ", 0, 8, 0, 0, 1, BLOCKS))
    assert machine.one(command(DSM, prp1=A, cdw10=1, cdw11=4)) == LBA_RANGE
    assert bytes(machine.content()) == b"x" * len(machine.content())
    assert machine.one(command(DSM, prp1=A, cdw10=1, cdw11=3)) == 0, "hints are taken as they are"
    assert bytes(machine.content()) == b"x" * len(machine.content())


def test_slices_of_one_store_do_not_meet() -> None:
    m = Machine(size=64 << 10)
    m.map(A, 16 * PAGE)
    m.write_memory(A, b"y" * 16 * PAGE)
    assert lib.nvme_namespace_set(m.controller, 1, m.store, 16 << 10, 32, 9, False) == 0
    assert lib.nvme_namespace_set(m.controller, 2, m.store, 32 << 10, 32, 9, False) == 0
    m.content()[:] = b"x" * (64 << 10)
    for slba in range(33):
        m.one(command(WRITE, prp1=A, slba=slba))
        m.one(command(ZEROES, nsid=2, slba=slba, blocks=2))
    k = 16 << 10
    assert bytes(m.content()) == b"x" * k + b"y" * k + b"\0" * k + b"x" * k
    m.close()


def test_counters(machine: Machine) -> None:
    machine.execute(
        command(READ, prp1=A, blocks=8),
        command(WRITE, prp1=A, blocks=2),
        command(WRITE, prp1=A, slba=BLOCKS),
        command(COMPARE, prp1=A),
        command(FLUSH),
        command(0x90),
    )
    c = machine.counters()
    assert (c.read_commands, c.write_commands, c.other_commands) == (2, 2, 2)
    assert (c.bytes_read, c.bytes_written, c.errors) == (4096, 1024, 2)


# ---- against a model -----------------------------------------------------------------------------

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from([READ, WRITE, COMPARE, ZEROES, DSM, VERIFY, FLUSH]),
        st.integers(0, 300),  # block
        st.integers(1, 200),  # blocks
        st.integers(0, 2**32 - 1),  # seed of the data
        st.integers(0, PAGE // 4 - 1),  # offset of the data in their first page, in words
    ),
    max_size=24,
)


class Disk:
    """What a disk is: bytes."""

    def __init__(self, blocks: int, size: int) -> None:
        self.blocks, self.size = blocks, size
        self.bytes = bytearray(blocks * size)

    def expect(self, opcode: int, first: int, count: int, data: bytes) -> tuple[int, bytes]:
        """The status, and what the host has in its buffer then."""
        if opcode == FLUSH:
            return 0, data
        if first + count > self.blocks:
            return LBA_RANGE, data
        span = slice(first * self.size, (first + count) * self.size)
        if opcode == READ:
            return 0, bytes(self.bytes[span])
        if opcode == COMPARE:
            return (0 if self.bytes[span] == data else COMPARE_FAILURE), data
        if opcode == WRITE:
            self.bytes[span] = data
        if opcode in (ZEROES, DSM):
            self.bytes[span] = bytes(len(data))
        return 0, data


def prps(m: Machine, address: int, length: int, lists: int) -> tuple[int, int]:
    """PRP entries of consecutive pages, with a list at ``lists`` if it takes one."""
    pages = [address]
    while pages[-1] // PAGE < (address + length - 1) // PAGE:
        pages.append((pages[-1] // PAGE + 1) * PAGE)
    if len(pages) <= 2:
        return pages[0], pages[-1] if len(pages) == 2 else 0
    m.write_memory(lists, struct.pack(f"<{len(pages) - 1}Q", *pages[1:]), m.secondary)
    return pages[0], lists


def run_model(m: Machine, operations: list[tuple[int, int, int, int, int]], budget: int) -> None:
    size = 1 << m.shift
    disk = Disk(320, size)
    m.map(A, 1 << 21)
    m.map(0x400000, PAGE, pasid=m.secondary)
    for opcode, first, count, seed, words in operations:
        count = min(count, (1 << 20) // size)
        data = random.Random(seed).randbytes(count * size)
        if opcode == COMPARE and seed % 2 == 0:
            span = bytes(disk.bytes[first * size : (first + count) * size])
            data = span if len(span) == len(data) else data
        address = A + 4 * words
        m.write_memory(address, data)
        prp1, prp2 = prps(m, address, len(data), 0x400000)
        entry = command(opcode, prp1=prp1, prp2=prp2, slba=first, blocks=count)
        if opcode == DSM:
            m.write_memory(A + (1 << 21) - PAGE, struct.pack("<IIQ", 0, count, first))
            entry = command(DSM, prp1=A + (1 << 21) - PAGE, cdw10=0, cdw11=4)
        status, after = disk.expect(opcode, first, count, data)
        assert m.one(entry, budget=budget) == status
        assert m.read(address, len(data)) == after
    whole = bytearray()
    for first in range(0, 320, 64):
        prp1, prp2 = prps(m, A, 64 * size, 0x400000)
        assert m.one(command(READ, prp1=prp1, prp2=prp2, slba=first, blocks=64)) == 0
        whole += m.read(A, 64 * size)
    assert whole == disk.bytes


@pytest.mark.parametrize("shift", [9, 12])
@settings(max_examples=60)
@given(operations=OPERATIONS, budget=st.sampled_from([1, 5000, 1 << 16]))
def test_a_store_in_memory_is_a_disk(
    shift: int, operations: list[tuple[int, int, int, int, int]], budget: int
) -> None:
    m = Machine(size=320 << shift, shift=shift)
    run_model(m, operations, budget)
    m.close()


@settings(max_examples=400)
@given(st.lists(st.binary(min_size=64, max_size=64), min_size=1, max_size=14), st.booleans())
def test_whatever_a_guest_queues_ends_with_a_status(entries: list[bytes], guided: bool) -> None:
    """Every opcode with random fields; guided: with a namespace and addresses that there are."""
    m = Machine(size=64 << 10)
    m.map(A, 1 << 20)
    m.write_memory(A, random.Random(len(entries)).randbytes(1 << 20))
    m.spaces[m.secondary] += m.spaces[m.primary]
    if guided:
        fixed = []
        for entry in entries:
            pointers = [
                int.from_bytes(entry[i : i + 8], "little") % (1 << 20) + A for i in (24, 32)
            ]
            words = struct.pack("<BBHIQQQQ", entry[0] % 13, entry[1] & 0xC0, 0, 1, 0, 0, *pointers)
            slba = struct.pack("<QH", entry[40], entry[48])
            fixed.append(words + slba + entry[50:])
        entries = fixed
    store = bytes(m.content())
    done = m.execute(*entries)
    assert len(done) == len(entries)
    opcodes = {entry[0] for entry in entries}
    if not opcodes & {WRITE, ZEROES, DSM}:
        assert bytes(m.content()) == store
    assert not m.pending
    m.close()


def test_stores_out_of_range() -> None:
    assert lib.nvme_store_ram(0) == ffi.NULL
    assert ffi.errno == 22
    store = lib.nvme_store_ram(8192)
    memory = ffi.cast("uint8_t *", lib.nvme_store_memory(store))
    memory[4095] = memory[4096] = memory[8191] = 1
    assert lib.nvme_store_erase(store, 4096, 4097) == -22
    assert lib.nvme_store_erase(store, 8193, 0) == -22
    assert lib.nvme_store_erase(store, 4096, 4096) == 0
    assert (memory[4095], memory[4096], memory[8191]) == (1, 0, 0)
    assert lib.nvme_store_erase(store, 4095, 1) == 0
    assert memory[4095] == 0
    assert lib.nvme_store_sync(store) == 0
    lib.nvme_store_free(store)
