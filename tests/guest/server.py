"""A ``vdcm serve`` process with its trace: started, asked, killed, started again.

The definition file and the sockets live in one folder; so does an installed package that consists
of nothing but metadata, by whose entry point vdcm finds the model of ``showcase.py``.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from vdcm.control import ControlClient
from vdcm.parent import GROUP

ROOT = Path(__file__).parents[2]
DEADLINE = 20.0  # seconds; a limit, not an expectation
_METADATA = {
    "METADATA": "Metadata-Version: 2.1\nName: vdcm-showcase\nVersion: 1\n",
    "entry_points.txt": f"[{GROUP}]\nshowcase = tests.guest.showcase:ShowcaseParent\n",
}


class ServerError(Exception):
    """The server did not do what it should; the message ends with the tail of its log."""


class Server:
    """Serves ``vdevs`` (name to the keys of its entry in a definition file) from ``folder``;
    ``parents`` likewise, those that are not there by themselves."""

    def __init__(
        self,
        folder: Path,
        vdevs: Mapping[str, Mapping[str, Any]],
        parents: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        trace: bool = True,
    ) -> None:
        self.folder = folder
        self._trace = ["--trace"] if trace else []
        self.log_file = folder / "server.log"
        self.definition = folder / "vdevs.yaml"
        package = folder / "site" / "vdcm_showcase-1.dist-info"
        package.mkdir(parents=True)
        for name, text in _METADATA.items():
            (package / name).write_text(text)
        document = {
            "control": self.control.name,
            "parents": parents or {},
            "vdevs": {name: {**keys, "socket": f"{name}.sock"} for name, keys in vdevs.items()},
        }
        self.definition.write_text(yaml.safe_dump(document, sort_keys=False))
        self._process: subprocess.Popen[str] | None = None

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

    @property
    def control(self) -> Path:
        """Its control socket."""
        return self.folder / "control.sock"

    @property
    def running(self) -> bool:
        """It has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id; ServerError if it does not run."""
        if self._process is None:
            raise ServerError("the server is not started")
        return self._process.pid

    def socket(self, name: str) -> Path:
        """The socket of a VDEV."""
        return self.folder / f"{name}.sock"

    def start(self) -> None:
        """Start it and wait until it serves; ServerError if it does not."""
        environment = {
            **os.environ,
            "PYTHONPATH": f"{self.folder / 'site'}:{ROOT}",
            "PYTHONUNBUFFERED": "1",
        }
        serve = self.command("serve", *self._trace, "--state", str(self.folder / "state"))
        with self.log_file.open("a") as log:
            self._process = subprocess.Popen(
                # A run that is killed must not leave servers behind.
                ["setpriv", "--pdeathsig", "KILL", "--", *serve],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C is for whoever started it, who then stops it
            )
        assert self._process.stdout is not None  # it is a pipe
        output = ""
        deadline = time.monotonic() + DEADLINE
        while "qemu-args" not in output:  # the last line that it prints when it serves
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._process.stdout], [], [], left)
            line = os.read(self._process.stdout.fileno(), 65536).decode() if ready else ""
            if not line:
                self.kill()
                raise ServerError(f"the server did not start: {output}\n{self.log_tail()}")
            output += line

    def command(self, name: str, *arguments: str) -> list[str]:
        """A command line of vdcm for the definition file."""
        return [sys.executable, "-m", "vdcm", name, str(self.definition), *arguments]

    def stop(self) -> None:
        """SIGTERM, if it runs; ServerError unless it ends well and leaves no socket behind."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise ServerError(f"the server ignores SIGTERM\n{self.log_tail()}") from None
        finally:
            if process.stdout is not None:
                process.stdout.close()
        left = [path.name for path in self.folder.glob("*.sock")]
        if status or left:
            raise ServerError(f"the server ended with {status}, left {left}\n{self.log_tail()}")

    def kill(self) -> None:
        """SIGKILL: nothing is cleaned up."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def vdcm(self, *words: str) -> str:
        """What a command of vdcm prints that talks to the server; ServerError if it fails."""
        command = [sys.executable, "-m", "vdcm", *words, "--control", str(self.control)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DEADLINE, cwd=ROOT, check=False
        )
        if done.returncode:
            raise ServerError(f"vdcm {' '.join(words)}: {done.stderr}\n{self.log_tail()}")
        return done.stdout

    def show(self, name: str) -> dict[str, Any]:
        """What ``vdcm show --json`` prints."""
        with ControlClient(self.control) as client:
            shown: dict[str, Any] = client.call("show", name=name)
        return shown

    def parents(self) -> list[dict[str, Any]]:
        """What ``vdcm parents --json`` prints."""
        with ControlClient(self.control) as client:
            found: list[dict[str, Any]] = client.call("parents")
        return found

    def set(self, name: str, **values: int | str) -> None:
        """What ``vdcm set`` does."""
        with ControlClient(self.control) as client:
            client.call("set", name=name, values=values)

    @property
    def log(self) -> str:
        """All that it logged, the trace of every VDEV included."""
        return self.log_file.read_text(errors="replace")

    def log_tail(self, lines: int = 60) -> str:
        """The end of the log, with a heading."""
        text = self.log if self.log_file.exists() else ""
        return "\n".join([f"--- {self.log_file.name}", *text.splitlines()[-lines:]])

    def trace(self, name: str, since: int = 0) -> list[str]:
        """The lines of a VDEV's trace, from character ``since`` of the log on."""
        return re.findall(rf"vdcm\.trace\.{name}: (.*)", self.log[since:])

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait until the server is seen to have done something; ServerError if it does not."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            if not self.running:
                raise ServerError(f"the server has ended before: {what}\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ServerError(f"it never happened: {what}\n{self.log_tail()}")
            time.sleep(0.01)
