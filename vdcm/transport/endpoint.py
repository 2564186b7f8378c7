"""The socket of one VDEV, and all sockets of the process."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from vdcm import protocol
from vdcm.errors import ProtocolError, TransportError, VdcmError
from vdcm.protocol import Command, MessageFlags
from vdcm.transport.servable import Servable
from vdcm.transport.session import Session, Turns
from vdcm.transport.socket_path import claim_socket

log = logging.getLogger("vdcm.transport")

PATIENCE: Final = 5.0
"""Seconds that a client has to finish a message it has begun."""
WATCH: Final = 0.5
"""Seconds between two looks for clients that seem to wait."""
PENDING_LIMIT: Final = 8
"""Connections per endpoint that may be in the middle of their version message."""
VERSION_LIMIT: Final = 4096
"""Bytes of the longest version message that is read."""


class Endpoint:
    """The socket of one VDEV: claims the path, negotiates versions, holds at most one session."""

    def __init__(
        self,
        device: Servable,
        path: Path,
        loop: asyncio.AbstractEventLoop,
        turns: Turns,
        patience: float,
    ) -> None:
        self.device = device
        self.path: Final = path
        self.loop: Final = loop
        self.turns: Final = turns
        self.patience: Final = patience
        self.session: Session | None = None
        self._pending: set[asyncio.Task[None]] = set()
        self._listener, self._inode = claim_socket(path)
        loop.add_reader(self._listener.fileno(), self._accept)
        log.info("%s: listening on %s", device.name, path)

    def divert(self, device: Servable) -> None:
        """Serve ``device`` from now on, to a client that is connected, too: what stands in front of
        the one before, or that one again. It has the same regions and vectors."""
        self.device = device
        if self.session is not None:
            self.session.divert(device)

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
            async with asyncio.timeout(self.patience):
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
            # Who says nothing at all has only looked whether somebody listens here.
            level = logging.WARNING if message else logging.DEBUG
            log.log(level, "%s: a client was refused: %s", self.device.name, error)
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


class Transport:
    """All sockets of this process. Made and used on a running asyncio event loop.

    ``patience``: seconds that a client has to finish a message it has begun.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self._loop = asyncio.get_running_loop()
        self._patience = patience
        self._turns = Turns()
        self.endpoints: dict[str, Endpoint] = {}
        self._watch = self._loop.call_later(WATCH, self._look)

    def serve(self, device: Servable, path: Path) -> Endpoint:
        """Listen for a client of ``device`` on ``path``.

        Raises TransportError if the path cannot be had, or the name is being served already.
        """
        if device.name in self.endpoints:
            raise TransportError(f"{device.name} is being served already")
        endpoint = Endpoint(device, path, self._loop, self._turns, self._patience)
        self.endpoints[device.name] = endpoint
        return endpoint

    def withdraw(self, name: str) -> None:
        """Stop serving one VDEV."""
        self.endpoints.pop(name).close()

    def _look(self) -> None:
        self._watch = self._loop.call_later(WATCH, self._look)
        for endpoint in tuple(self.endpoints.values()):
            if endpoint.session is not None:
                try:
                    endpoint.session.watch()
                except Exception:
                    log.exception("%s: cannot be watched", endpoint.device.name)

    def close(self) -> None:
        """Disconnect all clients and remove all sockets."""
        self._watch.cancel()
        for name in list(self.endpoints):
            self.withdraw(name)
