"""The interrupt control of a vector; the data path does the same in C for those of its queues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final


class VectorControl:
    """DYN_CTL of one vector: it is sent once, and again when the driver has enabled it again."""

    def __init__(self, send: Callable[[], None]) -> None:
        self._send: Final = send
        self._pending = False
        self.enabled = False

    def forget(self) -> None:
        """The function has been reset."""
        self._pending = self.enabled = False

    def cause(self) -> bool:
        """There is a reason for an interrupt; True: it has been sent, now or before."""
        self._pending = True
        return self._look()

    def written(self, value: int) -> None:
        """The driver has written DYN_CTL."""
        if not value >> 31:  # INTENA_MSK
            self.enabled = bool(value & 1)
        if value >> 2 & 1:  # SWINT_TRIG
            self._pending = True
        self._look()

    def _look(self) -> bool:
        if not (self.enabled and self._pending):
            return False
        self.enabled = self._pending = False
        self._send()
        return True
