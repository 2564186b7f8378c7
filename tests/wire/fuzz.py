"""Throw mutated, truncated, split and interleaved messages at a running server.

    python fuzz.py ATTACKED.sock WATCHED.sock PID --count 200000 [--seed N] [--only INDEX]

ATTACKED and WATCHED are sockets of two VDEVs of the one process PID (server_main.py). After every
batch a well-behaved client of WATCHED, and a new one of ATTACKED, must still get right answers;
at the end the server must hold no more descriptors and memory than after its warm-up. ``--only``
replays a single connection.
"""

from __future__ import annotations

import argparse
import array
import mmap
import os
import random
import select
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fuzz_messages import FD_KINDS, FdKind, Generator, Script
from wire_registers import ID, Bar, Reg

from vdcm import protocol
from vdcm.client import Client, Irq
from vdcm.errors import ProtocolError, TransportError
from vdcm.protocol import Header

BATCH = 2000  # messages between two looks at the server
WARM_UP = 6000  # messages before its descriptors and memory are taken as its level
ANSWER_TIME = 20.0  # seconds after which a server is said to hang
RSS_SLACK = 24 << 20  # bytes; an allocator that does not give all back is no leak


class FuzzError(Exception):
    """The server did not stand it; the message names the connection to replay."""


@dataclass(frozen=True)
class Level:
    """What a process holds."""

    descriptors: int
    memory: int

    @classmethod
    def of(cls, pid: int) -> Level:
        process = Path(f"/proc/{pid}")
        pages = int((process / "statm").read_text().split()[1])
        return cls(sum(1 for _ in (process / "fd").iterdir()), pages * mmap.PAGESIZE)


@dataclass(frozen=True)
class Report:
    """What a run did."""

    seed: int
    connections: int
    messages: int
    answers: int
    seconds: float
    warm: Level
    end: Level

    def __str__(self) -> str:
        rate = self.messages / self.seconds
        return (
            f"seed {self.seed}: {self.messages} messages on {self.connections} connections,"
            f" {self.answers} answers, {rate:.0f} messages/s;"
            f" descriptors {self.warm.descriptors} -> {self.end.descriptors},"
            f" memory {self.warm.memory >> 10} -> {self.end.memory >> 10} KiB"
        )


