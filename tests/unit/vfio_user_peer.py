"""A vfio-user server of one thread that answers by script: what the client tests talk to."""

from __future__ import annotations

import array
import mmap
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdcm import protocol
from vdcm.protocol import Command, Header, MessageFlags, RegionFlags

PAGE = mmap.PAGESIZE


class Refusal(Exception):
    """Raised by a script: the reply is this errno."""


@dataclass
class Request:
    """What the client sent; a script closes or keeps the descriptors."""

    payload: bytes
    fds: list[int]


Script = Callable[[Request], bytes | None]


def refuse_with(error: int) -> Script:
    def refuse(request: Request) -> bytes:
        for fd in request.fds:
            os.close(fd)
        raise Refusal(error)

    return refuse


class Peer:
    """A device of one thread: 4 regions, region 0 is ``memory``, region 7 the config space.

    ``script`` replaces the answer to a command: it returns the reply's payload, or
    None to send nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.capabilities: dict[str, Any] = {"max_msg_fds": 2, "max_data_xfer_size": 64}
        self.version = (0, 1)
        self.memory = bytearray(256)
        self.config = bytearray(4096)
        self.areas: list[tuple[int, int]] = []
        self.fd = -1
        self.fds_to_send: list[int] = []
        self.script: dict[int, Script] = {}
        self.defaults: dict[int, Script] = {
            Command.VERSION: self._version,
            Command.DEVICE_GET_INFO: lambda _: protocol.DEVICE_INFO.pack(16, 3, 8, 5),
            Command.DEVICE_GET_REGION_INFO: self._region_info,
            Command.DEVICE_GET_IRQ_INFO: self._irq_info,
            Command.DEVICE_SET_IRQS: self._keep,
            Command.DMA_MAP: self._keep,
            Command.REGION_READ: self._read,
            Command.REGION_WRITE: self._write,
        }
        self.log: list[tuple[Header, bytes, int]] = []
        self.kept_fds: list[int] = []
        self.connection: socket.socket | None = None
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(os.fspath(path))
        self.listener.listen(1)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def commands(self) -> list[int]:
        return [header.command for header, _, _ in self.log]

    def hang_up(self) -> None:
        with suppress(OSError):  # the client may have been first
            if self.connection is not None:
                self.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        self.thread.join(5)
        self.listener.close()
        for fd in self.kept_fds:
            os.close(fd)
        if self.fd >= 0:
            os.close(self.fd)

    def receive(self, size: int, fds: list[int]) -> bytes:
        assert self.connection is not None
        data = b""
        while len(data) < size:
            part, more, _, _ = socket.recv_fds(self.connection, size - len(data), 16)
            fds.extend(more)
            if not part:
                raise EOFError
            data += part
        return data

    def send(self, data: bytes, fds: list[int] | None = None) -> None:
        assert self.connection is not None
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.connection.sendmsg([data], rights)

    def request(self, command: int, payload: bytes, flags: int = 0) -> tuple[Header, bytes]:
        """Ask the client for something in the middle of its own call."""
        self.send(protocol.message(command, payload, 0x7777, flags))
        header = Header.parse(self.receive(16, []))
        return header, self.receive(header.size - 16, [])

    def _serve(self) -> None:
        while True:
            try:
                self.connection, _ = self.listener.accept()
            except OSError:
                return
            with self.connection:
                try:
                    while True:
                        self._step()
                except (EOFError, OSError):
                    pass

    def _step(self) -> None:
        fds: list[int] = []
        header = Header.parse(self.receive(16, fds))
        payload = self.receive(header.size - 16, fds)
        self.log.append((header, payload, len(fds)))
        self.fds_to_send = []
        flags, error = MessageFlags.REPLY, 0
        try:
            default = self.defaults.get(header.command)
            answer = self.script.get(header.command, default)
            reply = answer(Request(payload, fds)) if answer else b""
        except Refusal as refusal:
            flags, error, reply = flags | MessageFlags.ERROR, refusal.args[0], b""
        if reply is not None and header.wants_reply:
            self.send(
                protocol.message(header.command, reply, header.message_id, flags, error),
                self.fds_to_send,
            )

    def _version(self, _: Request) -> bytes:
        return protocol.pack_version(self.capabilities, *self.version)

    def _region_info(self, request: Request) -> bytes:
        argsz, _, index, *_ = protocol.REGION_INFO.unpack(request.payload)
        if index != 0 or self.fd < 0:
            size = {0: len(self.memory), 7: len(self.config)}.get(index, 0)
            return protocol.REGION_INFO.pack(32, 3, index, 0, size, 0)
        chain = protocol.pack_sparse_areas(self.areas)
        size = os.fstat(self.fd).st_size - PAGE
        flags = RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP
        if 32 + len(chain) > argsz:
            return protocol.REGION_INFO.pack(32 + len(chain), flags, 0, 0, size, PAGE)
        self.fds_to_send = [self.fd]
        flags |= RegionFlags.CAPS
        return protocol.REGION_INFO.pack(32 + len(chain), flags, 0, 32, size, PAGE) + chain

    def _irq_info(self, request: Request) -> bytes:
        index = protocol.IRQ_INFO.unpack(request.payload)[2]
        return protocol.IRQ_INFO.pack(16, 1, index, (1, 1, 5, 1, 1)[index])

    def _keep(self, request: Request) -> bytes:
        self.kept_fds.extend(request.fds)
        return b""

    def _read(self, request: Request) -> bytes:
        offset, region, count = protocol.REGION_ACCESS.unpack(request.payload)
        return (
            request.payload + (self.config if region == 7 else self.memory)[offset : offset + count]
        )

    def _write(self, request: Request) -> bytes:
        offset, region, count = protocol.REGION_ACCESS.unpack_from(request.payload)
        (self.config if region == 7 else self.memory)[offset : offset + count] = request.payload[
            16:
        ]
        return request.payload[:16]


def open_fds() -> int:
    """How many descriptors this process, client and peer together, has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def soon(condition: Callable[[], bool]) -> bool:
    """Whether the condition comes true; the peer's thread may need a moment."""
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()
