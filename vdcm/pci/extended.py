"""Extended capabilities, from 0x100 on. Sections are those of the PCI Express Base Spec. 5.0."""

from __future__ import annotations

from vdcm.errors import DeclarationError
from vdcm.pci.part import ExtendedCapability
from vdcm.registers import Access, Field, Register

RO = Access.RO


class DeviceSerialNumber(ExtendedCapability):
    """The device's serial number, a 64-bit EUI-64 (7.9.3)."""

    capability_id = 0x0003

    LOWER = Register(0x4, 32, RO)
    UPPER = Register(0x8, 32, RO)

    def __init__(self, serial: int, *, at: int | None = None) -> None:
        super().__init__(at=at)
        if not 0 <= serial < 1 << 64:
            raise DeclarationError(f"serial number {serial:#x} does not fit in 64 bits")
        self.LOWER.preset(serial & 0xFFFF_FFFF)
        self.UPPER.preset(serial >> 32)


class VendorSpecificExtended(ExtendedCapability):
    """Vendor-specific extended capability (7.9.5): read-only ``data`` from byte 8 on.

    ``vsec_id`` has 16 bits, ``revision`` 4. A subclass may declare registers there, which come
    before the data.
    """

    capability_id = 0x000B
    repeatable = True

    VSEC_HEADER = Register(
        0x4,
        32,
        RO,
        fields={"ID": Field(0, 16), "REVISION": Field(16, 4), "LENGTH": Field(20, 12)},
    )

    def __init__(
        self, vsec_id: int, revision: int = 0, data: bytes = b"", *, at: int | None = None
    ) -> None:
        super().__init__(at=at, data=data)
        self.VSEC_HEADER.preset(ID=vsec_id, REVISION=revision, LENGTH=self.length)


class Dvsec(ExtendedCapability):
    """Designated vendor-specific extended capability (7.9.6): read-only ``data`` from byte 10 on.

    ``vendor`` and ``dvsec_id`` have 16 bits, ``revision`` 4. A subclass may declare registers
    there, which come before the data.
    """

    capability_id = 0x0023
    repeatable = True

    DVSEC_HEADER = Register(
        0x4,
        32,
        RO,
        fields={"VENDOR": Field(0, 16), "REVISION": Field(16, 4), "LENGTH": Field(20, 12)},
    )
    DVSEC_ID = Register(0x8, 16, RO)

    def __init__(
        self,
        vendor: int,
        dvsec_id: int,
        revision: int = 0,
        data: bytes = b"",
        *,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at, data=data)
        self.DVSEC_HEADER.preset(VENDOR=vendor, REVISION=revision, LENGTH=self.length)
        self.DVSEC_ID.preset(dvsec_id)
