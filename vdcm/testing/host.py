"""VDEVs served from a thread of the test's own process, where the test can reach the model."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, overload

from vdcm.client import Client
from vdcm.errors import ProtocolError, VdcmError
from vdcm.parent import Parent, build, models, set_properties
from vdcm.testing.faults import Faults
from vdcm.testing.injector import Injector
from vdcm.testing.rules import Place
from vdcm.transport import Transport
from vdcm.vdev import Vdev, VdevState

DEADLINE: Final = 60.0
"""Seconds for whatever the event loop is to do: a limit, not an expectation."""
Result = TypeVar("Result")
Model = TypeVar("Model", bound=Vdev)
Kind = TypeVar("Kind", bound=Parent)


def retry_while_busy(connect: Callable[[], Client]) -> Client:
    """What ``connect`` returns, once the server has noticed that the client before has gone."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            return connect()
        except ProtocolError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def wait_until_ready(vdev: Vdev) -> None:
    """Until ``vdev`` has noticed that its client has gone; VdcmError if it does not."""
    deadline = time.monotonic() + DEADLINE
    while vdev.state is not VdevState.READY or vdev.session is not None:
        if time.monotonic() > deadline:
            raise VdcmError(f"{vdev.name} is {vdev.state.value}, and stays so")
        time.sleep(0.01)


class Host:
    """An event loop in a thread, and what it serves; the sockets are in ``folder``.

    All that belongs to a model is done on that loop: ``run`` calls a function there. What went
    wrong there and was nobody's to raise is in ``complaints``. A context manager.
    """

    def __init__(self, folder: Path) -> None:
        self.folder: Final = folder
        self.loop: Final = asyncio.new_event_loop()
        self.complaints: list[str] = []
        self.loop.set_exception_handler(lambda _loop, context: self.complaints.append(str(context)))
        self._thread = threading.Thread(target=self._main, name="vdcm-host")
        self._thread.start()
        self._parents: dict[str, Parent] = {}
        self.served: Final[dict[str, Served[Any]]] = {}
        self.transport: Final = self.run(Transport)

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        """What ``function`` returns or raises, called on the event loop."""

        async def call() -> Result:
            return function(*arguments, **named)

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(DEADLINE)

    def path(self, name: str) -> Path:
        """The socket of a VDEV."""
        return self.folder / f"{name}.sock"

    @overload
    def parent(self, model: type[Kind], name: str = "", **properties: Any) -> Kind: ...
    @overload
    def parent(self, model: str, name: str = "", **properties: Any) -> Parent: ...
    def parent(self, model: str | type[Parent], name: str = "", **properties: Any) -> Parent:
        """A parent of an installed model or of a class, with its properties; closed at the end.

        Raises VdcmError for a model that there is not, and what the model raises.
        """
        if isinstance(model, str):
            known = models()
            if model not in known:
                raise VdcmError(f"there is no device model {model} (known: {', '.join(known)})")
            name, model = name or model, known[model]
        name = name or model.__name__.lower()
        if name in self._parents:
            raise VdcmError(f"there is a parent {name} already: give this another name")
        made: Parent = self.run(build, model, name, properties)
        self._parents[name] = made
        return made

    def serve(
        self,
        what: str | Callable[[str], Model],
        name: str = "vdev",
        parent: Parent | None = None,
        **properties: Any,
    ) -> Served[Model]:
        """Make a VDEV called ``name`` and serve it on ``path(name)``.

        ``what`` is a type, as ``vdcm types`` lists them, a ``Vdev`` class, or what makes a VDEV of
        a name. A type is made by ``parent``, by default one of its model, made when it is needed.
        Raises VdcmError for a type that there is not, and what the model raises.
        """
        if isinstance(what, str):
            made: Any = self._of_type(what, name, parent, properties)
        elif isinstance(what, type):
            made = self.run(build, what, name, properties)
        else:
            made = self.run(what, name)
            self.run(set_properties, made, properties)
        return self.add(made)

    def add(self, vdev: Model) -> Served[Model]:
        """Serve a VDEV that was made elsewhere, on ``path(vdev.name)``; it is closed at the end."""
        served = Served(self, vdev)
        self.served[vdev.name] = served
        self.run(self.transport.serve, vdev, served.path)
        return served

    def _of_type(
        self, kind: str, name: str, parent: Parent | None, properties: dict[str, Any]
    ) -> Vdev:
        if parent is None:
            found = {model: one for model, one in models().items() if kind in one.types}
            if len(found) != 1:
                types = sorted(each for one in models().values() for each in one.types)
                raise VdcmError(
                    f"{'several models have' if found else 'there is no'} type {kind}: give "
                    f"serve() a parent, or one of: {', '.join(types)}"
                )
            (model,) = found
            parent = self._parents.get(model) or self.parent(model)
        return self.run(parent.create, kind, name, properties)

    def connect(self, name: str = "", **arguments: Any) -> Client:
        """A client of a VDEV, by default of the only one; ``arguments`` are the Client's."""
        if not name:
            (name,) = self.served
        return retry_while_busy(lambda: Client(self.path(name), **arguments))

    def close(self) -> None:
        """Disconnect the clients and close what was made here. Twice is harmless."""
        if self.loop.is_closed():
            return
        try:
            for served in self.served.values():
                served.hang_up()
            self.run(self.transport.close)
            for served in self.served.values():
                self.run(served.vdev.close)
            for parent in self._parents.values():
                self.run(parent.close)
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(DEADLINE)
            self.loop.close()


