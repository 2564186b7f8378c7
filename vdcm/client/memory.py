"""What a client shares with a server: mapped memory, DMA buffers, eventfds."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
from collections.abc import Callable, Iterable
from typing import Literal, Self

from vdcm.errors import DmaError, ProtocolError, StateError
from vdcm.protocol import DMA_ACCESS, Area, Command, DmaFlags, command_name, unpack

_CAST: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Eventfd:
    """An interrupt's eventfd. ``wait`` counts the interrupts since the last wait."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        return self._fd

    def wait(self, timeout: float | None = None) -> int:
        """The number of signals since the last wait; 0 if none came within ``timeout`` seconds."""
        if self._fd < 0:
            raise StateError("the eventfd is closed: enable the interrupt again")
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.poll(None if timeout is None else max(0.0, timeout * 1000))
        try:
            return os.eventfd_read(self._fd)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class MappedMemory:
    """Memory shared with the server: ``view`` is all of it, as bytes.

    ``read`` and ``write`` make one load or store of 1, 2, 4 or 8 bytes, little endian; the offset
    is a multiple of the width, or the access would not be one.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._mmap = memory
        self.view = memoryview(memory)

    def __len__(self) -> int:
        return len(self.view)

    def read(self, offset: int, width: int) -> int:
        value = self._word(offset, width)[0]
        return int(value)

    def write(self, offset: int, width: int, value: int) -> None:
        word = self._word(offset, width)
        if word.readonly:
            raise DmaError(f"offset {offset:#x} is mapped read-only: write it by Client.write")
        word[0] = value & ((1 << 8 * width) - 1)

    def close(self) -> None:
        """Unmap; the memory stays mapped for as long as the caller holds slices of ``view``."""
        self.view.release()
        with contextlib.suppress(BufferError):  # then it goes with the last slice
            self._mmap.close()

    def _word(self, offset: int, width: int) -> memoryview[int]:
        if width not in _CAST or offset % width or not 0 <= offset <= len(self.view) - width:
            raise DmaError(
                f"offset {offset:#x} of {len(self.view):#x} mapped bytes has no aligned word of"
                f" {width} bytes"
            )
        return self.view[offset : offset + width].cast(_CAST[width])


class MappedArea(MappedMemory):
    """A mapped area of a region; offsets in ``view`` count from the area's start, ``offset``."""

    def __init__(self, memory: mmap.mmap, region: int, area: Area, writable: bool) -> None:
        super().__init__(memory)
        self.region = region
        self.offset = area.offset
        self.size = area.size
        self.writable = writable


class DmaBuffer(MappedMemory):
    """Memory that the device reaches at ``iova``; ``close`` takes it away from the device.

    ``flags`` is what the device may do. ``mapped`` is false once the server was told to unmap it.
    """

    def __init__(
        self,
        memory: mmap.mmap,
        fd: int,
        iova: int,
        flags: DmaFlags,
        unmap: Callable[[DmaBuffer], None],
    ) -> None:
        super().__init__(memory)
        self.fd = fd
        self.iova = iova
        self.size = len(memory)
        self.flags = flags
        self.mapped = True
        self._unmap = unmap

    def close(self) -> None:
        """DMA_UNMAP (unless the connection is gone), then unmap and close. Twice is harmless."""
        if self.fd < 0:
            return
        try:
            self._unmap(self)
        finally:
            super().close()
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve_dma(buffers: Iterable[DmaBuffer], command: int, payload: bytes, limit: int) -> bytes:
    """The reply's payload to a server's DMA_READ or DMA_WRITE, carried out on ``buffers``.

    ``limit`` is the most bytes that one message may move. Raises DmaError if no buffer covers the
    access or allows it, ProtocolError for a malformed or foreign request.
    """
    if command not in (Command.DMA_READ, Command.DMA_WRITE):
        raise ProtocolError(f"a server does not send {command_name(command)}")
    address, count = unpack(DMA_ACCESS, payload, command_name(command))
    data = payload[DMA_ACCESS.size :]
    reading = command == Command.DMA_READ
    if count > limit or len(data) != (0 if reading else count):
        raise ProtocolError(f"{command_name(command)} of {count} bytes carries {len(data)}")
    needed = DmaFlags.READ if reading else DmaFlags.WRITE
    for buffer in buffers:
        at = address - buffer.iova
        if at >= 0 and at + count <= buffer.size and buffer.mapped and buffer.flags & needed:
            break
    else:
        raise DmaError(f"no DMA buffer gives {count} bytes at {address:#x}")
    if reading:
        return payload + bytes(buffer.view[at : at + count])
    buffer.view[at : at + count] = data
    return payload[: DMA_ACCESS.size]


def writable_parts(area: Area, read_only: Iterable[Area]) -> list[tuple[Area, bool]]:
    """Cut ``area`` at the borders of the ``read_only`` areas: (part, writable) in order."""
    parts: list[tuple[Area, bool]] = []
    at = area.offset
    for hole in sorted(read_only):
        start, end = max(hole.offset, at), min(hole.end, area.end)
        if start >= end:
            continue
        if start > at:
            parts.append((Area(at, start - at), True))
        parts.append((Area(start, end - start), False))
        at = end
    if at < area.end:
        parts.append((Area(at, area.end - at), True))
    return parts
