"""A real server process for each test that asks for one; its log appears when the test fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from wire_server import Server


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


SERVERS = pytest.StashKey[list[Server]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.failed:
        for server in item.stash.get(SERVERS, []):
            report.sections.append(("server log", server.log))
    return report  # type: ignore[return-value]
