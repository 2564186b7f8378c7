"""A software DSA and its VDEVs, served from a thread of the test's own process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dsa_client import DsaClient

from vdcm.client import Client
from vdcm.testing import Host, retry_while_busy
from vdcm_devices.dsa import Dsa
from vdcm_devices.dsa.vdev import DsaVdev

Result = TypeVar("Result")

TYPES = ("dsa-1dwq", "dsa-1swq", "dsa-2dwq-1swq", "dsa-dynamic")
PORTALS = ("intercepted", "direct")


class Lab:
    """``properties`` are the parent's."""

    def __init__(self, folder: Path, **properties: Any) -> None:
        self.host = Host(folder)
        self.parent: Dsa = self.host.parent(Dsa, "dsa0", **properties)
        self.clients: list[DsaClient] = []
        self._made = 0

    def run(self, function: Callable[[], Result]) -> Result:
        return self.host.run(function)

    def vdev(self, kind: str = "dsa-1dwq", **properties: Any) -> DsaVdev:
        self._made += 1
        name = f"vdev{self._made}"
        vdev = self.run(lambda: self.parent.create(kind, name, properties))
        assert isinstance(vdev, DsaVdev)
        self.host.add(vdev)
        return vdev

    def client(self, vdev: DsaVdev, arena: int = 16 << 20) -> DsaClient:
        path = self.host.path(vdev.name)
        client = retry_while_busy(lambda: Client(path, timeout=20.0))
        dsa = DsaClient(path, arena, client)
        self.clients.append(dsa)
        return dsa

    def started(self, kind: str = "dsa-1dwq", pasid: int = 1, **properties: Any) -> DsaClient:
        """A client of a new VDEV, its work queues enabled."""
        dsa = self.client(self.vdev(kind, **properties))
        dsa.start(pasid=pasid)
        return dsa

    def close(self) -> None:
        for dsa in self.clients:
            dsa.client.close()
        self.host.close()
        self.parent.close()
        assert self.host.complaints == []
        assert self.parent.driver.adis == {}
