"""The server's side of the control socket: connections, requests and their limits.

Only the server's own user and root may connect. Messages are bounded, clients counted, and one that
does not read its answers is disconnected.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Self

from vdcm.control.methods import (
    INVALID_REQUEST,
    PARSE_ERROR,
    REFUSED,
    Methods,
    Refusal,
)
from vdcm.control.peer import peer_uid
from vdcm.definition import make_runtime_folder, runtime_folder
from vdcm.errors import TransportError
from vdcm.events import encode
from vdcm.manager import Manager
from vdcm.trace import Filter, Trace, Traced
from vdcm.transport import claim_socket

log = logging.getLogger("vdcm.control")

LINE_LIMIT: Final = 1024 * 1024
"""Bytes of the longest request: one that defines some thousand VDEVs."""
CLIENT_LIMIT: Final = 64
TRACE_BATCH: Final = 256
"""Events of one VDEV that are sent before others have their turn."""
PATIENCE: Final = 5.0
"""Seconds that a client has to read an answer."""


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
            raise TransportError(f"control socket {error} (--control sets its path)") from error
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
        uid = peer_uid(writer.get_extra_info("socket"))
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
        self._methods = Methods(manager, self._begin_trace)
        self._reader = reader
        self._writer = writer
        self._trace: Trace | None = None
        self._traced = asyncio.Event()
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
            if self._trace is not None:
                self._trace.close()
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
        self._write(_error(None, Refusal(code, message, remedy)))
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
                raise Refusal(PARSE_ERROR, f"the request is not JSON: {error}") from None
            if not isinstance(request, dict):
                raise Refusal(INVALID_REQUEST, "a request is a JSON object; there are no batches")
            silent = "id" not in request
            identifier = request.get("id")
            if identifier is not None and type(identifier) not in (int, str):
                identifier = None
                raise Refusal(INVALID_REQUEST, "id is a whole number or text")
            if request.get("jsonrpc") != "2.0" or not isinstance(request.get("method"), str):
                silent = False
                raise Refusal(INVALID_REQUEST, 'a request has "jsonrpc": "2.0" and a method')
            result = self._methods.call(request["method"], request.get("params", {}))
        except Refusal as refusal:
            return None if silent else _error(identifier, refusal)
        return None if silent else {"jsonrpc": "2.0", "id": identifier, "result": result}

    def _begin_trace(self, wanted: Filter, names: Sequence[str] | None, sample: float) -> bool:
        if self._trace is not None:
            raise Refusal(REFUSED, "this connection has a trace already", "open another one")
        self._trace = Trace(self._manager, wanted, names, self._traced.set, sample=sample)
        self._pump = asyncio.get_running_loop().create_task(self._send_trace(self._trace))
        return True

    async def _send_trace(self, trace: Trace) -> None:
        """A client that reads slowly loses events; it keeps nobody waiting, so it may stay."""
        with suppress(ConnectionError):
            while True:
                await self._traced.wait()
                self._traced.clear()
                while found := trace.take(TRACE_BATCH):
                    if not self._writer.is_closing():
                        self._writer.write("".join(map(_notification, found)).encode())
                    await self._writer.drain()
                    await asyncio.sleep(0)  # guests have their turn


_quoted: Final = lru_cache(4096)(encode)


def _notification(traced: Traced) -> str:
    at, name, event = traced
    about = f'"time":{at:.6f},"name":{_quoted(name)},{event.encoded()}'
    return f'{{"jsonrpc":"2.0","method":"trace","params":{{{about}}}}}\n'


def _error(identifier: Any, refusal: Refusal) -> dict[str, Any]:
    error: dict[str, Any] = {"code": refusal.code, "message": str(refusal)}
    if refusal.remedy:
        error["data"] = {"remedy": refusal.remedy}
    return {"jsonrpc": "2.0", "id": identifier, "error": error}
