"""What a hostile guest of the software DSA says: memory with guards, addresses at its borders,
descriptors that are nearly in order. All of it follows from a seed."""

from __future__ import annotations

import mmap
import os
import random
import struct
import time

from dsa_client import INTERRUPT, OPERATIONS, DsaClient
from dsa_machine import descriptor

from vdcm.protocol import DmaFlags

PAGE = 0x1000
TOP = 1 << 64
GUARD = 16 * PAGE
_PATTERN = (bytes(range(1, 252)) * (GUARD // 251 + 1))[:GUARD]
_BOTH = DmaFlags.READ | DmaFlags.WRITE


class Memory:
    """A guest's memory in one file, a guard before and behind each range.

    The ranges are mapped where arithmetic ends. The guards have to stay as they are, and all of the
    read-only range.
    """

    RANGES = (  # I/O virtual address, size, flags
        (0x1000_0000, 512 * PAGE, _BOTH),
        (0x1000_0000 + 512 * PAGE, 16 * PAGE, _BOTH),  # next to it
        (0x2000_0000, 32 * PAGE, DmaFlags.READ),
        (0, 4 * PAGE, _BOTH),
        (TOP - 4 * PAGE, 4 * PAGE, _BOTH),
    )

    def __init__(self) -> None:
        self._offsets = []
        self._size = GUARD
        for _, size, _ in self.RANGES:
            self._offsets.append(self._size)
            self._size += size + GUARD
        self._fd = os.memfd_create("dsa-garbage")
        os.ftruncate(self._fd, self._size)
        self._view = mmap.mmap(self._fd, self._size)
        for at in self._fixed():
            self._view[at : at + GUARD] = _PATTERN

    def _fixed(self) -> list[int]:
        """Offsets of GUARD bytes that nobody may write."""
        found = [0]
        for at, (_, size, flags) in zip(self._offsets, self.RANGES, strict=True):
            found.append(at + size)
            if not flags & DmaFlags.WRITE:
                found += range(at, at + size, GUARD)
        return found

    def map(self, dsa: DsaClient, index: int) -> None:
        iova, size, flags = self.RANGES[index]
        dsa.client.dma_map(iova, size, self._fd, self._offsets[index], flags)

    def map_all(self, dsa: DsaClient) -> None:
        for index in range(len(self.RANGES)):
            self.map(dsa, index)

    def unmap(self, dsa: DsaClient, index: int) -> None:
        iova, size, _ = self.RANGES[index]
        dsa.client.dma_unmap(iova, size)

    def cut(self, known: random.Random) -> None:
        """Take the end of the file away and, once the device may have met it, give it back."""
        at = self._offsets[-1] + known.randrange(self.RANGES[-1][1]) & -PAGE
        os.ftruncate(self._fd, at)
        time.sleep(0.002)
        os.ftruncate(self._fd, self._size)
        self._view[-GUARD:] = _PATTERN

    def put(self, known: random.Random, data: bytes) -> None:
        """Store ``data`` somewhere, where descriptors and deltas may be read at this moment."""
        at = self._offsets[0] + known.randrange(self.RANGES[0][1] - len(data)) & -32
        self._view[at : at + len(data)] = data

    def check(self) -> None:
        for at in self._fixed():
            assert self._view[at : at + GUARD] == _PATTERN, f"the guard at {at:#x} was written to"

    def close(self) -> None:
        self._view.close()
        os.close(self._fd)


def address(known: random.Random) -> int:
    """In a range mostly, often at its border, rarely anywhere."""
    iova, size, _ = known.choice(Memory.RANGES)
    kind = known.random()
    if kind < 0.7:
        return iova + known.randrange(size)
    if kind < 0.95:
        return (iova + known.choice((0, size)) + known.randrange(-80, 80)) % TOP
    return known.getrandbits(64)


def length(known: random.Random) -> int:
    return known.choice(
        (
            known.randrange(1, 300),
            known.randrange(8 * PAGE),
            8 * known.randrange(64),
            known.randrange(1 << 21),
            known.getrandbits(32),
        )
    )


def a_descriptor(known: random.Random, *, member: bool = False) -> bytes:
    """One that is in order as such; three of ten then have a field changed. The first word is not
    zero, as in a direct portal."""
    names = [name for name in OPERATIONS if not (member and name in ("BATCH", "DRAIN"))]
    name = known.choice(names)
    fields, specific = _fields(known, name)
    interrupt = known.random() < 0.25
    data = bytearray(
        descriptor(
            OPERATIONS[name],
            0x0C | INTERRUPT * interrupt,
            completion=address(known) & -32,
            handle=int(interrupt),
            specific=specific,
            pasid=1,
            **fields,
        )
    )
    if known.random() < 0.3:
        data[known.randrange(64)] = known.getrandbits(8)
    data[0] |= 1
    return bytes(data)


def _fields(known: random.Random, name: str) -> tuple[dict[str, int], bytes]:
    """Source, destination and size as the operation has them, and bytes 40 to 63."""
    source, destination, size = address(known), address(known), length(known)
    fields = {"source": source, "destination": destination, "size": size}
    match name:
        case "NOOP" | "DRAIN":
            return {}, b""
        case "BATCH":
            return {"source": source & -64, "size": known.choice((2, 3, 20, 200, 1 << 15))}, b""
        case "CACHE_FLUSH":
            return {"destination": destination, "size": size}, b""
        case "FILL":
            return {**fields, "source": known.getrandbits(64)}, b""
        case "COMPARE_PATTERN":
            return {**fields, "destination": known.choice((0, known.getrandbits(64)))}, b""
        case "CREATE_DELTA":
            record = struct.pack("<QI", address(known), known.choice((80, 800, 1 << 15)))
            aligned = {"source": source & -8, "destination": destination & -8}
            return {**aligned, "size": size & 0x7FFF8}, record
        case "APPLY_DELTA":
            fields |= {"destination": destination & -8, "size": size & 0x7FFF8}
            return fields, struct.pack("<I", known.choice((10, 100, 8000)))
        case "DUALCAST":
            other = address(known) & -PAGE | destination & PAGE - 1
            return fields, struct.pack("<Q", other)
        case "CRC":
            return {"source": source, "size": size}, struct.pack("<I", known.getrandbits(32))
        case "DIF_CHECK" | "DIF_INSERT" | "DIF_STRIP" | "DIF_UPDATE":
            kind = known.randrange(4)
            block = (512, 520, 4096, 4104)[kind] + 8 * (name != "DIF_INSERT")
            fields["size"] = block * known.randrange(1, 20)
            if name == "DIF_CHECK":
                del fields["destination"]
            lenient = 0 if name == "DIF_INSERT" else 0x60  # no guard, no reference tag
            flags = bytes((known.choice((lenient, 0)), 0, kind)) + bytes(5)
            tags = struct.pack("<IHH", known.getrandbits(32), 0xFFFF, 0)
            return fields, flags + (bytes(8) + tags if name == "DIF_INSERT" else tags)
    return fields, b""
