"""What the capability registers of a virtual DSA say is so: what is there works, and what is not is
refused as the specification says (9.2.2, 9.2.3, 9.2.6)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from dsa_client import BATCH, DRAIN, FILL, MOVE, NOOP, REQUEST, VALID, DsaClient, Wq
from dsa_lab import Lab
from dsa_machine import descriptor

from vdcm_devices.dsa.codes import Command

SUCCESS, UNSUPPORTED, BAD_FLAGS, BAD_SIZE, BAD_COUNT = 0x01, 0x10, 0x11, 0x13, 0x14
WRITE_FAULT = 0x83
SOURCE = 1 << 40
COMPARE, DUALCAST, CRC, CACHE_FLUSH = 0x05, 0x09, 0x10, 0x20
BLOCK_ON_FAULT, CACHE_CONTROL, STRICT_ORDERING, READBACK = 1 << 1, 1 << 8, 1 << 13, 1 << 14
DURABLE = 1 << 5  # Cache Control 3 alone


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"), workers=1)
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def dsa(lab: Lab) -> DsaClient:
    return lab.started()


def gencap(dsa: DsaClient, bit: int, width: int = 1) -> int:
    return dsa.read(0x10, 8) >> bit & (1 << width) - 1


def move(dsa: DsaClient, flags: int = 0, shift: int = 0) -> int:
    """A move of 256 bytes, ``shift`` bytes up if it is not to somewhere else; the bytes are."""
    source = dsa.memory.put(bytes(range(256)) * 2)
    target = source + shift if shift else dsa.memory.take(256)
    status = dsa.run(0, MOVE, flags, source=source, destination=target, size=256).status
    if status == SUCCESS:
        assert dsa.memory.read(target, 256) == bytes(range(256))
    return status


def test_operations(dsa: DsaClient) -> None:
    opcap = sum(dsa.read(0x40 + 8 * i, 8) << 64 * i for i in range(4))
    for code in range(256):
        known = dsa.run(0, code).status != UNSUPPORTED
        assert known == bool(opcap >> code & 1), hex(code)


@pytest.mark.parametrize(("bit", "flags"), [(2, CACHE_CONTROL), (8, READBACK), (5, DURABLE)])
def test_flags_of_moves(dsa: DsaClient, bit: int, flags: int) -> None:
    assert move(dsa, flags) == (SUCCESS if gencap(dsa, bit) else BAD_FLAGS)


def test_cache_control_is_for_what_writes_memory(dsa: DsaClient) -> None:
    """Data is in memory when the record is, wherever a hint would have it (3.9). Cache Flush has
    the hint only with a capability of its own, which revision 3.0 has no more."""
    assert gencap(dsa, 2, 2) == 0b01
    source, first, second = (
        dsa.memory.put(bytes(64)),
        dsa.memory.take(64),
        dsa.memory.take(4096 + 64),
    )
    second += (first - second) % 4096  # alike in bits 11 to 0
    both = second.to_bytes(24, "little")
    for flags in (CACHE_CONTROL, CACHE_CONTROL | READBACK):
        for operation, fields in (
            (MOVE, {"source": source, "destination": first}),
            (FILL, {"source": 0, "destination": first}),
            (DUALCAST, {"source": source, "destination": first, "specific": both}),
        ):
            dsa.memory.write(first, b"x" * 64)
            assert dsa.run(0, operation, flags, size=64, **fields).status == SUCCESS
            assert dsa.memory.read(first, 64) == bytes(64)
    for operation in (NOOP, COMPARE, CRC, CACHE_FLUSH):
        fields = {} if operation == NOOP else {"destination": first, "size": 64}
        assert dsa.run(0, operation, CACHE_CONTROL, **fields).status == BAD_FLAGS


def test_occupancy_without_interrupts(lab: Lab) -> None:
    """What a work queue holds is counted (bit 52); there is nothing to set a limit with (53)."""
    vdev = lab.vdev("dsa-2dwq-1swq")
    dsa = lab.client(vdev)
    assert dsa.read(0x20, 8) >> 52 & 3 == 0b01
    dsa.start()
    for adi in vdev.adis:
        lab.host.run(adi.driver.suspend, adi)
    records = []
    for wq, count in ((0, 3), (1, 1), (2, 2)):
        for _ in range(count):
            data, record = dsa.prepare(NOOP, pasid=1)
            assert dsa.submit(wq, data)
            records.append(record)
    assert [dsa.occupancy(wq) for wq in range(3)] == [3, 1, 2]
    for wq in range(3):
        for register in (0x10, 0x14):  # handle and table; limit and enable
            dsa.write(0x800 + 64 * wq + register, 0xFFFF_FFFF)
            assert dsa.read(0x800 + 64 * wq + register) == 0
    for adi in vdev.adis:
        lab.host.run(adi.driver.resume, adi)
    assert {dsa.wait(record).status for record in records} == {SUCCESS}
    assert [dsa.occupancy(wq) for wq in range(3)] == [0, 0, 0]
    assert dsa.read(0x98) == 0, "nobody is told"


def test_priorities(lab: Lab) -> None:
    """Each descriptor copies the records of the less important work queue: the last one of the
    other shows how many of them there were when that was done."""
    vdev = lab.vdev("dsa-2dwq-1swq")
    dsa = lab.client(vdev)
    assert dsa.read(0x20, 8) >> 51 & 1
    count, size = 30, 1 << 20
    dsa.start([Wq(count, priority=1), Wq(count, priority=15)])
    source = dsa.memory.take(size)
    seen = [dsa.memory.take(size), dsa.memory.take(size)]
    for adi in vdev.adis[:2]:
        lab.host.run(adi.driver.suspend, adi)
    important = [dsa.memory.take(32, 32) for _ in range(count)]
    for wq, records in enumerate(([source + 32 * i for i in range(count)], important)):
        for record in records:
            fields = {"source": source, "destination": seen[wq], "size": size}
            assert dsa.submit(wq, descriptor(MOVE, VALID | REQUEST, completion=record, **fields))

    def resume() -> None:
        for adi in reversed(vdev.adis[:2]):
            adi.driver.resume(adi)

    lab.run(resume)
    assert {dsa.wait(record).status for record in important} == {SUCCESS}
    done = sum(dsa.memory.read(seen[1], 32 * count)[::32])
    assert dsa.wait(source + 32 * (count - 1)).status == SUCCESS
    assert done < count // 2, "without priorities they would be nearly all"


def test_block_on_fault_needs_page_requests_which_there_are_not(dsa: DsaClient) -> None:
    with pytest.raises(AssertionError, match="no extended capability"):
        dsa.extended(0x13)  # PRS
    assert move(dsa, BLOCK_ON_FAULT) == BAD_FLAGS, "WQ Block on Fault Enable is 0"


def test_strict_ordering_has_no_limitation(dsa: DsaClient) -> None:
    assert gencap(dsa, 53, 2) == 0
    assert move(dsa, STRICT_ORDERING) == SUCCESS


def test_overlapping_copies(dsa: DsaClient) -> None:
    assert gencap(dsa, 1) == 1
    assert move(dsa, shift=64) == SUCCESS


@pytest.mark.parametrize(("bit", "operation"), [(11, CRC), (10, FILL)])
def test_sizes_of_crc_and_pattern(dsa: DsaClient, bit: int, operation: int) -> None:
    assert gencap(dsa, bit) == 0
    at = dsa.memory.take(64)
    fields = {"source": at, "size": 64, **({"destination": at} if operation == FILL else {})}
    assert dsa.run(0, operation, **fields).status == SUCCESS
    for flag in range(19 if operation == CRC else 16, 24):
        assert dsa.run(0, operation, 1 << flag, **fields).status == BAD_FLAGS


def test_drain_readback(dsa: DsaClient) -> None:
    assert gencap(dsa, 9) == 1
    assert dsa.run(0, DRAIN, 1 << 16, source=dsa.memory.take(64)).status == SUCCESS


def test_batches_are_of_two_and_as_many_as_the_work_queue_says(dsa: DsaClient) -> None:
    assert gencap(dsa, 52) == gencap(dsa, 15) == 0
    descriptors = dsa.memory.take(64 * 257)
    for count, status in ((0, BAD_COUNT), (1, BAD_COUNT), (257, BAD_COUNT), (2, SUCCESS)):
        assert dsa.run(0, BATCH, source=descriptors, size=count).status == status
    assert dsa.run(0, BATCH, source=descriptors, size=256).status == SUCCESS


def test_fault_information(dsa: DsaClient) -> None:
    done = dsa.run(0, MOVE, source=1 << 44, destination=dsa.memory.take(64), size=64)
    assert (done.status, done.fault_info) == (0x03, gencap(dsa, 12) << 1)


def test_operations_of_a_work_queue(dsa: DsaClient) -> None:
    assert dsa.read(0x20, 8) >> 54 & 1
    for allowed in (MOVE, FILL):
        assert dsa.command(Command.DISABLE_WQ, 1) == 0
        dsa.write(0x820, 1 << NOOP | 1 << allowed, 8)
        assert dsa.command(Command.ENABLE_WQ, 0) == 0
        for code in (MOVE, FILL):
            assert (dsa.run(0, code).status == UNSUPPORTED) == (code != allowed)
    dsa.start()


def test_the_largest_limits_are_taken(dsa: DsaClient) -> None:
    transfer, batch = gencap(dsa, 16, 5), gencap(dsa, 21, 4)
    dsa.start([Wq(dsa.total_size, max_transfer=transfer, max_batch=batch)])
    assert dsa.run(0, MOVE, size=(1 << transfer) + 1).status == BAD_SIZE
    assert dsa.run(0, BATCH, source=dsa.memory.base, size=(1 << batch) + 1).status == BAD_COUNT
    assert dsa.run(0, MOVE, size=1 << transfer).status != BAD_SIZE, "nothing is there"
    dsa.start()


def test_the_largest_transfer_is_carried_out(lab: Lab) -> None:
    """To its last byte. The test has not that much memory: the ranges of each side are all the
    same pages."""
    vdev = lab.vdev()
    dsa = lab.client(vdev)
    size = 1 << gencap(dsa, 16, 5)
    dsa.start([Wq(dsa.total_size, max_transfer=gencap(dsa, 16, 5))])
    piece = size // 128
    source, target = SOURCE, SOURCE + 2 * size
    content = bytes(range(256)) * 16
    files = [os.memfd_create(name) for name in ("source", "target")]
    for file, base in zip(files, (source, target), strict=True):
        os.ftruncate(file, piece)
        for at in range(0, size, piece):
            dsa.client.dma_map(base + at, piece, file)
    for at in (0, piece // 2, piece - len(content)):
        os.pwrite(files[0], content, at)
    done = dsa.run(0, MOVE, source=source, destination=target, size=size)
    assert done.status == SUCCESS
    for at in (0, piece // 2, piece - len(content)):
        assert os.pread(files[1], len(content), at) == content
    for file in files:
        os.close(file)
    (adi,) = vdev.adis
    assert lab.run(lambda: adi.driver.counters(adi))["bytes"] == size == 2 << 30
    lost = dsa.run(0, MOVE, source=source, destination=target + 1, size=size)
    assert (lost.status, lost.completed) == (WRITE_FAULT, size - 1)
