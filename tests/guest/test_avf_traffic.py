"""Two guests with Linux's own iavf talk over the switch of one parent.

VDCM_SOAK in the environment (``ci/test --soak``) asks for ten minutes of it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.nic import Pair

SOAK = "VDCM_SOAK" in os.environ
SECONDS = 20 if SOAK else 1  # of one run of iperf3
MEGABYTES = 100 if SOAK else 16  # of one file
SOAK_SECONDS = 600


@pytest.fixture
def talk(avf_pair: Pair) -> Iterator[Pair]:
    """Up; and afterwards neither driver has done what it must not do."""
    yield avf_pair
    for nic in (avf_pair.a, avf_pair.b):
        assert nic.complaints() == 0, nic.last_complaint()
        assert "NETDEV WATCHDOG" not in nic.machine.check("dmesg")


@pytest.fixture
def pair(talk: Pair) -> Iterator[Pair]:
    """And no frame is missing or there twice: what is not received has been dropped and counted."""
    before = talk.missing()
    yield talk
    talk.server.wait_for("all frames are there", lambda: talk.missing() == before)


def iperf3(pair: Pair, *words: str, amount: str = f"-t {SECONDS}") -> dict[str, Any]:
    """From a to b; what it counted in the end."""
    line = f"iperf3 -J {amount} -c {pair.ADDRESSES[1]} {' '.join(words)} 2>/dev/null"
    result = pair.a.machine.run(line, timeout=SECONDS + 60)
    assert result.output, f"status {result.status}: {line}"
    found = json.loads(result.output)
    assert "error" not in found, found["error"]
    counted: dict[str, Any] = found["end"]
    return counted


@pytest.mark.parametrize("size", [0, 1472, 20000])
def test_ping(pair: Pair, size: int) -> None:
    for to in pair.ADDRESSES[1], pair.ADDRESSES6[1]:
        pair.ping(to, size)


def test_a_capture_of_pings(pair: Pair, tmp_path: Path) -> None:
    file = tmp_path / "a.pcap"
    pair.server.set(pair.a.name, pcap=str(file))
    pair.ping(pair.ADDRESSES[1], 1000)
    pair.server.set(pair.a.name, pcap="")
    data, kinds = file.read_bytes()[24:], []
    while data:
        length = int.from_bytes(data[8:12], "little")
        frame, data = data[16 : 16 + length], data[16 + length :]
        if length == 1042 and frame[23] == 1:  # ICMP
            kinds.append(frame[34])
    assert kinds.count(8) == kinds.count(0) == 20  # echo requests and replies


def test_they_have_four_queues_each_and_use_them(pair: Pair) -> None:
    for nic in (pair.a, pair.b):
        assert nic.shown()["tx_enabled"] == nic.shown()["rx_enabled"] == [0, 1, 2, 3]
    for _ in range(8):  # other ports, and so other queues
        iperf3(pair, "-P 8", "--bidir", amount="-n 64K")
        if all(min(*nic.queues("rx"), *nic.queues("tx")) > 0 for nic in (pair.a, pair.b)):
            return
    pytest.fail(f"a: {pair.a.ethtool('-S')}\nb: {pair.b.ethtool('-S')}")


@pytest.mark.parametrize(("direction", "flows"), [("", 1), ("-R", 1), ("", 4), ("--bidir", 4)])
def test_tcp(pair: Pair, direction: str, flows: int) -> None:
    amount = f"-t {SECONDS}" if SOAK else "-n 4M"
    end = iperf3(pair, direction, f"-P {flows}", amount=amount)
    # -n ends both directions when their sum is there: one of them may have come to little.
    received = [end[name]["bytes"] for name in end if name.startswith("sum_received")]
    assert len(received) == (2 if direction == "--bidir" else 1)
    assert min(received) > 0 and sum(received) > 1_000_000


@pytest.mark.parametrize("length", [16, 1400, 8000])
def test_udp(pair: Pair, length: int) -> None:
    """What is lost has been dropped at a full ring, or by the receiver itself."""
    total = iperf3(pair, "-u", "-b 20M", f"-l {length}")["sum"]
    assert total["packets"] > total["lost_packets"]


def test_files_arrive_as_they_were(pair: Pair) -> None:
    pair.copy(pair.a, pair.b, MEGABYTES)
    pair.copy(pair.b, pair.a, MEGABYTES)


@pytest.mark.parametrize(
    "features", ["tx off", "rx off", "tso off gso off", "gro off", "txvlan off rxvlan off"]
)
def test_files_without_an_offload(pair: Pair, features: str) -> None:
    pair.a.ethtool("-K", features)
    pair.copy(pair.a, pair.b, 4)
    pair.copy(pair.b, pair.a, 4)
    pair.a.ethtool("-K", features.replace("off", "on"))


def test_vlans(pair: Pair) -> None:
    with pair.vlans(5, 5):
        pair.copy(pair.a, pair.b, 4, pair.VLAN_ADDRESSES)
        pair.copy(pair.b, pair.a, 4, pair.VLAN_ADDRESSES)
    with pair.vlans(5, 6):
        assert not pair.answers(pair.VLAN_ADDRESSES[1])


def test_a_bridge_in_a_guest(pair: Pair) -> None:
    mac = "02:00:00:00:01:01"
    with pair.bridge(mac):
        pair.ping(pair.BRIDGED_ADDRESSES[1])
        assert (mac in pair.b.shown()["learnt"], pair.a.shown()["learnt"]) == (True, {})
    assert pair.b.shown()["learnt"] == {}
    pair.ping(pair.ADDRESSES[1])


def test_jumbo_frames(pair: Pair) -> None:
    with pair.mtu(9000):
        pair.ping(pair.ADDRESSES[1], 8972)
        pair.copy(pair.a, pair.b, MEGABYTES)
        pair.copy(pair.b, pair.a, MEGABYTES)


@pytest.mark.parametrize("how", ["vf reset", "function", "link", "driver"])
def test_they_find_each_other_again(talk: Pair, how: str) -> None:
    talk.b.machine.check(f"(ping -q -i 0.01 {talk.ADDRESSES[0]} >/dev/null 2>&1 &)")
    before = talk.a.resets()
    {
        "vf reset": lambda: talk.server.set(talk.a.name, vf_reset=True),
        "function": lambda: talk.a.machine.check(f"echo 1 > {talk.a.folder}/reset"),
        "link": lambda: [talk.server.set(talk.a.name, link=up) for up in (False, True)],
        "driver": lambda: talk.a.machine.check("rmmod iavf"),
    }[how]()
    if how == "driver":
        talk.a.load()
        talk.configure(talk.a)
    elif how != "link":
        talk.server.wait_for("the reset", lambda: talk.a.resets() > before)
    talk.server.wait_for("they talk", lambda: talk.answers(talk.ADDRESSES[1]))
    talk.b.machine.check("killall ping")
    talk.copy(talk.a, talk.b, 1)


@pytest.mark.skipif(not SOAK, reason="ten minutes: set VDCM_SOAK, or run ci/test --soak")
@pytest.mark.timeout(2 * SOAK_SECONDS)
def test_ten_minutes_of_files_and_datagrams(pair: Pair) -> None:
    end = time.monotonic() + SOAK_SECONDS
    steps: list[Callable[[], object]] = [
        lambda: pair.copy(pair.a, pair.b, MEGABYTES),
        lambda: pair.copy(pair.b, pair.a, MEGABYTES),
        lambda: iperf3(pair, "-P 4", "--bidir"),
        lambda: iperf3(pair, "-u", "-b 0", "-l 64"),
    ]
    while time.monotonic() < end:
        for step in steps:
            step()
