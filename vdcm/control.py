"""Control of a running server: JSON-RPC 2.0 over a UNIX socket, one JSON text per line.

========  ===================  =====================================================================
method    params               result
========  ===================  =====================================================================
list                           ``Manager.summaries()``
show      name                 ``Manager.show(name)``
set       name, values         all or none of ``values`` (property to value) are set; the new values
types                          ``describe_types()``
trace     name                 true; from then on notifications ``trace`` come with ``name``,
                               ``time`` (seconds since the epoch), ``line`` and ``dropped`` (lines
                               left out before this one because the client was too slow)
stop                           true; the server stops
========  ===================  =====================================================================

An error has ``code``, ``message`` and, where there is one, ``data.remedy``. Only the server's own
user and root may connect. Messages are bounded, clients counted, and one that does not read its
answers is disconnected.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, Self

from vdcm.definition import runtime_folder
from vdcm.errors import ControlError, StateError, TransportError, VdcmError
from vdcm.manager import Manager, describe_types, make_runtime_folder
from vdcm.properties import PropertyError
from vdcm.transport import claim_socket

log = logging.getLogger("vdcm.control")

LINE_LIMIT: Final = 64 * 1024
"""Bytes of the longest request."""
CLIENT_LIMIT: Final = 16
QUEUE_LIMIT: Final = 1000
"""Trace lines that wait for one client; beyond, new ones are dropped and counted."""
TRACE_LIMIT: Final = 64
"""VDEVs that one client may trace."""
PATIENCE: Final = 5.0
"""Seconds that a client has to read an answer."""

_UCRED: Final = struct.Struct("3i")  # pid, uid, gid (SO_PEERCRED, unix(7))

# JSON-RPC 2.0, section 5.1; from -32000 down the server's own.
PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
UNKNOWN_METHOD: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
REFUSED: Final = -32000
WRONG_STATE: Final = -32001


class _Refusal(Exception):
    """An error reply."""

    def __init__(self, code: int, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.remedy = remedy


def _peer_uid(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(credentials)[1])


class ControlServer:
    """Answers for a ``Manager``, on its event loop; an asynchronous context manager."""

    def __init__(self, manager: Manager, path: Path) -> None:
        self.manager: Final = manager
        self.path: Final = path
        self._clients: set[_Client] = set()
        self._inode = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Listen. TransportError if the path cannot be had, e.g. another server has it."""
        if self.path.parent == runtime_folder():
            make_runtime_folder()
        try:
            listener, self._inode = claim_socket(self.path)
        except TransportError as error:
            raise TransportError(
                f"control socket {error} (control: in the definition file sets its path)"
            ) from error
        self._server = await asyncio.start_unix_server(
            self._connected, sock=listener, limit=LINE_LIMIT
        )
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._server is None:
            return
        # No more connections; those just accepted take some turns to become clients, and asyncio
        # (3.11) loses one if its server is closed meanwhile.
        asyncio.get_running_loop().remove_reader(self._server.sockets[0].fileno())
        for _ in range(5):
            await asyncio.sleep(0)
        self._server.close()
        for client in tuple(self._clients):
            await client.close()
        await asyncio.sleep(0)  # an aborted connection closes its socket in the next turn
        with suppress(OSError):
            if self.path.lstat().st_ino == self._inode:
                self.path.unlink()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Client(self.manager, reader, writer)
        uid = _peer_uid(writer.get_extra_info("socket"))
        if uid not in (0, os.geteuid()):
            log.warning("refused a control client of user %d", uid)
            client.say_last(REFUSED, f"user {uid} may not control this server", "use sudo")
        elif len(self._clients) >= CLIENT_LIMIT:
            log.warning("refused a control client: there are %d already", CLIENT_LIMIT)
            client.say_last(REFUSED, f"{CLIENT_LIMIT} clients are connected", "close one of them")
        else:
            self._clients.add(client)
            try:
                await client.run()
            finally:
                self._clients.discard(client)


