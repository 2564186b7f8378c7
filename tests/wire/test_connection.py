"""Clients that come, go, die, lie or stay silent: no other VDEV notices."""

from __future__ import annotations

import array
import errno
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from wire_registers import ID, PAGE, SLEEP_KEY, Bar, Reg
from wire_server import STOP_TIME, Server

from vdcm import protocol
from vdcm.client import Client, Irq
from vdcm.errors import ProtocolError, TransportError
from vdcm.protocol import Command, MessageFlags

Serve = Callable[..., Server]


def check(client: Client) -> None:
    """A client gets right answers."""
    assert client.read(Bar.REGISTERS, Reg.ID, 4) == ID
    value = time.monotonic_ns()
    client.write(Bar.REGISTERS, Reg.SCRATCH, 8, value)
    assert client.read(Bar.REGISTERS, Reg.SCRATCH, 8) == value


def raw_connection(path: Path | str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(STOP_TIME)
    connection.connect(os.fspath(path))
    return connection


def read_reply(connection: socket.socket) -> tuple[protocol.Header, bytes]:
    data = connection.recv(16, socket.MSG_WAITALL)
    assert len(data) == 16, "the server closed the connection without an answer"
    header = protocol.Header.parse(data)
    size = header.size - 16
    return header, connection.recv(size, socket.MSG_WAITALL) if size else b""


def is_closed(connection: socket.socket) -> bool:
    """The server has closed; with data left unread that is a reset."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def hello(payload: bytes | None = None) -> bytes:
    return protocol.message(Command.VERSION, payload or protocol.pack_version({}), 7)


def several(*writes: tuple[int, int, int, bytes]) -> bytes:
    """The payload of REGION_WRITE_MULTI with (offset, region, count, data) of each."""
    packed = [protocol.WRITE_ONE.pack(*write) for write in writes]
    return protocol.WRITE_MULTI.pack(len(packed)) + b"".join(packed)


def test_client_reads_what_the_server_is(serve: Serve) -> None:
    with serve().connect() as client:
        check(client)
        assert client.version.max_msg_fds == 16
        assert client.version.max_data_xfer_size == 65536
        assert client.info().flags == protocol.DeviceFlags.RESET | protocol.DeviceFlags.PCI
        sizes = {region.index: region.size for region in client.regions if region.size}
        assert sizes == {0: 4096, 1: 64, 2: 4 * PAGE, 7: 4096}
        assert [irq.count for irq in client.irqs][:3] == [1, 8, 40]


def test_who_only_looks_whether_it_is_served_is_not_warned_of(serve: Serve) -> None:
    server = serve()
    raw_connection(server.paths[0]).close()
    with server.connect() as client:
        check(client)
    assert "a client was refused" not in server.log
    with raw_connection(server.paths[0]) as connection:
        connection.send(b"\0")
    with server.connect() as client:
        check(client)
    assert "a client was refused: it closed before it had said its version" in server.log


def test_clients_come_one_after_the_other(serve: Serve) -> None:
    server = serve()
    for number in range(1, 21):
        with server.connect() as client:
            check(client)
            assert client.read(Bar.REGISTERS, Reg.ATTACHES, 4) == number


def test_second_client_of_a_vdev_is_refused_and_the_first_goes_on(serve: Serve) -> None:
    server = serve()
    with server.connect() as client:
        with pytest.raises(ProtocolError, match="busy") as caught:
            Client(server.paths[0])
        assert caught.value.errno == errno.EBUSY
        check(client)


def test_many_vdevs_are_served_by_one_process(serve: Serve) -> None:
    server = serve(count=40)
    clients = [server.connect(index) for index in range(40)]
    for number, client in enumerate(clients):
        client.write(Bar.REGISTERS, Reg.SCRATCH, 4, number)
    for client in clients[::2]:
        client.close()
    for number, client in list(enumerate(clients))[1::2]:
        assert client.read(Bar.REGISTERS, Reg.SCRATCH, 4) == number
        client.close()


def test_reset_is_told_to_the_device(serve: Serve) -> None:
    with serve().connect() as client:
        before = client.read(Bar.REGISTERS, Reg.RESETS, 4)
        client.reset()
        assert client.read(Bar.REGISTERS, Reg.RESETS, 4) == before + 1


# Clients that do not behave


def test_silent_clients_are_given_up_and_disturb_nobody(serve: Serve) -> None:
    server = serve(patience=0.3)
    with server.connect(1) as other:
        silent = [raw_connection(server.paths[0]) for _ in range(4)]
        check(other)
        with server.connect(0) as client:  # the VDEV itself is still to be had
            check(client)
        for connection in silent:
            assert is_closed(connection)
            connection.close()
        check(other)
    assert "said no hello" in server.log


@pytest.mark.parametrize("length", [1, 15, 16, 20, 30])
def test_half_a_hello_is_given_up(serve: Serve, length: int) -> None:
    server = serve(patience=0.3)
    with server.connect(1) as other, raw_connection(server.paths[0]) as connection:
        connection.sendall(hello()[:length])
        check(other)
        assert is_closed(connection)
        with server.connect(0) as client:
            check(client)
        check(other)


@pytest.mark.parametrize("length", [1, 15, 16, 31, 32, 35])
def test_half_a_message_is_given_up(serve: Serve, length: int) -> None:
    server = serve(patience=0.3)
    write = protocol.REGION_ACCESS.pack(Reg.SCRATCH, Bar.REGISTERS, 4) + bytes(4)
    with server.connect(1) as other, raw_connection(server.paths[0]) as connection:
        connection.sendall(hello())
        header, _ = read_reply(connection)
        assert not header.is_error
        connection.sendall(protocol.message(Command.REGION_WRITE, write, 1)[:length])
        check(other)
        assert is_closed(connection)
        with server.connect(0) as client:
            check(client)
        check(other)
    assert "the rest of a message did not come" in server.log


def test_message_in_slow_pieces_is_served(serve: Serve) -> None:
    server = serve()
    read = protocol.message(
        Command.REGION_READ, protocol.REGION_ACCESS.pack(Reg.ID, Bar.REGISTERS, 4), 9
    )
    with server.connect(1) as other, raw_connection(server.paths[0]) as connection:
        for byte in hello():
            connection.send(bytes([byte]))
        assert not read_reply(connection)[0].is_error
        for byte in read:
            connection.send(bytes([byte]))
            check(other)
        header, payload = read_reply(connection)
        assert header == (9, Command.REGION_READ, 36, MessageFlags.REPLY, 0)
        assert int.from_bytes(payload[16:], "little") == ID


@pytest.mark.parametrize("length", [1, 15, 16, 31, 32, 35])
def test_client_that_dies_in_mid_message_frees_the_vdev_at_once(serve: Serve, length: int) -> None:
    server = serve(patience=10 * STOP_TIME)
    write = protocol.REGION_ACCESS.pack(Reg.SCRATCH, Bar.REGISTERS, 4) + bytes(4)
    with raw_connection(server.paths[0]) as connection:
        connection.sendall(hello())
        read_reply(connection)
        connection.sendall(protocol.message(Command.REGION_WRITE, write, 1)[:length])
    with server.connect() as client:  # waits for STOP_TIME at most
        check(client)


def descriptor(fd: int) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]


def test_requests_may_be_sent_ahead_of_one_with_a_descriptor(serve: Serve) -> None:
    """As a client does that posts writes: none of them may be taken for the one that has it."""
    read = protocol.REGION_ACCESS.pack(Reg.ID, Bar.REGISTERS, 4)
    ahead = [
        protocol.message(Command.REGION_READ, read, 1),
        protocol.message(Command.DEVICE_GET_INFO, protocol.DEVICE_INFO.pack(16, 0, 0, 0), 2),
        protocol.message(
            Command.REGION_WRITE, protocol.REGION_ACCESS.pack(Reg.SCRATCH, 0, 4) + bytes(4), 3
        ),
        protocol.message(Command.DEVICE_RESET, b"", 4),
        protocol.message(99, b"", 5),
    ]
    dma_map = protocol.message(Command.DMA_MAP, protocol.DMA_MAP.pack(32, 3, 0, 0, PAGE), 6)
    fd = os.memfd_create("guest")
    os.ftruncate(fd, PAGE)
    with serve().connect() as client:
        check(client)
    with raw_connection(client.path) as connection:
        connection.sendall(hello())
        read_reply(connection)
        connection.sendall(b"".join(ahead))
        connection.sendmsg([dma_map], descriptor(fd))
        connection.sendall(ahead[0])
        replies = [read_reply(connection)[0] for _ in range(len(ahead) + 2)]
    os.close(fd)
    assert [reply.message_id for reply in replies] == [1, 2, 3, 4, 5, 6, 1]
    assert [reply.error for reply in replies] == [0, 0, 0, 0, errno.EOPNOTSUPP, 0, 0]


@pytest.fixture
def raw(serve: Serve) -> Iterator[socket.socket]:
    with raw_connection(serve(count=1).paths[0]) as connection:
        connection.sendall(hello())
        read_reply(connection)
        yield connection


@dataclass(frozen=True)
class Sent:
    """A message in one call or in two: ``cut`` bytes in the first. Without a ``size`` it maps
    memory, whose descriptor comes with the first part or with the last."""

    size: int | None
    cut: int = 0
    last: bool = False

    def send(self, connection: socket.socket, number: int, fd: int) -> None:
        if self.size is None:
            where = protocol.DMA_MAP.pack(32, 3, 0, number * PAGE, PAGE)
            data = protocol.message(Command.DMA_MAP, where, number)
        else:
            data = protocol.message(99, bytes(self.size), number)
        parts = [data[: self.cut], data[self.cut :]] if 0 < self.cut < len(data) else [data]
        for part in parts:
            carries = self.size is None and part is parts[-1 if self.last else 0]
            assert connection.sendmsg([part], descriptor(fd) if carries else []) == len(part)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.builds(Sent, st.none() | st.integers(0, 9000), st.integers(0, 60), st.booleans()),
        max_size=24,
    )
)
# A read ends in the middle of a message with a descriptor, and more of these are behind it.
@example([Sent(8192 - 16 - 1), *[Sent(None)] * 3])
@example([Sent(8192 - 16 - 15), *[Sent(None)] * 3])
@example([Sent(8192 - 16 - 16), *[Sent(None)] * 3])
@example([Sent(8192 - 16 - 47), *[Sent(None)] * 3])
def test_descriptors_come_with_their_messages(raw: socket.socket, sent: list[Sent]) -> None:
    """However these were sent, and wherever a read ends."""
    sleep = protocol.REGION_ACCESS.pack(Reg.SLEEP, Bar.REGISTERS, 8)
    sleep += (SLEEP_KEY << 32 | 30).to_bytes(8, "little")
    fd = os.memfd_create("guest")
    os.ftruncate(fd, PAGE)
    raw.sendall(protocol.message(Command.REGION_WRITE, sleep, 0))
    time.sleep(0.01)  # it has been read, and what follows waits together
    for number, message in enumerate(sent, 1):
        message.send(raw, number, fd)
    os.close(fd)
    unmap = protocol.DMA_UNMAP.pack(24, protocol.UnmapFlags.ALL, 0, 0)
    raw.sendall(protocol.message(Command.DMA_UNMAP, unmap, len(sent) + 1))
    replies = [read_reply(raw)[0] for _ in range(len(sent) + 2)]
    assert [reply.message_id for reply in replies] == list(range(len(sent) + 2))
    errors = [0 if message.size is None else errno.EOPNOTSUPP for message in sent]
    assert [reply.error for reply in replies] == [0, *errors, 0]


@pytest.mark.parametrize("command", [Command.REGION_READ, Command.DEVICE_RESET])
def test_unexpected_descriptor_ends_the_connection_only(serve: Serve, command: int) -> None:
    server = serve()
    payload = protocol.REGION_ACCESS.pack(Reg.ID, 0, 4) if command == Command.REGION_READ else b""
    with server.connect(1) as other:
        with raw_connection(server.paths[0]) as connection:
            connection.sendall(hello())
            read_reply(connection)
            connection.sendmsg([protocol.message(command, payload, 1)], descriptor(0))
            assert is_closed(connection)
        check(other)


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (hello(protocol.pack_version({}, major=1)), "we speak 0.1"),
        (hello(protocol.pack_version({}, major=0xFFFF, minor=0xFFFF)), "we speak 0.1"),
        (hello(protocol.VERSION.pack(0, 1) + b"{"), "NUL"),
        (hello(protocol.VERSION.pack(0, 1) + b"{\0"), "not valid JSON"),
        (hello(b"\0\0"), "too short"),
        (hello(protocol.VERSION.pack(0, 1) + b"[" * 3000 + b"\0"), "JSON"),
        (hello(protocol.pack_version({"max_msg_fds": -1})), "out of range"),
        (protocol.message(Command.DEVICE_RESET), "not VERSION"),
        (protocol.message(Command.VERSION, b"", 0, MessageFlags.REPLY), "not VERSION"),
        (protocol.HEADER.pack(1, Command.VERSION, 5, 0, 0), "less than the header's own"),
        (protocol.HEADER.pack(1, Command.VERSION, 1 << 31, 0, 0), "bytes long"),
        (b"GET / HTTP/1.1\r\n\r\n", "not VERSION"),
    ],
)
def test_wrong_hello_is_answered_with_an_error(serve: Serve, message: bytes, fault: str) -> None:
    server = serve()
    with server.connect(1) as other:
        with raw_connection(server.paths[0]) as connection:
            connection.sendall(message)
            header, _ = read_reply(connection)
            assert header.is_reply
            assert header.is_error
            assert header.error == errno.EINVAL
            assert is_closed(connection)
        check(other)
        with server.connect(0) as client:
            check(client)
    assert fault in server.log


def test_later_minor_version_is_answered_with_ours(serve: Serve) -> None:
    server = serve()
    with raw_connection(server.paths[0]) as connection:
        connection.sendall(hello(protocol.pack_version({}, minor=9)))
        header, payload = read_reply(connection)
        assert not header.is_error
        assert protocol.parse_version(payload).minor == protocol.MINOR


@pytest.mark.parametrize(
    "message",
    [
        protocol.HEADER.pack(1, Command.REGION_READ, 8, 0, 0),
        protocol.HEADER.pack(1, Command.REGION_WRITE, 0xFFFFFFFF, 0, 0),
        protocol.message(Command.REGION_READ, b"", 1, MessageFlags.REPLY),
        protocol.message(Command.REGION_READ, b"", 1, 0xF),
    ],
)
def test_broken_stream_ends_the_connection_only(serve: Serve, message: bytes) -> None:
    server = serve()
    with server.connect(1) as other:
        with raw_connection(server.paths[0]) as connection:
            connection.sendall(hello())
            read_reply(connection)
            connection.sendall(message)
            assert is_closed(connection)
        check(other)
        with server.connect(0) as client:
            check(client)


@pytest.mark.parametrize(
    ("command", "payload", "error"),
    [
        (Command.DEVICE_GET_INFO, bytes(4), errno.EINVAL),
        (Command.DEVICE_GET_REGION_INFO, bytes(31), errno.EINVAL),
        (Command.DEVICE_GET_REGION_INFO, protocol.REGION_INFO.pack(32, 0, 99, 0, 0, 0), 22),
        (Command.DEVICE_GET_IRQ_INFO, protocol.IRQ_INFO.pack(16, 0, 99, 0), errno.EINVAL),
        (Command.REGION_READ, bytes(15), errno.EINVAL),
        (Command.REGION_READ, protocol.REGION_ACCESS.pack(0, 0, 65537), errno.EINVAL),
        (Command.REGION_READ, protocol.REGION_ACCESS.pack(4094, 0, 4), errno.EINVAL),
        (Command.REGION_READ, protocol.REGION_ACCESS.pack((1 << 64) - 1, 0, 4), errno.EINVAL),
        (Command.REGION_READ, protocol.REGION_ACCESS.pack(0, 77, 4), errno.EINVAL),
        (Command.REGION_WRITE, protocol.REGION_ACCESS.pack(0, 0, 4) + b"abc", errno.EINVAL),
        (Command.DMA_MAP, bytes(31), errno.EINVAL),
        (Command.DMA_UNMAP, bytes(23), errno.EINVAL),
        (Command.DEVICE_SET_IRQS, bytes(19), errno.EINVAL),
        (Command.DEVICE_GET_REGION_IO_FDS, protocol.REGION_IO_FDS.pack(16, 0, 0, 0), 95),
        (Command.DIRTY_PAGES, protocol.DIRTY_PAGES.pack(8, 1), errno.EOPNOTSUPP),
        (Command.REGION_WRITE_MULTI, bytes(7), errno.EINVAL),
        (Command.REGION_WRITE_MULTI, protocol.WRITE_MULTI.pack(1), errno.EINVAL),
        (Command.REGION_WRITE_MULTI, protocol.WRITE_MULTI.pack(0) + bytes(24), errno.EINVAL),
        (Command.REGION_WRITE_MULTI, protocol.WRITE_MULTI.pack(1) + bytes(23), errno.EINVAL),
        (Command.REGION_WRITE_MULTI, protocol.WRITE_MULTI.pack((1 << 61) + 1) + bytes(24), 22),
        (Command.REGION_WRITE_MULTI, several((Reg.SCRATCH, 0, 0, b"")), errno.EINVAL),
        (Command.REGION_WRITE_MULTI, several((Reg.SCRATCH, 0, 9, b"")), errno.EINVAL),
        (Command.REGION_WRITE_MULTI, several((4094, 0, 4, b"")), errno.EINVAL),
        (Command.REGION_WRITE_MULTI, several(((1 << 64) - 1, 0, 4, b"")), errno.EINVAL),
        (Command.REGION_WRITE_MULTI, several((0, 77, 4, b"")), errno.EINVAL),
        (Command.DEVICE_FEATURE, protocol.DEVICE_FEATURE.pack(8, 1 << 16 | 1), 95),
        (Command.DMA_READ, protocol.DMA_ACCESS.pack(0, 4), errno.EOPNOTSUPP),
        (Command.VERSION, protocol.pack_version({}), errno.EOPNOTSUPP),
        (99, b"", errno.EOPNOTSUPP),
        (0, b"", errno.EOPNOTSUPP),
    ],
)
def test_wrong_request_gets_an_error_and_the_connection_goes_on(
    serve: Serve, command: int, payload: bytes, error: int
) -> None:
    with serve().connect() as client:
        with pytest.raises(ProtocolError) as caught:
            client.call(command, payload)
        assert caught.value.errno == error
        check(client)


def test_client_that_reads_no_answers_is_disconnected(serve: Serve) -> None:
    server = serve()
    read = protocol.message(Command.REGION_READ, protocol.REGION_ACCESS.pack(0, 0, 4096), 9)
    with server.connect(1) as other, raw_connection(server.paths[0]) as connection:
        connection.sendall(hello())
        read_reply(connection)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(100_000):
                connection.sendall(read * 8)
        check(other)
    assert "does not read its answers" in server.log


def test_device_model_that_fails_costs_an_error_reply(serve: Serve) -> None:
    server = serve()
    with server.connect() as client:
        for fault in (1, 2):
            with pytest.raises(ProtocolError) as caught:
                client.write(Bar.REGISTERS, Reg.FAULT, 4, fault)
            assert caught.value.errno == errno.EIO
        check(client)
    assert "vdev0: the device model failed" in server.log
    assert "RuntimeError: a bug of the device model, as ordered" in server.log
    assert "vdev0: an error of the device model, as ordered" in server.log


# Death


CLIENT_PROGRAM = """
import sys
from vdcm.client import Client, Irq
client = Client(sys.argv[1], timeout=60)
buffer = client.dma_memory(0x10000, 65536)
client.irq_enable(Irq.MSIX)
print("ready", flush=True)
while True:
    client.read(0, 0, 4)
    client.write(0, 0x34, 4, int(sys.argv[2]))
"""


@pytest.mark.parametrize("milliseconds", [0, 100])
def test_killed_client_leaves_nothing_behind(serve: Serve, milliseconds: int) -> None:
    server = serve()
    with server.connect(1) as other:
        for _ in range(5):
            client = subprocess.Popen(
                [sys.executable, "-c", CLIENT_PROGRAM, str(server.paths[0]), str(milliseconds)],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n"
            check(other)
            client.kill()
            client.wait()
            client.stdout.close()
            check(other)
            with server.connect(0) as successor:
                check(successor)
                assert successor.read(Bar.REGISTERS, Reg.RANGES, 4) == 0
                successor.write(Bar.REGISTERS, Reg.TRIGGER, 4, Irq.MSIX << 16)
                assert successor.read(Bar.REGISTERS, Reg.RESULT, 4) == 0
        check(other)


def test_slow_device_model_lets_the_others_have_their_turn(serve: Serve) -> None:
    server = serve()
    program = [sys.executable, "-c", CLIENT_PROGRAM, str(server.paths[0]), "100"]
    with (
        server.connect(1, timeout=3.0) as other,  # many of the slow accesses, but not 30 a turn
        subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as busy,
    ):
        assert busy.stdout is not None
        assert busy.stdout.readline() == "ready\n"
        for _ in range(10):
            check(other)
        busy.kill()


def test_what_comes_at_once_and_takes_many_turns_is_served_to_the_end(serve: Serve) -> None:
    """Nothing comes behind it that would wake the server; and another has its turns between."""
    sleep = protocol.REGION_ACCESS.pack(Reg.SLEEP, Bar.REGISTERS, 8)
    sleep += (SLEEP_KEY << 32 | 20).to_bytes(8, "little")
    server = serve()
    with server.connect(1) as other, raw_connection(server.paths[0]) as connection:
        connection.sendall(hello())
        read_reply(connection)
        connection.sendall(
            b"".join(protocol.message(Command.REGION_WRITE, sleep, number) for number in range(50))
        )
        check(other)
        assert len(connection.recv(50 * 32, socket.MSG_PEEK)) < 50 * 32  # it is not over
        assert [read_reply(connection)[0].message_id for _ in range(50)] == list(range(50))


def test_killed_server_ends_an_access_at_once(serve: Serve) -> None:
    server = serve()
    with server.connect(timeout=60) as client:
        killer = threading.Timer(0.3, server.kill)
        killer.start()
        begin = time.monotonic()
        with pytest.raises(TransportError, match="connection lost"):
            client.write(Bar.REGISTERS, Reg.SLEEP, 8, SLEEP_KEY << 32 | 30_000)
        killer.join()
        assert time.monotonic() - begin < 30
        with pytest.raises(TransportError, match="not connected"):
            client.read(Bar.REGISTERS, Reg.ID, 4)


def test_server_takes_the_place_of_a_killed_one(serve: Serve) -> None:
    server = serve()
    server.kill()
    assert server.paths[0].exists()
    with pytest.raises(TransportError, match="nobody listens"):
        Client(server.paths[0])
    server.restart()
    assert "removed the socket of a server that is gone" in server.log
    with server.connect() as client:
        check(client)


def test_sigterm_with_clients_connected_is_clean(serve: Serve) -> None:
    server = serve()
    with server.connect(0) as first, server.connect(1) as second:
        check(first)
        buffer = first.dma_memory(0, PAGE)
        first.irq_enable(Irq.MSIX)
        server.stop()
        with pytest.raises(TransportError):
            check(second)
        buffer.close()


# The socket's file


def test_socket_is_for_its_owner_only(serve: Serve) -> None:
    mode = serve().paths[0].stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def start_a_second(server: Server) -> subprocess.CompletedProcess[str]:
    main = Path(__file__).parent / "server_main.py"
    return subprocess.run(
        [sys.executable, str(main), str(server.paths[0].parent), "1"],
        capture_output=True,
        text=True,
        timeout=STOP_TIME,
        check=False,
    )


def test_live_socket_is_refused(serve: Serve) -> None:
    server = serve()
    with server.connect() as client:
        second = start_a_second(server)
        assert second.returncode == 1
        assert "is being served by another process" in second.stderr
        check(client)
    with server.connect() as client:
        check(client)


def test_file_in_the_sockets_place_is_kept(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    server.kill()
    server.paths[0].unlink()
    server.paths[0].write_text("precious")
    second = start_a_second(server)
    assert second.returncode == 1
    assert "is not a socket" in second.stderr
    assert (tmp_path / "vdev0.sock").read_text() == "precious"
