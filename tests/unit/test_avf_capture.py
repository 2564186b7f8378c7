"""What a port sends and receives, as records of a pcap file."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
from avf_net import Net, Station, ethernet

from vdcm_devices.avf.datapath import Offloads


@pytest.fixture
def lab() -> Iterator[Net]:
    made = Net()
    yield made
    made.close()


def payload(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def records(station: Station) -> list[bytes]:
    """What a station has captured, frame by frame."""
    data, found = b"", []
    while more := station.port.captured():
        data += more
    while data:
        _, micro, length, whole = struct.unpack_from("=4I", data)
        assert micro < 1_000_000 and length == whole
        found.append(data[16 : 16 + length])
        data = data[16 + length :]
    return found


def test_a_capture_has_what_a_port_sends_and_receives(lab: Net) -> None:
    a, b, c = (lab.station(n, vlans=None) for n in (1, 2, 3))
    first, second = ethernet(b.mac, a.mac, payload(1500)), ethernet(b.mac, a.mac, b"x" * 46, tag=5)
    a.send(first)
    for station in (a, b, c):
        station.port.set_capture(True)
    a.send(first, pieces=[700])
    b.port.set_offloads(Offloads(strip=True))
    a.send(second)
    assert (records(a), records(b), records(c)) == ([first, second], [first, second], [])
    a.port.set_capture(False)
    a.send(first)
    assert (records(a), records(b)) == ([], [first])


def test_a_capture_that_nobody_takes_is_bounded(lab: Net) -> None:
    a, b = lab.station(1), lab.station(2)
    a.port.set_capture(True)
    frames = [ethernet(b.mac, a.mac, payload(9000) + bytes([n])) for n in range(200)]
    for frame in frames:
        a.send(frame)
    kept = records(a)
    assert kept == frames[: len(kept)]
    assert 100 < len(kept) == 200 - a.port.capture_dropped
    a.send(frames[7])
    assert records(a) == [frames[7]]
