"""The type 0 configuration header: who the function is, its command and status, its BARs.

Sections are those of the PCI Express Base Specification 5.0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntFlag

from vdcm.errors import DeclarationError
from vdcm.pci.part import ConfigPart
from vdcm.registers import Access, Field, Register

RO, W1C = Access.RO, Access.W1C


@dataclass(frozen=True, slots=True)
class Identity:
    """What the function says it is. 16-bit ids, 8-bit revision, 24-bit class code.

    ``class_code`` is class, subclass and programming interface, as in 0x010802 for NVMe.
    """

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0

    def __post_init__(self) -> None:
        for name, bits in (
            ("vendor", 16),
            ("device", 16),
            ("class_code", 24),
            ("revision", 8),
            ("subsystem_vendor", 16),
            ("subsystem", 16),
        ):
            value = getattr(self, name)
            if not 0 <= value < 1 << bits:
                raise DeclarationError(f"identity: {name} {value:#x} does not fit in {bits} bits")


class BarKind(Enum):
    """What a BAR decodes; the value is its low bits (7.5.1.2.1)."""

    MEMORY32 = 0x0
    MEMORY32_PREFETCHABLE = 0x8
    MEMORY64 = 0x4
    MEMORY64_PREFETCHABLE = 0xC
    IO = 0x1

    @property
    def is_64bit(self) -> bool:
        """It takes two of the six BAR registers."""
        return self in (BarKind.MEMORY64, BarKind.MEMORY64_PREFETCHABLE)


@dataclass(frozen=True, slots=True)
class BarLayout:
    """BAR ``index`` (0 to 5) of ``size`` bytes, a power of two.

    Memory: 16 bytes to 2 GiB, or to 2^63 bytes with 64 bits. I/O: 4 to 256 bytes (7.5.1.2.1).
    """

    index: int
    size: int
    kind: BarKind = BarKind.MEMORY32

    def __post_init__(self) -> None:
        low, high = (4, 1 << 8) if self.kind is BarKind.IO else (16, 1 << 31)
        if self.kind.is_64bit:
            high = 1 << 63
        if not low <= self.size <= high or self.size & (self.size - 1):
            raise DeclarationError(
                f"BAR{self.index}: size {self.size:#x} is not a power of two "
                f"from {low:#x} to {high:#x}"
            )
        if not 0 <= self.index <= (4 if self.kind.is_64bit else 5):
            raise DeclarationError(f"BAR{self.index}: there is no room for it, BARs are 0 to 5")

    @property
    def indices(self) -> range:
        """The BAR registers that it takes."""
        return range(self.index, self.index + (2 if self.kind.is_64bit else 1))


class Command(IntFlag):
    """The Command register (7.5.1.1.3)."""

    IO = 0x1
    MEMORY = 0x2
    BUS_MASTER = 0x4
    PARITY_RESPONSE = 0x40
    SERR = 0x100
    INTX_DISABLE = 0x400


class Header(ConfigPart, size=0x40):
    """The first 64 bytes (7.5.1.1 and 7.5.1.2). No expansion ROM, no CardBus pointer."""

    VENDOR_ID = Register(0x00, 16, RO)
    DEVICE_ID = Register(0x02, 16, RO)
    COMMAND = Register(
        0x04,
        16,
        fields={
            "IO": Field(0, doc="Answer I/O accesses."),
            "MEMORY": Field(1, doc="Answer memory accesses."),
            "BUS_MASTER": Field(2, doc="May access memory and send messages."),
            "PARITY_RESPONSE": Field(6),
            "SERR": Field(8),
            "INTX_DISABLE": Field(10, doc="INTx is not to be asserted."),
        },
    )
    STATUS = Register(
        0x06,
        16,
        RO,
        fields={
            "INTERRUPT": Field(3, doc="INTx is pending, whether or not it is disabled."),
            "CAPABILITIES": Field(4, reset=1),
            "MASTER_DATA_PARITY_ERROR": Field(8, access=W1C),
            "SIGNALED_TARGET_ABORT": Field(11, access=W1C),
            "RECEIVED_TARGET_ABORT": Field(12, access=W1C),
            "RECEIVED_MASTER_ABORT": Field(13, access=W1C),
            "SIGNALED_SYSTEM_ERROR": Field(14, access=W1C),
            "DETECTED_PARITY_ERROR": Field(15, access=W1C),
        },
    )
    REVISION_ID = Register(0x08, 8, RO)
    PROGRAMMING_INTERFACE = Register(0x09, 8, RO)
    SUBCLASS = Register(0x0A, 8, RO)
    BASE_CLASS = Register(0x0B, 8, RO)
    CACHE_LINE_SIZE = Register(0x0C, 8, doc="No effect in PCI Express.")
    LATENCY_TIMER = Register(0x0D, 8, RO)
    HEADER_TYPE = Register(0x0E, 8, RO)
    BIST = Register(0x0F, 8, RO)
    BAR = Register(0x10, 32, count=6)
    CARDBUS_CIS_POINTER = Register(0x28, 32, RO)
    SUBSYSTEM_VENDOR_ID = Register(0x2C, 16, RO)
    SUBSYSTEM_ID = Register(0x2E, 16, RO)
    ROM_BAR = Register(0x30, 32, RO)
    CAPABILITIES_POINTER = Register(0x34, 8, RO)
    INTERRUPT_LINE = Register(0x3C, 8)
    INTERRUPT_PIN = Register(0x3D, 8, RO)

    def __init__(self, identity: Identity, bars: Iterable[BarLayout], interrupt_pin: int) -> None:
        super().__init__()
        self.VENDOR_ID.preset(identity.vendor)
        self.DEVICE_ID.preset(identity.device)
        self.REVISION_ID.preset(identity.revision)
        self.PROGRAMMING_INTERFACE.preset(identity.class_code & 0xFF)
        self.SUBCLASS.preset(identity.class_code >> 8 & 0xFF)
        self.BASE_CLASS.preset(identity.class_code >> 16)
        self.SUBSYSTEM_VENDOR_ID.preset(identity.subsystem_vendor)
        self.SUBSYSTEM_ID.preset(identity.subsystem)
        self.INTERRUPT_PIN.preset(interrupt_pin)
        bars = list(bars)
        # What the function has no use for is hardwired to 0 (7.5.1.1.3, 7.5.1.1.12).
        command = ~Command(0)
        if not any(bar.kind is BarKind.IO for bar in bars):
            command &= ~Command.IO
        if not interrupt_pin:
            command &= ~Command.INTX_DISABLE
            self.INTERRUPT_LINE.narrow(0)
        self.COMMAND.narrow(command)
        # Sizing (7.5.1.2.1): software writes all ones; bits below the size stay as they are.
        writable = [0] * 6
        for bar in bars:
            address_bits = -bar.size & (1 << 64) - 1
            self.BAR[bar.index].preset(bar.kind.value)
            for index in bar.indices:
                if writable[index]:
                    raise DeclarationError(f"BAR{bar.index}: BAR register {index} is taken twice")
                writable[index] = address_bits >> 32 * (index - bar.index) & 0xFFFF_FFFF
        for register, bits in zip(self.BAR, writable, strict=True):
            register.narrow(bits)

    @property
    def command(self) -> Command:
        return Command(self.COMMAND.value)

    def on_write_COMMAND(self, _value: int) -> None:
        self.publish()

    def state(self) -> object:
        return self.command

    def notify(self) -> None:
        self.config.owner.on_command_change(self.command)
