"""The server's side of vfio-user: sockets, clients and the callbacks of the native module.

This is the only module that touches ``native/``. A ``Transport`` serves any number of VDEVs, each
on a UNIX socket of its own (an ``Endpoint``), on one asyncio event loop. A client is a ``Session``:
it exists once its version message has been checked, and the libvfio-user context behind it lives
and dies with it.

What keeps one client from costing the others anything:

* a connection that has not finished its version message holds nothing but a descriptor, and is
  closed after ``PATIENCE`` seconds; the same holds for a message of which the rest does not come;
* ``native/guard.c`` looks at every message before libvfio-user reads it;
* a client that does not read its answers is disconnected, not waited for;
* no exception crosses into C (``_failed``), and log lines per client are limited.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import shutil
import socket
import stat
import struct
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from vdcm import protocol
from vdcm._native import ffi, lib
from vdcm.errors import DmaError, ProtocolError, TransportError, VdcmError
from vdcm.protocol import Area, Command, Irq, MessageFlags

log = logging.getLogger("vdcm.transport")

PATIENCE: Final = 5.0
"""Seconds that a client has to finish a message it has begun."""
PENDING_LIMIT: Final = 8
"""Connections per endpoint that may be in the middle of their version message."""
VERSION_LIMIT: Final = 4096
"""Bytes of the longest version message that is read."""
TURN_NS: Final = 1_000_000
"""Nanoseconds for which one client is served before it is the next one's turn."""
SPIN_NS: Final = 50_000
"""Nanoseconds that the loop stays awake for a client that sends message after message."""
LINGER_NS: Final = 200_000
"""Nanoseconds for which it then waits for that client alone, before it looks after all again."""
LOG_LIMIT: Final = 50
"""Log lines that one client may cause in ``LOG_PERIOD`` seconds."""
LOG_PERIOD: Final = 60.0
SMALLEST_RAM: Final = 1 << 20
"""Bytes of the smallest range without a descriptor that is taken to be the guest's memory."""
MAX_AREAS: Final[int] = lib.VDCM_MAX_AREAS
"""Mappable areas of one region."""


class IrqAction(IntEnum):
    """What a client did with the eventfds of a range of vectors."""

    BOUND = lib.VDCM_IRQ_BOUND
    UNBOUND = lib.VDCM_IRQ_UNBOUND
    MASKED = lib.VDCM_IRQ_MASKED
    UNMASKED = lib.VDCM_IRQ_UNMASKED


@dataclass(frozen=True)
class RegionDescription:
    """What a client is told of a region.

    ``size`` in bytes. ``areas`` are page-aligned parts that may be mapped from ``fd`` (offset in
    the file = offset in the region); ``read_only`` are further ones for a client that promises to
    map them without write permission. ``memory`` is False for an I/O BAR and config space.
    """

    index: int
    size: int
    memory: bool = True
    fd: int = -1
    areas: Sequence[Area] = field(default=())
    read_only: Sequence[Area] = field(default=())


class Servable(Protocol):
    """What a VDEV offers to be served. All calls come from the event loop, one at a time.

    ``read`` and ``write`` get widths of 1, 2, 4 or 8 bytes at any offset inside the region. An
    exception costs the client an error reply, nothing else.
    """

    @property
    def name(self) -> str: ...
    def regions(self) -> Sequence[RegionDescription]: ...
    def vectors(self) -> Mapping[Irq, int]: ...
    def read(self, region: int, offset: int, width: int) -> int: ...
    def write(self, region: int, offset: int, width: int, value: int) -> None: ...
    def attached(self, session: Session) -> None: ...
    def detached(self) -> None: ...
    def reset(self) -> None: ...
    def dma_changed(self, iova: int, size: int, *, mapped: bool, shared: bool) -> None: ...
    def irqs_changed(self, kind: Irq, action: IrqAction, start: int, count: int) -> None: ...


# --- guest memory -------------------------------------------------------------------------------


class DmaRange(NamedTuple):
    """A range of I/O virtual addresses that the client has announced (bytes)."""

    iova: int
    size: int
    shared: bool
    readable: bool
    writable: bool


