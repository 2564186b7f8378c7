"""A composed VDEV through the native client: pages, interrupts, resets and DMA.

What is asked of the transport alone is in the other files of this folder.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from everything import (
    DIRECT,
    DMA_ADDRESS,
    DMA_COMMAND,
    DMA_DATA,
    LINE,
    MEMORY,
    PBA,
    SCRATCH,
    SIGNAL,
    SIZE,
    STATUS,
    TABLE,
    VECTORS,
    WIDE,
    Everything,
    bar0,
    put,
    refused,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vdcm import Bar, Identity, PagePolicy, Pages, Vdev
from vdcm.bars import PAGE
from vdcm.client import Client, Irq, Region
from vdcm.errors import DmaError, ProtocolError
from vdcm.testing import Host, wait_until_ready
from vdcm.vdev import VdevState

COMMAND, BUS_MASTER, INTX_DISABLE = 0x04, 0x4, 0x400
RAM = 0x10000


def capability(client: Client, number: int) -> int:
    at = client.config.find(number)
    assert at is not None
    return at


def enable_msix(client: Client, control: int = 0x8000) -> None:
    client.config.write(capability(client, 0x11) + 2, 2, control)
    client.config.write(COMMAND, 2, BUS_MASTER)


def flr(client: Client) -> None:
    client.config.write(capability(client, 0x10) + 8, 2, 0x8000)


# Pages


@pytest.mark.conformance("R4.4.1-1", "R4.4.1-2", "R4.4.1-3")
def test_each_page_is_answered_by_its_policy(client: Client, vdev: Everything) -> None:
    areas = {area.offset: area for area in client.map(Region.BAR0)}
    assert [(offset, area.size, area.writable) for offset, area in areas.items()] == [
        (DIRECT, 2 * PAGE, True),
        (STATUS, PAGE, False),
    ]
    shared = areas[DIRECT]
    shared.write(0x10, 4, 0xD00D)
    shared.write(PAGE + 0x10, 4, 0xBEEF)
    assert bytes(vdev.bars[0].view(DIRECT + 0x10, 2)) == b"\x0d\xd0"
    # The same bytes by message, and back.
    assert bar0(client, DIRECT + 0x10) == 0xD00D
    assert bar0(client, MEMORY + 0x10) == 0xBEEF
    put(client, MEMORY + 0x10, 0x1234, 2)
    assert shared.read(PAGE + 0x10, 4) == 0x1234
    put(client, SCRATCH, 0x1122334455667788, 8)
    assert vdev.registers.SCRATCH.value == 0x1122334455667788


@pytest.mark.conformance("R4.4.1-5")
def test_read_only_mapping_shows_what_python_stores(
    client: Client, vdev: Everything, host: Host
) -> None:
    page = next(area for area in client.map(Region.BAR0) if area.offset == STATUS)
    assert page.read(0, 4) == 0
    put(client, STATUS + 4, 0xCAFE)
    assert page.read(0, 4) == 0xCAFE == bar0(client, STATUS)

    def store() -> None:
        vdev.status.WORD.value = 0xF00D

    host.run(store)
    assert page.read(0, 4) == 0xF00D
    put(client, STATUS, 1)  # read-only, so the guest's write does nothing
    assert page.read(0, 4) == 0xF00D
    with pytest.raises(DmaError):
        page.write(0, 4, 1)


def test_client_that_promises_nothing_is_offered_no_read_only_page(
    host: Host, vdev: Everything
) -> None:
    assert vdev.state is VdevState.READY
    with host.connect("all", capabilities={"vdcm": None}) as client:
        assert [area.offset for area in client.map(Region.BAR0)] == [DIRECT]
        put(client, STATUS + 4, 5)
        assert bar0(client, STATUS) == 5


def test_many_alternating_pages_can_be_attached(host: Host) -> None:
    """As many areas as a client of either kind can be told of, or a refusal when it is declared."""

    class Striped(Vdev):
        identity = Identity(vendor=1, device=1, class_code=0)

        def __init__(self, name: str) -> None:
            policies = (PagePolicy.DIRECT, PagePolicy.WRITE_INTERCEPTED)
            pages = [Pages(at * PAGE, PAGE, policies[at % 2]) for at in range(16)]
            super().__init__(name, bars=[Bar(0, 16 * PAGE, pages=pages)])

    host.serve(Striped, "striped")
    with host.connect("striped") as client:
        assert len(client.map(Region.BAR0)) == 16


def test_bytes_of_an_access_go_where_they_belong(client: Client, vdev: Everything) -> None:
    put(client, DIRECT - 2, 0xAABBCCDD)  # two bytes nobody has, two in shared memory
    assert bytes(vdev.bars[0].view(DIRECT, 4)) == b"\xbb\xaa\0\0"
    assert bar0(client, DIRECT - 2) == 0xAABB0000
    put(client, DIRECT + PAGE - 1, 0x2211, 2)
    assert bytes(vdev.bars[0].view(MEMORY - 1, 2)) == b"\x11\x22"
    put(client, 0x06, 0xDDCC, 2)  # SCRATCH's last bytes
    put(client, 0x07, 0x0000BBAA, 4)  # its last byte and three of DMA_ADDRESS
    assert vdev.registers.SCRATCH.value == 0xAACC << 48
    assert vdev.registers.DMA_ADDRESS.value == 0xBB
    assert bar0(client, 0x05, 4) == 0xBBAACC00


def test_accesses_that_no_register_answers(client: Client) -> None:
    assert bar0(client, 0x800, 8) == 0
    put(client, 0x800, 1)
    with pytest.raises(ProtocolError) as caught:
        bar0(client, SIZE - 4, 8)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(ProtocolError):
        bar0(client, 1 << 63, 8)
    with pytest.raises(ProtocolError):
        client.read(Region.BAR5, 0, 4)
    with pytest.raises(ProtocolError):
        client.config.read(4093, 4)
    assert client.config.read(4092, 4) == 0


def test_long_accesses_are_split(client: Client) -> None:
    data = bytes(range(1, 1 + 12))
    client.write_bytes(Region.BAR0, MEMORY + 3, data)
    assert client.read_bytes(Region.BAR0, MEMORY + 3, 12) == data
    whole = client.read_bytes(Region.BAR0, MEMORY, PAGE)
    assert whole == bytes(3) + data + bytes(PAGE - 15)


@pytest.mark.conformance("R2.4-7")
def test_far_end_of_a_64_bit_bar(client: Client) -> None:
    client.write(Region.BAR2, WIDE - 4, 4, 0x600D)
    assert client.read(Region.BAR2, WIDE - 4, 4) == 0x600D
    assert client.read(Region.BAR2, WIDE - 8, 8) == 0x600D << 32
    assert client.regions[Region.BAR2].size == WIDE
    client.config.write(0x18, 4, 0xFFFFFFFF)
    client.config.write(0x1C, 4, 0xFFFFFFFF)
    assert client.config.read(0x18, 8) == (1 << 64) - WIDE | 0xC


def test_io_bar(client: Client, vdev: Everything) -> None:
    client.write(Region.BAR4, 0, 2, 0x2211)
    assert (vdev.ports.LOW.value, vdev.ports.HIGH.value) == (0x11, 0x22)
    assert client.read(Region.BAR4, 1, 1) == 0x22
    assert client.map(Region.BAR4) == []
    client.config.write(0x20, 4, 0xFFFFFFFF)
    assert client.config.read(0x20, 4) == 0xFFFFFFC1


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(
            st.integers(DIRECT - 16, STATUS - 1),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(0, (1 << 64) - 1),
        ).filter(lambda access: access[0] + access[1] <= STATUS + 4),  # what follows sets STATUS
        max_size=8,
    )
)
def test_shared_pages_are_bytes(client: Client, accesses: list[tuple[int, int, int]]) -> None:
    """Model: an array of bytes; below DIRECT nobody stores, and STATUS's first word is RO."""
    client.write_bytes(Region.BAR0, DIRECT, bytes(2 * PAGE))
    model = bytearray(STATUS + 8 - DIRECT)
    for offset, width, value in accesses:
        put(client, offset, value, width)
        for i in range(width):
            if DIRECT <= offset + i < STATUS:
                model[offset + i - DIRECT] = value >> 8 * i & 0xFF
    for offset, width, _ in accesses:
        expected = [
            model[max(offset + i - DIRECT, 0)] if offset + i >= DIRECT else 0 for i in range(width)
        ]
        assert bar0(client, offset, width) == int.from_bytes(expected, "little")


