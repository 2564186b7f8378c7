"""A user-space driver of an Adaptive Virtual Function, over the native client.

    with AvfClient(path) as nic:
        nic.driver.start()
        nic.driver.configure(2)
        nic.driver.select(ENABLE_QUEUES, tx=3, rx=3)

The driver is the unit tests' (avf_machine.py); here its bus is a served VDEV.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from avf_machine import ADMINQ, ARENA, ARENA_SIZE, DYN_CTL0, ICR0, ICR0_ENA, Driver

from vdcm.client import Client, Eventfd, Irq, Region
from vdcm.testing import retry_while_busy

TIMEOUT = 20.0


class ClientBus:
    """avf_machine.Bus, by messages and shared memory."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.buffer = client.dma_memory(ARENA, ARENA_SIZE)

    def read(self, offset: int) -> int:
        return self.client.read(Region.BAR0, offset, 4)

    def write(self, offset: int, value: int) -> None:
        self.client.write(Region.BAR0, offset, 4, value)

    def load(self, address: int, size: int) -> bytes:
        at = address - ARENA
        return bytes(self.buffer.view[at : at + size])

    def store(self, address: int, data: bytes) -> None:
        at = address - ARENA
        self.buffer.view[at : at + len(data)] = data

    def wait(self, what: str, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + TIMEOUT
        while not (found := condition()):
            assert time.monotonic() < deadline, f"it did not come: {what}"
            time.sleep(0.001)
        return found


class AvfClient:
    """``driver`` does the talking; ``events`` are the interrupts, once enabled."""

    def __init__(self, path: Path) -> None:
        self.client = retry_while_busy(lambda: Client(path, timeout=TIMEOUT))
        self.bus = ClientBus(self.client)
        self.driver = Driver(self.bus)
        self.events: list[Eventfd] = []
        self.set_bus_master()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.client.close()

    def set_bus_master(self) -> None:
        self.client.config.write(0x4, 2, 0x406)

    def enable_interrupts(self) -> None:
        """All vectors, and the admin queue's cause."""
        self.events = self.client.irq_enable(Irq.MSIX)
        at = self.client.config.find(0x11)
        assert at is not None
        self.client.config.write(at + 2, 2, 0x8000)
        self.bus.write(ICR0_ENA, ADMINQ)
        self.enable_vector(0)

    def enable_vector(self, vector: int) -> None:
        """INTENA, and no ITR."""
        at = DYN_CTL0 if vector == 0 else 0x3800 + 4 * (vector - 1)
        self.bus.write(at, 1 | 3 << 3)

    def acknowledge(self) -> int:
        """As the handler of vector 0 does: the causes, which are cleared by it."""
        causes = self.bus.read(ICR0)
        self.enable_vector(0)
        return causes
