"""The uplink of the NIC's switch: frames by sockets as QEMU's -netdev has them, and by TAP."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import avf_net as net
import pytest
from avf_net import Net, Station, ethernet, mac

from vdcm import PropertyError, VdcmError
from vdcm.parent import build
from vdcm.surroundings import freeze_native
from vdcm.sweep import AdiPath, QueueState
from vdcm_devices.avf import Avf
from vdcm_devices.avf.datapath import Offloads
from vdcm_devices.avf.native import Switch
from vdcm_devices.avf.uplink import Uplink

OUTSIDE = mac(200)
SECONDS = 20.0  # a limit, not an expectation
TAP = "vdcm-tap"
CLONE_NEWNET = 0x4000_0000  # linux/sched.h
ETH_P_ALL, SIOCSIFFLAGS, IFF_UP = 3, 0x8914, 1  # linux/if_ether.h, sockios.h, if.h


class Outside:
    """What is behind the uplink: ``send`` and ``receive`` are of whole frames."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.net = Net()
        self.kind = kind
        self.path = folder / "uplink"
        peer = folder / "peer"
        self.name = {
            "stream": f"stream:{self.path}",
            "dgram": f"dgram:{self.path},{peer}",
            "tap": f"tap:{TAP}",
        }[kind]
        self.uplink = Uplink(self.net.switch, self.name)
        self.adi: AdiPath = self.net.sweep.adi(lambda _path: None)
        self.uplink.start(_Adi(self.adi))  # type: ignore[arg-type]
        (queue,) = self.adi.queues
        queue.state = QueueState.RUNNING
        if kind == "stream":
            self.connect()
        elif kind == "tap":
            self.socket = raised(TAP)
        else:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.socket.bind(str(peer))
            self.socket.connect(str(self.path))
        self.socket.settimeout(SECONDS)

    def connect(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(SECONDS)
        self.socket.connect(str(self.path))

    def send(self, frame: bytes) -> None:
        if self.kind == "stream":
            self.socket.sendall(struct.pack(">I", len(frame)) + frame)
        else:
            self.socket.send(frame)

    def receive(self) -> bytes:
        if self.kind != "stream":
            return self.socket.recv(65536)
        (length,) = struct.unpack(">I", self.socket.recv(4, socket.MSG_WAITALL))
        return self.socket.recv(length, socket.MSG_WAITALL)

    def wait(self, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + SECONDS
        while not (found := condition()):
            assert time.monotonic() < deadline, self.uplink.counters()
            self.net.run(20)
        return found

    def arrived(self, station: Station, count: int = 1) -> list[bytes]:
        frames: list[bytes] = []

        def come() -> bool:
            frames.extend(station.frames())
            return len(frames) >= count

        self.wait(come)
        return frames

    def close(self) -> None:
        self.socket.close()
        self.adi.close()
        self.uplink.close()
        assert not self.path.exists()
        self.net.close()


def raised(interface: str) -> socket.socket:
    """A socket for the frames of an interface that is up from now on, and says nothing itself."""
    Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").write_text("1")
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    fcntl.ioctl(found, SIOCSIFFLAGS, struct.pack("16sH14x", interface.encode(), IFF_UP))
    found.bind((interface, 0))
    return found


@pytest.fixture
def tap(tmp_path: Path) -> Iterator[Outside]:
    """In a network namespace of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/self/ns/net").open() as ours:
        if libc.unshare(CLONE_NEWNET):
            pytest.skip(f"no network namespace: {os.strerror(ctypes.get_errno())}")
        try:
            made = Outside(tmp_path, "tap")
        except VdcmError as error:
            pytest.skip(str(error))
        finally:
            assert libc.setns(ours.fileno(), CLONE_NEWNET) == 0
    yield made
    made.close()


class _Adi:
    """As much of one as an uplink needs."""

    def __init__(self, path: AdiPath) -> None:
        self.path = path


@pytest.fixture(params=["stream", "dgram"])
def outside(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outside]:
    made = Outside(tmp_path, request.param)
    yield made
    made.close()


def payload(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def meet(outside: Outside, station: Station) -> None:
    """A stream's client has been seen when a frame of it has come."""
    outside.send(ethernet(station.mac, OUTSIDE, b"hello" * 10))
    outside.arrived(station)


@pytest.mark.parametrize("size", [46, 243, 1500, 9000])
def test_frames_go_out_and_come_in(outside: Outside, size: int) -> None:
    a, b = outside.net.station(1), outside.net.station(2)
    meet(outside, a)
    out = ethernet(OUTSIDE, a.mac, payload(size))
    a.send(out, pieces=[20, 300])
    assert outside.receive() == out
    back = ethernet(a.mac, OUTSIDE, payload(size))
    outside.send(back)
    assert outside.arrived(a) == [back]
    assert b.frames() == []


def test_what_a_port_has_the_uplink_has_not(outside: Outside) -> None:
    a, b = outside.net.station(1), outside.net.station(2)
    meet(outside, a)
    a.send(ethernet(b.mac, a.mac, payload(50)))
    for_all = ethernet(net.BROADCAST, a.mac, payload(51))
    a.send(for_all)
    assert outside.receive() == for_all
    assert len(b.frames()) == 2
    coming = ethernet(net.BROADCAST, OUTSIDE, payload(52))
    outside.send(coming)
    assert outside.arrived(a) == outside.arrived(b) == [coming]
    outside.send(ethernet(mac(99), OUTSIDE, payload(53)))  # nobody's: it does not go back
    outside.wait(lambda: outside.uplink.counters()["unwanted"] == 1)
    a.send(ethernet(OUTSIDE, a.mac, b"last" * 20))
    assert outside.receive()[14:] == b"last" * 20


def test_what_is_behind_a_port_is_not_outside(outside: Outside) -> None:
    behind = mac(101)
    a = outside.net.station(1)
    bridge = outside.net.station(2, check_source=False, learn=True)
    meet(outside, a)
    known = ethernet(behind, a.mac, payload(50))
    a.send(known)
    assert outside.receive() == known  # so far
    hello = ethernet(OUTSIDE, behind, payload(51))
    bridge.send(hello)
    assert outside.receive() == hello
    a.send(known)
    own = ethernet(bridge.mac, a.mac, payload(60))
    a.send(own)
    assert bridge.frames() == [known, own]
    back = ethernet(behind, OUTSIDE, payload(52))
    outside.send(back)
    assert outside.arrived(bridge) == [back]
    outside.send(ethernet(a.mac, behind, payload(53)))  # it has moved there
    outside.arrived(a)
    assert bridge.port.learnt() == {}
    moved = ethernet(behind, a.mac, payload(54))
    a.send(moved)
    assert outside.receive() == moved  # and nothing before it
    assert bridge.frames() == []
    bridge.send(hello)
    freeze_native(time.monotonic_ns() + 300 * 10**9)
    try:
        outside.send(back)
        outside.wait(lambda: outside.uplink.counters()["unwanted"] == 1)
    finally:
        freeze_native(0)
    assert bridge.frames() == []  # not seen for long


def test_tags_checksums_and_segments(outside: Outside) -> None:
    a = outside.net.station(1, vlans=frozenset({5}))
    meet(outside, a)
    tagged = ethernet(OUTSIDE, a.mac, payload(400), tag=5)
    a.send(tagged)
    assert outside.receive() == tagged
    for tag in (5, 6):
        outside.send(ethernet(a.mac, OUTSIDE, payload(400), tag=tag))
    a.port.set_offloads(Offloads(strip=True))
    outside.send(ethernet(a.mac, OUTSIDE, payload(401), tag=5))
    assert [len(frame) for frame in outside.arrived(a, 2)] in ([418, 415], [414, 415])
    here, there = bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])
    seed = net.ones_sum(net.pseudo(here, there, net.TCP, 0))
    whole = net.ip(here, there, net.TCP, net.tcp(here, there, payload(3000), seed=seed))
    a.send(
        ethernet(OUTSIDE, a.mac, whole, 0x0800),
        net.IPV4_SUM | net.TCP_SUM | net.offsets(14, 20, 20),
        before=[net.context(3000, 1400)],
    )
    parts = [outside.receive() for _ in range(3)]
    assert b"".join(part[54:] for part in parts) == payload(3000)
    outside.send(parts[0][6:12] + parts[0][0:6] + parts[0][12:])
    (found,) = outside.wait(a.receive)
    assert (found.summed, bool(found.status >> 14 & 1)) == ((True, False, False), False)


