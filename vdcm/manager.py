"""The parents and VDEVs of this process: define, start and stop them, ask and set."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vdcm.definition import Definition, choices, runtime_folder
from vdcm.errors import StateError, TransportError, VdcmError
from vdcm.parent import Parent, build, models, set_properties
from vdcm.properties import PropertyError, properties_of
from vdcm.transport import Transport
from vdcm.vdev import Vdev

log = logging.getLogger("vdcm.manager")

Sink = Callable[[str], None]
"""Gets the lines of a trace, on the event loop. It must not raise and must not block."""


@dataclass
class Entry:
    """A VDEV of this process. ``type`` and ``parent`` are empty for one that a script has made."""

    vdev: Vdev
    socket: Path
    type: str = ""
    parent: str = ""
    served: bool = False
    sinks: list[Sink] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """JSON-able. ``state`` is ``defined`` or, while it is served, the VDEV's own."""
        return {
            "name": self.vdev.name,
            "type": self.type,
            "parent": self.parent,
            "socket": str(self.socket),
            "state": self.vdev.state.value if self.served else "defined",
        }


class Manager:
    """Made anywhere; ``start`` and what follows it need the running asyncio event loop."""

    def __init__(self) -> None:
        self.parents: Final[dict[str, Parent]] = {}
        self.stopping: Final = asyncio.Event()
        self._entries: dict[str, Entry] = {}
        self._transport: Transport | None = None

    # Define.

    def define(self, definition: Definition) -> None:
        """Create the parents and VDEVs of ``definition``, all or none.

        Raises VdcmError for a name that is taken, and for a model that fails to make one.
        """
        parents: dict[str, Parent] = {}
        entries: dict[str, Entry] = {}
        try:
            for one in definition.parents:
                if one.name in self.parents:
                    raise VdcmError(f"there is a parent {one.name} already")
                with _blame(f"parent {one.name} of model {one.model}"):
                    parents[one.name] = build(one.factory, one.name, one.properties)
            for vdev in definition.vdevs:
                self._check_free(vdev.name)
                with _blame(f"VDEV {vdev.name} of type {vdev.type}"):
                    made = parents[vdev.parent].create(vdev.type, vdev.name, vdev.properties)
                entries[vdev.name] = Entry(made, vdev.socket, vdev.type, vdev.parent)
        except BaseException:
            for entry in entries.values():
                entry.vdev.close()
            raise
        self.parents.update(parents)
        self._entries.update(entries)

    def add(self, vdev: Vdev, path: Path) -> None:
        """Take in a VDEV that was made elsewhere; from now on it is closed with the manager."""
        self._check_free(vdev.name)
        self._entries[vdev.name] = Entry(vdev, path)

    def _check_free(self, name: str) -> None:
        if name in self._entries:
            raise VdcmError(f"there is a VDEV {name} already")

    # Start and stop.

    def start(self, name: str) -> None:
        """Serve a VDEV on its socket. StateError if it is; TransportError if it cannot be."""
        entry = self.entry(name)
        if entry.served:
            raise StateError(f"{name} is being served already; starting needs it stopped")
        if entry.socket.parent == runtime_folder():
            make_runtime_folder()
        if self._transport is None:
            self._transport = Transport()
        self._transport.serve(entry.vdev, entry.socket)
        entry.served = True

    def start_all(self) -> None:
        """Serve all that are not served yet."""
        for name, entry in self._entries.items():
            if not entry.served:
                self.start(name)

    def stop(self, name: str) -> None:
        """Disconnect a VDEV's client and remove its socket. StateError if it is not served."""
        entry = self.entry(name)
        if not entry.served or self._transport is None:
            raise StateError(f"{name} is not being served; stopping needs it started")
        self._transport.withdraw(name)
        entry.served = False

    def close(self) -> None:
        """Stop serving and close all VDEVs. Twice is harmless."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        for entry in self._entries.values():
            entry.served = False
            entry.vdev.observer = None
            try:
                entry.vdev.close()
            except Exception:  # a model's own mistake must not keep the others open
                log.exception("%s: the device model failed to close", entry.vdev.name)
        self._entries.clear()
        self.parents.clear()

    # Ask and set.

    def entry(self, name: str) -> Entry:
        """VdcmError, naming those there are, if there is no VDEV ``name``."""
        try:
            return self._entries[name]
        except KeyError:
            known = choices(name, self._entries)
            raise VdcmError(f"there is no VDEV {name[:80]} {known}") from None

    def summaries(self) -> list[dict[str, Any]]:
        """A summary of each VDEV, in the order in which they were defined."""
        return [entry.summary() for entry in self._entries.values()]

    def show(self, name: str) -> dict[str, Any]:
        """All there is to know of a VDEV, JSON-able: its summary and ``Vdev.describe()``."""
        entry = self.entry(name)
        return {**entry.summary(), **entry.vdev.describe(), **entry.summary()}

    def set(self, name: str, values: Mapping[str, object]) -> None:
        """Set properties of a VDEV, all or none; text is read as on a command line.

        Raises PropertyError for an unknown property or a wrong value, StateError for one that
        cannot be set while the VDEV is served.
        """
        entry = self.entry(name)
        known = properties_of(type(entry.vdev))
        parsed: dict[str, object] = {}
        for key, value in values.items():
            if key not in known:
                raise PropertyError(f"{name} has no property {key[:80]} {choices(key, known)}")
            if entry.served and not known[key].live:
                raise StateError(
                    f"{name} is being served; setting {key} needs it stopped: "
                    "set it in the definition file"
                )
            parsed[key] = known[key].parse(value) if isinstance(value, str) else value
        with _blame(name):
            set_properties(entry.vdev, parsed)

    def listen(self, name: str, sink: Sink) -> Callable[[], None]:
        """Give ``sink`` a line for each access, interrupt, reset and DMA map; returns what ends it.

        Many may listen to one VDEV. A VDEV that nobody listens to pays nothing.
        """
        entry = self.entry(name)

        def tell(line: str) -> None:
            for each in tuple(entry.sinks):
                each(line)

        def end() -> None:
            if sink in entry.sinks:
                entry.sinks.remove(sink)
            if not entry.sinks:
                entry.vdev.observer = None

        if not entry.sinks:
            entry.vdev.observer = tell
        entry.sinks.append(sink)
        return end


@contextmanager
def _blame(whom: str) -> Iterator[None]:
    """Turn what a device model raises by mistake into a VdcmError that names it."""
    try:
        yield
    except VdcmError:
        raise
    except Exception as error:
        raise VdcmError(
            f"{whom}: the device model failed: {type(error).__name__}: {error}"
        ) from error


def describe_types(installed: Mapping[str, type[Parent]] | None = None) -> list[dict[str, Any]]:
    """All types of the ``installed`` models (default: ``models()``), JSON-able, sorted by name."""
    found = [
        {
            "type": name,
            "model": model,
            "doc": (vdev.__doc__ or "").strip().partition("\n")[0],
            "properties": [
                {
                    "name": key,
                    "kind": type(one.default).__name__,
                    "default": one.default,
                    "minimum": one.minimum if type(one.default) is int else None,
                    "maximum": one.maximum,
                    "live": one.live,
                    "doc": one.doc,
                }
                for key, one in properties_of(vdev).items()
            ],
        }
        for model, parent in (models() if installed is None else installed).items()
        for name in parent.types
        for vdev in [parent.vdev_model(name)]
    ]
    return sorted(found, key=lambda each: (each["type"], each["model"]))


def make_runtime_folder() -> Path:
    """Create ``runtime_folder()`` with mode 0700.

    Raises TransportError if it cannot be, or is there and not ours alone: whoever can write to the
    folder could put a socket of theirs in the place of ours.
    """
    folder = runtime_folder()
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError as error:
        raise TransportError(
            f"{folder}: cannot be created: {error.strerror}; set XDG_RUNTIME_DIR to a folder of "
            "yours, or give each VDEV a socket: in the definition file"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise TransportError(
            f"{folder} is not a folder that only we can write to: remove it, or set "
            "XDG_RUNTIME_DIR to a folder of yours"
        )
    return folder


def notify(state: str) -> None:
    """Tell the service manager, if one has started us and asks for it (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), address)
        except OSError as error:
            log.warning("cannot notify the service manager: %s", error.strerror)


