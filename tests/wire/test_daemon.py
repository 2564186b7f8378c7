"""``vdcm serve`` as a daemon: what is defined is there again, however it ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vdcm.client import Client
from vdcm.control import ControlClient
from vdcm.errors import ControlError

DEADLINE = 30.0


class Daemon:
    """A process that is started, killed and started again; its files are in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "vdcm", "serve"),
                    *("--state", str(self.folder / "state"), "--control", str(self.folder / "c")),
                ],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                self("list")
                return
            except ControlError:
                assert self._process.poll() is None and time.monotonic() < deadline, self.said
                time.sleep(0.02)

    def __call__(self, method: str, **params: Any) -> Any:
        """Ask it."""
        with ControlClient(self.folder / "c") as client:
            return client.call(method, **params)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Its exit code, when it has ended by itself."""
        assert self._process is not None
        return self._process.wait(DEADLINE)

    @property
    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    daemon.start()
    yield daemon
    daemon.end(signal.SIGKILL)


def states(daemon: Daemon) -> dict[str, str]:
    return {one["name"]: one["state"] for one in daemon("list")}


def card(daemon: Daemon, name: str, **more: Any) -> dict[str, Any]:
    socket = str(daemon.folder / f"{name}.sock")
    return {"type": "pcie-idio-16", "name": name, "socket": socket, **more}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_definitions_survive(daemon: Daemon, number: signal.Signals) -> None:
    wanted = [card(daemon, "a", auto=True, properties={"inputs": "0xff"}), card(daemon, "b")]
    defined = daemon("define", definitions=wanted)
    daemon("start", name="a")
    daemon("start", name="b")
    daemon("start", definition=card(daemon, "transient"))
    with Client(daemon.folder / "a.sock"):
        assert daemon.end(number) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        left = {path.name for path in daemon.folder.glob("*.sock")}
        assert left == (
            set() if number == signal.SIGTERM else {"a.sock", "b.sock", "transient.sock"}
        )
        daemon.start()
    assert states(daemon) == {"a": "ready", "b": "defined"}
    assert [one["uuid"] for one in daemon("list")] == sorted(one["uuid"] for one in defined)
    assert daemon("show", name="a")["properties"]["inputs"] == 0xFF
    daemon("start", name="b")  # where its socket was left behind
    with Client(daemon.folder / "b.sock") as client:
        assert client.config.read(0, 4) == 0x0DC8494F


def test_garbage_in_the_state_folder_is_named(daemon: Daemon) -> None:
    (good, bad) = daemon("define", definitions=[card(daemon, "a"), card(daemon, "b", auto=True)])
    daemon.end(signal.SIGKILL)
    file = daemon.folder / "state" / f"{bad['uuid']}.json"
    file.write_bytes(file.read_bytes()[:40])
    daemon.start()
    assert [one["uuid"] for one in daemon("list")] == [good["uuid"]]
    assert f"{file}: this definition is left out: it is not JSON" in daemon.said


def test_a_signal_does_not_cut_a_shutdown_short(daemon: Daemon) -> None:
    """A service manager's stop command is followed by SIGTERM."""
    wanted = [card(daemon, f"v{i}", auto=True) for i in range(50)]
    daemon("define", definitions=wanted)
    for i in range(50):
        daemon("start", name=f"v{i}")
    daemon("shutdown")
    assert daemon.end(signal.SIGTERM) == 0
    assert list(daemon.folder.glob("*.sock")) == []


def test_shutdown_ends_it(daemon: Daemon) -> None:
    daemon("define", definitions=[card(daemon, "a", auto=True)])
    daemon("start", name="a")
    assert daemon("shutdown") is True
    assert daemon.wait() == 0
    assert list(daemon.folder.glob("*.sock")) == []
