"""One connection to a vfio-user server: messages, deadlines, descriptors, version negotiation.

A request is sent and its reply awaited; requests of the server that come in between are handed to
``answer``. After a lost connection, a missed deadline or a malformed message the connection is
closed and every further call raises TransportError: what a late reply answers is unknown.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from vdcm import protocol
from vdcm.errors import DmaError, ProtocolError, TransportError
from vdcm.protocol import HEADER, Command, Header, MessageFlags, Version, command_name

DEFAULT_CAPABILITIES: Mapping[str, Any] = {
    "max_msg_fds": 16,
    "max_data_xfer_size": 1 << 20,
    "vdcm": {"read_only_areas": True},
}

# Room for a message's fixed fields and for the description of a region with many areas.
MAX_OVERHEAD = 1 << 16
_READ_AHEAD = 4096

Answer = Callable[[int, bytes], bytes]


class Connection:
    """A connected socket with the version negotiated. Arguments are those of ``Client``.

    ``answer(command, payload)`` gives the reply's payload to a request of the server, or raises
    DmaError or ProtocolError, which become an error reply.
    """

    def __init__(
        self,
        path: str | Path,
        timeout: float,
        capabilities: Mapping[str, Any],
        wait: float,
        answer: Answer,
    ) -> None:
        self.path = os.fspath(path)
        self.timeout = timeout
        self._answer = answer
        self._message_id = 0
        self._input = bytearray()
        self._input_fds: list[int] = []
        self._lost_because = ""
        offered = {**DEFAULT_CAPABILITIES, **capabilities}
        offered = {key: value for key, value in offered.items() if value is not None}
        own = protocol.parse_version(protocol.pack_version(offered))
        self._receive_fds = min(own.max_msg_fds, protocol.SCM_MAX_FD)
        self._max_message = own.max_data_xfer_size + MAX_OVERHEAD
        self._socket = self._connect(wait)
        try:
            self.version = self._negotiate(offered)
        except BaseException:
            self.close()
            raise
        self.max_transfer = min(own.max_data_xfer_size, self.version.max_data_xfer_size)
        self.max_send_fds = min(self.version.max_msg_fds, protocol.SCM_MAX_FD)

    @property
    def connected(self) -> bool:
        return not self._lost_because

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self, reason: str = "it was closed") -> None:
        """Close the socket; ``reason`` is what later calls tell. Twice is harmless."""
        if not self._lost_because:
            self._lost_because = reason
            self._socket.close()
        close_all(self._input_fds)
        self._input_fds = []

    def call(
        self, command: int, payload: bytes = b"", fds: Sequence[int] = ()
    ) -> tuple[bytes, list[int]]:
        """Send a request; the payload of its reply and the descriptors that came with it.

        The descriptors are the caller's to close. Raises ProtocolError for an error reply.
        """
        deadline = time.monotonic() + self.timeout
        message_id = self.send(command, payload, 0, fds)
        while True:
            header, reply = self._receive(deadline)
            if not header.is_command:
                break
            self._serve(header, reply)
            if time.monotonic() >= deadline:
                self._lost(f"no reply to {command_name(command)} within {self.timeout} s")
        if (header.message_id, header.command) != (message_id, command):
            self._lost(f"it answered {command_name(command)} with another command's reply")
        received, self._input_fds = self._input_fds, []
        if header.is_error:
            close_all(received)
            code = header.error
            reason = os.strerror(code) if code else "no reason given"
            raise ProtocolError(f"{self.path}: {command_name(command)} was refused: {reason}", code)
        return reply, received

    def send(
        self, command: int, payload: bytes = b"", flags: int = 0, fds: Sequence[int] = ()
    ) -> int:
        """Send a request and do not wait; its message id."""
        self._check_connected()
        self._message_id = (self._message_id + 1) & 0xFFFF
        self._transmit(protocol.message(command, payload, self._message_id, flags), fds)
        return self._message_id

    def serve_requests(self, timeout: float) -> int:
        """Answer requests of the server for ``timeout`` seconds; how many there were."""
        deadline = time.monotonic() + timeout
        served = 0
        while self._input or self._readable(deadline):
            header, payload = self._receive(time.monotonic() + self.timeout)
            if not header.is_command:
                self._lost(f"it sent a reply to {command_name(header.command)} unasked")
            self._serve(header, payload)
            served += 1
        return served

    def _serve(self, header: Header, payload: bytes) -> None:
        flags, error, reply = MessageFlags.REPLY, 0, b""
        try:
            reply = self._answer(header.command, payload)
        except DmaError:
            flags, error = flags | MessageFlags.ERROR, errno.EFAULT
        except ProtocolError:
            flags, error = flags | MessageFlags.ERROR, errno.EINVAL
        if header.wants_reply:
            message_id = header.message_id
            self._transmit(protocol.message(header.command, reply, message_id, flags, error))

    def _transmit(self, data: bytes, fds: Sequence[int] = ()) -> None:
        sent = 0
        try:
            if fds:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
                sent = self._socket.sendmsg([data], [rights], socket.MSG_NOSIGNAL)
            while sent < len(data):
                sent += self._socket.send(data[sent:], socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self._lost(f"it took no message for {self.timeout} s")
        except OSError as error:
            # Descriptors that cannot be sent are the caller's fault; nothing has gone out yet.
            if fds and not sent and error.errno in (errno.EBADF, errno.EINVAL, errno.ETOOMANYREFS):
                raise ProtocolError(f"descriptors {list(fds)} cannot be sent: {error}") from None
            self._lost(f"the connection broke: {error.strerror}")

    def _receive(self, deadline: float) -> tuple[Header, bytes]:
        """One message from the server."""
        self._check_connected()
        data = self._input
        while len(data) < HEADER.size:
            self._receive_some(_READ_AHEAD, deadline)
        try:
            header = Header.parse(data)
        except ProtocolError as error:
            self._lost(str(error))
        if header.size > self._max_message:
            self._lost(f"it announced a message of {header.size} bytes, far too many")
        while len(data) < header.size:
            self._receive_some(header.size - len(data), deadline)
        payload = bytes(data[HEADER.size : header.size])
        del data[: header.size]
        return header, payload

    def _receive_some(self, size: int, deadline: float) -> None:
        # SO_RCVTIMEO bounds the first wait without a system call of its own; the rest of a message
        # that comes in pieces must keep the deadline of the whole.
        if self._input and not self._readable(deadline):
            self._lost(f"it sent half a message within {self.timeout} s")
        space = socket.CMSG_SPACE(4 * self._receive_fds)
        try:
            data, control, flags, _ = self._socket.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            self._lost(
                f"no reply within {self.timeout} s: is another client connected to this VDEV?"
            )
        except OSError as error:
            self._lost(f"the connection broke: {error.strerror}")
        for level, kind, content in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._input_fds.extend(memoryview(content[: len(content) & ~3]).cast("i"))
        if flags & socket.MSG_CTRUNC:
            self._lost(f"it sent more descriptors than the {self._receive_fds} allowed")
        if not data:
            self._lost("the server closed it")
        self._input += data

    def _readable(self, deadline: float) -> bool:
        self._check_connected()
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(max(0.0, (deadline - time.monotonic()) * 1000)))

    def _connect(self, wait: float) -> socket.socket:
        deadline = time.monotonic() + wait
        limit = array.array("l", divmod(max(1, int(self.timeout * 1e6)), 1_000_000)).tobytes()
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            try:
                connection.connect(self.path)
                return connection
            except OSError as error:
                connection.close()
                starting = isinstance(error, FileNotFoundError | ConnectionRefusedError)
                if not starting or time.monotonic() >= deadline:
                    raise TransportError(f"{self.path}: {_connect_fault(error)}") from None
            time.sleep(0.01)

    def _negotiate(self, offered: Mapping[str, Any]) -> Version:
        """Section "VFIO_USER_VERSION": same major, minor no higher than ours."""
        ours = f"{protocol.MAJOR}.{protocol.MINOR}"
        try:
            reply, fds = self.call(Command.VERSION, protocol.pack_version(offered))
            close_all(fds)
            version = protocol.parse_version(reply)
        except ProtocolError as error:
            raise ProtocolError(
                f"{self.path}: negotiating vfio-user {ours} failed: {error}", error.errno
            ) from None
        if version.major != protocol.MAJOR or version.minor > protocol.MINOR:
            raise ProtocolError(
                f"{self.path}: the server answers with vfio-user {version.major}.{version.minor},"
                f" this client speaks {ours}: the two do not fit"
            )
        return version

    def _check_connected(self) -> None:
        if self._lost_because:
            raise TransportError(f"{self.path}: not connected, {self._lost_because}: connect anew")

    def _lost(self, reason: str) -> NoReturn:
        self.close(reason)
        raise TransportError(f"{self.path}: connection lost, {reason}")


def close_all(fds: Iterable[int | None]) -> None:
    """Close descriptors, passing over None."""
    for fd in fds:
        if fd is not None:
            os.close(fd)


def _connect_fault(error: OSError) -> str:
    match error:
        case FileNotFoundError():
            return "no such socket: is `vdcm serve` running?"
        case ConnectionRefusedError():
            return "nobody listens on this socket: is `vdcm serve` still running?"
        case PermissionError():
            return "permission denied: run as the user that runs the server"
        case BlockingIOError():
            return "the server did not accept the connection: is another client connected?"
        case _:
            return str(error.strerror or error)
