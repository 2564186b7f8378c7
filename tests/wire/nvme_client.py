"""The driver of ``nvme_host`` over the native client: a user-space driver for NVMe VDEVs.

    with NvmeClient(path) as nvme:
        nvme.start()                          # ready, with I/O queue 1
        nvme.write(nvme.queue, 0, b"x" * 512)

Whether doorbells are memory, it sees from what the VDEV lets it map; if they are not, it uses
doorbell buffers, as Linux does.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Self

from nvme_host import DOORBELLS, NvmeHost, Pair

from vdcm.client import Client, Eventfd, Irq, Region

RAM = 0x1000_0000
BUS_MASTER = 0x6
TIMEOUT = 20.0


class _Bus:
    base = RAM

    def __init__(self, client: Client, size: int) -> None:
        self.client = client
        self.buffer = client.dma_memory(RAM, size)
        self.memory = self.buffer.view
        self.areas = client.map(Region.BAR0)

    def read(self, offset: int, width: int) -> int:
        return self.client.read(Region.BAR0, offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        for area in self.areas:
            if area.offset <= offset < area.offset + area.size:
                area.write(offset - area.offset, width, value)
                return
        self.client.write(Region.BAR0, offset, width, value)

    def turn(self) -> None:
        """The server has threads of its own; an access makes sure that they run."""
        self.client.read(Region.BAR0, 0x1C, 4)


class NvmeClient(NvmeHost):
    """``memory``: bytes of guest memory."""

    def __init__(self, path: Path, memory: int = 16 << 20, client: Client | None = None) -> None:
        self.client = client or Client(path, timeout=TIMEOUT, wait=5.0)
        self._bus = _Bus(self.client, memory)
        super().__init__(self._bus)
        self.direct = any(area.offset == DOORBELLS for area in self._bus.areas)
        self.events: list[Eventfd] = []
        self.queue: Pair

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def unmap_memory(self) -> None:
        """Take all of it away from the device."""
        self.client.dma_unmap(RAM, self._bus.buffer.size)

    def start(self, entries: int = 64, *, shadow: bool = True) -> Pair:
        """From whatever it is to ready, with I/O queue 1."""
        self._next = 0
        self.client.config.write(4, 2, BUS_MASTER)
        self.disable()
        self.enable()
        if shadow and not self.direct:
            self.use_shadow_doorbells()
        self.block_size = 1 << self.identify(0, 1)[128 + 4 * (self.identify(0, 1)[26] & 0xF) + 2]
        self.queue = self.create_queue(1, entries)
        return self.queue

    def use_interrupts(self, count: int) -> None:
        """MSI-X vectors 0 to ``count`` - 1, an eventfd each."""
        self.events = self.client.irq_enable(Irq.MSIX, count=count)
        at = self.client.config.find(0x11)
        assert at is not None
        self.client.config.write(at + 2, 2, 1 << 15)

    def namespace_blocks(self, nsid: int = 1) -> int:
        return int(struct.unpack_from("<Q", self.identify(0, nsid))[0])
