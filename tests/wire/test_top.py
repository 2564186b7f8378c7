"""``vdcm top``: once, as JSON, and live on a terminal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pexpect
import pytest
from dsa_client import MOVE, DsaClient

from vdcm.client import Client
from vdcm.testing import Server

TOP = [sys.executable, "-m", "vdcm", "top", "--interval", "0.3"]
DEADLINE = 30


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    vdevs = {
        "card": {"type": "pcie-idio-16"},
        "work": {"type": "dsa-1dwq", "parent": "dsa0", "portals": "direct"},
    }
    with Server(tmp_path, vdevs, {"dsa0": {"model": "dsa"}}, trace=False) as server:
        yield server


@contextmanager
def again_and_again(act: Callable[[], Any]) -> Iterator[None]:
    """In a thread."""
    over = threading.Event()

    def loop() -> None:
        while not over.is_set():
            act()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def run(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    command = [*TOP, "--control", str(server.control), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)


def measured(server: Server) -> dict[str, Any]:
    done = run(server, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "vdevs": {one["name"]: one for one in found["vdevs"]}}


def test_json_of_both_paths(server: Server) -> None:
    idle = measured(server)
    assert list(idle["vdevs"]) == ["card", "work"]
    assert not any(one["reads_per_s"] for one in idle["vdevs"].values())
    with (
        Client(server.folder / "card.sock") as card,
        DsaClient(server.folder / "work.sock") as dsa,
    ):
        dsa.start()
        source, target = dsa.memory.take(4096), dsa.memory.take(4096)
        with (
            again_and_again(lambda: card.config.read(0, 4)),
            again_and_again(lambda: dsa.run(0, MOVE, source=source, destination=target, size=4096)),
        ):
            busy = measured(server)
    card_now, work = busy["vdevs"]["card"], busy["vdevs"]["work"]
    assert (card_now["state"], work["state"]) == ("attached", "attached")
    assert card_now["reads_per_s"] > 0 and card_now["message_p50_ns"] > 0
    assert 0 < card_now["message_share"] <= 1 and 0 < work["turn_share"] <= 1
    assert work["units_per_s"] > 0 and work["turn_p99_ns"] >= work["turn_p50_ns"] > 0
    assert work["dma_read_bytes_per_s"] >= 4096
    assert work["dma_written_bytes_per_s"] > work["dma_read_bytes_per_s"], "completion records too"
    (adi,) = work["adis"]
    assert adi["state"] == "enabled" and adi["units_per_s"] > 0
    assert busy["sweeps"]["dsa0/0"] > 0
    assert work["errors"] == 0


def test_a_table_once(server: Server) -> None:
    done = run(server, "--once", "--sort", "errors", "--no-adis")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("2 VDEVs, 0 with a client")
    assert "sweeps dsa0/0" in lines[1]
    assert lines[2].split()[:3] == ["VDEV", "STATE", "READ/s"]
    assert [line.split()[0] for line in lines[3:]] == ["card", "work"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "this is no terminal: --once"),
        (["--once", "--sort", "colour"], 2, "--sort colour: it is one of name, reads_per_s"),
        (["--once", "--interval", "0"], 2, "it is 0.1 to 3600 s"),
        (["--once", "--control", "/nonexistent/c.sock"], 1, "start one with vdcm serve"),
    ],
)
def test_what_it_refuses(server: Server, words: list[str], code: int, says: str) -> None:
    done = run(server, *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in " ".join(done.stderr.split())


@contextmanager
def live(server: Server, rows: int = 24, columns: int = 120) -> Iterator[Any]:
    """On a terminal, which has to be as it was afterwards."""
    child = pexpect.spawn(
        TOP[0],
        [*TOP[1:], "--control", str(server.control)],
        dimensions=(rows, columns),
        timeout=DEADLINE,
        encoding="utf-8",
        env={"TERM": "xterm", "LANG": "C.UTF-8"},
    )
    child.logfile_read = shown = StringIO()
    before = termios.tcgetattr(child.child_fd)
    try:
        yield child
        child.expect(pexpect.EOF)
        assert "\x1b[?1049l" in shown.getvalue(), "the screen is not as it was"
        child.wait()
        assert termios.tcgetattr(child.child_fd) == before
    finally:
        child.close(force=True)


@pytest.mark.parametrize(("key", "code"), [("q", 0), ("\x03", 0)])
def test_live_until_a_key(server: Server, key: str, code: int) -> None:
    with live(server) as child:
        child.expect("2 VDEVs, 0 with a client")
        child.expect("card .*work .*dsa0/dwq0")
        with Client(server.folder / "card.sock"):
            child.expect("2 VDEVs, 1 with a client")
            child.expect("card +attached")
        child.send(">")
        child.expect("READ/s▼")
        child.send("r")
        child.expect("READ/s▲")
        child.send("<a")
        child.expect("VDEV▲")
        child.send(key)
    assert child.exitstatus == code


def test_live_on_a_terminal_that_shrinks(server: Server) -> None:
    with live(server) as child:
        child.expect("ERRORS")
        child.setwinsize(6, 30)
        child.expect("card +\\w+ [^\n]*\n")
        child.setwinsize(1, 1)
        child.setwinsize(40, 200)
        child.expect("TURN/s")
        child.send("q")
    assert child.exitstatus == 0


def test_live_until_the_server_goes(server: Server) -> None:
    with live(server) as child:
        child.expect("2 VDEVs")
        server.end(signal.SIGKILL)
        child.expect("vdcm: .*the server has gone")
    assert child.exitstatus == 1


def test_live_until_it_is_told_to_end(server: Server) -> None:
    with live(server) as child:
        child.expect("2 VDEVs")
        child.kill(signal.SIGTERM)
    assert child.exitstatus == 128 + signal.SIGTERM
