"""The parents and VDEVs of this process: define, start and stop them, ask and set.

Defining a VDEV makes nothing of it: more may be defined than the parents have resources for.
Starting composes it, which takes ADIs of its parents and may fail for want of them, and serves its
socket; stopping gives everything back.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from vdcm.catalog import describe_parent, describe_types
from vdcm.definition import (
    Definition,
    ParentDefinition,
    VdevDefinition,
    check_parents,
    choices,
    make_runtime_folder,
    property_values,
    runtime_folder,
    type_properties,
    vdev_from_json,
)
from vdcm.entry import Entry, Life, Listener, Origin, Stage
from vdcm.errors import DeclarationError, StateError, VdcmError, fault
from vdcm.parent import Parent, build, set_properties
from vdcm.properties import PropertyError, properties_of
from vdcm.store import Store
from vdcm.transport import Endpoint, Servable, Transport
from vdcm.vdev import Vdev, VdevState

log = logging.getLogger("vdcm.manager")


class Manager:
    """Made anywhere; ``start`` and what follows it need the running asyncio event loop.

    ``store`` keeps what ``define`` defines; without one nothing can be defined for good. It is
    closed with the manager.
    """

    def __init__(self, store: Store | None = None) -> None:
        self.parents: Final[dict[str, Parent]] = {}
        """Those that are made already: an implicit one is when it is needed."""
        self.stopping: Final = asyncio.Event()
        self._known: dict[str, ParentDefinition] = {}
        self._file: Path | None = None
        self._entries: dict[str, Entry] = {}  # by UUID, in the order in which they were defined
        self._called: dict[str, Entry] = {}  # by UUID and by name
        self._sockets: dict[str, Entry] = {}  # by real path
        self._store = store
        self._transport: Transport | None = None
        self._listeners: list[Listener] = []  # of all VDEVs

    # Define.

    def adopt(self, definition: Definition) -> None:
        """Create the parents of ``definition`` and take in its VDEVs, all or none.

        Raises VdcmError for a name that is taken, and for a parent that cannot be made.
        """
        made: dict[str, Parent] = {}
        taken: list[Entry] = []
        try:
            for one in definition.parents:
                if one.name in self._known:
                    raise VdcmError(f"there is a parent {one.name} already")
                if not one.implicit:
                    made[one.name] = _make_parent(one)
            for vdev in definition.vdevs:
                taken.append(self._register(Entry(vdev, Origin.FILE)))
        except BaseException:
            for entry in taken:
                self._forget(entry)
            for parent in made.values():
                _close(parent)
            raise
        self._file = definition.file
        self._known.update({one.name: one for one in definition.parents})
        self.parents.update(made)

    def recall(self) -> None:
        """Take in what the store has. What cannot be used is logged, and costs nothing else.

        Raises StoreError if the store as a whole cannot be used.
        """

        def take(stored: dict[str, Any]) -> None:
            self._register(Entry(vdev_from_json(stored, self._known), Origin.STORED))

        if self._store is not None:
            for error in self._store.read(take):
                log.error("%s", error)

    def define(self, wanted: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]:
        """Define VDEVs (``vdev_from_json`` says how) and store them, all or none; their summaries.

        Raises VdcmError for a definition that cannot be, or a UUID, name or socket that is taken,
        StoreError if it cannot be stored.
        """
        if self._store is None:
            raise VdcmError("this server has no state folder: it defines nothing for good")
        made: list[Entry] = []
        try:
            for one in wanted:
                entry = Entry(vdev_from_json(one, self._known), Origin.STORED)
                made.append(self._register(entry))
            self._store.write(*(entry.definition.to_json() for entry in made), new=True)
        except BaseException:
            for entry in made:
                self._forget(entry)
            raise
        return [entry.summary() for entry in made]

    def undefine(self, name: str) -> None:
        """Forget a definition, and what the parents keep for it: its data above all. A VDEV that is
        started stays until it is stopped."""
        entry = self._defined(name, "it goes when it is stopped")
        entry.need("undefining", Life.DEFINED, Life.FAILED, Life.STARTED)
        if self._store is not None:
            self._store.remove(entry.definition.uuid)
        if entry.life is Life.STARTED:
            entry.origin = Origin.TRANSIENT
        else:
            self._end(entry)

    def modify(
        self,
        name: str,
        *,
        kind: str | None = None,
        values: Mapping[str, object] | None = None,
        delete: Sequence[str] = (),
        auto: bool | None = None,
    ) -> dict[str, Any]:
        """Change a stored definition: its type, properties, whether it is started with the server.

        ``delete``: properties that get their default again. What is started changes when it is
        started next. The new summary. Raises PropertyError for a property or value that the type
        does not have.
        """
        entry = self._defined(name, "vdcm set changes it")
        old = entry.definition
        changed = {**old.to_json(), "type": kind or old.type}
        for key in delete:
            if key not in old.properties:
                raise PropertyError(
                    f"{entry.name} has no property {key[:80]} set {choices(key, old.properties)}"
                )
        kept = {key: value for key, value in old.properties.items() if key not in delete}
        changed["properties"] = {**kept, **(values or {})}
        changed["auto"] = old.auto if auto is None else auto
        self._redefine(entry, vdev_from_json(changed, self._known))
        return entry.summary()

    def add(self, vdev: Vdev, path: Path) -> None:
        """Take in a VDEV that was made elsewhere; from now on it is closed with the manager."""
        definition = VdevDefinition(str(uuid4()), vdev.name, "", (), path, auto=True)
        self._register(Entry(definition, Origin.SCRIPT, vdev))

    def _register(self, entry: Entry) -> Entry:
        definition = entry.definition
        for called in (definition.uuid, definition.name):
            if called in self._called or called.lower() in self._entries:
                raise VdcmError(
                    f"there is a VDEV {called} already: undefine it, or call this another"
                )
        entry.real_path = os.path.realpath(definition.path)
        if entry.real_path in self._sockets:
            owner = self._sockets[entry.real_path].name
            raise VdcmError(
                f"{definition.name} would have the same socket as {owner}: {entry.real_path}; "
                "give it another"
            )
        self._entries[definition.uuid] = self._sockets[entry.real_path] = entry
        self._called[definition.uuid] = self._called[definition.name] = entry
        entry.listeners += self._listeners
        return entry

    def _forget(self, entry: Entry) -> None:
        definition = entry.definition
        del self._entries[definition.uuid], self._sockets[entry.real_path]
        for called in {definition.uuid, definition.name}:
            del self._called[called]

    def _end(self, entry: Entry) -> None:
        """It is defined no more, and not started: nothing of it is to stay."""
        self._forget(entry)
        for name in entry.definition.parents:
            try:
                self.parent(name).forget(entry.name)
            except Exception:  # what the parent keeps is left as it is, and the others forget
                log.exception("%s: its parent %s failed to forget it", entry.name, name)

    def _defined(self, name: str, hint: str) -> Entry:
        """The entry of a stored definition."""
        entry = self.entry(name)
        if entry.origin is Origin.FILE:
            raise VdcmError(f"{entry.name} is defined in {self._file}: change that file")
        if entry.origin is not Origin.STORED:
            raise VdcmError(f"{entry.name} is {entry.origin.value}, it has no definition: {hint}")
        return entry

    def _redefine(self, entry: Entry, definition: VdevDefinition) -> None:
        if entry.origin is Origin.STORED and self._store is not None:
            self._store.write(definition.to_json())
        entry.definition = definition

    # Start and stop.

    def start(self, name: str, stage: Stage | None = None) -> dict[str, Any]:
        """Compose a VDEV and serve it on its socket, on ``stage`` if there is one; its summary.

        Raises StateError if it is started, VdcmError with the reason if it cannot be composed,
        TransportError if the socket cannot be had. It is FAILED then, and holds nothing.
        """
        entry = self.entry(name)
        entry.need("starting", Life.DEFINED, Life.FAILED)
        entry.stage = stage
        self._start(entry)
        return entry.summary()

    def start_transient(self, wanted: Mapping[str, object]) -> dict[str, Any]:
        """Define and start a VDEV that is gone when it is stopped, or if it cannot be started."""
        entry = self._register(Entry(vdev_from_json(wanted, self._known), Origin.TRANSIENT))
        try:
            self._start(entry)
        except BaseException:
            self._end(entry)
            raise
        return entry.summary()

    async def start_all(self) -> None:
        """Start those that are to be started with the server.

        One of the file or of a script that cannot be is an error; of the others it is logged, and
        shown as their reason.
        """
        for entry in tuple(self._entries.values()):
            if self.stopping.is_set():
                return
            if entry.definition.auto and entry.life is Life.DEFINED:
                try:
                    self._start(entry)
                except VdcmError as error:
                    if entry.origin is not Origin.STORED:
                        raise
                    log.error("%s: cannot be started: %s", entry.name, error)
                await asyncio.sleep(0)  # clients of those before it are served meanwhile

    def _start(self, entry: Entry) -> None:
        entry.need("starting", Life.DEFINED, Life.FAILED)
        entry.life, entry.reason = Life.STARTING, ""
        try:
            if entry.vdev is None:
                entry.vdev = self._compose(entry)
            entry.observe()
            served = entry.stage.front(entry.vdev) if entry.stage is not None else entry.vdev
            self._serve(served, entry.definition.path)
        except BaseException as error:
            self._close_vdev(entry)
            entry.life, entry.reason = Life.FAILED, str(error)
            raise
        entry.life = Life.STARTED

    def _compose(self, entry: Entry) -> Vdev:
        definition = entry.definition
        first, *spare = [self.parent(name) for name in definition.parents]

        def create() -> Vdev:
            return first.create(definition.type, definition.name, definition.properties, spare)

        with _blame(f"VDEV {definition.name} of type {definition.type}"):
            return entry.stage.make(create) if entry.stage is not None else create()

    def _serve(self, vdev: Servable, path: Path) -> None:
        if path.parent == runtime_folder():
            make_runtime_folder()
        if self._transport is None:
            self._transport = Transport()
        self._transport.serve(vdev, path)

    def stop(self, name: str) -> None:
        """Disconnect a VDEV's client, remove its socket, give its resources back.

        StateError if it is not started.
        """
        entry = self.entry(name)
        entry.need("stopping", Life.STARTED)
        self._stop(entry)
        if entry.origin is Origin.TRANSIENT:
            self._end(entry)

    def _stop(self, entry: Entry) -> None:
        entry.life = Life.STOPPING
        if self._transport is not None:
            self._transport.withdraw(entry.name)
        self._close_vdev(entry)
        entry.life = Life.DEFINED

    def _close_vdev(self, entry: Entry) -> None:
        """Give a VDEV back, but not one that we could not make again."""
        vdev, stage = entry.vdev, entry.stage
        if entry.origin is Origin.SCRIPT:
            return
        entry.vdev = entry.stage = None
        if vdev is not None:
            entry.used = entry.used or vdev.counters()["clients"] != 0
            _close(vdev)
            vdev.observe(None)
        if stage is not None:
            stage.close()

    def close(self) -> None:
        """Stop and close all VDEVs. Twice is harmless."""
        for entry in self._entries.values():
            if entry.life is Life.STARTED:
                self._stop(entry)
            if entry.origin is Origin.SCRIPT:
                entry.origin = Origin.TRANSIENT
                self._close_vdev(entry)
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        for parent in self.parents.values():
            _close(parent)
        for names in (self._entries, self._called, self._sockets, self.parents, self._known):
            names.clear()
        if self._store is not None:
            self._store.close()

    def endpoint(self, name: str) -> Endpoint:
        """Where a VDEV is served; StateError if it is not started."""
        entry = self.entry(name)
        entry.running("its endpoint")
        assert self._transport is not None  # what STARTED means
        return self._transport.endpoints[entry.name]

    # Ask and set.

    def entry(self, name: str) -> Entry:
        """The VDEV of that name or UUID; VdcmError, naming those there are, if there is none."""
        found = self._called.get(name) or self._entries.get(name.lower())
        if found is None:
            known = choices(name, (entry.name for entry in self._entries.values()))
            raise VdcmError(f"there is no VDEV {name[:80]} {known}")
        return found

    def summaries(self, *, defined: bool = False) -> list[dict[str, Any]]:
        """A summary of each VDEV, or of those that are ``defined`` for good, in that order."""
        lasting = (Origin.FILE, Origin.STORED)
        return [
            entry.summary()
            for entry in self._entries.values()
            if not defined or entry.origin in lasting
        ]

    def started(self) -> list[Entry]:
        """The VDEVs that are started, in the order in which they were defined."""
        return [entry for entry in self._entries.values() if entry.life is Life.STARTED]

    def states(self) -> Mapping[str, int]:
        """How many VDEVs there are in each state that a summary can have."""
        return {**_NONE, **Counter(entry.state for entry in self._entries.values())}

    def show(self, name: str) -> dict[str, Any]:
        """All there is to know of a VDEV, JSON-able: its summary and, while it is started,
        ``Vdev.describe()``."""
        entry = self.entry(name)
        summary = entry.summary()
        described = entry.vdev.describe() if entry.vdev is not None else {}
        values = described.get("properties") or {
            **{key: one.default for key, one in self._properties(entry).items()},
            **entry.definition.properties,
        }
        return {**summary, **described, **summary, "properties": values}

    def set(self, name: str, values: Mapping[str, object]) -> dict[str, Any]:
        """Set properties of a VDEV, all or none; text is read as on a command line. The values.

        Of a VDEV that is started its own change, else those of its definition. Raises PropertyError
        for an unknown property or a wrong value, StateError for one that needs it stopped.
        """
        entry = self.entry(name)
        known = self._properties(entry)
        parsed = property_values(known, values, entry.name)
        if entry.life is Life.STARTED:
            for key in parsed:
                if not known[key].live:
                    raise StateError(f"{entry.name} is started; setting {key} needs it stopped")
        if entry.vdev is not None:
            with _blame(entry.name):
                entry.act("set", parsed, partial(set_properties, entry.vdev, parsed))
        else:
            merged = {**entry.definition.properties, **parsed}
            self._redefine(entry, replace(entry.definition, properties=merged))
        return parsed

    def _properties(self, entry: Entry) -> Mapping[str, Any]:
        if entry.vdev is not None:
            return properties_of(type(entry.vdev))
        definition = entry.definition
        return type_properties(self._known[definition.parents[0]], definition.type)

    def reset(self, name: str) -> None:
        """Reset the function, as the guest could; StateError if it is not started."""
        entry = self.entry(name)
        vdev = entry.running("resetting")
        with _blame(name):
            entry.act("reset", {}, vdev.reset)

    def listen(self, listener: Listener, names: Sequence[str] | None = None) -> Callable[[], None]:
        """Give ``listener`` the events of some VDEVs, or of all, those to come too; returns what
        ends it. Many may listen to one VDEV, also before it is started.
        """
        entries = [*self._entries.values()] if names is None else [*map(self.entry, names)]
        if names is None:
            self._listeners.append(listener)
        for entry in dict.fromkeys(entry.definition.uuid for entry in entries):
            self._entries[entry].listeners.append(listener)
            self._entries[entry].observe()

        def end() -> None:
            for listeners in (self._listeners, *(one.listeners for one in self._entries.values())):
                if listener in listeners:
                    listeners.remove(listener)
            for entry in self._entries.values():
                entry.observe()

        return end

    # Parents.

    def renew_parent(self, name: str) -> None:
        """Make a parent anew when it is needed next; no VDEV of it is started. What it keeps for
        those that are not is kept: then it stays."""
        parent = self.parents.get(name)
        if parent is not None and not any(parent.keeps(one.name) for one in self._called.values()):
            _close(self.parents.pop(name))

    def parent_definition(self, name: str) -> ParentDefinition:
        """What the parent of that name is made of."""
        return self._known[name]

    def parent(self, name: str) -> Parent:
        """A parent, made if it has not been needed yet."""
        if name not in self.parents:
            self.parents[name] = _make_parent(self._known[name])
        return self.parents[name]

    def describe_parents(self) -> list[dict[str, Any]]:
        """The parents by name, each as ``catalog.describe_parent``."""
        known = sorted(self._known.values(), key=lambda one: one.name)
        return [describe_parent(one, self.parent(one.name)) for one in known]

    def describe_types(self, parent: str | None = None) -> list[dict[str, Any]]:
        """``catalog.describe_types`` of all parents, or of one, with ``available``: how many more
        VDEVs of the type could be started now; None: no limit."""
        names = check_parents([parent], self._known) if parent is not None else self._known
        found = describe_types(self._known[name] for name in names)
        for one in found:
            one["available"] = self.parent(one["parent"]).available(one["type"])
        return found


_NONE: Final = dict.fromkeys(
    [
        *(life.value for life in Life if life is not Life.STARTED),
        *(state.value for state in VdevState if state is not VdevState.CLOSED),
    ],
    0,
)


def _close(what: Vdev | Parent) -> None:
    try:
        what.close()
    except Exception:  # a model's own mistake must not keep the others open
        log.exception("%s: the device model failed to close", what.name)


def _make_parent(definition: ParentDefinition) -> Parent:
    with _blame(f"parent {definition.name} of model {definition.model}"):
        return build(definition.factory, definition.name, definition.properties)


@contextmanager
def _blame(whom: str) -> Iterator[None]:
    """Turn what a device model raises by mistake into a VdcmError that names it."""
    try:
        yield
    except DeclarationError as error:
        raise DeclarationError(f"{whom}: {fault(error)}") from error
    except VdcmError:
        raise
    except Exception as error:
        raise VdcmError(f"{whom}: the device model failed: {fault(error)}") from error
