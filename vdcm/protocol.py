"""The vfio-user protocol, version 0.1: numbers, flags and message layouts, said once. No I/O.

Source: the vfio-user protocol specification (published with QEMU as ``docs/interop/vfio-user.rst``)
and ``linux/vfio.h``, whose structures it borrows. All fields are little endian here: the wire is
native-endian, and the hosts that vdcm runs on are little endian.

A message is a header (``Header``) followed by a payload that the layouts below describe. The
layouts are ``struct.Struct`` objects; ``pack`` and ``unpack`` use them and turn every mistake,
ours or the peer's, into a ``ProtocolError``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from struct import Struct
from struct import error as StructError
from typing import Any, NamedTuple

from vdcm.errors import ProtocolError

MAJOR = 0
MINOR = 1

# What a peer is taken to allow when its VERSION message does not say (section "VFIO_USER_VERSION").
DEFAULT_MAX_MSG_FDS = 1
DEFAULT_MAX_DATA_XFER_SIZE = 1 << 20

# The kernel passes no more descriptors than this in one message (SCM_MAX_FD in net/scm.h).
SCM_MAX_FD = 253


class Command(IntEnum):
    """Command numbers. 1-14: specification 0.1; 15-18: later additions of libvfio-user and QEMU."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    DIRTY_PAGES = 14
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class MessageFlags(IntFlag):
    """Flags of the header. The low four bits are the type: 0 a command, 1 a reply."""

    REPLY = 0x1
    TYPE = 0xF
    NO_REPLY = 0x10
    ERROR = 0x20


class DeviceFlags(IntFlag):
    """Flags of a DEVICE_GET_INFO reply."""

    RESET = 1 << 0
    PCI = 1 << 1


class RegionFlags(IntFlag):
    """Flags of a DEVICE_GET_REGION_INFO reply."""

    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2
    CAPS = 1 << 3


class IrqFlags(IntFlag):
    """Flags of a DEVICE_GET_IRQ_INFO reply."""

    EVENTFD = 1 << 0
    MASKABLE = 1 << 1
    AUTOMASKED = 1 << 2
    NORESIZE = 1 << 3


class IrqSet(IntFlag):
    """Flags of DEVICE_SET_IRQS: one DATA kind and one ACTION."""

    DATA_NONE = 1 << 0
    DATA_BOOL = 1 << 1
    DATA_EVENTFD = 1 << 2
    ACTION_MASK = 1 << 3
    ACTION_UNMASK = 1 << 4
    ACTION_TRIGGER = 1 << 5


class DmaFlags(IntFlag):
    """Flags of DMA_MAP. MMAP and FILE_IO are later additions that say how to use a descriptor."""

    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2
    FILE_IO = 1 << 3


class UnmapFlags(IntFlag):
    """Flags of DMA_UNMAP."""

    GET_DIRTY_BITMAP = 1 << 0
    ALL = 1 << 1


class Region(IntEnum):
    """Region numbers of a PCI device (``VFIO_PCI_*_REGION_INDEX``)."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


class Irq(IntEnum):
    """Interrupt kinds of a PCI device (``VFIO_PCI_*_IRQ_INDEX``)."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


HEADER = Struct("<HHIII")  # message id, command, size with this header, flags, errno
VERSION = Struct("<HH")  # major, minor; JSON text with its NUL follows
DMA_MAP = Struct("<IIQQQ")  # argsz, flags, offset in the descriptor's file, address, size
DMA_UNMAP = Struct("<IIQQ")  # argsz, flags, address, size
BITMAP = Struct("<QQ")  # page size, bitmap size in bytes
DEVICE_INFO = Struct("<IIII")  # argsz, flags, number of regions, number of irq kinds
REGION_INFO = Struct("<IIIIQQ")  # argsz, flags, index, cap_offset, size, offset for mmap
REGION_IO_FDS = Struct("<IIII")  # argsz, flags, index, count
IRQ_INFO = Struct("<IIII")  # argsz, flags, index, count
IRQ_SET = Struct("<IIIII")  # argsz, flags, index, start, count; booleans follow
REGION_ACCESS = Struct("<QII")  # offset, region, count; data follows
DMA_ACCESS = Struct("<QQ")  # address, count; data follows
DIRTY_PAGES = Struct("<II")  # argsz, flags; a range and a BITMAP follow for GET_BITMAP
DIRTY_RANGE = Struct("<QQ")  # iova, size
WRITE_MULTI = Struct("<Q")  # number of WRITE_ONE entries that follow
WRITE_ONE = Struct("<QII8s")  # offset, region, count (1 to 8), data
DEVICE_FEATURE = Struct("<II")  # argsz, flags with the feature's number in the low 16 bits
MIG_DATA = Struct("<II")  # argsz, size; data follows

# Capabilities of a region (linux/vfio.h). Offsets count from the start of the REGION_INFO payload.
CAP_HEADER = Struct("<HHI")  # id, version, offset of the next one or 0
CAP_SPARSE_MMAP = 1
SPARSE_MMAP = Struct("<II")  # number of areas, reserved; areas follow
SPARSE_AREA = Struct("<QQ")  # offset in the region, size


