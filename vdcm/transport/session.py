"""One connected client: its libvfio-user context, its turns, and the callbacks from C."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vdcm import protocol
from vdcm._native import ffi, lib
from vdcm.counters import CLIENT, Count, nothing, taken_from
from vdcm.errors import DeferredError, TransportError, VdcmError
from vdcm.protocol import Area, Command, Irq
from vdcm.transport.memory import NOT_SHARED, GuestMemory, maps_privately
from vdcm.transport.servable import IrqAction, Servable, Written

if TYPE_CHECKING:
    from vdcm.transport.endpoint import Endpoint

log = logging.getLogger("vdcm.transport")

TURN_NS: Final = 1_000_000
"""Nanoseconds for which one client is served before it is the next one's turn."""
SPIN_NS: Final = 100_000
"""Nanoseconds that the loop stays awake for a client that sends message after message."""
BURST_NS: Final = 200_000
"""Nanoseconds within which the next message makes it a burst."""
SILENCE_NS: Final = 1_000_000_000
"""Nanoseconds after which a client that wrote something and does nothing more seems to wait."""
FILE_LIMIT: Final = 8
"""Files of guest memory of one client that are looked up in its memory map."""
LOG_LIMIT: Final = 50
"""Log lines that one client may cause in ``LOG_PERIOD`` seconds."""
LOG_PERIOD: Final = 60.0
SMALLEST_RAM: Final = 1 << 20
"""Bytes of the smallest range without a descriptor that is taken to be the guest's memory."""


def _failed(_kind: type, error: BaseException, traceback: TracebackType) -> int:
    """The one guard between C and Python: an exception becomes a log line and an errno."""
    session: Session = ffi.from_handle(traceback.tb_frame.f_locals["owner"])
    if isinstance(error, DeferredError):
        return errno.EAGAIN  # an answer like any other, so there is nothing to say about it
    if isinstance(error, VdcmError):
        session.complain(logging.ERROR, "%s", error)
    elif isinstance(error, Exception):
        session.complain(logging.ERROR, "the device model failed", exc_info=error)
    else:  # KeyboardInterrupt, SystemExit: not through C, but once C has returned
        session.interrupted = error
    return errno.EIO


_Callback = TypeVar("_Callback", bound=Callable[..., int])


def _callback(function: _Callback) -> _Callback:
    """Make ``function`` the C function of its name."""
    ffi.def_extern(error=errno.EIO, onerror=_failed)(function)
    return function


@_callback
def vdcm_on_read(owner: Any, region: int, offset: int, width: int, value: Any) -> int:
    value[0] = ffi.from_handle(owner).device.read(region, offset, width)
    return 0


@_callback
def vdcm_on_write(owner: Any, region: int, offset: int, width: int, value: int) -> int:
    ffi.from_handle(owner).device.write(region, offset, width, value)
    return 0


@_callback
def vdcm_on_reset(owner: Any) -> int:
    ffi.from_handle(owner).device.reset()
    return 0


@_callback
def vdcm_on_memory(owner: Any, device: int, inode: int) -> int:
    session: Session = ffi.from_handle(owner)
    return errno.EPERM if session.maps_privately((device, inode)) else 0


@_callback
def vdcm_on_dma(owner: Any, mapped: bool, iova: int, size: int, shared: bool) -> int:
    session: Session = ffi.from_handle(owner)
    # Firmware images and a VGA's memory are never shared, and nobody wants to reach them: what
    # counts is the guest's RAM, and of that QEMU shares all or nothing.
    if mapped and not shared and size >= SMALLEST_RAM:
        session.warn_not_shared()
    session.device.dma_changed(iova, size, mapped=mapped, shared=shared)
    return 0


@_callback
def vdcm_on_irqs(owner: Any, kind: int, action: int, start: int, count: int) -> int:
    session: Session = ffi.from_handle(owner)
    session.device.irqs_changed(Irq(kind), IrqAction(action), start, count)
    return 0


@_callback
def vdcm_on_repeat(
    owner: Any, region: int, offset: int, width: int, value: int, times: int, ns: int
) -> int:
    session: Session = ffi.from_handle(owner)
    session.device.repeated(region, (offset, width, value), times, ns / 1e9, session.written())
    return 0


@_callback
def vdcm_on_log(owner: Any, level: int, message: Any) -> int:
    session: Session = ffi.from_handle(owner)
    # syslog levels: 3 is an error. What a client got wrong is its problem: a warning of ours.
    text = ffi.string(message).decode(errors="replace").strip()
    session.complain(logging.WARNING if level <= 4 else logging.DEBUG, "%s", text)
    return 0


@dataclass
class Turns:
    """Whose turn the last one was, and when it ended (``time.perf_counter_ns``)."""

    last: Session | None = None
    end: int = 0


