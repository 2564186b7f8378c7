"""What can be seen of a VDEV from outside: one declaration for each kind of event.

An observer (``Vdev.observe``) is given events as they happen. ``str()`` of one is its line for
people, ``details()`` what programs get. Accesses are in ``vdcm/registers/record.py``, where the
registers are. Nothing is made of an event that nobody observes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final

KINDS: Final[Mapping[str, str]] = {
    "access": "reads and writes of registers in BARs",
    "config": "those of configuration space, and what it refuses",
    "reset": "resets of the function",
    "dma": "memory that is mapped or unmapped, and what the device model reads and writes of it",
    "interrupt": "interrupts that are delivered, pending or lost; vectors that are bound or masked",
    "mailbox": "requests of the guest driver, and their answers",
    "adi": "the life of ADIs",
    "queue": "what the queues of ADIs have done since the last sample, by exact counters",
    "client": "clients that come and go",
    "device": "what the device model itself has to say",
    "hint": "what may be wrong with the guest driver or the device model",
}


encode: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class Event:
    """``kind`` is one of ``KINDS``."""

    __slots__ = ()

    kind: ClassVar[str]

    @property
    def registers(self) -> Sequence[str]:
        """Names of the registers that it is about."""
        return ()

    def details(self) -> dict[str, Any]:
        """Its fields, JSON-able."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def encoded(self) -> str:
        """What programs get, as the members of a JSON object: ``kind``, ``text`` and its fields."""
        return encode({"kind": self.kind, "text": str(self), **self.details()})[1:-1]


Observer = Callable[[Event], None]
"""Gets events on the event loop, as they happen. It must not raise and must not block."""


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


@dataclass(frozen=True, slots=True)
class ConfigRefused(Event):
    """The guest wrote to configuration space what a specification leaves undefined."""

    kind = "config"
    reason: str

    def __str__(self) -> str:
        return f"config refused: {self.reason}"


@dataclass(frozen=True, slots=True)
class Reset(Event):
    """The function is about to be reset."""

    kind = "reset"

    def __str__(self) -> str:
        return "reset"


@dataclass(frozen=True, slots=True)
class DmaMapping(Event):
    """The client mapped or unmapped a range of guest memory. ``shared``: DMA can reach it."""

    kind = "dma"
    iova: int
    size: int
    mapped: bool
    shared: bool

    def __str__(self) -> str:
        what = "map" if self.mapped else "unmap"
        note = " not shared" if self.mapped and not self.shared else ""
        return f"dma {what} {self.iova:#x}+{self.size:#x}{note}"


@dataclass(frozen=True, slots=True)
class DmaAccess(Event):
    """The device model read or wrote guest memory, or failed to. ``data``: its first bytes."""

    kind = "dma"
    write: bool
    iova: int
    size: int
    data: str = ""
    reason: str = ""

    SHOWN: ClassVar = 16

    def __str__(self) -> str:
        what = "write" if self.write else "read"
        shown = f" {self.data}{'...' if self.size > self.SHOWN else ''}" if self.data else ""
        failed = f" failed{_because(self.reason)}" if self.reason else shown
        return f"dma {what} {self.iova:#x}+{self.size:#x}{failed}"


@dataclass(frozen=True, slots=True)
class Interrupt(Event):
    """One that the device has signalled: ``delivered``, ``pending`` or ``lost``, for a reason.

    ``irq`` is INTX, MSI or MSIX, empty if none of them is in use.
    """

    kind = "interrupt"
    irq: str
    vector: int
    outcome: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.irq or 'interrupt'} {self.vector} {self.outcome}{_because(self.reason)}"


@dataclass(frozen=True, slots=True)
class InterruptLine(Event):
    """The level of INTx has changed."""

    kind = "interrupt"
    asserted: bool

    def __str__(self) -> str:
        return f"INTx {'asserted' if self.asserted else 'deasserted'}"


@dataclass(frozen=True, slots=True)
class Vectors(Event):
    """The client bound, unbound, masked or unmasked vectors ``first`` to ``last``."""

    kind = "interrupt"
    irq: str
    first: int
    last: int
    action: str

    def __str__(self) -> str:
        return f"{self.irq} {self.first}..{self.last} {self.action}"


@dataclass(frozen=True, slots=True)
class MailboxMessage(Event):
    """A request of the guest driver, or what became of it."""

    kind = "mailbox"
    request: str
    what: str
    """``asked``, ``answered``, ``failed`` or ``rejected``"""
    size: int = 0
    """Bytes of the request or of the answer."""
    code: str = ""
    reason: str = ""

    def __str__(self) -> str:
        if self.what == "asked":
            return f"mailbox {self.request} ({self.size} bytes)"
        size = f" ({self.size} bytes)" if self.what == "answered" else ""
        return (
            f"mailbox {self.request} {self.what}{_because(self.code)}{size}{_because(self.reason)}"
        )


@dataclass(frozen=True, slots=True)
class AdiChange(Event):
    """An ADI has been allocated, configured, enabled, and so on: ``change``."""

    kind = "adi"
    adi: str
    change: str

    def __str__(self) -> str:
        return f"{self.adi} {self.change}"


@dataclass(frozen=True, slots=True)
class QueueSample(Event):
    """What an ADI has done in the last ``seconds``: by how much its counters have grown."""

    kind = "queue"
    adi: str
    seconds: float
    grown: Mapping[str, int]

    def __str__(self) -> str:
        grown = ", ".join(f"{name} +{count}" for name, count in self.grown.items())
        return f"{self.adi} in {self.seconds:.3g} s: {grown}"


@dataclass(frozen=True, slots=True)
class ClientChange(Event):
    """A client has attached or detached; ``pid`` is its process."""

    kind = "client"
    attached: bool
    pid: int

    def __str__(self) -> str:
        return f"client {self.pid} {'attached' if self.attached else 'detached'}"


@dataclass(frozen=True, slots=True)
class Offered(Event):
    """What a client that has attached finds: ``bars`` with their sizes, ``capabilities`` and where
    they are, and how many ``vectors`` of INTX, MSI and MSIX."""

    kind = "client"
    bars: Sequence[str]
    capabilities: Sequence[str]
    vectors: Mapping[str, int]

    def __str__(self) -> str:
        vectors = ", ".join(f"{count} {irq}" for irq, count in self.vectors.items())
        return (
            f"it finds {', '.join(self.bars) or 'no BAR'}; {', '.join(self.capabilities)}; "
            f"interrupts: {vectors or 'none'}"
        )


@dataclass(frozen=True, slots=True)
class Note(Event):
    """What a device model says (``Vdev.note``)."""

    kind = "device"
    note: str

    def __str__(self) -> str:
        return self.note


@dataclass(frozen=True, slots=True)
class Hint(Event):
    """What may be wrong (vdcm/hints.py). ``about``: the registers concerned, by name."""

    kind = "hint"
    hint: str
    """``uncovered``, ``polling``, ``uncleared`` or ``unanswered``"""
    said: str
    about: tuple[str, ...] = ()

    @property
    def registers(self) -> Sequence[str]:
        return self.about

    def __str__(self) -> str:
        return self.said


@dataclass(frozen=True, slots=True)
class Dropped(Event):
    """The reader of a trace was too slow for ``count`` events."""

    kind = "dropped"
    count: int

    def __str__(self) -> str:
        return f"... {self.count} events dropped: the reader of this trace is too slow"
