"""BAR2: the portals, four pages for each work queue (DSA specification, 9.3).

A device gets 64 bytes at once. Here they come as stores of up to 8 bytes, of several CPUs in turn,
and are put together by the 64 bytes that they go to: a slot is submitted when all of its bytes have
been written. Direct portals are shared memory, which the sweep looks at (queue.h).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final

from vdcm import Bar, BarKind, PagePolicy, Pages

PAGE: Final = 0x1000
PORTALS: Final = 4
"""Pages of one work queue."""
SLOT: Final = 64
"""Bytes of a descriptor."""
MOST_PARTS: Final = 256
"""Slots of one VDEV that may be incomplete at a time; the oldest is given up for another."""
_COMPLETE: Final = (1 << SLOT) - 1

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
        self._parts: dict[int, _Part] = {}
        end = self._end + extra
        pages = []
        if direct:
            size = len(DIRECT) * PAGE
            pages = [Pages(wq * PORTALS * PAGE, size, PagePolicy.DIRECT) for wq in range(wqs)]
        if memory:
            pages.append(Pages(end - memory, memory, PagePolicy.MEMORY))
        size = 1 << (end - 1).bit_length()
        super().__init__(2, size, BarKind.MEMORY64_PREFETCHABLE, pages)

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
        key = offset // SLOT
        part = self._parts.get(key)
        if part is None:
            if len(self._parts) >= MOST_PARTS:
                del self._parts[next(iter(self._parts))]
            part = self._parts[key] = _Part()
        if part.put(offset % SLOT, width, value):
            del self._parts[key]
            page = offset // PAGE
            self._submit(page // PORTALS, page % PORTALS, bytes(part.data))

    def _is_shared(self, offset: int) -> bool:
        return bool(self.pages) and self.policy(offset, 1) is not PagePolicy.INTERCEPTED

    def forget(self, wq: int) -> None:
        """Drop what is incomplete in the portals of ``wq``."""
        slots = range(wq * PORTALS * PAGE // SLOT, (wq + 1) * PORTALS * PAGE // SLOT)
        for key in [key for key in self._parts if key in slots]:
            del self._parts[key]

    def reset(self) -> None:
        self._parts.clear()
        super().reset()


class _Part:
    """A slot that is being written. A byte that is written twice holds what came last."""

    __slots__ = ("_written", "data")

    def __init__(self) -> None:
        self.data = bytearray(SLOT)
        self._written = 0

    def put(self, at: int, width: int, value: int) -> bool:
        """Store ``width`` bytes at ``at``; True if nothing is missing any more."""
        self.data[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        self._written |= ((1 << width) - 1) << at
        return self._written == _COMPLETE
