"""Tables 5-8, 9-5 and 9-7 of the DSA architecture specification (341204-006, revision 3.0): the
administrative commands, what they answer, and what provokes each answer.

Typed from the specification, as dsa_register_table.py is. A case begins with a VDEV of type
``dsa-2dwq-1swq`` unless it says otherwise, in one of ``STARTS``.
"""

from __future__ import annotations

from dataclasses import dataclass

STARTS = ("configured", "enabled", "running", "halted")
"""All is ready for Enable Device; the device is enabled; its WQs are; it is halted."""

NAMES = {
    1: "Enable Device",
    2: "Disable Device",
    3: "Drain All",
    4: "Abort All",
    5: "Reset Device",
    6: "Enable WQ",
    7: "Disable WQ",
    8: "Drain WQ",
    9: "Abort WQ",
    10: "Reset WQ",
    11: "Drain PASID",
    12: "Abort PASID",
    13: "Request Interrupt Handle",
    14: "Release Interrupt Handle",
    15: "Request IDPT Handle",
    16: "Release IDPT Handle",
    17: "Invalidate Submitter Bitmap Cache",
}
SUPPORTED = range(1, 15)
RESERVED_OPERAND = {  # bits of the operand that have to be 0
    **dict.fromkeys((1, 2, 3, 4, 5), 0xFFFFF),
    6: 0xFFF00,
    13: 0xE0000,
    14: 0xE0000,
}

# Error codes by command (table 5-8), and why some of them cannot be provoked here.
CODES = {
    1: [0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1A, 0x1B],
    2: [0x31],
    6: [0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x2A, 0x2B, 0x2C, 0x2D, 0x2E],
    7: [0x32],
    8: [0x32],
    9: [0x32],
    13: [0x41, 0x42],
    14: [0x41],
}
CANNOT_BE = {
    0x11: "unspecified",
    0x13: "there is no PRS capability",
    0x19: "there is no event log",
    0x1A: "there is no ATS capability",
    0x1B: "there is no EVLCFG and no IDBR",
    0x28: "the largest value of WQ Maximum Transfer Size is supported",
    0x2B: "there are no WQ occupancy interrupts",
    0x2C: "WQ ATS Support is 1",
    0x2E: "WQ PRS Disable is hardwired to 0",
}

UNSUPPORTED, WQ_INDEX, HARDWARE, RESERVED, HALTED = 0x01, 0x02, 0x03, 0x04, 0x05
"""Codes of any command (9.2.13)."""


@dataclass(frozen=True)
class Case:
    """``writes``: offset, width and value, to BAR0 before the command; at BUS_MASTER to the
    Command register."""

    why: str
    command: int
    operand: int
    error: int
    start: str = "configured"
    writes: tuple[tuple[int, int, int], ...] = ()
    kind: str = "dsa-2dwq-1swq"


GRPCFG, WQCFG = 0x600, 0x800
WQS, ENGINES = 0, 32  # in an entry of GRPCFG
SIZE, MODE, LIMITS, OPERATIONS = 0, 8, 12, 32  # in an entry of WQCFG
BUS_MASTER = -4


def group(index: int, wqs: int, engines: int) -> tuple[tuple[int, int, int], ...]:
    at = GRPCFG + 64 * index
    return ((at + WQS, 8, wqs), (at + ENGINES, 8, engines))


def wq(index: int, field: int, value: int, width: int = 4) -> tuple[tuple[int, int, int], ...]:
    return ((WQCFG + 64 * index + field, width, value),)


DEDICATED, SHARED = 1 | 5 << 4, 0 | 5 << 4 | 1 << 28 | 1 << 8  # WQ Mode, Priority, PASID 1

