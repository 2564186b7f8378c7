"""What the native client shares with a server: mapped regions, DMA memory, interrupts."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vfio_user_peer import PAGE, Peer, Request, open_fds, refuse_with, soon

from vdcm import protocol
from vdcm.client import Client, Irq
from vdcm.client.memory import writable_parts
from vdcm.errors import DmaError, ProtocolError, StateError, TransportError
from vdcm.protocol import Area, Command, Header, IrqSet, MessageFlags


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path / "vdev.sock")
    yield peer
    peer.close()


# Mapped regions


def give_memory(peer: Peer, areas: list[tuple[int, int]], pages: int = 4) -> None:
    peer.fd = os.memfd_create("region")
    os.ftruncate(peer.fd, (pages + 1) * PAGE)
    peer.areas = areas


def test_map_gives_one_writable_view_per_sparse_area(peer: Peer) -> None:
    give_memory(peer, [(0, PAGE), (2 * PAGE, 2 * PAGE)])
    with Client(peer.path) as client:
        first, second = client.map(0)
        assert (first.offset, first.size) == (0, PAGE)
        assert (second.offset, second.size, second.writable) == (2 * PAGE, 2 * PAGE, True)
        second.write(8, 4, 0x12345678)
        assert os.pread(peer.fd, 4, PAGE + 2 * PAGE + 8) == bytes.fromhex("78563412")
        os.pwrite(peer.fd, b"\xaa\xbb", PAGE + 16)
        assert first.read(16, 2) == 0xBBAA
        assert client.map(1) == []


def test_regions_with_many_areas_are_asked_for_twice(peer: Peer) -> None:
    pages = 200
    give_memory(peer, [(2 * i * PAGE, PAGE) for i in range(pages // 2)], pages)
    with Client(peer.path) as client:
        assert len(client.regions[0].areas) == pages // 2
    asked = [protocol.REGION_INFO.unpack(p)[0] for h, p, _ in peer.log if h.command == 5]
    assert asked[:2] == [1024, 32 + 16 + 16 * pages // 2]


def test_areas_the_server_names_read_only_are_mapped_so(peer: Peer) -> None:
    give_memory(peer, [(0, 3 * PAGE)])
    peer.capabilities["vdcm"] = protocol.pack_read_only({0: [(PAGE, PAGE)]})
    with Client(peer.path) as client:
        areas = client.map(0)
        assert [(area.offset, area.writable) for area in areas] == [
            (0, True),
            (PAGE, False),
            (2 * PAGE, True),
        ]
        with pytest.raises(DmaError, match="mapped read-only"):
            areas[1].write(0, 4, 1)
        with pytest.raises(TypeError):
            areas[1].view[0] = 1
        assert areas[1].read(0, 4) == 0


@pytest.mark.parametrize(("offset", "width"), [(1, 2), (PAGE, 1), (PAGE - 4, 8), (-4, 4), (0, 3)])
def test_mapped_words_are_aligned_and_inside(peer: Peer, offset: int, width: int) -> None:
    give_memory(peer, [(0, PAGE)])
    with Client(peer.path) as client:
        (area,) = client.map(0)
        with pytest.raises(DmaError, match="no aligned word"):
            area.read(offset, width)


def test_area_beyond_its_file_cannot_be_mapped(peer: Peer) -> None:
    give_memory(peer, [(0x10, PAGE)])
    with Client(peer.path) as client, pytest.raises(TransportError, match="cannot be mapped"):
        client.map(0)


areas = st.builds(Area, st.integers(0, 50), st.integers(1, 20))


@given(areas, st.lists(areas, max_size=5))
def test_writable_parts_cover_the_area_once(area: Area, holes: list[Area]) -> None:
    parts = writable_parts(area, holes)
    covered = [at for part, _ in parts for at in range(part.offset, part.end)]
    assert covered == list(range(area.offset, area.end))
    for part, writable in parts:
        for at in range(part.offset, part.end):
            assert writable != any(hole.offset <= at < hole.end for hole in holes)


# DMA


def test_dma_memory_is_shared_sealed_and_unmapped_on_close(peer: Peer) -> None:
    seen: list[int] = []

    def keep(request: Request) -> bytes:
        seen.extend(request.fds)
        return b""

    peer.script[Command.DMA_MAP] = keep
    with Client(peer.path) as client:
        buffer = client.dma_memory(0x10000, 2 * PAGE, write=False)
        fields = protocol.DMA_MAP.unpack(peer.log[-1][1])
        assert fields == (32, 1, 0, 0x10000, 2 * PAGE)
        os.pwrite(seen[0], b"hello", 100)
        assert bytes(buffer.view[100:105]) == b"hello"
        with pytest.raises(PermissionError):
            os.ftruncate(seen[0], 0)
        buffer.close()
        buffer.close()
        assert peer.commands().count(Command.DMA_UNMAP) == 1
        assert protocol.DMA_UNMAP.unpack(peer.log[-1][1]) == (24, 0, 0x10000, 2 * PAGE)
    os.close(seen[0])


@pytest.mark.parametrize("size", [0, -PAGE, 100, PAGE + 1])
def test_dma_memory_is_whole_pages(peer: Peer, size: int) -> None:
    with Client(peer.path) as client, pytest.raises(DmaError, match="whole pages"):
        client.dma_memory(0, size)


def test_refused_dma_map_leaks_nothing(peer: Peer) -> None:
    peer.script[Command.DMA_MAP] = refuse_with(errno.EEXIST)
    with Client(peer.path) as client:
        before = open_fds()
        for _ in range(3):
            with pytest.raises(ProtocolError, match="File exists"):
                client.dma_memory(0, PAGE)
        assert open_fds() == before


def test_unmap_all_leaves_the_buffers_own_memory(peer: Peer) -> None:
    with Client(peer.path) as client:
        client.dma_map(0x5000, PAGE)
        buffer = client.dma_memory(0, PAGE)
        client.dma_unmap_all()
        buffer.write(0, 4, 5)
        assert buffer.read(0, 4) == 5
        buffer.close()
    unmaps = [protocol.DMA_UNMAP.unpack(p) for h, p, _ in peer.log if h.command == 3]
    assert unmaps == [(24, 2, 0, 0)]


def ask_in_the_middle(
    peer: Peer, command: int, payload: bytes
) -> Callable[[], tuple[Header, bytes]]:
    """Let the peer send a request before its reply to REGION_READ; what the client answered."""
    answers: list[tuple[Header, bytes]] = []

    def answer(request: Request) -> bytes:
        answers.append(peer.request(command, payload))
        return request.payload + bytes(4)

    peer.script[Command.REGION_READ] = answer
    return lambda: answers[0]


def test_dma_requests_of_the_server_are_served_from_buffers(peer: Peer) -> None:
    with Client(peer.path) as client:
        buffer = client.dma_memory(0x1000, PAGE)
        buffer.view[8:12] = b"data"
        answer = ask_in_the_middle(peer, Command.DMA_READ, protocol.DMA_ACCESS.pack(0x1008, 4))
        client.read(0, 0, 4)
        header, payload = answer()
        assert (header.message_id, header.flags) == (0x7777, MessageFlags.REPLY)
        assert payload == protocol.DMA_ACCESS.pack(0x1008, 4) + b"data"
        write = protocol.DMA_ACCESS.pack(0x1000 + PAGE - 4, 4) + b"DONE"
        answer = ask_in_the_middle(peer, Command.DMA_WRITE, write)
        client.read(0, 0, 4)
        assert answer()[1] == write[:16]
        assert bytes(buffer.view[-4:]) == b"DONE"


@pytest.mark.parametrize(
    ("command", "payload", "error"),
    [
        (Command.DMA_READ, protocol.DMA_ACCESS.pack(0xFFC, 8), errno.EFAULT),
        (Command.DMA_READ, protocol.DMA_ACCESS.pack(0x1000 + PAGE - 4, 8), errno.EFAULT),
        (Command.DMA_READ, protocol.DMA_ACCESS.pack((1 << 64) - 1, 8), errno.EFAULT),
        (Command.DMA_READ, protocol.DMA_ACCESS.pack(0x1000, 65), errno.EINVAL),
        (Command.DMA_READ, bytes(4), errno.EINVAL),
        (Command.DMA_WRITE, protocol.DMA_ACCESS.pack(0x1000, 4) + b"xyz", errno.EINVAL),
        (Command.DMA_WRITE, protocol.DMA_ACCESS.pack(0x1000, 4) + b"wxyz", errno.EFAULT),
        (Command.DEVICE_RESET, b"", errno.EINVAL),
    ],
)
def test_dma_requests_that_cannot_be_get_an_error(
    peer: Peer, command: int, payload: bytes, error: int
) -> None:
    with Client(peer.path) as client:
        client.dma_memory(0x1000, PAGE, write=False)
        answer = ask_in_the_middle(peer, command, payload)
        client.read(0, 0, 4)
        header, data = answer()
        assert header.is_error
        assert (header.error, data) == (error, b"")


def test_dma_requests_between_calls_are_served_when_asked(peer: Peer) -> None:
    with Client(peer.path) as client:
        buffer = client.dma_memory(0, PAGE)
        flags = MessageFlags.NO_REPLY
        for number in range(3):
            payload = protocol.DMA_ACCESS.pack(number, 1) + bytes([number + 1])
            peer.send(protocol.message(Command.DMA_WRITE, payload, number, flags))
        served = 0
        while served < 3:
            served += client.serve_requests(0.5)
        assert bytes(buffer.view[:4]) == b"\1\2\3\0"
        assert client.serve_requests() == 0


def test_buffers_of_a_lost_connection_close_quietly(peer: Peer) -> None:
    with Client(peer.path) as client:
        buffer = client.dma_memory(0, PAGE)
        peer.hang_up()
        buffer.close()
        assert buffer.fd == -1
        with pytest.raises(TransportError, match="not connected"):
            client.info()


# Interrupts


def test_interrupts_are_enabled_in_messages_the_server_can_take(peer: Peer) -> None:
    with Client(peer.path) as client:
        events = client.irq_enable(Irq.MSIX)
        assert len(events) == 5
        sent = [
            (protocol.IRQ_SET.unpack(p), fds)
            for h, p, fds in peer.log
            if h.command == Command.DEVICE_SET_IRQS
        ]
        flags = IrqSet.DATA_EVENTFD | IrqSet.ACTION_TRIGGER
        assert sent == [
            ((20, flags, Irq.MSIX, 0, 2), 2),
            ((20, flags, Irq.MSIX, 2, 2), 2),
            ((20, flags, Irq.MSIX, 4, 1), 1),
        ]
        os.eventfd_write(peer.kept_fds[3], 2)
        assert events[3].wait(5.0) == 2
        assert events[3].wait(0.0) == 0
        assert events[0].wait(0.0) == 0
    with pytest.raises(StateError, match="eventfd is closed"):
        events[0].wait(0.0)


def test_interrupt_actions(peer: Peer) -> None:
    with Client(peer.path) as client:
        client.irq_mask(Irq.INTX)
        client.irq_unmask(Irq.INTX)
        client.irq_trigger(Irq.MSIX, start=3, count=2)
        client.irq_disable(Irq.MSIX)
        client.irq_disable(Irq.MSIX, start=1, count=2)
        client.set_irqs(Irq.MSIX, IrqSet.DATA_BOOL | IrqSet.ACTION_TRIGGER, 0, 2, b"\1\0")
    sent = [(p[:4], protocol.IRQ_SET.unpack(p[:20])[1:]) for _, p, _ in peer.log[1:]]
    none, eventfd = IrqSet.DATA_NONE, IrqSet.DATA_EVENTFD
    assert [fields for _, fields in sent] == [
        (none | IrqSet.ACTION_MASK, 0, 0, 1),
        (none | IrqSet.ACTION_UNMASK, 0, 0, 1),
        (none | IrqSet.ACTION_TRIGGER, 2, 3, 2),
        (none | IrqSet.ACTION_TRIGGER, 2, 0, 0),
        (eventfd | IrqSet.ACTION_TRIGGER, 2, 1, 2),
        (IrqSet.DATA_BOOL | IrqSet.ACTION_TRIGGER, 2, 0, 2),
    ]
    assert sent[-1][0] == (22).to_bytes(4, "little")


def test_refused_interrupts_leak_no_eventfd(peer: Peer) -> None:
    peer.script[Command.DEVICE_SET_IRQS] = refuse_with(errno.EINVAL)
    with Client(peer.path) as client:
        before = open_fds()
        with pytest.raises(ProtocolError):
            client.irq_enable(Irq.MSIX, count=5)
        assert open_fds() == before


def test_server_without_descriptors_cannot_enable_interrupts(peer: Peer) -> None:
    peer.capabilities["max_msg_fds"] = 0
    with Client(peer.path) as client, pytest.raises(ProtocolError, match="takes no descriptors"):
        client.irq_enable(Irq.MSIX, count=1)


def test_bad_descriptor_of_the_caller_leaves_the_connection(peer: Peer) -> None:
    with Client(peer.path) as client:
        with pytest.raises(ProtocolError, match="cannot be sent"):
            client.dma_map(0, PAGE, fd=9999)
        assert client.info().regions == 8


# Closing


def test_close_gives_everything_back(peer: Peer) -> None:
    give_memory(peer, [(0, PAGE)])
    with Client(peer.path) as client:
        client.info()
    before = open_fds()
    with Client(peer.path) as client:
        buffer = client.dma_memory(0, PAGE)
        client.map(0)
        client.irq_enable(Irq.MSIX)
    # The peer keeps the descriptors it was given until the test ends.
    assert soon(lambda: open_fds() <= before + len(peer.kept_fds))
    assert buffer.fd == -1
    with pytest.raises(TransportError, match="it was closed"):
        client.regions  # noqa: B018
    client.close()


def test_slices_of_a_view_outlive_the_client(peer: Peer) -> None:
    with Client(peer.path) as client:
        kept = client.dma_memory(0, PAGE).view[0:4]
    assert bytes(kept) == bytes(4)