def test_one_that_reads_nothing_costs_frames_only(outside: Outside) -> None:
    a, b = outside.net.station(1), outside.net.station(2)
    meet(outside, a)
    frame = ethernet(OUTSIDE, a.mac, payload(9000))
    while not outside.uplink.counters()["dropped"]:
        a.send(frame)
    a.send(ethernet(b.mac, a.mac, payload(50)))
    assert len(b.frames()) == 1
    sent = outside.uplink.counters()["sent"]
    assert [outside.receive() for _ in range(sent)] == [frame] * sent


def test_a_burst_that_is_longer_than_the_ring(outside: Outside) -> None:
    a = outside.net.station(1)
    a.port.disable(1, 1)
    a.start(length=512)  # so nothing is lost here
    frames = [ethernet(a.mac, OUTSIDE, n.to_bytes(4, "big") * 20) for n in range(1000)]
    outside.socket.settimeout(0.0)
    arrived: list[bytes] = []
    for frame in frames:
        while True:
            try:
                outside.send(frame)
                break
            except BlockingIOError:
                outside.net.run(20)
                arrived += a.frames()
        outside.net.run(5)
        arrived += a.frames()
    if len(arrived) < len(frames):
        arrived += outside.arrived(a, len(frames) - len(arrived))
    assert arrived == frames