class _Client:
    """One connection."""

    def __init__(
        self, manager: Manager, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._manager = manager
        self._reader = reader
        self._writer = writer
        self._traces = ExitStack()
        self._traced: set[str] = set()
        self._queue: deque[dict[str, Any]] = deque()
        self._dropped = 0
        self._queued = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._closing = False

    async def run(self) -> None:
        self._task = asyncio.current_task()
        try:
            while line := await self._line():
                reply = self._answer(line)
                if reply is not None:
                    self._write(reply)
                    async with asyncio.timeout(PATIENCE):
                        await self._writer.drain()
        except TimeoutError:
            log.warning("a control client does not read its answers: disconnected")
            self._writer.transport.abort()
        except ConnectionError:
            pass  # it has gone
        except asyncio.CancelledError:
            if not self._closing:  # else the task just ends: asyncio (3.11) logs one that does not
                raise
        finally:
            self._traces.close()
            if self._pump is not None:
                self._pump.cancel()
            self._writer.close()

    async def close(self) -> None:
        """Disconnect at once; what the socket has not taken yet is lost."""
        if self._task is not None:
            self._closing = True
            self._task.cancel()
            await asyncio.wait([self._task])
        self._writer.transport.abort()

    def say_last(self, code: int, message: str, remedy: str) -> None:
        self._write(_error(None, _Refusal(code, message, remedy)))
        self._writer.close()

    async def _line(self) -> bytes:
        """The next request, b"" at the end."""
        try:
            return await self._reader.readline()
        except ValueError:  # longer than LINE_LIMIT; what follows cannot be told from its rest
            self.say_last(
                INVALID_REQUEST, f"a request has {LINE_LIMIT} bytes at most", "send less at once"
            )
            return b""

    def _write(self, message: Mapping[str, Any]) -> None:
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def _answer(self, line: bytes) -> dict[str, Any] | None:
        """The reply to a request; None for a notification."""
        identifier: Any = None
        silent = False
        try:
            try:
                request = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _Refusal(PARSE_ERROR, f"the request is not JSON: {error}") from None
            if not isinstance(request, dict):
                raise _Refusal(INVALID_REQUEST, "a request is a JSON object; there are no batches")
            silent = "id" not in request
            identifier = request.get("id")
            if identifier is not None and type(identifier) not in (int, str):
                identifier = None
                raise _Refusal(INVALID_REQUEST, "id is a whole number or text")
            if request.get("jsonrpc") != "2.0" or not isinstance(request.get("method"), str):
                silent = False
                raise _Refusal(INVALID_REQUEST, 'a request has "jsonrpc": "2.0" and a method')
            result = self._call(request["method"], request.get("params", {}))
        except _Refusal as refusal:
            return None if silent else _error(identifier, refusal)
        return None if silent else {"jsonrpc": "2.0", "id": identifier, "result": result}

    def _call(self, method: str, params: object) -> Any:
        try:
            function, names = self._methods()[method]
        except KeyError:
            known = ", ".join(self._methods())
            raise _Refusal(
                UNKNOWN_METHOD, f"there is no method {method[:80]}", f"one of {known}"
            ) from None
        if not isinstance(params, dict) or set(params) != set(names):
            wanted = ", ".join(names) or "none"
            raise _Refusal(INVALID_PARAMS, f"the parameters of {method}, by name, are: {wanted}")
        for name, kind in names.items():
            if not isinstance(params[name], kind):
                raise _Refusal(INVALID_PARAMS, f"{method}: {name} is no {_JSON[kind]}")
        try:
            return function(**params)
        except _Refusal:
            raise
        except PropertyError as error:
            raise _Refusal(INVALID_PARAMS, str(error), "vdcm types lists the properties") from error
        except StateError as error:
            raise _Refusal(WRONG_STATE, str(error), "vdcm list shows the states") from error
        except VdcmError as error:
            raise _Refusal(REFUSED, str(error), "vdcm list shows what there is") from error
        except Exception as error:
            log.exception("control method %s failed", method)
            raise _Refusal(
                INTERNAL_ERROR, f"{method} failed: {error}", "see the server's log"
            ) from error

    def _methods(self) -> dict[str, tuple[Callable[..., Any], dict[str, type]]]:
        return {
            "list": (self._manager.summaries, {}),
            "show": (self._manager.show, {"name": str}),
            "set": (self._set, {"name": str, "values": dict}),
            "types": (describe_types, {}),
            "trace": (self._trace, {"name": str}),
            "stop": (self._stop, {}),
        }

    def _set(self, name: str, values: dict[str, object]) -> dict[str, Any]:
        self._manager.set(name, values)
        properties = self._manager.show(name)["properties"]
        return {key: properties[key] for key in values}

    def _stop(self) -> bool:
        self._manager.stopping.set()
        return True

    def _trace(self, name: str) -> bool:
        self._manager.entry(name)
        if name not in self._traced:
            if len(self._traced) >= TRACE_LIMIT:
                raise _Refusal(REFUSED, f"a client traces {TRACE_LIMIT} VDEVs at most")
            self._traces.callback(
                self._manager.listen(name, lambda line: self._enqueue(name, line))
            )
            self._traced.add(name)
        if self._pump is None:
            self._pump = asyncio.get_running_loop().create_task(self._send_trace())
        return True

    def _enqueue(self, name: str, line: str) -> None:
        if len(self._queue) >= QUEUE_LIMIT:
            self._dropped += 1
            return
        self._queue.append(
            {"name": name, "time": time.time(), "line": line, "dropped": self._dropped}
        )
        self._dropped = 0
        self._queued.set()

    async def _send_trace(self) -> None:
        """A client that reads slowly loses lines; it keeps nobody waiting, so it may stay."""
        with suppress(ConnectionError):
            while True:
                await self._queued.wait()
                self._queued.clear()
                while self._queue:
                    params = self._queue.popleft()
                    self._write({"jsonrpc": "2.0", "method": "trace", "params": params})
                    await self._writer.drain()


_JSON: Final[dict[type, str]] = {str: "text", dict: "JSON object"}


def _error(identifier: Any, refusal: _Refusal) -> dict[str, Any]:
    error: dict[str, Any] = {"code": refusal.code, "message": str(refusal)}
    if refusal.remedy:
        error["data"] = {"remedy": refusal.remedy}
    return {"jsonrpc": "2.0", "id": identifier, "error": error}


class ControlClient:
    """Talks to a ``ControlServer``; blocking; a context manager.

    Raises ControlError when nothing listens on ``path``, for a server of another user, for what the
    server refuses, and when ``timeout`` seconds pass without an answer.
    """

    def __init__(self, path: Path, timeout: float = 10.0) -> None:
        self._path = path
        self._timeout = timeout
        self._next_id = 0
        self._notifications: deque[dict[str, Any]] = deque()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
            owner = _peer_uid(self._socket)
        except OSError as error:
            self._socket.close()
            raise ControlError(
                f"no server answers on {path} ({error.strerror or error}): "
                "start one with vdcm serve FILE.yaml, or name its socket with --control"
            ) from error
        if os.geteuid() != 0 and owner not in (0, os.geteuid()):
            self._socket.close()
            raise ControlError(f"{path} belongs to user {owner}, who is neither we nor root")
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def call(self, method: str, **params: Any) -> Any:
        """The result of a method."""
        self._next_id += 1
        request = {"jsonrpc": "2.0", "id": self._next_id, "method": method, "params": params}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise self._gone(error) from error
        while True:
            reply = self._receive()
            if reply.get("method") == "trace":
                self._notifications.append(reply)
                continue
            refusal = reply.get("error")
            if refusal is not None:
                remedy = (refusal.get("data") or {}).get("remedy")
                raise ControlError(f"{refusal.get('message')}{f' ({remedy})' if remedy else ''}")
            if reply.get("id") == self._next_id:
                return reply.get("result")

    def trace(self, name: str) -> Iterator[dict[str, Any]]:
        """The trace of a VDEV, without end: ``name``, ``time``, ``line``, ``dropped`` of each line.

        ControlError when the server goes.
        """
        self.call("trace", name=name)
        self._socket.settimeout(None)
        while True:
            message = self._notifications.popleft() if self._notifications else self._receive()
            if message.get("method") == "trace":
                yield message["params"]

    def _receive(self) -> dict[str, Any]:
        try:
            while (end := self._buffer.find(b"\n")) < 0:
                chunk = self._socket.recv(LINE_LIMIT)
                if not chunk:
                    raise ConnectionResetError(0, "it has closed the connection")
                self._buffer += chunk
        except OSError as error:
            raise self._gone(error) from error
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            reply = json.loads(line)
        except ValueError as error:
            raise ControlError(f"{self._path}: the server's answer is not JSON: {error}") from error
        if not isinstance(reply, dict):
            raise ControlError(f"{self._path}: the server's answer is no JSON object")
        return reply

    def _gone(self, error: OSError) -> ControlError:
        if isinstance(error, TimeoutError):
            return ControlError(
                f"{self._path}: the server did not answer within {self._timeout:g} s"
            )
        return ControlError(f"{self._path}: the server has gone: {error.strerror or error}")
