"""A ``vdcm serve`` process: started, asked, killed, started again.

Its definition file, state, sockets and log live in one folder. So does, for models that are not
installed, a package of nothing but metadata, by whose entry points vdcm finds them.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import yaml

from vdcm.client import Client
from vdcm.control import ControlClient
from vdcm.errors import VdcmError
from vdcm.parent import GROUP
from vdcm.testing.faults import Faults
from vdcm.testing.host import retry_while_busy

DEADLINE: Final = 60.0
"""Seconds for whatever the server is to do: a limit, not an expectation."""
_READY: Final = b"READY=1"  # sd_notify(3)


class ServerError(VdcmError):
    """The server did not do what it should; the message ends with the tail of its log."""


class Server:
    """Serves ``vdevs`` (name to the keys of its entry in a definition file) from ``folder``;
    ``parents`` likewise, those that are not there by themselves. Without either it has no
    definition file, and serves what it is told over its control socket.

    ``models``: device models that are not installed, each entry point's name to ``module:Class``;
    what the test's own process can import, the server can. ``trace``: the log has every access.
    A context manager: at the end it is stopped and has to end well, unless it has ended before.
    """

    def __init__(
        self,
        folder: Path,
        vdevs: Mapping[str, Mapping[str, Any]] | None = None,
        parents: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        models: Mapping[str, str] | None = None,
        trace: bool = True,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder: Final = folder
        self.control: Final = folder / "control.sock"
        self.log_file: Final = folder / "server.log"
        self.definition: Final = folder / "vdevs.yaml"
        self._arguments = ["--state", str(folder / "state"), *(["--trace"] if trace else [])]
        self._process: subprocess.Popen[bytes] | None = None
        if vdevs is not None or parents is not None:
            self._define(vdevs or {}, parents or {})
        if models:
            self._install(models)

    def _define(
        self, vdevs: Mapping[str, Mapping[str, Any]], parents: Mapping[str, Mapping[str, Any]]
    ) -> None:
        document = {
            "control": self.control.name,
            "parents": {name: dict(keys) for name, keys in parents.items()},
            "vdevs": {name: {"socket": f"{name}.sock", **keys} for name, keys in vdevs.items()},
        }
        self.definition.write_text(yaml.safe_dump(document, sort_keys=False))
        self._arguments.insert(0, str(self.definition))

    def _install(self, models: Mapping[str, str]) -> None:
        package = self._site / "vdcm_testing_models-1.dist-info"
        package.mkdir(parents=True)
        (package / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: vdcm-testing-models\nVersion: 1\n"
        )
        lines = [f"{name} = {where}\n" for name, where in models.items()]
        (package / "entry_points.txt").write_text(f"[{GROUP}]\n{''.join(lines)}")

    @property
    def _site(self) -> Path:
        return self.folder / "site"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # Its life.

    def start(self) -> None:
        """Start it and wait until it says that it is ready; ServerError if it does not."""
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel,
            self.log_file.open("a") as log,
        ):
            channel.bind(str(ready))
            self._process = subprocess.Popen(
                # A run that is killed must not leave servers behind.
                [*("setpriv", "--pdeathsig", "KILL", "--"), *self._serve()],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(self._site), *sys.path]),
                    "XDG_RUNTIME_DIR": str(self.folder),
                    "NOTIFY_SOCKET": str(ready),
                },
                start_new_session=True,  # Ctrl-C is for whoever started it, who then stops it
            )
            said = self._hear(channel)
        ready.unlink()
        if said != _READY:
            self.kill()
            raise ServerError(f"the server did not start\n{self.log_tail()}")

    def _serve(self) -> list[str]:
        command = [sys.executable, "-m", "vdcm.testing", "serve", "--log-level", "info"]
        return [*command, "--control", str(self.control), *self._arguments]

    def _hear(self, channel: socket.socket) -> bytes:
        """What it says first; nothing if it ends before, or says nothing."""
        channel.settimeout(0.1)
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline and self.running:
            try:
                return channel.recv(100)
            except TimeoutError:
                pass
        return b""

    def stop(self) -> None:
        """SIGTERM, if it runs; ServerError unless it ends well and leaves no socket behind."""
        if self._process is None:
            return
        status = self.end()
        left = sorted(path.name for path in self.folder.glob("*.sock"))
        if status or left:
            raise ServerError(f"the server ended with {status}, left {left}\n{self.log_tail()}")

    def kill(self) -> None:
        """SIGKILL, if it runs: nothing is cleaned up, as when it had crashed."""
        if self._process is not None:
            self.end(signal.SIGKILL)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it with a signal; its exit status."""
        self._running().send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Its exit status, once it has ended; ServerError if it does not."""
        process, self._process = self._running(), None
        try:
            return process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise ServerError(f"the server does not end\n{self.log_tail()}") from None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError("the server is not started")
        return self._process

    @property
    def running(self) -> bool:
        """It has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id; ServerError if it is not started."""
        return self._running().pid

    # What it serves.

    def socket(self, name: str) -> Path:
        """The socket of a VDEV of ``vdevs``."""
        return self.folder / f"{name}.sock"

    def connect(self, name: str, **arguments: Any) -> Client:
        """A client of a VDEV that is started; ``arguments`` are the Client's."""
        path = self.show(name)["socket"]
        return retry_while_busy(lambda: Client(path, **{"timeout": DEADLINE, **arguments}))

    def call(self, method: str, /, **params: Any) -> Any:
        """What its control socket answers (docs/control.md); ControlError if it refuses."""
        with ControlClient(self.control, DEADLINE) as client:
            return client.call(method, **params)

    def show(self, name: str) -> dict[str, Any]:
        """What ``vdcm show --json`` prints."""
        shown: dict[str, Any] = self.call("show", name=name)
        return shown

    def parents(self) -> list[dict[str, Any]]:
        """What ``vdcm parents --json`` prints."""
        found: list[dict[str, Any]] = self.call("parents")
        return found

    def set(self, name: str, **values: int | str) -> None:
        """What ``vdcm set`` does."""
        self.call("set", name=name, values=values)

    @contextmanager
    def record(self, name: str, file: Path | None = None) -> Iterator[Path]:
        """Start a VDEV anew, and record what is done to it within, as ``vdcm record`` does: in
        ``file``, which there is not yet, by default one in ``folder``. ControlError if that is
        refused, or the VDEV was stopped; ServerError for a record that is not whole.
        """
        path = (file or self.folder / f"{name}.rec").absolute()
        self.call("record", name=name, file=str(path))
        yield path
        made = self.call("record_end", name=name)
        if made["ended"] != "ended":
            raise ServerError(f"the record {path} has ended: {made['ended']}\n{self.log_tail()}")

    def faults(self, name: str) -> Faults:
        """Those of a VDEV that is started; they go when it is stopped."""

        def ask(method: str, **arguments: Any) -> Any:
            return self.call("inject", name=name, method=method, arguments=arguments)

        return Faults(ask)

    def command(self, name: str, *arguments: str) -> list[str]:
        """A command line of vdcm for the definition file."""
        return [sys.executable, "-m", "vdcm", name, str(self.definition), *arguments]

    def vdcm(self, *words: str) -> str:
        """What a command of vdcm prints that talks to the server; ServerError if it fails."""
        command = [sys.executable, "-m", "vdcm", *words, "--control", str(self.control)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DEADLINE, check=False
        )
        if done.returncode:
            raise ServerError(f"vdcm {' '.join(words)}: {done.stderr}\n{self.log_tail()}")
        return done.stdout

    # What it said.

    @property
    def log(self) -> str:
        """All that it logged, the trace of every VDEV included."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def log_tail(self, lines: int = 60) -> str:
        """The end of the log, with a heading."""
        return "\n".join([f"--- {self.log_file.name}", *self.log.splitlines()[-lines:]])

    def trace(self, name: str, since: int = 0) -> list[str]:
        """The lines of a VDEV's trace, from character ``since`` of the log on."""
        return re.findall(rf"vdcm\.trace\.{re.escape(name)}: (.*)", self.log[since:])

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait until the server is seen to have done something; ServerError if it does not."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            if not self.running:
                raise ServerError(f"the server has ended before: {what}\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ServerError(f"it never happened: {what}\n{self.log_tail()}")
            time.sleep(0.01)
