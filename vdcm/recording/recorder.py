"""Recording: what stands between a VDEV and its client, and writes down what passes."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast

from vdcm.counters import Count
from vdcm.definition import VdevDefinition
from vdcm.entry import Entry, Life, Listener, Origin
from vdcm.errors import DmaError, RecordingError, StateError, VdcmError
from vdcm.events import Event, Interrupt, InterruptLine
from vdcm.host import HostDriver
from vdcm.manager import Manager
from vdcm.parent import Parent
from vdcm.pasid import Page
from vdcm.properties import properties_of
from vdcm.protocol import Irq
from vdcm.recording.format import Kind, Record, Writer
from vdcm.recording.pages import Pages, TapedMemory
from vdcm.recording.stepper import Stepper
from vdcm.transport import DmaRange, GuestMemory, IrqAction, RegionDescription, Session
from vdcm.vdev import Vdev

log = logging.getLogger("vdcm.recording")

SIZE_LIMIT: Final = 1 << 30
"""Bytes of a file, unless said otherwise."""
SEEN: Final = 4096
"""Pages whose content is remembered, so as not to be written again."""
FLUSH: Final = 1.0
"""Seconds after which what has been recorded is in the file, should the server die."""


def start(manager: Manager, name: str, path: Path, limit: int = SIZE_LIMIT) -> Recording:
    """Start VDEV ``name`` anew, without a client, and record it from then on.

    StateError if it has a client, if a record is being made, or if its parents work for other
    VDEVs; RecordingError for what a record could not have: a device that is not defined, files
    that a device keeps data in, what a guest has left in it before; and for a file that cannot be.
    """
    entry = manager.entry(name)
    entry.need("recording", Life.DEFINED, Life.FAILED, Life.STARTED)
    if entry.origin in (Origin.SCRIPT, Origin.TRANSIENT):
        raise RecordingError(
            f"{entry.name} is {entry.origin.value}, and could not be started anew: define it"
        )
    stage = entry.stage
    if isinstance(stage, Recording) and not stage.reason:
        raise StateError(
            f"{entry.name} is being recorded into {stage.path}: Ctrl-C ends that where it was "
            f"begun, and so does vdcm stop {entry.name}"
        )
    vdev = entry.vdev
    if vdev is not None and vdev.session is not None:
        raise StateError(f"{entry.name} has a client; a record begins before: stop the guest first")
    definition = entry.definition
    used = entry.used or (vdev is not None and vdev.counters()["clients"] != 0)
    parents = [manager.parent(one) for one in definition.parents]
    if used and any(parent.keeps(entry.name) for parent in parents):
        raise RecordingError(
            f"{entry.name} keeps what guests have stored in it, which a record would lack: define "
            "another one, or restart the server"
        )
    clock = time.monotonic_ns()
    header = {
        "vdcm": version("vdcm"),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "clock": clock,
        "vdev": {**replace(definition, auto=False).to_json(), "socket": None},
        "parents": [_parent(manager, one) for one in definition.parents],
    }
    vdev_kind = type(vdev) if vdev is not None else parents[0].vdev_model(definition.type)
    for owner, kind, values in (
        (entry.name, vdev_kind, definition.properties),
        *((one.name, type(one), header_values(one)) for one in parents),
    ):
        for key, value in values.items():
            if properties_of(kind)[key].outside(value):
                raise RecordingError(
                    f"{owner} has {key}={value}: what is there is not part of a record; use one "
                    "whose data is in memory"
                )
    _check_alone(manager, entry)
    try:
        writer = Writer(path, header, limit)
    except FileExistsError:
        raise RecordingError(f"{path} exists: name another file, or remove it") from None
    except OSError as error:
        raise RecordingError(f"{path}: cannot be written: {error.strerror}") from error
    recording: Recording | None = None
    try:
        if entry.life is Life.STARTED:
            manager.stop(name)
        for parent in parents:
            if parent.keeps(entry.name):
                parent.forget(entry.name)
            manager.renew_parent(parent.name)
        parents = [manager.parent(one) for one in definition.parents]
        drivers = [parent.driver for parent in parents if parent.driver is not None]
        recording = Recording(definition, path, writer, drivers, clock)
        manager.start(name, recording)
    except BaseException:
        if recording is not None:
            recording.end("it could not be started")
        path.unlink(missing_ok=True)
        writer.close()
        raise
    recording.listen(manager)
    return recording


def header_values(parent: Parent) -> dict[str, Any]:
    """The properties of a parent as they are."""
    return {name: getattr(parent, name) for name in properties_of(type(parent))}


def _parent(manager: Manager, name: str) -> dict[str, Any]:
    definition = manager.parent_definition(name)
    return {
        "name": name,
        "model": definition.model,
        "properties": header_values(manager.parent(name)),
    }


def _check_alone(manager: Manager, entry: Entry) -> None:
    parents = set(entry.definition.parents)
    for other in manager.started():
        common = parents.intersection(other.definition.parents)
        if other is not entry and common:
            raise StateError(
                f"{min(common)} works for {other.name}, too; a VDEV that is recorded has it for "
                f"itself: stop {other.name}, or define a parent of its own"
            )


def recordings(manager: Manager) -> list[dict[str, Any]]:
    """All that are being made, or have been of VDEVs that are still started."""
    found = (entry.stage for entry in manager.started())
    return [one.describe() for one in found if isinstance(one, Recording)]


def end(manager: Manager, name: str) -> dict[str, Any]:
    """End a record, and say what became of it. The VDEV goes on, one thing at a time as before,
    until it is stopped. StateError if none is made."""
    stage = manager.entry(name).stage
    if not isinstance(stage, Recording):
        raise StateError(f"{name} is not being recorded")
    stage.end("ended")
    return stage.describe()


class Recording:
    """One that is being made: the stage that its VDEV is on (entry.Stage)."""

    def __init__(
        self,
        definition: VdevDefinition,
        path: Path,
        writer: Writer,
        drivers: list[HostDriver],
        clock: int,
    ) -> None:
        self.name: Final = definition.name
        self.uuid: Final = definition.uuid
        self.path: Final = path
        self.reason = ""
        """Why it has ended."""
        self.pages: Final = Pages()
        self.stepper: Final = Stepper(drivers, self.pages, self._wake, clock)
        self._writer: Final = writer
        self._clock: Final = clock
        self._loop: Final = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._flush_later()
        self._time = 0
        self._unlisten: Callable[[], None] = lambda: None

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "name": self.name,
            "uuid": self.uuid,
            "file": str(self.path),
            "records": self._writer.records,
            "bytes": self._writer.bytes,
            "seconds": round(self._time / 1e9, 3),
            "ended": self.reason or None,
        }

    # The file.

    def now(self) -> int:
        """As the model is told it, in ns; later than the last one."""
        self._time = max(time.monotonic_ns() - self._clock, self._time + 1)
        return self._clock + self._time

    def begin(self, kind: Kind, *values: Any) -> int:
        """Note what happens to the device, at the time that is returned."""
        now = self.now()
        self.add(kind, self._time, *values)
        return now

    def add(self, kind: Kind, *values: Any) -> None:
        if self.reason:
            return
        try:
            self._writer.add(Record(kind, values))
        except (OSError, VdcmError) as error:
            self._fail(str(error))
        else:
            if self._writer.full and not kind.effect:
                self.end("the file is as large as it may be")

    def end(self, reason: str) -> None:
        """Nothing more is recorded. Twice is harmless."""
        if self.reason:
            return
        try:
            self._writer.add(Record(Kind.END, (self._time, reason)))
            self.reason = reason
            self._writer.close()
        except OSError as error:
            self._fail(str(error))
        if self._timer is not None:
            self._timer.cancel()
        log.info("%s: the record %s has ended: %s", self.name, self.path, self.reason)

    def _fail(self, reason: str) -> None:
        self.reason = f"failed: {reason}"
        self._writer.abandon()
        log.error("%s: the record %s is not whole: %s", self.name, self.path, reason)

    def _flush_later(self) -> None:
        self._timer = self._loop.call_later(FLUSH, self._flush)

    def _flush(self) -> None:
        if self.reason:
            return
        try:
            self._writer.flush()
        except OSError as error:
            self._fail(str(error))
        else:
            self._flush_later()

    # The stage.

    def make(self, compose: Callable[[], Vdev]) -> Vdev:
        vdev = self.stepper.call(self.now(), compose)
        self.stepper.take(vdev)
        return vdev

    def front(self, vdev: Vdev) -> Front:
        return Front(vdev, self)

    def act(self, what: str, values: Mapping[str, Any], do: Callable[[], None]) -> None:
        now = self.begin(Kind.HOST, what, json.dumps(dict(values)))
        self.stepper.call(now, do)
        self.stepper.work(now)

    def close(self) -> None:
        self._unlisten()
        self.end("the VDEV was stopped")
        self.stepper.close()

    # What happens by itself.

    def listen(self, manager: Manager) -> None:
        self._unlisten = manager.listen(
            Listener(lambda _name: self._hear, accesses=False), [self.name]
        )

    def _hear(self, event: Event) -> None:
        if isinstance(event, Interrupt):
            self.add(Kind.INTERRUPT, event.irq, event.vector, event.outcome)
        elif isinstance(event, InterruptLine):
            self.add(Kind.LINE, int(event.asserted))

    def _wake(self, ns: int) -> None:
        if ns:
            self._loop.call_later(ns / 1e9, self._run)
        else:
            self._loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        own, others = self.stepper.loop.due(self.now())
        if own or others:
            now = self.begin(Kind.LOOP, own, others)
            self.stepper.call(now, self.stepper.loop.run, own, others)
            self.stepper.work(now)
        elif self.stepper.loop.next() is not None:
            self._wake(max(self.stepper.loop.next() or 0, self.now() + 1_000_000) - self.now())


class Front:
    """Stands between the transport and ``vdev`` (transport.Servable). Nothing can be mapped: each
    access is a message, and each message comes by here."""

    observed = True

    def __init__(self, vdev: Vdev, recording: Recording) -> None:
        self._vdev: Final = vdev
        self._recording: Final = recording
        self._stepper: Final = recording.stepper
        self.repeated, self.silent = vdev.repeated, vdev.silent

    @property
    def name(self) -> str:
        return self._vdev.name

    def regions(self) -> Sequence[RegionDescription]:
        return [RegionDescription(region.index, region.size) for region in self._vdev.regions()]

    def vectors(self) -> Mapping[Irq, int]:
        return self._vdev.vectors()

    def read(self, region: int, offset: int, width: int) -> int:
        now = self._recording.begin(Kind.READ, region, offset, width)
        try:
            value = self._stepper.call(now, self._vdev.read, region, offset, width)
        except Exception as error:
            self._recording.add(Kind.FAILED, type(error).__name__)
            raise
        self._recording.add(Kind.ANSWER, value)
        return value

    def write(self, region: int, offset: int, width: int, value: int) -> None:
        now = self._recording.begin(Kind.WRITE, region, offset, width, value)
        try:
            self._stepper.call(now, self._vdev.write, region, offset, width, value)
        except Exception as error:
            self._recording.add(Kind.FAILED, type(error).__name__)
            raise
        finally:
            self._stepper.work(now)

    def attached(self, session: Session) -> None:
        now = self._recording.begin(Kind.ATTACH)
        pages = self._recording.pages
        pages.backing = Taped(session.memory, self._recording)
        client = Client(TapedMemory(pages.backing, pages), session)
        try:
            self._stepper.call(now, self._vdev.attached, cast(Session, client))
        except Exception as error:
            self._recording.add(Kind.FAILED, type(error).__name__)
            raise
        finally:
            self._stepper.work(now)

    def detached(self) -> None:
        now = self._recording.begin(Kind.DETACH)
        self._stepper.call(now, self._vdev.detached)
        self._stepper.work(now)
        self._recording.pages.backing = None

    def reset(self) -> None:
        now = self._recording.begin(Kind.RESET)
        self._stepper.call(now, self._vdev.reset)
        self._stepper.work(now)

    def dma_changed(self, iova: int, size: int, *, mapped: bool, shared: bool) -> None:
        now = self._recording.begin(Kind.MEMORY, iova, size, int(mapped), int(shared))

        def change() -> None:
            self._vdev.dma_changed(iova, size, mapped=mapped, shared=shared)

        self._stepper.call(now, change)
        self._stepper.work(now)

    def irqs_changed(self, kind: Irq, action: IrqAction, start: int, count: int) -> None:
        now = self._recording.begin(Kind.VECTORS, int(kind), int(action), start, count)
        self._stepper.call(now, self._vdev.irqs_changed, kind, action, start, count)
        self._stepper.work(now)


class Client:
    """The client that the VDEV has: its session, but for the memory."""

    def __init__(self, memory: TapedMemory, session: Session) -> None:
        self.memory: Final = memory
        self.peer: Final = session.peer
        self.trigger: Final = session.trigger
        self.eventfd: Final = session.eventfd
        self._session: Final = session

    def counters(self) -> dict[str, Count]:
        return self._session.counters()

    def observe(self, observed: bool) -> None:
        """It is always (``Front.observed``)."""


class Taped:
    """The guest's memory (pages.Backing), of which is noted what is read and written."""

    def __init__(self, memory: GuestMemory, recording: Recording) -> None:
        self.native: Final = memory.native
        self._memory: Final = memory
        self._add: Final = recording.add
        self._seen: dict[int, bytes] = {}

    @property
    def ranges(self) -> list[DmaRange]:
        return self._memory.ranges

    def read(self, iova: int, length: int) -> bytes:
        try:
            data = self._memory.read(iova, length)
        except DmaError as error:
            self._add(Kind.DMA_REFUSED, iova, length, 0, str(error))
            raise
        self._add(Kind.DMA_READ, iova, data)
        return data

    def write(self, iova: int, data: bytes) -> None:
        try:
            self._memory.write(iova, data)
        except DmaError as error:
            self._add(Kind.DMA_REFUSED, iova, len(data), 1, str(error))
            raise
        self._add(Kind.DMA_WRITE, iova, data)

    def page(self, address: int, *, write: bool) -> bytes:
        try:
            if write:
                self._memory.check(address, Page.SIZE, write=True)
            data = self._memory.read(address, Page.SIZE)
        except DmaError:
            self._add(Kind.NO_PAGE, address, int(write))
            raise
        if self._seen.get(address) == data:
            self._add(Kind.SAME_PAGE, address, int(write))
        else:
            if len(self._seen) >= SEEN:
                self._seen.clear()
                self._add(Kind.FORGET)
            self._seen[address] = data
            self._add(Kind.PAGE, address, int(write), data)
        return data

    def put(self, iova: int, data: bytes) -> None:
        try:
            self._memory.write(iova, data)
        except DmaError as error:  # the guest has taken the memory away meanwhile
            log.warning("%s", error)
        self._add(Kind.DMA_WRITE, iova, data)
