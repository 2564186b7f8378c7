"""The admin queue pair in the host's memory (NVM Express 1.4, 4.1): entries in, completions out."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Final

from vdcm_devices.nvme.codes import NvmeError, Status
from vdcm_devices.nvme.command import SIZE, Memory

COMPLETION: Final = 16
"""Bytes of a completion queue entry (4.6)."""
_COMPLETION: Final = struct.Struct("<IIHHHH")
DO_NOT_RETRY: Final = 1 << 15
MORE: Final = 1 << 14


def status_field(status: Status, *, more: bool = False) -> int:
    """Bits 31:16 of dword 3, without the phase tag (figure 124)."""
    word = status << 1
    if status is not Status.SUCCESS:
        word |= (0 if status.retry else DO_NOT_RETRY) | (MORE if more else 0)
    return word


class AdminQueue:
    """``submission`` and ``completion`` are addresses, ``..._entries`` the numbers of entries.

    Methods that reach the host's memory raise DmaError. ``interrupt`` is called when entries have
    been posted.
    """

    def __init__(
        self,
        memory: Memory,
        submission: int,
        submission_entries: int,
        completion: int,
        completion_entries: int,
        interrupt: Callable[[], None],
    ) -> None:
        self._memory: Final = memory
        self._submission: Final = submission
        self._entries: Final = submission_entries
        self._completion: Final = completion
        self._places: Final = completion_entries
        self._interrupt: Final = interrupt
        self._head = self._tail = 0
        self._place = self._consumed = 0
        self._phase = 1
        self._waiting: deque[tuple[int, int, int]] = deque()

    @property
    def sizes(self) -> str:
        """Of both, for people."""
        return f"{self._entries} and {self._places} entries"

    # What the doorbells say. NvmeError for a value that there cannot be.

    def submitted(self, tail: int) -> None:
        """The host has written entries up to ``tail``."""
        if tail >= self._entries:
            raise NvmeError(Status.INVALID_FIELD)
        self._tail = tail

    def consumed(self, head: int) -> None:
        """The host has looked at completions up to ``head``."""
        unseen = (self._place - self._consumed) % self._places
        if head >= self._places or (head - self._consumed) % self._places > unseen:
            raise NvmeError(Status.INVALID_FIELD)
        self._consumed = head
        self._flush()

    # The controller's side.

    def take(self) -> bytes | None:
        """The next entry; None if there is none, or no place for its completion."""
        if self._head == self._tail or self._waiting or self._full:
            return None
        entry = self._memory.dma_read(self._submission + SIZE * self._head, SIZE)
        self._head = (self._head + 1) % self._entries
        return entry

    def post(self, cid: int, status: int, result: int = 0) -> None:
        """Complete command ``cid`` with a status field, now or when there is a place."""
        self._waiting.append((cid, status, result))
        self._flush()

    @property
    def _full(self) -> bool:
        return (self._place + 1) % self._places == self._consumed

    def _flush(self) -> None:
        posted = False
        while self._waiting and not self._full:
            cid, status, result = self._waiting.popleft()
            entry = _COMPLETION.pack(result, 0, self._head, 0, cid, status | self._phase)
            # The dword with the phase tag last: the host looks at that (4.6).
            at = self._completion + COMPLETION * self._place
            self._memory.dma_write(at, entry[:12])
            self._memory.dma_write(at + 12, entry[12:])
            self._place = (self._place + 1) % self._places
            self._phase ^= self._place == 0
            posted = True
        if posted:
            self._interrupt()

    @property
    def idle(self) -> bool:
        """There is nothing to take now."""
        return self._head == self._tail or bool(self._waiting) or self._full
