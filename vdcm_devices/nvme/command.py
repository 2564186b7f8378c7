"""A submission queue entry, and the memory that it points to (NVM Express 1.4, 4.2 and 4.3)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from vdcm import DmaError
from vdcm_devices.nvme.codes import NvmeError, Status

SIZE: Final = 64
_ENTRY: Final = struct.Struct("<BBHIIIQQQ6I")
PRP1, PRP2 = 24, 32
"""Bytes of the entry where they are; command dword n is at byte 4n."""


class Memory(Protocol):
    """The guest's memory; both raise DmaError."""

    def dma_read(self, iova: int, length: int) -> bytes: ...
    def dma_write(self, iova: int, data: bytes) -> None: ...


class Command(NamedTuple):
    """Figure 104. ``flags``: FUSE in bits 1:0, PSDT in 7:6."""

    opcode: int
    flags: int
    cid: int
    nsid: int
    cdw2: int
    cdw3: int
    metadata: int
    prp1: int
    prp2: int
    cdw10: int
    cdw11: int
    cdw12: int
    cdw13: int
    cdw14: int
    cdw15: int

    @classmethod
    def parse(cls, entry: bytes) -> Command:
        """Of 64 bytes."""
        return cls(*_ENTRY.unpack(entry))


class Pointer:
    """Where a command's data is: ``length`` bytes, in memory pages of ``page`` bytes.

    NvmeError if that cannot be: a list or an offset that is wrong. Admin commands have PRPs only
    (4.3). The pieces are found as they are needed, so a list is no longer than the data.
    """

    def __init__(self, memory: Memory, command: Command, length: int, page: int) -> None:
        self._memory = memory
        self._command = command
        self._length = length
        self._page = page

    def write(self, data: bytes) -> None:
        """To the host; as much as there is room for."""
        at = 0
        for address, size in self._pieces():
            part = data[at : at + size]
            if not part:
                return
            try:
                self._memory.dma_write(address, part)
            except DmaError as error:
                raise NvmeError(Status.DATA_TRANSFER_ERROR, PRP1) from error
            at += size

    def read(self) -> bytes:
        """From the host."""
        return b"".join(self._fetch(address, size) for address, size in self._pieces())

    def _fetch(self, address: int, size: int) -> bytes:
        try:
            return self._memory.dma_read(address, size)
        except DmaError as error:
            raise NvmeError(Status.DATA_TRANSFER_ERROR, PRP1) from error

    def _pieces(self) -> Iterator[tuple[int, int]]:
        first, second, page = self._command.prp1, self._command.prp2, self._page
        if first % 4:
            raise NvmeError(Status.PRP_OFFSET_INVALID, PRP1)
        size = min(self._length, page - first % page)
        yield first, size
        left = self._length - size
        if left == 0:
            return
        if left <= page:
            if second % page:
                raise NvmeError(Status.PRP_OFFSET_INVALID, PRP2)
            yield second, left
            return
        yield from self._listed(second, left)

    def _listed(self, at: int, left: int) -> Iterator[tuple[int, int]]:
        """The entries of a PRP list at ``at``; the last of a page leads on, unless it is the last
        of all (4.3, figure 107)."""
        page = self._page
        if at % 8:
            raise NvmeError(Status.PRP_OFFSET_INVALID, PRP2)
        while left:
            room = (page - at % page) // 8
            needed = -(-left // page)
            count = min(room, needed)
            entries = list(struct.unpack(f"<{count}Q", self._fetch(at, 8 * count)))
            if needed > room:
                at = entries.pop()
                if at % page:
                    raise NvmeError(Status.PRP_OFFSET_INVALID, PRP2)
            for address in entries:
                if address % page:
                    raise NvmeError(Status.PRP_OFFSET_INVALID, PRP2)
                size = min(left, page)
                yield address, size
                left -= size
