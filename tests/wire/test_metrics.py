"""``vdcm serve --metrics``: a scrape of a server at work, and clients that do not behave."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from dsa_client import MOVE, DsaClient
from prometheus_client.parser import text_string_to_metric_families

from vdcm.client import Client
from vdcm.metrics.server import CLIENT_LIMIT
from vdcm.testing import Server

DEADLINE = 30


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("VDCM_METRICS", "0")
    vdevs = {
        "card": {"type": "pcie-idio-16"},
        "work": {"type": "dsa-1dwq", "parent": "dsa0", "portals": "direct"},
    }
    with Server(tmp_path, vdevs, {"dsa0": {"model": "dsa"}}, trace=False) as server:
        yield server


def port(server: Server) -> int:
    found = re.search(r"metrics on http://127\.0\.0\.1:(\d+)/metrics", server.log)
    assert found is not None, server.log
    return int(found[1])


def ask(server: Server, method: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port(server), timeout=DEADLINE)
    connection.request(method, path)
    answer = connection.getresponse()
    assert int(answer.headers["Content-Length"]) > 0
    body = answer.read()
    connection.close()
    return answer.status, body


def samples(server: Server) -> dict[tuple[str, ...], float]:
    """By name and values of labels, in the order of their names."""
    status, body = ask(server, "GET", "/metrics")
    assert status == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_a_scrape_has_what_clients_did(server: Server) -> None:
    before = samples(server)
    with (
        Client(server.folder / "card.sock") as card,
        DsaClient(server.folder / "work.sock") as dsa,
    ):
        for _ in range(100):
            card.config.read(0, 4)
        dsa.start()
        source, target = dsa.memory.take(4096), dsa.memory.take(4096)
        for _ in range(10):
            assert dsa.run(0, MOVE, source=source, destination=target, size=4096).status == 1
        after = samples(server)
    name = "vdcm_vdev_reads_total"
    assert after[name, "card"] - before[name, "card"] == 100
    assert after["vdcm_vdev_read_seconds_count", "card"] == 100
    assert after["vdcm_vdev_read_seconds_bucket", "+Inf", "card"] == 100
    assert 0 < after["vdcm_vdev_read_seconds_sum", "card"] < DEADLINE
    assert after["vdcm_vdev_attached", "work"] == 1 and before["vdcm_vdev_attached", "work"] == 0
    assert after["vdcm_adi_units_total", "0", "work"] >= 40960
    assert after["vdcm_direct_dma_read_bytes_total", "work"] >= 40960
    assert after["vdcm_adi_model", "0", "succeeded", "work"] == 10
    assert after["vdcm_sweep_cpu_seconds_total", "dsa0", "0"] > 0
    assert after["vdcm_vdevs", "attached"] == 2
    counters = {key for key in before if key[0].endswith("_total")}
    assert all(after[key] >= before[key] for key in counters)


def test_what_is_not_asked_for_as_it_should_be(server: Server) -> None:
    assert ask(server, "GET", "/metrics?name=x")[0] == 200
    assert ask(server, "HEAD", "/metrics") == (200, b"")
    assert ask(server, "GET", "/")[0] == 404
    assert ask(server, "POST", "/metrics")[0] == 405


@pytest.mark.parametrize(
    "said",
    [
        b"\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"GET /metrics SPDY/3\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00" * 100 + b"\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"GET /" + b"x" * 100_000,
    ],
)
def test_what_is_no_request_gets_no_answer(server: Server, said: bytes) -> None:
    with (
        socket.create_connection(("127.0.0.1", port(server)), DEADLINE) as client,
        suppress(ConnectionError),
    ):
        client.sendall(said)
        assert client.recv(1) == b""
    assert "Traceback" not in server.log
    assert samples(server)


def test_clients_that_say_nothing_are_few_and_keep_nobody_waiting(server: Server) -> None:
    where = ("127.0.0.1", port(server))
    silent = [socket.create_connection(where, DEADLINE) for _ in range(CLIENT_LIMIT)]
    with socket.create_connection(where, DEADLINE) as one_more, suppress(ConnectionError):
        assert one_more.recv(1) == b""
    with Client(server.folder / "card.sock") as card:
        assert card.config.read(0, 4) == 0x0DC8494F
    for client in silent:
        client.close()
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            assert samples(server)
            break
        except (ConnectionError, http.client.HTTPException):
            assert time.monotonic() < deadline, "the places of those that have gone stay taken"


def test_it_ends_though_somebody_is_asking(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", port(server)), DEADLINE):
        assert server.end() == 0


def test_accesses_are_served_during_scrapes(server: Server) -> None:
    """Both at once; how long they take is for tests/bench/observe.py."""
    over = threading.Event()
    counted: list[dict[tuple[str, ...], float]] = []

    def scrapes() -> None:
        while not over.is_set():
            counted.append(samples(server))

    thread = threading.Thread(target=scrapes)
    thread.start()
    with Client(server.folder / "card.sock") as card:
        for _ in range(2000):
            assert card.config.read(0, 4) == 0x0DC8494F
    over.set()
    thread.join()
    assert samples(server)["vdcm_vdev_reads_total", "card"] == 2000
    reads = [one["vdcm_vdev_reads_total", "card"] for one in counted]
    assert reads == sorted(reads) and len(reads) > 1


def serve(tmp_path: Path, address: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vdcm", "serve", "--metrics", address]
    places = ["--state", str(tmp_path / "state"), "--control", str(tmp_path / "c.sock")]
    return subprocess.run(
        [*command, *places], capture_output=True, text=True, timeout=DEADLINE, check=False
    )


def test_a_bad_port_and_one_that_is_taken(tmp_path: Path) -> None:
    done = serve(tmp_path, "99999")
    assert done.returncode == 2 and "--metrics 99999: it is [HOST:]PORT" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        done = serve(tmp_path, str(number))
    assert done.returncode == 1
    assert f"vdcm: metrics: cannot listen on 127.0.0.1 port {number}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.sock"))


def test_without_the_option_nobody_listens(tmp_path: Path) -> None:
    with Server(tmp_path, {"card": {"type": "pcie-idio-16"}}, trace=False) as server:
        assert "metrics" not in server.log
