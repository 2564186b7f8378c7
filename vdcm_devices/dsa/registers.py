"""The registers of BAR0 (DSA specification 341204, 9.2), and what tells the truth about a VDEV.

How many entries the tables have is the composition's matter, so their class is made for each
composition, once: ``registers_class(capabilities)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from vdcm import Access, BoundRegister, DeclarationError, Field, Register, RegisterMap
from vdcm_devices.dsa.codes import Command, CommandError, DeviceState, ResetType, WqMode, WqState

RO, RW, W1C, WO = Access.RO, Access.RW, Access.W1C, Access.WO

BAR0_SIZE: Final = 0x10000
"""Bytes. The last page is the dummy portal: it reads 0 and takes no work (9.2.21)."""
MSIX_PERMISSIONS: Final = 0x400
GROUP_CONFIGURATION: Final = 0x600
WQ_CONFIGURATION: Final = 0x800
PERFMON: Final = 0x1000
MSIX_TABLE: Final = 0x4000
MSIX_PENDING: Final = 0x5000
MOST_GROUPS: Final = (WQ_CONFIGURATION - GROUP_CONFIGURATION) // 64
DEFINED_OPERATIONS: Final = 0x7B_7FBF_07FF
"""A bit for each operation of table 8-2; OPCFG has no others (9.2.24)."""
MOST_WQS: Final = (PERFMON - WQ_CONFIGURATION) // 64
BUFFERS_NEEDED: Final = 4
"""Read buffers that a group is allowed for each of its engines, at least (9.2.23)."""
_MOST_BUFFERS = 0xFF


@dataclass(frozen=True)
class Capabilities:
    """What a VDEV can do; the capability registers say exactly this.

    ``max_transfer`` and ``max_batch`` are exponents of two; ``operations`` has a bit for each
    operation code.
    """

    wqs: int
    total_wq_size: int
    dedicated: bool
    shared: bool
    groups: int
    engines: int
    operations: int
    max_transfer: int
    max_batch: int
    version: int = 0x200
    wq_operations: bool = True
    fault_info: bool = True
    overlapping_copy: bool = True
    cache_control: bool = True
    destination_readback: bool = True
    drain_readback: bool = True

    def __post_init__(self) -> None:
        for name, limit in (
            ("wqs", MOST_WQS),
            ("groups", MOST_GROUPS),
            ("engines", _MOST_BUFFERS // BUFFERS_NEEDED),
            ("total_wq_size", 0xFFFF),
        ):
            value = getattr(self, name)
            if not 1 <= value <= limit:
                raise DeclarationError(f"a DSA has 1 to {limit} {name}, not {value}")

    @property
    def vectors(self) -> int:
        """Entries of the MSI-X table: one for events of the device, one for each WQ."""
        return self.wqs + 1

    @property
    def read_buffers(self) -> int:
        """Of all engines together: 16 each, about what the hardware has."""
        return min(_MOST_BUFFERS, 16 * self.engines)


class DsaRegisters(RegisterMap):
    """BAR0 up to the MSI-X table. The tables are declared by the class of a composition."""

    VERSION = Register(
        0x00,
        32,
        RO,
        fields={"MINOR": Field(0, 8), "MAJOR": Field(8, 8)},
        doc="Version of the architecture (9.2.1).",
    )
    GENCAP = Register(
        0x10,
        64,
        RO,
        fields={
            "BLOCK_ON_FAULT": Field(0, reset=1),
            "OVERLAPPING_COPY": Field(1),
            "CACHE_CONTROL": Field(2),
            "COMMAND_CAPABILITIES": Field(4, reset=1),
            "DURABLE_WRITE": Field(5),
            "INTER_DOMAIN": Field(6),
            "DESTINATION_READBACK": Field(8),
            "DRAIN_READBACK": Field(9),
            "FAULT_INFO": Field(12),
            "EVENT_LOG": Field(13, 2),
            "MAX_TRANSFER": Field(16, 5, doc="Exponent of two."),
            "MAX_BATCH": Field(21, 4, doc="Exponent of two."),
            "IMS_SIZE": Field(25, 6, doc="0: the guest sees none (Scalable IOV, 2.8)."),
            "CONFIGURABLE": Field(31, reset=1),
        },
        doc="General capabilities (9.2.2).",
    )
    WQCAP = Register(
        0x20,
        64,
        RO,
        fields={
            "TOTAL_SIZE": Field(0, 16),
            "WQS": Field(16, 8),
            "WQCFG_SIZE": Field(24, 4, reset=1, doc="2^(5 + this) bytes: 64."),
            "SHARED": Field(48),
            "DEDICATED": Field(49),
            "ATS": Field(50, reset=1),
            "PRIORITY": Field(51, reset=1),
            "OCCUPANCY": Field(52, reset=1),
            "OCCUPANCY_INTERRUPT": Field(53),
            "OPERATIONS": Field(54),
            "PRS": Field(55),
        },
        doc="Work queue capabilities (9.2.3).",
    )
    GRPCAP = Register(
        0x30,
        64,
        RO,
        fields={
            "GROUPS": Field(0, 8),
            "READ_BUFFERS": Field(8, 8),
            "READ_BUFFER_CONTROLS": Field(16, reset=1),
            "READ_BUFFER_LIMIT": Field(17, reset=1),
            "PROGRESS_LIMIT": Field(18),
            "BANDWIDTH_LIMIT": Field(19),
        },
        doc="Group capabilities (9.2.4).",
    )
    ENGCAP = Register(
        0x38, 64, RO, fields={"ENGINES": Field(0, 8)}, doc="Engine capabilities (9.2.5)."
    )
    OPCAP = Register(0x40, 64, RO, count=4, doc="A bit for each operation code (9.2.6).")
    OFFSETS = Register(
        0x60,
        64,
        RO,
        fields={
            "GRPCFG": Field(0, 16, reset=GROUP_CONFIGURATION >> 8),
            "WQCFG": Field(16, 16, reset=WQ_CONFIGURATION >> 8),
            "MSIXPERM": Field(32, 16, reset=MSIX_PERMISSIONS >> 8),
            "IMS": Field(48, 16),
        },
        doc="Where the tables are, in units of 0x100 bytes (9.2.7).",
    )
    OFFSETS2 = Register(
        0x68,
        64,
        RO,
        fields={"PERFMON": Field(0, 16, reset=PERFMON >> 8), "IDPT": Field(16, 16)},
        doc="As OFFSETS; there is no inter-domain table (9.2.7).",
    )
    GENCFG = Register(
        0x80,
        32,
        fields={"READ_BUFFER_LIMIT": Field(0, 8), "USER_INTERRUPTS": Field(12)},
        doc="Writable while the device is disabled (9.2.8).",
    )
    GENCTRL = Register(
        0x88, 32, fields={"SOFTWARE_ERROR": Field(0), "HALT": Field(1)}, doc="Enables (9.2.9)."
    )
    GENSTS = Register(
        0x90,
        32,
        RO,
        fields={"STATE": Field(0, 2, values=DeviceState), "RESET": Field(2, 2, values=ResetType)},
        doc="General status (9.2.10).",
    )
    INTCAUSE = Register(
        0x98,
        32,
        W1C,
        fields={
            "SOFTWARE_ERROR": Field(0),
            "COMMAND": Field(1),
            "OCCUPANCY": Field(2),
            "PERFMON": Field(3),
            "HALT": Field(4),
            "EVENT_LOG": Field(5),
            "HANDLES_REVOKED": Field(31),
        },
        doc="Why MSI-X entry 0 was signalled (9.2.11).",
    )
    CMD = Register(
        0xA0,
        32,
        WO,
        fields={
            "OPERAND": Field(0, 20),
            "COMMAND": Field(20, 5, values=Command),
            "RESERVED": Field(25, 6),
            "INTERRUPT": Field(31),
        },
        whole=True,  # the code alone lies in two bytes
        doc="Administrative commands (9.2.12).",
    )
    CMDSTATUS = Register(
        0xA8,
        32,
        RO,
        fields={
            "ERROR": Field(0, 8, values=CommandError),
            "RESULT": Field(8, 16),
            "ACTIVE": Field(31),
        },
        doc="How the last command went (9.2.13).",
    )
    CMDCAP = Register(
        0xB0, 64, RO, sum(1 << command for command in Command), doc="A bit for each (9.2.14)."
    )
    SWERROR = Register(
        0xC0,
        64,
        RO,
        fields={
            "VALID": Field(0, access=W1C),
            "OVERFLOW": Field(1, access=W1C),
            "DESCRIPTOR_VALID": Field(2),
            "WQ_VALID": Field(3),
            "BATCH": Field(4),
            "WRITE": Field(5),
            "PRIVILEGE": Field(6),
            "INFORMATION_VALID": Field(7),
            "ERROR": Field(8, 8),
            "WQ": Field(16, 8),
            "OPERATION": Field(32, 8),
            "PASID": Field(40, 20),
        },
        doc="The first error that no completion record tells of (9.2.15).",
    )
    SWERROR_INFORMATION = Register(
        0xC8,
        64,
        RO,
        fields={"BATCH_INDEX": Field(0, 16), "INFORMATION": Field(32, 32)},
        doc="Position in the batch, details of the error (9.2.15).",
    )
    SWERROR_ADDRESS = Register(0xD0, 64, RO, doc="The faulting address (9.2.15).")

    # The tables; how long they are is said by registers_class().
    MSIXPERM: Register
    GRPWQS: Register
    GRPENGINES: Register
    GRPFLAGS: Register
    WQSIZE: Register
    WQTHRESHOLD: Register
    WQMODE: Register
    WQLIMITS: Register
    WQSTATE: Register

    @property
    def wq_operations(self) -> Sequence[BoundRegister]:
        """The four arrays of 64 bits each that limit a WQ's operations."""
        return [getattr(self, f"WQOPERATIONS{i}") for i in range(4)]

    def allowed_operations(self, wq: int) -> list[int]:
        """What a WQ may do, 64 bits each: OPCFG, where there is one, or else OPCAP (5.4)."""
        allowed = [part[wq].value for part in self.wq_operations]
        return allowed if self.WQCAP.OPERATIONS else [part.value for part in self.OPCAP]

    def tell(self, capabilities: Capabilities) -> None:
        """Set the capability registers and what is initialised from them (table 9-3)."""
        self.VERSION.preset(capabilities.version)
        self.GENCAP.preset(
            OVERLAPPING_COPY=capabilities.overlapping_copy,
            CACHE_CONTROL=capabilities.cache_control,
            DESTINATION_READBACK=capabilities.destination_readback,
            DRAIN_READBACK=capabilities.drain_readback,
            FAULT_INFO=capabilities.fault_info,
            MAX_TRANSFER=capabilities.max_transfer,
            MAX_BATCH=capabilities.max_batch,
        )
        self.WQCAP.preset(
            TOTAL_SIZE=capabilities.total_wq_size,
            WQS=capabilities.wqs,
            SHARED=capabilities.shared,
            DEDICATED=capabilities.dedicated,
            OPERATIONS=capabilities.wq_operations,
        )
        self.GRPCAP.preset(GROUPS=capabilities.groups, READ_BUFFERS=capabilities.read_buffers)
        self.GENCFG.preset(READ_BUFFER_LIMIT=capabilities.read_buffers)
        for flags in self.GRPFLAGS:
            flags.preset(READ_BUFFERS_ALLOWED=capabilities.read_buffers)
        self.ENGCAP.preset(ENGINES=capabilities.engines)
        for i, operations in enumerate(self.wq_operations):
            allowed = capabilities.operations >> 64 * i & (1 << 64) - 1
            self.OPCAP[i].preset(allowed)
            defined = DEFINED_OPERATIONS >> 64 * i & (1 << 64) - 1
            for wq in operations:
                if capabilities.wq_operations:
                    wq.preset(allowed)
                    wq.narrow(defined)
                else:
                    wq.narrow(0)  # reserved


