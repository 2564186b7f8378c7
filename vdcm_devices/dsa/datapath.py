"""The data path's C seen from Python (queue.h): shared work queues, and the queue of one ADI."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Final

from vdcm import VdcmError, services
from vdcm_devices.dsa._fastpath import ffi, lib

FASTPATH: Final[int] = lib.dsa_fastpath()
"""Address of the ``vdcm_fastpath`` of a queue."""
HANDLES: Final = range(lib.DSA_HANDLES)
MOST_ENTRIES: Final[int] = lib.DSA_MAX_SIZE
"""Entries of the largest work queue."""
MAX_TRANSFER: Final[int] = lib.DSA_MAX_TRANSFER_SHIFT
MAX_BATCH: Final[int] = lib.DSA_MAX_BATCH_SHIFT
REPORT_SWERROR: Final[int] = lib.DSA_REPORT_SWERROR
"""Code of a report with the 32 bytes of SWERROR."""
OPERATIONS: Final = sum(1 << getattr(lib, name) for name in dir(lib) if name.startswith("DSA_OP_"))
"""A bit for each operation that is implemented."""
ANY_PASID: Final = 0xFFFF_FFFF
IGNORE: Final[int] = lib.DSA_IGNORE
"""The message of a handle that is valid and interrupts nobody."""


class Answer(IntEnum):
    """What became of a submission."""

    ACCEPTED = 0
    FULL = 1


class SharedWq:
    """What all shares of one shared work queue have in common: its ``size`` entries, of which
    limited portals fill ``threshold`` at most, and each share has ``reserved`` to itself."""

    def __init__(self, size: int, threshold: int, reserved: int = 0) -> None:
        self.native = lib.dsa_wq_new(size, threshold, reserved)
        if self.native == ffi.NULL:
            raise VdcmError(
                f"a shared WQ of {size} entries, threshold {threshold}: {os.strerror(ffi.errno)}"
            )
        self.size: Final = size
        self.shares = 0

    @property
    def occupancy(self) -> int:
        """Entries in use by all shares."""
        return int(lib.dsa_wq_occupancy(self.native))

    def close(self) -> None:
        """Its shares have been closed. Twice is harmless."""
        if self.native is not None:
            lib.dsa_wq_free(self.native)
            self.native = None


class Queue:
    """The queue of one ADI: a dedicated work queue, or a share of ``shared``."""

    def __init__(self, shared: SharedWq | None = None) -> None:
        self.shared: Final = shared
        self._perfmon: Any = None  # C has its address
        self.native = lib.dsa_queue_new(shared.native if shared else ffi.NULL, services())
        if self.native == ffi.NULL:
            raise VdcmError(f"a DSA queue: {os.strerror(ffi.errno)}")
        if shared is not None:
            shared.shares += 1

    @property
    def address(self) -> int:
        return int(ffi.cast("uintptr_t", self.native))

    @property
    def occupancy(self) -> int:
        """Entries in use by this ADI."""
        return int(lib.dsa_queue_occupancy(self.native))

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Take the fields of ``dsa_settings``; VdcmError if one is out of range or unknown."""
        try:
            native = ffi.new("dsa_settings *", dict(settings))
        except (KeyError, TypeError, OverflowError, IndexError) as error:
            raise VdcmError(f"no settings of a DSA queue: {error}") from error
        _check(lib.dsa_queue_configure(self.native, native), "its settings")

    def handle(self, handle: int, message: int | None, pasid: int = ANY_PASID) -> None:
        """Handle ``handle`` is the ADI's ``message``, or IGNORE; None: it is not valid. Descriptors
        need to have ``pasid`` to use it; ANY_PASID: they need not."""
        number = -1 if message is None else message
        _check(lib.dsa_queue_handle(self.native, handle, number, pasid), "an interrupt handle")

    def portal(self, portal: int, page: int) -> None:
        """``page``: address of the portal's shared memory; 0 if there is none."""
        _check(lib.dsa_queue_portal(self.native, portal, page), "a portal")

    def shut(self) -> None:
        """No descriptor comes from a portal without Python any more (``PortalBar.open``)."""
        lib.dsa_queue_shut(self.native)

    def set_perfmon(self, perfmon: Any) -> None:
        """``perfmon``: a ``dsa_perfmon *`` that counts what happens here, too."""
        self._perfmon = perfmon
        lib.dsa_queue_set_perfmon(self.native, perfmon)

    def submit(self, portal: int, descriptor: bytes) -> Answer:
        """64 bytes for ``portal``; VdcmError if the queue is not configured."""
        result = lib.dsa_submit(self.native, portal, descriptor)
        if result == -errno.EAGAIN:
            return Answer.FULL
        _check(result, "a descriptor")
        return Answer.ACCEPTED

    def counters(self) -> dict[str, int]:
        """What queue.h counts, and ``opN`` for each operation that there was."""
        found = ffi.new("dsa_counters *")
        lib.dsa_queue_count(self.native, found)
        names = (
            "accepted", "retried", "succeeded", "failed", "aborted", "reported", "interrupts"
        )  # fmt: skip
        counters = {name: int(getattr(found, name)) for name in names}
        counters["occupancy"] = self.occupancy
        for operation, count in enumerate(found.descriptors):
            if count:
                counters[f"op{operation:#04x}"] = int(count)
        counters["bytes"] = sum(found.bytes)
        return counters

    def save(self) -> bytes:
        """Accepted and unfinished work, and the portals' places."""
        length = lib.dsa_queue_save(self.native, ffi.NULL, 0)
        buffer = ffi.new("char[]", max(1, length))
        lib.dsa_queue_save(self.native, buffer, length)
        return bytes(ffi.buffer(buffer, length))

    def restore(self, state: bytes) -> None:
        """Take over what ``save`` gave; VdcmError if it is something else."""
        _check(lib.dsa_queue_restore(self.native, state, len(state)), "its saved state")

    def close(self) -> None:
        """The sweep has let go of it. Twice is harmless."""
        if self.native is not None:
            lib.dsa_queue_free(self.native)
            self.native = None
            if self.shared is not None:
                self.shared.shares -= 1


def address_of(memory: memoryview) -> tuple[int, object]:
    """Where ``memory`` is, and what keeps it there."""
    keep = ffi.from_buffer(memory, require_writable=True)
    return int(ffi.cast("uintptr_t", keep)), keep


def _check(result: int, what: str) -> None:
    if result < 0:
        raise VdcmError(f"the DSA queue does not take {what}: {os.strerror(-result)}")
