"""A composed VDEV with one of everything, and what tests do with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from vdcm import (
    Access,
    Bar,
    BarKind,
    Identity,
    MaskableMsi,
    MsiX,
    PagePolicy,
    Pages,
    Register,
    RegisterMap,
    Vdev,
)
from vdcm.bars import PAGE
from vdcm.client import Client, Region
from vdcm.errors import ProtocolError

DIRECT, MEMORY, STATUS, TABLE, PBA = (page * PAGE for page in range(1, 6))
SIZE = 8 * PAGE
WIDE = 1 << 31  # bytes of the 64-bit BAR
VECTORS = 4
# Offsets of its registers.
SCRATCH, DMA_ADDRESS, DMA_COMMAND, DMA_DATA = 0x00, 0x08, 0x10, 0x14
SIGNAL, LINE, ACTION, REFUSED, COUNTED = 0x18, 0x1C, 0x20, 0x24, 0x28


class Registers(RegisterMap):
    SCRATCH = Register(0x00, 64)
    DMA_ADDRESS = Register(0x08, 64)
    DMA_COMMAND = Register(0x10, 32, doc="1 reads a word into DMA_DATA, 2 writes it.")
    DMA_DATA = Register(0x14, 32)
    SIGNAL = Register(0x18, 32, Access.WO)
    LINE = Register(0x1C, 32)
    ACTION = Register(0x20, 32, Access.WO, doc="Calls ``action``.")
    REFUSED = Register(0x24, 32, Access.RO, doc="Its read fails.")
    COUNTED = Register(0x28, 32, Access.RC, doc="The read clears it.")


class StatusPage(RegisterMap):
    WORD = Register(0x00, 32, Access.RO)
    SET_WORD = Register(0x04, 32, doc="What is written here appears in WORD.")
    CLEAR = Register(0x08, 32, Access.W1C)


class FarWord(RegisterMap):
    WORD = Register(0x00, 32)


class Ports(RegisterMap):
    LOW = Register(0x00, 8)
    HIGH = Register(0x01, 8)
    WORD = Register(0x04, 32)


class Everything(Vdev):
    """All page policies, all kinds of BAR and of interrupt."""

    identity = Identity(vendor=0x1234, device=0xE7E7, class_code=0xFF0000)
    intx = True

    def __init__(self, name: str) -> None:
        self.registers: Final = Registers(self, also=(StatusPage,))
        self.status: Final = StatusPage(self, also=(Registers,))
        self.ports: Final = Ports()
        self.action: Callable[[], None] = lambda: None
        self.when_reset: Callable[[], None] = lambda: None
        main = Bar(
            0,
            SIZE,
            pages=[
                Pages(DIRECT, PAGE, PagePolicy.DIRECT),
                Pages(MEMORY, PAGE, PagePolicy.MEMORY),
                Pages(STATUS, PAGE, PagePolicy.WRITE_INTERCEPTED),
            ],
        )
        main.place(0, self.registers)
        main.place(STATUS, self.status)
        wide = Bar(2, WIDE, BarKind.MEMORY64_PREFETCHABLE)
        wide.place(WIDE - 4, FarWord())
        ports = Bar(4, 64, BarKind.IO)
        ports.place(0, self.ports)
        super().__init__(
            name,
            bars=[main, wide, ports],
            capabilities=[
                MsiX(VECTORS, table_bar=0, table_offset=TABLE, pba_bar=0, pba_offset=PBA),
                MaskableMsi(VECTORS),
            ],
        )

    def on_write_DMA_COMMAND(self, value: int) -> None:
        address = self.registers.DMA_ADDRESS.value
        if value == 1:
            data = self.dma_read(address, 4)
            self.registers.DMA_DATA.value = int.from_bytes(data, "little")
        else:
            self.dma_write(address, self.registers.DMA_DATA.value.to_bytes(4, "little"))

    def on_write_SIGNAL(self, value: int) -> None:
        self.interrupts.signal(value)

    def on_write_LINE(self, value: int) -> None:
        self.interrupts.set_line(bool(value))

    def on_write_ACTION(self, _value: int) -> None:
        self.action()

    def on_read_REFUSED(self) -> int:
        raise ZeroDivisionError("a bug of the device model, as ordered")

    def on_write_SET_WORD(self, value: int) -> None:
        self.status.WORD.value = value

    def on_reset(self) -> None:
        self.when_reset()


# What tests do with it.


def bar0(client: Client, offset: int, width: int = 4) -> int:
    return client.read(Region.BAR0, offset, width)


def put(client: Client, offset: int, value: int, width: int = 4) -> None:
    client.write(Region.BAR0, offset, width, value)


def refused(client: Client, offset: int, value: int = 1) -> int:
    """The errno of a write to BAR 0."""
    with pytest.raises(ProtocolError) as caught:
        put(client, offset, value)
    return caught.value.errno
