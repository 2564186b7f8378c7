"""A virtual NVMe controller and a driver for it, without a socket: the driver's accesses go to the
VDEV's BAR, its memory is a memfd that is mapped for the VDEV."""

from __future__ import annotations

import mmap
import os
import time
from typing import Any, cast

from nvme_host import NvmeHost

from vdcm.counters import CLIENT, Count, nothing
from vdcm.parent import build
from vdcm.protocol import Irq
from vdcm.transport import GuestMemory, IrqAction, Session
from vdcm_devices.nvme import Nvme
from vdcm_devices.nvme.vdev import NvmeVdev

RAM = 0x10_0000
SIZE = 8 << 20


class Machine(NvmeHost):
    """A VDEV of ``parent``, or of one that is made for it; keywords are the VDEV's properties."""

    def __init__(self, parent: Nvme | None = None, name: str = "v", **properties: Any) -> None:
        self.own = parent is None
        self.parent = parent or build(Nvme, "nvme0", {"store": "ram:64M"})
        vdev = self.parent.create("nvme", name, {"size": "1M", **properties})
        assert isinstance(vdev, NvmeVdev)
        self.vdev = vdev
        self.signals: list[int] = []
        self.session = _Session(self.signals)
        super().__init__(_Bus(self.vdev, self.session.view))
        self.attach()

    def attach(self) -> None:
        """As a guest that has just begun."""
        self.vdev.attached(cast(Session, self.session))
        self.vdev.irqs_changed(Irq.MSIX, IrqAction.BOUND, 0, self.vdev.vectors()[Irq.MSIX])
        self.enable_function()

    def enable_function(self) -> None:
        """Memory and bus master, MSI-X."""
        self.vdev.config.space.write(4, 2, 0x6)
        msix = next(c for c in self.vdev.config.capabilities if c.capability_id == 0x11)
        self.vdev.config.space.write(msix.offset + 2, 2, 1 << 15)

    def close(self) -> None:
        if self.vdev.session is not None:
            self.vdev.detached()
        self.vdev.close()
        if self.own:
            self.parent.close()
            assert not self.parent.driver.adis


class _Session:
    peer = 4711

    def counters(self) -> dict[str, Count]:
        return nothing(CLIENT)

    def __init__(self, signals: list[int]) -> None:
        fd = os.memfd_create("guest")
        os.ftruncate(fd, SIZE)
        self.view = memoryview(mmap.mmap(fd, SIZE))
        self.memory = GuestMemory()
        self.memory.map(RAM, SIZE, fd)
        os.close(fd)
        self._signals = signals

    def observe(self, observed: bool) -> None:
        """Every store comes to the VDEV anyway."""

    def trigger(self, _kind: Irq, vector: int) -> bool:
        self._signals.append(vector)
        return True

    def eventfd(self, _kind: Irq, _vector: int) -> int:
        return -1


class _Bus:
    base = RAM

    def __init__(self, vdev: NvmeVdev, memory: memoryview) -> None:
        self.memory = memory
        self._vdev = vdev

    def read(self, offset: int, width: int) -> int:
        return self._vdev.read(0, offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        self._vdev.write(0, offset, width, value)

    def turn(self) -> None:
        """There is no event loop: what the sweep has to say is asked for."""
        time.sleep(0.0005)
        self._vdev.controller_adi.path.sweep.look()
