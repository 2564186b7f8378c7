"""A VDEV as the manager has it: where its definition comes from, and what has become of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from vdcm.definition import VdevDefinition
from vdcm.errors import StateError
from vdcm.events import Event, Observer
from vdcm.transport import Servable
from vdcm.vdev import Vdev


@dataclass(frozen=True, eq=False, slots=True)
class Listener:
    """Whoever traces VDEVs: ``observer_of`` makes what hears the events of the one of a name.
    ``accesses``: those to registers, too."""

    observer_of: Callable[[str], Observer]
    accesses: bool = True


class Stage(Protocol):
    """What a VDEV is made and run on, if not just on the event loop: that of a record."""

    def make(self, compose: Callable[[], Vdev]) -> Vdev:
        """The VDEV that ``compose`` makes."""

    def front(self, vdev: Vdev) -> Servable:
        """What is served in its place."""

    def act(self, what: str, values: Mapping[str, Any], do: Callable[[], None]) -> None:
        """Have the host do something to it: ``set`` its properties to ``values``, or ``reset``."""

    def close(self) -> None:
        """The VDEV has been closed, or could not be made."""


class Life(Enum):
    """DEFINED → STARTING → STARTED → STOPPING → DEFINED. A start that does not succeed ends in
    FAILED, from where it can be tried again."""

    DEFINED = "defined"
    STARTING = "starting"
    STARTED = "started"
    STOPPING = "stopping"
    FAILED = "failed"


class Origin(Enum):
    """Where a VDEV is defined, and so what becomes of it."""

    FILE = "file"
    """In the server's definition file, which alone changes it for good."""
    STORED = "stored"
    """In the state folder: it survives the server's restart."""
    TRANSIENT = "transient"
    """Nowhere: when it is stopped it is gone."""
    SCRIPT = "script"
    """In a script, which has made it."""


@dataclass
class Entry:
    """A VDEV of this process. ``vdev`` is there while it is started (a script's always is).

    ``reason``: why it is FAILED. ``listeners``: who traces it, also before it is started.
    ``real_path``: its socket's, without symbolic links. ``stage``: for as long as it is started.
    """

    definition: VdevDefinition
    origin: Origin
    vdev: Vdev | None = None
    life: Life = Life.DEFINED
    reason: str = ""
    listeners: list[Listener] = field(default_factory=list)
    real_path: str = ""
    stage: Stage | None = None
    used: bool = False
    """Guests have used it since the server was started."""

    @property
    def name(self) -> str:
        return self.definition.name

    def need(self, verb: str, *lives: Life) -> None:
        """StateError unless it is in one of ``lives``, as ``verb`` needs it."""
        if self.life not in lives:
            wanted = " or ".join(life.value for life in lives)
            raise StateError(f"{self.name} is {self.life.value}; {verb} needs it {wanted}")

    def running(self, verb: str) -> Vdev:
        """The VDEV, for a ``verb`` that needs it started."""
        self.need(verb, Life.STARTED)
        assert self.vdev is not None  # what STARTED means
        return self.vdev

    @property
    def state(self) -> str:
        """Its ``life`` or, while it is started, the VDEV's own: ready, attached or resetting."""
        if self.life is Life.STARTED and self.vdev is not None:
            return self.vdev.state.value
        return self.life.value

    def summary(self) -> dict[str, Any]:
        """JSON-able, and what ``define`` takes."""
        summary = {
            **self.definition.to_json(),
            "state": self.state,
            "origin": self.origin.value,
        }
        return {**summary, "reason": self.reason} if self.reason else summary

    def act(self, what: str, values: Mapping[str, Any], do: Callable[[], None]) -> None:
        """Have the host do something to the VDEV (``Stage.act``)."""
        if self.stage is not None:
            self.stage.act(what, values, do)
        else:
            do()

    def observe(self) -> None:
        """Have the VDEV observed if somebody listens: one that nobody listens to pays nothing."""
        if self.vdev is not None:
            observers = [listener.observer_of(self.name) for listener in self.listeners]
            accesses = any(listener.accesses for listener in self.listeners)
            self.vdev.observe(_together(observers), accesses=accesses)


def _together(observers: Sequence[Observer]) -> Observer | None:
    if len(observers) < 2:
        return observers[0] if observers else None

    def observer(event: Event) -> None:
        for one in observers:
            one(event)

    return observer