def pack(layout: Struct, *values: Any) -> bytes:
    """The bytes of ``values`` in ``layout``; ProtocolError if one does not fit its field."""
    try:
        return layout.pack(*values)
    except StructError as error:
        raise ProtocolError(f"{values} do not fit the message's fields: {error}") from None


def unpack(layout: Struct, data: bytes, what: str, offset: int = 0) -> tuple[Any, ...]:
    """The values of ``layout`` at ``offset`` of ``data``; ProtocolError if ``data`` is too short.

    ``what`` names the message in the error.
    """
    if offset < 0 or len(data) - offset < layout.size:
        raise ProtocolError(
            f"{what} is too short: {layout.size} bytes are needed at offset {offset}, "
            f"it has {len(data)}"
        )
    return layout.unpack_from(data, offset)


def command_name(number: int) -> str:
    """The name of a command, or ``command 42`` for one that has none."""
    try:
        return Command(number).name
    except ValueError:
        return f"command {number}"


class Header(NamedTuple):
    """A message's header. ``size`` is that of the whole message, in bytes."""

    message_id: int
    command: int
    size: int
    flags: int
    error: int

    @property
    def is_command(self) -> bool:
        return self.flags & MessageFlags.TYPE == 0

    @property
    def is_reply(self) -> bool:
        return self.flags & MessageFlags.TYPE == MessageFlags.REPLY

    @property
    def is_error(self) -> bool:
        return bool(self.flags & MessageFlags.ERROR)

    @property
    def wants_reply(self) -> bool:
        return self.is_command and not self.flags & MessageFlags.NO_REPLY

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> Header:
        """The header at the start of ``data``, which holds at least ``HEADER.size`` bytes.

        Raises ProtocolError for a size smaller than the header itself; bounds above are the
        caller's business.
        """
        header = cls._make(HEADER.unpack_from(data))
        if header.size < HEADER.size:
            raise ProtocolError(
                f"{command_name(header.command)}: the header gives a size of {header.size} bytes, "
                f"less than the header's own {HEADER.size}"
            )
        return header


def message(
    command: int, payload: bytes = b"", message_id: int = 0, flags: int = 0, error: int = 0
) -> bytes:
    """A whole message. ``message_id`` is 16 bits wide; ``error`` is a UNIX errno or 0."""
    return pack(HEADER, message_id, command, HEADER.size + len(payload), flags, error) + payload


class Area(NamedTuple):
    """A part of a region, in bytes from the region's start."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


@dataclass(frozen=True)
class Version:
    """A parsed VERSION message: the sender's version and its capabilities, types checked."""

    major: int
    minor: int
    max_msg_fds: int = DEFAULT_MAX_MSG_FDS
    max_data_xfer_size: int = DEFAULT_MAX_DATA_XFER_SIZE
    # Ours, both under the capability "vdcm": a client tells that it can map areas read-only, and
    # only then does a server offer such areas, per region. Stock QEMU maps everything writable.
    read_only_areas: bool = False
    read_only: Mapping[int, tuple[Area, ...]] = field(default_factory=dict)
    # A server that takes REGION_WRITE_MULTI says so.
    write_multiple: bool = False
    capabilities: Mapping[str, Any] = field(default_factory=dict)


def pack_version(
    capabilities: Mapping[str, Any] | None = None, major: int = MAJOR, minor: int = MINOR
) -> bytes:
    """The payload of a VERSION message, request or reply. ``capabilities`` must fit in JSON."""
    if capabilities is None:
        return pack(VERSION, major, minor)
    text = json.dumps({"capabilities": capabilities}, separators=(",", ":"))
    return pack(VERSION, major, minor) + text.encode() + b"\0"


def parse_version(payload: bytes) -> Version:
    """Parse the payload of a VERSION message. Unknown capabilities are kept, not judged.

    Raises ProtocolError for text that is not NUL-terminated JSON or a known capability of the wrong
    type or range. The version numbers themselves are the caller's to judge.
    """
    major, minor = unpack(VERSION, payload, "VERSION")
    text = payload[VERSION.size :]
    if not text:
        return Version(major, minor)
    if text[-1] != 0:
        raise ProtocolError("VERSION: the JSON text does not end with a NUL byte")
    try:
        data = json.loads(text[:-1].decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"VERSION: the data is not valid JSON: {error}") from None
    capabilities = _member(_object(data, "the data"), "capabilities", {})
    _object(capabilities, "capabilities")
    vdcm = _object(_member(capabilities, "vdcm", {}), "vdcm")
    read_only = _object(_member(vdcm, "read_only", {}), "vdcm.read_only")
    return Version(
        major,
        minor,
        max_msg_fds=_number(capabilities, "max_msg_fds", DEFAULT_MAX_MSG_FDS, 0),
        max_data_xfer_size=_number(
            capabilities, "max_data_xfer_size", DEFAULT_MAX_DATA_XFER_SIZE, 1
        ),
        read_only_areas=_truth(vdcm, "read_only_areas", "vdcm."),
        read_only=dict(_read_only(region, areas) for region, areas in read_only.items()),
        write_multiple=_truth(capabilities, "write_multiple"),
        capabilities=capabilities,
    )


