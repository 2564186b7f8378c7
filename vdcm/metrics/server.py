"""HTTP on the event loop, as little of it as a scrape needs."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from http import HTTPStatus
from typing import Final, Self

from vdcm.errors import TransportError, VdcmError
from vdcm.manager import Manager
from vdcm.metrics.text import scrape

log = logging.getLogger("vdcm.metrics")

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
LOOPBACK: Final = "127.0.0.1"
LINE_LIMIT: Final = 8192
"""Bytes of a request's longest line."""
HEADER_LIMIT: Final = 100
PIECE: Final = 64 * 1024
"""Bytes that are sent at once."""
CLIENT_LIMIT: Final = 8
PATIENCE: Final = 10.0
"""Seconds that a client has to say what it wants, and then to read it."""


def parse_address(text: str) -> tuple[str, int]:
    """``[HOST:]PORT``, an IPv6 address in brackets; VdcmError for anything else."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise VdcmError(f"{text}: an IPv6 address is written in brackets: [{host}]:{port}")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise VdcmError(f"{text}: it is [HOST:]PORT, the port 0 to 65535 (0: one that is free)")
    return host or LOOPBACK, int(port)


class MetricsServer:
    """Answers ``GET /metrics`` for a ``Manager``; an asynchronous context manager."""

    def __init__(self, manager: Manager, host: str, port: int) -> None:
        self._manager = manager
        self._host = host
        self._port = port
        self._clients: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Listen. TransportError if the address cannot be had."""
        try:
            self._server = await asyncio.start_server(
                self._connected, self._host, self._port, limit=LINE_LIMIT
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise TransportError(
                f"metrics: cannot listen on {self._host} port {self._port}: {reason}: choose "
                "another with --metrics [HOST:]PORT"
            ) from error
        for host, port in self.addresses:
            log.info("metrics on http://%s:%d/metrics", f"[{host}]" if ":" in host else host, port)
            if not ipaddress.ip_address(host).is_loopback:
                log.warning("metrics are there for everybody who reaches %s", host)
        return self

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens."""
        sockets = self._server.sockets if self._server is not None else ()
        return [one.getsockname()[:2] for one in sockets]

    async def __aexit__(self, *_error: object) -> None:
        if self._server is None:
            return
        self._server.close()
        for client in tuple(self._clients):
            client.cancel()
        if self._clients:
            await asyncio.wait(self._clients)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= CLIENT_LIMIT:
            log.warning("metrics: refused a client: there are %d already", CLIENT_LIMIT)
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                method, path = await _request(reader)
            status, content, body = await self._answer(method, path)
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content}\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            writer.write(head.encode())
            async with asyncio.timeout(PATIENCE):
                for at in range(0, 0 if method == "HEAD" else len(body), PIECE):
                    writer.write(body[at : at + PIECE])
                    await writer.drain()
                writer.close()
                await writer.wait_closed()
        except _ITS_OWN_FAULT:
            pass  # it gets nothing
        except Exception:
            log.exception("metrics: a scrape failed")
        finally:
            writer.transport.abort()

    async def _answer(self, method: str, path: str) -> tuple[HTTPStatus, str, bytes]:
        plain = "text/plain; charset=utf-8"
        if method not in ("GET", "HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, plain, b"GET /metrics\n"
        if path.partition("?")[0] != "/metrics":
            return HTTPStatus.NOT_FOUND, plain, b"GET /metrics\n"
        async with self._turn:  # together they would only take longer
            return HTTPStatus.OK, TEXT, await scrape(self._manager)


_ITS_OWN_FAULT: Final = (
    TimeoutError,  # it is too slow
    ConnectionError,  # it has gone
    asyncio.IncompleteReadError,
    asyncio.LimitOverrunError,  # it speaks something else
    ValueError,
)


async def _request(reader: asyncio.StreamReader) -> tuple[str, str]:
    """Method and path; ValueError for what is no request (RFC 9112, 3)."""
    method, path, protocol = (await reader.readuntil(b"\n")).decode("ascii").split()
    if not protocol.startswith("HTTP/1."):
        raise ValueError(protocol)
    for _ in range(HEADER_LIMIT):
        if not (await reader.readuntil(b"\n")).strip():
            return method, path
    raise ValueError("too many headers")
