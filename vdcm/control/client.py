"""The client's side of the control socket."""

from __future__ import annotations

import json
import os
import socket
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

from vdcm.control.peer import peer_uid
from vdcm.errors import ControlError

CHUNK: Final = 256 * 1024


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
            owner = peer_uid(self._socket)
        except OSError as error:
            self._socket.close()
            if isinstance(error, PermissionError):
                remedy = "it is another user's: be that user, or root"
            else:
                remedy = "start one with vdcm serve, or name its socket with --control"
            raise ControlError(
                f"no server answers on {path} ({error.strerror or error}): {remedy}"
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

    def call(self, method: str, /, **params: Any) -> Any:
        """The result of a method; a parameter that is None is left out."""
        self._next_id += 1
        params = {name: value for name, value in params.items() if value is not None}
        request = {"jsonrpc": "2.0", "id": self._next_id, "method": method, "params": params}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            pass  # it has closed, but not without having said why
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
                words = f"{refusal.get('message')}{f' ({remedy})' if remedy else ''}"
                raise ControlError(words, refusal.get("code", 0))
            if reply.get("id") == self._next_id:
                return reply.get("result")

    def trace(self, **wanted: Any) -> Iterator[dict[str, Any]]:
        """The events that ``wanted``, the parameters of ``trace``, says, without end.

        ControlError when the server goes.
        """
        self.call("trace", **wanted)
        self._socket.settimeout(None)
        while True:
            message = self._notifications.popleft() if self._notifications else self._receive()
            if message.get("method") == "trace":
                yield message["params"]

    def _receive(self) -> dict[str, Any]:
        seen = 0
        try:
            while (end := self._buffer.find(b"\n", seen)) < 0:
                seen = len(self._buffer)
                chunk = self._socket.recv(CHUNK)
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
