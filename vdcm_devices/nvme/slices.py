"""Which part of a store is whose, kept in the store itself.

The first mebibyte of a file or device holds the table twice, 512 KiB each; the copy that is valid
and has the higher sequence number is the one that holds. A change is written over the other copy
and brought to the disk, so that a store is as before or as after it whenever the machine stops:

    bytes 0..15   ``vdcm nvme store`` and a line feed
    16..19        version: 1            20..23   bytes of the text that follows byte 36
    24..31        sequence number       32..35   CRC-32 of that text and bytes 0 to 31
    36..          JSON: {"slices": [{"owner": "disk0", "number": 1, "uuid": "83b8...",
                  "offset": 0, "bytes": 1073741824, "block_shift": 9, "erase": false}],
                  "counts": {"disk0": {"power_cycles": 1, "bytes_read": 4096}}}

Numbers are little-endian. ``offset`` counts from the end of the table. ``erase``: what is in the
slice is to be zeros before anybody sees it; an ``owner`` of "" means that nobody will. Slices begin
at multiples of 1 MiB, each at the first place where it fits. ``counts`` are what VDEVs want to find
again, by their names; they may be missing.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

from vdcm import ResourceError, VdcmError, random_bytes
from vdcm_devices.nvme.identify import BLOCK_SHIFTS
from vdcm_devices.nvme.sizes import say_size

TABLE_SIZE: Final = 1 << 20
ALIGNMENT: Final = 1 << 20
UNIT: Final = 1 << BLOCK_SHIFTS[-1]
"""A slice is a multiple of so many bytes, the largest block."""
_COPY: Final = TABLE_SIZE // 2
_MAGIC: Final = b"vdcm nvme store\n"
_HEAD: Final = struct.Struct("<16sIIQ")
_TEXT: Final = _HEAD.size + 4
_VERSION: Final = 1


@dataclass
class Slice:
    """``bytes`` of a store from ``offset`` on: namespace ``number`` of the VDEV ``owner``."""

    owner: str
    number: int
    uuid: str
    offset: int
    bytes: int
    block_shift: int
    erase: bool = False

    @property
    def end(self) -> int:
        """Where the next may begin."""
        return -(-(self.offset + self.bytes) // ALIGNMENT) * ALIGNMENT


class Slices:
    """The slices of ``room`` bytes of the store ``name``; ``fd``: where the table is kept, None for
    a store that is gone with the process."""

    def __init__(self, name: str, room: int, fd: int | None = None) -> None:
        self._name: Final = name
        self.room: Final = room
        self._fd: Final = fd
        self._sequence = 0
        self._lock: Final = threading.Lock()
        self._asked = self._saved = 0  # numbers of states of the table
        self.counts: dict[str, dict[str, int]] = {}
        self._slices: list[Slice] = []
        if fd is not None:
            self._load(fd)

    def __iter__(self) -> Iterator[Slice]:
        return iter(self._slices)

    @property
    def free(self) -> int:
        """Bytes that are in no slice."""
        return self.room - sum(one.bytes for one in self._slices)

    def of(self, owner: str) -> list[Slice]:
        """Those of a VDEV, by number."""
        return sorted((s for s in self._slices if s.owner == owner), key=lambda s: s.number)

    def have(self, owner: str, count: int, size: int, block_shift: int) -> list[Slice]:
        """``count`` slices of ``size`` bytes each for a VDEV: those that it has, or new ones.

        VdcmError if it has others, ResourceError if there is no room.
        """
        found = self.of(owner)
        if found:
            if len(found) != count or any(one.bytes != size for one in found):
                had = f"{len(found)} of {say_size(found[0].bytes)}"
                raise VdcmError(
                    f"{owner} has {had} in {self._name} and is now to have {count} of "
                    f"{say_size(size)}: define it as before, or undefine it, which loses its data"
                )
            return found
        kept = list(self._slices)
        try:
            for number in range(1, count + 1):
                uuid = UUID(bytes=random_bytes(16), version=4)
                self._add(Slice(owner, number, str(uuid), 0, size, block_shift))
            self.save()
        except BaseException:
            self._slices = kept
            raise
        return self.of(owner)

    def _add(self, new: Slice) -> None:
        at = 0
        for index, one in enumerate(self._slices):
            if at + new.bytes <= one.offset:
                new.offset = at
                self._slices.insert(index, new)
                return
            at = one.end
        if at + new.bytes > self.room:
            raise ResourceError(
                f"{self._name} has no {say_size(new.bytes)} in one piece left for {new.owner}: "
                f"{self.room - self.free} of {self.room} bytes are in slices; undefine a VDEV, or "
                "give the parent a larger store"
            )
        new.offset = at
        self._slices.append(new)

    def give_up(self, owner: str) -> list[Slice]:
        """A VDEV is no more: its slices are nobody's, to be erased and then removed. Like
        ``remove``, this changes the table; to save it is the caller's."""
        found = self.of(owner)
        for one in found:
            one.owner, one.erase = "", True
        self.counts.pop(owner, None)
        return found

    def remove(self, one: Slice) -> None:
        """Its place is free."""
        self._slices.remove(one)

    # The table.

    def save(self) -> None:
        """Bring the table to the disk; VdcmError if that cannot be."""
        self.saving()()

    def saving(self) -> Callable[[], None]:
        """What brings the table, as it is now, to the disk when it is called, from any thread;
        VdcmError if that cannot be. It is nothing where a newer one has been brought there."""
        if self._fd is None:
            return lambda: None
        table = {"slices": [asdict(one) for one in self._slices], "counts": self.counts}
        self._asked += 1
        return partial(self._write, self._fd, json.dumps(table).encode(), self._asked)

    def _write(self, fd: int, text: bytes, number: int) -> None:
        if _TEXT + len(text) > _COPY:
            raise ResourceError(f"{self._name}: its table is full: undefine a VDEV")
        with self._lock:
            if number < self._saved:
                return
            sequence = self._sequence + 1
            head = _HEAD.pack(_MAGIC, _VERSION, len(text), sequence)
            checksum = zlib.crc32(text, zlib.crc32(head)).to_bytes(4, "little")
            data, at = head + checksum + text, sequence % 2 * _COPY
            try:
                # Only this is waited for, not all that guests have written.
                if os.pwritev(fd, [data], at, os.RWF_DSYNC) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                with suppress(OSError):  # whatever has come there, the other copy holds
                    os.pwrite(fd, bytes(_HEAD.size), at)
                raise VdcmError(f"{self._name}: its table cannot be written: {error}") from error
            self._sequence, self._saved = sequence, number

    def _load(self, fd: int) -> None:
        try:
            data = os.pread(fd, TABLE_SIZE, 0)
        except OSError as error:
            raise VdcmError(f"{self._name} cannot be read: {error}") from error
        copies = [_parse(data[at : at + _COPY]) for at in (0, _COPY)]
        valid = [copy for copy in copies if copy is not None]
        if not valid:
            if data.strip(b"\0"):
                raise VdcmError(
                    f"{self._name} holds something else, which would be lost: name another, or "
                    f"overwrite its first {say_size(TABLE_SIZE)} with zeros"
                )
            self.save()
            return
        self._sequence, table = max(valid, key=lambda copy: copy[0])
        try:
            self._slices = sorted(map(_slice, table["slices"]), key=lambda one: one.offset)
            self.counts = _counts(table.get("counts", {}))
            _check(self._slices, self.room)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise VdcmError(
                f"{self._name}: its table is damaged ({error}); restore it from a copy, or "
                "overwrite it with zeros, which loses what is in the store"
            ) from error