async def serve_until_stopped(manager: Manager, ready: Callable[[], None] = lambda: None) -> int:
    """Serve all VDEVs of ``manager``, call ``ready``, and return the exit code 0 when told to stop.

    SIGTERM, SIGINT and ``manager.stopping`` stop it; all VDEVs are closed then, as they are when
    one cannot be served. A second signal has its default effect.
    """
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, manager.stopping.set)
    try:
        manager.start_all()
        ready()
        notify("READY=1")
        await manager.stopping.wait()
        notify("STOPPING=1")
        log.info("stopping")
        return 0
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        manager.close()


def serve(*vdevs: Vdev, path: Path | str | None = None, folder: Path | str | None = None) -> int:
    """Serve VDEVs from a script until SIGINT or SIGTERM; 0 then.

        serve(Blink("blink0"), path="/tmp/blink0.sock")

    ``path`` is the socket of a single VDEV. Otherwise each gets ``folder/NAME.sock``, by default in
    the runtime folder. Raises TransportError for a socket that cannot be had, VdcmError for a
    ``path`` with several VDEVs. Log lines go to stderr unless logging is configured already.
    """
    if not vdevs or (path is not None and len(vdevs) > 1):
        raise VdcmError("serve() takes one VDEV and its path, or some VDEVs and their folder")
    if not logging.getLogger().handlers:
        log_to_stderr()

    async def run() -> int:
        manager = Manager()
        for vdev in vdevs:
            place = Path(folder) if folder is not None else runtime_folder()
            manager.add(vdev, Path(path) if path is not None else place / f"{vdev.name}.sock")
        return await serve_until_stopped(manager)

    return asyncio.run(run())


class _Format(logging.Formatter):
    """``HH:MM:SS level name: text``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(level)s %(name)s: %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        record.level = record.levelname.lower()
        return super().format(record)


def log_to_stderr(level: int | str = logging.INFO) -> None:
    """Send all log lines from ``level`` on to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Format())
    logging.basicConfig(level=level, handlers=[handler], force=True)