class Session:
    """One connected client of one VDEV."""

    def __init__(
        self, endpoint: Endpoint, connection: socket.socket, client: protocol.Version
    ) -> None:
        self.device = endpoint.device
        self.interrupted: BaseException | None = None
        self._warned_not_shared = False
        self._endpoint = endpoint
        self._connection = connection
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.peer: Final = int.from_bytes(credentials[:4], "little")  # its process id
        self._handle = ffi.new_handle(self)
        self._loop = endpoint.loop
        self._idle_since = 0
        self._stalled: float | None = None
        self._retry: asyncio.Handle | None = None
        self._running = False
        self._closed = False
        self._private: dict[tuple[int, int], bool] = {}
        self._log_lines = 0
        self._log_until = 0.0
        # A folder nobody else can look into, for no longer than libvfio-user needs it: one that
        # lived as long as this process would outlive a SIGKILL.
        with tempfile.TemporaryDirectory(prefix="vdcm-") as folder:
            self._native = lib.vdcm_session_new(self._handle, folder.encode(), 3)
            if self._native == ffi.NULL:
                raise TransportError(f"{self.device.name}: libvfio-user: {os.strerror(ffi.errno)}")
            try:
                self._read_only = self._describe(client)
                self._attach()
            except BaseException:
                lib.vdcm_session_free(self._native)
                raise
        self.memory: Final = GuestMemory(lib.vdcm_session_aspace(self._native))

    def _attach(self) -> None:
        # What the client said has been read here; libvfio-user gets to read no text of it.
        hello = protocol.message(Command.VERSION, protocol.pack_version())
        result = lib.vdcm_session_attach(self._native, self._connection.fileno(), hello, len(hello))
        if result:
            raise TransportError(
                f"{self.device.name}: libvfio-user does not accept the client: "
                f"{os.strerror(-result)}"
            )

    def _describe(self, client: protocol.Version) -> dict[int, Sequence[Area]]:
        """Tell the native side of regions and vectors; the read-only areas that are offered."""
        read_only: dict[int, Sequence[Area]] = {}
        for region in self.device.regions():
            areas = list(region.areas)
            if client.read_only_areas and region.read_only:
                areas = sorted([*areas, *region.read_only])
                read_only[region.index] = region.read_only
            if client.max_msg_fds < 1:
                areas = []  # nothing can be passed, so all of it goes by message
            self._check(
                lib.vdcm_session_region(
                    self._native,
                    region.index,
                    region.size,
                    region.fd if areas else -1,
                    ffi.new("vdcm_area[]", [tuple(area) for area in areas] or 1),
                    len(areas),
                ),
                f"region {region.index}",
            )
            if region.stores is not None:
                stores = region.stores
                where = (stores.offset, stores.size)
                self._check(
                    lib.vdcm_session_stores(
                        self._native, region.index, where, stores.function, stores.argument
                    ),
                    f"the stores of region {region.index}",
                )
        self.observe(self.device.observed)
        for kind, count in self.device.vectors().items():
            self._check(lib.vdcm_session_vectors(self._native, kind, count), kind.name)
        return read_only

    def _check(self, result: int, what: str) -> None:
        if result < 0:
            raise TransportError(f"{self.device.name}: {what}: {os.strerror(-result)}")

    @property
    def capabilities(self) -> dict[str, Any]:
        """What the server's VERSION reply offers this client."""
        offered: dict[str, Any] = {
            "max_msg_fds": lib.VDCM_MAX_FDS,
            "max_data_xfer_size": lib.VDCM_MAX_TRANSFER,
            "pgsizes": os.sysconf("SC_PAGESIZE"),
            "write_multiple": True,
        }
        if self._read_only:
            offered["vdcm"] = protocol.pack_read_only(self._read_only)
        return offered

    def counters(self) -> dict[str, Count]:
        """``counters.CLIENT``, of this connection."""
        if self._native == ffi.NULL:
            return nothing(CLIENT)
        return taken_from(lib.vdcm_session_count(self._native), CLIENT)

    def observe(self, observed: bool) -> None:
        """Observed, the device is given every store, those too that its C would take."""
        if not self._closed:
            # What stands in front of the device may want them, too.
            lib.vdcm_session_observe(self._native, observed or self.device.observed)

    def divert(self, device: Servable) -> None:
        """As ``Endpoint.divert``."""
        self.device = device
        self.observe(device.observed)

    def trigger(self, kind: Irq, vector: int) -> bool:
        """Signal the eventfd of a vector; False if the client has bound none to it."""
        return not self._closed and lib.vdcm_session_trigger(self._native, kind, vector) == 0

    def eventfd(self, kind: Irq, vector: int) -> int:
        """The eventfd that the client has bound to a vector, -1 if none: to be duplicated."""
        return -1 if self._closed else int(lib.vdcm_session_eventfd(self._native, kind, vector))

    def written(self) -> Written | None:
        """The client's last write of a BAR."""
        found = ffi.new("vdcm_written *")
        if not lib.vdcm_session_written(self._native, found):
            return None
        return Written(
            *(found.region, found.offset, found.width, found.value, found.at / 1e9, found.ns / 1e9),
            interrupts=found.interrupts,
        )

    def watch(self) -> None:
        """Tell the device of a client that waits since it wrote something."""
        if not self._closed and lib.vdcm_session_silent(self._native, SILENCE_NS):
            written = self.written()
            if written is not None:
                self.device.silent(written)

    def start(self) -> None:
        """Begin to handle messages."""
        self._loop.add_reader(self._connection.fileno(), self._run)

    def look(self) -> None:
        """Handle what has arrived, a disconnection too, without waiting for the event loop."""
        if not self._running and not self._closed:
            self._run()

    def _run(self) -> None:
        try:
            self._take_turn()
        except Exception:
            # A mistake of ours: the event loop would call again for the same message, for ever.
            self._running = False
            log.exception("%s: serving the client failed", self.device.name)
            self.close("the server failed")

    def _take_turn(self) -> None:
        now = time.perf_counter_ns()
        # Wait for a client only in the middle of a burst and while no other is being served.
        turns = self._endpoint.turns
        alone = turns.last is self or now - turns.end > TURN_NS
        burst = alone and now - self._idle_since < BURST_NS
        self._running = True
        handled = lib.vdcm_session_run(self._native, TURN_NS, SPIN_NS if burst else 0)
        self._running = False
        turns.last, turns.end = None if self._closed else self, time.perf_counter_ns()
        self._idle_since = turns.end
        if self._closed:  # by a callback, which must not free what it was called from
            self._free()
        if self.interrupted is not None:
            error, self.interrupted = self.interrupted, None
            self.close("the server is stopping")
            raise error
        if self._closed:
            return
        if handled < 0:
            self._lost(-handled)
            return
        if lib.vdcm_session_partial(self._native):
            self._wait_for_rest(progress=handled > 0)
        else:
            self._stalled = None
            if lib.vdcm_session_waiting(self._native):  # the others have their turn before it
                self._look_later(self._loop.call_soon(self._look_again))

    def _wait_for_rest(self, *, progress: bool) -> None:
        """Readable, but not to be read yet: look again later instead of at once for ever."""
        now = self._loop.time()
        if self._stalled is None or progress:
            self._stalled = now
        waited = now - self._stalled
        if waited > self._endpoint.patience:
            self.close(f"the rest of a message did not come within {waited:.1f} s")
            return
        self._loop.remove_reader(self._connection.fileno())
        self._look_later(self._loop.call_later(min(max(waited, 0.001), 0.05), self._look_again))

    def _look_later(self, handle: asyncio.Handle) -> None:
        if self._retry is not None:  # look() may come between
            self._retry.cancel()
        self._retry = handle

    def _look_again(self) -> None:
        self._retry = None
        self.start()
        self.look()

    def _lost(self, error: int) -> None:
        if error == errno.ENOTCONN:
            self.close("the client has disconnected", logging.INFO)
            return
        reason = ffi.string(lib.vdcm_session_reason(self._native)).decode()
        self.close(reason or os.strerror(error))

    def close(self, reason: str, level: int = logging.WARNING) -> None:
        """Disconnect the client, saying why."""
        if self._closed:
            return
        self._closed = True
        log.log(level, "%s: %s", self.device.name, reason)
        if self._endpoint.turns.last is self:
            self._endpoint.turns.last = None
        self._loop.remove_reader(self._connection.fileno())
        if self._retry is not None:
            self._retry.cancel()
        try:
            self.device.detached()
        except Exception:
            log.exception("%s: the device model failed to let go of its client", self.device.name)
        if self._running:
            lib.vdcm_session_stop(self._native)
        else:
            self._free()
        self._endpoint.released(self)

    def discard(self) -> None:
        """Give a session back that its device has not taken; the connection is the caller's."""
        self._closed = True
        self.memory.disconnect()
        lib.vdcm_session_free(self._native)
        self._native = ffi.NULL

    def _free(self) -> None:
        self.memory.disconnect()
        lib.vdcm_session_free(self._native)
        self._native = ffi.NULL
        self._connection.close()

    def maps_privately(self, file: tuple[int, int]) -> bool:
        """Has the client mapped ``file`` (device, inode) for itself alone?

        Then what it writes is not in the file, and DMA there would be silently wrong. False if it
        cannot be known: the client has no mapping of it, or runs as another user.
        """
        if file not in self._private and len(self._private) < FILE_LIMIT:
            self._private[file] = maps_privately(self.peer, file)
        return self._private.get(file, False)

    def warn_not_shared(self) -> None:
        """Say once what is amiss, unless the RAM can be reached."""
        if self._warned_not_shared or any(
            one.shared and one.size >= SMALLEST_RAM for one in self.memory.ranges
        ):
            return
        self._warned_not_shared = True
        self.complain(logging.WARNING, "%s", NOT_SHARED)

    def complain(
        self, level: int, message: str, *args: Any, exc_info: BaseException | None = None
    ) -> None:
        """Log about this client, but no more than ``LOG_LIMIT`` lines in ``LOG_PERIOD`` s."""
        now = self._loop.time()
        if now > self._log_until:
            self._log_until = now + LOG_PERIOD
            self._log_lines = 0
        self._log_lines += 1
        if self._log_lines < LOG_LIMIT:
            log.log(level, f"%s: {message}", self.device.name, *args, exc_info=exc_info)
        elif self._log_lines == LOG_LIMIT:
            log.warning("%s: too much to say; silent for a while", self.device.name)
