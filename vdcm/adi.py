"""Assignable device interfaces: what a parent gives away (Scalable IOV, 1.2.2 and 2.1).

An ADI is a set of the parent's resources that is allocated, configured, isolated and reset as one.
The host driver makes and manages them (vdcm/host.py); a VDEV is composed of one or several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from vdcm.counters import summarized
from vdcm.ims import ImsEntry
from vdcm.sweep import DEFAULT_WEIGHT, AdiPath, Report

if TYPE_CHECKING:
    from vdcm.host import HostDriver


@dataclass(frozen=True)
class AdiType:
    """A kind of ADI. ``requirements``: how much of which of the parent's resources one takes.

    ``messages``: interrupt messages (IMS entries) that one gets. ``pasid_required``: it must have a
    PASID before it is enabled; not so for one that takes the PASID from the work itself, as with a
    shared work queue (2.3).
    """

    name: str
    requirements: Mapping[str, int]
    messages: int = 0
    pasid_required: bool = True
    doc: str = ""


class AdiState(Enum):
    """The life of an ADI.

    ::

        allocate → ALLOCATED ⇄ ENABLED → DRAINING → ENABLED      (reset: back to ALLOCATED)
                       ↓          ⇅
                       └──→  SUSPENDED                           (release: RELEASED, from any)
    """

    ALLOCATED = "allocated"
    ENABLED = "enabled"
    DRAINING = "draining"
    SUSPENDED = "suspended"
    RELEASED = "released"


@dataclass(eq=False)
class Adi:
    """One ADI. Everything about it is changed through its ``driver`` and nowhere else (2.6).

    ``index`` counts the driver's ADIs; ``owner`` is the name of the VDEV, and ``slot`` the lowest
    number that no other of its ADIs has. ``path`` is its part of
    the direct path. ``resource`` is the host driver's own: what backs the ADI.
    """

    driver: HostDriver
    type: AdiType
    index: int
    owner: str
    path: AdiPath
    slot: int = 0
    state: AdiState = AdiState.ALLOCATED
    pasid: int | None = None
    secondary_pasid: int | None = None
    bus_master: bool = False
    weight: int = DEFAULT_WEIGHT
    rate: int = 0
    messages: list[ImsEntry] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    resource: Any = None
    resets: int = 0
    on_report: Callable[[Adi, Report], None] = lambda _adi, _report: None
    on_change: Callable[[Adi, str], None] = lambda _adi, _change: None
    """Called when something has become of it."""
    on_drained: list[Callable[[], None]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For messages: ``dsa0/dwq3``."""
        return f"{self.driver.name}/{self.type.name}{self.index}"

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "name": self.name,
            "slot": self.slot,
            "type": self.type.name,
            "parent": self.driver.name,
            "state": self.state.value,
            "pasid": self.pasid,
            "secondary_pasid": self.secondary_pasid,
            "weight": self.weight,
            "rate": self.rate,
            "messages": [entry.describe() for entry in self.messages],
            "settings": dict(self.settings),
            "resets": self.resets,
            "counters": summarized(self.driver.counters(self)),
        }
