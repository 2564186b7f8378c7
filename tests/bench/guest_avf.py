"""Two guests: Linux's iavf over our switch; virtio-net and e1000e over QEMU's ``-netdev dgram``.

    ci/bench guest-avf [--rounds N] [--seconds S] [--wake-us N] [--docs]

Each of the two guests has one CPU and all three adapters, of which one is up at a time; each pair
has a network of its own, and every driver its defaults. iperf3 and ping run on one after the other,
in turns. What is printed are medians over the rounds, ± half of the spread from the least to the
greatest; ratios are those of each round. Pings go one at a time: each as soon as the one before is
answered, or 100 ms later.

All samples go to ``build/bench/guest-avf.json``; ``--docs`` puts them into docs/avf.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

from tests.bench.common import (
    Daemon,
    about,
    daemon,
    keep,
    percentile,
    publish,
    steal_seconds,
    turns,
)
from tests.guest.nic import IP, TRAFFIC_TOOLS
from vdcm.environment import load_environment
from vdcm.testing import Machine, vfio_user

ADAPTERS: Final = {"vdcm, iavf": "iavf", "virtio-net": "virtio-net-pci", "e1000e": "e1000e"}
"""Title, and what it is: QEMU's device, or ours."""
_MODULES: Final = ("iavf", "virtio_pci", "virtio_net", "e1000e")
_PINGS: Final = {"-A": 500, "-i 0.1": 40}
"""How, and how many."""

Samples = dict[str, dict[str, list[float]]]
"""By row and by adapter, one of each round."""


def mac(adapter: str, guest: int) -> str:
    return f"02:00:00:00:{list(ADAPTERS.values()).index(adapter):02x}:{guest + 1:02x}"


def address(adapter: str, guest: int) -> str:
    return f"198.18.{list(ADAPTERS.values()).index(adapter)}.{guest + 1}"


def devices(folder: Path, guest: int) -> Iterator[str]:
    """QEMU's arguments."""
    for adapter in ADAPTERS.values():
        if adapter == "iavf":
            yield from vfio_user(folder / f"guest{guest}.sock")
            continue
        here, there = (folder / f"{adapter}{n}.sock" for n in (guest, 1 - guest))
        yield from (
            "-netdev",
            f"dgram,id={adapter},local.type=unix,local.path={here},"
            f"remote.type=unix,remote.path={there}",
        )
        yield from ("-device", f"{adapter},netdev={adapter},mac={mac(adapter, guest)}")


@dataclass(frozen=True)
class Guest:
    machine: Machine
    interfaces: dict[str, str]
    """Of each adapter."""

    @classmethod
    def prepared(cls, machine: Machine, guest: int) -> Guest:
        """With drivers loaded and addresses given; all interfaces are down."""
        machine.check("; ".join(f"modprobe {name}" for name in _MODULES))
        deadline = time.monotonic() + 20
        while True:
            text = machine.check(
                "cd /sys/class/net; for one in *; do echo $one $(cat $one/address); done"
            )
            by_mac = dict(line.split()[::-1] for line in text.splitlines() if " " in line)
            try:
                found = {one: by_mac[mac(one, guest)] for one in ADAPTERS.values()}
                break
            except KeyError:
                if time.monotonic() > deadline:
                    sys.exit(f"the guest has only {by_mac}\n{machine.console()}")
            time.sleep(0.1)
        for adapter, interface in found.items():
            machine.check(f"{IP} addr add {address(adapter, guest)}/24 dev {interface}")
        return cls(machine, found)

    def set(self, adapter: str, state: str) -> None:
        self.machine.check(f"{IP} link set {self.interfaces[adapter]} {state}")


@dataclass(frozen=True)
class Lab:
    """The guests, of which the second is the one that answers, and the daemon."""

    daemon: Daemon
    first: Guest
    second: Guest

    @contextmanager
    def up(self, adapter: str) -> Iterator[str]:
        """This one alone; the address of the second."""
        for guest in (self.first, self.second):
            guest.set(adapter, "up")
        to = address(adapter, 1)
        deadline = time.monotonic() + 20
        while self.first.machine.run(f"ping -c 3 -A -W 1 {to}").status:
            if time.monotonic() > deadline:
                sys.exit(f"{adapter}: {to} does not answer\n{self.second.machine.console()}")
        yield to
        for guest in (self.first, self.second):
            guest.set(adapter, "down")

    def iperf3(self, to: str, words: str, seconds: float) -> dict[str, float]:
        """What it counted in the end, sent and received."""
        text = self.first.machine.run(
            f"iperf3 -J -t {seconds:g} -c {to} {words} 2>/dev/null", seconds + 60
        ).output
        found = json.loads(text or "{}")
        if "error" in found or "end" not in found:
            sys.exit(f"{to}: iperf3 {words}: {text}")
        counted: dict[str, float] = found["end"]["sum" if "-u" in words else "sum_received"]
        return counted

    def tcp(self, to: str, seconds: float, words: str = "") -> float:
        """Megabits a second that arrive."""
        return self.iperf3(to, words, seconds)["bits_per_second"] / 1e6

    def udp(self, to: str, seconds: float, size: int) -> float:
        """Thousand datagrams a second that arrive."""
        found = self.iperf3(to, f"-u -b 0 -l {size}", seconds)
        return (found["packets"] - found["lost_packets"]) / found["seconds"] / 1e3

    def pings(self, to: str, how: str) -> list[float]:
        """Microseconds of each."""
        text = self.first.machine.check(f"ping -c {_PINGS[how]} {how} {to}", 60)
        return [float(ms) * 1e3 for ms in re.findall(r"time=([\d.]+) ms", text)]


