"""A machine for one queue of the DSA's data path."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from guest_machine import GUEST_PASID, NO_PASID, PAGE, PRIMARY, SECONDARY, GuestMachine, ffi

from vdcm_devices.dsa._fastpath import ffi as dsa_ffi
from vdcm_devices.dsa._fastpath import lib

__all__ = ["GUEST_PASID", "NO_PASID", "PAGE", "PRIMARY", "SECONDARY", "Machine", "descriptor"]

ALL_OPERATIONS = (1 << 64) - 1
GENCAP = (
    lib.DSA_CAP_OVERLAPPING_COPY
    | lib.DSA_CAP_CACHE_CONTROL_MEMORY
    | lib.DSA_CAP_CACHE_CONTROL_FLUSH
    | lib.DSA_CAP_DESTINATION_READBACK
    | lib.DSA_CAP_DRAIN_READBACK
    | lib.DSA_CAP_FAULT_INFO
)


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


class Machine(GuestMachine):
    """One queue; ``shared``: of this shared WQ. A dedicated one works with PRIMARY and SECONDARY, a
    shared one with the PASIDs that ``bound`` gives the guest's."""

    def __init__(self, shared: Any = None, **settings: int) -> None:
        super().__init__()
        self.queue = lib.dsa_queue_new(shared or dsa_ffi.NULL, self.services)
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

    # the queue

    def submit(self, *descriptors: bytes, portal: int = 0) -> list[int]:
        return [lib.dsa_submit(self.queue, portal, d) for d in descriptors]

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