# Interrupts


@pytest.mark.conformance("R4.4.2-5")
def test_msix_masks_and_pending_bits(client: Client) -> None:
    assert bar0(client, TABLE + 12) == 1  # masked after reset
    events = client.irq_enable(Irq.MSIX)
    enable_msix(client)
    put(client, TABLE + 16 + 12, 1)
    put(client, SIGNAL, 1)
    put(client, SIGNAL, 1)
    put(client, SIGNAL, 2)
    assert [event.wait(0) for event in events] == [0, 0, 1, 0]
    assert bar0(client, PBA, 8) == 0b10
    put(client, TABLE + 16 + 12, 0)
    assert [event.wait(0) for event in events] == [0, 1, 0, 0]  # once
    assert bar0(client, PBA, 8) == 0


def test_msix_function_mask(client: Client) -> None:
    events = client.irq_enable(Irq.MSIX)
    enable_msix(client, 0xC000)
    for vector in range(VECTORS):
        put(client, SIGNAL, vector)
    assert [event.wait(0) for event in events] == [0] * VECTORS
    assert bar0(client, PBA, 4) == 0b1111
    enable_msix(client)
    assert [event.wait(0) for event in events] == [1] * VECTORS
    assert bar0(client, PBA, 4) == 0


def test_message_for_a_vector_bound_later_comes_then(client: Client) -> None:
    enable_msix(client)
    put(client, SIGNAL, 3)
    events = client.irq_enable(Irq.MSIX)
    assert [event.wait(0) for event in events] == [0, 0, 0, 1]


