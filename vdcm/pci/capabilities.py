"""Power management, PCI Express, MSI, MSI-X and vendor-specific: from 0x40 to 0xff.

Sections are those of the PCI Express Base Specification 5.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from vdcm.errors import DeclarationError
from vdcm.pci.header import BarKind, BarLayout
from vdcm.pci.part import StandardCapability
from vdcm.registers import Access, BoundRegister, Field, Register

RO, RW, W1C, WO = Access.RO, Access.RW, Access.W1C, Access.WO


class PowerState(IntEnum):
    D0 = 0
    D1 = 1
    D2 = 2
    D3HOT = 3


class PowerManagement(StandardCapability):
    """Power management with D0 and D3hot, no PME, nothing lost on the way back to D0 (7.5.2)."""

    capability_id = 0x01

    PMC = Register(
        0x2,
        16,
        RO,
        fields={"VERSION": Field(0, 3, reset=3), "D1": Field(9), "D2": Field(10)},
        doc="Power management capabilities.",
    )
    PMCSR = Register(
        0x4,
        16,
        RO,
        fields={
            "POWER_STATE": Field(0, 2, RW, values=PowerState),
            "NO_SOFT_RESET": Field(3, reset=1),
        },
        doc="Power management control and status.",
    )
    DATA = Register(0x6, 16, RO, doc="Bridge extensions and data: none.")

    _accepted = PowerState.D0

    @property
    def power_state(self) -> PowerState:
        return PowerState(self.PMCSR.POWER_STATE)

    def on_write_PMCSR(self, _value: int) -> None:
        if self.power_state in (PowerState.D1, PowerState.D2):
            # "The write operation must complete normally; the data is discarded" (7.5.2.2).
            self.PMCSR.POWER_STATE = self._accepted
        self.publish()

    def state(self) -> object:
        return self.power_state

    def notify(self) -> None:
        self._accepted = self.power_state
        self.config.owner.on_power_state_change(self.power_state)


class PciExpress(StandardCapability, size=0x3C):
    """PCI Express, version 2, of an endpoint with one 2.5 GT/s lane (7.5.3).

    ``integrated``: a root complex integrated endpoint, which has no link. ``flr``: function-level
    reset is supported. ``tag_bits``: 5, 8 or 10, of the tags in its requests. ``dmwr``: it takes
    deferrable memory writes of 64 bytes. Raises DeclarationError for other numbers of tag bits.
    """

    capability_id = 0x10

    CAPABILITIES = Register(
        0x02,
        16,
        RO,
        fields={
            "VERSION": Field(0, 4, reset=2),
            "TYPE": Field(4, 4, values={0: "ENDPOINT", 9: "INTEGRATED_ENDPOINT"}),
            "INTERRUPT_MESSAGE": Field(9, 5),
        },
    )
    DEVICE_CAPABILITIES = Register(
        0x04,
        32,
        RO,
        fields={
            "MAX_PAYLOAD": Field(0, 3, doc="128 bytes."),
            "EXTENDED_TAGS": Field(5, doc="Tags have 8 bits."),
            "ROLE_BASED_ERRORS": Field(15, reset=1),
            "FUNCTION_LEVEL_RESET": Field(28),
        },
    )
    # Fields of what is not supported (payloads above 128 bytes, phantom functions, auxiliary power,
    # extended tags unless asked for) are hardwired to 0, which 7.5.3.4 permits.
    DEVICE_CONTROL = Register(
        0x08,
        16,
        fields={
            "CORRECTABLE_ERRORS": Field(0),
            "NON_FATAL_ERRORS": Field(1),
            "FATAL_ERRORS": Field(2),
            "UNSUPPORTED_REQUESTS": Field(3),
            "RELAXED_ORDERING": Field(4, reset=1),
            "EXTENDED_TAGS": Field(8),
            "NO_SNOOP": Field(11, reset=1),
            "MAX_READ_REQUEST": Field(12, 3, reset=2, doc="128 << n bytes."),
            "INITIATE_FLR": Field(15, access=WO),
        },
    )
    DEVICE_STATUS = Register(
        0x0A,
        16,
        W1C,
        fields={
            "CORRECTABLE_ERROR": Field(0),
            "NON_FATAL_ERROR": Field(1),
            "FATAL_ERROR": Field(2),
            "UNSUPPORTED_REQUEST": Field(3),
            "TRANSACTIONS_PENDING": Field(5, access=RO),
        },
    )
    LINK_CAPABILITIES = Register(
        0x0C,
        32,
        RO,
        fields={
            "MAX_SPEED": Field(0, 4, reset=1),
            "MAX_WIDTH": Field(4, 6, reset=1),
            "ASPM": Field(10, 2),
            "ASPM_OPTIONALITY": Field(22, reset=1),
            "PORT": Field(24, 8),
        },
    )
    # A function-level reset leaves these fields alone (6.6.2).
    LINK_CONTROL = Register(
        0x10,
        16,
        sticky=True,
        fields={
            "ASPM": Field(0, 2),
            "READ_COMPLETION_BOUNDARY": Field(3),
            "COMMON_CLOCK": Field(6),
            "EXTENDED_SYNCH": Field(7),
        },
    )
    LINK_STATUS = Register(
        0x12,
        16,
        RO,
        fields={
            "SPEED": Field(0, 4, reset=1),
            "WIDTH": Field(4, 6, reset=1),
            "SLOT_CLOCK": Field(12),
        },
    )
    DEVICE_CAPABILITIES_2 = Register(
        0x24,
        32,
        RO,
        fields={
            "COMPLETION_TIMEOUT_DISABLE": Field(4, reset=1),
            "TEN_BIT_TAG_COMPLETER": Field(16),
            "TEN_BIT_TAG_REQUESTER": Field(17),
            "EXTENDED_FMT": Field(20),
            "END_END_PREFIXES": Field(21),
            "MAX_END_END_PREFIXES": Field(22, 2),
            "DMWR_COMPLETER": Field(28),
            "DMWR_LENGTHS": Field(29, 2, doc="64 bytes."),
        },
    )
    DEVICE_CONTROL_2 = Register(
        0x28, 16, fields={"COMPLETION_TIMEOUT_DISABLE": Field(4), "TEN_BIT_TAGS": Field(12)}
    )
    LINK_CAPABILITIES_2 = Register(0x2C, 32, RO, fields={"SPEEDS": Field(1, 7, reset=1)})
    LINK_CONTROL_2 = Register(0x30, 16, fields={"TARGET_SPEED": Field(0, 4, reset=1, sticky=True)})
    LINK_STATUS_2 = Register(0x32, 16, RO)

    def __init__(
        self,
        *,
        integrated: bool = False,
        flr: bool = True,
        tag_bits: int = 5,
        dmwr: bool = False,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        if tag_bits not in (5, 8, 10):
            raise DeclarationError(f"tags have 5, 8 or 10 bits, not {tag_bits}")
        self.flr: Final = flr
        extended, ten = int(tag_bits >= 8), int(tag_bits == 10)
        self.DEVICE_CAPABILITIES.preset(FUNCTION_LEVEL_RESET=int(flr), EXTENDED_TAGS=extended)
        self.DEVICE_CONTROL.preset(EXTENDED_TAGS=extended)
        self.DEVICE_CAPABILITIES_2.preset(
            TEN_BIT_TAG_COMPLETER=ten, TEN_BIT_TAG_REQUESTER=ten, DMWR_COMPLETER=int(dmwr)
        )
        if not extended:
            self.DEVICE_CONTROL.narrow(~0x100)
        if not ten:
            self.DEVICE_CONTROL_2.narrow(~0x1000)
        if integrated:
            self.CAPABILITIES.preset(TYPE=9)
            for name in self.registers:
                if name.startswith("LINK_"):
                    bound: BoundRegister = getattr(self, name)
                    bound.preset(0)
                    bound.narrow(0)

    def on_write_DEVICE_CONTROL(self, _value: int) -> None:
        if self.DEVICE_CONTROL.INITIATE_FLR:
            self.DEVICE_CONTROL.INITIATE_FLR = 0
            if self.flr:
                self.config.function_level_reset()


class Msi(StandardCapability):
    """Message signaled interrupts, 64-bit addresses (7.7.1).

    ``vectors``: 1, 2, 4, 8, 16 or 32. A function with per-vector masking is a ``MaskableMsi``.
    """

    capability_id = 0x05
    maskable = False

    CONTROL = Register(
        0x2,
        16,
        RO,
        fields={
            "ENABLE": Field(0, access=RW),
            "MULTIPLE_CAPABLE": Field(1, 3, doc="1 << n vectors can be had."),
            "MULTIPLE_ENABLE": Field(4, 3, RW, doc="1 << n vectors are given."),
            "ADDRESS_64": Field(7, reset=1),
            "MASKABLE": Field(8),
        },
    )
    ADDRESS = Register(0x4, 32, fields={"ADDRESS": Field(2, 30)})
    ADDRESS_HIGH = Register(0x8, 32)
    DATA = Register(0xC, 16)

    def __init__(self, vectors: int = 1, *, at: int | None = None) -> None:
        super().__init__(at=at)
        if vectors not in (1, 2, 4, 8, 16, 32):
            raise DeclarationError(f"MSI has 1, 2, 4, 8, 16 or 32 vectors, not {vectors}")
        self.vectors: Final = vectors
        self.CONTROL.preset(MULTIPLE_CAPABLE=vectors.bit_length() - 1, MASKABLE=int(self.maskable))

    @property
    def enabled(self) -> bool:
        return bool(self.CONTROL.ENABLE)

    @property
    def vectors_enabled(self) -> int:
        """How many vectors software gave, at most ``vectors``."""
        return min(1 << self.CONTROL.MULTIPLE_ENABLE, self.vectors)

    @property
    def mask(self) -> int:
        """Masked vectors, one bit each."""
        return 0

    def on_write_CONTROL(self, _value: int) -> None:
        self.publish()

    def state(self) -> object:
        return self.enabled, self.vectors_enabled, self.mask

    def notify(self) -> None:
        self.config.owner.on_msi_change(self)


class MaskableMsi(Msi):
    """MSI with a mask and a pending bit for each vector (7.7.1.7 and 7.7.1.8)."""

    maskable = True

    MASK = Register(0x10, 32, doc="Software masks a vector.")
    PENDING = Register(0x14, 32, RO, doc="The device has a message that is masked.")

    def __init__(self, vectors: int = 1, *, at: int | None = None) -> None:
        super().__init__(vectors, at=at)
        self.MASK.narrow((1 << vectors) - 1)

    @property
    def mask(self) -> int:
        return self.MASK.value

    def show_pending(self, vectors: int) -> None:
        """Set the pending bits, one per vector."""
        self.PENDING.value = vectors

    def on_write_MASK(self, _value: int) -> None:
        self.publish()


class MsiX(StandardCapability):
    """MSI-X (7.7.2): ``vectors`` from 1 to 2048, with table and pending bits in memory BARs.

    Offsets are bytes in the BAR, multiples of 8. Table and pending bits must lie in their BARs and
    not overlap; what is in them is not this class's business.
    """

    capability_id = 0x11

    CONTROL = Register(
        0x2,
        16,
        RO,
        fields={
            "TABLE_SIZE": Field(0, 11, doc="Vectors - 1."),
            "FUNCTION_MASK": Field(14, access=RW),
            "ENABLE": Field(15, access=RW),
        },
    )
    TABLE = Register(0x4, 32, RO, fields={"BAR": Field(0, 3), "OFFSET": Field(3, 29)})
    PBA = Register(0x8, 32, RO, fields={"BAR": Field(0, 3), "OFFSET": Field(3, 29)})

    def __init__(
        self,
        vectors: int,
        *,
        table_bar: int,
        table_offset: int = 0,
        pba_bar: int,
        pba_offset: int,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        if not 1 <= vectors <= 2048:
            raise DeclarationError(f"MSI-X has 1 to 2048 vectors, not {vectors}")
        for what, offset in (("table", table_offset), ("pending bits", pba_offset)):
            if offset % 8 or not 0 <= offset < 1 << 32:
                raise DeclarationError(
                    f"MSI-X {what} at {offset:#x}: a multiple of 8 below 4 GiB is needed"
                )
        for what, bar in (("table", table_bar), ("pending bits", pba_bar)):
            if not 0 <= bar <= 5:
                raise DeclarationError(f"MSI-X {what} in BAR{bar}: BARs are 0 to 5")
        self.vectors: Final = vectors
        self.table_bar: Final = table_bar
        self.table_offset: Final = table_offset
        self.pba_bar: Final = pba_bar
        self.pba_offset: Final = pba_offset
        self.CONTROL.preset(TABLE_SIZE=vectors - 1)
        self.TABLE.preset(table_offset | table_bar)
        self.PBA.preset(pba_offset | pba_bar)

    @property
    def table_size(self) -> int:
        """Bytes."""
        return 16 * self.vectors

    @property
    def pba_size(self) -> int:
        """Bytes: one bit per vector in 64-bit words."""
        return -(-self.vectors // 64) * 8

    @property
    def enabled(self) -> bool:
        return bool(self.CONTROL.ENABLE)

    @property
    def function_masked(self) -> bool:
        return bool(self.CONTROL.FUNCTION_MASK)

    def check_bars(self, bars: Mapping[int, BarLayout]) -> None:
        table = ("table", self.table_bar, self.table_offset, self.table_size)
        pba = ("pending bits", self.pba_bar, self.pba_offset, self.pba_size)
        for what, index, offset, size in (table, pba):
            bar = bars.get(index)
            if bar is None or bar.kind is BarKind.IO:
                raise DeclarationError(
                    f"MSI-X {what}: BAR{index} is no memory BAR of this function"
                )
            if offset + size > bar.size:
                raise DeclarationError(
                    f"MSI-X {what} of {size:#x} bytes at {offset:#x} ends beyond "
                    f"BAR{index} of {bar.size:#x} bytes"
                )
        if (
            self.table_bar == self.pba_bar
            and self.table_offset < self.pba_offset + self.pba_size
            and self.pba_offset < self.table_offset + self.table_size
        ):
            raise DeclarationError(
                f"MSI-X: pending bits at {self.pba_offset:#x} overlap the table "
                f"of {self.table_size:#x} bytes at {self.table_offset:#x}"
            )

    def on_write_CONTROL(self, _value: int) -> None:
        self.publish()

    def state(self) -> object:
        return self.enabled, self.function_masked

    def notify(self) -> None:
        self.config.owner.on_msix_change(self)


class VendorSpecific(StandardCapability):
    """Vendor-specific (7.9.4): read-only ``data`` from byte 3 on, at most 189 bytes.

    A subclass may declare registers there, which come before the data.
    """

    capability_id = 0x09
    repeatable = True

    LENGTH = Register(0x2, 8, RO, doc="Bytes, header included.")

    def __init__(self, data: bytes = b"", *, at: int | None = None) -> None:
        super().__init__(at=at, data=data)
        if self.length > self.end - self.begin:
            raise DeclarationError(f"{type(self).__name__}: {len(data)} bytes of data are too many")
        self.LENGTH.preset(self.length)
