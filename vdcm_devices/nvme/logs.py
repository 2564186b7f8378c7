"""Log pages: what has gone wrong, how it is, what there is (NVM Express 1.4, 5.14.1)."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from vdcm import monotonic_ns
from vdcm_devices.nvme.codes import ALL_NAMESPACES, IoOpcode, Opcode

ERROR_ENTRIES: Final = 64
TEMPERATURE: Final = 300
"""Kelvin. There is nothing that could be warm: it is always this."""
WARNING_TEMPERATURE: Final = 343
CRITICAL_TEMPERATURE: Final = 353
TEMPERATURE_WARNING: Final = 1 << 1
"""Critical Warning: a threshold is crossed (figure 194)."""
_ERROR: Final = struct.Struct("<QHHHHQIBB2xQH22x")
_MOST_CHANGED: Final = 1024


class ErrorLog:
    """The last errors, the newest first, and how many there were, ``count`` before (5.14.1.1)."""

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self._entries: deque[bytes] = deque(maxlen=ERROR_ENTRIES)

    def add(self, sqid: int, cid: int, status: int, location: int, nsid: int, lba: int = 0) -> None:
        """``status`` as in the completion, without its phase."""
        self.count += 1
        self._entries.appendleft(
            _ERROR.pack(self.count, sqid, cid, status, location, lba, nsid, 0, 0, 0, 0)
        )

    def page(self) -> bytes:
        return b"".join(self._entries).ljust(ERROR_ENTRIES * _ERROR.size, b"\0")


class Health:
    """What SMART counts over the life of a controller (5.14.1.2): what was ``kept`` of it, which is
    that of the VDEV before, and what has come since. ``in_use``: enabled, and not shut down."""

    def __init__(self, kept: Mapping[str, int]) -> None:
        self._kept: Final = {name: kept.get(name, 0) for name in COUNTS}
        self._began: Final = monotonic_ns()
        self.errors: Final = self._kept["errors"]
        self.in_use = False
        self.power_cycles = 0
        # A server that was killed while the controller was in use.
        self.unsafe_shutdowns = kept.get("in_use", 0)
        self.busy = 0.0
        self.warnings = 0

    def counted(self, native: Mapping[str, int], errors: int) -> dict[str, int]:
        """All of ``COUNTS``, and whether it is in use. ``native``: the data path's (queue.h)."""
        since = {
            **native,
            "busy_ms": int(self.busy * 1000),
            "power_cycles": self.power_cycles,
            "on_seconds": (monotonic_ns() - self._began) // 1_000_000_000,
            "unsafe_shutdowns": self.unsafe_shutdowns,
            "errors": errors - self.errors,
        }
        both = {name: self._kept[name] + since[name] for name in COUNTS}
        return {**both, "in_use": int(self.in_use)}


COUNTS: Final = (
    "bytes_read",
    "bytes_written",
    "read_commands",
    "write_commands",
    "busy_ms",
    "power_cycles",
    "on_seconds",
    "unsafe_shutdowns",
    "media_errors",
    "errors",
)


def health(counted: Mapping[str, int], warnings: int) -> bytes:
    """SMART / Health Information (5.14.1.2)."""
    data = bytearray(512)
    struct.pack_into("<BHBBB", data, 0, warnings, TEMPERATURE, 100, 10, 0)
    said = {
        **counted,
        "bytes_read": _units(counted["bytes_read"]),
        "bytes_written": _units(counted["bytes_written"]),
        "busy_ms": counted["busy_ms"] // 60_000,
        "on_seconds": counted["on_seconds"] // 3600,
    }
    for index, name in enumerate(COUNTS):
        number = said[name]
        data[32 + 16 * index : 48 + 16 * index] = number.to_bytes(16, "little")
    return bytes(data)


def _units(size: int) -> int:
    """Thousands of 512 bytes, rounded up."""
    return -(-size // 512_000)


def firmware(revision: str) -> bytes:
    """Firmware Slot Information: slot 1 is active, and the only one (5.14.1.3)."""
    data = bytearray(512)
    data[0] = 1
    data[8:16] = revision.encode("ascii").ljust(8)
    return bytes(data)


def changed_namespaces(nsids: Iterable[int]) -> bytes:
    """5.14.1.4; too many are said by the broadcast identifier alone."""
    found = sorted(nsids)
    if len(found) > _MOST_CHANGED:
        found = [ALL_NAMESPACES]
    return struct.pack(f"<{len(found)}I", *found).ljust(4 * _MOST_CHANGED, b"\0")


def effects(opcodes: Iterable[Opcode]) -> bytes:
    """Commands Supported and Effects (5.14.1.5)."""
    data = bytearray(4096)
    for opcode in opcodes:
        struct.pack_into("<I", data, 4 * opcode, _ADMIN_EFFECTS.get(opcode, _SUPPORTED))
    for command in IoOpcode:
        word = _SUPPORTED | (_CONTENT if command in _WRITING else 0)
        struct.pack_into("<I", data, 1024 + 4 * command, word)
    return bytes(data)


_SUPPORTED: Final = 1 << 0
_CONTENT: Final = 1 << 1
_NAMESPACE_CAPABILITY: Final = 1 << 2
_ALONE_ON_NAMESPACE: Final = 1 << 16
_ADMIN_EFFECTS: Final = {
    Opcode.FORMAT: _SUPPORTED | _CONTENT | _NAMESPACE_CAPABILITY | _ALONE_ON_NAMESPACE
}
_WRITING: Final = (IoOpcode.WRITE, IoOpcode.WRITE_ZEROES, IoOpcode.DATASET_MANAGEMENT)
