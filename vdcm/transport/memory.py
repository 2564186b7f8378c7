"""The guest memory that a client has mapped for DMA."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from vdcm._native import ffi, lib
from vdcm.errors import DmaError


class DmaRange(NamedTuple):
    """A range of I/O virtual addresses that the client has announced (bytes)."""

    iova: int
    size: int
    shared: bool
    readable: bool
    writable: bool


NOT_SHARED: Final = (
    "guest memory is not shared with vdcm: start QEMU with "
    "-object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem "
    "(vdcm qemu-args prints the line)"
)
_DMA_REASONS = {
    errno.EFAULT: "the address is not mapped",
    errno.ENXIO: NOT_SHARED,
    errno.EACCES: "the client mapped it without permission for this",
    errno.EIO: "the file behind the mapping has shrunk",
    errno.EREMOTEIO: "a test has injected this fault",
}


def maps_privately(pid: int, file: tuple[int, int]) -> bool:
    """Does process ``pid`` map ``file`` (device, inode) privately, and nowhere shared?

    Source: proc_pid_maps(5). False if the process or its map cannot be seen.
    """
    device, inode = file
    key = f"{os.major(device):02x}:{os.minor(device):02x} {inode}"
    kinds = set()
    with suppress(OSError), Path(f"/proc/{pid}/maps").open() as maps:
        for line in maps:
            fields = line.split(None, 5)
            if f"{fields[3]} {fields[4]}" == key:
                kinds.add(fields[1][3])
    return kinds == {"p"}


class GuestMemory:
    """The memory that one client has mapped for DMA (vfio-user DMA_MAP), and only that.

    Ranges come and go with the client's messages; ``map`` and ``unmap`` are for tests and for
    memory that does not come from a client.
    """

    def __init__(self, native: Any = None) -> None:
        # A session's own address space is freed with the session, one made here by cffi's gc.
        self.native = native or ffi.gc(lib.vdcm_aspace_new(), lib.vdcm_aspace_free)
        if self.native == ffi.NULL:
            raise MemoryError

    def read(self, iova: int, length: int) -> bytes:
        """``length`` bytes at ``iova``; DmaError if any of them cannot be read."""
        native = self._usable("read", iova, length)
        fault = ffi.new("uint64_t *")
        # The length may be the guest's: looked at before anything is allocated for it.
        result = lib.vdcm_aspace_check(native, iova, length, False, fault)
        if not result:
            buffer = ffi.new("char[]", max(length, 1))
            result = lib.vdcm_aspace_read(native, iova, buffer, length, fault)
        if result:
            raise self._error("read", iova, length, result, fault[0])
        return bytes(ffi.buffer(buffer, length))

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` at ``iova``; DmaError, and nothing written, if any of it cannot be."""
        buffer = ffi.from_buffer(data)
        length = len(buffer)  # bytes, which those of a memoryview's items need not be
        native = self._usable("write", iova, length)
        fault = ffi.new("uint64_t *")
        result = lib.vdcm_aspace_write(native, iova, buffer, length, fault)
        if result:
            raise self._error("write", iova, length, result, fault[0])

    def check(self, iova: int, length: int, *, write: bool) -> None:
        """DmaError if any of ``length`` bytes at ``iova`` cannot be read, or written."""
        verb = "write" if write else "read"
        fault = ffi.new("uint64_t *")
        native = self._usable(verb, iova, length)
        result = lib.vdcm_aspace_check(native, iova, length, write, fault)
        if result:
            raise self._error(verb, iova, length, result, fault[0])

    def disconnect(self) -> None:
        """The client has gone and its memory with it: every access fails from now on."""
        self.native = None

    def _usable(self, verb: str, iova: int, length: int) -> Any:
        what = f"DMA {verb} of {length} bytes at {iova:#x} failed"
        if self.native is None:
            raise DmaError(f"{what}: the client whose memory it was has disconnected")
        if not (0 <= iova < 1 << 64 and 0 <= length < 1 << 64):
            raise DmaError(f"{what}: addresses and lengths have 64 bits")
        return self.native

    @staticmethod
    def _error(verb: str, iova: int, length: int, result: int, fault: int) -> DmaError:
        reason = _DMA_REASONS.get(-result, os.strerror(-result))
        return DmaError(f"DMA {verb} of {length} bytes at {iova:#x} failed at {fault:#x}: {reason}")

    def map(self, iova: int, size: int, fd: int, offset: int = 0, *, writable: bool = True) -> None:
        """Map ``size`` bytes of ``fd`` at ``iova`` (page aligned); DmaError if that cannot be."""
        native = self._usable("map", iova, size)
        result = lib.vdcm_aspace_map(native, iova, size, fd, offset, True, writable)
        if result:
            raise DmaError(f"cannot map {size:#x} bytes at {iova:#x}: {os.strerror(-result)}")

    def unmap(self, iova: int, size: int) -> None:
        """Remove the ranges inside [iova, iova + size); DmaError if none is, or one is cut."""
        result = lib.vdcm_aspace_unmap(self._usable("unmap", iova, size), iova, size)
        if result:
            raise DmaError(f"cannot unmap {size:#x} bytes at {iova:#x}: {os.strerror(-result)}")

    @property
    def ranges(self) -> list[DmaRange]:
        """What is announced now, in ascending order."""
        if self.native is None:
            return []
        limit = lib.VDCM_ASPACE_MAX_RANGES
        found = ffi.new("vdcm_range[]", limit)
        count = lib.vdcm_aspace_ranges(self.native, found, limit)
        return [
            DmaRange(r.iova, r.size, bool(r.mapped), bool(r.readable), bool(r.writable))
            for r in found[0:count]
        ]
