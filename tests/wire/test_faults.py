"""Faults by script: each hits what it means, when it should, and nothing once it is cleared."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dsa_client import INTERRUPT, MOVE, NOOP
from dsa_lab import Lab
from everything import (
    COUNTED,
    DIRECT,
    DMA_ADDRESS,
    DMA_COMMAND,
    DMA_DATA,
    LINE,
    SCRATCH,
    SIGNAL,
    Everything,
    bar0,
    put,
)

from vdcm.client import Client, Eventfd, Irq, Region
from vdcm.errors import ControlError, DmaError, ProtocolError, TransportError, VdcmError
from vdcm.testing import Host, Place, Served, Server

RAM = 0x1000_0000
PAGE = 0x1000
COMMAND = 0x04
MASTER = 0x6
SOON = 20.0  # seconds for what is to come
NEVER = 0.05  # and for what is not


@pytest.fixture
def device(host: Host) -> Iterator[Served[Everything]]:
    served = host.serve(Everything, "all")
    served.client.config.write(COMMAND, 2, MASTER)
    served.client.dma_memory(RAM, 2 * PAGE)
    yield served
    served.faults.clear()


@pytest.fixture
def client(device: Served[Everything]) -> Client:
    return device.client


@pytest.fixture
def line(client: Client) -> Eventfd:
    (line,) = client.irq_enable(Irq.MSIX, count=1)
    return line


def fetch(client: Client, address: int) -> bool:
    """Have the device read a word there; whether it could."""
    client.write(Region.BAR0, DMA_ADDRESS, 8, address)
    try:
        put(client, DMA_COMMAND, 1)
    except ProtocolError:
        return False
    return True


# Memory


def test_dma_fails_after_so_many_accesses(device: Served[Everything], client: Client) -> None:
    fault = device.faults.dma(after=2, times=3)
    assert [fetch(client, RAM) for _ in range(7)] == [True] * 2 + [False] * 3 + [True] * 2
    assert fault.hits == 3
    fault.clear()
    with pytest.raises(VdcmError, match="has been cleared"):
        _ = fault.hits


def test_dma_fails_at_an_address(device: Served[Everything], client: Client) -> None:
    with device.faults.dma(RAM + 8, 8, times=None) as fault:
        asked = [RAM, RAM + 4, RAM + 5, RAM + 8, RAM + 12, RAM + 15, RAM + 16, RAM + PAGE]
        assert [fetch(client, at) for at in asked] == [True, True, *[False] * 4, True, True]
        assert fault.hits == 4
    assert fetch(client, RAM + 8)


def test_dma_fails_one_way(
    device: Served[Everything], client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with device.faults.dma(access="write", times=None):
        assert fetch(client, RAM)
        with pytest.raises(ProtocolError):
            put(client, DMA_COMMAND, 2)
    assert "a test has injected this fault" in caplog.text
    with device.faults.dma(access="read", times=None):
        assert not fetch(client, RAM)
        put(client, DMA_COMMAND, 2)


def test_a_bit_of_memory_flips(device: Served[Everything], client: Client) -> None:
    device.faults.flip_memory(RAM + 4, 0x8000_0001)
    assert fetch(client, RAM + 4)
    assert bar0(client, DMA_DATA) == 0x8000_0001
    with pytest.raises(DmaError):
        device.faults.flip_memory(RAM + 2 * PAGE, 1)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def test_dma_of_a_queue_in_c_fails(lab: Lab) -> None:
    """A copy with the fault in its middle: what was done before stays done."""
    dsa = lab.started()
    (served,) = lab.host.served.values()
    source, target = (dsa.memory.take(4 * PAGE, PAGE) for _ in range(2))
    dsa.memory.write(source, b"x" * 4 * PAGE)
    fault = served.faults.dma(source + 2 * PAGE, PAGE, access="read")
    for status, written in ((3, 2 * PAGE), (1, 4 * PAGE)):  # a page fault, with the bytes before it
        done = dsa.run(0, MOVE, source=source, destination=target, size=4 * PAGE)
        assert done.status & 0x3F == status
        copied = dsa.memory.read(target, 4 * PAGE)
        assert copied == b"x" * written + bytes(4 * PAGE - written)
    assert fault.hits == 1


# Interrupts


def test_an_interrupt_is_lost(device: Served[Everything], client: Client, line: Eventfd) -> None:
    fault = device.faults.lose_interrupts(0, after=1)
    put(client, SIGNAL, 0)
    assert line.wait(SOON) == 1
    put(client, SIGNAL, 0)
    assert line.wait(NEVER) == 0
    assert fault.hits == 1
    put(client, SIGNAL, 0)
    assert line.wait(SOON) == 1


def test_an_interrupt_is_late(device: Served[Everything], client: Client, line: Eventfd) -> None:
    device.faults.delay_interrupts(0.2)
    begin = time.monotonic()
    put(client, SIGNAL, 0)
    assert line.wait(SOON) == 1
    assert time.monotonic() - begin >= 0.2


def test_an_interrupt_that_nothing_is_behind(device: Served[Everything], line: Eventfd) -> None:
    device.faults.raise_interrupt()
    assert line.wait(SOON) == 1
    with pytest.raises(VdcmError, match="has enabled no interrupt 3"):
        device.faults.raise_interrupt(3)


def test_other_vectors_are_not_meant(device: Served[Everything], client: Client) -> None:
    first, second = client.irq_enable(Irq.MSIX, count=2)
    with device.faults.lose_interrupts(1, times=None):
        for vector in (0, 1):
            put(client, SIGNAL, vector)
        assert first.wait(SOON) == 1
        assert second.wait(NEVER) == 0


def test_a_lost_level_is_still_there(device: Served[Everything], client: Client) -> None:
    (line,) = client.irq_enable(Irq.INTX)
    with device.faults.lose_interrupts():
        put(client, LINE, 1)
        assert line.wait(NEVER) == 0
        client.irq_mask(Irq.INTX)
        client.irq_unmask(Irq.INTX)
        assert line.wait(SOON) == 1


def test_interrupts_of_a_queue_in_c(lab: Lab) -> None:
    dsa = lab.started()
    (served,) = lab.host.served.values()
    dsa.enable_interrupts()

    def come() -> int:
        assert dsa.run(0, NOOP, INTERRUPT, handle=1).status == 1
        return dsa.events[1].wait(SOON)

    assert come() == 1
    with served.faults.lose_interrupts(1) as fault:
        assert dsa.run(0, NOOP, INTERRUPT, handle=1).status == 1
        assert dsa.events[1].wait(NEVER) == 0
        assert fault.hits == 1
        assert come() == 1
    assert come() == 1


# Registers


def test_bits_flip(device: Served[Everything], client: Client) -> None:
    put(client, SCRATCH, 0x1122_3344, 8)
    device.faults.flip(Place(0, SCRATCH + 1, 1, 0x81), after=1)
    assert [bar0(client, SCRATCH) for _ in range(3)] == [0x1122_3344, 0x1122_B244, 0x1122_3344]
    device.faults.flip("SCRATCH", access="write")
    put(client, SCRATCH, 0, 8)
    assert bar0(client, SCRATCH, 8) == (1 << 64) - 1


def test_bits_are_stuck(device: Served[Everything], client: Client) -> None:
    high = device.faults.stuck("BAR0:SCRATCH", 1)
    assert bar0(client, SCRATCH, 8) == (1 << 64) - 1
    assert bar0(client, SCRATCH + 4, 4) == 0xFFFF_FFFF
    assert bar0(client, COUNTED) == 0
    assert high.hits == 2
    high.clear()
    low = device.faults.stuck("config:COMMAND.BUS_MASTER", 0, access="write")
    client.config.write(COMMAND, 2, 0)
    client.config.write(COMMAND, 2, MASTER)
    assert client.config.read(COMMAND, 2) == 2
    low.clear()
    assert not fetch(client, RAM)


def test_an_answer_is_slow(device: Served[Everything], client: Client) -> None:
    device.faults.slow(0.2, "COUNTED")
    begin = time.monotonic()
    bar0(client, SCRATCH)
    bar0(client, COUNTED)
    assert time.monotonic() - begin >= 0.2


def test_places_that_cannot_be(device: Served[Everything]) -> None:
    faults = device.faults
    for where, said in (
        ("NOTHING", "no register NOTHING"),
        ("COUNTED.NOTHING", "no field NOTHING"),
        ("BAR1:SCRATCH", "no register"),
        ("WORD", "say BAR0:WORD"),
        (Place(3, 0, 4, 1), "no region 3"),
        (Place(0, DIRECT, 4, 1), "is direct memory"),
    ):
        with pytest.raises(VdcmError, match=said):
            faults.flip(where)
    for wrong in (
        lambda: faults.dma(times=0),
        lambda: faults.dma(after=-1),
        lambda: faults.dma(1 << 64, 1),
        lambda: faults.delay_interrupts(0),
    ):
        with pytest.raises(VdcmError):
            wrong()


# The whole device


def test_surprise_removal(device: Served[Everything], client: Client, line: Eventfd) -> None:
    put(client, SCRATCH, 7, 8)
    fault = device.faults.remove(after=1)
    assert bar0(client, SCRATCH) == 7
    assert bar0(client, SCRATCH) == 0xFFFF_FFFF
    assert client.config.read(0, 4) == 0xFFFF_FFFF
    put(client, SCRATCH, 1, 8)
    client.reset()
    with pytest.raises(DmaError):
        device.run(device.vdev.dma_read, RAM, 4)
    device.run(device.vdev.interrupts.signal, 0)
    assert line.wait(NEVER) == 0
    assert device.run(lambda: device.vdev.registers.SCRATCH.value) == 7
    fault.clear()
    assert client.config.read(0, 4) == 0xE7E7_1234
    assert bar0(client, SCRATCH) == 0, "it is as after power-on"
    client.config.write(COMMAND, 2, MASTER)
    assert fetch(client, RAM)


def test_faults_outlive_the_client(device: Served[Everything]) -> None:
    device.faults.stuck("COUNTED", 1)
    device.client.close()
    device.wait_until_ready()
    (line,) = device.client.irq_enable(Irq.MSIX, count=1)
    assert bar0(device.client, COUNTED) == 0xFFFF_FFFF
    device.client.config.write(COMMAND, 2, MASTER)
    put(device.client, SIGNAL, 0)
    assert line.wait(SOON) == 1


def test_nothing_is_in_the_way_without_faults(device: Served[Everything]) -> None:
    """Neither before the first nor after the last."""
    endpoint = device.host.transport.endpoints[device.name]

    def way() -> tuple[object, object, object]:
        session = endpoint.session
        assert session is not None
        return endpoint.device, session.device, device.vdev.interrupts._eventfds

    device.client.info()
    before = way()
    assert before[:2] == (device.vdev, device.vdev)
    faults = [device.faults.stuck("COUNTED", 1), device.faults.lose_interrupts()]
    assert not set(before).intersection(way())
    for fault in faults:
        fault.clear()
    assert way() == before


def test_death_needs_a_process(device: Served[Everything]) -> None:
    with pytest.raises(VdcmError, match="the fixture serve"):
        device.faults.die()


# In another process


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, {"gpio0": {"type": "pcie-idio-16"}}) as server:
        yield server


def test_the_server_kills_itself(server: Server) -> None:
    server.faults("gpio0").die("OUT_LOW", after=1)
    with server.connect("gpio0") as client:
        client.write(Region.BAR2, 0, 1, 5)
        assert client.read(Region.BAR2, 4, 1) == 0
        with pytest.raises(TransportError):
            client.read(Region.BAR2, 0, 1)
    assert server.wait() == -signal.SIGKILL
    server.start()
    with server.connect("gpio0") as client:
        assert client.read(Region.BAR2, 0, 1) == 0


def test_a_process_is_told_over_its_control_socket(server: Server) -> None:
    faults = server.faults("gpio0")
    with server.connect("gpio0") as client, faults.stuck("IN_LOW", 1) as fault:
        assert client.read(Region.BAR2, 1, 1) == 0xFF
        assert fault.hits == 1
        fault.clear()
        assert client.read(Region.BAR2, 1, 1) == 0
        faults.flip(Place(Region.CONFIG, 0, 2, 1), times=None)
        assert client.config.read(0, 2) == 0x494E
        faults.clear()
        fault = faults.flip("OUT_LOW")
    with pytest.raises(ControlError, match="no register"):
        faults.flip("NOTHING")
    server.call("stop", name="gpio0")
    with pytest.raises(ControlError, match="defined"):
        _ = fault.hits
    server.call("start", name="gpio0")
    with pytest.raises(ControlError, match="has been cleared"):
        _ = fault.hits
