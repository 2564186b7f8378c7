"""Sessions that are recorded from a server, and replayed: idio16, DSA, NVMe, AVF."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import avf_machine as avf
import pytest
from avf_client import AvfClient
from dsa_client import FILL, MOVE, DsaClient
from nvme_client import NvmeClient

from vdcm.client import Client, Irq, Region
from vdcm.recording import replay
from vdcm.testing import Server

RUNS = 3


@contextmanager
def recorded(folder: Path, **keys: object) -> Iterator[tuple[Server, Path]]:
    """A server with VDEV one of type ``keys``, whose record is in the file."""
    path = folder / "one.rec"
    with Server(folder / "server", {"one": keys}, trace=False) as server:
        server.call("record", name="one", file=str(path))
        yield server, path
        ended = server.call("record_end", name="one")
        assert ended["ended"] == "ended", server.log_tail()


def same(path: Path) -> dict[str, int]:
    """Replayed some times, it is the same each time; what has happened."""
    outcomes = [replay(path) for _ in range(RUNS)]
    assert [str(outcome.difference) for outcome in outcomes] == ["None"] * RUNS
    assert len({str(outcome.counts) for outcome in outcomes}) == 1
    return outcomes[0].counts


def test_idio16(tmp_path: Path) -> None:
    with recorded(tmp_path, type="pcie-idio-16") as (server, path):
        with Client(server.socket("one")) as card:
            card.config.write(4, 2, 3)
            (line,) = card.irq_enable(Irq.INTX, count=1)
            card.write(Region.BAR2, 0, 1, 0x20)
            assert card.read(Region.BAR2, 0, 1) == 0x20
            card.read(Region.BAR2, 2, 1)
            server.set("one", inputs=0x5A5A)
            line.wait(5.0)
            server.call("reset", name="one")
            card.read(Region.BAR2, 1, 1)
        with Client(server.socket("one"), wait=5.0) as card:
            card.config.read(0, 4)
    counts = same(path)
    assert counts["host"] == 2 and counts["attach"] == 2 and counts["interrupts"] > 0


def test_dsa(tmp_path: Path) -> None:
    with recorded(tmp_path, type="dsa-1dwq") as (server, path):
        dsa = DsaClient(server.socket("one"))
        dsa.start()
        data = os.urandom(9000)
        source, target = dsa.memory.put(data), dsa.memory.take(len(data))
        done = dsa.run(0, MOVE, source=source, destination=target, size=len(data))
        assert done.status == 1 and dsa.memory.read(target, len(data)) == data
        done = dsa.run(0, FILL, source=0x1122, destination=target, size=100)
        assert done.status == 1
        dsa.client.close()
    counts = same(path)
    assert counts["dma_writes"] > 2


@pytest.mark.parametrize("doorbells", ["shadow", "direct"])
def test_nvme(tmp_path: Path, doorbells: str) -> None:
    with recorded(tmp_path, type="nvme", size="64M", doorbells=doorbells) as made:
        server, path = made
        nvme = NvmeClient(server.socket("one"))
        nvme.start(shadow=doorbells == "shadow")
        data = os.urandom(20480)
        nvme.write(nvme.queue, 8, data)
        assert nvme.read(nvme.queue, 8, len(data) // 512) == data
        nvme.client.close()
    counts = same(path)
    assert counts["dma_writes"] > 2


def test_avf(tmp_path: Path) -> None:
    with recorded(tmp_path, type="avf") as (server, path):
        nic = AvfClient(server.socket("one"))
        nic.driver.start()
        nic.driver.configure(2)
        nic.driver.select(avf.ENABLE_QUEUES, tx=3, rx=3)
        nic.close()
    counts = same(path)
    assert counts["dma_writes"] > 2
