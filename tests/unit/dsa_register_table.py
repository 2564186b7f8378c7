"""Chapter 9 of the DSA architecture specification (341204-006, revision 3.0) as a table.

Typed from the specification: nothing here comes from the device's own declarations, so that they
can be wrong. Each row has all bits of a register, the reserved ones among them; the bytes that no
row has are in ``gaps``.

Where the specification leaves it to the implementation, this is what was chosen:

* Table offsets are those of figure 9-1 and there are 64 bytes of WQCFG.
* What belongs to an event log, inter-domain operations, WQ occupancy interrupts and PRS of single
  WQs is reserved, as the capability bits are 0; WQ PRS Disable is hardwired to 0 (9.2.24), and no
  bit of CMDPARAM is implemented (9.2.20).
* There are 16 read buffers for each engine.
* OPCFG has the bits of all operations that the specification defines, as Enable WQ checks it
  against OPCAP (5.2); the others are read as 0 (9.2.24).
* There are 8 event counters of 48 bits, all alike, which cannot be written while they are enabled.
  The PASID filter of version 2 has 22 bits (9.2.25.8), of which all are 1 to begin with (in table
  9-3 they are 24).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

BAR0_SIZE = 0x10000
COMMAND = range(0xA0, 0xA4)
"""CMD: what is written there does something."""
PERFMON = 0x1000
PERFRST = range(PERFMON + 0x10, PERFMON + 0x14)
"""So it does there."""
COUNTERS = 8

# Table 8-2: what is left out is reserved.
DEFINED_OPERATIONS = [*range(0x0B), *range(0x10, 0x16), *range(0x17, 0x1F), 0x20, 0x21]
DEFINED_OPERATIONS += range(0x23, 0x27)
# No-op to Dualcast, CRC, DIF, Cache Flush.
SUPPORTED_OPERATIONS = [*range(0x0A), *range(0x10, 0x16), 0x20]
# Enable Device to Release Interrupt Handle (table 9-5).
SUPPORTED_COMMANDS = list(range(1, 15))


class Attr(Enum):
    """Table 9-1. UNUSED is what chapter 9 calls so: read-only and, here, 0."""

    RO = "RO"
    RW = "RW"
    RWL = "RWL"
    W1C = "RW1C"
    WO = "WO"
    RSVD = "RSVD"
    UNUSED = "unused"


class Lock(Enum):
    """When RWL is read-only (tables 9-4, 9-7 and 9-8)."""

    DEVICE = "while the device is not Disabled"
    WQ = "while the WQ is not Disabled"
    COUNTER = "while the counter is enabled"


RO, RW, RWL, W1C, WO = Attr.RO, Attr.RW, Attr.RWL, Attr.W1C, Attr.WO
RSVD, UNUSED = Attr.RSVD, Attr.UNUSED


@dataclass(frozen=True)
class Bits:
    """A field. ``reset`` is its value after power-on and function-level reset."""

    high: int
    low: int
    attr: Attr
    name: str = ""
    reset: int = 0
    lock: Lock | None = None

    @property
    def mask(self) -> int:
        return (1 << self.high + 1) - (1 << self.low)


@dataclass(frozen=True)
class Row:
    """``size`` bytes at ``offset``. ``wq`` or ``counter``: of this one. ``kept``: Reset Device
    leaves it as it is (table 9-3)."""

    name: str
    section: str
    offset: int
    size: int
    bits: tuple[Bits, ...]
    wq: int | None = None
    counter: int | None = None
    kept: bool = False


@dataclass(frozen=True)
class Shape:
    """What a VDEV of a type has, made by a parent as it is without properties."""

    wqs: int
    entries: int
    shared: bool
    dedicated: bool
    generation: int = 2

    @property
    def groups(self) -> int:
        return self.wqs

    engines = groups

    @property
    def read_buffers(self) -> int:
        return 16 * self.engines


SHAPES = {
    "dsa-1dwq": Shape(1, 32, shared=False, dedicated=True),
    "dsa-1swq": Shape(1, 64, shared=True, dedicated=False),
    "dsa-2dwq-1swq": Shape(3, 128, shared=True, dedicated=True),
    "dsa-dynamic": Shape(4, 128, shared=True, dedicated=True),
}


def rows(shape: Shape) -> list[Row]:
    """All registers of BAR0."""
    return [*_registers(shape), *_tables(shape), *_perfmon(shape), *_msix(shape)]


def gaps(shape: Shape) -> list[range]:
    """Bytes without a register: they read 0 and ignore writes."""
    tables = {
        0x400: 8 * (shape.wqs + 1),
        0x600: 64 * shape.groups,
        0x800: 64 * shape.wqs,
        PERFMON: 0x08,
        PERFRST.start: 4,
        PERFMON + 0x20: 4,
        PERFMON + 0x30: 4,
        PERFMON + 0x80: 8 * len(EVENTS),
        PERFMON + 0x100: 8 * COUNTERS,
        PERFMON + 0x200: 8 * COUNTERS,
        **{PERFMON + 0x300 + 0x20 * counter: 0x18 for counter in range(COUNTERS)},
        0x4000: 16 * (shape.wqs + 1),
        0x5000: 8,
    }
    ends = [at + size for at, size in tables.items()]
    starts = [*list(tables)[1:], BAR0_SIZE]
    between = [range(end, start) for end, start in zip(ends, starts, strict=True)]
    return [
        *(range(at, at + 8) for at in (0x08, 0x18, 0x28, 0x70, 0x78, 0xB8, 0xF8)),
        *(range(at + 4, at + 8) for at in (0x00, 0x80, 0x88, 0x90, 0x98, 0xA0, 0xA8)),
        range(0x100, 0x180),  # IDCAP and IDBR are not there without Inter-Domain Support
        range(0x198, 0x400),
        *between,  # so are the tables of IMS and IDPT, CMDPARAM; and the dummy portal (9.2.21)
    ]


def _flags(codes: list[int]) -> int:
    return sum(1 << code for code in codes)


def _registers(shape: Shape) -> Iterator[Row]:
    second = int(shape.generation >= 2)
    yield Row(
        "VERSION",
        "9.2.1",
        0x00,
        4,
        (
            Bits(31, 16, UNUSED),
            Bits(15, 8, RO, "Major version", shape.generation),
            Bits(7, 0, RO, "Minor version", 0),
        ),
    )
    yield Row(
        "GENCAP",
        "9.2.2",
        0x10,
        8,
        (
            Bits(63, 55, UNUSED),
            Bits(54, 54, RO, "Strict Ordering Limitation for Peer Destinations", 0),
            Bits(53, 53, RO, "Strict Ordering Limitation for Memory Destinations", 0),
            Bits(52, 52, RO, "Batch1 Support", 0),
            Bits(51, 33, UNUSED),
            Bits(32, 32, RO, "Event Log Overflow Support", 0),
            Bits(31, 31, RO, "Configuration Support", 1),
            Bits(30, 25, RO, "Interrupt Message Storage Size", 0),
            Bits(24, 21, RO, "Maximum Supported Batch Size", 15),
            Bits(20, 16, RO, "Maximum Supported Transfer Size", 31),
            Bits(15, 15, RO, "Batch Continuation Support", 0),
            Bits(14, 13, RO, "Event Log Support", 0),
            Bits(12, 12, RO, "Completion Record Fault Info Support", second),
            Bits(11, 11, RO, "CRC64 Support", 0),
            Bits(10, 10, RO, "Fill16 Support", 0),
            Bits(9, 9, RO, "Drain Descriptor Readback Address Support", 1),
            Bits(8, 8, RO, "Destination Readback Support", 1),
            Bits(7, 7, RO, "Translation Fetch Stride Support", 0),
            Bits(6, 6, RO, "Inter-Domain Support", 0),
            Bits(5, 5, RO, "Durable Write Support", 0),
            Bits(4, 4, RO, "Command Capabilities Support", 1),
            Bits(3, 3, UNUSED),
            Bits(2, 2, RO, "Cache Control Support", 1),
            Bits(1, 1, RO, "Overlapping Copy Support", 1),
            Bits(0, 0, RO, "Block on Fault Support", 1),
        ),
    )
    yield Row(
        "WQCAP",
        "9.2.3",
        0x20,
        8,
        (
            Bits(63, 56, UNUSED),
            Bits(55, 55, RO, "WQ PRS Support", 0),
            Bits(54, 54, RO, "WQ Operations Configuration Support", second),
            Bits(53, 53, RO, "WQ Occupancy Interrupt Support", 0),
            Bits(52, 52, RO, "WQ Occupancy Support", 1),
            Bits(51, 51, RO, "WQ Priority Support", 1),
            Bits(50, 50, RO, "WQ ATS Support", 1),
            Bits(49, 49, RO, "Dedicated Mode Support", int(shape.dedicated)),
            Bits(48, 48, RO, "Shared Mode Support", int(shape.shared)),
            Bits(47, 28, UNUSED),
            Bits(27, 24, RO, "WQCFG Size", 1),
            Bits(23, 16, RO, "Number of WQs", shape.wqs),
            Bits(15, 0, RO, "Total WQ Size", shape.entries),
        ),
    )
    yield Row(
        "GRPCAP",
        "9.2.4",
        0x30,
        8,
        (
            Bits(63, 20, UNUSED),
            Bits(19, 19, RO, "Bandwidth Limit Support", 0),
            Bits(18, 18, RO, "Descriptors in Progress Limit Supported", 0),
            Bits(17, 17, RO, "Global Read Buffer Limit Supported", 1),
            Bits(16, 16, RO, "Read Buffer Controls Supported", 1),
            Bits(15, 8, RO, "Total Read Buffers", shape.read_buffers),
            Bits(7, 0, RO, "Number of Groups", shape.groups),
        ),
    )
    yield Row(
        "ENGCAP",
        "9.2.5",
        0x38,
        8,
        (
            Bits(63, 24, UNUSED),
            Bits(23, 16, RO, "Maximum Batch Descriptors in Progress", 0),
            Bits(15, 8, RO, "Maximum Work Descriptors in Progress", 0),
            Bits(7, 0, RO, "Number of Engines", shape.engines),
        ),
    )
    operations = Bits(255, 0, RO, "Operations", _flags(SUPPORTED_OPERATIONS))
    yield Row("OPCAP", "9.2.6", 0x40, 32, (operations,))
    yield Row(
        "OFFSETS",
        "9.2.7",
        0x60,
        16,
        (
            Bits(127, 96, UNUSED),
            Bits(95, 80, RO, "Inter-Domain Permissions Table Offset", 0),
            Bits(79, 64, RO, "Perfmon Offset", PERFMON >> 8),
            Bits(63, 48, RO, "IMS Offset", 0),
            Bits(47, 32, RO, "MSI-X Permissions Offset", 4),
            Bits(31, 16, RO, "WQ Configuration Offset", 8),
            Bits(15, 0, RO, "Group Configuration Offset", 6),
        ),
    )
    yield Row(
        "GENCFG",
        "9.2.8",
        0x80,
        4,
        (
            Bits(31, 14, RSVD),
            Bits(13, 13, RSVD, "Event Log Enable"),
            Bits(12, 12, RWL, "User-mode Interrupts Enable", lock=Lock.DEVICE),
            Bits(11, 8, RSVD),
            Bits(7, 0, RWL, "Global Read Buffer Limit", shape.read_buffers, Lock.DEVICE),
        ),
    )
    yield Row(
        "GENCTRL",
        "9.2.9",
        0x88,
        4,
        (
            Bits(31, 3, RSVD),
            Bits(2, 2, RSVD, "Event Log Interrupt Enable"),
            Bits(1, 1, RW, "Halt State Interrupt Enable"),
            Bits(0, 0, RW, "Software Error Interrupt Enable"),
        ),
    )
    yield Row(
        "GENSTS",
        "9.2.10",
        0x90,
        4,
        (
            Bits(31, 4, UNUSED),
            Bits(3, 2, RO, "Reset Type Required"),
            Bits(1, 0, RO, "Device State"),
        ),
    )
    yield Row(
        "INTCAUSE",
        "9.2.11",
        0x98,
        4,
        (
            Bits(31, 31, W1C, "Interrupt Handles Revoked"),
            Bits(30, 6, RSVD),
            Bits(5, 5, W1C, "Event Log"),
            Bits(4, 4, W1C, "Halt State"),
            Bits(3, 3, W1C, "Perfmon Counter Overflow"),
            Bits(2, 2, W1C, "WQ Occupancy Below Limit"),
            Bits(1, 1, W1C, "Command Completion"),
            Bits(0, 0, W1C, "Software Error"),
        ),
    )
    yield Row(
        "CMD",
        "9.2.12",
        COMMAND.start,
        4,
        (
            Bits(31, 31, WO, "Request Completion Interrupt"),
            Bits(30, 25, RSVD),
            Bits(24, 20, WO, "Command Code"),
            Bits(19, 0, WO, "Operand"),
        ),
        kept=True,
    )
    yield Row(
        "CMDSTATUS",
        "9.2.13",
        0xA8,
        4,
        (
            Bits(31, 31, RO, "Active"),
            Bits(30, 24, RSVD),
            Bits(23, 8, RO, "Command Result"),
            Bits(7, 0, RO, "Error Code"),
        ),
        kept=True,
    )
    commands = Bits(63, 0, RO, "Commands", _flags(SUPPORTED_COMMANDS))
    yield Row("CMDCAP", "9.2.14", 0xB0, 8, (commands,))
    yield Row(
        "SWERROR",
        "9.2.15",
        0xC0,
        32,
        (
            Bits(255, 192, UNUSED),
            Bits(191, 128, RO, "Address"),
            Bits(127, 96, RO, "Error Information"),
            Bits(95, 80, UNUSED),
            Bits(79, 64, RO, "Batch Index"),
            Bits(63, 60, UNUSED),
            Bits(59, 40, RO, "PASID"),
            Bits(39, 32, RO, "Operation"),
            Bits(31, 24, UNUSED),
            Bits(23, 16, RO, "WQ Index"),
            Bits(15, 8, RO, "Error code"),
            Bits(7, 7, RO, "Error Information Valid"),
            Bits(6, 6, RO, "Priv"),
            Bits(5, 5, RO, "R/W"),
            Bits(4, 4, RO, "Batch Member"),
            Bits(3, 3, RO, "WQ Index Valid"),
            Bits(2, 2, RO, "Descriptor Valid"),
            Bits(1, 1, W1C, "Overflow"),
            Bits(0, 0, W1C, "Valid"),
        ),
        kept=True,
    )
    yield Row("EVLCFG", "9.2.16", 0xE0, 16, (Bits(127, 0, RSVD),))
    yield Row("EVLSTATUS", "9.2.17", 0xF0, 8, (Bits(63, 0, RSVD),))
    for index in range(3):  # no scatter-gather, no data conversion: no capability of theirs
        none = (Bits(63, 0, RO, "Capabilities", 0),)
        yield Row(f"DSACAP{index}", f"9.2.{30 + index}", 0x180 + 8 * index, 8, none)


def _tables(shape: Shape) -> Iterator[Row]:
    for entry in range(shape.wqs + 1):
        yield Row(
            f"MSIXPERM[{entry}]",
            "9.2.22",
            0x400 + 8 * entry,
            8,
            (
                Bits(63, 32, RSVD),
                Bits(31, 12, RW, "PASID"),
                Bits(11, 4, RSVD),
                Bits(3, 3, RW, "PASID Enable"),
                Bits(2, 2, RW, "Ignore"),
                Bits(1, 0, RSVD),
            ),
        )
    for group in range(shape.groups):
        at, lock = 0x600 + 64 * group, Lock.DEVICE
        yield Row(
            f"GRPWQCFG[{group}]",
            "9.2.23",
            at,
            32,
            (
                Bits(255, shape.wqs, RSVD),
                Bits(shape.wqs - 1, 0, RWL, "WQs", lock=lock),
            ),
        )
        yield Row(
            f"GRPENGCFG[{group}]",
            "9.2.23",
            at + 32,
            8,
            (
                Bits(63, shape.engines, RSVD),
                Bits(shape.engines - 1, 0, RWL, "Engines", lock=lock),
            ),
        )
        yield Row(
            f"GRPFLAGS[{group}]",
            "9.2.23",
            at + 40,
            8,
            (
                Bits(63, 48, RSVD),
                Bits(47, 44, RSVD, "Write Bandwidth Limit"),
                Bits(43, 40, RSVD, "Read Bandwidth Limit"),
                Bits(39, 38, RSVD),
                Bits(37, 36, RSVD, "Batch Descriptors in Progress Limit"),
                Bits(35, 34, RSVD),
                Bits(33, 32, RSVD, "Work Descriptors in Progress Limit"),
                Bits(31, 28, RSVD),
                Bits(27, 20, RWL, "Read Buffers Allowed", shape.read_buffers, lock),
                Bits(19, 16, RSVD),
                Bits(15, 8, RWL, "Read Buffers Reserved", lock=lock),
                Bits(7, 7, RWL, "Use Global Read Buffer Limit", lock=lock),
                Bits(6, 6, RSVD),
                Bits(5, 3, RWL, "TC-B", lock=lock),
                Bits(2, 0, RWL, "TC-A", lock=lock),
            ),
        )
        yield Row(f"GRPCFG[{group}] beyond its registers", "9.2.23", at + 48, 16, (RSVD_16,))
    for wq in range(shape.wqs):
        yield _wqcfg(shape, wq)


RSVD_16 = Bits(127, 0, RSVD)


def _wqcfg(shape: Shape, wq: int) -> Row:
    lock = Lock.WQ
    bits = [
        Bits(255, 224, RSVD),
        Bits(223, 222, RO, "WQ State"),
        Bits(221, 221, RO, "WQ Mode Support"),
        Bits(220, 209, RSVD),
        Bits(208, 208, RSVD, "WQ Occupancy Interrupt Generated"),
        Bits(207, 192, RO, "WQ Occupancy"),
        Bits(191, 177, RSVD),
        Bits(176, 176, RSVD, "WQ Occupancy Interrupt Enable"),
        Bits(175, 160, RSVD, "WQ Occupancy Limit"),
        Bits(159, 145, RSVD),
        Bits(144, 144, RSVD, "WQ Occupancy Interrupt Table"),
        Bits(143, 128, RSVD, "WQ Occupancy Interrupt Handle"),
        Bits(127, 109, RSVD),
        Bits(108, 105, RSVD, "WQ Maximum SGL Size"),
        Bits(104, 101, RWL, "WQ Maximum Batch Size", lock=lock),
        Bits(100, 96, RWL, "WQ Maximum Transfer Size", lock=lock),
        Bits(95, 94, RSVD),
        Bits(93, 93, RWL, "WQ Priv", lock=lock),
        Bits(92, 92, RWL, "WQ PASID Enable", lock=lock),
        Bits(91, 72, RWL, "WQ PASID", lock=lock),
        Bits(71, 68, RWL, "WQ Priority", lock=lock),
        Bits(67, 67, RSVD, "WQ PRS Disable"),
        Bits(66, 66, RWL, "WQ ATS Disable", lock=lock),
        Bits(65, 65, RWL, "WQ Block on Fault Enable", lock=lock),
        Bits(64, 64, RWL, "WQ Mode", lock=lock),
        Bits(63, 48, RSVD),
        Bits(47, 32, RW, "WQ Threshold"),
        Bits(31, 16, RSVD),
        Bits(15, 0, RWL, "WQ Size", lock=Lock.DEVICE),
    ]
    for code in range(256):
        attr, reset = RSVD, 0
        if shape.generation >= 2 and code in DEFINED_OPERATIONS:
            attr, reset = RWL, int(code in SUPPORTED_OPERATIONS)
        used = lock if attr is RWL else None
        bits.append(Bits(256 + code, 256 + code, attr, f"OPCFG {code:#04x}", reset, used))
    return Row(f"WQCFG[{wq}]", "9.2.24", 0x800 + 64 * wq, 64, tuple(bits), wq=wq)


# Appendix D: work queue, engine, address translation, operations, completions. Of version 2 are
# EV_WQ_DISCARD, EV_NUM_READ2 and EV_NUM_WRITE2 (D.1.2).
EVENTS = (0x7F, 0x63F, 0, 0x1FFFF, 0x3D)
EVENTS_OF_VERSION_2 = (0x40, 0x600, 0, 0, 0)


def _perfmon(shape: Shape) -> Iterator[Row]:
    second = shape.generation >= 2
    yield Row(
        "PERFCAP",
        "9.2.25.1",
        PERFMON,
        8,
        (
            Bits(63, 56, UNUSED),
            Bits(55, 55, RO, "Interrupt on Overflow Support", 1),
            Bits(54, 54, RO, "Counter Freeze Support", 1),
            Bits(53, 53, RO, "Counters Writeable While Enabled", 0),
            Bits(52, 52, RO, "Per Counter Capabilities Supported", 0),
            Bits(51, 44, UNUSED),
            Bits(43, 36, RO, "Filters Supported", 0x3F if second else 0x1F),
            Bits(35, 20, RO, "Global Event Categories Supported", 0b11011),
            Bits(19, 16, RO, "Number of Event Categories Supported", len(EVENTS)),
            Bits(15, 8, RO, "Counter Width", 48),
            Bits(7, 6, UNUSED),
            Bits(5, 0, RO, "Number of Counter Registers", COUNTERS),
        ),
    )
    reset = (
        Bits(31, 2, RSVD),
        Bits(1, 1, WO, "Reset Perfmon Counters"),
        Bits(0, 0, WO, "Reset Perfmon Configuration"),
    )
    yield Row("PERFRST", "9.2.25.4", PERFRST.start, 4, reset)
    for name, section, at, attr in (
        ("PERFFRZ", "9.2.25.6", 0x20, RW),
        ("OVFSTATUS", "9.2.25.5", 0x30, W1C),
    ):
        bits = (Bits(31, COUNTERS, RSVD), Bits(COUNTERS - 1, 0, attr, "Counters"))
        yield Row(name, section, PERFMON + at, 4, bits)
    for category, (events, later) in enumerate(zip(EVENTS, EVENTS_OF_VERSION_2, strict=True)):
        can = Bits(27, 0, RO, "Events", events if second else events & ~later)
        at = PERFMON + 0x80 + 8 * category
        yield Row(f"EVNTCAP[{category}]", "9.2.25.2", at, 8, (Bits(63, 28, RSVD), can))
    for counter in range(COUNTERS):
        yield from _counter(counter, second)


def _counter(counter: int, second: bool) -> Iterator[Row]:
    lock = Lock.COUNTER

    def row(name: str, section: str, at: int, size: int, *bits: Bits) -> Row:
        label = f"{name}[{counter}]"
        return Row(label, section, PERFMON + at, size, bits, counter=counter)

    yield row(
        "CNTRCFG",
        "9.2.25.7",
        0x100 + 8 * counter,
        8,
        Bits(63, 60, RSVD),
        Bits(59, 32, RWL, "Events", lock=lock),
        Bits(31, 12, RSVD),
        Bits(11, 8, RWL, "Event Category", lock=lock),
        Bits(7, 3, RSVD),
        Bits(2, 2, RWL, "Global Freeze on Overflow", lock=lock),
        Bits(1, 1, RWL, "Interrupt on Overflow", lock=lock),
        Bits(0, 0, RW, "Enable"),
    )
    value = Bits(47, 0, RWL, "Event Count Value", lock=lock)
    yield row("CNTRDATA", "9.2.25.9", 0x200 + 8 * counter, 8, Bits(63, 48, RSVD), value)
    for number, name in enumerate(("WQ", "TC", "PGSZ", "SZ", "ENG")):
        picked = Bits(15, 0, RWL, "Filter Value", 0xFFFF, lock=lock)
        at = 0x300 + 32 * counter + 4 * number
        yield row(f"FLTCFG_{name}", "9.2.25.8", at, 4, Bits(31, 16, RSVD), picked)
    picked = Bits(21, 0, RWL, "Filter Value", 0x3FFFFF, lock=lock)
    if not second:
        picked = Bits(21, 0, RSVD)
    yield row("FLTCFG_PASID", "9.2.25.8", 0x314 + 32 * counter, 4, Bits(31, 22, RSVD), picked)


def _msix(shape: Shape) -> Iterator[Row]:
    """PCI Express base specification 5.0, 7.7.2.5 to 7.7.2.9."""
    for entry in range(shape.wqs + 1):
        yield Row(
            f"MSI-X[{entry}]",
            "9.2.26",
            0x4000 + 16 * entry,
            16,
            (
                Bits(127, 97, RSVD),
                Bits(96, 96, RW, "Mask", 1),
                Bits(95, 64, RW, "Message Data"),
                Bits(63, 2, RW, "Message Address"),
                Bits(1, 0, RO, "Message Address", 0),
            ),
            kept=True,
        )
    yield Row("MSI-X pending", "9.2.27", 0x5000, 8, (Bits(63, 0, RO, "Pending"),))