def pack_read_only(areas: Mapping[int, Iterable[tuple[int, int]]]) -> dict[str, Any]:
    """The value of a server's ``vdcm`` capability: per region, (offset, size) of read-only areas.

    ``pack_version({..., "vdcm": pack_read_only({0: [(0x1000, 0x1000)]})})``
    """
    return {"read_only": {str(region): [list(a) for a in parts] for region, parts in areas.items()}}


def _member(data: Mapping[str, Any], key: str, default: object) -> Any:
    # A member that is null says as much as one that is missing.
    value = data.get(key)
    return default if value is None else value


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError(f"VERSION: {what} is not a JSON object")
    return value


def _number(capabilities: Mapping[str, Any], key: str, default: int, least: int) -> int:
    value = _member(capabilities, key, default)
    # bool is a subclass of int in Python, but true is not a number in JSON.
    if not isinstance(value, int) or isinstance(value, bool):
        raise ProtocolError(f"VERSION: {key} is not a whole number")
    if not least <= value < 1 << 63:
        raise ProtocolError(f"VERSION: {key} is {value}, out of range")
    return value


def _truth(capabilities: Mapping[str, Any], key: str, prefix: str = "") -> bool:
    value = _member(capabilities, key, False)
    if not isinstance(value, bool):
        raise ProtocolError(f"VERSION: {prefix}{key} is not true or false")
    return value


def _read_only(region: str, areas: Any) -> tuple[int, tuple[Area, ...]]:
    try:
        pairs = tuple(Area(int(offset), int(size)) for offset, size in areas)
        if any(area.offset < 0 or area.size <= 0 for area in pairs):
            raise ValueError("an area is empty or starts before its region")
        return int(region), pairs
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(
            f"VERSION: vdcm.read_only of region {region!r} is no list of [offset, size]: {error}"
        ) from None


@dataclass(frozen=True)
class RegionInfoReply:
    """A parsed DEVICE_GET_REGION_INFO reply. ``areas`` is what its descriptor can map.

    ``argsz`` is what a complete reply needs: if it is more than was asked for, ask again.
    """

    argsz: int
    flags: RegionFlags
    index: int
    size: int
    offset: int
    areas: tuple[Area, ...]


def parse_region_info(payload: bytes) -> RegionInfoReply:
    """Parse a DEVICE_GET_REGION_INFO reply with its capability chain.

    A region that can be mapped and has no sparse areas is one area. Raises ProtocolError for a
    chain that loops or leaves the payload, and for areas that leave the region.
    """
    name = "DEVICE_GET_REGION_INFO"
    argsz, flags, index, cap_offset, size, offset = unpack(REGION_INFO, payload, name)
    flags = RegionFlags(flags)
    areas: tuple[Area, ...] = ()
    if flags & RegionFlags.MMAP:
        areas = (Area(0, size),)
        if flags & RegionFlags.CAPS:
            for identifier, at in _region_capabilities(payload, cap_offset):
                if identifier == CAP_SPARSE_MMAP:
                    areas = _sparse_areas(payload, at)
    for area in areas:
        if area.end > size:
            raise ProtocolError(
                f"{name}: region {index} has {size:#x} bytes, but a mappable area ends at "
                f"{area.end:#x}"
            )
    return RegionInfoReply(argsz, flags, index, size, offset, areas)


def _region_capabilities(payload: bytes, at: int) -> Iterator[tuple[int, int]]:
    """(id, offset of the body) of each capability."""
    seen = set()
    while at:
        if at in seen:
            raise ProtocolError(f"DEVICE_GET_REGION_INFO: the capability chain loops at {at:#x}")
        seen.add(at)
        identifier, _version, following = unpack(
            CAP_HEADER, payload, "DEVICE_GET_REGION_INFO: a capability", at
        )
        yield identifier, at + CAP_HEADER.size
        at = following


def _sparse_areas(payload: bytes, at: int) -> tuple[Area, ...]:
    what = "DEVICE_GET_REGION_INFO: the sparse area list"
    count, _reserved = unpack(SPARSE_MMAP, payload, what, at)
    at += SPARSE_MMAP.size
    # Bound before allocation: a count that the payload cannot hold is refused here.
    if count > (len(payload) - at) // SPARSE_AREA.size:
        raise ProtocolError(f"{what} claims {count} areas, more than the payload holds")
    return tuple(
        Area(*SPARSE_AREA.unpack_from(payload, at + i * SPARSE_AREA.size)) for i in range(count)
    )


def pack_sparse_areas(areas: Iterable[tuple[int, int]]) -> bytes:
    """The capability chain with one sparse-mmap capability, to follow REGION_INFO directly."""
    parts = [pack(SPARSE_AREA, offset, size) for offset, size in areas]
    head = pack(CAP_HEADER, CAP_SPARSE_MMAP, 1, 0) + pack(SPARSE_MMAP, len(parts), 0)
    return head + b"".join(parts)