def test_vector_that_is_not_there_is_an_error_of_the_model(client: Client) -> None:
    assert refused(client, SIGNAL, VECTORS) == errno.EIO
    assert bar0(client, SCRATCH) == 0


def test_msi_mask_bits(client: Client) -> None:
    at = capability(client, 0x05)
    events = client.irq_enable(Irq.MSI)
    client.config.write(COMMAND, 2, BUS_MASTER)
    client.config.write(at + 0x10, 4, 0b0100)
    client.config.write(at + 2, 2, 0x1 | 2 << 4)
    put(client, SIGNAL, 2)
    put(client, SIGNAL, 3)
    assert [event.wait(0) for event in events] == [0, 0, 0, 1]
    assert client.config.read(at + 0x14, 4) == 0b0100
    client.config.write(at + 0x10, 4, 0)
    assert [event.wait(0) for event in events] == [0, 0, 1, 0]
    assert client.config.read(at + 0x14, 4) == 0


def test_msi_of_fewer_vectors_than_the_device_has(client: Client) -> None:
    """Multiple Message Enable says how many: the device uses no others (PCIe 5.0, 7.7.1.2)."""
    (event, _) = client.irq_enable(Irq.MSI, count=2)
    client.config.write(COMMAND, 2, BUS_MASTER)
    client.config.write(capability(client, 0x05) + 2, 2, 0x1)
    put(client, SIGNAL, 3)
    assert event.wait(0) == 1


def test_intx_is_a_level(client: Client) -> None:
    (line,) = client.irq_enable(Irq.INTX)
    put(client, LINE, 1)
    assert line.wait(0) == 1
    assert client.config.read(0x06, 2) & 0x8
    put(client, LINE, 1)
    assert line.wait(0) == 0
    client.irq_unmask(Irq.INTX)
    assert line.wait(0) == 1  # still asserted, so it comes again
    put(client, LINE, 0)
    client.irq_unmask(Irq.INTX)
    assert line.wait(0) == 0
    assert not client.config.read(0x06, 2) & 0x8
    client.config.write(COMMAND, 2, INTX_DISABLE)
    put(client, LINE, 1)
    assert line.wait(0) == 0
    assert client.config.read(0x06, 2) & 0x8
    client.config.write(COMMAND, 2, 0)
    assert line.wait(0) == 1


def test_no_intx_while_msix_is_in_use(client: Client) -> None:
    """PCIe 5.0, 6.1.4.3: a function with MSI or MSI-X enabled does not use INTx."""
    (line,) = client.irq_enable(Irq.INTX)
    (message, *_) = client.irq_enable(Irq.MSIX)
    enable_msix(client)
    put(client, LINE, 1)
    assert (line.wait(0), message.wait(0)) == (0, 1)
    client.irq_unmask(Irq.INTX)
    assert (line.wait(0), message.wait(0)) == (0, 0)
    client.irq_disable(Irq.MSIX)
    enable_msix(client, 0)
    assert line.wait(0) == 1


