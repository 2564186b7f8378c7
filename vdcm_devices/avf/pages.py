"""The registers of the queues where they are intercepted, and the interrupts of their vectors.

A data path with direct pages does the same in C.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vdcm_devices.avf.registers import QueueRegisters


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


class QueuePages:
    """``tail(queue, value, transmit)`` and ``send(vector)`` are called for what the driver does."""

    def __init__(self, tail: Callable[[int, int, bool], None], send: Callable[[int], None]) -> None:
        self.registers: Final = QueueRegisters(self)
        self._tail: Final = tail
        self._vectors: Final = [
            VectorControl(lambda vector=index + 1: send(vector))  # type: ignore[misc]
            for index in range(len(self.registers.DYN_CTLN1))
        ]

    def reset(self) -> None:
        self.registers.reset()
        for vector in self._vectors:
            vector.forget()

    def cause(self, index: int) -> None:
        """An interrupt of vector ``index + 1``, when its control lets it."""
        vector = self._vectors[index]
        vector.cause()
        self.registers.DYN_CTLN1[index].INTENA = int(vector.enabled)

    def on_write_QTX_TAIL1(self, index: int, value: int) -> None:
        self._tail(index, value, True)

    def on_write_QRX_TAIL1(self, index: int, value: int) -> None:
        self._tail(index, value, False)

    def on_write_DYN_CTLN1(self, index: int, value: int) -> None:
        vector = self._vectors[index]
        vector.written(value)
        self.registers.DYN_CTLN1[index].INTENA = int(vector.enabled)
