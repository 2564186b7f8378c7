"""What a driver must not do costs it its queues, with a reason, and nobody else anything."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import avf_net as net
import pytest
from avf_net import BASE, EOP, RS, SIZE, Net, Station, ethernet
from hypothesis import given, settings
from hypothesis import strategies as st

from vdcm_devices.avf.datapath import TxQueue

BUFFER = BASE + 0x10_0000


@pytest.fixture
def lab() -> Iterator[Net]:
    made = Net()
    for number in (1, 2, 3):
        made.station(number)
    yield made
    made.close()


def check_neighbours(a: Station, b: Station) -> None:
    """They still talk."""
    frame = ethernet(b.mac, a.mac, b"fine" * 20)
    a.send(frame)
    assert b.frames()[-1:] == [frame]
    assert a.reports() == b.reports() == []


def data(length: int, flags: int = EOP | RS, address: int = BUFFER) -> tuple[int, int]:
    return address, flags | length << 34


@pytest.mark.parametrize(
    ("descriptors", "why"),
    [
        ([data(64, address=BASE + SIZE - 32)], "buffer cannot be reached at 0x40400000"),
        ([data(64, address=2**64 - 32)], "cannot be reached"),
        ([data(0)], "frame or buffer of 0 bytes"),
        ([data(13)], "frame or buffer of 13 bytes"),
        ([data(9725)], "frame or buffer of 9725 bytes"),
        ([data(9000, 0), data(9000)], "frame or buffer of 18000 bytes"),
        ([(BUFFER, EOP | RS | 64 << 34 | 8)], "a type that it must not have"),
        ([(BUFFER, EOP | RS | 64 << 34 | 15)], "a type that it must not have"),
        ([data(64, 0), net.context(10, 100), data(64)], "a type that it must not have"),
        ([(1, net.context(10, 100)[1]), data(64)], "a type that it must not have"),
        ([net.context(50, 100), data(64)], "does not fit its frame"),
        ([data(64, EOP | RS | net.IPV4 | net.TCP_SUM)], "does not fit its headers"),
        (
            [data(64, EOP | RS | net.IPV4 | net.TCP_SUM | net.offsets(14, 20, 60))],
            "does not fit its headers",
        ),
        ([data(16, 0)] * 63, "63 descriptors without the end of a frame"),
    ],
)
def test_descriptors_that_lie(lab: Net, descriptors: list[tuple[int, int]], why: str) -> None:
    bad, a, b = lab.stations
    bad.post(*descriptors)
    lab.run()
    (report,) = bad.reports()
    assert report.startswith("transmit queue 0: ")
    assert why in report
    check_neighbours(a, b)
    a.send(ethernet(bad.mac, a.mac, bytes(46)))
    assert bad.frames() == []
    bad.port.reset()
    bad.start()
    check_neighbours(bad, b)


@pytest.mark.parametrize(
    ("payload", "mss"), [(0, 1000), (2000, 63), (1999, 1000), (2001, 1000), (2000, 9700)]
)
def test_segments_that_do_not_fit(lab: Net, payload: int, mss: int) -> None:
    bad, a, b = lab.stations
    command = net.IPV4_SUM | net.TCP_SUM | net.offsets(14, 20, 20)
    bad.frame(
        ethernet(b.mac, bad.mac, bytes(40 + 2000), 0x0800),
        command,
        before=[net.context(payload, mss)],
    )
    lab.run()
    assert "does not fit its frame" in bad.reports()[0]
    check_neighbours(a, b)


def test_segments_for_many_are_not_sent(lab: Net) -> None:
    a, b, _ = lab.stations
    command = net.IPV4_SUM | net.TCP_SUM | net.offsets(14, 20, 20)
    frame = ethernet(net.BROADCAST, a.mac, bytes(40 + 2000), 0x0800)
    a.send(frame, command, before=[net.context(2000, 1000)])
    assert (b.frames(), a.counted("tx_errors"), a.reports()) == ([], 1, [])


def test_a_chain_longer_than_any_frame(lab: Net) -> None:
    bad, a, b = lab.stations
    bad.port.disable(1, 1)
    bad.start(length=512)
    bad.post(*[data(16, 0)] * 200)
    lab.run()
    assert "128 descriptors without the end" in bad.reports()[0]
    check_neighbours(a, b)


def test_a_frame_whose_end_comes_later(lab: Net) -> None:
    a, b, _ = lab.stations
    frame = ethernet(b.mac, a.mac, b"x" * 86)
    a.store(BUFFER, frame)
    for _ in range(70):  # tails come around
        a.post(data(50, 0))
        lab.run()
        assert b.frames() == []
        a.post(data(50, address=BUFFER + 50))
        lab.run()
        assert b.frames() == [frame]
    assert a.reports() == []


@pytest.mark.parametrize("transmit", [True, False])
def test_a_tail_beyond_the_ring(lab: Net, transmit: bool) -> None:
    bad, a, b = lab.stations
    bad.tail(0, 64, transmit=transmit)
    lab.run()
    a.send(ethernet(bad.mac, a.mac, bytes(46)))
    side = "transmit" if transmit else "receive"
    assert bad.reports() == [f"{side} queue 0: tail 64 is beyond its end"]
    check_neighbours(a, b)


def test_a_transmit_ring_outside_memory(lab: Net) -> None:
    bad, a, b = lab.stations
    bad.port.disable(1, 0)
    bad.port.configure_tx(TxQueue(0, BASE + SIZE - 32, 64))
    bad.port.enable(1, 0)
    bad.tail(0, 3, transmit=True)
    lab.run()
    assert "transmit queue 0: its ring cannot be reached" in bad.reports()[0]
    check_neighbours(a, b)


def test_receive_buffers_outside_memory_cost_the_receiver(lab: Net) -> None:
    bad, a, b = lab.stations
    bad.store(bad.ring(0, False), (BASE - 8).to_bytes(8, "little"))
    a.send(ethernet(bad.mac, a.mac, bytes(46)))
    assert "receive queue 0: a buffer cannot be reached at 0x3ffffff8" in bad.reports()[0]
    assert bad.counted("rx_discards") == 1
    check_neighbours(a, b)


def test_no_bus_master_no_memory(lab: Net) -> None:
    """It is no mistake: so is a function that is about to be reset."""
    quiet, a, b = lab.stations
    there, back = ethernet(quiet.mac, a.mac, bytes(46)), ethernet(a.mac, quiet.mac, bytes(46))
    quiet.path.set_bus_master(False)
    a.send(there)
    quiet.frame(back)
    lab.run()
    assert (quiet.frames(), a.frames(), quiet.counted("rx_discards")) == ([], [], 1)
    quiet.path.set_bus_master(True)
    a.send(there)
    quiet.send(back)
    assert (quiet.frames(), a.frames()) == ([there], [back, back])
    assert quiet.reports() == []
    check_neighbours(a, b)


def test_a_receiver_that_cuts_its_memory_short(lab: Net) -> None:
    bad, a, b = lab.stations
    os.ftruncate(bad.fd, 0x20_0000)
    for size in (46, 5000):
        a.send(ethernet(bad.mac, a.mac, bytes(size)))
    assert "receive queue 0" in bad.reports()[0]
    check_neighbours(a, b)
    os.ftruncate(bad.fd, SIZE)


def test_a_sender_that_cuts_its_memory_short(lab: Net) -> None:
    bad, a, b = lab.stations
    frame = ethernet(b.mac, bad.mac, bytes(8000))
    os.ftruncate(bad.fd, 0x10_1000)
    bad.post((BUFFER, EOP | RS | len(frame) << 34))
    bad.view[0x10_0000 : 0x10_0000 + 100] = frame[:100]
    lab.run()
    assert "transmit queue 0: a buffer" in bad.reports()[0]
    assert b.reports() == []
    check_neighbours(a, b)
    os.ftruncate(bad.fd, SIZE)


def test_nobody_reaches_the_memory_of_another(lab: Net) -> None:
    """Addresses are the same for all stations, and mean each one's own memory."""
    a, b, c = lab.stations
    for station, byte in ((a, b"a"), (b, b"b"), (c, b"c")):
        station.store(BUFFER, byte * 4096)
    before = c.load(BASE, SIZE)
    for size in (46, 500, 3000):
        a.send(ethernet(b.mac, a.mac, b"A" * size))
    assert [frame[14:] for frame in b.frames()] == [b"A" * size for size in (46, 500, 3000)]
    assert c.load(BASE, SIZE) == before


@settings(max_examples=150, deadline=None)
@given(
    words=st.lists(
        st.tuples(
            st.one_of(st.just(BUFFER), st.integers(0, 2**64 - 1)),
            st.builds(
                lambda kind, command, offset, length, tag: (
                    kind | command << 4 | offset << 16 | length << 34 | tag << 48
                ),
                st.sampled_from([0, 0, 0, 1, 1, 8, 15]),
                st.integers(0, 0xFFF),
                st.integers(0, 2**18 - 1),
                st.integers(0, 2**14 - 1),
                st.integers(0, 2**16 - 1),
            ),
        ),
        min_size=1,
        max_size=30,
    ),
    seed=st.integers(0, 1000),
)
def test_anything_at_all(words: list[tuple[int, int]], seed: int) -> None:
    lab = Net()
    try:
        bad, a, b = (lab.station(n) for n in (1, 2, 3))
        head = ethernet(b.mac, bad.mac, b"", 0x0800)
        bad.store(BUFFER, head + random.Random(seed).randbytes(32000))
        bad.post(*words)
        lab.run()
        b.receive()
        assert len(bad.reports()) <= 1
        check_neighbours(a, b)
    finally:
        lab.close()
