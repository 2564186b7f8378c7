"""Interrupts by eventfd: binding, signalling, masking, and what is refused."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from everything import PBA, TABLE, VECTORS, Everything
from wire_registers import ID, MSIX_VECTORS, Bar, Reg
from wire_server import STOP_TIME, Server

from vdcm.client import Client, Irq, Region
from vdcm.errors import ProtocolError
from vdcm.ims import ImsEntry, ImsStorage
from vdcm.protocol import IrqSet
from vdcm.testing import Host

COMMAND, BUS_MASTER = 0x04, 0x4

BOUND, UNBOUND, MASKED, UNMASKED = range(4)
TRIGGER = IrqSet.ACTION_TRIGGER


@pytest.fixture
def client(serve: Callable[..., Server]) -> Iterator[Client]:
    with serve(count=1).connect() as client:
        yield client


def signal(client: Client, kind: Irq, vector: int) -> bool:
    """Have the device trigger an interrupt; whether an eventfd was bound to it."""
    client.write(Bar.REGISTERS, Reg.TRIGGER, 4, kind << 16 | vector)
    return bool(client.read(Bar.REGISTERS, Reg.RESULT, 4))


def last_change(client: Client) -> tuple[int, int, int, int]:
    value = client.read(Bar.REGISTERS, Reg.IRQ_CHANGE, 4)
    return value >> 24, value >> 16 & 0xFF, value >> 8 & 0xFF, value & 0xFF


@pytest.mark.conformance("R4.4.2-3", "R4.4.2-6")
@pytest.mark.parametrize(("kind", "count"), [(Irq.INTX, 1), (Irq.MSI, 8), (Irq.MSIX, MSIX_VECTORS)])
def test_every_vector_signals_its_own_eventfd(client: Client, kind: Irq, count: int) -> None:
    events = client.irq_enable(kind)
    assert len(events) == count
    for vector in range(count):
        assert signal(client, kind, vector)
        assert [event.wait(0) for event in events] == [int(v == vector) for v in range(count)]


def test_signals_are_counted(client: Client) -> None:
    (event,) = client.irq_enable(Irq.INTX)
    for _ in range(3):
        signal(client, Irq.INTX, 0)
    assert event.wait(STOP_TIME) == 3


def test_vector_without_eventfd_goes_nowhere(client: Client) -> None:
    assert not signal(client, Irq.MSIX, 0)
    client.irq_enable(Irq.MSIX, count=2, start=4)
    assert not signal(client, Irq.MSIX, 3)
    assert signal(client, Irq.MSIX, 4)
    assert not signal(client, Irq.MSIX, 6)
    assert not signal(client, Irq.MSIX, 0xFFFF)


def test_kinds_are_apart(client: Client) -> None:
    (line,) = client.irq_enable(Irq.INTX)
    vectors = client.irq_enable(Irq.MSIX)
    signal(client, Irq.MSIX, 0)
    assert line.wait(0) == 0
    assert vectors[0].wait(STOP_TIME) == 1
    client.irq_disable(Irq.MSIX)
    assert signal(client, Irq.INTX, 0)
    assert line.wait(STOP_TIME) == 1


def test_disabling_some_leaves_the_others(client: Client) -> None:
    client.irq_enable(Irq.MSIX)
    client.irq_disable(Irq.MSIX, start=8, count=4)
    assert [signal(client, Irq.MSIX, vector) for vector in (7, 8, 11, 12)] == [
        True,
        False,
        False,
        True,
    ]
    client.irq_disable(Irq.MSIX)
    assert last_change(client) == (UNBOUND, Irq.MSIX, 0, MSIX_VECTORS)
    assert not signal(client, Irq.MSIX, 7)


def test_binding_anew_replaces_the_eventfd(client: Client) -> None:
    (old,) = client.irq_enable(Irq.MSIX, count=1)
    (new,) = client.irq_enable(Irq.MSIX, count=1)
    signal(client, Irq.MSIX, 0)
    assert new.wait(STOP_TIME) == 1
    assert old.wait(0) == 0


def test_client_triggers_a_loopback(client: Client) -> None:
    events = client.irq_enable(Irq.MSIX, count=8)
    client.irq_trigger(Irq.MSIX, start=2, count=3)
    assert [event.wait(0) for event in events] == [0, 0, 1, 1, 1, 0, 0, 0]
    booleans = bytes([1, 0, 0, 0, 0, 0, 0, 1])
    client.set_irqs(Irq.MSIX, IrqSet.DATA_BOOL | TRIGGER, 0, 8, booleans)
    assert [event.wait(0) for event in events] == list(booleans)


def test_the_error_interrupt_can_be_bound_and_tells_the_device_nothing(client: Client) -> None:
    client.irq_enable(Irq.MSIX, count=1)
    assert client.irqs[Irq.ERR].count == 1
    client.irq_enable(Irq.ERR)
    client.irq_disable(Irq.ERR)
    assert last_change(client) == (BOUND, Irq.MSIX, 0, 1)


def test_device_hears_of_bindings_and_masks(client: Client) -> None:
    client.irq_enable(Irq.MSIX, count=3, start=5)
    assert last_change(client) == (BOUND, Irq.MSIX, 5, 3)
    client.irq_mask(Irq.INTX)
    assert last_change(client) == (MASKED, Irq.INTX, 0, 1)
    client.irq_unmask(Irq.INTX)
    assert last_change(client) == (UNMASKED, Irq.INTX, 0, 1)
    client.set_irqs(Irq.MSIX, IrqSet.DATA_BOOL | IrqSet.ACTION_MASK, 0, 3, b"\0\0\1")
    assert last_change(client) == (MASKED, Irq.MSIX, 2, 1)


@pytest.mark.parametrize(
    ("index", "flags", "start", "count", "data"),
    [
        (Irq.MSIX, TRIGGER, 0, 1, b""),
        (Irq.MSIX, IrqSet.DATA_NONE, 0, 1, b""),
        (Irq.MSIX, IrqSet.DATA_NONE | IrqSet.DATA_BOOL | TRIGGER, 0, 1, b"\1"),
        (Irq.MSIX, IrqSet.DATA_NONE | TRIGGER | IrqSet.ACTION_MASK, 0, 1, b""),
        (Irq.MSIX, IrqSet.DATA_NONE | TRIGGER | 1 << 30, 0, 1, b""),
        (Irq.MSIX, IrqSet.DATA_NONE | TRIGGER, 0, MSIX_VECTORS + 1, b""),
        (Irq.MSIX, IrqSet.DATA_NONE | TRIGGER, MSIX_VECTORS, 1, b""),
        (Irq.MSIX, IrqSet.DATA_NONE | TRIGGER, 0xFFFFFFFF, 2, b""),
        (Irq.MSIX, IrqSet.DATA_NONE | TRIGGER, 1, 0xFFFFFFFF, b""),
        (Irq.MSIX, IrqSet.DATA_BOOL | TRIGGER, 0, 4, b"\1\1\1"),
        (Irq.MSIX, IrqSet.DATA_BOOL | TRIGGER, 0, 4, b"\1\1\1\1\1"),
        (Irq.REQ, IrqSet.DATA_NONE | TRIGGER, 0, 1, b""),
        (Irq.ERR, IrqSet.DATA_NONE | TRIGGER, 0, 2, b""),
        (5, IrqSet.DATA_NONE | TRIGGER, 0, 0, b""),
        (0xFFFFFFFF, IrqSet.DATA_NONE | TRIGGER, 0, 0, b""),
    ],
)
def test_what_makes_no_sense_is_refused(
    client: Client, index: int, flags: int, start: int, count: int, data: bytes
) -> None:
    with pytest.raises(ProtocolError) as caught:
        client.set_irqs(index, flags, start, count, data)
    assert caught.value.errno == errno.EINVAL
    assert client.read(Bar.REGISTERS, Reg.ID, 4) == ID


def test_descriptors_must_match_the_count(client: Client) -> None:
    fd = os.eventfd(0)
    try:
        for count in (2, 40):
            with pytest.raises(ProtocolError) as caught:
                client.set_irqs(Irq.MSIX, IrqSet.DATA_EVENTFD | TRIGGER, 0, count, fds=[fd])
            assert caught.value.errno == errno.EINVAL
        with pytest.raises(ProtocolError) as caught:
            client.set_irqs(Irq.MSIX, IrqSet.DATA_NONE | TRIGGER, 0, 1, fds=[fd])
        assert caught.value.errno == errno.EINVAL
    finally:
        os.close(fd)
    assert not signal(client, Irq.MSIX, 0)


def test_descriptor_that_is_no_eventfd_is_refused(client: Client) -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(ProtocolError) as caught:
            client.set_irqs(Irq.MSIX, IrqSet.DATA_EVENTFD | TRIGGER, 0, 1, fds=[writer])
        assert caught.value.errno == errno.EBADF
        assert not signal(client, Irq.MSIX, 0)
    finally:
        os.close(reader)
        os.close(writer)


def test_full_eventfd_does_not_stop_the_server(client: Client) -> None:
    full = os.eventfd(0)  # blocking, as a hostile client would send it
    try:
        os.eventfd_write(full, 0xFFFFFFFFFFFFFFFE)
        client.set_irqs(Irq.MSIX, IrqSet.DATA_EVENTFD | TRIGGER, 0, 1, fds=[full])
        assert signal(client, Irq.MSIX, 0)
        assert client.read(Bar.REGISTERS, Reg.ID, 4) == ID
    finally:
        os.close(full)


def test_next_client_inherits_no_interrupt(serve: Callable[..., Server]) -> None:
    server = serve(count=1)
    with server.connect() as client:
        client.irq_enable(Irq.MSIX)
        assert signal(client, Irq.MSIX, 3)
    with server.connect() as client:
        assert not signal(client, Irq.MSIX, 3)


# Messages of ADIs: raised by the test's own thread, as a sweep would.


@pytest.fixture
def entries(host: Host, vdev: Everything) -> Iterator[list[ImsEntry]]:
    """Messages for vectors 0, 1 and again 1."""
    storage = ImsStorage(8, "parent")
    entries = [storage.allocate() for _ in range(3)]
    for entry, vector in zip(entries, (0, 1, 1), strict=True):
        host.run(entry.route, vdev.interrupts, vector)
    yield entries
    for entry in entries:
        host.run(entry.release)


@contextmanager
def bus_master(host: Host) -> Iterator[Client]:
    with host.connect("all") as client:
        client.config.write(COMMAND, 2, BUS_MASTER)
        yield client


def table_mask(client: Client, vector: int, masked: bool) -> None:
    client.write(Region.BAR0, TABLE + 16 * vector + 12, 4, int(masked))


@pytest.mark.conformance("R4.4.2-4")
def test_a_message_comes_without_the_event_loop(host: Host, entries: list[ImsEntry]) -> None:
    gate = threading.Event()
    with bus_master(host) as client:
        events = client.irq_enable(Irq.MSIX)
        host.loop.call_soon_threadsafe(gate.wait)
        try:
            entries[0].raise_()
            entries[1].raise_()
            assert [event.wait(STOP_TIME) for event in events[:2]] == [1, 1]
        finally:
            gate.set()
        assert [event.wait(0) for event in events] == [0] * VECTORS


@pytest.mark.conformance("R4.4.2-4", "R4.4.2-5")
def test_a_message_the_guest_masks_is_in_the_pending_bits_and_comes_once(
    host: Host, vdev: Everything, entries: list[ImsEntry]
) -> None:
    with bus_master(host) as client:
        events = client.irq_enable(Irq.MSIX)
        table_mask(client, 1, True)
        for entry in (*entries, *entries):
            entry.raise_()
        host.run(vdev.interrupts.signal, 1)
        assert client.read(Region.BAR0, PBA, 8) == 0b10
        assert [event.wait(0) for event in events] == [2, 0, 0, 0]
        table_mask(client, 1, False)
        assert client.read(Region.BAR0, PBA, 8) == 0
        assert [event.wait(0) for event in events] == [0, 1, 0, 0], "of all sources, one"
        entries[2].raise_()
        host.run(vdev.interrupts.signal, 1)
        assert events[1].wait(0) == 2


def test_a_message_waits_for_the_client_to_bind_and_to_unmask(
    host: Host, entries: list[ImsEntry]
) -> None:
    with bus_master(host) as client:
        entries[0].raise_()
        (event,) = client.irq_enable(Irq.MSIX, count=1)
        assert event.wait(0) == 1
        client.irq_mask(Irq.MSIX)
        entries[0].raise_()
        assert event.wait(0) == 0
        client.irq_unmask(Irq.MSIX)
        assert event.wait(0) == 1
        client.irq_disable(Irq.MSIX)
        entries[0].raise_()
        assert client.read(Region.BAR0, PBA, 8) == 1
        (again,) = client.irq_enable(Irq.MSIX, count=1)
        assert again.wait(0) == 1


def test_a_message_of_before_the_reset_does_not_come(host: Host, entries: list[ImsEntry]) -> None:
    with bus_master(host) as client:
        events = client.irq_enable(Irq.MSIX)
        table_mask(client, 0, True)
        entries[0].raise_()
        client.reset()
        client.config.write(COMMAND, 2, BUS_MASTER)
        assert client.read(Region.BAR0, PBA, 8) == 0
        entries[1].raise_()
        assert [event.wait(0) for event in events] == [0, 1, 0, 0]


def test_the_next_client_gets_no_message_of_the_last(host: Host, entries: list[ImsEntry]) -> None:
    with bus_master(host) as client:
        client.irq_enable(Irq.MSIX)
        table_mask(client, 1, True)
        entries[1].raise_()
    with bus_master(host) as client:
        entries[0].raise_()
        events = client.irq_enable(Irq.MSIX)
        assert [event.wait(0) for event in events] == [1, 0, 0, 0]


def test_a_message_for_a_full_blocking_eventfd_stops_nobody(
    host: Host, entries: list[ImsEntry]
) -> None:
    with bus_master(host) as client:
        events = client.irq_enable(Irq.MSIX)
        os.set_blocking(events[0].fileno(), True)
        os.eventfd_write(events[0].fileno(), 0xFFFFFFFFFFFFFFFE)
        entries[0].raise_()
        entries[1].raise_()
        assert events[1].wait(0) == 1
