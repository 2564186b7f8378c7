"""Replay: what happened to a recorded VDEV happens to its model again; what that does is compared.

What is to be the same: the answers to accesses, each; interrupts, and writes to memory, each kind
in the order in which they were, between one thing that happens and the next. What the model reads
of the guest's memory is what it read then; in which order, and how often, is its own affair.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from vdcm.counters import CLIENT, Count, nothing
from vdcm.definition import (
    ParentDefinition,
    VdevDefinition,
    property_values,
    vdev_from_json,
)
from vdcm.errors import RecordingError, VdcmError
from vdcm.events import Event, Interrupt, InterruptLine
from vdcm.parent import Parent, build, set_properties
from vdcm.parent import models as installed
from vdcm.pasid import Page
from vdcm.properties import Property, PropertyError, properties_of
from vdcm.protocol import Irq
from vdcm.recording.format import Kind, Reader, Record
from vdcm.recording.pages import Pages, TapedMemory
from vdcm.recording.stepper import Stepper
from vdcm.recording.window import RECENT, Difference, Memory, Window
from vdcm.transport import DmaRange, GuestMemory, IrqAction, Session
from vdcm.vdev import Vdev

PARENTS: Final = 16
EFFECTS: Final = 1 << 18
"""Of one thing that happens."""
WIDTHS: Final = frozenset({1, 2, 4, 8})
_BY_CLIENT: Final = frozenset(
    {Kind.DETACH, Kind.READ, Kind.WRITE, Kind.RESET, Kind.MEMORY, Kind.VECTORS}
)


@dataclass
class Outcome:
    """What a replay has shown. ``counts``: what has happened, by kind, ``dma_writes`` and
    ``interrupts``. ``good``: records; fewer than the file was to have, if it is not whole."""

    name: str
    type: str
    good: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    difference: Difference | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "name": self.name,
            "type": self.type,
            "identical": self.difference is None,
            "records": self.good,
            "seconds": round(self.seconds, 3),
            "counts": dict(self.counts),
            "difference": self.difference.to_json() if self.difference is not None else None,
        }


def replay(
    path: Path, *, partial: bool = False, models: Mapping[str, type[Parent]] | None = None
) -> Outcome:
    """Do it all again, until something differs. ``partial``: a record that is not whole is replayed
    as far as it is good. ``models``: device models by name, before those that are installed.

    RecordingError if the record cannot be used: it is none, not whole, makes no sense, or is of a
    device that cannot be made here.
    """
    reader = Reader(path)
    try:
        if not partial:
            reader.check()
        return _Replay(reader, partial, models or {}).run()
    finally:
        reader.close()


class _Replay:
    def __init__(self, reader: Reader, partial: bool, models: Mapping[str, type[Parent]]) -> None:
        self._reader: Final = reader
        self._partial: Final = partial
        self._records: Final = self._good_ones()
        try:
            header = json.loads(next(self._records)["header"])
            self._clock: Final[int] = header["clock"]
            if type(self._clock) is not int or not 0 < self._clock < 1 << 62:
                raise ValueError("its clock is none")
            self._definition, self._wanted = _definitions(header, models)
        except (StopIteration, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RecordingError(
                f"{reader.path}: a header that makes no sense: {error!r}"
            ) from None
        except VdcmError as error:
            raise RecordingError(f"{reader.path} cannot be replayed here: {error}") from error
        self.outcome: Final = Outcome(self._definition.name, self._definition.type)
        self._pages: Final = Pages()
        self._client: _Client | None = None
        self._sizes: dict[int, int] = {}
        self.window: Window | None = None

    def _good_ones(self) -> Iterator[Record]:
        try:
            yield from self._reader.records()
        except RecordingError:
            if not self._partial:
                raise

    def run(self) -> Outcome:
        parents: list[Parent] = []
        stepper: Stepper | None = None
        vdev: Vdev | None = None
        try:
            try:
                for wanted in self._wanted:
                    parents.append(build(wanted.factory, wanted.name, wanted.properties))
                drivers = [one.driver for one in parents if one.driver is not None]
                stepper = Stepper(drivers, self._pages, lambda _ns: None, self._clock)
                vdev = stepper.call(self._clock + 1, self._create, parents)
            except VdcmError as error:
                raise RecordingError(
                    f"{self._reader.path} cannot be replayed here: {error}"
                ) from error
            stepper.take(vdev)
            vdev.observe(self._hear, accesses=False)
            self._sizes = {region.index: region.size for region in vdev.regions()}
            self._go(stepper, vdev)
        finally:
            self.window = None
            if vdev is not None:
                vdev.observe(None)
                if self._client is not None:
                    vdev.detached()
                vdev.close()
            if stepper is not None:
                stepper.close()
            for parent in parents:
                parent.close()
        self.outcome.good = self._reader.good
        self.outcome.seconds = self._reader.time / 1e9
        return self.outcome

    def _create(self, parents: list[Parent]) -> Vdev:
        first, *spare = parents
        definition = self._definition
        return first.create(definition.type, definition.name, definition.properties, spare)

    # One thing after the other.

    def _go(self, stepper: Stepper, vdev: Vdev) -> None:
        counts = self.outcome.counts
        for window in self._windows():
            self.window = window
            stimulus = window.stimulus
            now = self._clock + stimulus["time"]
            self._check(vdev, window)
            answer: Record | None = None
            try:
                value = stepper.call(now, self._do, stepper, vdev, stimulus)
            except RecordingError:
                raise
            except Exception as error:
                answer = Record(Kind.FAILED, (type(error).__name__,))
            else:
                if value is not None:
                    answer = Record(Kind.ANSWER, (value,))
            if stimulus.kind is not Kind.READ:
                stepper.work(now)
            window.answered(answer, vdev)
            window.left()
            counts.update(window.counted)
            counts[stimulus.kind.name.lower()] += 1
            self.outcome.difference = window.difference(vdev)
            if self.outcome.difference is not None:
                return

    def _windows(self) -> Iterator[Window]:
        """Each thing that happens, with its effects."""
        memory = Memory()
        before: deque[tuple[int, Record]] = deque(maxlen=RECENT)
        stimulus: Record | None = None
        effects: list[Record] = []
        begun = 0
        for number, record in enumerate(self._records, 2):
            if record.kind.effect:
                effects.append(record)
                if stimulus is None or len(effects) > EFFECTS:
                    raise self._bad(number, "what a device does, and no reason for it")
                continue
            if stimulus is not None:
                try:
                    yield Window(begun, stimulus, effects, tuple(before), memory, Page.SIZE)
                except ValueError as error:
                    raise self._bad(begun, str(error)) from None
                before.append((begun, stimulus))
            if record.kind is Kind.END:
                return
            stimulus, effects, begun = record, [], number

    def _bad(self, number: int, what: str) -> RecordingError:
        return RecordingError(f"{self._reader.path}: record {number} makes no sense: {what}")

    def _check(self, vdev: Vdev, window: Window) -> None:
        """What no client, and no server, could have done is not done."""
        one = window.stimulus
        kind = one.kind
        if kind in _BY_CLIENT and self._client is None:
            raise self._bad(window.number, "something that a client does, and there is none")
        if kind is Kind.ATTACH and self._client is not None:
            raise self._bad(window.number, "a second client")
        if kind in (Kind.READ, Kind.WRITE):
            end = one["offset"] + one["width"]
            if one["width"] not in WIDTHS or end > self._sizes.get(one["region"], 0):
                raise self._bad(window.number, "an access to what there is not")
        if kind is Kind.VECTORS:
            counts = {int(irq): count for irq, count in vdev.vectors().items()}
            known = one["action"] in {int(action) for action in IrqAction}
            if not known or one["first"] + one["count"] > counts.get(one["irq"], 0):
                raise self._bad(window.number, "interrupts that there are not")

    def _do(self, stepper: Stepper, vdev: Vdev, one: Record) -> int | None:
        kind, values = one.kind, one.values[1:]
        if kind is Kind.READ:
            return vdev.read(*values)
        if kind is Kind.WRITE:
            vdev.write(*values)
        elif kind is Kind.ATTACH:
            self._pages.backing = backing = _Recorded(self)
            self._client = _Client(TapedMemory(backing, self._pages))
            vdev.attached(cast(Session, self._client))
        elif kind is Kind.DETACH:
            self._client = None
            vdev.detached()
        elif kind is Kind.RESET:
            vdev.reset()
        elif kind is Kind.MEMORY:
            iova, size, mapped, shared = values
            vdev.dma_changed(iova, size, mapped=bool(mapped), shared=bool(shared))
        elif kind is Kind.VECTORS:
            irq, action, first, count = values
            vdev.irqs_changed(Irq(irq), IrqAction(action), first, count)
        elif kind is Kind.HOST:
            self._host(vdev, *values)
        elif kind is Kind.LOOP:
            own, others = values
            stepper.loop.due(self._clock + one["time"])
            stepper.loop.run(own, others)
        return None

    def _host(self, vdev: Vdev, what: str, text: str) -> None:
        if what == "reset":
            vdev.reset()
            return
        known = properties_of(type(vdev))
        try:
            values = json.loads(text)
            if what != "set" or not isinstance(values, dict):
                raise ValueError(f"the host does {what[:80]}")
            parsed = property_values(known, values, vdev.name)
            if not all(known[key].live for key in parsed):
                raise ValueError("a property that cannot be set now")
            _inside(vdev.name, known, parsed)
        except (ValueError, RecursionError, VdcmError) as error:
            assert self.window is not None  # it is what happens
            raise self._bad(self.window.number, str(error)) from None
        set_properties(vdev, parsed)

    def _hear(self, event: Event) -> None:
        if self.window is None:
            return
        if isinstance(event, Interrupt):
            self.window.signal(Record(Kind.INTERRUPT, (event.irq, event.vector, event.outcome)))
        elif isinstance(event, InterruptLine):
            self.window.signal(Record(Kind.LINE, (int(event.asserted),)))


def _definitions(
    header: Mapping[str, Any], models: Mapping[str, type[Parent]]
) -> tuple[VdevDefinition, list[ParentDefinition]]:
    """What the header says, checked: nothing outside of this process is touched by it."""
    known_models = {**installed(), **models}
    wanted: dict[str, ParentDefinition] = {}
    for one in header["parents"][:PARENTS]:
        name, model = str(one["name"]), str(one["model"])
        if model not in known_models:
            raise VdcmError(f"there is no device model {model[:80]}: install it")
        known = properties_of(known_models[model])
        values = property_values(known, dict(one["properties"]), name[:80])
        _inside(name, known, values)
        wanted[name] = ParentDefinition(name, model, known_models[model], values)
    given = {key: value for key, value in dict(header["vdev"]).items() if key != "socket"}
    definition = vdev_from_json(given, wanted)
    kind = wanted[definition.parents[0]].factory.vdev_model(definition.type)
    _inside(definition.name, properties_of(kind), definition.properties)
    return definition, [wanted[name] for name in definition.parents]


def _inside(whose: str, known: Mapping[str, Property[Any]], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if known[key].outside(value):
            raise PropertyError(f"{whose[:80]} has {key}={value[:80]}: a replay touches no files")


class _Recorded:
    """The memory of a guest that is not there any more (pages.Backing)."""

    ranges: Final[list[DmaRange]] = []

    def __init__(self, owner: _Replay) -> None:
        self._owner: Final = owner
        self._nothing: Final = GuestMemory()
        self.native: Final = self._nothing.native

    def read(self, iova: int, length: int) -> bytes:
        return self._window.read(iova, length)

    def write(self, iova: int, data: bytes) -> None:
        self._window.write(iova, data)

    def page(self, address: int, *, write: bool) -> bytes:
        del write
        return self._window.page(address)

    def put(self, iova: int, data: bytes) -> None:
        self._window.put(iova, data)

    @property
    def _window(self) -> Window:
        if self._owner.window is None:
            raise RecordingError("the replay is over")
        return self._owner.window


class _Client:
    """Stands for the session of the client that there was."""

    peer: Final = 0

    def __init__(self, memory: TapedMemory) -> None:
        self.memory: Final = memory

    def trigger(self, kind: Irq, vector: int) -> bool:
        del kind, vector
        return True

    def eventfd(self, kind: Irq, vector: int) -> int:
        del kind, vector
        return -1

    def counters(self) -> dict[str, Count]:
        return nothing(CLIENT)

    def observe(self, observed: bool) -> None:
        """Nobody takes stores ahead of it."""
