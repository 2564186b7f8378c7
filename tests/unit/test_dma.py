"""DMA by PASID: second-level translation, its errors, and a client's memory that has gone."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator

import pytest

from vdcm import dma
from vdcm.dma import PassThrough, SecondLevel
from vdcm.errors import DmaError, StateError
from vdcm.pasid import PASIDS, Translation
from vdcm.transport import GuestMemory

PAGE = os.sysconf("SC_PAGESIZE")


@pytest.fixture
def level() -> Iterator[tuple[int, SecondLevel, GuestMemory]]:
    """A PASID, its address space and a client's memory of one page at 0x10000."""
    memory = GuestMemory()
    fd = os.memfd_create("guest")
    os.ftruncate(fd, PAGE)
    memory.map(0x10000, PAGE, fd)
    os.close(fd)
    space = SecondLevel()
    space.attach(memory)
    pasid = PASIDS.allocate(space)
    yield pasid, space, memory
    PASIDS.release(pasid)


Level = tuple[int, SecondLevel, GuestMemory]


@pytest.mark.conformance("R2.2-5")
def test_a_pasid_leads_to_its_memory(level: Level) -> None:
    pasid, space, memory = level
    dma.write(pasid, 0x10004, b"abcd")
    assert dma.read(pasid, 0x10003, 6) == b"\0abcd\0" == memory.read(0x10003, 6)
    assert dma.read(pasid, 0x10000, 0) == b""
    assert [(r.iova, r.size, r.shared) for r in space.ranges] == [(0x10000, PAGE, True)]


def test_errors_name_pasid_address_and_length(level: Level) -> None:
    pasid, _, _ = level
    with pytest.raises(DmaError, match=rf"^PASID {pasid:#x}: DMA read of 8 bytes at 0x20000 .*not"):
        dma.read(pasid, 0x20000, 8)
    with pytest.raises(DmaError, match=rf"^PASID {pasid:#x}: DMA write of 2 bytes at 0x10fff "):
        dma.write(pasid, 0x10FFF, b"xy")
    assert dma.read(pasid, 0x10FFF, 1) == b"\0"


@pytest.mark.conformance("R2.2-5", "R2.6-2")
def test_a_pasid_that_is_not_in_use_reaches_nothing() -> None:
    for pasid in (0, 0xFFFFF, 1 << 20, -1):
        with pytest.raises(DmaError, match="stands for no address space"):
            dma.read(pasid, 0x10000, 1)
        with pytest.raises(DmaError, match="stands for no address space"):
            dma.write(pasid, 0x10000, b"1")


@pytest.mark.parametrize(
    ("iova", "length"),
    [(1 << 64, 1), (-1, 1), (0x10000, 1 << 64), (0x10000, -1), (0x10000, 1 << 62), (0, 1 << 40)],
)
def test_no_address_or_length_is_more_than_a_dma_error(
    level: Level, iova: int, length: int
) -> None:
    """A model adds up what the guest wrote: the sum may be no address, and the length any."""
    pasid, _, _ = level
    with pytest.raises(DmaError):
        dma.read(pasid, iova, length)
    if 0 < length < 100:
        with pytest.raises(DmaError):
            dma.write(pasid, iova, bytes(length))


def test_whatever_has_bytes_can_be_written(level: Level) -> None:
    """A buffer counts in bytes, whatever its items are."""
    pasid, _, _ = level
    words = array("I", [0x03020100, 0x07060504])
    for data in (memoryview(words), memoryview(bytes(range(8))), bytearray(range(8))):
        dma.write(pasid, 0x10000, bytes(8))
        dma.write(pasid, 0x10000, data)
        assert dma.read(pasid, 0x10000, 9) == bytes([*range(8), 0])
    dma.write(pasid, 0x10000, b"")


def test_without_a_client_there_is_no_memory(level: Level) -> None:
    pasid, space, _ = level
    space.detach()
    assert space.ranges == []
    with pytest.raises(DmaError, match="no client is connected"):
        dma.read(pasid, 0x10000, 1)
    with pytest.raises(DmaError, match="no client is connected"):
        dma.write(pasid, 0x10000, b"1")


def test_memory_of_a_client_that_has_gone_fails_and_is_not_touched(level: Level) -> None:
    pasid, _, memory = level
    memory.disconnect()
    with pytest.raises(DmaError, match="disconnected"):
        dma.read(pasid, 0x10000, 1)
    with pytest.raises(DmaError, match="disconnected"):
        dma.write(pasid, 0x10000, b"1")
    with pytest.raises(DmaError, match="disconnected"):
        memory.unmap(0x10000, PAGE)
    assert memory.ranges == []


@pytest.mark.conformance("R2.2-11", "R2.6-5")
def test_spaces_are_apart(level: Level) -> None:
    pasid, _, _ = level
    other = PASIDS.allocate(SecondLevel())
    try:
        with pytest.raises(DmaError):
            dma.read(other, 0x10000, 1)
        assert dma.read(pasid, 0x10000, 1) == b"\0"
    finally:
        PASIDS.release(other)


def test_memory_belongs_to_one_space(level: Level) -> None:
    _, space, memory = level
    other = SecondLevel()
    with pytest.raises(StateError, match="detach it there first"):
        other.attach(memory)
    assert other.ranges == []
    space.detach()
    other.attach(memory)
    assert other.read(0x10000, 1) == b"\0"
    other.detach()
    space.attach(memory)


def test_pass_through_is_the_arena_and_nothing_else() -> None:
    """Address and offset are one; neither this process's memory nor a client's is reached."""
    fd = os.memfd_create("arena")
    os.ftruncate(fd, 3 * PAGE)
    os.pwrite(fd, b"arena", PAGE - 2)
    space = PassThrough(fd, 2 * PAGE)
    pasid = PASIDS.allocate(space)
    own = array("B", b"own")
    try:
        assert space.domain.kind is Translation.PASS_THROUGH
        assert space.base is space
        assert dma.read(pasid, PAGE - 2, 5) == b"arena"
        dma.write(pasid, 2 * PAGE - 4, b"last")
        assert os.pread(fd, 5, 2 * PAGE - 4) == b"last\0"
        for address in (2 * PAGE - 2, 2 * PAGE, own.buffer_info()[0]):
            with pytest.raises(DmaError, match="not mapped"):
                dma.read(pasid, address, 3)
            with pytest.raises(DmaError, match="not mapped"):
                dma.write(pasid, address, b"abc")
        assert own.tobytes() == b"own"
    finally:
        PASIDS.release(pasid)
        os.close(fd)


def test_an_arena_that_cannot_be_mapped_is_refused() -> None:
    fd = os.memfd_create("arena")
    os.ftruncate(fd, PAGE)
    for size in (0, PAGE + 1, 2 * PAGE):
        with pytest.raises(DmaError, match="cannot map"):
            PassThrough(fd, size)
    os.close(fd)
