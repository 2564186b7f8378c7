"""Configuration space of a VDEV as a table: appendix C of the DSA architecture specification
(341204-006, revision 3.0), and the PCI Express Base Specification 5.0 where that says nothing.

Typed from them, as dsa_register_table.py is. What is left to the implementation:

* A payload has at most 128 bytes, so Max Payload Size is hardwired to 0 (7.5.3.4).
* Capabilities that need a bus are not there: AER, LTR, TPH, VC, ATS and page requests. LTR is not
  announced in DEVCAP2 either.
* Subsystem IDs are read-only (PCI Express, 7.5.1.2.3).
* The vendor-specific capability at 0x100 says where the channel is (docs/dsa.md).
"""

from __future__ import annotations

from collections.abc import Iterator

from dsa_register_table import RO, RSVD, RW, UNUSED, W1C, Bits, Row, Shape
from dsa_register_walk import Image

CONFIG_SIZE = 0x1000
DEVCTL, PMCSR = 0x48, 0x94


def config_rows(shape: Shape) -> list[Row]:
    """All registers of configuration space."""
    return [*_header(shape), *_express(), *_msix(shape), *_power(), *_extended(shape)]


def config_gaps(shape: Shape) -> list[range]:
    """Words without a register: they read 0 and ignore writes."""
    ends = [(row.offset, row.offset + row.size) for row in config_rows(shape)]
    starts = [*(start for start, _ in ends[1:]), CONFIG_SIZE]
    between = [range(end, start) for (_, end), start in zip(ends, starts, strict=True)]
    return [gap for gap in between if gap]


