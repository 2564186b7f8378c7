"""A reader of memory by PASID, as a sweep thread has one."""

from __future__ import annotations

from vdcm._native import ffi, lib


class Reader:
    """Reaches and touches; codes are 0 or negative errno values as in native/memory.h."""

    def __init__(self) -> None:
        self._native = lib.vdcm_reader_new()
        assert self._native != ffi.NULL, "all readers are in use"

    def reach(self, pasid: int, iova: int, length: int, *, write: bool = False) -> tuple[int, int]:
        """The code, and how many bytes lie there in one piece (0 with an error)."""
        code, _, here = self._reach(pasid, iova, length, write)
        return code, here

    def read(self, pasid: int, iova: int, length: int) -> tuple[int, bytes]:
        """The code and the bytes of the first piece; stays inside until ``leave``."""
        code, memory, here = self._reach(pasid, iova, length, False)
        return code, bytes(ffi.buffer(memory, here)) if not code else b""

    def write(self, pasid: int, iova: int, data: bytes) -> int:
        """Write ``data``, all of it in one piece, and leave."""
        code, memory, here = self._reach(pasid, iova, len(data), True)
        if not code:
            assert here == len(data)
            ffi.memmove(memory, data, here)
        self.leave()
        return code

    def _reach(self, pasid: int, iova: int, length: int, write: bool) -> tuple[int, object, int]:
        memory, here = ffi.new("void **"), ffi.new("uint64_t *")
        code: int = lib.vdcm_reach(self._native, pasid, iova, length, write, memory, here)
        return code, memory[0], 0 if code else here[0]

    def leave(self) -> None:
        lib.vdcm_leave(self._native)

    def close(self) -> None:
        lib.vdcm_reader_free(self._native)