def _parse(data: bytes) -> tuple[int, dict[str, Any]] | None:
    """Sequence number and content of a copy of the table; None if it is none."""
    if len(data) < _TEXT:
        return None
    magic, version, size, sequence = _HEAD.unpack_from(data)
    head, checksum = data[: _HEAD.size], int.from_bytes(data[_HEAD.size : _TEXT], "little")
    text = data[_TEXT : _TEXT + size]
    if magic != _MAGIC or version != _VERSION or zlib.crc32(text, zlib.crc32(head)) != checksum:
        return None
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return (sequence, table) if isinstance(table, dict) and "slices" in table else None


def _slice(given: Any) -> Slice:
    one = Slice(**given)
    for name, kind in (("owner", str), ("uuid", str), ("erase", bool)):
        if type(getattr(one, name)) is not kind:
            raise ValueError(f"{name} of a slice is no {kind.__name__}")
    for name in ("number", "offset", "bytes", "block_shift"):
        if type(getattr(one, name)) is not int or getattr(one, name) < 0:
            raise ValueError(f"{name} of a slice is no number")
    UUID(one.uuid)
    if one.offset % ALIGNMENT or one.bytes % UNIT or one.block_shift not in BLOCK_SHIFTS:
        raise ValueError(f"the slice at {one.offset:#x} is not aligned")
    return one


def _counts(given: Any) -> dict[str, dict[str, int]]:
    for counts in given.values():
        if any(type(count) is not int or count < 0 for count in counts.values()):
            raise ValueError("a count is no number")
    return dict(given)


def _check(slices: Iterable[Slice], room: int) -> None:
    at = 0
    for one in slices:
        if one.offset < at:
            raise ValueError(f"the slice at {one.offset:#x} overlaps the one before")
        at = one.offset + one.bytes
    if at > room:
        raise ValueError(f"the last slice ends at {at:#x}, beyond the store")
