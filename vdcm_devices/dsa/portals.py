"""BAR2: the portals, four pages for each work queue (DSA specification, 9.3).

A device gets 64 bytes at once. Here they come as stores of up to 8 bytes, of several CPUs in turn,
and are put together by the 64 bytes that they go to: a slot is submitted when all of its bytes have
been written. C does that (portals.c); as long as a work queue takes descriptors and nobody watches,
they go to it without Python. Direct portals are shared memory, which the sweep looks at (queue.h).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final

from vdcm import Bar, BarKind, PagePolicy, Pages
from vdcm_devices.dsa._fastpath import ffi, lib
from vdcm_devices.dsa.datapath import Queue

PAGE: Final = 0x1000
PORTALS: Final = 4
"""Pages of one work queue."""
MOST_PARTS: Final[int] = lib.DSA_MAX_PARTS
"""Slots of one VDEV that may be incomplete at a time; the oldest is given up for another."""

Submit = Callable[[int, int, bytes], None]
"""Takes work queue, portal and the 64 bytes of a descriptor."""


class Portal(IntEnum):
    """Pages of a work queue, in this order."""

    UNLIMITED = 0
    LIMITED = 1
    IMS_UNLIMITED = 2
    IMS_LIMITED = 3


DIRECT: Final = (Portal.UNLIMITED, Portal.LIMITED)
"""What is shared memory when portals are direct: guests have no IMS."""


def portals_end(wqs: int) -> int:
    """Bytes of the portals of that many work queues."""
    return wqs * PORTALS * PAGE


class PortalBar(Bar):
    """BAR2 of a VDEV with ``wqs`` work queues; ``extra`` bytes behind the portals are for others.

    Reads of portals return 0, and writes that are not naturally aligned are ignored.
    """

    def __init__(
        self, wqs: int, submit: Submit, *, direct: bool, extra: int = 0, memory: int = 0
    ) -> None:
        """The last ``memory`` bytes of ``extra`` are memory that the guest maps."""
        self._end: Final = portals_end(wqs)
        self._submit: Final = submit
        self._native = lib.dsa_portals_new(wqs)
        if self._native == ffi.NULL:
            raise MemoryError
        self._descriptor: Final = ffi.new("uint8_t[]", 64)
        end = self._end + extra
        pages = []
        if direct:
            size = len(DIRECT) * PAGE
            pages = [Pages(wq * PORTALS * PAGE, size, PagePolicy.DIRECT) for wq in range(wqs)]
        if memory:
            pages.append(Pages(end - memory, memory, PagePolicy.MEMORY))
        size = 1 << (end - 1).bit_length()
        super().__init__(2, size, BarKind.MEMORY64_PREFETCHABLE, pages)
        if not direct:
            portals = int(ffi.cast("uintptr_t", self._native))
            self.give_stores(0, self._end, lib.dsa_portals_store(), portals)

    @property
    def reader(self) -> Callable[[int, int], int]:
        return self.read

    @property
    def writer(self) -> Callable[[int, int, int], None]:
        return self.write

    def write(self, offset: int, width: int, value: int) -> None:
        if offset >= self._end or offset % width or self._is_shared(offset):
            if offset >= self._end or not offset % width:
                super().write(offset, width, value)
            return
        value &= (1 << 64) - 1
        if lib.dsa_portals_write(self._native, offset, width, value, self._descriptor):
            page = offset // PAGE
            self._submit(page // PORTALS, page % PORTALS, bytes(self._descriptor))

    def _is_shared(self, offset: int) -> bool:
        return bool(self.pages) and self.policy(offset, 1) is not PagePolicy.INTERCEPTED

    @property
    def incomplete(self) -> int:
        """Slots of which something is missing."""
        return int(lib.dsa_portals_incomplete(self._native))

    def open(self, wq: int, queue: Queue | None, kicked: int = 0) -> None:
        """Descriptors for ``wq`` go to ``queue``, whose engine's side (``QueuePath.address``) is
        kicked; None: all of them are submitted here."""
        lib.dsa_portals_open(self._native, wq, queue.native if queue else ffi.NULL, kicked)

    def forget(self, wq: int) -> None:
        """Drop what is incomplete in the portals of ``wq``."""
        lib.dsa_portals_forget(self._native, wq)

    def reset(self) -> None:
        for wq in range(self._end // PAGE // PORTALS):
            self.open(wq, None)
            self.forget(wq)
        super().reset()

    def close(self) -> None:
        super().close()
        if self._native is not None:
            lib.dsa_portals_free(self._native)
            self._native = None