@contextmanager
def lab(wake_us: int | None) -> Iterator[Lab]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="vdcm-bench-")))
        properties = "" if wake_us is None else f", wake_us: {wake_us}"
        lines = ["parents:", f"  nic: {{model: avf{properties}}}", "vdevs:"]
        for guest in range(2):
            lines.append(
                f"  guest{guest}: {{parent: nic, type: avf, mac: '{mac('iavf', guest)}', "
                f"socket: {folder}/guest{guest}.sock}}"
            )
        served = stack.enter_context(daemon(folder, "\n".join([*lines, ""])))
        guests = [
            Guest.prepared(
                stack.enter_context(
                    Machine(
                        load_environment(),
                        log_dir=folder / f"guest{guest}",
                        devices=list(devices(folder, guest)),
                        modules=_MODULES,
                        tools=TRAFFIC_TOOLS,
                    )
                ),
                guest,
            )
            for guest in range(2)
        ]
        guests[1].machine.check("iperf3 -s -D")
        yield Lab(served, *guests)


def measure(guests: Lab, rounds: int, seconds: float) -> Samples:
    rates: dict[str, Callable[[str], float]] = {
        "TCP, Mbit/s": lambda to: guests.tcp(to, seconds),
        "TCP, 4 flows, Mbit/s": lambda to: guests.tcp(to, seconds, "-P 4"),
        "UDP, 1400 bytes, thousand/s": lambda to: guests.udp(to, seconds, 1400),
        "UDP, 64 bytes, thousand/s": lambda to: guests.udp(to, seconds, 64),
    }
    times = {"ping, one after another": "-A", "ping, after 100 ms": "-i 0.1"}
    samples: Samples = {}

    def add(row: str, title: str, figure: float) -> None:
        samples.setdefault(row, {one: [] for one in ADAPTERS})[title].append(figure)

    for number in range(rounds):
        for title in turns(ADAPTERS, number):
            print(f"round {number + 1}/{rounds}: {title}", file=sys.stderr, flush=True)
            with guests.up(ADAPTERS[title]) as to:
                for row, rate in rates.items():
                    add(row, title, rate(to))
                for row, how in times.items():
                    found = guests.pings(to, how)
                    add(f"{row}, µs: median", title, median(found))
                    add(f"{row}, µs: p99", title, percentile(found, 0.99))
    return samples


def ratio(samples: Samples, row: str, ours: str, theirs: str) -> float:
    """How much better ours is: more of a rate, less of a time."""
    pairs = zip(samples[row][ours], samples[row][theirs], strict=True)
    return median(b / a if "µs" in row else a / b for a, b in pairs)


def table(samples: Samples) -> str:
    ours, *others = ADAPTERS
    lines = [
        f"| | {' | '.join(ADAPTERS)} | {' | '.join(f'better than {name}' for name in others)} |",
        f"|---{'|---' * (len(ADAPTERS) + len(others))}|",
    ]
    for row, found in samples.items():
        digits = 1 if "thousand" in row else 0
        cells = [about(found[title], digits) for title in ADAPTERS]
        cells += [f"{ratio(samples, row, ours, name):.2f}" for name in others]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser("ci/bench guest-avf", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="of each run of iperf3")
    parser.add_argument("--wake-us", type=int, help="of the parent, instead of its default")
    parser.add_argument("--docs", action="store_true", help="into docs/avf.md")
    options = parser.parse_args()
    steal, start = steal_seconds(), time.monotonic()
    with lab(options.wake_us) as guests:
        samples = measure(guests, options.rounds, options.seconds)
        with guests.up("iavf"):
            idle = guests.daemon.cpu_share(5)
    steal, elapsed = steal_seconds() - steal, time.monotonic() - start
    path = keep(
        "guest-avf",
        {**vars(options), "steal_seconds": steal, "idle_cpu": idle, "samples": samples},
    )
    heading = (
        f"Medians of {options.rounds} rounds of {options.seconds:g} s, ± half of the spread; two "
        f"guests of one CPU on {os.cpu_count()}, steal time {steal / elapsed:.1%} of one; with "
        f"both VDEVs idle the server takes {idle:.1%}:"
    )
    text = f"{heading}\n\n{table(samples)}"
    print(f"{text}\n\nall samples in {path}")
    if options.docs:
        publish("avf.md", "guest-avf", text)


if __name__ == "__main__":
    main()
