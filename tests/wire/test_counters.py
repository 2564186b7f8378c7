"""Everything that a client does is counted, once."""

from __future__ import annotations

from typing import Any

import pytest
from everything import (
    ACTION,
    DMA_ADDRESS,
    DMA_COMMAND,
    REFUSED,
    SCRATCH,
    SIGNAL,
    SIZE,
    Everything,
    bar0,
    put,
    refused,
)

from vdcm.bars import PAGE
from vdcm.client import Client, Irq, Region
from vdcm.counters import CLIENT, Latencies, nothing
from vdcm.errors import ProtocolError
from vdcm.testing import Host, wait_until_ready

COMMAND, BUS_MASTER = 0x04, 0x4
RAM = 0x10000


class Since:
    """What has been counted since it was made, or was asked last."""

    def __init__(self, host: Host, vdev: Everything) -> None:
        self._count = lambda: host.run(vdev.counters)
        self._before = self._count()

    def __call__(self) -> dict[str, Any]:
        """Without what has not changed; of distributions how many."""
        now = self._count()
        before, self._before = self._before, now
        changes = {}
        for name, value in now.items():
            change = value - before[name]
            number = change.count if isinstance(change, Latencies) else change
            if number:
                changes[name] = number
        return changes


def test_accesses(host: Host, vdev: Everything, client: Client) -> None:
    since = Since(host, vdev)
    bar0(client, SCRATCH)
    assert since() == {"messages": 1, "reads": 1, "read_ns": 1}
    put(client, SCRATCH, 1)
    client.post_write(Region.BAR0, SCRATCH, 8, 2)
    bar0(client, SCRATCH)
    assert since() == {"messages": 3, "reads": 1, "read_ns": 1, "writes": 2, "write_ns": 2}
    client.write_multi([(0, SCRATCH, 4, n) for n in range(5)])
    assert since() == {"messages": 1, "writes": 5, "write_ns": 1}
    client.config.read(0, 4)
    assert since() == {"messages": 1, "reads": 1, "read_ns": 1}


def test_what_fails(host: Host, vdev: Everything, client: Client) -> None:
    since = Since(host, vdev)
    with pytest.raises(ProtocolError):
        bar0(client, REFUSED)  # by the model
    with pytest.raises(ProtocolError):
        bar0(client, SIZE)  # it leaves the region
    assert since() == {"messages": 2, "reads": 1, "read_ns": 2, "errors": 2}
    right, wrong = (0, SCRATCH, 4, 1), (0, SIZE, 4, 0)
    assert client.write_multi([right, wrong, right]) == 1
    with pytest.raises(ProtocolError):
        client.write_multi([wrong, right])
    assert since() == {"messages": 2, "writes": 1, "write_ns": 2, "errors": 2}
    client.write_multi([wrong, right, wrong], post=True)
    bar0(client, SCRATCH)
    counted = since()
    assert (counted["writes"], counted["errors"]) == (1, 2)
    with pytest.raises(ProtocolError):
        client.set_irqs(Irq.MSIX, 0x1F << 3, 0, 0)  # no such action
    with pytest.raises(ProtocolError):
        client.dma_unmap(RAM, PAGE)  # it is not mapped
    assert since() == {"messages": 2, "errors": 2}


def test_memory_interrupts_and_resets(host: Host, vdev: Everything, client: Client) -> None:
    since = Since(host, vdev)
    client.dma_memory(RAM, PAGE)
    put(client, DMA_ADDRESS, RAM, 8)
    refused(client, DMA_COMMAND)  # Bus Master Enable is 0
    client.config.write(COMMAND, 2, BUS_MASTER)
    put(client, DMA_COMMAND, 1)
    put(client, DMA_COMMAND, 2)
    put(client, DMA_ADDRESS, RAM + PAGE, 8)
    refused(client, DMA_COMMAND)
    counted = since()
    assert counted["dma_read_bytes"] == counted["dma_written_bytes"] == 4
    assert counted["dma_refused"] == counted["errors"] == 2
    (line,) = client.irq_enable(Irq.MSIX, count=1)
    put(client, SIGNAL, 0)
    assert line.wait(5.0) == 1
    client.reset()
    counted = since()
    assert (counted["interrupts"], counted["resets"]) == (1, 1)
    assert "errors" not in counted


def test_a_vdev_keeps_what_clients_before_have_counted(host: Host, vdev: Everything) -> None:
    since = Since(host, vdev)
    for _ in range(2):
        with host.connect() as client:
            bar0(client, SCRATCH)
        wait_until_ready(vdev)
    assert since() == {"messages": 2, "reads": 2, "read_ns": 2, "clients": 2, "resets": 2}


def test_a_session_that_is_over_counts_nothing(host: Host, vdev: Everything) -> None:
    with host.connect():
        session = vdev.session
    wait_until_ready(vdev)
    assert session is not None
    assert host.run(session.counters) == nothing(CLIENT)


def test_a_client_that_goes_in_the_middle_is_counted(host: Host, vdev: Everything) -> None:
    """The device lets go of it while it carries out its access."""
    since = Since(host, vdev)
    client = host.connect()
    assert vdev.session is not None
    vdev.action = lambda: vdev.session.close("as the test wants it")  # type: ignore[union-attr]
    put(client, ACTION, 1)
    client.close()
    wait_until_ready(vdev)
    counted = since()
    assert (counted["messages"], counted["writes"], counted["clients"]) == (1, 1, 1)
