"""The data path's C seen from Python (store.h and queue.h): stores, controllers, their queues."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self

from vdcm import VdcmError, services
from vdcm_devices.nvme._fastpath import ffi, lib

FASTPATH: Final[int] = lib.nvme_fastpath()
"""Address of the ``vdcm_fastpath`` of a submission queue."""
ADMIN_FASTPATH: Final[int] = lib.nvme_admin_fastpath()
DOORBELL_STORE: Final[int] = lib.nvme_doorbell_store()
"""Address of the ``vdcm_store`` of a page of intercepted doorbells."""
MOST_QUEUES: Final[int] = lib.NVME_MAX_QUEUES
MOST_NAMESPACES: Final[int] = lib.NVME_MAX_NAMESPACES
MAX_TRANSFER: Final[int] = lib.NVME_MAX_TRANSFER
"""Bytes that one command moves at most."""
REPORT_ADMIN: Final[int] = lib.NVME_REPORT_ADMIN
REPORT_ERROR: Final[int] = lib.NVME_REPORT_ERROR
REPORT_DOORBELL: Final[int] = lib.NVME_REPORT_DOORBELL
REPORT_FATAL: Final[int] = lib.NVME_REPORT_FATAL


class ReportedError(NamedTuple):
    """``nvme_error``."""

    lba: int
    nsid: int
    sqid: int
    cid: int
    status: int
    location: int

    @classmethod
    def parse(cls, data: bytes) -> Self:
        found = ffi.from_buffer("nvme_error *", data)
        return cls(*(int(getattr(found, name)) for name in cls._fields))


class NativeStore:
    """An ``nvme_store``."""

    def __init__(self, native: Any, what: str) -> None:
        if native == ffi.NULL:
            raise VdcmError(f"a store of {what}: {os.strerror(ffi.errno)}")
        self.native = native

    @classmethod
    def ram(cls, size: int) -> Self:
        """``size`` bytes of memory, taken when they are written."""
        return cls(lib.nvme_store_ram(size), f"{size} bytes of memory")

    @classmethod
    def file(cls, fd: int, size: int) -> Self:
        """The first ``size`` bytes of a file or block device."""
        return cls(lib.nvme_store_file(fd, size, 0), f"{size} bytes of a file")

    @property
    def engine(self) -> str:
        """How it is read and written."""
        name: bytes = ffi.string(lib.nvme_store_engine(self.native))
        return name.decode()

    def erase(self, offset: int, length: int) -> None:
        """Zeros from now on; VdcmError. From any thread."""
        _check(lib.nvme_store_erase(self.native, offset, length), "to erase a part of it")

    def sync(self) -> None:
        """All that was written is on disk; VdcmError. From any thread."""
        _check(lib.nvme_store_sync(self.native), "to be brought to the disk")

    def close(self) -> None:
        """Twice is harmless."""
        if self.native is not None:
            lib.nvme_store_free(self.native)
            self.native = None


class NativeController:
    """An ``nvme_controller`` with its admin queue's doorbells and its completion queues.

    It is freed when it has been closed, the last of its submission queues has been, and what these
    have left under way in files has come back.
    """

    def __init__(self) -> None:
        self.native = lib.nvme_controller_new(services())
        if self.native == ffi.NULL:
            raise VdcmError(f"an NVMe controller: {os.strerror(ffi.errno)}")
        self._admin = lib.nvme_admin_new(self.native)
        if self._admin == ffi.NULL:
            lib.nvme_controller_free(self.native)
            raise MemoryError
        self._completions: dict[int, Any] = {}
        self._submissions = 0
        self._closed = False
        self._keep: object = None

    @property
    def address(self) -> int:
        return int(ffi.cast("uintptr_t", self.native))

    @property
    def admin_address(self) -> int:
        return int(ffi.cast("uintptr_t", self._admin))

    # What needs its queues still (queue.h).

    def configure(self, **settings: Any) -> None:
        """Fields of ``nvme_settings``."""
        native = ffi.new("nvme_settings *", settings)
        _check(lib.nvme_controller_configure(self.native, native), "its settings")

    def set_namespace(
        self,
        nsid: int,
        store: NativeStore,
        offset: int,
        blocks: int,
        shift: int,
        *,
        read_only: bool,
    ) -> bool:
        """0 blocks: there is none. False: commands of it are under way."""
        result = lib.nvme_namespace_set(
            self.native, nsid, store.native, offset, blocks, shift, read_only
        )
        if result == -errno.EBUSY:
            return False
        _check(result, f"namespace {nsid}")
        return True

    def set_doorbells(self, page: memoryview | None) -> None:
        """All doorbells are 0; they are in ``page`` from now on, None: they come by ``ring``."""
        self._keep = ffi.from_buffer(page, require_writable=True) if page is not None else None
        address = int(ffi.cast("uintptr_t", self._keep)) if page is not None else 0
        _check(lib.nvme_doorbells_set(self.native, address), "a page of doorbells")

    def set_shadow(self, shadow: int, event_index: int) -> None:
        """Guest addresses of the doorbell buffers; 0, 0: there are none."""
        _check(lib.nvme_shadow_set(self.native, shadow, event_index), "doorbell buffers")

    def set_coalescing(self, cqid: int, enabled: bool) -> None:
        lib.nvme_cq_set_coalescing(self._completions[cqid], enabled)

    # At any time.

    def ring(self, doorbell: int, value: int) -> int:
        """An intercepted write: 0, or -ENOENT, -ERANGE as queue.h says."""
        return int(lib.nvme_doorbell_write(self.native, doorbell, value))

    def look(self) -> tuple[int, int]:
        """Tail of the admin submission queue, head of its completion queue."""
        word = int(lib.nvme_admin_look(self._admin))
        return word & 0xFFFF, word >> 16

    def add_completion_queue(self, cqid: int, address: int, entries: int, interrupts: bool) -> None:
        native = lib.nvme_cq_new(self.native, cqid, address, entries, interrupts)
        if native == ffi.NULL:
            raise VdcmError(f"completion queue {cqid}: {os.strerror(ffi.errno)}")
        self._completions[cqid] = native

    def remove_completion_queue(self, cqid: int) -> None:
        """No submission queue names it."""
        _check(lib.nvme_cq_free(self._completions[cqid]), f"completion queue {cqid} to go")
        del self._completions[cqid]

    @property
    def drained(self) -> bool:
        """Nothing that closed queues have left is under way in files (queue.h)."""
        return self.native is None or bool(lib.nvme_controller_drained(self.native))

    def counters(self) -> dict[str, int]:
        """What queue.h counts."""
        found = ffi.new("nvme_counters *")
        lib.nvme_count(self.native, found)
        return {name: int(getattr(found, name)) for name in _COUNTERS}

    def close(self, *, wait: bool = False) -> bool:
        """Whether it is gone; if not, ask again, or ``wait`` for what is under way in files. More
        than once is harmless."""
        self._closed = True
        self._free(wait=wait)
        return self.native is None

    def _free(self, *, wait: bool = False) -> None:
        if not self._closed or self._submissions or self.native is None:
            return
        if not wait and not self.drained:
            return
        for native in self._completions.values():
            lib.nvme_cq_free(native)
        self._completions.clear()
        lib.nvme_admin_free(self._admin)
        lib.nvme_controller_free(self.native)
        self.native = None
        self._keep = None


class SubmissionQueue:
    """An ``nvme_sq``: the queue of one ADI."""

    def __init__(
        self, controller: NativeController, sqid: int, address: int, entries: int, cqid: int
    ) -> None:
        completion = controller._completions.get(cqid)
        if completion is None:
            raise VdcmError(f"there is no completion queue {cqid}")
        self._controller: Final = controller
        self._native = lib.nvme_sq_new(controller.native, sqid, address, entries, completion)
        if self._native == ffi.NULL:
            raise VdcmError(f"submission queue {sqid}: {os.strerror(ffi.errno)}")
        controller._submissions += 1

    @property
    def address(self) -> int:
        return int(ffi.cast("uintptr_t", self._native))

    def set_engine(self, address: int) -> None:
        """The engine's side of it (``QueuePath.address``): stores to its intercepted doorbell kick
        that without Python (``DOORBELL_STORE``) until the ADI is released."""
        lib.nvme_sq_set_engine(self._native, address)

    def counters(self) -> dict[str, int]:
        """``tail``, ``head``, commands ``under_way`` and ``completed``."""
        found = ffi.new("nvme_sq_state *")
        lib.nvme_sq_look(self._native, found)
        return {name: int(getattr(found, name)) for name in _SQ_STATE}

    def close(self) -> None:
        """The sweep has let go of it. Twice is harmless."""
        if self._native is not None:
            lib.nvme_sq_free(self._native)
            self._native = None
            self._controller._submissions -= 1
            self._controller._free()


def _fields(name: str) -> tuple[str, ...]:
    fields: Mapping[str, object] = dict(ffi.typeof(name).fields)
    return tuple(fields)


_COUNTERS: Final = _fields("nvme_counters")
_SQ_STATE: Final = _fields("nvme_sq_state")


def _check(result: int, what: str) -> None:
    if result < 0:
        raise VdcmError(f"the NVMe data path does not take {what}: {os.strerror(-result)}")