def test_client_that_refills_a_full_eventfd_does_not_stop_the_server(client: Client) -> None:
    """The flags of an eventfd are the client's as much as ours: it can make it blocking again."""
    (event, *_) = client.irq_enable(Irq.MSIX)
    client.config.write(COMMAND, 2, BUS_MASTER)
    os.set_blocking(event.fileno(), True)
    os.eventfd_write(event.fileno(), 0xFFFFFFFFFFFFFFFE)
    put(client, SIGNAL, 0)
    assert bar0(client, SCRATCH) == 0
    os.set_blocking(event.fileno(), False)
    assert event.wait(0) >= 0xFFFFFFFFFFFFFFFE


# Resets


@pytest.mark.parametrize("how", ["flr", "message"])
def test_reset_is_of_the_function_and_not_of_the_client(
    client: Client, vdev: Everything, how: str
) -> None:
    shared = client.map(Region.BAR0)[0]
    events = client.irq_enable(Irq.MSIX)
    buffer = client.dma_memory(RAM, PAGE)
    client.config.write(COMMAND, 2, BUS_MASTER)
    shared.write(0, 8, 0xFFFF)
    put(client, SCRATCH, 5)
    put(client, STATUS + 4, 7)
    put(client, TABLE, 0xFEE00000)
    enable_msix(client, 0xC000)
    put(client, SIGNAL, 0)
    if how == "flr":
        flr(client)
    else:
        client.reset()
    assert vdev.resets == 1
    assert shared.read(0, 8) == 0
    assert (bar0(client, SCRATCH), bar0(client, STATUS), bar0(client, TABLE)) == (0, 0, 0)
    assert client.config.read(COMMAND, 2) == 0
    assert bar0(client, PBA) == 0
    assert [event.wait(0) for event in events] == [0] * VECTORS, "nothing pending is delivered"
    # Eventfds and DMA ranges are the client's.
    client.config.write(COMMAND, 2, BUS_MASTER)
    put(client, SIGNAL, 2)
    assert [event.wait(0) for event in events] == [0, 0, 1, 0]
    put(client, DMA_ADDRESS, RAM, 8)
    put(client, DMA_DATA, 0x11)
    put(client, DMA_COMMAND, 2)
    assert buffer.view[0] == 0x11
    assert vdev.state is VdevState.ATTACHED


def test_reset_delivers_no_masked_message(client: Client) -> None:
    at = capability(client, 0x05)
    events = client.irq_enable(Irq.MSI)
    client.config.write(COMMAND, 2, BUS_MASTER)
    client.config.write(at + 0x10, 4, 0b1111)
    client.config.write(at + 2, 2, 0x1 | 2 << 4)
    put(client, SIGNAL, 1)
    flr(client)
    assert [event.wait(0) for event in events] == [0] * VECTORS
    assert client.config.read(at + 0x14, 4) == 0


def test_reset_does_not_assert_the_line(client: Client) -> None:
    (line,) = client.irq_enable(Irq.INTX)
    client.config.write(COMMAND, 2, INTX_DISABLE)
    put(client, LINE, 1)
    flr(client)
    assert line.wait(0) == 0
    assert not client.config.read(0x06, 2) & 0x8


def test_next_client_meets_a_fresh_device(host: Host, vdev: Everything) -> None:
    with host.connect("all") as client:
        put(client, SCRATCH, 5)
        put(client, MEMORY, 5)
        put(client, STATUS + 4, 5)
        client.config.write(COMMAND, 2, BUS_MASTER)
        client.dma_memory(RAM, PAGE)
        client.irq_enable(Irq.MSIX)
        put(client, LINE, 1)
    with host.connect("all") as client:
        assert [bar0(client, at) for at in (SCRATCH, MEMORY, STATUS, LINE)] == [0] * 4
        assert client.config.read(COMMAND, 4) & 0xFFFF == 0
        assert not client.config.read(0x06, 2) & 0x8
        assert vdev.describe()["dma"] == []
        put(client, SIGNAL, 0)  # lost: nothing is bound


# DMA


