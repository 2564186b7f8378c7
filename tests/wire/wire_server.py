"""A server process for a test: started, watched, killed or ended."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vdcm.client import Client
from vdcm.testing import retry_while_busy

HERE = Path(__file__).parent
STOP_TIME = 20.0  # seconds; generous, for a sanitizer's build on a busy machine


class Server:
    """A running server_main.py. ``paths`` are its sockets."""

    def __init__(self, folder: Path, count: int = 2, patience: float | None = None) -> None:
        self.paths = [folder / f"vdev{index}.sock" for index in range(count)]
        self._log_file = folder / "server.log"
        self._arguments = [str(folder), str(count)]
        if patience is not None:
            self._arguments.append(str(patience))
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        with self._log_file.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "server_main.py"), *self._arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        if process.stdout is None:
            raise RuntimeError("the server has no standard output")
        ready, _, _ = select.select([process.stdout], [], [], STOP_TIME)
        line = process.stdout.readline() if ready else "(nothing)"
        if line != "ready\n":
            process.kill()
            process.wait()
            pytest.fail(f"the server did not start: it said {line!r}\n{self.log}")
        return process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self._log_file.read_text(errors="replace")

    def connect(self, index: int = 0, **arguments: Any) -> Client:
        """A client; it waits for the server to have noticed that the one before has gone."""
        return retry_while_busy(lambda: Client(self.paths[index], **arguments))

    def kill(self) -> None:
        """SIGKILL: nothing is cleaned up."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.process = self._start()

    def stop(self) -> None:
        """SIGTERM, and check that the server ends as it should."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_TIME)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail("the server did not stop on SIGTERM")
        assert code == 0, f"the server ended with {code}"
        assert not [path for path in self.paths if path.exists()], "it left a socket behind"

    def close(self) -> None:
        if self.process.returncode == -signal.SIGKILL:
            return  # the test did that
        self.stop()