@pytest.mark.parametrize("outside", ["stream"], indirect=True)
def test_a_stream_may_end_anywhere_and_another_begin(outside: Outside) -> None:
    a = outside.net.station(1)
    meet(outside, a)
    whole = struct.pack(">I", 100) + ethernet(a.mac, OUTSIDE, payload(86))
    for end in (2, 4, 60):
        outside.socket.sendall(whole[:end])
        outside.socket.close()
        outside.connect()
        meet(outside, a)
    # In the middle of nothing: too long, empty, too short.
    outside.socket.sendall(struct.pack(">I", 20000) + bytes(20000) + bytes(4))
    outside.socket.sendall(struct.pack(">I", 5) + bytes(5) + whole)
    assert outside.arrived(a) == [whole[4:]]


def test_the_property(tmp_path: Path) -> None:
    for wrong in ("eth0", "tap:", "tap:a/b", "stream:here", "dgram:/a", f"stream:/{'x' * 108}"):
        with pytest.raises(PropertyError):
            build(Avf, "nic", {"uplink": wrong})
    with pytest.raises(VdcmError, match="name a path"):
        build(Avf, "nic", {"uplink": f"stream:{tmp_path}/no/folder"})
    parent = build(Avf, "nic", {"uplink": f"stream:{tmp_path}/s"})
    assert parent.driver.describe()["uplink"]["dropped"] == 0
    with pytest.raises(VdcmError, match="Address already in use"):
        build(Avf, "other", {"uplink": f"stream:{tmp_path}/s"})
    parent.close()
    assert not (tmp_path / "s").exists()


def test_a_tap_interface() -> None:
    name = f"vdcm{os.getpid() % 100000}"
    switch = Switch()
    try:
        uplink = Uplink(switch, f"tap:{name}")
    except VdcmError as error:
        pytest.skip(str(error))
    assert Path(f"/sys/class/net/{name}").exists()
    uplink.close()
    assert not Path(f"/sys/class/net/{name}").exists()


def test_frames_by_tap(tap: Outside) -> None:
    a, b = tap.net.station(1), tap.net.station(2)
    for size in (46, 243, 1500):
        out = ethernet(OUTSIDE, a.mac, payload(size))
        a.send(out)
        tap.net.run(20)
        assert tap.receive() == out
        back = ethernet(a.mac, OUTSIDE, payload(size))
        tap.send(back)
        assert tap.arrived(a) == [back]
        assert b.frames() == []
    for_all = ethernet(net.BROADCAST, OUTSIDE, payload(60))
    tap.send(for_all)
    assert tap.arrived(a) == tap.arrived(b) == [for_all]