def test_dma_needs_a_bus_master(
    client: Client, vdev: Everything, caplog: pytest.LogCaptureFixture
) -> None:
    buffer = client.dma_memory(RAM, PAGE)
    buffer.view[:4] = b"\x44\x33\x22\x11"
    put(client, DMA_ADDRESS, RAM, 8)
    assert refused(client, DMA_COMMAND) == errno.EIO
    assert "all: DMA while Bus Master Enable is 0" in caplog.text
    client.config.write(COMMAND, 2, BUS_MASTER)
    put(client, DMA_COMMAND, 1)
    assert bar0(client, DMA_DATA) == 0x11223344
    assert vdev.describe()["dma"] == [{"iova": RAM, "size": PAGE, "shared": True}]
    client.config.write(COMMAND, 2, 0)
    assert refused(client, DMA_COMMAND) == errno.EIO


def test_dma_to_memory_that_is_not_shared_costs_its_device_only(
    host: Host, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    host.serve(Everything, "other")
    with host.connect("other") as other:
        for each in (client, other):
            each.config.write(COMMAND, 2, BUS_MASTER)
        client.dma_map(RAM, 1 << 20)
        assert "all: guest memory is not shared with vdcm: start QEMU with" in caplog.text
        assert "-object memory-backend-memfd,id=mem,size=SIZE,share=on" in caplog.text
        buffer = other.dma_memory(RAM, PAGE)
        caplog.clear()
        for each in (client, other):
            put(each, DMA_ADDRESS, RAM, 8)
            put(each, DMA_DATA, 0x77)
        assert refused(client, DMA_COMMAND, 2) == errno.EIO
        assert "share=on" in caplog.text
        put(other, DMA_COMMAND, 2)
        assert buffer.view[0] == 0x77
        assert bar0(client, SCRATCH) == 0


def test_memory_that_is_not_the_guests_ram_may_be_unshared(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """QEMU announces that of its VGA, too."""
    client.dma_memory(0, 1 << 20)
    client.dma_map(0xFD00_0000, 16 << 20)
    assert "not shared" not in caplog.text
    client.dma_unmap(0, 1 << 20)
    client.dma_map(0, 1 << 20)
    assert "all: guest memory is not shared with vdcm" in caplog.text


@pytest.mark.parametrize("address", [0, RAM - 1, RAM + PAGE - 1, (1 << 64) - 1])
def test_dma_beside_the_memory(client: Client, vdev: Everything, address: int) -> None:
    client.dma_memory(RAM, PAGE)
    client.config.write(COMMAND, 2, BUS_MASTER)
    put(client, DMA_ADDRESS, address, 8)
    assert refused(client, DMA_COMMAND, 1) == errno.EIO
    assert refused(client, DMA_COMMAND, 2) == errno.EIO
    with pytest.raises(DmaError):
        vdev.dma_read((1 << 64) + RAM, 4)  # no such address, as a sum of registers can be
    with pytest.raises(DmaError):
        vdev.dma_write(-1, b"1")
    with pytest.raises(DmaError):
        vdev.dma_read(RAM, 1 << 62)


def test_dma_of_huge_pages(client: Client) -> None:
    """Ranges in a file of 2 MiB pages need not begin or end with one, and leave nothing behind."""
    size = 2 << 20
    try:
        fd = os.memfd_create("huge", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
        os.ftruncate(fd, 2 * size)
    except OSError as error:
        pytest.skip(f"this kernel has no huge pages: {error}")
    before = huge_mappings()
    client.dma_map(0, 0xA0000, fd)
    client.dma_map(0xC0000, 2 * size - 0xC0000, fd, 0xC0000)
    assert huge_mappings() == before + 2
    client.dma_unmap(0xC0000, 2 * size - 0xC0000)
    client.dma_unmap(0, 0xA0000)
    assert huge_mappings() == before
    os.close(fd)


def huge_mappings() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:huge")


def test_no_dma_without_a_client(host: Host, vdev: Everything) -> None:
    with host.connect("all") as client:
        client.dma_memory(RAM, PAGE)
        client.config.write(COMMAND, 2, BUS_MASTER)
        memory = vdev.session.memory if vdev.session is not None else None
        assert memory is not None
        assert memory.read(RAM, 1) == b"\0"
    wait_until_ready(vdev)
    with pytest.raises(DmaError, match="Bus Master"):
        vdev.dma_read(RAM, 4)
    # Whoever kept the client's memory is told so, and reads nothing that has been freed.
    with pytest.raises(DmaError, match="disconnected"):
        memory.read(RAM, 1)
    with pytest.raises(DmaError, match="disconnected"):
        memory.write(RAM, b"1")
    assert memory.ranges == []