CASES = (
    # Enable Device (5.1)
    Case("as it should be", 1, 0, 0),
    Case("it is enabled", 1, 0, 0x10, "enabled"),
    Case("Bus Master Enable is 0", 1, 0, 0x12, writes=((BUS_MASTER, 2, 0x402),)),
    Case("more entries than there are", 1, 0, 0x14, writes=wq(0, SIZE, 97)),
    Case("all entries that there are", 1, 0, 0, writes=wq(0, SIZE, 96)),
    Case("a group of WQs alone", 1, 0, 0x15, writes=group(0, 3, 7) + group(1, 4, 0)),
    Case("a group of engines alone", 1, 0, 0x15, writes=group(0, 7, 3) + group(1, 0, 4)),
    Case("a WQ in two groups", 1, 0, 0x16, writes=group(0, 7, 3) + group(1, 4, 4)),
    Case("an active WQ in no group", 1, 0, 0x16, writes=group(0, 3, 7)),
    Case("an inactive WQ in a group", 1, 0, 0x16, writes=wq(1, SIZE, 0)),
    Case("an engine in two groups", 1, 0, 0x17, writes=group(0, 3, 7) + group(1, 4, 4)),
    Case("fewer read buffers than 4 an engine", 1, 0, 0x18, writes=((GRPCFG + 40, 8, 4 << 20),)),
    Case("an engine in no group", 1, 0, 0, writes=group(0, 7, 1)),
    Case("two groups", 1, 0, 0, writes=group(0, 3, 3) + group(2, 4, 4)),
    Case("an inactive WQ in no group", 1, 0, 0, writes=group(0, 6, 7) + wq(0, SIZE, 0)),
    # Disable Device, Reset Device
    Case("it is disabled", 2, 0, 0x31),
    Case("with WQs", 2, 0, 0, "running"),
    Case("disabled", 5, 0, 0),
    Case("with WQs", 5, 0, 0, "running"),
    # Drain All and Abort All have no error codes
    *(
        Case(f"{start} device", command, 0, 0, start)
        for command in (3, 4)
        for start in ("configured", "enabled", "running")
    ),
    # Enable WQ (5.2)
    Case("as it should be", 6, 2, 0, "enabled"),
    Case("the device is disabled", 6, 0, 0x20),
    Case("there is no such WQ", 6, 3, WQ_INDEX, "enabled"),
    Case("there is no such WQ", 6, 255, WQ_INDEX, "enabled"),
    Case("it is enabled", 6, 0, 0x21, "running"),
    Case("its size is 0", 6, 0, 0x22, "enabled", ()),
    Case("its priority is 0", 6, 0, 0x23, "enabled", wq(0, MODE, 1)),
    Case("there are no shared WQs", 6, 0, 0x24, "enabled", wq(0, MODE, SHARED), "dsa-1dwq"),
    Case("there are no dedicated WQs", 6, 0, 0x24, "enabled", wq(0, MODE, DEDICATED), "dsa-1swq"),
    Case("its ADI is a dedicated WQ", 6, 0, 0x24, "enabled", wq(0, MODE, SHARED)),
    Case("no Block on Fault", 6, 0, 0x25, "enabled", wq(0, MODE, DEDICATED | 1 << 1)),
    Case("a shared WQ without PASID", 6, 2, 0x26, "enabled", wq(2, MODE, 5 << 4)),
    Case("no batches", 6, 0, 0x27, "enabled", wq(0, LIMITS, 20)),
    Case("privileged", 6, 0, 0x2A, "enabled", wq(0, MODE, DEDICATED | 1 << 28 | 1 << 29 | 1 << 8)),
    Case("an operation that OPCAP lacks", 6, 0, 0x2D, "enabled", wq(0, OPERATIONS, 1 << 0xA, 8)),
    Case("no operation", 6, 0, 0, "enabled", wq(0, OPERATIONS, 0, 8)),
    Case("the largest limits", 6, 0, 0, "enabled", wq(0, LIMITS, 31 | 15 << 5)),
    # Disable, Drain, Abort and Reset WQ: a group number and a bitmap
    *(
        case
        for command in (7, 8, 9)
        for case in (
            Case("one", command, 0b001, 0, "running"),
            Case("all", command, 0b111, 0, "running"),
            Case("there is no such WQ", command, 0b1000, WQ_INDEX, "running"),
            Case("there is no such group", command, 0x10001, WQ_INDEX, "running"),
            Case("one of them is disabled", command, 0b001, 0x32, "enabled"),
            Case("the device is disabled", command, 0b001, 0x32),
        )
    ),
    Case("one", 10, 0b001, 0, "running"),
    Case("disabled ones", 10, 0b111, 0, "enabled"),
    Case("of a disabled device", 10, 0b111, 0),
    Case("there is no such WQ", 10, 0b1000, WQ_INDEX, "running"),
    Case("there is no such group", 10, 0xF0001, WQ_INDEX, "running"),
    # Drain PASID and Abort PASID have no error codes
    *(
        Case(why, command, pasid, 0, start)
        for command in (11, 12)
        for why, pasid, start in (
            ("a PASID in use", 1, "running"),
            ("a PASID that is not", 0xFFFFF, "running"),
            ("of a disabled device", 1, "configured"),
        )
    ),
    # Interrupt handles; what is given is in Command Result
    *(
        case
        for command in (13, 14)
        for case in (
            Case("the last entry", command, 3, 0),
            Case("there is no such entry", command, 4, 0x41),
            Case("there is no such entry", command, 0xFFFF, 0x41, "running"),
            Case("there is no IMS", command, 1 << 16, 0x41),
        )
    ),
    # Any command
    *(Case("it is not there", code, 0, UNSUPPORTED) for code in range(32) if code not in SUPPORTED),
    *(
        Case("a reserved bit", command, bit, RESERVED, start)
        for command, bits in RESERVED_OPERAND.items()
        for bit in (bits & -bits, bits & ~(bits >> 1))
        for start in ("configured", "running")
    ),
    *(Case("it is halted", command, 0, HALTED, "halted") for command in SUPPORTED),
)
