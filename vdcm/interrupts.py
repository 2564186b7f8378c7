"""Interrupts of a VDEV: INTx, MSI and MSI-X, with mask and pending.

A client binds an eventfd to a vector (vfio-user SET_IRQS); a delivery signals it. A vector that may
not be delivered now - masked, or nothing bound yet - becomes pending, and is delivered once when
that changes (PCI Express base specification 5.0, 6.1.4; MSI-X pending bits, 7.7.2.8).

Who masks: the guest by the function mask and the per-vector mask in MSI-X table or MSI capability,
and the client by SET_IRQS. As with VFIO in the kernel, binding an eventfd unmasks the vector's
entry in the MSI-X table and unbinding masks it: a VMM keeps the guest's table itself and shows it
to nobody.

While the guest has Bus Master Enable off, no message is sent, as it is a write of memory
(7.5.1.1.3). One that comes up then is lost, as it is with the devices that QEMU emulates itself:
pending bits are for masks only. What was pending before stays so, and is delivered later.

A vector has two sources (Scalable IOV, 4.4.2): the VDCM, which calls ``Interrupts.signal``, and the
messages of ADIs that are connected to it (``MessageSource``), which deliver by themselves while
nothing holds the vector back. What came from all of them in the meantime is one interrupt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, NamedTuple, Protocol

from vdcm.errors import DeclarationError, VdcmError
from vdcm.events import Interrupt, InterruptLine, Observer
from vdcm.protocol import Irq
from vdcm.registers import Access, BoundRegister, Field, Register, RegisterMap
from vdcm.transport import IrqAction


class Eventfds(Protocol):
    """The eventfds that a client has bound (transport.Session)."""

    def trigger(self, kind: Irq, vector: int) -> bool:
        """Signal the one of a vector; False if there is none."""

    def eventfd(self, kind: Irq, vector: int) -> int:
        """The one of a vector, -1 if there is none. It is to be duplicated, not kept."""


class MessageSource(Protocol):
    """A message of an ADI (ims.ImsEntry): any thread may raise it; these calls come from the event
    loop's."""

    @property
    def pending(self) -> bool:
        """It has been raised and not delivered."""

    @property
    def delivered(self) -> int:
        """Signals that it has given to an eventfd."""

    def bind(self, eventfd: int) -> None:
        """Deliver to a duplicate of ``eventfd``, -1 for nowhere."""

    def block(self, blocked: bool) -> None:
        """Hold interrupts back, or no longer: then what is pending is delivered."""

    def take(self) -> bool:
        """Is it pending? Then it no longer is: the caller delivers it."""

    def clear(self) -> None:
        """Forget what is pending."""


class MsixMaps(NamedTuple):
    """The registers of MSI-X; ``controls`` are the table's Vector Control words."""

    table: RegisterMap
    pending_bits: RegisterMap
    controls: BoundRegister


