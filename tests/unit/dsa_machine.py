"""A machine for one queue of the DSA's data path: guest memory with holes, and the services of the
engine, in Python. Times and threads are not in it; what the guest sees of its descriptors is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cffi import FFI

from vdcm_devices.dsa._fastpath import ffi as dsa_ffi
from vdcm_devices.dsa._fastpath import lib

FASTPATH_H = Path(__file__).resolve().parents[2] / "native" / "fastpath.h"
PAGE = 4096
NO_PASID = 0xFFFF_FFFF
EPERM, EFAULT, EACCES, ERANGE = 1, 14, 13, 34

PRIMARY = 7
SECONDARY = 8
GUEST_PASID = 0x123

ALL_OPERATIONS = (1 << 64) - 1
GENCAP = (
    lib.DSA_CAP_OVERLAPPING_COPY
    | lib.DSA_CAP_CACHE_CONTROL_MEMORY
    | lib.DSA_CAP_CACHE_CONTROL_FLUSH
    | lib.DSA_CAP_DESTINATION_READBACK
    | lib.DSA_CAP_DRAIN_READBACK
    | lib.DSA_CAP_FAULT_INFO
)

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


@dataclass
class Range:
    address: int
    memory: Any  # uint8_t[]
    readable: bool
    writable: bool

    @property
    def size(self) -> int:
        return len(self.memory)


@dataclass(frozen=True)
class Completion:
    """A completion record (8.2), and its operation-specific 16 bytes."""

    status: int
    result: int
    fault_info: int
    completed: int
    fault_address: int
    specific: bytes

    @classmethod
    def parse(cls, record: bytes) -> Completion:
        status, result, info, _, completed, address, specific = struct.unpack("<BBBBIQ16s", record)
        return cls(status, result, info, completed, address, specific)


def descriptor(
    operation: int,
    flags: int = 0,
    *,
    completion: int = 0,
    source: int = 0,
    destination: int = 0,
    size: int = 0,
    handle: int = 0,
    specific: bytes = b"",
    pasid: int = 0,
) -> bytes:
    """The 64 bytes of a descriptor (8.1); ``specific`` is bytes 40 to 63."""
    return struct.pack(
        "<IIQQQIHH24s",
        pasid,
        operation << 24 | flags,
        completion,
        source,
        destination,
        size,
        handle,
        0,
        specific,
    )


class Machine:
    """One queue; ``shared``: of this shared WQ. Memory is by host PASID; a dedicated queue works
    with PRIMARY and SECONDARY, a shared one with the PASIDs that ``bound`` gives the guest's."""

    def __init__(self, shared: Any = None, **settings: int) -> None:
        self.spaces: dict[int, list[Range]] = {}
        self.bound = {GUEST_PASID: PRIMARY}
        self.messages = 4
        self.raised: list[int] = []
        self.reports: list[tuple[int, bytes]] = []
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
        }
        self._services = ffi.new("vdcm_services *", {"abi": ABI})
        self._kept = []
        for name, function in self._callbacks.items():
            field = dict(ffi.typeof("vdcm_services").fields)[name]
            self._kept.append(ffi.callback(field.type, function))
            setattr(self._services, name, self._kept[-1])
        table = int(ffi.cast("uintptr_t", self._services))
        self.queue = lib.dsa_queue_new(shared or dsa_ffi.NULL, table)
        assert self.queue != dsa_ffi.NULL
        self.fastpath = ffi.cast("vdcm_fastpath *", lib.dsa_fastpath())
        self.opaque = ffi.cast("void *", int(dsa_ffi.cast("uintptr_t", self.queue)))
        self.configure(**settings)

    def configure(self, **settings: int) -> None:
        values: dict[str, Any] = {
            "flags": lib.DSA_WQ_PASID | lib.DSA_USER_INTERRUPTS,
            "size": 16,
            "max_transfer": 1 << 21,
            "max_batch": 64,
            "index": 3,
            "pasid": 0x55,
            "gencap": GENCAP,
            "operations": [ALL_OPERATIONS] * 4,
        }
        values.update(settings)
        assert lib.dsa_queue_configure(self.queue, dsa_ffi.new("dsa_settings *", values)) == 0

    def close(self) -> None:
        lib.dsa_queue_free(self.queue)

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

    # the queue

    def submit(self, *descriptors: bytes, portal: int = 0) -> list[int]:
        return [lib.dsa_submit(self.queue, portal, d) for d in descriptors]

    def take(self) -> bool:
        return bool(self.fastpath.take(self.opaque, ffi.NULL))

    def run(self, budget: int = 1 << 62) -> int:
        return int(self.fastpath.run(self.opaque, ffi.NULL, budget))

    def abort(self) -> None:
        self.fastpath.abort(self.opaque, ffi.NULL)

    @property
    def pending(self) -> bool:
        return bool(self.fastpath.pending(self.opaque))

    def execute(self, *descriptors: bytes, budget: int | None = None) -> None:
        """Submits and runs to the end; with a ``budget`` in as many runs as it takes."""
        assert self.submit(*descriptors) == [0] * len(descriptors)
        if budget is None:
            self.run()
        while self.pending:
            assert self.run(budget or 1) > 0

    def completion(self, address: int, pasid: int = SECONDARY) -> Completion:
        return Completion.parse(self.read(address, 32, pasid))

    def counters(self) -> Any:
        out = dsa_ffi.new("dsa_counters *")
        lib.dsa_queue_count(self.queue, out)
        return out

    def save(self) -> bytes:
        size = lib.dsa_queue_save(self.queue, dsa_ffi.NULL, 0)
        buffer = dsa_ffi.new("uint8_t[]", size)
        assert lib.dsa_queue_save(self.queue, buffer, size) == size
        return bytes(dsa_ffi.buffer(buffer))

    def restore(self, state: bytes) -> int:
        return int(lib.dsa_queue_restore(self.queue, state, len(state)))
