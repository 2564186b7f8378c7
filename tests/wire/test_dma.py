"""Guest memory: mapped, unmapped, not shared, shrunk; a bad DMA is an error of the device."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

import pytest
from wire_registers import ID, PAGE, Bar, Reg
from wire_server import Server

from vdcm.client import Client
from vdcm.errors import ProtocolError
from vdcm.protocol import DmaFlags

READ, WRITE = 1, 2


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.connect() as client:
        yield client


def dma(client: Client, command: int, address: int, length: int) -> bool:
    """Have the device access guest memory; whether it could."""
    client.write(Bar.REGISTERS, Reg.DMA_ADDRESS, 8, address)
    client.write(Bar.REGISTERS, Reg.DMA_LENGTH, 4, length)
    client.write(Bar.REGISTERS, Reg.DMA_COMMAND, 4, command)
    return client.read(Bar.REGISTERS, Reg.RESULT, 4) == 0


def ranges(client: Client) -> int:
    return client.read(Bar.REGISTERS, Reg.RANGES, 4)


def test_device_reads_and_writes_client_memory(client: Client) -> None:
    buffer = client.dma_memory(0x1_0000_0000, 4 * PAGE)
    buffer.view[100:104] = b"ping"
    assert dma(client, READ, 0x1_0000_0000 + 100, 4)
    assert client.read_bytes(Bar.REGISTERS, Reg.BUFFER, 4) == b"ping"
    client.write_bytes(Bar.REGISTERS, Reg.BUFFER, b"pong")
    assert dma(client, WRITE, 0x1_0000_0000 + 4 * PAGE - 4, 4)
    assert bytes(buffer.view[-4:]) == b"pong"


def test_access_crosses_adjacent_ranges(client: Client) -> None:
    first = client.dma_memory(0x10000, PAGE)
    second = client.dma_memory(0x10000 + PAGE, PAGE)
    client.write_bytes(Bar.REGISTERS, Reg.BUFFER, b"abcdefgh")
    assert dma(client, WRITE, 0x10000 + PAGE - 4, 8)
    assert bytes(first.view[-4:]) + bytes(second.view[:4]) == b"abcdefgh"


@pytest.mark.parametrize(
    "address",
    [
        0x10000 - 4,
        0x10000 + PAGE - 4,
        0x10000 + PAGE,
        0,
        (1 << 64) - 8,
        (1 << 64) - 1,
    ],
)
@pytest.mark.parametrize("command", [READ, WRITE])
def test_access_outside_the_mapped_ranges_fails_whole(
    client: Client, command: int, address: int
) -> None:
    buffer = client.dma_memory(0x10000, PAGE)
    client.write_bytes(Bar.REGISTERS, Reg.BUFFER, b"\xff" * 8)
    assert not dma(client, command, address, 8)
    assert not any(buffer.view)
    assert client.read(Bar.REGISTERS, Reg.ID, 4) == ID


def test_permissions_hold(client: Client) -> None:
    client.dma_memory(0x10000, PAGE, write=False)
    client.dma_memory(0x20000, PAGE, read=False)
    assert dma(client, READ, 0x10000, 8)
    assert not dma(client, WRITE, 0x10000, 8)
    assert dma(client, WRITE, 0x20000, 8)
    assert not dma(client, READ, 0x20000, 8)


def test_unmapped_memory_is_out_of_reach(client: Client) -> None:
    buffer = client.dma_memory(0x10000, PAGE)
    assert dma(client, READ, 0x10000, 8)
    buffer.close()
    assert not dma(client, READ, 0x10000, 8)
    client.dma_memory(0x10000, PAGE)
    assert dma(client, READ, 0x10000, 8)
    client.dma_unmap_all()
    assert ranges(client) == 0
    assert not dma(client, READ, 0x10000, 8)


def test_next_client_inherits_no_memory(server: Server) -> None:
    with server.connect() as client:
        client.dma_memory(0x10000, PAGE)
        assert ranges(client) == 1
    with server.connect() as client:
        assert ranges(client) == 0
        assert not dma(client, READ, 0x10000, 8)


def test_overlapping_ranges_are_refused(client: Client) -> None:
    client.dma_memory(0x10000, 4 * PAGE)
    for iova, size in (
        (0x10000, 4 * PAGE),
        (0x10000 + PAGE, PAGE),
        (0x10000 - PAGE, 2 * PAGE),
        (0x10000 + 3 * PAGE, 2 * PAGE),
        (0x10000 - PAGE, 8 * PAGE),
    ):
        with pytest.raises(ProtocolError) as caught:
            client.dma_memory(iova, size)
        assert caught.value.errno == errno.EEXIST
    assert ranges(client) == 1


@pytest.mark.parametrize(
    ("iova", "size", "offset", "flags"),
    [
        (0x10000, 0, 0, 3),
        ((1 << 64) - PAGE, 2 * PAGE, 0, 3),
        (0x10000, 1 << 63, 0, 3),
        (0x10000, (1 << 64) - 1, 0, 3),
        (0x10000, PAGE, (1 << 64) - PAGE, 3),
        (0x10000, PAGE, 0, 0x80000000),
    ],
)
def test_ranges_that_cannot_be_are_refused(
    client: Client, iova: int, size: int, offset: int, flags: int
) -> None:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, PAGE)
    try:
        with pytest.raises(ProtocolError):
            client.dma_map(iova, size, fd, offset, flags)
    finally:
        os.close(fd)
    assert ranges(client) == 0
    assert client.read(Bar.REGISTERS, Reg.ID, 4) == ID


def test_descriptor_that_cannot_be_mapped_is_refused(client: Client) -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(ProtocolError):
            client.dma_map(0x10000, PAGE, reader)
    finally:
        os.close(reader)
        os.close(writer)
    assert ranges(client) == 0


def test_range_without_descriptor_is_an_error_that_names_the_fix(
    server: Server, client: Client
) -> None:
    client.dma_map(0x10000, 16 * PAGE)
    assert ranges(client) == 1
    assert not dma(client, READ, 0x10000, 8)
    assert client.read(Bar.REGISTERS, Reg.ID, 4) == ID
    client.dma_unmap(0x10000, 16 * PAGE)
    assert ranges(client) == 0
    assert "start QEMU with -object memory-backend-memfd" in server.log
    assert "share=on" in server.log


@pytest.mark.parametrize("command", [READ, WRITE])
def test_memory_that_shrinks_costs_the_device_an_error(
    server: Server, client: Client, command: int
) -> None:
    fd = os.memfd_create("guest")  # not sealed
    os.ftruncate(fd, 4 * PAGE)
    with server.connect(1) as other:
        client.dma_map(0x10000, 4 * PAGE, fd)
        assert dma(client, command, 0x10000 + 3 * PAGE, 8)
        os.ftruncate(fd, PAGE)
        assert not dma(client, command, 0x10000 + 3 * PAGE, 8)
        assert not dma(client, command, 0x10000 + PAGE - 4, 8)
        assert dma(client, command, 0x10000, 8)
        assert other.read(Bar.REGISTERS, Reg.ID, 4) == ID
        os.ftruncate(fd, 4 * PAGE)
        assert dma(client, command, 0x10000 + 3 * PAGE, 8)
    os.close(fd)


def test_unmap_must_match(client: Client) -> None:
    client.dma_memory(0x10000, 4 * PAGE)
    for iova, size in ((0x10000, PAGE), (0x20000, PAGE), (0x10000 + PAGE, 3 * PAGE)):
        with pytest.raises(ProtocolError):
            client.dma_unmap(iova, size)
    assert ranges(client) == 1
    client.dma_unmap(0x10000, 4 * PAGE)
    with pytest.raises(ProtocolError):
        client.dma_unmap(0x10000, 4 * PAGE)


def test_number_of_ranges_is_bounded(client: Client) -> None:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, PAGE)
    count = 0
    try:
        with pytest.raises(ProtocolError) as caught:
            for count in range(100_000):
                client.dma_map(2 * count * PAGE, PAGE, fd)
        assert caught.value.errno in (errno.ENOSPC, errno.ENOMEM)
        assert count >= 64
        assert dma(client, READ, 0, 8)
        client.dma_unmap_all()
        client.dma_map(0, PAGE, fd, flags=DmaFlags.READ)
        assert dma(client, READ, 0, 8)
    finally:
        os.close(fd)