@cache
def _msix_classes(vectors: int) -> tuple[type[Any], type[Any]]:
    class MsixTable(RegisterMap):
        ADDRESS_LOW = Register(
            0x0, 32, count=vectors, stride=16, fields={"ADDRESS": Field(2, 30)}, doc="Address"
        )
        ADDRESS_HIGH = Register(0x4, 32, count=vectors, stride=16, doc="Upper address")
        DATA = Register(0x8, 32, count=vectors, stride=16, doc="Message data")
        CONTROL = Register(
            0xC, 32, count=vectors, stride=16, fields={"MASK": Field(0, reset=1)}, doc="Control"
        )

    class PendingBits(RegisterMap):
        PENDING = Register(0x0, 64, Access.RO, count=-(-vectors // 64), doc="Pending bits")

    return MsixTable, PendingBits


def msix_maps(owner: Interrupts, vectors: int) -> MsixMaps:
    """MSI-X table and pending bit array of ``vectors`` (1 to 2048) entries.

    An entry is 16 bytes and masked after reset (PCIe 5.0, 7.7.2.5 to 7.7.2.8); the pending bits
    are 64-bit words (7.7.2.9).
    """
    table_class, pending_class = _msix_classes(vectors)
    table = table_class(owner, also=(pending_class,))
    return MsixMaps(table, pending_class(owner, also=(table_class,)), table.CONTROL)


@dataclass
class _Kind:
    """State of one kind of interrupt. Sets hold vector numbers."""

    count: int
    given: int  # how many of them the guest lets the device use
    enabled: bool = False  # by the guest, in configuration space
    all_masked: bool = False  # function mask of MSI-X, Interrupt Disable of INTx
    bound: set[int] = field(default_factory=set)
    client_masked: set[int] = field(default_factory=set)
    guest_masked: set[int] = field(default_factory=set)
    pending: set[int] = field(default_factory=set)

    def blocked(self, vector: int) -> bool:
        return (
            self.all_masked
            or vector not in self.bound
            or vector in self.client_masked
            or vector in self.guest_masked
        )

    def why_blocked(self, vector: int) -> str:
        if self.all_masked:
            return "the guest masks all of them in configuration space"
        if vector in self.guest_masked:
            return "the guest masks this vector"
        return (
            "the client masks it" if vector in self.client_masked else "no eventfd is bound to it"
        )


class Interrupts:
    """All interrupts of one VDEV.

    ``counts`` says how many vectors there are of each kind: INTx 0 or 1, MSI 0 to 32 in powers of
    two, MSI-X 0 to 2048.
    """

    LIMITS: ClassVar = {Irq.INTX: 1, Irq.MSI: 32, Irq.MSIX: 2048}

    def __init__(self, intx: int = 0, msi: int = 0, msix: int = 0) -> None:
        self.counts = {Irq.INTX: intx, Irq.MSI: msi, Irq.MSIX: msix}
        for kind, count in self.counts.items():
            if not 0 <= count <= self.LIMITS[kind]:
                raise DeclarationError(
                    f"{kind.name} has 0 to {self.LIMITS[kind]} vectors, not {count}"
                )
        self._kinds = {kind: _Kind(count, count) for kind, count in self.counts.items()}
        self._eventfds: Eventfds | None = None
        self._sources: dict[int, list[MessageSource]] = {}  # by MSI-X vector
        self._line = False
        self._bus_master = True
        self._delivered = 0
        self.observer: Observer | None = None
        self.on_line: Callable[[bool], None] | None = None
        """Called when the INTx line changes, for the Interrupt Status bit."""
        self.on_msi_pending: Callable[[int], None] | None = None
        """Called when MSI's pending bits change, with all of them."""
        self.collected = False
        """Messages of ADIs are not delivered by themselves, but by ``collect``."""
        self.msix = msix_maps(self, msix) if msix else None

    # The device's side.

    def signal(self, vector: int = 0) -> None:
        """Send message ``vector`` (MSI-X or MSI, whichever is in use).

        MSI wraps at the number of vectors that the guest gave (PCIe 5.0, 7.7.1.2).

        With neither in use there is nothing to send to: as on a real function, it is lost.
        Raises VdcmError for a vector that the device does not have.
        """
        limit = max(self.counts[Irq.MSI], self.counts[Irq.MSIX])
        if not 0 <= vector < limit:
            raise VdcmError(f"interrupt vector {vector} is out of range: there are {limit}")
        for kind in (Irq.MSIX, Irq.MSI):
            state = self._kinds[kind]
            if state.count and (state.enabled or state.bound):
                if not self._bus_master:
                    why = "Bus Master Enable is 0; the driver has to set it (Linux: pci_set_master)"
                    break
                self._deliver(kind, vector % state.given)
                return
        else:
            why = "neither MSI-X nor MSI is enabled"
        if self.observer is not None:
            self.observer(Interrupt("", vector, "lost", why))

    def clear_pending(self) -> None:
        """Forget what waits to be delivered, as a device may when it is reset by its driver."""
        for _, sources in self._sources_of(self._sources):
            for source in sources:
                source.clear()
        for kind, state in self._kinds.items():
            state.pending.clear()
            self._show_pending(kind)

    def set_line(self, asserted: bool) -> None:
        """Set the level of the interrupt line.

        Where MSI or MSI-X is in use, a rising edge sends vector 0 instead.
        """
        if asserted == self._line:
            return
        self._line = asserted
        if self.on_line is not None:
            self.on_line(asserted)
        if self.observer is not None:
            self.observer(InterruptLine(asserted))
        if not asserted:
            return
        if self._messages_in_use():
            self.signal(0)
        else:
            self._deliver_line()

    def _messages_in_use(self) -> bool:
        """Then the line is not used (PCIe 5.0, 6.1.4.3)."""
        return any(
            self._kinds[kind].enabled or self._kinds[kind].bound for kind in (Irq.MSI, Irq.MSIX)
        )

    @property
    def line(self) -> bool:
        """The level of the interrupt line."""
        return self._line

    def pending(self, kind: Irq) -> frozenset[int]:
        """Vectors that wait to be delivered."""
        pending = frozenset(self._kinds[kind].pending)
        if kind is not Irq.MSIX:
            return pending
        return pending.union(
            vector
            for vector, sources in self._sources.items()
            if any(source.pending for source in sources)
        )

    @property
    def bound(self) -> str:
        """The vectors that a guest may wait for, in words; empty if there are none."""
        for kind in (Irq.MSIX, Irq.MSI, Irq.INTX):
            state = self._kinds[kind]
            if state.bound and not state.all_masked and (state.enabled or kind is not Irq.INTX):
                return f"{kind.name} {', '.join(map(str, sorted(state.bound)[:8]))}"
        return ""

    @property
    def delivered(self) -> int:
        """Signals given to clients since the start, those of connected messages among them."""
        connected = (source for sources in self._sources.values() for source in sources)
        return self._delivered + sum(source.delivered for source in connected)

    # The host driver's side.

    def connect(self, vector: int, source: MessageSource) -> None:
        """Make the interrupts of ``source``, blocked until now, those of MSI-X ``vector``.

        Several may share a vector. Raises VdcmError for a vector that there is not.
        """
        if not 0 <= vector < self.counts[Irq.MSIX]:
            raise VdcmError(
                f"MSI-X vector {vector} is out of range: there are {self.counts[Irq.MSIX]}"
            )
        self._sources.setdefault(vector, []).append(source)
        self._delivered -= source.delivered  # what it did elsewhere
        try:
            self._bind_sources((vector,))
        except VdcmError:
            self.disconnect(vector, source)
            raise
        self._look_again(Irq.MSIX, (vector,))

    def disconnect(self, vector: int, source: MessageSource) -> None:
        """Undo ``connect``; ``source`` keeps what is pending."""
        source.block(True)
        source.bind(-1)
        self._delivered += source.delivered
        sources = self._sources[vector]
        sources.remove(source)
        if not sources:
            del self._sources[vector]

    def _sources_of(self, vectors: Collection[int]) -> list[tuple[int, list[MessageSource]]]:
        return [(vector, found) for vector, found in self._sources.items() if vector in vectors]

    def _bind_sources(self, vectors: Collection[int]) -> None:
        """Vectors have got other eventfds, or none."""
        for vector, sources in self._sources_of(vectors):
            eventfd = -1
            if self._eventfds is not None and vector in self._kinds[Irq.MSIX].bound:
                eventfd = self._eventfds.eventfd(Irq.MSIX, vector)
            for source in sources:
                source.bind(eventfd)

    def _deliver(self, kind: Irq, vector: int) -> None:
        state = self._kinds[kind]
        eventfds = self._eventfds
        if eventfds is None or self._blocked(kind, vector) or not eventfds.trigger(kind, vector):
            state.pending.add(vector)
            self._show_pending(kind)
            if self.observer is not None:
                self.observer(Interrupt(kind.name, vector, "pending", state.why_blocked(vector)))
            return
        if vector in state.pending:
            state.pending.remove(vector)
            self._show_pending(kind)
        self._delivered += 1
        if self.observer is not None:
            self.observer(Interrupt(kind.name, vector, "delivered"))

    def _blocked(self, kind: Irq, vector: int) -> bool:
        return not (self._bus_master or kind is Irq.INTX) or self._kinds[kind].blocked(vector)

    def _show_pending(self, kind: Irq) -> None:
        if kind is Irq.MSI and self.on_msi_pending is not None:
            self.on_msi_pending(sum(1 << vector for vector in self._kinds[kind].pending))

    def _deliver_line(self) -> None:
        state = self._kinds[Irq.INTX]
        eventfds = self._eventfds
        if eventfds is None or not (state.count and self._line) or state.blocked(0):
            return
        if self._messages_in_use():
            return
        if eventfds.trigger(Irq.INTX, 0):
            # Level-triggered: the client unmasks when the guest has served it (VFIO AUTOMASKED).
            state.client_masked.add(0)
            self._delivered += 1
            if self.observer is not None:
                self.observer(Interrupt("INTX", 0, "delivered"))

    def _look_again(self, kind: Irq, vectors: Collection[int]) -> None:
        """Something that holds these vectors back may have come or gone."""
        self._deliver_line()  # what was in use may no longer be
        if kind is Irq.INTX:
            return
        state = self._kinds[kind]
        sources = self._sources_of(vectors) if kind is Irq.MSIX else []
        for vector, connected in sources:
            if self._blocked(kind, vector):
                for source in connected:
                    source.block(True)
                continue
            # All of them before the one delivery: what is raised from here on is a new interrupt.
            for source in connected:
                if source.take():
                    state.pending.add(vector)
        for vector in sorted(state.pending.intersection(vectors)):
            if not self._blocked(kind, vector):
                self._deliver(kind, vector)
        for vector, connected in sources:
            if not self._blocked(kind, vector):
                for source in connected:
                    source.block(self.collected)

    def collect(self) -> None:
        """Deliver what messages of ADIs have come since, if they are ``collected``."""
        if self.collected:
            self._look_again(Irq.MSIX, tuple(self._sources))

    # The client's side.

    def attach(self, eventfds: Eventfds) -> None:
        """A client has connected; it has bound nothing yet. Or: these stand for its own now."""
        self._eventfds = eventfds
        self._bind_sources(self._sources)

    def detach(self) -> None:
        """The client has gone, and its eventfds and masks with it."""
        self._eventfds = None
        for state in self._kinds.values():
            state.bound.clear()
            state.client_masked.clear()
        self._bind_sources(self._sources)
        self._look_again(Irq.MSIX, self._sources)

    def irqs_changed(self, kind: Irq, action: IrqAction, start: int, count: int) -> None:
        """The client bound or masked vectors [start, start + count) of ``kind``."""
        state = self._kinds[kind]
        vectors = range(start, start + count)
        if action is IrqAction.BOUND:
            state.bound.update(vectors)
            state.client_masked.difference_update(vectors)
            self._set_table_mask(kind, vectors, masked=False)
        elif action is IrqAction.UNBOUND:
            state.bound.difference_update(vectors)
            state.client_masked.difference_update(vectors)
            self._set_table_mask(kind, vectors, masked=True)
        elif action is IrqAction.MASKED:
            state.client_masked.update(vectors)
        else:
            state.client_masked.difference_update(vectors)
        if kind is Irq.MSIX and action in (IrqAction.BOUND, IrqAction.UNBOUND):
            self._bind_sources(vectors)
        self._look_again(kind, vectors)

    def _set_table_mask(self, kind: Irq, vectors: Iterable[int], *, masked: bool) -> None:
        if kind is not Irq.MSIX or self.msix is None:
            return
        for vector in vectors:
            self.msix.controls[vector].MASK = int(masked)
            self._set_guest_mask(Irq.MSIX, vector, masked=masked)

    # The guest's side.

    def set_enabled(
        self, kind: Irq, *, enabled: bool, all_masked: bool = False, given: int | None = None
    ) -> None:
        """The guest enabled, disabled or masked a kind of interrupt in configuration space.

        ``given``: how many vectors the device may use; None for all.
        """
        state = self._kinds[kind]
        state.enabled = enabled
        state.given = state.count if given is None else given
        state.all_masked = all_masked
        self._look_again(kind, range(state.count))

    def set_bus_master(self, enabled: bool) -> None:
        """The guest set or cleared Bus Master Enable."""
        self._bus_master = enabled
        for kind in (Irq.MSI, Irq.MSIX):
            self._look_again(kind, range(self.counts[kind]))

    def set_guest_masks(self, kind: Irq, mask: int) -> None:
        """The guest wrote MSI's per-vector mask bits."""
        state = self._kinds[kind]
        state.guest_masked = {vector for vector in range(state.count) if mask >> vector & 1}
        self._look_again(kind, range(state.count))

    def _set_guest_mask(self, kind: Irq, vector: int, *, masked: bool) -> None:
        guest_masked = self._kinds[kind].guest_masked
        if masked:
            guest_masked.add(vector)
        else:
            guest_masked.discard(vector)

    def on_write_CONTROL(self, index: int, value: int) -> None:
        if index < self.counts[Irq.MSIX]:
            self._set_guest_mask(Irq.MSIX, index, masked=bool(value & 1))
            self._look_again(Irq.MSIX, (index,))

    def on_read_PENDING(self, index: int) -> int:
        word = range(64 * index, 64 * index + 64)
        return sum(1 << (v - word.start) for v in self.pending(Irq.MSIX).intersection(word))

    def reset(self) -> None:
        """What a function-level reset does: nothing pending, all as after power-on.

        Eventfds stay bound: they are the client's, not the guest's.
        """
        self._line = False
        for _, sources in self._sources_of(self._sources):
            for source in sources:
                source.block(True)
        self.clear_pending()
        for state in self._kinds.values():
            state.enabled = state.all_masked = False
            state.given = state.count
            state.guest_masked.clear()
        if self.msix is not None:
            self.msix.table.reset()
            bound = self._kinds[Irq.MSIX].bound
            for vector in range(self.counts[Irq.MSIX]):
                self._set_table_mask(Irq.MSIX, (vector,), masked=vector not in bound)
        self._look_again(Irq.MSIX, self._sources)
