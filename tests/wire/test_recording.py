"""Sessions that are recorded from a server, and replayed: idio16, DSA, NVMe, AVF."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, cast

import avf_machine as avf
import pytest
from avf_client import AvfClient
from dsa_client import FILL, LIMITED, MOVE, PAGE, DsaClient, Messages, Ring
from nvme_client import NvmeClient

from vdcm.client import Client, Irq, Region
from vdcm.errors import ControlError
from vdcm.testing import Server, ServerError
from vdcm.testing.plugin import Replay, Running, Serve
from vdcm_devices.idio16 import Idio16Card
from vdcm_devices.idio16.vdev import Idio16

RUNS = 3


@pytest.fixture
def serve(tmp_path: Path, vdcm_running: Running[Any]) -> Iterator[Serve]:
    """The plug-in's, where this rung has one of its own; without a trace."""
    with ExitStack() as stack:

        def start(*described: Any) -> Server:
            server = Server(tmp_path / "server", *described, trace=False)
            return cast(Server, stack.enter_context(vdcm_running(server)))

        yield start


@pytest.fixture
def one(serve: Serve) -> Any:
    """``one(**keys)``: a server with a VDEV of that name and these keys."""
    return lambda **keys: serve({"one": keys})


@pytest.fixture
def same(replay: Replay) -> Any:
    """What has happened in a session that is replayed some times, the same each time."""

    def check(path: Path) -> dict[str, int]:
        outcomes = [replay(path) for _ in range(RUNS)]
        assert outcomes[1:] == outcomes[:-1]
        return outcomes[0].counts

    return check


def mappable(server: Server, region: int) -> bool:
    with Client(server.socket("one"), wait=5.0) as client:
        return client.map(region) != []


def test_idio16(one: Any, same: Any) -> None:
    server = one(type="pcie-idio-16")
    with server.record("one") as path:
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


@pytest.mark.parametrize("portals", ["intercepted", "direct"])
def test_dsa(one: Any, same: Any, portals: str) -> None:
    server = one(type="dsa-1dwq", portals=portals)
    with server.record("one") as path, DsaClient(server.socket("one")) as dsa:
        assert dsa.areas == []
        dsa.start()
        if portals == "direct":
            dsa.rings[0, LIMITED] = Ring(Messages(dsa.client), LIMITED * PAGE)
        data = os.urandom(9000)
        source, target = dsa.memory.put(data), dsa.memory.take(len(data))
        done = dsa.run(0, MOVE, source=source, destination=target, size=len(data))
        assert done.status == 1 and dsa.memory.read(target, len(data)) == data
        done = dsa.run(0, FILL, source=0x1122, destination=target, size=100)
        assert done.status == 1
    counts = same(path)
    assert counts["dma_writes"] > 2
    server.call("stop", name="one")
    server.call("start", name="one")
    assert mappable(server, Region.BAR2) == (portals == "direct")


@pytest.mark.parametrize("doorbells", ["shadow", "direct"])
def test_nvme(one: Any, same: Any, doorbells: str) -> None:
    server = one(type="nvme", size="64M", doorbells=doorbells)
    with server.record("one") as path, NvmeClient(server.socket("one")) as nvme:
        assert not nvme.direct
        nvme.start(shadow=doorbells == "shadow")
        data = os.urandom(20480)
        nvme.write(nvme.queue, 8, data)
        assert nvme.read(nvme.queue, 8, len(data) // 512) == data
    counts = same(path)
    assert counts["dma_writes"] > 2
    server.call("stop", name="one")
    server.call("start", name="one")
    assert mappable(server, Region.BAR0) == (doorbells == "direct")


def test_avf(one: Any, same: Any) -> None:
    server = one(type="avf")
    assert mappable(server, Region.BAR0)
    with server.record("one") as path, AvfClient(server.socket("one")) as nic:
        assert nic.client.map(Region.BAR0) == []
        nic.driver.start()
        nic.driver.configure(2)
        nic.driver.select(avf.ENABLE_QUEUES, tx=3, rx=3)
    counts = same(path)
    assert counts["dma_writes"] > 2


# A model that has changed


class Changed(Idio16):
    """It inverts its inputs, and never interrupts."""

    def on_read_IN_LOW(self) -> int:
        return ~self.inputs & 0xFF

    def on_set_inputs(self, levels: int) -> None:
        del levels


class ChangedCard(Idio16Card):
    types: ClassVar = {"pcie-idio-16": Changed}


@pytest.mark.parametrize("what", ["the answer", "an interrupt"])
def test_a_replay_fails_for_a_model_that_has_changed(one: Any, replay: Replay, what: str) -> None:
    server = one(type="pcie-idio-16", inputs=0x0F)
    with server.record("one") as path, Client(server.socket("one")) as card:
        if what == "the answer":
            assert card.read(Region.BAR2, 1, 1) == 0x0F
            said = "happens   the guest reads BAR2.0x01 IN_LOW\n *recorded  0xf\n *now       0xf0"
        else:
            card.read(Region.BAR2, 2, 1)
            server.set("one", inputs=0xF0)
            said = 'happens   the host: set {"inputs": 240}\n *recorded  INTx asserted'
    assert replay(path).difference is None
    with pytest.raises(pytest.fail.Exception, match=f"one .pcie-idio-16.: {what} differs") as found:
        replay(path, models={"idio16": ChangedCard})
    assert found.match(said)


# What is refused, and what ends too early


def test_what_cannot_be_recorded_is_refused_with_place_and_fix(
    serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "there").write_bytes(b"mine")
    parents = {
        "two": {"model": "dsa"},
        "file": {"model": "nvme", "store": f"file:{tmp_path / 'disks.img'}", "size": "64M"},
    }
    vdevs = {
        "card": {"type": "pcie-idio-16"},
        "work0": {"type": "dsa-1dwq", "parent": "two"},
        "work1": {"type": "dsa-1dwq", "parent": "two"},
        "disk0": {"type": "nvme", "parent": "file", "size": "16M"},
    }
    server = serve(vdevs, parents)

    def refused(name: str, said: str, file: str = "new") -> None:
        with pytest.raises(ControlError, match=said), server.record(name, tmp_path / file):
            pass
        assert (tmp_path / "there").read_bytes() == b"mine" and not (tmp_path / "new").exists()

    refused("card", "there exists: name another file, or remove it", "there")
    refused("card", "No such file or directory", "nowhere/new")
    refused("work0", "two works for work1, too; .* stop work1, or define a parent of its own")
    refused("disk0", "file has store=file:.* use one whose data is in memory")
    with server.connect("card"):
        refused("card", "card has a client; .* stop the guest first")
    server.call("record", name="card", file=str(tmp_path / "card.rec"))
    refused("card", "card is being recorded into .*card.rec: Ctrl-C ends that")


def test_a_session_whose_record_ends_before_it_is_an_error(one: Any) -> None:
    server = one(type="pcie-idio-16")
    with pytest.raises(ControlError, match="one is not being recorded"), server.record("one"):
        server.call("stop", name="one")
    server.call("start", name="one")
    with (
        pytest.raises(ServerError, match=r"has ended: failed: .*File too large"),
        server.record("one", server.folder / "full.rec") as path,
    ):
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (path.stat().st_size, -1))
