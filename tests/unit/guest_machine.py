"""Guest memory with holes and the services of the engine, in Python: what the C of a device's data
path gets in tests. Times and threads are not in it; what the guest sees is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cffi import FFI

FASTPATH_H = Path(__file__).resolve().parents[2] / "native" / "fastpath.h"
PAGE = 4096
NO_PASID = 0xFFFF_FFFF
EPERM, EFAULT, EACCES, ERANGE = 1, 14, 13, 34

PRIMARY = 7
SECONDARY = 8
GUEST_PASID = 0x123

ffi = FFI()
ffi.cdef(
    "\n".join(
        line
        for line in FASTPATH_H.read_text().replace("256 << 10", "262144").splitlines()
        if not line.startswith("#")
    )
)
ABI = next(
    int(line.split("=")[1].strip(" ,"))
    for line in FASTPATH_H.read_text().splitlines()
    if "VDCM_FASTPATH_ABI =" in line
)
WORKER = ffi.cast("vdcm_worker *", 1)  # never looked into


@dataclass
class Range:
    address: int
    memory: Any  # uint8_t[]
    readable: bool
    writable: bool

    @property
    def size(self) -> int:
        return len(self.memory)


class GuestMachine:
    """The services, for one queue. Memory is by host PASID; ``bound`` gives the guest's PASIDs."""

    fastpath: Any
    """The device's table, and ``opaque``, the queue that it is called with."""
    opaque: Any

    def __init__(self) -> None:
        self.spaces: dict[int, list[Range]] = {}
        self.bound = {GUEST_PASID: PRIMARY}
        self.messages = 4
        self.raised: list[int] = []
        self.reports: list[tuple[int, bytes]] = []
        self.kicks = 0
        self.left = 0
        self.primary = PRIMARY
        self.secondary = SECONDARY
        self.on_leave: Any = lambda: None
        self._callbacks = {
            "reach": self._reach,
            "leave": self._leave,
            "guarded": lambda _worker, body, argument: body(argument),
            "primary": lambda _worker: self.primary,
            "secondary": lambda _worker: self.secondary,
            "translate": lambda _worker, pasid: self.bound.get(pasid, NO_PASID),
            "raise": self._raise,
            "report": self._report,
            "handle": lambda _worker: ffi.NULL,
            "kick": self._kick,
            "now": time.monotonic_ns,
        }
        self._services = ffi.new("vdcm_services *", {"abi": ABI})
        self._kept = []
        for name, function in self._callbacks.items():
            field = dict(ffi.typeof("vdcm_services").fields)[name]
            self._kept.append(ffi.callback(field.type, function))
            setattr(self._services, name, self._kept[-1])
        self.services = int(ffi.cast("uintptr_t", self._services))

    # memory

    def map(
        self,
        address: int,
        content: bytes | int,
        *,
        pasid: int = PRIMARY,
        readable: bool = True,
        writable: bool = True,
    ) -> None:
        """Guest memory at ``address``: these bytes, or as many zeros."""
        memory = ffi.new("uint8_t[]", content if isinstance(content, int) else list(content))
        self.spaces.setdefault(pasid, []).append(Range(address, memory, readable, writable))

    def find(self, pasid: int, address: int) -> Range | None:
        for r in self.spaces.get(pasid, []):
            if r.address <= address < r.address + r.size:
                return r
        return None

    def read(self, address: int, length: int, pasid: int = PRIMARY) -> bytes:
        out = bytearray()
        while len(out) < length:
            r = self.find(pasid, address + len(out))
            assert r is not None, f"{address + len(out):#x} of PASID {pasid} is not mapped"
            offset = address + len(out) - r.address
            out += ffi.buffer(r.memory)[offset : offset + length - len(out)]
        return bytes(out)

    def unmap(self, address: int, pasid: int = PRIMARY) -> None:
        self.spaces[pasid] = [r for r in self.spaces[pasid] if r.address != address]

    # the services

    def _reach(
        self, _worker: Any, pasid: int, address: int, length: int, write: bool, out: Any, here: Any
    ) -> int:
        if pasid == NO_PASID:
            return -EPERM
        r = self.find(pasid, address)
        if r is None:
            return -EFAULT
        if not (r.writable if write else r.readable):
            return -EACCES
        offset = address - r.address
        out[0] = r.memory + offset
        here[0] = min(length, r.size - offset)
        return 0

    def _leave(self, _worker: Any) -> None:
        self.left += 1
        self.on_leave()

    def _raise(self, _worker: Any, message: int) -> int:
        if message >= self.messages:
            return -ERANGE
        self.raised.append(message)
        return 0

    def _report(self, _worker: Any, code: int, data: Any, size: int) -> bool:
        self.reports.append((code, bytes(ffi.buffer(data, size))))
        return True

    def _kick(self, _queue: Any) -> None:
        self.kicks += 1

    # what the sweep calls

    def take(self) -> bool:
        return bool(self.fastpath.take(self.opaque, WORKER))

    def run(self, budget: int = 1 << 62) -> int:
        return int(self.fastpath.run(self.opaque, WORKER, budget))

    def abort(self) -> None:
        self.fastpath.abort(self.opaque, WORKER)

    @property
    def pending(self) -> bool:
        return bool(self.fastpath.pending(self.opaque))
