"""States, commands and error codes of the registers (DSA specification, 5.8 and 9.2)."""

from enum import IntEnum


class DeviceState(IntEnum):
    """GENSTS (9.2.10)."""

    DISABLED = 0
    ENABLED = 1
    DRAINING = 2
    HALT = 3


class ResetType(IntEnum):
    """What it takes to leave the halt state (9.2.10)."""

    SOFTWARE = 0
    FUNCTION = 1
    WARM = 2
    COLD = 3


class WqState(IntEnum):
    """WQCFG, bytes 24 to 27 (9.2.24)."""

    DISABLED = 0
    ENABLED = 1
    DRAINING = 2


class WqMode(IntEnum):
    SHARED = 0
    DEDICATED = 1


class Command(IntEnum):
    """Administrative commands (9.2.12, table 9-5)."""

    ENABLE_DEVICE = 1
    DISABLE_DEVICE = 2
    DRAIN_ALL = 3
    ABORT_ALL = 4
    RESET_DEVICE = 5
    ENABLE_WQ = 6
    DISABLE_WQ = 7
    DRAIN_WQ = 8
    ABORT_WQ = 9
    RESET_WQ = 10
    DRAIN_PASID = 11
    ABORT_PASID = 12
    REQUEST_INTERRUPT_HANDLE = 13
    RELEASE_INTERRUPT_HANDLE = 14


class CommandError(IntEnum):
    """Error codes of CMDSTATUS (9.2.13 and table 5-8)."""

    SUCCESS = 0x00
    COMMAND = 0x01
    WQ_INDEX = 0x02
    HARDWARE = 0x03
    RESERVED = 0x04
    HALTED = 0x05
    DEVICE_NOT_DISABLED = 0x10
    CONFIGURATION = 0x11
    BUS_MASTER = 0x12
    WQ_SIZES = 0x14
    GROUP_INCOMPLETE = 0x15
    GROUP_WQS = 0x16
    GROUP_ENGINES = 0x17
    READ_BUFFERS = 0x18
    DEVICE_NOT_ENABLED = 0x20
    WQ_NOT_DISABLED = 0x21
    WQ_SIZE = 0x22
    WQ_PRIORITY = 0x23
    WQ_MODE = 0x24
    BLOCK_ON_FAULT = 0x25
    PASID_ENABLE = 0x26
    MAX_BATCH = 0x27
    MAX_TRANSFER = 0x28
    PRIVILEGE = 0x2A
    OPERATIONS = 0x2D
    DISABLE_NOT_ENABLED = 0x31
    WQ_NOT_ENABLED = 0x32
    INTERRUPT_INDEX = 0x41
    NO_INTERRUPT_HANDLE = 0x42


class SoftwareError(IntEnum):
    """Errors that are reported in SWERROR only (table 5-7)."""

    PCI_CONFIGURATION = 0x51
    COMMAND_WHILE_ACTIVE = 0x52
    WQ_FULL = 0x53


class Cause(IntEnum):
    """Bits of INTCAUSE (9.2.11)."""

    SOFTWARE_ERROR = 1 << 0
    COMMAND = 1 << 1
    PERFMON = 1 << 3
    HALT = 1 << 4
    HANDLES_REVOKED = 1 << 31
