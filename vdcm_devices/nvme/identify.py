"""The data structures of Identify (NVM Express 1.4, 5.15)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from vdcm_devices.nvme.codes import VERSION
from vdcm_devices.nvme.events import MOST_REQUESTS
from vdcm_devices.nvme.logs import CRITICAL_TEMPERATURE, ERROR_ENTRIES, WARNING_TEMPERATURE

SIZE: Final = 4096
BLOCK_SHIFTS: Final = (9, 12)
"""LBA formats in their order: data of 512 and of 4,096 bytes, no metadata."""
CONTROLLER_ID: Final = 1
FIRMWARE: Final = "1"
MODEL: Final = "vdcm NVMe controller"
ABORTS: Final = 4


@dataclass(frozen=True)
class ControllerFacts:
    """What differs from one controller to another. ``transfer_shift``: log2 of the bytes that one
    command moves at most; ``page_shift`` 12 that of the least memory page."""

    vendor: int
    subsystem_vendor: int
    serial: str
    model: str
    uuid: UUID
    namespaces: int
    capacity: int
    free: int
    transfer_shift: int
    doorbell_buffers: bool
    write_cache: bool


@dataclass(frozen=True)
class NamespaceFacts:
    """``blocks`` of ``1 << block_shift`` bytes each."""

    uuid: UUID
    blocks: int
    block_shift: int
    read_only: bool


def _put(data: bytearray, offset: int, layout: str, *values: object) -> None:
    struct.pack_into("<" + layout, data, offset, *values)


def _text(text: str, size: int) -> bytes:
    """ASCII, filled up with spaces (1.5)."""
    return text.encode("ascii", "replace")[:size].ljust(size)


def controller(facts: ControllerFacts) -> bytes:
    """Identify Controller (figure 247). What is not said here is 0: not supported."""
    data = bytearray(SIZE)
    _put(data, 0, "HH", facts.vendor, facts.subsystem_vendor)
    data[4:24] = _text(facts.serial, 20)
    data[24:64] = _text(facts.model, 40)
    data[64:72] = _text(FIRMWARE, 8)
    # No IEEE OUI: there is none. One port, one controller.
    _put(data, 77, "BHI", facts.transfer_shift - 12, CONTROLLER_ID, VERSION)
    _put(data, 92, "I", 1 << 8)  # OAES: Namespace Attribute Notices
    _put(data, 96, "I", 1 << 0)  # CTRATT: host identifier of 128 bits
    _put(data, 111, "B", 1)  # CNTRLTYPE: I/O controller
    _put(data, 256, "H", 1 << 1 | facts.doorbell_buffers << 8)  # OACS: Format
    _put(data, 258, "BB", ABORTS - 1, MOST_REQUESTS - 1)
    _put(data, 260, "B", 1 << 1 | 1 << 0)  # FRMW: one slot, which is read-only
    _put(data, 261, "B", 1 << 1 | 1 << 2)  # LPA: effects, offsets and long lengths
    _put(data, 262, "B", ERROR_ENTRIES - 1)
    _put(data, 266, "HH", WARNING_TEMPERATURE, CRITICAL_TEMPERATURE)
    data[280:296] = facts.capacity.to_bytes(16, "little")
    data[296:312] = facts.free.to_bytes(16, "little")
    _put(data, 512, "BB", 0x66, 0x44)  # entries of 64 and 16 bytes
    _put(data, 516, "I", facts.namespaces)
    # ONCS: Compare, Dataset Management, Write Zeroes, Save and Select, Timestamp, Verify
    _put(data, 520, "H", 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7)
    # VWC: there is one; Flush of all namespaces at once is supported (6.8).
    _put(data, 525, "B", 3 << 1 | facts.write_cache)
    # SGLS: of any alignment, with bit buckets, longer than the data
    _put(data, 536, "I", 1 << 0 | 1 << 16 | 1 << 18)
    name = f"nqn.2014-08.org.nvmexpress:uuid:{facts.uuid}".encode()
    data[768 : 768 + len(name)] = name
    # The one power state has no numbers (PSD0): 0 is "not reported".
    return bytes(data)


def namespace(facts: NamespaceFacts) -> bytes:
    """Identify Namespace (figure 245)."""
    data = bytearray(SIZE)
    _put(data, 0, "QQQ", facts.blocks, facts.blocks, facts.blocks)
    _put(data, 25, "B", len(BLOCK_SHIFTS) - 1)
    _put(data, 26, "B", BLOCK_SHIFTS.index(facts.block_shift))
    _put(data, 33, "B", 1 << 3 | 1)  # DLFEAT: deallocated blocks read 0, Write Zeroes may do so
    data[48:64] = (facts.blocks << facts.block_shift).to_bytes(16, "little")
    _put(data, 99, "B", facts.read_only)
    for index, shift in enumerate(BLOCK_SHIFTS):
        _put(data, 128 + 4 * index, "HBB", 0, shift, 0)
    return bytes(data)


def descriptors(facts: NamespaceFacts) -> bytes:
    """Namespace Identification Descriptors: the UUID (figure 246)."""
    return bytes([3, 16, 0, 0, *facts.uuid.bytes]).ljust(SIZE, b"\0")


def namespace_list(nsids: Iterable[int], after: int) -> bytes:
    """Namespace identifiers above ``after``, ascending (4.10)."""
    found = sorted(nsid for nsid in nsids if nsid > after)[: SIZE // 4]
    return struct.pack(f"<{len(found)}I", *found).ljust(SIZE, b"\0")


def controller_list(first: int) -> bytes:
    """Controller identifiers from ``first`` on (4.11): there is one."""
    found = [CONTROLLER_ID] if first <= CONTROLLER_ID else []
    return struct.pack(f"<{1 + len(found)}H", len(found), *found).ljust(SIZE, b"\0")
