"""What the NIC's switch learns: addresses behind ports that may send from others than their own."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import avf_net as net
import pytest
from avf_net import Net, Station, ethernet, mac
from hypothesis import given, settings
from hypothesis import strategies as st

from vdcm.surroundings import freeze_native
from vdcm_devices.avf.native import Port

MOST = 256
AGE = 300
BRIDGE: dict[str, Any] = {"check_source": False, "learn": True}
BEHIND, OTHER, STRANGER = mac(101), mac(102), mac(103)
GROUP = bytes.fromhex("01005e000001")


class Timed(Net):
    """Time passes only in ``later``."""

    def __init__(self) -> None:
        super().__init__()
        freeze_native(self.now)

    def later(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)
        freeze_native(self.now)

    def run(self, steps: int = 400) -> None:
        now = self.now
        super().run(steps)
        self.now = now

    def close(self) -> None:
        freeze_native(0)
        super().close()


@pytest.fixture
def lab() -> Iterator[Timed]:
    made = Timed()
    yield made
    made.close()


def say(station: Station, source: bytes, to: bytes = net.BROADCAST, **how: Any) -> bytes:
    """Send a frame from ``source``; the frame."""
    frame = ethernet(to, source, random.randbytes(50), **how)
    station.send(frame)
    return frame


def came(lab: Net) -> list[list[bytes]]:
    return [station.frames() for station in lab.stations]


def test_a_frame_goes_where_its_address_was_seen(lab: Timed) -> None:
    a, bridge = lab.station(1), lab.station(2, **BRIDGE)
    lab.station(3)
    lab.station(4, all_unicast=True)
    one = say(a, a.mac, BEHIND)
    assert came(lab) == [[], [], [], [one]]  # nobody knows yet where that is
    said = say(bridge, BEHIND, a.mac)
    assert bridge.port.learnt() == {BEHIND: 0.0}
    assert came(lab) == [[said], [], [], [said]]
    one = say(a, a.mac, BEHIND)
    assert came(lab) == [[], [one], [], [one]]
    bridge.filter(**BRIDGE, all_unicast=True)
    one = say(a, a.mac, BEHIND)
    assert came(lab) == [[], [one], [], [one]]  # once
    one = say(bridge, OTHER, BEHIND)
    assert came(lab) == [[], [], [], [one]]  # it does not come back


def test_only_what_is_an_address_of_nobodys_is_learnt(lab: Timed) -> None:
    a, bridge = lab.station(1), lab.station(2, **BRIDGE)
    for source in (GROUP, bytes(6), net.BROADCAST, a.mac, bridge.mac):
        say(bridge, source, a.mac)
    assert len(a.frames()) == 5
    assert bridge.port.learnt() == {}
    one = say(bridge, STRANGER, a.mac, tag=5)  # a VLAN that it has not is not sent
    assert one not in a.frames()
    assert bridge.port.learnt() == {}


@pytest.mark.parametrize("how", [{}, {"learn": True}, {"check_source": False}])
def test_a_port_that_may_not_have_others_teaches_nothing(lab: Timed, how: dict[str, Any]) -> None:
    a, bridge, b = lab.station(1), lab.station(2, **BRIDGE), lab.station(3, **how)
    say(bridge, BEHIND)
    for source in (BEHIND, OTHER):
        say(b, source)
    came(lab)
    assert (bridge.port.learnt(), b.port.learnt()) == ({BEHIND: 0.0}, {})
    one = say(a, a.mac, BEHIND)
    assert came(lab) == [[], [one], []]  # nor does it take it away


def test_a_port_with_the_address_wins(lab: Timed) -> None:
    a, bridge, b = lab.station(1), lab.station(2, **BRIDGE), lab.station(3)
    say(bridge, BEHIND)
    b.filter(addresses=frozenset({b.mac, BEHIND}))
    assert bridge.port.learnt() == {}
    say(bridge, BEHIND)
    assert bridge.port.learnt() == {}
    came(lab)
    one = say(a, a.mac, BEHIND)
    assert came(lab) == [[], [], [one]]
    b.filter()
    say(a, a.mac, BEHIND)
    assert came(lab) == [[], [], []]
    say(bridge, BEHIND)
    assert bridge.port.learnt() == {BEHIND: 0.0}


def test_a_station_moves(lab: Timed) -> None:
    a = lab.station(1)
    first, second = (lab.station(n, **BRIDGE) for n in (2, 3))
    say(first, STRANGER)
    for here, there in ((first, second), (second, first), (first, second)):
        say(here, BEHIND)
        came(lab)
        one = say(a, a.mac, BEHIND)
        assert (here.frames(), there.frames()) == ([one], [])
        assert (BEHIND in here.port.learnt(), BEHIND in there.port.learnt()) == (True, False)
        assert STRANGER in first.port.learnt()


def test_what_is_not_seen_for_long_is_forgotten(lab: Timed) -> None:
    a, bridge = lab.station(1), lab.station(2, **BRIDGE)
    say(bridge, BEHIND)
    lab.later(AGE - 1)
    say(bridge, OTHER)
    assert bridge.port.learnt() == {OTHER: 0.0, BEHIND: AGE - 1.0}
    one = say(a, a.mac, BEHIND)
    assert bridge.frames() == [one]
    lab.later(1)
    assert bridge.port.learnt() == {OTHER: 1.0}
    say(a, a.mac, BEHIND)
    assert bridge.frames() == []
    say(bridge, OTHER)  # seen again
    lab.later(AGE - 1)
    one = say(a, a.mac, OTHER)
    assert bridge.frames() == [one]


def reset(bridge: Station) -> None:
    bridge.port.reset()
    bridge.start()


def bounce(bridge: Station) -> None:
    bridge.port.set_link(False)
    bridge.port.set_link(True)


def check(bridge: Station) -> None:
    bridge.filter(check_source=True, learn=True)
    bridge.filter(**BRIDGE)


@pytest.mark.parametrize("end", [reset, bounce, check])
def test_a_port_that_begins_anew_knows_nothing(lab: Timed, end: Any) -> None:
    a, bridge = lab.station(1), lab.station(2, **BRIDGE)
    witness = lab.station(3, **BRIDGE)
    say(witness, OTHER)
    say(bridge, BEHIND)
    bridge.filter(**BRIDGE, vlans=frozenset({7}))  # no reason to forget
    assert bridge.port.learnt() == {BEHIND: 0.0}
    end(bridge)
    assert (bridge.port.learnt(), witness.port.learnt()) == ({}, {OTHER: 0.0})
    came(lab)
    say(a, a.mac, BEHIND)
    assert came(lab) == [[], [], []]
    say(bridge, BEHIND)
    one = say(a, a.mac, BEHIND)
    assert bridge.frames() == [one]


def test_a_port_that_has_gone_has_nothing_behind_it(lab: Timed) -> None:
    a, bridge = lab.station(1), lab.station(2, **BRIDGE)
    say(bridge, BEHIND)
    lab.stations.remove(bridge)
    bridge.close()
    say(a, a.mac, BEHIND)
    assert bridge.port.learnt() == {}
    other = lab.station(3, **BRIDGE)
    say(other, BEHIND)
    one = say(a, a.mac, BEHIND)
    assert other.frames() == [one]


def flood(station: Station, sources: list[bytes]) -> None:
    """A frame from each, to nobody: as many at a time as the ring takes."""
    room = station.length - 1
    frames = net.BASE + 0x10_0000
    command = net.EOP | net.RS | 60 << 34
    for start in range(0, len(sources), room):
        some = sources[start : start + room]
        rest = struct.pack(">H", 0x88B5) + bytes(50)
        station.store(frames, b"".join(STRANGER + source + rest for source in some))
        size = len(STRANGER + sources[0] + rest)
        last = station.post(*((frames + size * n, command) for n in range(len(some))))[-1]
        station.net.run()
        assert station.done(last)


def test_a_flood_of_addresses_costs_nobody_else_any(lab: Timed) -> None:
    a, good = lab.station(1), lab.station(2, **BRIDGE)
    hostile = lab.station(3, **BRIDGE)
    hostile.port.disable(1, 1)
    hostile.start(length=512)
    quiet = [bytes([2, 1, 0, 0, 0, n]) for n in range(MOST)]
    for source in quiet:
        say(good, source, STRANGER)
    lab.later(1)
    chance = random.Random(1)
    sources = [b"\2\2" + chance.randbytes(4) for _ in range(100_000)]
    sources += [a.mac, good.mac] * 3
    flood(hostile, sources)
    lab.later(1)
    assert list(good.port.learnt()) == quiet[::-1]
    assert hostile.port.learnt() == dict.fromkeys(sources[-7 : -7 - MOST : -1], 1.0)
    for source in (quiet[0], quiet[-1]):
        one = say(a, a.mac, source)
        assert (good.frames(), hostile.frames()) == ([one], [])
    one, two = say(good, good.mac, a.mac), say(a, a.mac, good.mac)
    assert came(lab) == [[one], [two], []]
    assert hostile.reports() == []
    # An address that is seen stays, whoever else is.
    flood(hostile, [BEHIND])
    for n in range(4):
        flood(hostile, [*(bytes([2, 3, n, 0, 0, m]) for m in range(MOST - 1)), BEHIND])
    assert BEHIND in hostile.port.learnt()


# Against a model.

PORTS = range(1, 6)
POLICIES: list[dict[str, Any]] = [BRIDGE, BRIDGE, {"check_source": False}, {}]
ADDRESSES = [*map(mac, PORTS), BEHIND, OTHER, STRANGER, GROUP, bytes(6)]


@dataclass
class Model:
    """Who receives a frame, as the documentation has it."""

    filters: dict[int, dict[str, Any]] = field(default_factory=dict)
    down: set[int] = field(default_factory=set)
    learnt: dict[bytes, tuple[int, float]] = field(default_factory=dict)
    now: float = 0.0

    def addresses(self, port: int) -> frozenset[bytes]:
        found: frozenset[bytes] = self.filters[port]["addresses"]
        return found

    def has(self, port: int, tag: int | None) -> bool:
        return tag is None or tag in self.filters[port]["vlans"]

    def learns(self, port: int) -> bool:
        how = self.filters[port]
        return not how.get("check_source", True) and how.get("learn", False)

    def forget(self, port: int) -> None:
        self.learnt = {mac: where for mac, where in self.learnt.items() if where[0] != port}

    def filter(self, port: int, how: dict[str, Any]) -> None:
        self.filters[port] = how
        for address in self.addresses(port):
            self.learnt.pop(address, None)
        if not self.learns(port):
            self.forget(port)

    def behind(self, port: int) -> dict[bytes, float]:
        ages = {mac: self.now - seen for mac, (at, seen) in self.learnt.items() if at == port}
        return {mac: age for mac, age in ages.items() if age < AGE}

    def send(self, port: int, source: bytes, to: bytes, tag: int | None) -> set[int]:
        own = source in self.addresses(port) and not source[0] & 1
        checks = self.filters[port].get("check_source", True)
        if port in self.down or not self.has(port, tag) or (checks and not own):
            return set()
        taken = any(source in self.addresses(other) for other in PORTS)
        if self.learns(port) and not taken and not source[0] & 1 and any(source):
            self.learnt[source] = port, self.now
        found = {other for other in PORTS if to in self.addresses(other)}
        found = found or {other for other in PORTS if to in self.behind(other)}
        if to == net.BROADCAST:
            found = set(PORTS)
        elif not to[0] & 1:
            found |= {other for other in PORTS if self.filters[other].get("all_unicast")}
        return {n for n in found if n != port and n not in self.down and self.has(n, tag)}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_switch_does_as_its_model(data: st.DataObject) -> None:
    lab, model = Timed(), Model()
    draw, ports = data.draw, st.sampled_from(PORTS)
    try:
        stations = {}
        for n in PORTS:
            how = {"addresses": frozenset({mac(n)}), "vlans": frozenset({5}), **POLICIES[n % 4]}
            stations[n] = lab.station(n, **how)
            model.filter(n, how)
        addresses, tags = st.sampled_from([*ADDRESSES, net.BROADCAST]), st.sampled_from([None, 5])
        for _ in range(draw(st.integers(1, 25))):
            n, what = draw(ports), draw(st.sampled_from(["send"] * 8 + ["filter", "port", "time"]))
            port: Port = stations[n].port
            if what == "send":
                source, to, tag = draw(addresses), draw(addresses), draw(tags)
                frame = say(stations[n], source, to, tag=tag)
                wanted = {other: [frame] for other in model.send(n, source, to, tag)}
                assert {o: found for o in PORTS if (found := stations[o].frames())} == wanted
            elif what == "filter":
                how = {
                    "addresses": frozenset({mac(n)})
                    | draw(st.frozensets(st.sampled_from(ADDRESSES[5:9]), max_size=2)),
                    "vlans": draw(st.sampled_from([frozenset(), frozenset({5})])),
                    "all_unicast": draw(st.booleans()),
                    **draw(st.sampled_from(POLICIES)),
                }
                stations[n].filter(**how)
                model.filter(n, how)
            elif what == "port":
                if draw(st.booleans()):
                    reset(stations[n])
                else:
                    port.set_link(n in model.down)
                    model.down ^= {n}
                model.forget(n)
            else:
                seconds = draw(st.sampled_from([1, 100, AGE]))
                lab.later(seconds)
                model.now += seconds
            assert {o: stations[o].port.learnt() for o in PORTS} == {
                o: model.behind(o) for o in PORTS
            }
    finally:
        lab.close()
