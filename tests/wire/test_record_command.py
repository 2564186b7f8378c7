"""``vdcm record`` and ``vdcm replay`` on the command line: how a record ends, and what is left."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from vdcm.client import Client, Region
from vdcm.errors import ControlError
from vdcm.testing import DEADLINE, Server
from vdcm.testing.plugin import Running

VDCM: Final = [sys.executable, "-m", "vdcm"]
IDENTICAL, DIFFERS, UNUSABLE = 0, 1, 2
ROUNDS = 200
DIES = """
import os, signal, sys
from pathlib import Path
from vdcm.client import Client, Region
card = Client(Path(sys.argv[1]))
card.write(Region.BAR2, 0, 1, 0x21)
os.kill(os.getpid(), signal.SIGKILL)
"""
CHANGED = """
from vdcm.cli import main
from vdcm_devices.idio16.vdev import Idio16
Idio16.on_read_IN_LOW = lambda _: 0xF0
main()
"""


@pytest.fixture
def server(tmp_path: Path, vdcm_running: Running[Server]) -> Iterator[Server]:
    vdevs = {"card": {"type": "pcie-idio-16", "inputs": 0x0F}}
    with vdcm_running(Server(tmp_path / "server", vdevs, trace=False)) as server:
        yield server


class Recorder:
    """``vdcm record card FILE``, which has begun."""

    def __init__(self, server: Server, *options: str) -> None:
        self.file = server.folder / "card.rec"
        command = [*VDCM, "record", "card", str(self.file), *options]
        self._process = subprocess.Popen(
            [*command, "--control", str(server.control)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        first = self._process.stderr.readline()
        assert first == "recording card: attach a guest now; Ctrl-C ends the record\n", first

    def ended(self, number: signal.Signals | None = None) -> tuple[int, str]:
        """Exit code and what it said, once it has ended, by a signal or by itself."""
        if number is not None:
            self._process.send_signal(number)
        output, errors = self._process.communicate(timeout=DEADLINE)
        return self._process.returncode, output + errors


@pytest.fixture
def record(server: Server) -> Callable[..., Recorder]:
    return lambda *options: Recorder(server, *options)


def use(server: Server, rounds: int = ROUNDS) -> None:
    with Client(server.socket("card"), wait=5.0) as card:
        for value in range(rounds):
            card.write(Region.BAR2, 0, 1, value & 0xFF)
            assert card.read(Region.BAR2, 0, 1) == value & 0xFF


def replay(file: Path, *options: str) -> tuple[int, str]:
    """Exit code and what it said."""
    done = subprocess.run(
        [*VDCM, "replay", *options, str(file)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def cut_short(file: Path) -> None:
    """It is refused, with what there is of it, and that can be replayed."""
    code, said = replay(file)
    assert code == UNUSABLE
    assert f"vdcm: {file} is not whole: it ends at byte {file.stat().st_size}, " in said
    assert " records, " in said and " s, are good" in said
    code, said = replay(file, "--partial")
    assert (code, "does the same as it was recorded to do" in said) == (IDENTICAL, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it(
    server: Server, record: Callable[..., Recorder], number: signal.Signals
) -> None:
    recorder = record()
    use(server)
    code, said = recorder.ended(number)
    size = recorder.file.stat().st_size
    assert code == 0 and said.startswith(f"{recorder.file}: ") and f" {size} bytes" in said
    use(server, 1)  # it goes on, and is not recorded
    assert recorder.file.stat().st_size == size
    code, said = replay(recorder.file)
    assert code == IDENTICAL
    assert f"{ROUNDS} writes" in said and "card (pcie-idio-16) does the same" in said
    code, said = replay(recorder.file, "--json")
    assert code == IDENTICAL and json.loads(said)["counts"]["write"] == ROUNDS


def test_a_client_that_dies_is_recorded_and_so_is_the_next(
    server: Server, record: Callable[..., Recorder]
) -> None:
    recorder = record()
    command = [sys.executable, "-c", DIES, str(server.socket("card"))]
    assert subprocess.run(command, timeout=DEADLINE, check=False).returncode == -signal.SIGKILL
    use(server, 2)
    assert recorder.ended(signal.SIGINT)[0] == 0
    code, said = replay(recorder.file, "--json")
    counts = json.loads(said)["counts"]
    assert code == IDENTICAL and counts["attach"] == 2 and counts["write"] == 3


def test_another_one_after_it(server: Server, record: Callable[..., Recorder]) -> None:
    first = record()
    with pytest.raises(ControlError, match=f"card is being recorded into {first.file}: Ctrl-C"):
        server.call("record", name="card", file=str(server.folder / "new.rec"))
    use(server)
    assert first.ended(signal.SIGINT)[0] == 0
    server.wait_for("the client has gone", lambda: server.show("card")["state"] == "ready")
    first.file.rename(server.folder / "first.rec")
    second = record()
    use(server, 1)
    assert second.ended(signal.SIGINT)[0] == 0
    for file, rounds in ((server.folder / "first.rec", ROUNDS), (second.file, 1)):
        code, said = replay(file, "--json")
        assert (code, json.loads(said)["counts"]["write"]) == (IDENTICAL, rounds)


def test_it_ends_when_the_vdev_is_stopped(server: Server, record: Callable[..., Recorder]) -> None:
    recorder = record()
    use(server)
    server.call("stop", name="card")
    assert recorder.ended() == (0, "the record of card has ended: the VDEV was stopped\n")
    assert replay(recorder.file)[0] == IDENTICAL


def test_it_ends_when_the_file_is_as_large_as_it_may_be(
    server: Server, record: Callable[..., Recorder]
) -> None:
    recorder = record("--size", "4K")
    with Client(server.socket("card"), wait=5.0) as card:

        def written() -> bool:
            for value in os.urandom(500):
                card.write(Region.BAR2, 0, 1, value)
            return bool(server.call("recordings")[0]["ended"])

        server.wait_for("the record has ended", written)
    code, said = recorder.ended()
    assert code == 0 and said == "the record of card has ended: the file is as large as it may be\n"
    assert replay(recorder.file)[0] == IDENTICAL


def test_a_disk_that_is_full_costs_the_record_and_nothing_else(
    server: Server, record: Callable[..., Recorder]
) -> None:
    recorder = record()
    room = recorder.file.stat().st_size + 100
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (room, -1))
    use(server)
    code, said = recorder.ended()  # once what has been recorded is to be in the file
    assert code == 1
    assert f"{recorder.file} is not whole, the record has failed: " in said
    assert "File too large" in said and "vdcm replay --partial" in said
    assert recorder.file.stat().st_size == room
    use(server)
    cut_short(recorder.file)


def test_a_server_that_dies_leaves_what_it_had(
    server: Server, record: Callable[..., Recorder]
) -> None:
    recorder = record()
    begun = recorder.file.stat().st_size
    use(server)
    server.wait_for("it is in the file", lambda: recorder.file.stat().st_size > begun)
    server.kill()
    code, said = recorder.ended()
    assert code == 1 and "the server has gone" in said
    assert f"{recorder.file} is not whole: vdcm replay --partial uses what it has" in said
    cut_short(recorder.file)


def test_a_model_that_differs_has_its_own_exit_code(
    server: Server, record: Callable[..., Recorder]
) -> None:
    recorder = record()
    with Client(server.socket("card"), wait=5.0) as card:
        assert card.read(Region.BAR2, 1, 1) == 0x0F
    assert recorder.ended(signal.SIGINT)[0] == 0
    done = subprocess.run(
        [sys.executable, "-c", CHANGED, "replay", "--json", str(recorder.file)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == DIFFERS, done.stderr
    difference = json.loads(done.stdout)["difference"]
    assert difference["happened"] == "the guest reads BAR2+0x01 IN_LOW"
    assert (difference["recorded"], difference["now"]) == ("0xf", "0xf0")
