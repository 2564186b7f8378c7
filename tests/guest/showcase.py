"""A device with one of everything: each kind of page and capability, interrupts and DMA.

No driver knows it; the tests reach it from the guest with devmem and setpci. It is registered by
the entry point that ``Server`` makes of MODELS, as a model outside this repository would be.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from vdcm import (
    Access,
    Ats,
    Bar,
    BarKind,
    DeviceSerialNumber,
    Dvsec,
    Field,
    Identity,
    MaskableMsi,
    MsiX,
    PagePolicy,
    Pages,
    Parent,
    Pasid,
    Pri,
    Property,
    Register,
    RegisterMap,
    ScalableIov,
    Vdev,
    VendorSpecific,
    VendorSpecificExtended,
)

MODELS: Final = {"showcase": "tests.guest.showcase:ShowcaseParent"}
IDENT: Final = 0x5D0C_A5E0
DIRECT: Final = 0x1000  # these are offsets in BAR 2, each an area of its own
TABLE: Final = 0x2000
MEMORY: Final = 0x3000
PENDING: Final = 0x4000
STATUS: Final = 0x5000
FAR_MEMORY: Final = 0x8000


class ShowcaseRegisters(RegisterMap):
    IDENT = Register(0x00, 32, Access.RO, IDENT, doc="Always the same.")
    SCRATCH = Register(0x04, 32, doc="Keeps what is written until a reset.")
    DMA_ADDRESS = Register(0x08, 64, doc="An address in guest memory.")
    DMA_DATA = Register(0x10, 64, doc="Eight bytes from or for guest memory.")
    COMMAND = Register(
        0x18,
        32,
        Access.WO,
        fields={
            "READ": Field(0, doc="Fetch DMA_DATA from DMA_ADDRESS."),
            "WRITE": Field(1, doc="Store DMA_DATA at DMA_ADDRESS."),
            "SIGNAL": Field(2, doc="Send interrupt vector VECTOR."),
            "VECTOR": Field(8, 2),
        },
        doc="What to do now.",
    )


class StatusRegisters(RegisterMap):
    COUNTER = Register(0x00, 32, doc="In a write-intercepted page.")


class Showcase(Vdev):
    """The host side reads and writes shared memory at ``at`` of BAR ``bar`` by ``word``."""

    identity = Identity(
        vendor=0x1AF4, device=0xF00D, class_code=0xFF0000, subsystem_vendor=0x1AF4, subsystem=1
    )

    bar = Property(2, maximum=2, doc="The BAR that word means: 0 or 2.")
    at = Property(MEMORY, maximum=0xFFFC, doc="The offset there that word means.")
    word = Property(0, maximum=0xFFFF_FFFF, doc="Set: stored there. Shown: what is there.")

    def __init__(self, name: str) -> None:
        self.registers: Final = ShowcaseRegisters(self)
        control = Bar(
            2,
            0x10000,
            pages=[
                Pages(DIRECT, 0x1000, PagePolicy.DIRECT),
                Pages(MEMORY, 0x1000, PagePolicy.MEMORY),
                Pages(STATUS, 0x1000, PagePolicy.WRITE_INTERCEPTED),
                Pages(FAR_MEMORY, 0x2000, PagePolicy.MEMORY),
            ],
        )
        control.place(0, self.registers)
        control.place(STATUS, StatusRegisters())
        data = Bar(
            0,
            0x10000,
            BarKind.MEMORY64_PREFETCHABLE,
            pages=[Pages(0, 0x10000, PagePolicy.MEMORY)],
        )
        super().__init__(
            name,
            bars=[data, control],
            capabilities=[
                MaskableMsi(4),
                MsiX(4, table_bar=2, table_offset=TABLE, pba_bar=2, pba_offset=PENDING),
                VendorSpecific(b"showcase"),
                DeviceSerialNumber(0x0123_4567_89AB_CDEF),
                VendorSpecificExtended(0x5D0C, revision=1, data=b"extended"),
                Dvsec(0x1AF4, 0x0042, revision=2, data=b"designated"),
                ScalableIov(hide_ims=True),
                Pasid(),
                Ats(),
                Pri(64),
            ],
        )

    def on_write_COMMAND(self, value: int) -> None:
        if value & 1:
            data = self.dma_read(self.registers.DMA_ADDRESS.value, 8)
            self.registers.DMA_DATA.value = int.from_bytes(data, "little")
        if value & 2:
            data = self.registers.DMA_DATA.value.to_bytes(8, "little")
            self.dma_write(self.registers.DMA_ADDRESS.value, data)
        if value & 4:
            self.interrupts.signal(value >> 8 & 3)

    def on_set_word(self, value: int) -> None:
        self.bars[self.bar].view(self.at, 4)[:] = value.to_bytes(4, "little")

    def describe(self) -> dict[str, Any]:
        word = int.from_bytes(self.bars[self.bar].view(self.at, 4), "little")
        return {**super().describe(), "word": word}


class ShowcaseParent(Parent):
    types: ClassVar = {"showcase": Showcase}
