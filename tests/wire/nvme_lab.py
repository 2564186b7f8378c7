"""An NVMe parent and its VDEVs, served from a thread of the test's own process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from nvme_client import NvmeClient

from vdcm.client import Client
from vdcm.testing import Host, retry_while_busy
from vdcm_devices.nvme import Nvme
from vdcm_devices.nvme.vdev import NvmeVdev

Result = TypeVar("Result")

MODES = ("shadow", "direct")
STORES = ("ram", "file")


class Lab:
    """``store`` is a file of the test's folder or memory; other ``properties`` are the parent's."""

    def __init__(self, folder: Path, store: str = "ram", **properties: Any) -> None:
        self.host = Host(folder)
        self.file = folder / "store.img"
        where = {"store": "ram:256M"}
        if store == "file":
            where = {"store": f"file:{self.file}", "size": "256M"}
        wanted = {**where, **properties}
        self.parent: Nvme = self.host.parent(Nvme, "nvme0", **wanted)
        self.clients: list[NvmeClient] = []
        self._made = 0

    def run(self, function: Callable[[], Result]) -> Result:
        return self.host.run(function)

    def vdev(self, **properties: Any) -> NvmeVdev:
        self._made += 1
        name = f"vdev{self._made}"
        wanted = {"size": "4M", **properties}
        vdev = self.run(lambda: self.parent.create("nvme", name, wanted))
        assert isinstance(vdev, NvmeVdev)
        self.host.add(vdev)
        return vdev

    def client(self, vdev: NvmeVdev, memory: int = 16 << 20) -> NvmeClient:
        path = self.host.path(vdev.name)
        client = retry_while_busy(lambda: Client(path, timeout=20.0))
        nvme = NvmeClient(path, memory, client)
        self.clients.append(nvme)
        return nvme

    def started(self, **properties: Any) -> NvmeClient:
        """A client of a new VDEV, with I/O queue 1."""
        nvme = self.client(self.vdev(**properties))
        nvme.start()
        return nvme

    def close(self) -> None:
        for nvme in self.clients:
            nvme.client.close()
        self.host.close()
        self.parent.close()
        assert self.host.complaints == []
        assert self.parent.driver.adis == {}
