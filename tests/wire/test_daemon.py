"""``vdcm serve`` as a daemon: what is defined is there again, however it ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vdcm.client import Client
from vdcm.testing import Server


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as daemon:
        yield daemon


def states(daemon: Server) -> dict[str, str]:
    return {one["name"]: one["state"] for one in daemon.call("list")}


def card(daemon: Server, name: str, **more: Any) -> dict[str, Any]:
    socket = str(daemon.folder / f"{name}.sock")
    return {"type": "pcie-idio-16", "name": name, "socket": socket, **more}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_definitions_survive(daemon: Server, number: signal.Signals) -> None:
    wanted = [card(daemon, "a", auto=True, properties={"inputs": "0xff"}), card(daemon, "b")]
    defined = daemon.call("define", definitions=wanted)
    daemon.call("start", name="a")
    daemon.call("start", name="b")
    daemon.call("start", definition=card(daemon, "transient"))
    with Client(daemon.folder / "a.sock"):
        assert daemon.end(number) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        left = {path.name for path in daemon.folder.glob("*.sock")}
        assert left == (
            set()
            if number == signal.SIGTERM
            else {"a.sock", "b.sock", "transient.sock", "control.sock"}
        )
        daemon.start()
    assert states(daemon) == {"a": "ready", "b": "defined"}
    assert [one["uuid"] for one in daemon.call("list")] == sorted(one["uuid"] for one in defined)
    assert daemon.call("show", name="a")["properties"]["inputs"] == 0xFF
    daemon.call("start", name="b")  # where its socket was left behind
    with Client(daemon.folder / "b.sock") as client:
        assert client.config.read(0, 4) == 0x0DC8494F
    (daemon.folder / "transient.sock").unlink(missing_ok=True)  # of the killed one, and nobody's


def test_garbage_in_the_state_folder_is_named(daemon: Server) -> None:
    (good, bad) = daemon.call(
        "define", definitions=[card(daemon, "a"), card(daemon, "b", auto=True)]
    )
    daemon.end(signal.SIGKILL)
    file = daemon.folder / "state" / f"{bad['uuid']}.json"
    file.write_bytes(file.read_bytes()[:40])
    daemon.start()
    assert [one["uuid"] for one in daemon.call("list")] == [good["uuid"]]
    assert f"{file}: this definition is left out: it is not JSON" in daemon.log


def test_a_signal_does_not_cut_a_shutdown_short(daemon: Server) -> None:
    """A service manager's stop command is followed by SIGTERM."""
    wanted = [card(daemon, f"v{i}", auto=True) for i in range(50)]
    daemon.call("define", definitions=wanted)
    for i in range(50):
        daemon.call("start", name=f"v{i}")
    daemon.call("shutdown")
    assert daemon.end(signal.SIGTERM) == 0
    assert list(daemon.folder.glob("*.sock")) == []


def test_shutdown_ends_it(daemon: Server) -> None:
    daemon.call("define", definitions=[card(daemon, "a", auto=True)])
    daemon.call("start", name="a")
    assert daemon.call("shutdown") is True
    assert daemon.wait() == 0
    assert list(daemon.folder.glob("*.sock")) == []