@cache
def registers_class(wqs: int, groups: int, engines: int) -> type[DsaRegisters]:
    """The registers of a VDEV with that many of each.

    Bits of a group for work queues and engines that there are not read 0 and ignore writes.
    """

    class Registers(DsaRegisters):
        MSIXPERM = Register(
            MSIX_PERMISSIONS,
            32,
            count=wqs + 1,
            stride=8,
            fields={"IGNORE": Field(2), "PASID_ENABLE": Field(3), "PASID": Field(12, 20)},
            doc="Which descriptors may use an MSI-X entry (9.2.22).",
        )
        GRPWQS = Register(
            GROUP_CONFIGURATION,
            64,
            count=groups,
            stride=64,
            fields={"WQS": Field(0, wqs)},
            doc="The group's work queues (9.2.23); there are no more than 64.",
        )
        # Those of work queues from 64 on, and occupancy interrupts: there are none, but drivers
        # read and clear all of a table's entry.
        GRPWQS1 = Register(GROUP_CONFIGURATION + 0x08, 64, RO, count=groups, stride=64)
        GRPWQS2 = Register(GROUP_CONFIGURATION + 0x10, 64, RO, count=groups, stride=64)
        GRPWQS3 = Register(GROUP_CONFIGURATION + 0x18, 64, RO, count=groups, stride=64)
        WQINTERRUPT = Register(WQ_CONFIGURATION + 0x10, 64, RO, count=wqs, stride=64)
        WQRESERVED = Register(WQ_CONFIGURATION + 0x1C, 32, RO, count=wqs, stride=64)
        GRPENGINES = Register(
            GROUP_CONFIGURATION + 0x20,
            64,
            count=groups,
            stride=64,
            fields={"ENGINES": Field(0, engines)},
            doc="The group's engines (9.2.23).",
        )
        GRPFLAGS = Register(
            GROUP_CONFIGURATION + 0x28,
            64,
            count=groups,
            stride=64,
            fields={
                "TC_A": Field(0, 3),
                "TC_B": Field(3, 3),
                "USE_READ_BUFFER_LIMIT": Field(7),
                "READ_BUFFERS_RESERVED": Field(8, 8),
                "READ_BUFFERS_ALLOWED": Field(20, 8),
            },
            doc="Traffic classes and read buffers: what they are makes no difference (9.2.23).",
        )
        WQSIZE = Register(
            WQ_CONFIGURATION,
            32,
            count=wqs,
            stride=64,
            fields={"SIZE": Field(0, 16)},
            doc="Entries; writable while the device is disabled (9.2.24).",
        )
        WQTHRESHOLD = Register(
            WQ_CONFIGURATION + 0x04,
            32,
            count=wqs,
            stride=64,
            fields={"THRESHOLD": Field(0, 16)},
            doc="Entries that limited portals may fill (9.2.24).",
        )
        WQMODE = Register(
            WQ_CONFIGURATION + 0x08,
            32,
            count=wqs,
            stride=64,
            fields={
                "MODE": Field(0, values=WqMode),
                "BLOCK_ON_FAULT": Field(1),
                "ATS_DISABLE": Field(2),
                "PRIORITY": Field(4, 4),
                "PASID": Field(8, 20),
                "PASID_ENABLE": Field(28),
                "PRIVILEGE": Field(29),
            },
            doc="Writable while the WQ is disabled (9.2.24).",
        )
        WQLIMITS = Register(
            WQ_CONFIGURATION + 0x0C,
            32,
            count=wqs,
            stride=64,
            fields={"MAX_TRANSFER": Field(0, 5), "MAX_BATCH": Field(5, 4)},
            doc="Exponents of two; writable while the WQ is disabled (9.2.24).",
        )
        WQSTATE = Register(
            WQ_CONFIGURATION + 0x18,
            32,
            RO,
            count=wqs,
            stride=64,
            fields={"OCCUPANCY": Field(0, 16), "STATE": Field(30, 2, values=WqState)},
            doc="Never the guest's to write (9.2.24).",
        )
        WQOPERATIONS0 = Register(
            WQ_CONFIGURATION + 0x20,
            64,
            count=wqs,
            stride=64,
            doc="Operations that are allowed; writable while the WQ is disabled (9.2.24).",
        )
        WQOPERATIONS1 = Register(WQ_CONFIGURATION + 0x28, 64, count=wqs, stride=64)
        WQOPERATIONS2 = Register(WQ_CONFIGURATION + 0x30, 64, count=wqs, stride=64)
        WQOPERATIONS3 = Register(WQ_CONFIGURATION + 0x38, 64, count=wqs, stride=64)

    return Registers
