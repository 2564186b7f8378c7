"""A server for each test that asks for one: a process, whose log appears when the test fails, or a
thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from everything import Everything
from wire_server import Server

from vdcm.client import Client
from vdcm.testing import Host
from vdcm.vdev import VdevState


@pytest.fixture
def serve(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Server]]:
    """``serve(count=2, patience=None)`` starts a server; it is ended and checked afterwards."""
    servers: list[Server] = []

    def start(count: int = 2, patience: float | None = None) -> Server:
        server = Server(tmp_path, count, patience)
        servers.append(server)
        request.node.stash.setdefault(SERVERS, servers)
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def vdev(host: Host) -> Everything:
    return host.serve(Everything, "all").vdev


@pytest.fixture
def client(host: Host, vdev: Everything) -> Iterator[Client]:
    """Of ``vdev``, where a module has none of its own."""
    assert vdev.state is VdevState.READY
    with host.connect("all") as client:
        yield client


SERVERS = pytest.StashKey[list[Server]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.failed:
        for server in item.stash.get(SERVERS, []):
            report.sections.append(("server log", server.log))
    return report  # type: ignore[return-value]
