"""The mailbox through the native client: mapped or by message, polled or with an interrupt."""

from __future__ import annotations

from functools import partial

import pytest
from mailbox_model import AREA, DATA, VECTOR, Driver, Letterbox

from vdcm import MailboxCode
from vdcm.client import Client, Irq, MappedArea, Region
from vdcm.errors import ProtocolError
from vdcm.testing import Host

SHARED = pytest.mark.parametrize("shared", [True, False], ids=["memory", "intercepted"])


def serve(host: Host, *, shared: bool) -> Letterbox:
    box: Letterbox = host.serve(partial(Letterbox, shared=shared), "box").vdev
    return box


def driver_of(client: Client) -> Driver:
    """Accesses go to mapped memory where there is some, else by message."""
    areas: list[MappedArea] = client.map(Region.BAR0)

    def area(offset: int) -> MappedArea | None:
        return next((a for a in areas if a.offset <= offset < a.offset + len(a)), None)

    def read(offset: int, width: int) -> int:
        mapped = area(offset)
        if mapped is None:
            return client.read(Region.BAR0, offset, width)
        return mapped.read(offset - mapped.offset, width)

    def write(offset: int, width: int, value: int) -> None:
        mapped = area(offset)
        if mapped is None:
            client.write(Region.BAR0, offset, width, value)
        else:
            mapped.write(offset - mapped.offset, width, value)

    return Driver(read, write)


@pytest.mark.conformance("R4.4.1-8", "R4.4.1-9", "R4.4.3-1", "R4.4.3-2")
@SHARED
def test_a_driver_that_polls(host: Host, shared: bool) -> None:
    serve(host, shared=shared)
    with host.connect("box") as client:
        assert bool(client.map(Region.BAR0)) is shared
        driver = driver_of(client)
        request = bytes(i & 0xFF for i in range(AREA))
        assert driver.ask("ECHO", request) == (MailboxCode.SUCCESS, request)
        assert driver.ask("REFUSE") == (MailboxCode.NO_RESOURCES, b"")
        driver.ring(0xBAD, 1)
        assert driver.answer() == (MailboxCode.UNKNOWN_REQUEST, b"")


@pytest.mark.conformance("R4.4.3-4")
@SHARED
def test_a_driver_that_is_interrupted_by_a_late_answer(host: Host, shared: bool) -> None:
    box = serve(host, shared=shared)
    with host.connect("box") as client:
        driver = driver_of(client)
        client.config.write(0x04, 2, 0x6)  # memory space, bus master
        (eventfd,) = client.irq_enable(Irq.MSIX, count=1, start=VECTOR)
        driver.put("CONTROL", 1)
        driver.send("LATER", b"wait")
        assert eventfd.wait(0) == 0
        assert driver.field("BUSY") == 1
        host.run(box.waiting[0].complete, b"at last")
        assert eventfd.wait(20) == 1
        assert driver.answer() == (MailboxCode.SUCCESS, b"at last")


@pytest.mark.conformance("R4.4.1-8", "R4.4.3-2")
def test_mapped_page_is_copied_when_the_doorbell_rings(host: Host) -> None:
    box = serve(host, shared=True)
    with host.connect("box") as client:
        driver = driver_of(client)
        driver.send("LATER", b"good")
        client.map(Region.BAR0)[0].write(0, 4, 0xFFFF_FFFF)
        assert box.waiting[0].data == b"good"
        assert bytes(box.bars[0].view(DATA, 4)) == b"\xff" * 4


def test_client_that_leaves_takes_its_request_along(host: Host) -> None:
    box = serve(host, shared=True)
    with host.connect("box") as client:
        driver_of(client).send("LATER", b"wait")
    with host.connect("box") as client:
        driver = driver_of(client)
        assert driver.field("BUSY") == 0
        assert host.run(box.waiting[0].complete, b"late") is False
        assert driver.ask("ECHO", b"next") == (MailboxCode.SUCCESS, b"next")


def test_a_bug_in_a_handler_costs_that_request(host: Host) -> None:
    serve(host, shared=True)
    with host.connect("box") as client:
        driver = driver_of(client)
        with pytest.raises(ProtocolError):
            driver.send("BREAK")
        assert driver.answer() == (MailboxCode.FAILED, b"")
        assert driver.ask("ECHO", b"fine") == (MailboxCode.SUCCESS, b"fine")