@contextmanager
def descriptors() -> Iterator[dict[FdKind, int]]:
    """One descriptor of each kind, to send again and again."""
    memory, shrunk = os.memfd_create("fuzz"), os.memfd_create("shrunk")
    os.ftruncate(memory, 32 * mmap.PAGESIZE)
    # Long enough to be mapped by some messages; sparse, so that reading it costs nothing.
    os.ftruncate(shrunk, mmap.PAGESIZE // 2)
    reader, writer = os.pipe()
    file = os.open("/dev/null", os.O_RDWR)
    one, other = socket.socketpair()
    fds = (memory, shrunk, os.eventfd(0), reader, file, one.fileno())
    try:
        yield dict(zip(FD_KINDS, fds, strict=True))
    finally:
        one.close()
        other.close()
        for fd in (*fds[:-1], writer):
            os.close(fd)


class Attacker:
    """Plays scripts against one socket."""

    def __init__(self, path: str, fds: dict[FdKind, int]) -> None:
        self._path = path
        self._fds = fds
        self.answers = 0

    def play(self, script: Script) -> None:
        """One connection from hello to close. Raises FuzzError if the server hangs or babbles."""
        with self._connected(script) as connection:
            if connection is None:
                return  # the hello was refused, as it may be
            try:
                self._send_all(connection, script)
            except (BrokenPipeError, ConnectionResetError):
                return  # refused half-way, as it may be

    @contextmanager
    def _connected(self, script: Script) -> Iterator[socket.socket | None]:
        deadline = time.monotonic() + ANSWER_TIME
        while True:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(ANSWER_TIME)
            with connection:
                connection.connect(self._path)
                busy, accepted = self._greet(connection, script)
                if not busy:
                    connection.setblocking(False)
                    yield connection if accepted else None
                    return
            # The client before has gone, but the server has yet to notice.
            if time.monotonic() > deadline:
                raise FuzzError(f"{script.seed}: the server never let go of the client before")
            time.sleep(0.0005)

    def _greet(self, connection: socket.socket, script: Script) -> tuple[bool, bool]:
        """(another client is still connected, hello accepted)."""
        try:
            connection.sendall(script.hello)
            size = int.from_bytes(script.hello[4:8], "little")
            if size != len(script.hello):
                return False, False  # it lies about its size: an answer may never come
            reply = connection.recv(65536)
        except TimeoutError:
            raise FuzzError(f"{script.seed}: no answer to hello") from None
        except (BrokenPipeError, ConnectionResetError):
            return False, False
        if len(reply) < protocol.HEADER.size:
            return False, False
        header = Header.parse(reply)
        return header.error == 16, not header.is_error

    def _send_all(self, connection: socket.socket, script: Script) -> None:
        answers = bytearray()
        for piece in script.pieces:
            data = piece.data
            if piece.fds:
                rights = array.array("i", [self._fds[kind] for kind in piece.fds])
                control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                self._wait(connection, answers, script)
                sent = connection.sendmsg([data], control) if data else 0
                data = data[sent:]
            while data:
                try:
                    data = data[connection.send(data) :]
                except BlockingIOError:
                    self._wait(connection, answers, script)
            if script.read_answers:
                self._drain(connection, answers, script)
            if piece.pause:
                time.sleep(piece.pause)
        if script.orderly:
            self._finish(connection, answers, script)

    def _finish(self, connection: socket.socket, answers: bytearray, script: Script) -> None:
        """Have every message handled: nothing more comes, and the server has closed."""
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(ANSWER_TIME)
        try:
            while self._drain(connection, answers, script):
                pass
        except TimeoutError:
            raise FuzzError(f"{script.seed}: the server does not come to an end") from None

    def _wait(self, connection: socket.socket, answers: bytearray, script: Script) -> None:
        """Until there is room to send; answers are read meanwhile if the script reads any."""
        deadline = time.monotonic() + ANSWER_TIME
        poller = select.poll()
        poller.register(connection, select.POLLOUT | (select.POLLIN * script.read_answers))
        while True:
            events = poller.poll(1000)
            if script.read_answers:
                self._drain(connection, answers, script)
            if events and events[0][1] & ~select.POLLIN:
                return
            if time.monotonic() > deadline:
                raise FuzzError(f"{script.seed}: the server takes no more messages")

    def _drain(self, connection: socket.socket, answers: bytearray, script: Script) -> bool:
        """Read what there is and check that it is replies; False when the server has closed."""
        try:
            part = connection.recv(1 << 18)
        except BlockingIOError:
            return True
        answers += part
        at = 0
        while len(answers) - at >= protocol.HEADER.size:
            header = Header._make(protocol.HEADER.unpack_from(answers, at))
            if not header.is_reply or not 16 <= header.size <= 65536 + 64:
                raise FuzzError(f"{script.seed}: the server sent {header}, which is no reply")
            if len(answers) - at < header.size:
                break
            at += header.size
            self.answers += 1
        del answers[:at]
        return bool(part)


def check(path: str, client: Client | None = None) -> None:
    """A well-behaved client gets right answers; a new one of its own if none is given."""
    deadline = time.monotonic() + ANSWER_TIME
    while client is None:
        try:
            with Client(path, timeout=ANSWER_TIME) as new:
                check(path, new)
            return
        except ProtocolError as error:
            if error.errno != 16 or time.monotonic() > deadline:  # EBUSY: one is still leaving
                raise
            time.sleep(0.001)
    value = random.getrandbits(64)
    client.write(Bar.REGISTERS, Reg.SCRATCH, 8, value)
    got = client.read(Bar.REGISTERS, Reg.ID, 4), client.read(Bar.REGISTERS, Reg.SCRATCH, 8)
    if got != (ID, value):
        raise FuzzError(f"{path}: wrong answers: {got}, not {(ID, value)}")


def settled(pid: int, warm: Level) -> Level:
    """What the server holds once it has noticed that the last client has gone."""
    deadline = time.monotonic() + ANSWER_TIME
    while True:
        level = Level.of(pid)
        if level.descriptors <= warm.descriptors or time.monotonic() > deadline:
            return level
        time.sleep(0.05)


def run(
    attacked: str,
    watched: str,
    pid: int,
    count: int,
    seed: int,
    rss_slack: int = RSS_SLACK,
    only: int | None = None,
) -> Report:
    """Throw ``count`` messages. Raises FuzzError with the seed and connection if it fails."""
    generator = Generator(seed)
    if only is not None:
        scripts = iter([generator.script(only)])
        count = 1
    else:
        scripts = (generator.script(index) for index in range(sys.maxsize))
    begin = time.monotonic()
    sent = connections = 0
    warm: Level | None = None
    script = None
    with descriptors() as fds, Client(watched, timeout=ANSWER_TIME) as watcher:
        attacker = Attacker(attacked, fds)
        # What a process makes with its first interrupt, and keeps, is no leak.
        watcher.irq_enable(Irq.MSIX, 1)
        watcher.irq_trigger(Irq.MSIX)
        try:
            while sent < count:
                border = sent + BATCH
                while sent < min(border, count):
                    script = next(scripts)
                    attacker.play(script)
                    sent += script.messages + 1
                    connections += 1
                check(watched, watcher)
                check(attacked)
                if warm is None and sent >= min(WARM_UP, count // 2):
                    warm = Level.of(pid)
        except (TransportError, OSError, FuzzError) as error:
            last = script.seed if script else "none"
            raise FuzzError(
                f"seed {seed}, in connection {last} or the few before it: {error}"
            ) from error
        seconds = time.monotonic() - begin
        warm = warm or Level.of(pid)
        end = settled(pid, warm)
    report = Report(seed, connections, sent, attacker.answers, seconds, warm, end)
    if end.descriptors > warm.descriptors:
        raise FuzzError(f"descriptors leak: {report}")
    if end.memory > warm.memory + rss_slack:
        raise FuzzError(f"memory leaks: {report}")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("attacked")
    parser.add_argument("watched")
    parser.add_argument("pid", type=int)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--only", type=int)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    try:
        print(run(**vars(options)))
    except FuzzError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
