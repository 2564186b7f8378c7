"""QEMU's monitor, and the error of a guest that fails."""

from __future__ import annotations

import json
import socket
from typing import Any

from vdcm.errors import VdcmError


class GuestError(VdcmError):
    """The guest or its QEMU failed; the message ends with the tail of the console's log."""


class Qmp:
    """QEMU's monitor protocol over a connected socket (QEMU, docs/interop/qmp-spec.rst)."""

    def __init__(self, connection: socket.socket, timeout: float = 20.0) -> None:
        self._socket = connection
        self._socket.settimeout(timeout)
        self._file = connection.makefile("rb")
        self.events: list[dict[str, Any]] = []
        self._message()  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its value; events that come meanwhile are in ``events``.

        Raises GuestError if QEMU refuses it or is gone.
        """
        request = {"execute": command, "arguments": arguments}
        try:
            self._socket.sendall(json.dumps(request).encode())
        except OSError as error:
            raise GuestError(f"QMP {command}: {error}") from error
        while True:
            message = self._message()
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise GuestError(f"QMP {command}: {message['error']['desc']}")
            self.events.append(message)

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self._socket.close()

    def _message(self) -> dict[str, Any]:
        try:
            line = self._file.readline()
        except OSError as error:
            raise GuestError(f"QMP: {error}") from error
        if not line:
            raise GuestError("QMP: QEMU closed the connection")
        loaded: dict[str, Any] = json.loads(line)
        return loaded