_NOT_SHARED = (
    "guest memory is not shared with vdcm: start QEMU with "
    "-object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem "
    "(vdcm qemu-args prints the line)"
)
_DMA_REASONS = {
    errno.EFAULT: "the address is not mapped",
    errno.ENXIO: _NOT_SHARED,
    errno.EACCES: "the client mapped it without permission for this",
    errno.EIO: "the file behind the mapping has shrunk",
}


class GuestMemory:
    """The memory that one client has mapped for DMA (vfio-user DMA_MAP), and only that.

    Ranges come and go with the client's messages; ``map`` and ``unmap`` are for tests and for
    memory that does not come from a client.
    """

    def __init__(self, native: Any = None) -> None:
        # A session's own address space is freed with the session, one made here by cffi's gc.
        self._native = native or ffi.gc(lib.vdcm_aspace_new(), lib.vdcm_aspace_free)
        if self._native == ffi.NULL:
            raise MemoryError

    def read(self, iova: int, length: int) -> bytes:
        """``length`` bytes at ``iova``; DmaError if any of them cannot be read."""
        native = self._usable("read", iova, length)
        fault = ffi.new("uint64_t *")
        # The length may be the guest's: looked at before anything is allocated for it.
        result = lib.vdcm_aspace_check(native, iova, length, False, fault)
        if not result:
            buffer = ffi.new("char[]", max(length, 1))
            result = lib.vdcm_aspace_read(native, iova, buffer, length, fault)
        if result:
            raise self._error("read", iova, length, result, fault[0])
        return bytes(ffi.buffer(buffer, length))

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` at ``iova``; DmaError, and nothing written, if any of it cannot be."""
        buffer = ffi.from_buffer(data)
        length = len(buffer)  # bytes, which those of a memoryview's items need not be
        native = self._usable("write", iova, length)
        fault = ffi.new("uint64_t *")
        result = lib.vdcm_aspace_write(native, iova, buffer, length, fault)
        if result:
            raise self._error("write", iova, length, result, fault[0])

    def disconnect(self) -> None:
        """The client has gone and its memory with it: every access fails from now on."""
        self._native = None

    def _usable(self, verb: str, iova: int, length: int) -> Any:
        what = f"DMA {verb} of {length} bytes at {iova:#x} failed"
        if self._native is None:
            raise DmaError(f"{what}: the client whose memory it was has disconnected")
        if not (0 <= iova < 1 << 64 and 0 <= length < 1 << 64):
            raise DmaError(f"{what}: addresses and lengths have 64 bits")
        return self._native

    @staticmethod
    def _error(verb: str, iova: int, length: int, result: int, fault: int) -> DmaError:
        reason = _DMA_REASONS.get(-result, os.strerror(-result))
        return DmaError(f"DMA {verb} of {length} bytes at {iova:#x} failed at {fault:#x}: {reason}")

    def map(self, iova: int, size: int, fd: int, offset: int = 0, *, writable: bool = True) -> None:
        """Map ``size`` bytes of ``fd`` at ``iova`` (page aligned); DmaError if that cannot be."""
        native = self._usable("map", iova, size)
        result = lib.vdcm_aspace_map(native, iova, size, fd, offset, True, writable)
        if result:
            raise DmaError(f"cannot map {size:#x} bytes at {iova:#x}: {os.strerror(-result)}")

    def unmap(self, iova: int, size: int) -> None:
        """Remove the ranges inside [iova, iova + size); DmaError if none is, or one is cut."""
        result = lib.vdcm_aspace_unmap(self._usable("unmap", iova, size), iova, size)
        if result:
            raise DmaError(f"cannot unmap {size:#x} bytes at {iova:#x}: {os.strerror(-result)}")

    @property
    def ranges(self) -> list[DmaRange]:
        """What is announced now, in ascending order."""
        if self._native is None:
            return []
        limit = lib.VDCM_ASPACE_MAX_RANGES
        found = ffi.new("vdcm_range[]", limit)
        count = lib.vdcm_aspace_ranges(self._native, found, limit)
        return [
            DmaRange(r.iova, r.size, bool(r.mapped), bool(r.readable), bool(r.writable))
            for r in found[0:count]
        ]


# --- callbacks ----------------------------------------------------------------------------------


def _failed(_kind: type, error: BaseException, traceback: TracebackType) -> int:
    """The one guard between C and Python: an exception becomes a log line and an errno."""
    session: Session = ffi.from_handle(traceback.tb_frame.f_locals["owner"])
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
def vdcm_on_dma(owner: Any, mapped: bool, iova: int, size: int, shared: bool) -> int:
    session: Session = ffi.from_handle(owner)
    # Firmware images are never shared, and nobody wants to reach them: what counts is memory.
    if mapped and not shared and size >= SMALLEST_RAM and not session.warned_not_shared:
        session.warned_not_shared = True
        session.complain(logging.WARNING, "%s", _NOT_SHARED)
    session.device.dma_changed(iova, size, mapped=mapped, shared=shared)
    return 0


@_callback
def vdcm_on_irqs(owner: Any, kind: int, action: int, start: int, count: int) -> int:
    session: Session = ffi.from_handle(owner)
    session.device.irqs_changed(Irq(kind), IrqAction(action), start, count)
    return 0


@_callback
def vdcm_on_log(owner: Any, level: int, message: Any) -> int:
    session: Session = ffi.from_handle(owner)
    # syslog levels: 3 is an error. What a client got wrong is its problem: a warning of ours.
    text = ffi.string(message).decode(errors="replace").strip()
    session.complain(logging.WARNING if level <= 4 else logging.DEBUG, "libvfio-user: %s", text)
    return 0


# --- one client ---------------------------------------------------------------------------------


class Session:
    """One connected client of one VDEV."""

    def __init__(
        self, endpoint: Endpoint, connection: socket.socket, client: protocol.Version
    ) -> None:
        self.device: Final = endpoint.device
        self.interrupted: BaseException | None = None
        self.warned_not_shared = False
        self.messages = 0
        self._endpoint = endpoint
        self._connection = connection
        self._handle = ffi.new_handle(self)
        self._loop = endpoint.loop
        self._idle_since = 0
        self._stalled: float | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._running = False
        self._closed = False
        self._log_lines = 0
        self._log_until = 0.0
        self._native = lib.vdcm_session_new(self._handle, endpoint.directory.encode(), 3)
        if self._native == ffi.NULL:
            raise TransportError(f"{self.device.name}: libvfio-user: {os.strerror(ffi.errno)}")
        try:
            self._read_only = self._describe(client)
            # What the client said has been read here; libvfio-user gets to read no text of it.
            hello = protocol.message(Command.VERSION, protocol.pack_version())
            result = lib.vdcm_session_attach(self._native, connection.fileno(), hello, len(hello))
            if result:
                raise TransportError(
                    f"{self.device.name}: libvfio-user does not accept the client: "
                    f"{os.strerror(-result)}"
                )
        except BaseException:
            lib.vdcm_session_free(self._native)
            raise
        self.memory: Final = GuestMemory(lib.vdcm_session_aspace(self._native))

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
                    region.memory,
                    region.fd if areas else -1,
                    ffi.new("vdcm_area[]", [tuple(area) for area in areas] or 1),
                    len(areas),
                ),
                f"region {region.index}",
            )
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
        }
        if self._read_only:
            offered["vdcm"] = protocol.pack_read_only(self._read_only)
        return offered

    def trigger(self, kind: Irq, vector: int) -> bool:
        """Signal the eventfd of a vector; False if the client has bound none to it."""
        return not self._closed and lib.vdcm_session_trigger(self._native, kind, vector) == 0

    def start(self) -> None:
        """Begin to handle messages."""
        self._loop.add_reader(self._connection.fileno(), self._run)

    def look(self) -> None:
        """Handle what has arrived, a disconnection too, without waiting for the event loop."""
        if not self._running and not self._closed:
            self._run()

    def _run(self) -> None:
        now = time.perf_counter_ns()
        # Wait for a client only in the middle of a burst and while no other is being served.
        turns = self._endpoint.turns
        alone = turns.last is self or now - turns.end > TURN_NS
        burst = alone and now - self._idle_since < LINGER_NS
        self._running = True
        handled = lib.vdcm_session_run(
            self._native, TURN_NS, SPIN_NS if burst else 0, LINGER_NS if burst else 0
        )
        self._running = False
        turns.last, turns.end = self, time.perf_counter_ns()
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
        self.messages += handled
        if lib.vdcm_session_partial(self._native):
            self._wait_for_rest(progress=handled > 0)
        else:
            self._stalled = None

    def _wait_for_rest(self, *, progress: bool) -> None:
        """Readable, but not to be read yet: look again later instead of at once for ever."""
        now = self._loop.time()
        if self._stalled is None or progress:
            self._stalled = now
        waited = now - self._stalled
        if waited > PATIENCE:
            self.close(f"the rest of a message did not come within {PATIENCE:.0f} s")
            return
        self._loop.remove_reader(self._connection.fileno())
        if self._retry is not None:  # look() may come between
            self._retry.cancel()
        self._retry = self._loop.call_later(min(max(waited, 0.001), 0.05), self._look_again)

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


# --- one socket ---------------------------------------------------------------------------------


@dataclass
class Turns:
    """Whose turn the last one was, and when it ended (``time.perf_counter_ns``)."""

    last: Session | None = None
    end: int = 0


class Endpoint:
    """The socket of one VDEV: claims the path, negotiates versions, holds at most one session."""

    def __init__(
        self,
        device: Servable,
        path: Path,
        loop: asyncio.AbstractEventLoop,
        directory: str,
        turns: Turns,
    ) -> None:
        self.device: Final = device
        self.path: Final = path
        self.loop: Final = loop
        self.directory: Final = directory
        self.turns: Final = turns
        self.session: Session | None = None
        self._pending: set[asyncio.Task[None]] = set()
        self._listener, self._inode = claim_socket(path)
        loop.add_reader(self._listener.fileno(), self._accept)
        log.info("%s: listening on %s", device.name, path)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors: the connection stays queued, so take the socket out of the loop
            # for a moment instead of being called for it without end.
            log.error("%s: cannot accept a client: %s", self.device.name, error)
            self.loop.remove_reader(self._listener.fileno())
            self.loop.call_later(1.0, self._listen_again)
            return
        connection.setblocking(False)
        if len(self._pending) >= PENDING_LIMIT:
            log.warning("%s: too many clients that do not say hello", self.device.name)
            connection.close()
            return
        task = self.loop.create_task(self._greet(connection))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    def _listen_again(self) -> None:
        if self._listener.fileno() >= 0:
            self.loop.add_reader(self._listener.fileno(), self._accept)

    async def _greet(self, connection: socket.socket) -> None:
        """Read and check a client's version message, and make a session of the connection."""
        message = bytearray()
        try:
            async with asyncio.timeout(PATIENCE):
                client = await self._receive_version(connection, message)
            if self.session is not None:
                self.session.look()  # it may have gone without our having seen it yet
            if self.session is not None:
                raise ProtocolError("another client is connected", errno.EBUSY)
            if self._listener.fileno() < 0:  # looking may have run a handler that withdrew us
                raise TransportError("the server is stopping")
            session = Session(self, connection, client)
            try:
                self.device.attached(session)
            except BaseException:
                session.discard()
                raise
            if self._listener.fileno() < 0:  # so may the model now
                session.close("the server is stopping", logging.INFO)
                return
        except TimeoutError:
            log.warning("%s: a client connected and said no hello", self.device.name)
            connection.close()
        except (VdcmError, OSError) as error:
            number = getattr(error, "errno", 0) or errno.EINVAL
            log.warning("%s: a client was refused: %s", self.device.name, error)
            self._reply(connection, message, b"", number)
            connection.close()
        except Exception:
            log.exception("%s: the device model failed", self.device.name)
            self._reply(connection, message, b"", errno.EIO)
            connection.close()
        except BaseException:
            connection.close()
            raise
        else:
            self.session = session
            # The lower of the two minor versions is what both understand; stock QEMU says 0.
            minor = min(client.minor, protocol.MINOR)
            hello = protocol.pack_version(session.capabilities, minor=minor)
            self._reply(connection, message, hello, 0)
            log.info("%s: a client has connected", self.device.name)
            session.start()

    async def _receive_version(
        self, connection: socket.socket, message: bytearray
    ) -> protocol.Version:
        """Fill ``message`` with the client's VERSION message; ProtocolError if it is none."""
        wanted = protocol.HEADER.size
        while len(message) < wanted:
            # recv() without room for descriptors: any that come along are dropped by the kernel.
            chunk = await self.loop.sock_recv(connection, wanted - len(message))
            if not chunk:
                raise ProtocolError("it closed before it had said its version")
            message += chunk
            if wanted == protocol.HEADER.size == len(message):
                header = protocol.Header.parse(message)
                if header.command != Command.VERSION or not header.is_command:
                    name = protocol.command_name(header.command)
                    raise ProtocolError(f"its first message is {name}, not VERSION")
                if header.size > VERSION_LIMIT:
                    raise ProtocolError(f"its VERSION message is {header.size} bytes long")
                wanted = header.size
        version = protocol.parse_version(bytes(message[protocol.HEADER.size :]))
        if version.major != protocol.MAJOR:
            raise ProtocolError(
                f"it speaks vfio-user {version.major}.{version.minor}, "
                f"we speak {protocol.MAJOR}.{protocol.MINOR}"
            )
        return version

    @staticmethod
    def _reply(connection: socket.socket, request: bytearray, payload: bytes, error: int) -> None:
        if len(request) < protocol.HEADER.size:
            return
        message_id = struct.unpack_from("<H", request)[0]
        flags = MessageFlags.REPLY | (MessageFlags.ERROR if error else 0)
        with suppress(OSError):  # it may have gone, which the session will find out
            connection.send(
                protocol.message(Command.VERSION, payload, message_id, flags, error),
                socket.MSG_NOSIGNAL,
            )

    def released(self, session: Session) -> None:
        if self.session is session:
            self.session = None

    def close(self) -> None:
        """Disconnect the client, stop listening, remove the socket."""
        for task in self._pending:
            task.cancel()
        if self.session is not None:
            self.session.close("the server is stopping", logging.INFO)
        self.loop.remove_reader(self._listener.fileno())
        self._listener.close()
        with suppress(OSError):
            if self.path.lstat().st_ino == self._inode:  # not one that somebody put in its place
                self.path.unlink()


def claim_socket(path: Path) -> tuple[socket.socket, int]:
    """A socket that listens on ``path`` with mode 0600, and its inode.

    A socket that a dead server has left is removed; anything else in the way is an error. Two
    servers that start at the same time are kept apart by a lock on the folder.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TransportError(f"{path}: cannot use its folder: {error.strerror}") from error
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        _clear(path)
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(PENDING_LIMIT)
        listener.setblocking(False)
        return listener, path.lstat().st_ino
    except OSError as error:
        listener.close()
        hint = " (a socket's path has 107 characters at most)" if "too long" in str(error) else ""
        raise TransportError(f"{path}: cannot listen: {error.strerror or error}{hint}") from error
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder)


def _clear(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise TransportError(f"{path} exists and is not a socket: choose another path or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            log.info("%s: removed the socket of a server that is gone", path)
            return
        except BlockingIOError:
            pass  # its queue is full: somebody listens
    raise TransportError(f"{path} is being served by another process: stop that or choose another")


class Transport:
    """All sockets of this process. Made and used on a running asyncio event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # The hand-over of a client to libvfio-user needs a folder nobody else can look into.
        self._directory = tempfile.mkdtemp(prefix="vdcm-")
        self._turns = Turns()
        self.endpoints: dict[str, Endpoint] = {}

    def serve(self, device: Servable, path: Path) -> Endpoint:
        """Listen for a client of ``device`` on ``path``.

        Raises TransportError if the path cannot be had, or the name is being served already.
        """
        if device.name in self.endpoints:
            raise TransportError(f"{device.name} is being served already")
        endpoint = Endpoint(device, path, self._loop, self._directory, self._turns)
        self.endpoints[device.name] = endpoint
        return endpoint

    def withdraw(self, name: str) -> None:
        """Stop serving one VDEV."""
        self.endpoints.pop(name).close()

    def close(self) -> None:
        """Disconnect all clients and remove all sockets."""
        for name in list(self.endpoints):
            self.withdraw(name)
        shutil.rmtree(self._directory, ignore_errors=True)
