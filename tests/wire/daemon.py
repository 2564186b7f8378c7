"""A ``vdcm serve`` process for a test: started, asked, killed, started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from wire_server import STOP_TIME

from vdcm.client import Client
from vdcm.control import ControlClient


class Daemon:
    """``document`` is its definition file, if it has one. A context manager: it is started, and at
    the end it is stopped and has to end well, unless it has been ended."""

    def __init__(self, folder: Path, document: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.control = folder / "control.sock"
        self._log_file = folder / "daemon.log"
        self._arguments = ["--state", str(folder / "state"), "--control", str(self.control)]
        if document is not None:
            file = folder / "vdevs.yaml"
            file.write_text(json.dumps(document))  # which is YAML, too
            self._arguments.append(str(file))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it says that it is ready (sd_notify)."""
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        environment = {"XDG_RUNTIME_DIR": str(self.folder), "NOTIFY_SOCKET": str(ready)}
        command = [sys.executable, "-m", "vdcm", "serve", "--log-level", "warning"]
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel,
            self._log_file.open("a") as log,
        ):
            channel.bind(str(ready))
            channel.settimeout(STOP_TIME)
            self._process = subprocess.Popen(
                [*command, *self._arguments],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, **environment},
            )
            try:
                said = channel.recv(100)
            except TimeoutError:
                said = b"nothing"
        if said != b"READY=1":
            self.kill()
            raise AssertionError(f"the daemon did not start: it said {said!r}\n{self.log}")

    @property
    def pid(self) -> int:
        assert self._process is not None, "it is not running"
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log_file.read_text(errors="replace")

    def call(self, method: str, **params: Any) -> Any:
        """What the control socket answers."""
        with ControlClient(self.control, STOP_TIME) as client:
            return client.call(method, **params)

    def connect(self, name: str) -> Client:
        """A client of a VDEV."""
        return Client(self.call("show", name=name)["socket"], timeout=STOP_TIME)

    def kill(self) -> None:
        """SIGKILL: nothing is cleaned up."""
        if self._process is not None:
            self.end(signal.SIGKILL)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code."""
        assert self._process is not None, "it is not running"
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Its exit code, when it has ended by itself."""
        process, self._process = self._process, None
        assert process is not None, "it is not running"
        try:
            return process.wait(STOP_TIME)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the daemon does not end\n{self.log}") from None

    def stop(self) -> None:
        """SIGTERM, and check that it ends as it should; nothing if it has ended already."""
        if self._process is None:
            return
        code = self.end()
        assert code == 0, f"the daemon ended with {code}\n{self.log}"
        assert not list(self.folder.glob("**/*.sock")), "it left sockets behind"