class Served(Generic[Model]):
    """A VDEV that a Host serves: the model itself, and the ways to it."""

    def __init__(self, host: Host, vdev: Model) -> None:
        self.host: Final = host
        self.vdev: Final = vdev
        self.faults: Final = Faults(self._inject)
        self._injector: Injector | None = None
        self._client: Client | None = None

    @property
    def name(self) -> str:
        return self.vdev.name

    @property
    def path(self) -> Path:
        """Its socket: ``vfio_user(served.path)`` attaches it to a guest."""
        return self.host.path(self.vdev.name)

    @property
    def client(self) -> Client:
        """A native client; it connects when it is first asked for, and again once it is lost."""
        if self._client is None or not self._client.connected:
            self._client = self.host.connect(self.vdev.name)
        return self._client

    def place(self, name: str) -> Place:
        """Where a register or a field of it is; ``Place.of_register`` has the names."""
        return Place.of_register(self.vdev, name)

    def read(self, name: str) -> int:
        """What ``client`` reads from a register, or a field of it, by name."""
        place = self.place(name)
        value = self.client.read(place.region, place.offset, place.width) & place.mask
        return value >> place.lowest

    def write(self, name: str, value: int) -> None:
        """Have ``client`` write a register by name; the bits of a field, all others 0."""
        place = self.place(name)
        value = value << place.lowest & place.mask
        self.client.write(place.region, place.offset, place.width, value)

    def _inject(self, method: str, **arguments: Any) -> Any:
        if self._injector is None:
            endpoint = self.host.transport.endpoints[self.name]
            self._injector = Injector(self.vdev, endpoint, expendable=False)
        return self.host.run(getattr(self._injector, method), **arguments)

    def hang_up(self) -> None:
        """Close ``client``, if there is one."""
        if self._client is not None:
            self._client.close()

    def run(self, function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        """What ``function`` returns or raises, called where the model's own code runs."""
        return self.host.run(function, *arguments, **named)

    def set(self, **properties: Any) -> None:
        """Set properties, as ``vdcm set`` does: the host side's knobs."""
        self.run(set_properties, self.vdev, properties)

    def wait_until_ready(self) -> None:
        """Until the device has noticed that its client has gone."""
        wait_until_ready(self.vdev)
