"""The configuration space of a PCI Express function: header, both capability chains, its events.

Sections are those of the PCI Express Base Specification 5.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, TypeVar

from vdcm.errors import DeclarationError
from vdcm.pci.capabilities import Msi, MsiX, PciExpress, PowerState
from vdcm.pci.header import BarLayout, Command, Header, Identity
from vdcm.pci.part import (
    Capability,
    ConfigPart,
    ExtendedCapability,
    StandardCapability,
    place_chain,
)
from vdcm.registers import RegisterSpace

CapabilityT = TypeVar("CapabilityT", bound=Capability)


class ConfigEvents:
    """What a config space tells its owner; override what matters.

    The methods run during the guest's write, with the new value in place, and only when what they
    report has changed. A reset reports what it changes once all of it is done.
    """

    def on_command_change(self, command: Command) -> None:
        """Memory or I/O space, bus mastering or INTx were enabled or disabled."""

    def on_power_state_change(self, state: PowerState) -> None:
        """The function goes to D0 or D3hot; in D3hot it answers config accesses only (5.3.1.4)."""

    def on_msi_change(self, msi: Msi) -> None:
        """MSI's enable, number of vectors or mask changed."""

    def on_msix_change(self, msix: MsiX) -> None:
        """MSI-X's enable or function mask changed."""

    def on_system_page_size(self, bits: int) -> None:
        """Scalable IOV's System Page Size changed: bit n, the only one, means 2^(n+12) bytes."""

    def on_refused(self, reason: str) -> None:
        """Software wrote what a specification leaves undefined; the old value has stayed."""

    def on_function_level_reset(self) -> None:
        """The guest asked for it: stop and reset the function. Config is reset on return (6.6.2).

        An owner whose reset includes ``ConfigSpace.reset`` may call that here.
        """


class ConfigSpace:
    """4096 bytes, composed of a type 0 header and the listed capabilities.

    ``capabilities``: standard and extended ones in one list; each goes to the chain of its kind,
    where it asks to be or at the first free place, and is linked there in ascending order.
    ``intx``: the function has INTA#. The guest's accesses go to ``space``.

    Raises DeclarationError for what cannot be composed.
    """

    SIZE: ClassVar[int] = 0x1000

    def __init__(
        self,
        identity: Identity,
        *,
        bars: Sequence[BarLayout] = (),
        capabilities: Sequence[Capability] = (),
        intx: bool = False,
        owner: ConfigEvents | None = None,
    ) -> None:
        self.owner: Final = owner if owner is not None else ConfigEvents()
        self.bars: Final[Mapping[int, BarLayout]] = {bar.index: bar for bar in bars}
        self.header: Final = Header(identity, bars, interrupt_pin=int(intx))
        self.space: Final = RegisterSpace("config", self.SIZE, kind="config")
        _refuse_duplicates(capabilities)
        standard, extended = (
            place_chain([c for c in capabilities if isinstance(c, kind)], kind.begin, kind.end)
            for kind in (StandardCapability, ExtendedCapability)
        )
        # The extended chain has no pointer to it: it begins at 0x100, where a header of zeros
        # means that there is none (7.6.2).
        if extended and extended[0].offset != ExtendedCapability.begin:
            raise DeclarationError(
                f"{type(extended[0]).__name__} at {extended[0].offset:#x}: "
                "the first extended capability has to be at 0x100"
            )
        if extended and not any(isinstance(c, PciExpress) for c in standard):
            raise DeclarationError(
                f"{type(extended[0]).__name__}: software looks for extended capabilities "
                "only in a function with the PciExpress capability"
            )
        self.capabilities: Final[Sequence[Capability]] = (*standard, *extended)
        self.header.CAPABILITIES_POINTER.preset(standard[0].offset if standard else 0)
        self.header.STATUS.preset(CAPABILITIES=int(bool(standard)))
        self._parts: Final[Sequence[ConfigPart]] = (self.header, *self.capabilities)
        self.space.place(0, self.header)
        for capability in self.capabilities:
            capability.check_bars(self.bars)
            name = f"{type(capability).__name__}."
            self.space.place(capability.offset, capability, name)
            if capability.payload is not None:
                self.space.place(capability.offset + capability.size, capability.payload, name)
        for part in self._parts:
            part.attach(self)

    def find(self, kind: type[CapabilityT]) -> CapabilityT | None:
        """The first capability of a kind, None if there is none."""
        return next((c for c in self.capabilities if isinstance(c, kind)), None)

    def bar_address(self, index: int) -> int:
        """Where the guest put a BAR. KeyError if there is no such BAR."""
        bar = self.bars[index]
        address = sum(self.header.BAR[i].value << 32 * (i - index) for i in bar.indices)
        return address & -bar.size

    def set_interrupt_status(self, pending: bool) -> None:
        """INTx is (not) pending: the Interrupt Status bit, whether or not INTx is disabled."""
        self.header.STATUS.INTERRUPT = int(pending)

    def function_level_reset(self) -> None:
        """What the guest asks for with Initiate Function Level Reset."""
        self.owner.on_function_level_reset()
        self.reset()

    def reset(self, *, cold: bool = False) -> None:
        """As a function-level reset does, which keeps sticky bits (6.6.2); ``cold`` does not."""
        self.space.reset(keep_sticky=not cold)
        self._publish()

    def save(self) -> dict[str, object]:
        """All stored values, JSON-able."""
        return self.space.save()

    def restore(self, state: Mapping[str, object]) -> None:
        """Take what ``save`` gave and report what changes; RegisterError if it does not fit."""
        self.space.restore(state)
        self._publish()

    def _publish(self) -> None:
        for part in self._parts:
            part.publish()

    def lspci_dump(self, address: str = "00:00.0") -> str:
        """All bytes as ``lspci -xxxx`` prints them, so that ``lspci -F`` decodes them."""
        observer, self.space.observer = self.space.observer, None  # the guest did not read this
        data = bytes(self.space.read(at, 1) for at in range(self.SIZE))
        self.space.observer = observer
        lines = [f"{at:02x}: {data[at : at + 16].hex(' ')}" for at in range(0, self.SIZE, 16)]
        return "\n".join([f"{address} function", *lines, ""])


def _refuse_duplicates(capabilities: Sequence[Capability]) -> None:
    seen: dict[tuple[type, int], Capability] = {}
    for capability in capabilities:
        if not isinstance(capability, Capability):
            what = getattr(capability, "__name__", type(capability).__name__)
            raise DeclarationError(f"capabilities: {what} is no capability; one is made as Msi()")
        name = type(capability).__name__
        if any(capability is other for other in seen.values()) or hasattr(capability, "config"):
            raise DeclarationError(f"{name}: one object cannot be two capabilities, make another")
        kind = StandardCapability if isinstance(capability, StandardCapability) else Capability
        other = seen.setdefault((kind, capability.capability_id), capability)
        if other is not capability and not capability.repeatable:
            raise DeclarationError(f"{name}: a function has at most one")