class ConfigImage(Image):
    """What a guest finds in configuration space. Accesses are of 1, 2 or 4 bytes (9)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(config_rows(shape), config_gaps(shape), CONFIG_SIZE, widths=(1, 2, 4))

    def write(self, offset: int, width: int, value: int) -> None:
        power = self.get("PMCSR", "Power State")
        super().write(offset, width, value)
        if self.get("PMCSR", "Power State") in (1, 2):  # unsupported: no state change occurs
            self.set("PMCSR", "Power State", power)
        high = DEVCTL + 1 - offset
        if 0 <= high < width and value >> 8 * high & 0x80:
            self.reset()  # Initiate Function Level Reset


def _bar(name: str, at: int, size: int) -> Row:
    low = size.bit_length() - 1
    return Row(
        name,
        "9.1.1",
        at,
        8,
        (
            Bits(63, low, RW, "Address"),
            Bits(low - 1, 4, RO, "Address"),
            Bits(3, 3, RO, "Pre-Fetchable", 1),
            Bits(2, 1, RO, "BAR Type", 2),
            Bits(0, 0, RO, "Memory Space Indicator"),
        ),
    )


def portal_bar_size(shape: Shape) -> int:
    """Four pages for each work queue (9.1.1.2) and two of the channel, rounded up."""
    return 1 << (0x1000 * (4 * shape.wqs + 2) - 1).bit_length()


def _header(shape: Shape) -> Iterator[Row]:
    identity = (Bits(31, 16, RO, "Device ID", 0x0B25), Bits(15, 0, RO, "Vendor ID", 0x8086))
    yield Row("VID, DID", "C", 0x00, 4, identity)
    yield Row(
        "PCICMD",
        "C",
        0x04,
        2,
        (
            Bits(15, 11, RSVD),
            Bits(10, 10, RO, "Interrupt Disable"),
            Bits(9, 9, RO, "Fast Back-to-Back Enable"),
            Bits(8, 8, RW, "SERR# Enable"),
            Bits(7, 7, RO, "Wait Cycle Control"),
            Bits(6, 6, RW, "Parity Error Response Enable"),
            Bits(5, 5, RO, "VGA Palette Snoop Enable"),
            Bits(4, 4, RO, "Memory Write and Invalidate Enable"),
            Bits(3, 3, RO, "Special Cycle Enable"),
            Bits(2, 2, RW, "Bus Master Enable"),
            Bits(1, 1, RW, "Memory Space Enable"),
            Bits(0, 0, RO, "I/O Space Enable"),
        ),
    )
    yield Row(
        "PCISTS",
        "C",
        0x06,
        2,
        (
            Bits(15, 15, W1C, "Detected Parity Error"),
            Bits(14, 14, W1C, "Signaled System Error"),
            Bits(13, 13, W1C, "Received Master Abort"),
            Bits(12, 12, W1C, "Received Target Abort"),
            Bits(11, 11, W1C, "Signaled Target Abort"),
            Bits(10, 9, RO, "DEVSEL Timing"),
            Bits(8, 8, W1C, "Master Data Parity Error"),
            Bits(7, 7, RO, "Fast Back-to-Back Transactions Capable"),
            Bits(6, 6, RSVD),
            Bits(5, 5, RO, "66 MHz Capable"),
            Bits(4, 4, RO, "Capabilities List", 1),
            Bits(3, 3, RO, "Interrupt Status"),
            Bits(2, 0, RSVD),
        ),
    )
    kind = (Bits(31, 8, RO, "Class Code", 0x088000), Bits(7, 0, RO, "Revision ID"))
    yield Row("RID, CC", "C", 0x08, 4, kind)
    yield Row(
        "CLS, LATTMR, HDR, BIST",
        "C",
        0x0C,
        4,
        (
            Bits(31, 24, RO, "BIST"),
            Bits(23, 23, RO, "Multi-Function Device"),
            Bits(22, 16, RO, "Header Type"),
            Bits(15, 8, RO, "Latency Timer"),
            Bits(7, 0, RW, "Cache Line Size"),
        ),
    )
    yield _bar("BAR0", 0x10, 0x10000)
    yield _bar("BAR2", 0x18, portal_bar_size(shape))
    yield Row("BAR4, BAR5", "PCIe 7.5.1.2.1", 0x20, 8, (Bits(63, 0, UNUSED),))
    yield Row("CardBus CIS Pointer", "PCIe 7.5.1.2.2", 0x28, 4, (Bits(31, 0, UNUSED),))
    subsystem = (Bits(31, 16, RO, "Sub-System ID"), Bits(15, 0, RO, "Vendor", 0x8086))
    yield Row("SSVID, SSID", "C", 0x2C, 4, subsystem)
    yield Row("Expansion ROM", "PCIe 7.5.1.2.4", 0x30, 4, (Bits(31, 0, UNUSED),))
    yield Row("CAPPTR", "C", 0x34, 4, (Bits(31, 8, RSVD), Bits(7, 0, RO, "CAPPTR", 0x40)))
    yield Row("reserved", "PCIe 7.5.1.2", 0x38, 4, (Bits(31, 0, RSVD),))
    yield Row(
        "INTL, INTP, MINGNT, MAXLAT",
        "C",
        0x3C,
        4,
        (
            Bits(31, 24, RO, "Maximum Latency"),
            Bits(23, 16, RO, "Minimum Grant"),
            Bits(15, 8, RO, "Interrupt Pin"),
            Bits(7, 0, RO, "Interrupt Line"),
        ),
    )


def _express() -> Iterator[Row]:
    yield Row(
        "PCIECAPLST, PCIECAP",
        "C",
        0x40,
        4,
        (
            Bits(31, 30, RSVD),
            Bits(29, 25, RO, "Interrupt Message Number"),
            Bits(24, 24, RO, "Slot Implemented"),
            Bits(23, 20, RO, "Device Type", 9),
            Bits(19, 16, RO, "Capability Version", 2),
            Bits(15, 8, RO, "Next Capability Pointer", 0x80),
            Bits(7, 0, RO, "Capability ID", 0x10),
        ),
    )
    yield Row(
        "DEVCAP",
        "C",
        0x44,
        4,
        (
            Bits(31, 29, RSVD),
            Bits(28, 28, RO, "Function Level Reset Capability", 1),
            Bits(27, 16, RSVD),
            Bits(15, 15, RO, "Role-Based Error Reporting", 1),
            Bits(14, 12, RSVD),
            Bits(11, 9, RO, "Endpoint L1 Acceptable Latency"),
            Bits(8, 6, RO, "Endpoint L0s Acceptable Latency"),
            Bits(5, 5, RO, "Extended Tag Field Supported", 1),
            Bits(4, 3, RO, "Phantom Functions Supported"),
            Bits(2, 0, RO, "Max Payload Size Supported"),
        ),
    )
    yield Row(
        "DEVCTL",
        "C",
        DEVCTL,
        2,
        (
            Bits(15, 15, RO, "Initiate Function Level Reset"),  # read as 0
            Bits(14, 12, RW, "Max Read Request Size", 2),
            Bits(11, 11, RW, "Enable No Snoop", 1),
            Bits(10, 9, RSVD),
            Bits(8, 8, RW, "Extended Tag Field Enable", 1),
            Bits(7, 5, RO, "Max Payload Size"),
            Bits(4, 4, RW, "Enable Relaxed Ordering", 1),
            Bits(3, 3, RW, "Unsupported Request Reporting Enable"),
            Bits(2, 2, RW, "Fatal Error Reporting Enable"),
            Bits(1, 1, RW, "Non-Fatal Error Reporting Enable"),
            Bits(0, 0, RW, "Correctable Error Reporting Enable"),
        ),
    )
    yield Row(
        "DEVSTS",
        "C",
        DEVCTL + 2,
        2,
        (
            Bits(15, 6, RSVD),
            Bits(5, 5, RO, "Transactions Pending"),
            Bits(4, 4, RSVD),
            Bits(3, 3, W1C, "Unsupported Request Detected"),
            Bits(2, 2, W1C, "Fatal Error Detected"),
            Bits(1, 1, W1C, "Non-fatal Error Detected"),
            Bits(0, 0, W1C, "Correctable Error Detected"),
        ),
    )
    yield Row("link, slot and root", "PCIe 7.5.3", 0x4C, 0x18, (Bits(191, 0, RSVD),))
    yield Row(
        "DEVCAP2",
        "C",
        0x64,
        4,
        (
            Bits(31, 31, RSVD),
            Bits(30, 29, RO, "DMWr Lengths Supported"),
            Bits(28, 28, RO, "DMWr Completer Supported", 1),
            Bits(27, 24, RSVD),
            Bits(23, 22, RO, "Max End-End TLP Prefixes", 1),
            Bits(21, 21, RO, "End-End TLP Prefix Supported", 1),
            Bits(20, 20, RO, "Extended Fmt Field Supported", 1),
            Bits(19, 18, RSVD),
            Bits(17, 17, RO, "Ten-Bit Tag Requester Supported", 1),
            Bits(16, 16, RO, "Ten-Bit Tag Completer Supported", 1),
            Bits(15, 12, RSVD),
            Bits(11, 11, RO, "LTR Mechanism Supported", 0),
            Bits(10, 5, RSVD),
            Bits(4, 4, RO, "Completion Timeout Disable Supported", 1),
            Bits(3, 0, RO, "Completion Timeout Ranges Supported"),
        ),
    )
    yield Row(
        "DEVCTL2",
        "C",
        0x68,
        2,
        (
            Bits(15, 13, RSVD),
            Bits(12, 12, RW, "Ten-Bit Tag Requester Enable"),
            Bits(11, 11, RSVD),
            Bits(10, 10, RO, "LTR Mechanism Enable"),  # there is none
            Bits(9, 5, RSVD),
            Bits(4, 4, RW, "Completion Timeout Disable"),
            Bits(3, 0, RO, "Completion Timeout Value"),
        ),
    )
    yield Row("DEVSTS2, link 2 and slot 2", "PCIe 7.5.3", 0x6A, 0x12, (Bits(143, 0, RSVD),))


def _msix(shape: Shape) -> Iterator[Row]:
    yield Row(
        "MSIXCAPLST, MSIXMSGCTL",
        "C",
        0x80,
        4,
        (
            Bits(31, 31, RW, "MSI-X Enable"),
            Bits(30, 30, RW, "Function Mask"),
            Bits(29, 27, RSVD),
            Bits(26, 16, RO, "Table Size", shape.wqs),
            Bits(15, 8, RO, "Next Capability Pointer", 0x90),
            Bits(7, 0, RO, "Capability ID", 0x11),
        ),
    )
    for name, at, offset in (("MSIXTBL", 0x84, 0x4000), ("MSIXPBA", 0x88, 0x5000)):
        place = (Bits(31, 3, RO, "Offset", offset >> 3), Bits(2, 0, RO, "BIR", 0))
        yield Row(name, "C", at, 4, place)


def _power() -> Iterator[Row]:
    yield Row(
        "PMCAP",
        "C",
        0x90,
        4,
        (
            Bits(31, 27, RSVD),
            Bits(26, 26, RO, "D2 Support"),
            Bits(25, 25, RO, "D1 Support"),
            Bits(24, 19, RSVD),
            Bits(18, 16, RO, "Version", 3),
            Bits(15, 8, RO, "Next Capability Pointer", 0),
            Bits(7, 0, RO, "Capability ID", 0x01),
        ),
    )
    yield Row(
        "PMCSR",
        "C",
        PMCSR,
        4,
        (
            Bits(31, 4, RSVD),
            Bits(3, 3, RO, "No Soft Reset", 1),
            Bits(2, 2, RSVD),
            Bits(1, 0, RW, "Power State"),
        ),
    )


def _extended(shape: Shape) -> Iterator[Row]:
    yield Row(
        "channel",
        "PCIe 7.9.5",
        0x100,
        16,
        (
            Bits(127, 96, RO, "Offset", 0x4000 * shape.wqs),
            Bits(95, 64, RO, "BAR", 2),
            Bits(63, 52, RO, "VSEC Length", 16),
            Bits(51, 48, RO, "VSEC Rev", 0),
            Bits(47, 32, RO, "VSEC ID", 1),
            Bits(31, 20, RO, "Next Capability Offset", 0x230),
            Bits(19, 16, RO, "Capability Version", 1),
            Bits(15, 0, RO, "Capability ID", 0x0B),
        ),
    )
    yield Row(
        "PASIDEXTCAP",
        "C",
        0x230,
        4,
        (
            Bits(31, 20, RO, "Next Capability Offset", 0),
            Bits(19, 16, RO, "Capability Version", 1),
            Bits(15, 0, RO, "Capability ID", 0x1B),
        ),
    )
    yield Row(
        "PASIDCAP",
        "C",
        0x234,
        2,
        (
            Bits(15, 13, RSVD),
            Bits(12, 8, RO, "Max PASID Width", 20),
            Bits(7, 3, RSVD),
            Bits(2, 2, RO, "Privileged Mode Supported", 1),
            Bits(1, 1, RO, "Execute Permission Supported", 0),
            Bits(0, 0, RSVD),
        ),
    )
    yield Row(
        "PASIDCTL",
        "C",
        0x236,
        2,
        (
            Bits(15, 3, RSVD),
            Bits(2, 2, RW, "Privileged Mode Enable"),
            Bits(1, 1, RO, "Execute Permission Enable"),
            Bits(0, 0, RW, "PASID Enable"),
        ),
    )
