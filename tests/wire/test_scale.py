"""Many VDEVs at once: each works, each gets its interrupt, and nothing is left of any of them.

``VDCM_SCALE`` is their number; ``ci/bench scale`` measures the same.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dsa_client import INTERRUPT, MOVE, DsaClient

from vdcm.definition import load
from vdcm.manager import Manager
from vdcm.pasid import PASIDS
from vdcm.serving import raise_descriptor_limit
from vdcm.testing import Host

COUNT = int(os.environ.get("VDCM_SCALE", "32"))
PORTALS = ("direct", "intercepted")
HANDLE = 1
SIZE = 512


def of_the_process() -> dict[str, int]:
    """What VDEVs take, and have to give back."""
    return {
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "PASIDs": len(PASIDS),
    }


def definition(host: Host, index: int) -> dict[str, Any]:
    name = f"v{index}"
    return {
        "name": name,
        "parent": "dsa0",
        "type": "dsa-1dwq",
        "properties": {"portals": PORTALS[index % 2]},
        "socket": str(host.path(name)),
    }


def submit(dsa: DsaClient, index: int, turn: int) -> tuple[int, int, bytes]:
    """A move that no other client's is like; its completion record, its target and its data."""
    data = f"turn {turn} of VDEV {index} ".encode().ljust(SIZE, b".")
    source, target = dsa.memory.put(data), dsa.memory.take(SIZE)
    work, record = dsa.prepare(
        MOVE, INTERRUPT, handle=HANDLE, source=source, destination=target, size=SIZE
    )
    assert dsa.submit(0, work)
    return record, target, data


def test_many_vdevs_at_once(tmp_path: Path) -> None:
    raise_descriptor_limit()
    file = tmp_path / "scale.yaml"
    parent = f"{{model: dsa, dwqs: {COUNT}, ims: {COUNT}}}"
    file.write_text(f"parents:\n  dsa0: {parent}\n")
    host = Host(tmp_path)
    manager = host.run(Manager)
    clients: list[DsaClient] = []
    try:
        host.run(manager.adopt, load(file))
        driver = manager.parents["dsa0"].driver
        assert driver is not None

        def start(index: int) -> DsaClient:
            host.run(manager.start_transient, definition(host, index))
            dsa = DsaClient(host.path(f"v{index}"), arena=32 << 10)
            dsa.start()
            dsa.enable_interrupts()
            return dsa

        start(0).client.close()  # makes what is made once
        host.run(manager.stop, "v0")
        before = of_the_process()

        clients += [start(index) for index in range(COUNT)]
        assert of_the_process()["PASIDs"] == before["PASIDs"] + COUNT
        for turn in range(3):
            waiting = [submit(dsa, index, turn) for index, dsa in enumerate(clients)]
            for dsa, (record, target, data) in zip(clients, waiting, strict=True):
                assert dsa.wait(record).status == 1
                assert dsa.events[HANDLE].wait(20.0) == 1
                assert dsa.memory.read(target, SIZE) == data
        assert not any(event.wait(0) for dsa in clients for event in dsa.events)

        for index, dsa in enumerate(clients):
            if index % 2:
                dsa.client.close()
            host.run(manager.stop, f"v{index}")
            dsa.client.close()
        clients.clear()
        assert of_the_process() == before
        assert driver.adis == {}
        assert driver.available("dwq") == COUNT
        assert list(tmp_path.glob("*.sock")) == []
    finally:
        for dsa in clients:
            dsa.client.close()
        host.run(manager.close)
        host.close()
    assert host.complaints == []
