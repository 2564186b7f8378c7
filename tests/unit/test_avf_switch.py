"""The NIC's switch and queues: who receives what, and nobody else; offloads; interrupts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import avf_net as net
import pytest
from avf_net import Net, Station, ethernet, mac
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vdcm.sweep import QueueState
from vdcm_devices.avf.datapath import Offloads, RxQueue

GROUP = bytes.fromhex("01005e000001")
A4, B4 = bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])
A6, B6 = (bytes.fromhex("20010db8000000000000000000000000")[:15] + bytes([n]) for n in (1, 2))


@pytest.fixture
def lab() -> Iterator[Net]:
    made = Net()
    yield made
    made.close()


@pytest.fixture
def pair(lab: Net) -> tuple[Station, Station]:
    return lab.station(1), lab.station(2)


def payload(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


# Who receives what.


def test_a_frame_goes_to_its_address_only(lab: Net) -> None:
    a, b, c = (lab.station(n) for n in (1, 2, 3))
    frame = ethernet(b.mac, a.mac, payload(50))
    a.send(frame)
    assert (b.frames(), c.frames(), a.frames()) == ([frame], [], [])
    assert (a.counted("tx_unicast"), a.counted("tx_bytes")) == (1, 64)
    assert (b.counted("rx_unicast"), b.counted("rx_bytes")) == (1, 64)


def test_memory_that_is_used_is_counted(pair: tuple[Station, Station]) -> None:
    """Frames and descriptors, though memory is reached once for many of them."""
    a, b = pair
    before = [one.path.counters() for one in pair]
    for size in (64, 1500, 9000):
        a.send(ethernet(b.mac, a.mac, payload(size - 14)))
    assert [len(frame) for frame in b.frames()] == [64, 1500, 9000]
    (sent, freed, fetched, written), frames = moved(pair, before), 64 + 1500 + 9000
    assert (sent, freed) == (frames + 3 * 16, 3 * 16)
    assert written == frames + (1 + 1 + 5) * 32  # buffers have 2048 bytes
    assert fetched == 32 * 32


def moved(pair: tuple[Station, Station], before: list[dict[str, Any]]) -> list[int]:
    """Bytes read and written of the first, and of the second."""
    return [
        one.path.counters()[name] - old[name]
        for one, old in zip(pair, before, strict=True)
        for name in ("dma_read_bytes", "dma_written_bytes")
    ]


def test_a_broadcast_goes_to_all_others(lab: Net) -> None:
    stations = [lab.station(n) for n in range(1, 6)]
    frame = ethernet(net.BROADCAST, stations[0].mac, payload(1400))
    stations[0].send(frame)
    assert [station.frames() for station in stations] == [[], *[[frame]] * 4]
    assert stations[4].counted("rx_broadcast") == 1


def test_groups_and_promiscuous_ports(lab: Net) -> None:
    a = lab.station(1)
    member = lab.station(2, addresses=frozenset({mac(2), GROUP}))
    lab.station(3)
    every_group = lab.station(4, all_multicast=True, addresses=frozenset({mac(4), GROUP}))
    curious = lab.station(5, all_unicast=True)
    group, single = ethernet(GROUP, a.mac, b"g" * 46), ethernet(mac(3), a.mac, b"u" * 46)
    a.send(group)
    a.send(single)
    found = [station.frames() for station in lab.stations]
    assert found == [[], [group], [single], [group], [single]]  # each once
    assert member.counted("rx_multicast") == every_group.counted("rx_multicast") == 1
    curious.filter()
    a.send(single)
    assert curious.frames() == []


def test_an_unknown_address_reaches_nobody(lab: Net) -> None:
    a, b = lab.station(1), lab.station(2)
    a.send(ethernet(mac(9), a.mac, b"x" * 46))
    a.send(ethernet(a.mac, a.mac, b"x" * 46))
    assert (a.frames(), b.frames(), a.counted("tx_unicast")) == ([], [], 2)


def test_a_forged_source_is_not_sent(lab: Net, pair: tuple[Station, Station]) -> None:
    a, b = pair
    forged = ethernet(b.mac, mac(7), b"x" * 46)
    a.send(forged)
    a.send(ethernet(b.mac, b.mac, b"x" * 46))
    assert (b.frames(), a.counted("tx_errors")) == ([], 2)
    a.filter(check_source=False)
    a.send(forged)
    assert b.frames() == [forged]
    a.filter(addresses=frozenset({a.mac, mac(7)}))
    a.send(forged)
    assert b.frames() == [forged]
    lab.run()


def test_vlans_are_apart(lab: Net) -> None:
    a = lab.station(1, vlans=frozenset({5, 6}))
    five, six = lab.station(2, vlans=frozenset({5})), lab.station(3, vlans=frozenset({6}))
    none, every = lab.station(4), lab.station(5, vlans=None)
    for tag in (5, 6, 0x2005, 7, 0, None):
        a.send(ethernet(net.BROADCAST, a.mac, bytes(46), tag=tag))
    assert a.counted("tx_errors") == 1  # VLAN 7 is not its own

    def tags(station: Station) -> list[int | None]:
        return [
            int.from_bytes(frame[14:16], "big") if frame[12:14] == b"\x81\x00" else None
            for frame in station.frames()
        ]

    assert tags(five) == [5, 0x2005, 0, None]
    assert tags(six) == [6, 0, None]
    assert tags(none) == [0, None]
    assert tags(every) == [5, 6, 0x2005, 0, None]


def test_tags_are_inserted_and_stripped(pair: tuple[Station, Station]) -> None:
    a, b = pair
    for station in pair:
        station.filter(vlans=None)
    plain, tagged = (ethernet(b.mac, a.mac, payload(900), tag=tag) for tag in (None, 0x6123))
    a.send(plain, net.TAGGED, tag=0x6123)
    assert b.frames() == [tagged]
    b.port.set_offloads(Offloads(strip=True))
    a.send(plain, net.TAGGED, tag=0x6123)
    a.send(tagged)
    a.send(plain)
    found = b.receive()
    assert [one.frame for one in found] == [plain] * 3
    assert [(one.tag, bool(one.status & 4)) for one in found] == [
        (0x6123, True),
        (0x6123, True),
        (0, False),
    ]
    a.port.set_offloads(Offloads(insert=False))
    a.send(plain, net.TAGGED, tag=0x6123)
    assert (b.frames(), a.counted("tx_errors")) == ([], 1)


@pytest.mark.parametrize("who", [0, 1])
def test_a_link_that_is_down(pair: tuple[Station, Station], who: int) -> None:
    a, b = pair
    pair[who].port.set_link(False)
    a.send(ethernet(b.mac, a.mac, bytes(46)))
    assert (b.frames(), a.counted("tx_discards")) == ([], 1 - who)
    pair[who].port.set_link(True)
    a.send(ethernet(b.mac, a.mac, bytes(46)))
    assert len(b.frames()) == 1


def test_a_port_that_does_not_run_receives_nothing(lab: Net) -> None:
    a, b = lab.station(1), lab.station(2)
    lab.run()
    b.queue.state = QueueState.STOPPED
    a.send(ethernet(b.mac, a.mac, bytes(46)))
    assert b.frames() == []
    b.queue.state = QueueState.RUNNING
    a.send(ethernet(b.mac, a.mac, bytes(46)))
    assert len(b.frames()) == 1


def test_a_full_ring_drops_and_counts(pair: tuple[Station, Station]) -> None:
    a, b = pair
    frames = [ethernet(b.mac, a.mac, bytes([n]) * 46) for n in range(70)]
    for frame in frames:
        a.send(frame)
    assert b.frames() == frames[:63]
    assert (b.counted("rx_discards"), a.reports(), b.reports()) == (7, [], [])
    a.send(frames[0])
    assert b.frames() == [frames[0]]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_frames_of_all_sizes_in_all_pieces(data: st.DataObject) -> None:
    lab = Net()
    try:
        a, b = lab.station(1), lab.station(2)
        buffer = data.draw(st.sampled_from([1024, 1536, 2048, 8192]))
        b.port.disable(1, 1)
        b.start(buffer=buffer)
        sizes = data.draw(st.lists(st.integers(0, 9700), min_size=1, max_size=6))
        frames = [ethernet(b.mac, a.mac, payload(size, size)) for size in sizes]
        for frame in frames:
            cuts = data.draw(st.lists(st.integers(1, len(frame) - 1), max_size=8))
            a.send(frame, pieces=cuts)
        found = b.receive()
        assert [one.frame for one in found] == frames
        assert [one.descriptors for one in found] == [-(-len(f) // buffer) for f in frames]
        assert a.reports() == b.reports() == []
    finally:
        lab.close()


def test_a_frame_that_is_too_long_for_its_receiver(pair: tuple[Station, Station]) -> None:
    a, b = pair
    b.port.disable(1, 1)
    b.start(max_frame=1522)
    longest, longer = (ethernet(b.mac, a.mac, bytes(n)) for n in (1504, 1505))
    a.send(longest)
    a.send(longer)
    assert (b.frames(), b.counted("rx_discards")) == ([longest], 1)


def test_memory_in_ranges_of_a_page(lab: Net) -> None:
    """What is contiguous for the guest need not be so here."""
    a, b = lab.station(1), lab.station(2)
    for station in (a, b):
        station.memory.unmap(net.BASE, net.SIZE)
        for at in range(0, 0x10_0000, 0x1_0000):
            station.memory.map(net.BASE + at, 0x1_0000, station.fd, at)
        for at in range(0x10_0000, 0x10_6000, 0x1000):
            station.memory.map(net.BASE + at, 0x1000, station.fd, at)
        for at in range(0x20_0000, 0x20_8000, 0x1000):
            station.memory.map(net.BASE + at, 0x1000, station.fd, at)
    frame = ethernet(b.mac, a.mac, payload(9000))
    a.send(frame, pieces=[4000])
    assert b.frames() == [frame]


# Offloads.


@pytest.mark.parametrize("size", [0, 1, 31, 200, 201, 1459, 8000])
@pytest.mark.parametrize("six", [False, True])
def test_checksums_are_inserted(pair: tuple[Station, Station], six: bool, size: int) -> None:
    a, b = pair
    here, there = (A6, B6) if six else (A4, B4)
    type_, l3, flag = (0x86DD, 40, net.IPV6) if six else (0x0800, 20, net.IPV4_SUM)
    data = payload(size)
    start = net.pseudo(here, there, net.TCP, 20 + size)
    cases = [
        (net.UDP, net.udp(here, there, data, seed=True), net.udp(here, there, data, seed=False),
         net.UDP_SUM, 8),
        (net.TCP, net.tcp(here, there, data, seed=net.ones_sum(start)),
         net.tcp(here, there, data), net.TCP_SUM, 20),
    ]  # fmt: skip
    sctp = b"\x03\xe8\x07\xd0\x01\x02\x03\x04"
    chunk = data + bytes(-size % 4)
    crc = net.crc32c(sctp + bytes(4) + chunk).to_bytes(4, "little")
    cases.append((net.SCTP, sctp + b"junk" + chunk, sctp + crc + chunk, net.SCTP_SUM, 12))
    for protocol, seeded, right, flags, l4 in cases:
        raw = bytearray(ethernet(b.mac, a.mac, net.ip(here, there, protocol, seeded), type_))
        if not six:
            raw[24:26] = b"\0\0"  # the header's checksum is the device's, too
        a.send(bytes(raw), flag | flags | net.offsets(14, l3, l4), pieces=[70, 301])
        (found,) = b.receive()
        assert found.frame == ethernet(b.mac, a.mac, net.ip(here, there, protocol, right), type_)
        assert found.summed == (True, False, False)


def test_a_udp_checksum_of_zero_is_sent_as_ones(pair: tuple[Station, Station]) -> None:
    a, b = pair
    data = bytes(2)
    rest = 0xFFFF ^ net.ones_sum(
        net.pseudo(A4, B4, net.UDP, 10) + net.udp(A4, B4, data, seed=True)[:6] + bytes(4)
    )
    data = rest.to_bytes(2, "big")
    raw = ethernet(b.mac, a.mac, net.ip(A4, B4, net.UDP, net.udp(A4, B4, data, seed=True)), 0x0800)
    a.send(raw, net.IPV4 | net.UDP_SUM | net.offsets(14, 20, 8))
    assert b.frames()[0][40:42] == b"\xff\xff"


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("broken", ["", "ip", "l4"])
def test_checksums_of_others_are_verified(
    pair: tuple[Station, Station], six: bool, broken: str
) -> None:
    a, b = pair
    here, there, type_ = (A6, B6, 0x86DD) if six else (A4, B4, 0x0800)
    for l4, protocol in (
        (net.udp(here, there, payload(701), seed=False), net.UDP),
        (net.tcp(here, there, payload(1001)), net.TCP),
    ):
        raw = bytearray(ethernet(b.mac, a.mac, net.ip(here, there, protocol, l4), type_))
        if broken == "ip" and not six:
            raw[22] ^= 1
        if broken == "l4":
            raw[-1] ^= 1
        a.send(bytes(raw), pieces=[601])
        (found,) = b.receive()
        assert found.frame == raw
        assert found.summed == (True, broken == "ip" and not six, broken == "l4")
        assert found.packet_type == (24 if protocol == net.UDP else 26) + 66 * six


def test_what_has_no_checksum_is_not_said_to_have_one(pair: tuple[Station, Station]) -> None:
    a, b = pair
    a.send(ethernet(b.mac, a.mac, payload(100)))
    a.send(ethernet(b.mac, a.mac, b"\x45" + payload(10), 0x0800))  # no whole header
    a.send(ethernet(b.mac, a.mac, net.ip(A4, B4, net.SCTP, payload(32)), 0x0800))
    assert [found.summed[0] for found in b.receive()] == [False] * 3


@settings(max_examples=30, deadline=None)
@given(
    six=st.booleans(),
    size=st.integers(1, 30000),
    mss=st.integers(64, 8900),
    flags=st.sampled_from([0x10, 0x18, 0x19, 0x98]),
    tag=st.sampled_from([None, "descriptor", "frame"]),
    cuts=st.lists(st.integers(1, 30000), max_size=3),
)
def test_segmentation(
    six: bool, size: int, mss: int, flags: int, tag: str | None, cuts: list[int]
) -> None:
    lab = Net()
    try:
        a, b = lab.station(1, vlans=None), lab.station(2, vlans=None)
        b.port.disable(1, 1)
        b.start(length=512)
        here, there, l3, type_ = (A6, B6, 40, 0x86DD) if six else (A4, B4, 20, 0x0800)
        data = payload(size)
        seed = net.ones_sum(net.pseudo(here, there, net.TCP, 0))
        whole = net.tcp(here, there, data, sequence=2**32 - 1000, flags=flags, seed=seed)
        packet = net.ip(here, there, net.TCP, b"", ident=0xFFFE) + whole
        raw = ethernet(b.mac, a.mac, packet, type_, tag=0x123 if tag == "frame" else None)
        l2 = 18 if tag == "frame" else 14
        command = (net.IPV6 if six else net.IPV4_SUM) | net.TCP_SUM | net.offsets(l2, l3, 20)
        command |= net.TAGGED if tag == "descriptor" else 0
        pieces = {cut for cut in cuts if cut < len(raw)} | set(range(16000, len(raw), 16000))
        a.send(raw, command, pieces=sorted(pieces), before=[net.context(size, mss)], tag=0x123)
        expected = []
        for number, at in enumerate(range(0, size, mss)):
            last = at + mss >= size
            now = flags & (0xFF if last else 0xF6) & (0xFF if not number else 0x7F)
            sequence = (2**32 - 1000 + at) % 2**32
            segment = net.tcp(here, there, data[at : at + mss], sequence=sequence, flags=now)
            packet = net.ip(here, there, net.TCP, segment, ident=(0xFFFE + number) % 0x10000)
            between = None if tag is None else 0x123
            expected.append(ethernet(b.mac, a.mac, packet, type_, tag=between))
        found = b.receive()
        assert [one.frame for one in found] == expected
        assert {one.summed for one in found} == {(True, False, False)}
        assert a.counted("tx_unicast") == len(expected)
    finally:
        lab.close()


def test_rss_spreads_flows(lab: Net) -> None:
    a, b = lab.station(1), lab.station(2, queues=4)
    expected: dict[int, list[tuple[bytes, int]]] = {n: [] for n in range(4)}
    for six in (False, True):
        here, there, type_ = (A6, B6, 0x86DD) if six else (A4, B4, 0x0800)
        for port in range(40):
            l4 = net.udp(here, there, b"data", (port, 53), seed=False)
            frame = ethernet(b.mac, a.mac, net.ip(here, there, net.UDP, l4), type_)
            hash_ = net.toeplitz(b.rss.key, here + there + l4[:4])
            expected[b.rss.table[hash_ % 64]].append((frame, hash_))
            a.send(frame)
        ping = ethernet(b.mac, a.mac, net.ip(here, there, 1, b"ping"), type_)
        hash_ = net.toeplitz(b.rss.key, here + there)
        expected[b.rss.table[hash_ % 64]].append((ping, hash_))
        a.send(ping)
    other = ethernet(b.mac, a.mac, b"x" * 46)
    a.send(other)
    for n in range(4):
        found = b.receive(n)
        plain = [one for one in found if one.status >> 12 & 3 != 3]
        assert [one.frame for one in plain] == ([other] if n == 0 else [])
        assert [(one.frame, one.hash) for one in found if one not in plain] == expected[n]
        assert expected[n]


def test_the_hash_of_the_specification() -> None:
    """A row of the table by which implementations of RSS are verified."""
    key = bytes.fromhex(
        "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
    )
    row = bytes([66, 9, 149, 187, 161, 142, 100, 80]) + (2794).to_bytes(2, "big")
    assert net.toeplitz(key, row + (1766).to_bytes(2, "big")) == 0x51CCC178


# Interrupts.

DYN_CTL, ITR = 0x3800, 0x2800
INTENA, SWINT, NO_ITR, KEEP = 1, 1 << 2, 3 << 3, 1 << 31


def test_an_interrupt_is_sent_once_until_it_is_enabled_again(
    lab: Net, pair: tuple[Station, Station]
) -> None:
    a, b = pair
    frame = ethernet(b.mac, a.mac, bytes(46))
    a.send(frame)
    assert b.interrupts() == a.interrupts() == 0  # not enabled yet
    b.register(DYN_CTL, INTENA | NO_ITR)
    lab.run()
    assert (b.interrupts(), b.register(DYN_CTL)) == (1, 0)
    a.send(frame)
    assert b.interrupts() == 1
    b.register(DYN_CTL, INTENA | NO_ITR)
    lab.run()
    assert b.interrupts() == 2
    b.register(DYN_CTL, INTENA | NO_ITR)
    lab.run()
    assert (b.interrupts(), b.register(DYN_CTL)) == (2, INTENA)
    a.send(frame)
    assert b.interrupts() == 3
    a.register(DYN_CTL, INTENA | NO_ITR)
    lab.run()
    assert a.interrupts() == 1  # of its descriptors


def test_software_interrupts_and_the_mask(lab: Net) -> None:
    a = lab.station(1)
    a.register(DYN_CTL, INTENA | NO_ITR)
    lab.run()
    a.register(DYN_CTL, KEEP | NO_ITR)  # INTENA is not written
    lab.run()
    assert a.register(DYN_CTL) == INTENA
    a.register(DYN_CTL, INTENA | SWINT | NO_ITR)
    lab.run()
    assert (a.interrupts(), a.register(DYN_CTL)) == (1, 0)
    a.register(DYN_CTL, SWINT | NO_ITR)
    lab.run()
    assert a.interrupts() == 1
    a.register(DYN_CTL, INTENA | NO_ITR)
    lab.run()
    assert a.interrupts() == 2


def test_an_interval_is_kept(lab: Net, pair: tuple[Station, Station]) -> None:
    a, b = pair
    b.port.disable(1, 1)
    b.port.configure_rx(RxQueue(0, b.ring(0, False), 64, 2048, 9728, 0, 0))
    for index in range(64):
        b.give(0, index)
    b.tail(0, 63, transmit=False)
    b.port.enable(0, 1)
    b.register(DYN_CTL, INTENA | 0 << 3 | 0xFFF << 5)  # ITR 0: 8 ms
    lab.run()
    assert b.register(ITR) == 0xFFF
    frame = ethernet(b.mac, a.mac, bytes(46))
    a.send(frame)
    assert b.interrupts() == 1
    b.register(DYN_CTL, INTENA | NO_ITR)
    a.send(frame)
    assert (b.interrupts(), b.register(DYN_CTL)) == (1, INTENA)
    b.register(ITR, 0)
    lab.run()
    assert b.interrupts() == 2
