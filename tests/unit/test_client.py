"""The native client's calls, against a scripted peer that answers well, badly, late or never."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from vfio_user_peer import Peer, Request, open_fds, refuse_with, soon

from vdcm import protocol
from vdcm.client import Client, Irq, Region
from vdcm.errors import ProtocolError, TransportError
from vdcm.protocol import Command, MessageFlags


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path / "vdev.sock")
    yield peer
    peer.close()


@contextmanager
def connected(peer: Peer, timeout: float = 5.0, **more: Any) -> Iterator[Client]:
    with Client(peer.path, timeout=timeout, **more) as client:
        yield client


def test_several_writes_are_sent_only_to_a_server_that_takes_them(peer: Peer) -> None:
    with (
        connected(peer) as client,
        pytest.raises(ProtocolError, match="does not take REGION_WRITE_MULTI"),
    ):
        client.write_multi([(0, 0, 4, 1)])
    assert Command.REGION_WRITE_MULTI not in peer.commands()


def test_several_writes_end_at_one_that_was_refused(peer: Peer) -> None:
    peer.capabilities["write_multiple"] = True
    peer.capabilities["max_data_xfer_size"] = 2 * protocol.WRITE_ONE.size
    counts = iter([2, 1])
    peer.script[Command.REGION_WRITE_MULTI] = lambda _: protocol.WRITE_MULTI.pack(next(counts))
    with connected(peer) as client:
        assert client.write_multi([(0, at, 4, at) for at in range(7)]) == 3
        peer.script[Command.REGION_WRITE_MULTI] = lambda _: protocol.WRITE_MULTI.pack(3)
        with pytest.raises(ProtocolError, match="2 writes sent, 3 done"):
            client.write_multi([(0, 0, 4, 0)] * 2)
    sent = [payload for header, payload, _ in peer.log if header.command == 15]
    assert [int.from_bytes(payload[:8], "little") for payload in sent] == [2, 2, 2]
    assert protocol.WRITE_ONE.unpack(sent[1][32:]) == (3, 0, 4, (3).to_bytes(8, "little"))


# Connecting


def test_missing_socket_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="no such socket: is `vdcm serve` running"):
        Client(tmp_path / "none.sock")


def test_stale_socket_names_the_fix(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(tmp_path / "stale.sock"))
    with pytest.raises(TransportError, match="nobody listens on this socket"):
        Client(tmp_path / "stale.sock")


def test_path_that_is_too_long_is_a_transport_error(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="too long"):
        Client(tmp_path / ("x" * 200))


def test_wait_for_a_server_that_is_just_starting(tmp_path: Path) -> None:
    started: list[Peer] = []
    timer = threading.Timer(0.1, lambda: started.append(Peer(tmp_path / "late.sock")))
    timer.start()
    with Client(tmp_path / "late.sock", wait=5.0) as client:
        assert client.info().regions == 8
    timer.join()  # it may not have told us yet that it is there
    started[0].close()


def test_version_offers_capabilities_and_lets_them_be_changed(peer: Peer) -> None:
    with connected(peer, capabilities={"max_msg_fds": 3, "vdcm": None}) as client:
        assert client.version.max_data_xfer_size == 64
    offered = protocol.parse_version(peer.log[0][1])
    assert (offered.major, offered.minor, offered.max_msg_fds) == (0, 1, 3)
    assert not offered.read_only_areas


@pytest.mark.parametrize("version", [(1, 0), (0, 2)])
def test_version_that_does_not_fit_is_refused(peer: Peer, version: tuple[int, int]) -> None:
    peer.version = version
    with pytest.raises(ProtocolError, match="do not fit"):
        Client(peer.path)


def test_refused_version_carries_the_errno(peer: Peer) -> None:
    peer.script[Command.VERSION] = refuse_with(errno.EPROTONOSUPPORT)
    with pytest.raises(ProtocolError, match=r"negotiating vfio-user 0\.1 failed") as caught:
        Client(peer.path)
    assert caught.value.errno == errno.EPROTONOSUPPORT


def test_failed_connections_leak_no_descriptor(peer: Peer) -> None:
    peer.version = (9, 9)
    with pytest.raises(ProtocolError):
        Client(peer.path)
    before = open_fds()
    for _ in range(5):
        with pytest.raises(ProtocolError):
            Client(peer.path)
    # The peer's thread closes its own side a moment later.
    assert soon(lambda: open_fds() <= before)


# Accesses


def test_info_regions_and_irqs(peer: Peer) -> None:
    with connected(peer) as client:
        assert client.info().irqs == 5
        assert [region.size for region in client.regions] == [256, 0, 0, 0, 0, 0, 0, 4096]
        assert client.irqs[Irq.MSIX].count == 5
        assert client.regions is client.regions
    assert peer.commands().count(Command.DEVICE_GET_REGION_INFO) == 8


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_read_and_write_one_register(peer: Peer, width: int) -> None:
    value = 0x1122334455667788 & ((1 << 8 * width) - 1)
    with connected(peer) as client:
        client.write(Region.BAR0, 16, width, value)
        assert client.read(Region.BAR0, 16, width) == value
    assert bytes(peer.memory[16:24]) == value.to_bytes(8, "little")


def test_write_keeps_the_low_bytes_of_the_value(peer: Peer) -> None:
    with connected(peer) as client:
        client.write(0, 0, 2, -1)
        assert client.read(0, 0, 4) == 0xFFFF


@pytest.mark.parametrize("width", [0, 3, 16])
def test_other_widths_are_refused(peer: Peer, width: int) -> None:
    with connected(peer) as client:
        with pytest.raises(ProtocolError, match="use read_bytes"):
            client.read(0, 0, width)
        with pytest.raises(ProtocolError, match="use read_bytes"):
            client.write(0, 0, width, 0)


def test_bytes_are_split_at_the_servers_limit(peer: Peer) -> None:
    data = bytes(range(150))
    with connected(peer) as client:
        client.write_bytes(0, 5, data)
        assert client.read_bytes(0, 5, 150) == data
    counts = [
        protocol.REGION_ACCESS.unpack_from(payload)[2]
        for header, payload, _ in peer.log
        if header.command == Command.REGION_WRITE
    ]
    assert counts == [64, 64, 22]


def test_posted_write_asks_for_no_reply_and_keeps_the_order(peer: Peer) -> None:
    with connected(peer) as client:
        client.post_write(0, 8, 4, 0xCAFE)
        assert client.read(0, 8, 4) == 0xCAFE
    assert peer.log[1][0].flags == MessageFlags.NO_REPLY


def test_error_reply_carries_errno_and_the_connection_goes_on(peer: Peer) -> None:
    peer.script[Command.DEVICE_RESET] = refuse_with(errno.EIO)
    with connected(peer) as client:
        with pytest.raises(ProtocolError, match="DEVICE_RESET was refused: Input/output") as caught:
            client.reset()
        assert caught.value.errno == errno.EIO
        assert client.read(0, 0, 1) == 0


@pytest.mark.parametrize(
    "reply",
    [b"", bytes(15), bytes(16), bytes(20), protocol.REGION_ACCESS.pack(0, 0, 4) + b"xyz"],
)
def test_malformed_read_replies_are_protocol_errors(peer: Peer, reply: bytes) -> None:
    peer.script[Command.REGION_READ] = lambda _: reply
    with connected(peer) as client, pytest.raises(ProtocolError):
        client.read(0, 0, 4)


def test_out_of_range_arguments_are_protocol_errors(peer: Peer) -> None:
    with connected(peer) as client:
        with pytest.raises(ProtocolError, match="do not fit"):
            client.read(0, -4, 4)
        with pytest.raises(ProtocolError, match="do not fit"):
            client.read(1 << 32, 0, 4)
        assert client.read(0, 0, 4) == 0


# A peer that fails


def test_silent_server_costs_one_deadline_and_then_nothing(peer: Peer) -> None:
    peer.script[Command.REGION_READ] = lambda _: None
    with connected(peer, timeout=0.2) as client:
        with pytest.raises(TransportError, match=r"no reply within 0\.2 s"):
            client.read(0, 0, 4)
        with pytest.raises(TransportError, match="not connected, no reply"):
            client.info()


def test_half_a_reply_keeps_the_deadline(peer: Peer) -> None:
    def dribble(_: Request) -> None:
        for byte in protocol.message(Command.REGION_READ, bytes(64), 2, MessageFlags.REPLY)[:60]:
            peer.send(bytes([byte]))
            time.sleep(0.02)

    peer.script[Command.REGION_READ] = dribble
    with (
        connected(peer, timeout=0.2) as client,
        pytest.raises(TransportError, match="half a message"),
    ):
        client.read(0, 0, 4)


def test_endless_requests_of_the_server_keep_the_deadline(peer: Peer) -> None:
    def pester(_: Request) -> None:
        while True:
            peer.request(Command.DMA_READ, protocol.DMA_ACCESS.pack(0, 4))

    peer.script[Command.REGION_READ] = pester
    with connected(peer, timeout=0.2) as client, pytest.raises(TransportError, match="no reply"):
        client.read(0, 0, 4)


def test_server_that_hangs_up_is_a_transport_error(peer: Peer) -> None:
    peer.script[Command.REGION_READ] = lambda _: peer.hang_up()
    with connected(peer) as client:
        with pytest.raises(TransportError, match="the server closed it"):
            client.read(0, 0, 4)
        with pytest.raises(TransportError, match="connect anew"):
            client.post_write(0, 0, 4, 1)


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (protocol.message(Command.REGION_READ, b"", 999, MessageFlags.REPLY), "another command"),
        (protocol.message(Command.DEVICE_RESET, b"", 2, MessageFlags.REPLY), "another command"),
        (protocol.HEADER.pack(2, Command.REGION_READ, 15, 1, 0), "header gives a size of 15"),
        (protocol.HEADER.pack(2, Command.REGION_READ, 1 << 31, 1, 0), "far too many"),
    ],
)
def test_replies_out_of_step_end_the_connection(peer: Peer, raw: bytes, fault: str) -> None:
    peer.script[Command.REGION_READ] = lambda _: peer.send(raw)
    with connected(peer) as client:
        with pytest.raises(TransportError, match=fault):
            client.read(0, 0, 4)
        with pytest.raises(TransportError, match="not connected"):
            client.read(0, 0, 4)


def test_unasked_descriptors_are_closed(peer: Peer) -> None:
    def answer(request: Request) -> bytes:
        peer.fds_to_send = [0]
        return request.payload + bytes(4)

    peer.script[Command.REGION_READ] = answer
    with connected(peer) as client:
        client.read(0, 0, 4)
        before = open_fds()
        for _ in range(5):
            client.read(0, 0, 4)
        assert open_fds() == before


# Config space


def put(space: bytearray, offset: int, *values: int) -> None:
    space[offset : offset + len(values)] = bytes(values)


def test_capability_chains(peer: Peer) -> None:
    space = peer.config
    put(space, 0x06, 0x10)
    put(space, 0x34, 0x40)
    put(space, 0x40, 0x01, 0x50)
    put(space, 0x50, 0x05, 0x70)
    put(space, 0x70, 0x09, 0x00)
    space[0x100:0x104] = (0x003 | 1 << 16 | 0x140 << 20).to_bytes(4, "little")
    space[0x140:0x144] = (0x023 | 1 << 16).to_bytes(4, "little")
    with connected(peer) as client:
        assert client.config.capabilities() == [(1, 0x40), (5, 0x50), (9, 0x70)]
        assert client.config.extended_capabilities() == [(3, 0x100), (0x23, 0x140)]
        assert client.config.find(5) == 0x50
        assert client.config.find(0x23, extended=True) == 0x140
        assert client.config.find(0x11) is None
        client.config.write(0x10, 4, 0xFFFFFFFF)
        assert client.config.read(0x10, 4) == 0xFFFFFFFF
        assert client.config.dump() == bytes(space)


def test_space_without_capabilities_has_empty_chains(peer: Peer) -> None:
    with connected(peer) as client:
        assert client.config.capabilities() == []
        assert client.config.extended_capabilities() == []


@pytest.mark.parametrize(("following", "fault"), [(0x40, "loops"), (0x20, "points below")])
def test_broken_capability_chains_are_refused(peer: Peer, following: int, fault: str) -> None:
    put(peer.config, 0x06, 0x10)
    put(peer.config, 0x34, 0x40)
    put(peer.config, 0x40, 0x01, following)
    with connected(peer) as client, pytest.raises(ProtocolError, match=fault):
        client.config.capabilities()
