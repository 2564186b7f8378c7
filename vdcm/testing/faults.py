"""Faults by script: what a test says of a VDEV, wherever that is served.

    fault = device.faults.dma(0x1000_0000, 4096, after=2)
    ...
    assert fault.hits == 1

Of what a fault means the first ``after`` go well, then ``times`` are hit (None: all that follow),
and the rest goes well again. It stays until it is cleared, through resets and clients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

from vdcm.errors import VdcmError
from vdcm.testing.rules import ALWAYS, Place

Access = Literal["any", "read", "write"]
Ask = Callable[..., Any]


class Fault:
    """A fault that is in force; a context manager, which clears it at its end."""

    def __init__(self, ask: Ask, number: int) -> None:
        self._ask = ask
        self._number = number

    def __enter__(self) -> Fault:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    @property
    def hits(self) -> int:
        """How often it has hit; VdcmError once it is cleared."""
        return int(self._ask("hits", number=self._number))

    def clear(self) -> None:
        """Take it away. Twice is harmless."""
        self._ask("clear", number=self._number)


class Faults:
    """The faults of one VDEV. ``ask`` calls a method of its Injector."""

    def __init__(self, ask: Ask) -> None:
        self._ask: Final = ask

    def _add(self, kind: str, after: int, times: int | None, **rule: Any) -> Fault:
        if after < 0 or (times is not None and times < 1):
            raise VdcmError(f"a fault hits at least once, after 0 or more: not {after}, {times}")
        rule |= {"after": after, "times": ALWAYS if times is None else times}
        return Fault(self._ask, self._ask("add", kind=kind, rule=rule))

    # Memory.

    def dma(
        self,
        address: int = 0,
        size: int | None = None,
        *,
        access: Access = "any",
        after: int = 0,
        times: int | None = 1,
    ) -> Fault:
        """The device's accesses to [address, address + size) of guest memory fail as if it were not
        mapped; by default those to all of it. Queues that run in C are meant, too: there an access
        is one stretch of memory that is reached.
        """
        size = (1 << 64) - address if size is None else size
        return self._add("dma", after, times, address=address, size=size, **_accesses(access))

    def flip_memory(self, address: int, bits: int, size: int = 4) -> None:
        """Invert ``bits`` of the ``size`` bytes of guest memory at ``address``, now.

        Raises DmaError if there is no such memory.
        """
        self._ask("flip_memory", address=address, bits=bits, size=size)

    # Interrupts. Several that C raises before the event loop has looked are one.

    def lose_interrupts(
        self, vector: int | None = None, *, after: int = 0, times: int | None = 1
    ) -> Fault:
        """Interrupts of ``vector``, by default of any, do not reach the guest; the device believes
        that they have. A level that is lost is seen with the next change of line or mask.
        """
        return self._interrupts(vector, -1.0, after, times)

    def delay_interrupts(
        self, seconds: float, vector: int | None = None, *, after: int = 0, times: int | None = 1
    ) -> Fault:
        """Interrupts of ``vector``, by default of any, reach the guest ``seconds`` later."""
        if seconds <= 0:
            raise VdcmError(f"a delay is more than 0 seconds, not {seconds}")
        return self._interrupts(vector, seconds, after, times)

    def _interrupts(
        self, vector: int | None, seconds: float, after: int, times: int | None
    ) -> Fault:
        number = -1 if vector is None else vector
        return self._add("interrupt", after, times, vector=number, seconds=seconds)

    def raise_interrupt(self, vector: int = 0) -> None:
        """A spurious interrupt, now: the guest gets one that nothing is behind.

        Raises VdcmError if the guest has not enabled it.
        """
        self._ask("raise_interrupt", vector=vector)

    # Register accesses that the device sees. ``where`` is a register (``STATUS``), a field of it
    # (``STATUS.READY``), one of a BAR (``BAR2:DATA[3]``) or of the configuration space
    # (``config:COMMAND``), or a Place; None: any access to any region.

    def flip(
        self,
        where: str | Place,
        *,
        access: Access = "read",
        after: int = 0,
        times: int | None = 1,
    ) -> Fault:
        """The bits of ``where`` are inverted: those that the guest reads, or those that it writes
        before the device gets them.
        """
        return self._accesses("flip", where, access, after, times)

    def stuck(
        self,
        where: str | Place,
        at: Literal[0, 1],
        *,
        access: Access = "read",
        after: int = 0,
        times: int | None = None,
    ) -> Fault:
        """The bits of ``where`` are always 0, or always 1: as the guest reads, or writes them."""
        return self._accesses("set" if at else "clear", where, access, after, times)

    def slow(
        self,
        seconds: float,
        where: str | Place | None = None,
        *,
        access: Access = "any",
        after: int = 0,
        times: int | None = 1,
    ) -> Fault:
        """Answers come ``seconds`` later. Meanwhile the whole server waits, other VDEVs as well.
        QEMU 11.1 gives a device up that does not answer for 5 s.
        """
        return self._accesses("slow", where, access, after, times, seconds=seconds)

    # The whole device.

    def remove(
        self, where: str | Place | None = None, *, access: Access = "any", after: int = 0
    ) -> Fault:
        """Surprise removal, at the first access to ``where`` after ``after`` others: the guest
        reads all ones, what it writes goes nowhere, the device reaches no memory and interrupts
        nobody. ``clear`` plugs it in again, as after power-on. Pages that the guest has mapped stay
        memory.
        """
        return self._accesses("remove", where, access, after, None)

    def die(
        self, where: str | Place | None = None, *, access: Access = "any", after: int = 0
    ) -> Fault:
        """The server process kills itself (SIGKILL) at the first access to ``where`` after
        ``after`` others, which is not answered. VdcmError unless it is a process of its own.
        """
        return self._accesses("die", where, access, after, 1)

    def clear(self) -> None:
        """Take all faults away."""
        self._ask("clear")

    def _accesses(
        self,
        effect: str,
        where: str | Place | None,
        access: Access,
        after: int,
        times: int | None,
        **more: Any,
    ) -> Fault:
        rule = {"effect": effect, "where": where or "", **_accesses(access), **more}
        return self._add("access", after, times, **rule)


def _accesses(access: Access) -> dict[str, bool]:
    return {"reads": access != "write", "writes": access != "read"}
