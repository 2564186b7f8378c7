"""The controller's registers (NVM Express 1.4, 3.1) and where things are in BAR0."""

from __future__ import annotations

from typing import Final

from vdcm import Access, Field, Register, RegisterMap
from vdcm_devices.nvme.codes import VERSION, Shutdown

RO, RW, W1C, WO = Access.RO, Access.RW, Access.W1C, Access.WO

PAGE: Final = 0x1000
DOORBELLS: Final = 0x1000
"""The page of the doorbells, and nothing else: it may be mapped (3.1.24)."""
MSIX_TABLE: Final = 0x2000
MSIX_PENDING: Final = 0x3000
BAR0_SIZE: Final = 0x4000
MOST_QUEUES: Final = 64
"""I/O queue pairs; with the admin queue's doorbells theirs fill a part of the page."""
SUBSYSTEM_RESET: Final = 0x4E564D65
"""What is written to NSSR: "NVMe" (3.1.7)."""
LONGEST_PAGE_SHIFT: Final = 4
"""Memory pages of the host are 4 KiB to 64 KiB (CAP.MPSMAX)."""


class NvmeRegisters(RegisterMap, size=0xE20):
    """Registers of what is not there, a controller memory buffer and boot partitions above all,
    read as 0, which says so."""

    CAP = Register(
        0x00,
        64,
        RO,
        fields={
            "MQES": Field(0, 16, doc="Entries of the longest queue, less one."),
            "CQR": Field(16, reset=1, doc="Queues are in one piece."),
            "AMS": Field(17, 2),
            "TO": Field(24, 8, reset=20, doc="Units of 500 ms until ready."),
            "DSTRD": Field(32, 4),
            "NSSRS": Field(36, reset=1),
            "CSS": Field(37, 8, reset=1, doc="The NVM command set."),
            "MPSMIN": Field(48, 4),
            "MPSMAX": Field(52, 4, reset=LONGEST_PAGE_SHIFT),
        },
        doc="Capabilities (3.1.1).",
    )
    VS = Register(0x08, 32, RO, VERSION, doc="Version (3.1.2).")
    INTMS = Register(0x0C, 32, doc="Interrupt mask set; not for MSI-X (3.1.3).")
    INTMC = Register(0x10, 32, doc="Interrupt mask clear (3.1.4).")
    CC = Register(
        0x14,
        32,
        fields={
            "EN": Field(0),
            "CSS": Field(4, 3),
            "MPS": Field(7, 4),
            "AMS": Field(11, 3),
            "SHN": Field(14, 2),
            "IOSQES": Field(16, 4),
            "IOCQES": Field(20, 4),
        },
        doc="Configuration (3.1.5).",
    )
    CSTS = Register(
        0x1C,
        32,
        RO,
        fields={
            "RDY": Field(0),
            "CFS": Field(1),
            "SHST": Field(2, 2, values=Shutdown),
            "NSSRO": Field(4, access=W1C),
            "PP": Field(5),
        },
        doc="Status (3.1.6).",
    )
    NSSR = Register(0x20, 32, WO, doc="NVM subsystem reset (3.1.7).")
    AQA = Register(
        0x24,
        32,
        fields={"ASQS": Field(0, 12), "ACQS": Field(16, 12)},
        doc="Entries of the admin queues, less one (3.1.8).",
    )
    ASQ = Register(
        0x28, 64, fields={"BASE": Field(12, 52)}, doc="Address of the admin submission queue."
    )
    ACQ = Register(
        0x30, 64, fields={"BASE": Field(12, 52)}, doc="Address of the admin completion queue."
    )
    CMBLOC = Register(0x38, 32, RO, doc="There is no controller memory buffer (3.1.11).")
    CMBSZ = Register(0x3C, 32, RO, doc="Its size, so 0 (3.1.12).")
    BPINFO = Register(0x40, 32, RO, doc="There are no boot partitions (3.1.13).")
    BPRSEL = Register(0x44, 32, RO, doc="What of them to read (3.1.14).")
    BPMBL = Register(0x48, 64, RO, doc="And where to (3.1.15).")
    CMBMSC = Register(0x50, 64, RO, doc="Where the host sees the memory buffer (3.1.16).")
    CMBSTS = Register(0x58, 32, RO, doc="Its status (3.1.17).")
    CRTO = Register(
        0x68, 32, RO, doc="Later versions' timeouts: those of CAP are meant (2.0, 3.1.3)."
    )
    PMRCAP = Register(0xE00, 32, RO, doc="There is no persistent memory region (3.1.18).")
    PMRCTL = Register(0xE04, 32, RO, doc="Its control (3.1.19),")
    PMRSTS = Register(0xE08, 32, RO, doc="status (3.1.20),")
    PMREBS = Register(0xE0C, 32, RO, doc="buffer size (3.1.21),")
    PMRSWTP = Register(0xE10, 32, RO, doc="write throughput (3.1.22)")
    PMRMSCL = Register(0xE14, 32, RO, doc="and address, the lower half (3.1.23)")
    PMRMSCU = Register(0xE18, 32, RO, doc="and the upper one.")
