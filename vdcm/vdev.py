"""A VDEV: one virtual PCIe device, composed of config space, BARs, interrupts and DMA.

A device model subclasses ``Vdev``, declares its identity and registers, and reacts by name:

    class Blinker(Vdev):
        identity = Identity(vendor=0x1234, device=0x0001, class_code=0xFF0000)

        def __init__(self, name: str) -> None:
            bar = Bar(0, 0x1000)
            bar.place(0, Registers(self))
            super().__init__(name, bars=[bar])

The base class does the rest: the configuration space with its capabilities, the MSI-X table in the
BAR that the capability names, masks and pending bits, function-level reset, and what a client sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from time import monotonic
from typing import Any, ClassVar, Final

from vdcm import dma
from vdcm.adi import Adi, AdiState
from vdcm.bars import Bar
from vdcm.counters import ADI, CLIENT, Count, Counts, nothing, summarized, together
from vdcm.errors import DeclarationError, DmaError, ResourceError, StateError
from vdcm.events import (
    AdiChange,
    ClientChange,
    ConfigRefused,
    DmaAccess,
    DmaMapping,
    Event,
    Note,
    Observer,
    Offered,
    Reset,
    Vectors,
)
from vdcm.hints import Hints
from vdcm.host import HostDriver
from vdcm.interrupts import Interrupts
from vdcm.pasid import PASIDS, GuestPasids
from vdcm.pci import (
    Capability,
    Command,
    ConfigEvents,
    ConfigSpace,
    Identity,
    MaskableMsi,
    Msi,
    MsiX,
    PciExpress,
    PowerManagement,
)
from vdcm.properties import Configurable, properties_of
from vdcm.protocol import Irq, Region
from vdcm.sweep import Report
from vdcm.transport import IrqAction, RegionDescription, Session


class VdevState(Enum):
    """The life of a VDEV: READY ⇄ ATTACHED, and CLOSED for good. RESETTING lies within the first
    two, while a reset waits for the device to be quiet."""

    READY = "ready"
    ATTACHED = "attached"
    RESETTING = "resetting"
    CLOSED = "closed"


class Vdev(Configurable):
    """One virtual device. ``name`` is unique in the process and appears in every message.

    ``bars``: at most six, each index once. ``capabilities``: those of PCI Express and power
    management, which every VDEV has, are made unless they are among them. ``drivers``: the
    host drivers of the parents that its ADIs come from, the first with a free one each time. Raises
    DeclarationError for what cannot be composed.

    A model may define ``on_reset(self)``, called when the function has been reset, and
    ``on_adi_report(self, adi, report)``, called with what an ADI's C has to say.
    """

    identity: ClassVar[Identity]
    intx: ClassVar[bool] = False
    """The device has an interrupt line (INTA#)."""
    state: VdevState = VdevState.CLOSED  # until there is something to close

    def __init__(
        self,
        name: str,
        bars: Sequence[Bar] = (),
        capabilities: Sequence[Capability] = (),
        drivers: Sequence[HostDriver] = (),
    ) -> None:
        self.name: Final = name
        self.bars: Final[Mapping[int, Bar]] = {bar.index: bar for bar in bars}
        self.session: Session | None = None
        self.resets = 0
        self._counted = nothing(CLIENT)  # of the clients before
        self._counts = dict.fromkeys(_OWN, 0)
        self.released: Counts = nothing(ADI)
        """What the ADIs that it no longer has have counted."""
        self.observer: Observer | None = None
        """Given events while somebody observes (``observe``)."""
        self.observed = False
        """Somebody observes register accesses."""
        msi = next((c for c in capabilities if isinstance(c, Msi)), None)
        msix = next((c for c in capabilities if isinstance(c, MsiX)), None)
        self.interrupts: Final = Interrupts(
            intx=int(self.intx),
            msi=msi.vectors if msi else 0,
            msix=msix.vectors if msix else 0,
        )
        if msix is not None:
            self._place_msix(msix)
        lacking = [
            kind()
            for kind in (PowerManagement, PciExpress)
            if not any(isinstance(capability, kind) for capability in capabilities)
        ]
        self.config: Final = ConfigSpace(
            self.identity,
            bars=[bar.layout for bar in bars],
            capabilities=[*lacking, *capabilities],
            intx=self.intx,
            owner=_Events(self),
        )
        self.interrupts.set_bus_master(False)
        self.interrupts.on_line = self.config.set_interrupt_status
        if isinstance(msi, MaskableMsi):
            self.interrupts.on_msi_pending = msi.show_pending
        # Looked up on every access, so nothing is to be decided there that can be decided now.
        self._readers = {index: bar.reader for index, bar in self.bars.items()}
        self._writers = {index: bar.writer for index, bar in self.bars.items()}
        self._readers[Region.CONFIG] = self.config.space.read
        self._writers[Region.CONFIG] = self.config.space.write
        spaces = {index: bar.space for index, bar in self.bars.items()}
        spaces[Region.CONFIG] = self.config.space
        self.hints: Final = Hints(name, spaces, self.interrupts, self._say)
        # Looked at while a client is there (transport.Servable).
        self.repeated, self.silent = self.hints.repeated, self.hints.silent
        self.drivers: Final = tuple(drivers)
        self.adis: Final[list[Adi]] = []
        self.address_space: Final = dma.SecondLevel()
        self.guest_pasids: Final = GuestPasids(self.address_space)
        """What stands for a host PASID in work that names a PASID of the guest (3.3)."""
        self._bound: dict[int, int] = {}  # of those, the host PASIDs that bind_pasid() made
        self.pasid: Final = PASIDS.allocate(self.address_space)
        self.state = VdevState.READY

    def _place_msix(self, msix: MsiX) -> None:
        registers = self.interrupts.msix
        assert registers is not None  # there are vectors, so there is a table
        for part, bar, offset in (
            (registers.table, msix.table_bar, msix.table_offset),
            (registers.pending_bits, msix.pba_bar, msix.pba_offset),
        ):
            if bar not in self.bars:
                raise DeclarationError(f"MSI-X is to be in BAR{bar}, which there is not")
            self.bars[bar].place(offset, part, f"{type(part).__name__}.")

    # What a model calls.

    def add_adi(self, type_name: str, vectors: Sequence[int] = ()) -> Adi:
        """Take an ADI from the first of ``drivers`` that has one left, with this VDEV's PASID.

        Its messages become interrupts of the MSI-X ``vectors``, one each. Raises ResourceError when
        no driver has one left, naming what is lacking.
        """
        adi = self._allocate(type_name)
        try:
            if len(vectors) != len(adi.messages):
                raise DeclarationError(
                    f"{self.name}: {adi.name} has {len(adi.messages)} messages, and there are "
                    f"{len(vectors)} vectors for them"
                )
            for entry, vector in zip(adi.messages, vectors, strict=True):
                entry.route(self.interrupts, vector)
            adi.driver.set_pasid(adi, self.pasid)
            adi.driver.set_guest_pasids(adi, self.guest_pasids)
            adi.driver.set_bus_master(adi, Command.BUS_MASTER in self.config.header.command)
        except BaseException:
            adi.driver.release(adi)
            raise
        adi.on_report = self.on_adi_report
        adi.slot = min(set(range(len(self.adis) + 1)) - {one.slot for one in self.adis})
        adi.on_change = self._adi_changed
        self._adi_changed(adi, "allocated")
        self.adis.append(adi)
        return adi

    def _allocate(self, type_name: str) -> Adi:
        lacking = []
        for driver in self.drivers:
            try:
                return driver.allocate(type_name, self.name)
            except ResourceError as error:
                lacking.append(str(error))
        raise ResourceError("; ".join(lacking) or f"{self.name} has no parent that has ADIs")

    def remove_adi(self, adi: Adi) -> None:
        """Give an ADI back; what it has not finished is discarded."""
        self.adis.remove(adi)
        if adi.state is not AdiState.RELEASED:
            self.released = together(self.released, adi.path.counters())
        adi.driver.release(adi)

    def set_qos(self, weight: int, rate: int) -> None:
        """Of all its ADIs together, at each of its parents: the share under contention (1 to 255),
        and units a second (0: no limit). To be said again with the first ADI."""
        for driver in self.drivers:
            driver.set_vdev_qos(self.name, weight=weight, rate=rate)

    def bind_pasid(self, guest: int) -> None:
        """Let work name ``guest``, a PASID of the guest: a host PASID of its own for this VDEV's
        memory (3.3). StateError if it is bound, has more than 20 bits, or none is left."""
        host = PASIDS.allocate(self.address_space)
        try:
            self.guest_pasids.bind(guest, host)
        except BaseException:
            PASIDS.release(host)
            raise
        self._bound[guest] = host

    def unbind_pasid(self, guest: int) -> None:
        """Undo ``bind_pasid``; no ADI has it as its own, nor work in it that names it."""
        self.guest_pasids.unbind(guest)
        PASIDS.release(self._bound.pop(guest))

    def _unbind_pasids(self) -> None:
        self.guest_pasids.clear()
        for host in self._bound.values():
            PASIDS.release(host)
        self._bound.clear()

    def on_adi_report(self, adi: Adi, report: Report) -> None:
        """An ADI's C reported something that concerns the guest: an error above all (2.6)."""

    def dma_read(self, iova: int, length: int) -> bytes:
        """``length`` bytes of guest memory under this VDEV's PASID.

        Raises DmaError if any of them cannot be read, or the guest has not made the function a bus
        master (PCIe 5.0, 7.5.1.1.3).
        """
        try:
            self._check_bus_master()
            data = dma.read(self.pasid, iova, length)
        except DmaError as error:
            self._counts["dma_refused"] += 1
            self._say(DmaAccess(False, iova, length, reason=str(error)))
            raise
        self._counts["dma_read_bytes"] += length
        if self.observer is not None:
            self.observer(DmaAccess(False, iova, length, data[: DmaAccess.SHOWN].hex()))
        return data

    def dma_write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """Write guest memory under this VDEV's PASID.

        Raises DmaError as ``dma_read`` does; then nothing is written.
        """
        try:
            self._check_bus_master()
            dma.write(self.pasid, iova, data)
        except DmaError as error:
            self._counts["dma_refused"] += 1
            self._say(DmaAccess(True, iova, len(data), reason=str(error)))
            raise
        self._counts["dma_written_bytes"] += memoryview(data).nbytes
        self.hints.wrote = monotonic()
        if self.observer is not None:
            shown = bytes(data[: DmaAccess.SHOWN]).hex()
            self.observer(DmaAccess(True, iova, len(data), shown))

    @property
    def bus_master(self) -> bool:
        """The guest lets the function reach memory (PCIe 5.0, 7.5.1.1.3)."""
        return bool(self.config.header.COMMAND.BUS_MASTER)

    def on_bus_master_change(self, enabled: bool) -> None:
        """The guest has set or cleared Bus Master Enable."""

    def _check_bus_master(self) -> None:
        if not self.bus_master:
            raise DmaError(
                f"{self.name}: DMA while Bus Master Enable is 0: the driver has to set it "
                "(Linux: pci_set_master) before the device may reach memory"
            )

    def on_reset(self) -> None:
        """The function has been reset; registers already hold their reset values."""

    # What transport calls (transport.Servable).

    def regions(self) -> Sequence[RegionDescription]:
        config = RegionDescription(Region.CONFIG, self.config.SIZE)
        return [*(bar.region() for bar in self.bars.values()), config]

    def vectors(self) -> Mapping[Irq, int]:
        return self.interrupts.counts

    def read(self, region: int, offset: int, width: int) -> int:
        return self._readers[region](offset, width)

    def write(self, region: int, offset: int, width: int, value: int) -> None:
        self._writers[region](offset, width, value)

    def attached(self, session: Session) -> None:
        if self.state is not VdevState.READY:
            raise StateError(f"{self.name} is {self.state.value}, a client needs it ready")
        self.state = VdevState.ATTACHED
        self._counts["clients"] += 1
        self.session = session
        if self.observer is not None:
            self.observer(ClientChange(True, session.peer))
            self.observer(self._offered())
        self.address_space.attach(session.memory)
        self.interrupts.attach(session)
        self.hints.attached()

    def detached(self) -> None:
        """The client has gone: as if the power had been cycled."""
        if self.session is not None:
            self._counted = together(self._counted, self.session.counters())
            if self.observer is not None:
                self.observer(ClientChange(False, self.session.peer))
        self.session = None
        self.interrupts.detach()
        try:
            self.reset()
        finally:  # whatever the model does, the next client can come
            self.address_space.detach()
            if self.state is VdevState.ATTACHED:
                self.state = VdevState.READY

    def reset(self) -> None:
        """Reset the function (PCIe 5.0, 6.6.2): registers, shared pages, interrupts, the model."""
        if self.state not in (VdevState.READY, VdevState.ATTACHED):
            raise StateError(f"{self.name} is {self.state.value}: it cannot be reset now")
        before, self.state = self.state, VdevState.RESETTING
        try:
            self._say(Reset())
            self.resets += 1
            # First the ADIs, so that nothing of theirs comes after the reset (2.7).
            for adi in tuple(self.adis):
                adi.driver.reset(adi)
            self._unbind_pasids()
            # What is pending goes first: the end of a mask would deliver it.
            for bar in self.bars.values():
                bar.reset()
            self.interrupts.reset()
            self.config.reset()
            self.on_reset()
        finally:
            self.state = before

    def dma_changed(self, iova: int, size: int, *, mapped: bool, shared: bool) -> None:
        if self.observer is not None:
            self.observer(DmaMapping(iova, size, mapped, shared))

    def irqs_changed(self, kind: Irq, action: IrqAction, start: int, count: int) -> None:
        if count and self.observer is not None:
            self.observer(Vectors(kind.name, start, start + count - 1, action.name.lower()))
        self.interrupts.irqs_changed(kind, action, start, count)

    # What the manager and a person want to know.

    def observe(self, observer: Observer | None, *, accesses: bool = True) -> None:
        """Give ``observer`` the events of this VDEV, and unless ``accesses`` is false its register
        accesses, too: those that a device's C would take are then Python's. None costs nothing."""
        self.observer = self.interrupts.observer = observer
        self.observed = observer is not None and accesses
        if self.session is not None:
            self.session.observe(self.observed)
        for space in (self.config.space, *(bar.space for bar in self.bars.values())):
            space.observer = observer if self.observed else None

    def note(self, text: str) -> None:
        """Tell whoever observes. A model that has work to do for the text asks ``observer`` before
        whether there is somebody."""
        self._say(Note(text))

    def _say(self, event: Event) -> None:
        if self.observer is not None:
            self.observer(event)

    def _offered(self) -> Offered:
        return Offered(
            [
                f"BAR{bar.index} of {bar.size:#x} bytes ({bar.layout.kind.name.lower()})"
                for bar in self.bars.values()
            ],
            [f"{type(one).__name__} at {one.offset:#x}" for one in self.config.capabilities],
            {kind.name: count for kind, count in self.interrupts.counts.items() if count},
        )

    def _adi_changed(self, adi: Adi, change: str) -> None:
        self._say(AdiChange(adi.name, change))

    def counters(self) -> dict[str, Count]:
        """``counters.VDEV``: the intercepted path, and what Python does."""
        counted = self._counted
        if self.session is not None:
            counted = together(counted, self.session.counters())
        own = {"interrupts": self.interrupts.delivered, "resets": self.resets}
        return {**counted, **self._counts, **own}

    def direct_counters(self) -> dict[str, Count]:
        """``counters.ADI`` of all its ADIs together, also of those that it has given back."""
        live = [adi for adi in self.adis if adi.state is not AdiState.RELEASED]
        return together(self.released, *(adi.path.counters() for adi in live))

    def describe(self) -> dict[str, Any]:
        """The composition and its counters, JSON-able."""
        return {
            "name": self.name,
            "state": self.state.value,
            "pci_id": f"{self.identity.vendor:04x}:{self.identity.device:04x}",
            "client": None if self.session is None else {"pid": self.session.peer},
            "pasid": self.pasid,
            "bars": [
                {
                    "index": bar.index,
                    "size": bar.size,
                    "kind": bar.layout.kind.name.lower(),
                    "pages": [
                        {"offset": p.offset, "size": p.size, "policy": p.policy.value}
                        for p in bar.pages
                    ],
                }
                for bar in self.bars.values()
            ],
            # As stored: nothing is read, so nothing is caused. Arrays would be long.
            "registers": [
                {"bar": bar.index, "name": name, "value": value}
                for bar in self.bars.values()
                for name, value in bar.space.stored().items()
            ],
            "vectors": {kind.name.lower(): n for kind, n in self.interrupts.counts.items() if n},
            "dma": [
                {"iova": r.iova, "size": r.size, "shared": r.shared}
                for r in self.address_space.ranges
            ],
            "counters": summarized(self.counters()),
            "direct": summarized(self.direct_counters()),
            "adis": [adi.describe() for adi in self.adis],
            "hints": self.hints.describe(),
            "guest_pasids": dict(self.guest_pasids.bindings),
            "properties": {name: getattr(self, name) for name in properties_of(type(self))},
        }

    def close(self) -> None:
        """Give PASID and memory back. Twice is harmless."""
        if self.state is VdevState.CLOSED:
            return
        if self.session is not None:
            raise StateError(f"{self.name} has a client: stop serving it first")
        self.state = VdevState.CLOSED
        for adi in tuple(self.adis):
            self.remove_adi(adi)
        self._unbind_pasids()
        PASIDS.release(self.pasid)
        for bar in self.bars.values():
            bar.close()


_OWN: Final = ("dma_read_bytes", "dma_written_bytes", "dma_refused", "clients")


class _Events(ConfigEvents):
    """What the guest does in configuration space, passed on to the parts that it concerns."""

    def __init__(self, vdev: Vdev) -> None:
        self._vdev = vdev
        self._bus_master = False

    def on_command_change(self, command: Command) -> None:
        bus_master = Command.BUS_MASTER in command
        if bus_master != self._bus_master:
            self._bus_master = bus_master
            self._vdev.interrupts.set_bus_master(bus_master)
            self._vdev.on_bus_master_change(bus_master)
        self._vdev.interrupts.set_enabled(
            Irq.INTX, enabled=True, all_masked=Command.INTX_DISABLE in command
        )
        for adi in self._vdev.adis:
            adi.driver.set_bus_master(adi, Command.BUS_MASTER in command)

    def on_msi_change(self, msi: Msi) -> None:
        given = msi.vectors_enabled if msi.enabled else None
        self._vdev.interrupts.set_enabled(Irq.MSI, enabled=msi.enabled, given=given)
        self._vdev.interrupts.set_guest_masks(Irq.MSI, msi.mask)

    def on_msix_change(self, msix: MsiX) -> None:
        self._vdev.interrupts.set_enabled(
            Irq.MSIX, enabled=msix.enabled, all_masked=msix.function_masked
        )

    def on_refused(self, reason: str) -> None:
        self._vdev._say(ConfigRefused(reason))

    def on_function_level_reset(self) -> None:
        self._vdev.reset()
