"""The file: a header, then records in order of time, in compressed blocks (docs/recording.md).

Whoever writes a file may be hostile, so whatever is read is bounded before it is used.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from io import FileIO
from pathlib import Path
from typing import Any, Final

from vdcm.errors import RecordingError

MAGIC: Final = b"vdcmrec\n"
VERSION: Final = 1
START: Final = struct.Struct("<8sHH")
"""Magic, version, 0."""
BLOCK: Final = struct.Struct("<IIII")
"""Bytes of the block as it is stored and as it was, number of its records, CRC-32 as stored."""
BLOCK_SIZE: Final = 1 << 18
"""Bytes of records with which a block is full."""
RECORD_LIMIT: Final = 1 << 24
BLOCK_LIMIT: Final = BLOCK_SIZE + RECORD_LIMIT


class Kind(IntEnum):
    """What a record is. Up to 31: what happens to the device; above: what it does then."""

    HEADER = 0
    ATTACH = 1
    DETACH = 2
    READ = 3
    WRITE = 4
    RESET = 5
    MEMORY = 6
    VECTORS = 7
    HOST = 8
    LOOP = 9
    END = 31
    ANSWER = 32
    FAILED = 33
    DMA_READ = 34
    DMA_WRITE = 35
    DMA_REFUSED = 36
    PAGE = 37
    SAME_PAGE = 38
    NO_PAGE = 39
    INTERRUPT = 40
    LINE = 41
    FORGET = 42

    @property
    def effect(self) -> bool:
        return self > Kind.END


FIELDS: Final[dict[Kind, dict[str, type]]] = {
    Kind.HEADER: {"header": str},
    Kind.ATTACH: {"time": int},
    Kind.DETACH: {"time": int},
    Kind.READ: {"time": int, "region": int, "offset": int, "width": int},
    Kind.WRITE: {"time": int, "region": int, "offset": int, "width": int, "value": int},
    Kind.RESET: {"time": int},
    Kind.MEMORY: {"time": int, "iova": int, "size": int, "mapped": int, "shared": int},
    Kind.VECTORS: {"time": int, "irq": int, "action": int, "first": int, "count": int},
    Kind.HOST: {"time": int, "what": str, "values": str},
    Kind.LOOP: {"time": int, "own": int, "others": int},
    Kind.END: {"time": int, "reason": str},
    Kind.ANSWER: {"value": int},
    Kind.FAILED: {"error": str},
    Kind.DMA_READ: {"iova": int, "data": bytes},
    Kind.DMA_WRITE: {"iova": int, "data": bytes},
    Kind.DMA_REFUSED: {"iova": int, "size": int, "write": int, "reason": str},
    Kind.PAGE: {"address": int, "write": int, "data": bytes},
    Kind.SAME_PAGE: {"address": int, "write": int},
    Kind.NO_PAGE: {"address": int, "write": int},
    Kind.INTERRUPT: {"irq": str, "vector": int, "outcome": str},
    Kind.LINE: {"asserted": int},
    Kind.FORGET: {},
}
"""Of each record. Times are in ns since the record began."""


_PLACES: Final = {
    kind: {name: place for place, name in enumerate(fields)} for kind, fields in FIELDS.items()
}


@dataclass(frozen=True, slots=True)
class Record:
    """``values``: those of ``FIELDS``, in their order; ``record[NAME]`` is one of them."""

    kind: Kind
    values: tuple[Any, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.values[_PLACES[self.kind][name]]


def encode(record: Record) -> bytes:
    """A byte for the kind; then ints as LEB128, text and bytes after their length."""
    out = bytearray([record.kind])
    for value in record.values:
        if isinstance(value, int):
            _number(out, value)
        else:
            data = value.encode() if isinstance(value, str) else value
            _number(out, len(data))
            out += data
    return bytes(out)


def _number(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def decode(data: bytes, count: int) -> Iterator[Record]:
    """The ``count`` records that ``data`` is made of; ValueError where it is not."""
    at = 0

    def number() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        if byte > 0x7F or value >> 64:
            raise ValueError("a number of more than 64 bits")
        return value

    def piece() -> bytes:
        nonlocal at
        size = number()
        if size > len(data) - at:
            raise ValueError("a field that ends beyond its block")
        at += size
        return data[at - size : at]

    try:
        for _ in range(count):
            kind = Kind(data[at])
            at += 1
            values: list[Any] = []
            for wanted in FIELDS[kind].values():
                if wanted is int:
                    values.append(number())
                else:
                    values.append(piece() if wanted is bytes else piece().decode())
            yield Record(kind, tuple(values))
    except IndexError:
        raise ValueError("a record that ends beyond its block") from None
    if at != len(data):
        raise ValueError("bytes that belong to no record")


class Writer:
    """Writes a new file; OSError as ``open``, also if it exists. ``limit``: bytes of it."""

    def __init__(self, path: Path, header: dict[str, Any], limit: int) -> None:
        self._file: FileIO = path.open("xb", buffering=0)
        self._waiting = bytearray()
        self._count = 0
        self._limit = limit
        self.records = 0
        self.bytes = 0
        try:
            self._write(START.pack(MAGIC, VERSION, 0))
            self.add(Record(Kind.HEADER, (json.dumps(header, separators=(",", ":")),)))
            self.flush()
        except OSError:
            self.abandon()
            path.unlink()
            raise

    @property
    def full(self) -> bool:
        return self.bytes > self._limit

    def add(self, record: Record) -> None:
        encoded = encode(record)
        if len(encoded) > RECORD_LIMIT:
            raise RecordingError(f"a record of {len(encoded)} bytes: {RECORD_LIMIT} at most")
        self._waiting += encoded
        self._count += 1
        self.records += 1
        if len(self._waiting) >= BLOCK_SIZE:
            self.flush()

    def flush(self) -> None:
        """Bring what waits into the file, as a block."""
        if not self._count:
            return
        data = zlib.compress(self._waiting)
        head = BLOCK.pack(len(data), len(self._waiting), self._count, zlib.crc32(data))
        self._write(head + data)
        self._waiting.clear()
        self._count = 0

    def _write(self, data: bytes) -> None:
        while data:  # a disk that is almost full takes a part
            written = self._file.write(data)
            self.bytes += written
            data = data[written:]

    def abandon(self) -> None:
        """Close the file as it is."""
        self._file.close()

    def close(self) -> None:
        """Twice is harmless. Without a record END before, the file is not whole."""
        if not self._file.closed:
            self.flush()
            self._file.close()


class Reader:
    """What ``path`` holds. RecordingError if it is no record of a session, or of a version that is
    not known here."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise RecordingError(f"{path}: {error.strerror}") from error
        start = self._file.read(START.size)
        if len(start) < START.size or not start.startswith(MAGIC):
            self._file.close()
            raise RecordingError(f"{path} is no record of a session, as vdcm record makes them")
        _, version, _ = START.unpack(start)
        if version != VERSION:
            self._file.close()
            raise RecordingError(
                f"{path} is a record of version {version}, this vdcm knows version {VERSION}: "
                "replay it with the vdcm that has made it, or record anew"
            )
        self.good = 0
        """Records that have been read."""
        self.time = 0
        """Of the last of them that has one, in ns."""

    def close(self) -> None:
        self._file.close()

    def records(self) -> Iterator[Record]:
        """All of them, the header and the end too. RecordingError where the file ends too early or
        makes no sense, which says how many of its records are good."""
        self._file.seek(START.size)
        self.good = self.time = 0
        kind = None
        while kind is not Kind.END:
            for record in self._block():
                if kind is Kind.END:
                    raise self._bad("a record behind its end")
                if (kind is None) != (record.kind is Kind.HEADER):
                    raise self._bad("a header that is not its first record")
                kind = record.kind
                if not kind.effect and kind is not Kind.HEADER:
                    if record["time"] < self.time:
                        raise self._bad("a time that goes back")
                    self.time = record["time"]
                self.good += 1
                yield record
        if self._file.read(1):
            raise self._bad("bytes behind its end")

    def check(self) -> int:
        """How many records it has, all of which have been looked at; RecordingError as above."""
        return sum(1 for _ in self.records())

    def _block(self) -> Iterator[Record]:
        begin = self._file.tell()
        head = self._file.read(BLOCK.size)
        if len(head) < BLOCK.size:
            raise self._short(begin + len(head), "where a block should begin" if not head else "")
        stored, size, count, crc = BLOCK.unpack(head)
        if max(stored, size) > BLOCK_LIMIT or count > size:
            raise self._bad(f"a block of {max(stored, size, count)} bytes")
        data = self._file.read(stored)
        if len(data) < stored:
            raise self._short(begin + BLOCK.size + len(data))
        if zlib.crc32(data) != crc:
            raise self._bad(f"a block at byte {begin} whose checksum is wrong")
        try:
            unpacker = zlib.decompressobj()
            raw = unpacker.decompress(data, size + 1)
            if len(raw) != size or not unpacker.eof or unpacker.unused_data:
                raise ValueError("a length that is wrong")
            yield from decode(raw, count)
        except (zlib.error, ValueError) as error:  # UnicodeDecodeError is one
            raise self._bad(f"a block at byte {begin} that makes no sense ({error})") from None

    def _short(self, size: int, where: str = "") -> RecordingError:
        return RecordingError(
            f"{self.path} is not whole: it ends at byte {size}, "
            f"{where or 'in the middle of a block'}; its first {self._good()}. "
            "Has vdcm record ended? If it never will: vdcm replay --partial"
        )

    def _bad(self, what: str) -> RecordingError:
        return RecordingError(f"{self.path} has {what}; the {self._good()} before that")

    def _good(self) -> str:
        return f"{self.good} records, {self.time / 1e9:.3f} s, are good"
