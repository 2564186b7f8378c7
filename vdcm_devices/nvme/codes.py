"""Numbers of NVM Express (base specification 1.4): opcodes, status codes, features, log pages."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from vdcm import VdcmError

ALL_NAMESPACES: Final = 0xFFFF_FFFF
"""The broadcast namespace identifier (6.1)."""
VERSION: Final = 0x0001_0400


class Opcode(IntEnum):
    """Admin commands that there are (5, figure 139)."""

    DELETE_SQ = 0x00
    CREATE_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_CQ = 0x04
    CREATE_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT = 0x0C
    DOORBELL_BUFFER = 0x7C
    FORMAT = 0x80


class IoOpcode(IntEnum):
    """NVM commands that there are (6, figure 346)."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09
    VERIFY = 0x0C


class Status(IntEnum):
    """Status code type and status code, as bits 10 to 0 (4.6.1)."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    DATA_TRANSFER_ERROR = 0x004
    INTERNAL_ERROR = 0x006
    ABORT_REQUESTED = 0x007
    INVALID_NAMESPACE = 0x00B
    SEQUENCE_ERROR = 0x00C
    PRP_OFFSET_INVALID = 0x013
    WRITE_PROTECTED = 0x020
    NAMESPACE_NOT_READY = 0x082
    CQ_INVALID = 0x100
    INVALID_QUEUE_ID = 0x101
    INVALID_QUEUE_SIZE = 0x102
    EVENT_LIMIT_EXCEEDED = 0x105
    INVALID_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_FORMAT = 0x10A
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E
    FEATURE_NOT_OF_NAMESPACE = 0x10F

    @property
    def retry(self) -> bool:
        """The same command may succeed later: Do Not Retry stays clear."""
        return self in _PASSING


_PASSING: Final = frozenset(
    {
        Status.INTERNAL_ERROR,
        Status.ABORT_REQUESTED,
        Status.NAMESPACE_NOT_READY,
        Status.EVENT_LIMIT_EXCEEDED,
    }
)


class Cns(IntEnum):
    """What Identify asks for (5.15, figure 244)."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    DESCRIPTORS = 0x03
    ALLOCATED_NAMESPACES = 0x10
    ALLOCATED_NAMESPACE = 0x11
    CONTROLLERS_OF_NAMESPACE = 0x12
    CONTROLLERS = 0x13


class Feature(IntEnum):
    """Features that there are (5.21, figure 271)."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    VECTOR_CONFIGURATION = 0x09
    WRITE_ATOMICITY = 0x0A
    EVENT_CONFIGURATION = 0x0B
    TIMESTAMP = 0x0E
    HOST_IDENTIFIER = 0x81


class LogPage(IntEnum):
    """Log pages that there are (5.14.1, figure 191)."""

    ERROR = 0x01
    HEALTH = 0x02
    FIRMWARE = 0x03
    CHANGED_NAMESPACES = 0x04
    EFFECTS = 0x05


class EventType(IntEnum):
    """Of an asynchronous event (5.2, figure 146)."""

    ERROR = 0
    HEALTH = 1
    NOTICE = 2


class ErrorEvent(IntEnum):
    """Figure 147."""

    INVALID_DOORBELL_REGISTER = 0x00
    INVALID_DOORBELL_VALUE = 0x01
    PERSISTENT_INTERNAL_ERROR = 0x03


class HealthEvent(IntEnum):
    """Figure 148."""

    TEMPERATURE_THRESHOLD = 0x01


class NoticeEvent(IntEnum):
    """Figure 149."""

    NAMESPACE_ATTRIBUTE_CHANGED = 0x00


class Shutdown(IntEnum):
    """CSTS.SHST (3.1.6)."""

    NONE = 0
    ONGOING = 1
    COMPLETE = 2


class NvmeError(VdcmError):
    """A command ends with ``status``. ``byte`` and ``bit``: where in the command its cause is, if
    that is known (figure 193, Parameter Error Location)."""

    def __init__(self, status: Status, byte: int | None = None, bit: int = 0) -> None:
        super().__init__(status.name.lower().replace("_", " "))
        self.status = status
        self.location = 0xFFFF if byte is None else byte | bit << 8
