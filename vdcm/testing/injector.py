"""Faults of one VDEV, where it is served: between transport and device, in its DMA and interrupts.

While there are none, nothing of this is in the way. The rules come from ``Faults``, by a call or
over a control socket; everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from vdcm import dma
from vdcm.bars import PagePolicy
from vdcm.errors import VdcmError
from vdcm.protocol import Irq, Region
from vdcm.testing.rules import ALWAYS, AccessRule, InterruptRule, Place
from vdcm.transport import Endpoint, IrqAction, RegionDescription, Session, Written
from vdcm.vdev import Vdev

log = logging.getLogger("vdcm.testing")


@dataclass(frozen=True)
class Added:
    """A fault that is in force: how often it has hit, and what takes it away."""

    hits: Callable[[], int]
    remove: Callable[[], None]


class Injector:
    """All faults of ``vdev``, which ``endpoint`` serves. ``expendable``: so is the process."""

    def __init__(self, vdev: Vdev, endpoint: Endpoint, *, expendable: bool) -> None:
        self.vdev: Final = vdev
        self._endpoint: Final = endpoint
        self._expendable: Final = expendable
        self._faults: dict[int, Added] = {}
        self._made = 0
        self._accesses: list[AccessRule] = []
        self._interrupts: list[InterruptRule] = []
        self._front = Front(vdev, self._accesses, self._interrupts)

    # What Faults asks for.

    def add(self, kind: str, rule: Mapping[str, Any]) -> int:
        """Put a fault in force; its number. Raises VdcmError for one that cannot be."""
        makers: dict[str, Callable[..., Added]] = {
            "dma": self._dma,
            "interrupt": self._interrupt,
            "access": self._access,
        }
        if kind not in makers:
            raise VdcmError(f"there is no kind of fault {kind} (known: {', '.join(makers)})")
        added = makers[kind](**rule)
        self._made += 1
        self._faults[self._made] = added
        log.info("%s: fault %d: %s %s", self.vdev.name, self._made, kind, dict(rule))
        self._stand()
        return self._made

    def hits(self, number: int) -> int:
        """How often a fault has hit."""
        if number not in self._faults:
            raise VdcmError(f"{self.vdev.name} has no fault {number}: it has been cleared")
        return self._faults[number].hits()

    def clear(self, number: int = 0) -> None:
        """Take a fault away, if it is still there; without a number, all of them."""
        for one in [number] if number else list(self._faults):
            if one in self._faults:
                self._faults.pop(one).remove()
        self._stand()

    def raise_interrupt(self, vector: int) -> None:
        """An interrupt that nothing is behind: a message, or the line where none is in use."""
        session = self._endpoint.session
        kinds = (Irq.MSIX, Irq.MSI, Irq.INTX)
        if session is None or not any(session.trigger(kind, vector) for kind in kinds):
            raise VdcmError(f"{self.vdev.name}: its driver has enabled no interrupt {vector}")

    def flip_memory(self, address: int, bits: int, size: int) -> None:
        """Invert ``bits`` of ``size`` bytes of guest memory."""
        old = int.from_bytes(dma.read(self.vdev.pasid, address, size), "little")
        dma.write(self.vdev.pasid, address, (old ^ bits).to_bytes(size, "little"))

    # Kinds of fault.

    def _dma(
        self, address: int, size: int, reads: bool, writes: bool, after: int, times: int
    ) -> Added:
        domain = self.vdev.address_space.domain
        number = domain.add_fault(
            address, size, reads=reads, writes=writes, after=after, times=times
        )
        return Added(partial(domain.fault_hits, number), partial(domain.remove_fault, number))

    def _interrupt(self, vector: int, seconds: float, after: int, times: int) -> Added:
        rule = InterruptRule(after, times, vector=vector, seconds=seconds)
        return self._keep(self._interrupts, rule)

    def _access(
        self,
        effect: str,
        where: str | Sequence[int],
        reads: bool,
        writes: bool,
        after: int,
        times: int,
        seconds: float = 0.0,
    ) -> Added:
        effects: dict[str, Callable[[], None]] = {
            "slow": partial(time.sleep, seconds),
            "remove": self._remove,
            "die": self._die,
        }
        if effect == "die" and not self._expendable:
            raise VdcmError(
                "this server is a thread of the test's own process, which would die with it: "
                "start one with the fixture serve"
            )
        place = self._place(where)
        rule = AccessRule(
            *(after, times),
            effect=effect,
            place=place,
            reads=reads,
            writes=writes,
            act=effects.get(effect),
        )
        kept = self._keep(self._accesses, rule)
        if effect != "remove":
            return kept
        return Added(kept.hits, partial(self._insert, kept.remove))

    @staticmethod
    def _keep(rules: list[Any], rule: AccessRule | InterruptRule) -> Added:
        rules.append(rule)
        return Added(lambda: rule.hits, partial(rules.remove, rule))

    def _die(self) -> None:
        log.info("%s: fault: this process kills itself", self.vdev.name)
        os.kill(os.getpid(), signal.SIGKILL)

    def _remove(self) -> None:
        """Nobody is there any more: for the guest, for memory and for interrupts."""
        if self._front.gone is None:
            log.info("%s: fault: the device is gone", self.vdev.name)
            self._front.gone = self._dma(0, 1 << 64, True, True, 0, ALWAYS).remove

    def _insert(self, forget: Callable[[], None]) -> None:
        forget()
        if self._front.gone is not None:
            self._front.gone()
            self._front.gone = None
            self.vdev.reset()  # as after power-on

    def _place(self, where: str | Sequence[int]) -> Place | None:
        if not isinstance(where, str):
            place = Place(*where)
        elif where:
            place = Place.of_register(self.vdev, where)
        else:
            return None
        bar = self.vdev.bars.get(place.region)
        if bar is None and place.region != Region.CONFIG:
            raise VdcmError(f"{self.vdev.name} has no region {place.region}")
        policy = bar.policy(place.offset, place.width) if bar is not None else None
        if policy in (PagePolicy.DIRECT, PagePolicy.MEMORY):
            raise VdcmError(
                f"{self.vdev.name}: BAR{place.region}+{place.offset:#x} is {policy.value} memory: "
                "the guest's accesses do not come by here (Bar.view changes what it reads)"
            )
        return place

    def _stand(self) -> None:
        """In front of the device while there is something to do there, and only then."""
        needed = bool(self._accesses or self._interrupts)
        if needed != (self._endpoint.device is self._front):
            self._endpoint.divert(self._front if needed else self.vdev)
            if self._endpoint.session is not None:
                self._front.connect(self._endpoint.session, through=needed)


class Front:
    """Stands between transport and ``vdev`` (transport.Servable)."""

    observed = True  # every store is to come by here

    def __init__(
        self, vdev: Vdev, accesses: list[AccessRule], interrupts: list[InterruptRule]
    ) -> None:
        self.gone: Callable[[], None] | None = None
        """The device is not there; what gives it its memory back."""
        self._vdev: Final = vdev
        self._accesses: Final = accesses
        self._interrupts: Final = interrupts
        self._lines: Lines | None = None

    @property
    def name(self) -> str:
        return self._vdev.name

    def regions(self) -> Sequence[RegionDescription]:
        return self._vdev.regions()

    def vectors(self) -> Mapping[Irq, int]:
        return self._vdev.vectors()

    def attached(self, session: Session) -> None:
        self._vdev.attached(session)
        self.connect(session, through=True)

    def connect(self, session: Session, *, through: bool) -> None:
        """Have interrupts come by here, or no longer."""
        lines, self._lines = self._lines, None
        if through:
            self._lines = Lines(session, self._verdict)
        self._vdev.interrupts.attach(self._lines or session)
        if lines is not None:
            lines.close()

    def detached(self) -> None:
        self._vdev.detached()
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def reset(self) -> None:
        if self.gone is None:
            self._vdev.reset()

    def dma_changed(self, iova: int, size: int, *, mapped: bool, shared: bool) -> None:
        self._vdev.dma_changed(iova, size, mapped=mapped, shared=shared)

    def irqs_changed(self, kind: Irq, action: IrqAction, start: int, count: int) -> None:
        self._vdev.irqs_changed(kind, action, start, count)

    def repeated(
        self,
        region: int,
        where: tuple[int, int, int],
        times: int,
        seconds: float,
        written: Written | None,
    ) -> None:
        self._vdev.repeated(region, where, times, seconds, written)

    def silent(self, written: Written) -> None:
        self._vdev.silent(written)

    def read(self, region: int, offset: int, width: int) -> int:
        hit = self._hit(region, offset, width, write=False)
        if self.gone is not None:
            return (1 << 8 * width) - 1  # as nobody answers
        value = self._vdev.read(region, offset, width)
        for rule in hit:
            value = rule.changed(offset, width, value)
        return value

    def write(self, region: int, offset: int, width: int, value: int) -> None:
        hit = self._hit(region, offset, width, write=True)
        if self.gone is not None:
            return
        for rule in hit:
            value = rule.changed(offset, width, value)
        self._vdev.write(region, offset, width, value)

    def _hit(self, region: int, offset: int, width: int, *, write: bool) -> list[AccessRule]:
        hit = [
            rule
            for rule in self._accesses
            if rule.means(region, offset, width, write=write) and rule.due()
        ]
        for rule in hit:
            if rule.act is not None:
                rule.act()
        return hit

    def _verdict(self, vector: int) -> float | None:
        """Seconds that an interrupt is to wait; None: it is lost."""
        seconds: float | None = 0.0
        for rule in self._interrupts:
            if rule.vector in (vector, -1) and rule.due():
                seconds = None if rule.seconds < 0 or seconds is None else seconds + rule.seconds
        return None if self.gone is not None else seconds


class Lines:
    """The eventfds of a session (interrupts.Eventfds), with our own before those that C signals."""

    def __init__(self, session: Session, verdict: Callable[[int], float | None]) -> None:
        self._session = session
        self._verdict = verdict
        self._loop = asyncio.get_running_loop()
        self._own: dict[tuple[Irq, int], int] = {}

    def trigger(self, kind: Irq, vector: int) -> bool:
        seconds = self._verdict(vector)
        if seconds is None:
            return kind is not Irq.INTX  # a level that was lost is still there
        if not seconds:
            return self._session.trigger(kind, vector)
        self._loop.call_later(seconds, self._session.trigger, kind, vector)
        return True

    def eventfd(self, kind: Irq, vector: int) -> int:
        if self._session.eventfd(kind, vector) < 0:
            return -1
        if (kind, vector) not in self._own:
            fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._own[kind, vector] = fd
            self._loop.add_reader(fd, self._forward, fd, kind, vector)
        return self._own[kind, vector]

    def _forward(self, fd: int, kind: Irq, vector: int) -> None:
        try:
            count = os.eventfd_read(fd)
        except BlockingIOError:
            return
        for _ in range(min(count, 1000)):
            self.trigger(kind, vector)

    def close(self) -> None:
        """What has been signalled goes on; then nothing comes this way any more."""
        for (kind, vector), fd in self._own.items():
            self._loop.remove_reader(fd)
            self._forward(fd, kind, vector)
            os.close(fd)
        self._own.clear()
