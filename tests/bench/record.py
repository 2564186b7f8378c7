"""What it costs to be recorded: an access, and a descriptor of a DSA, with and without.

    ci/bench record [--rounds N] [--count N]

One ``vdcm serve`` on one CPU has a card and a DSA with intercepted portals; a client on the other
one reads and writes a register of each, and has the DSA do nothing, from the store to the
completion record. In turns both VDEVs are started as ever, and to be recorded. What is printed are
medians over the rounds of each round's median, and of the differences; all samples go to
``build/bench/record.json``.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

from dsa_client import NOOP, DsaClient

from tests.bench.common import Daemon, daemon, keep, steal_seconds
from vdcm.client import Client, Region
from vdcm.control import ControlClient

MODES: Final = ("not recorded", "recorded")
GENCFG: Final = 0x80
Samples = dict[str, dict[str, list[float]]]


def definition(folder: Path) -> str:
    return (
        "parents: {dsa0: {model: dsa, swqs: 0}}\nvdevs:\n"
        f"  card: {{type: pcie-idio-16, socket: {folder}/card}}\n"
        f"  dsa: {{parent: dsa0, type: dsa-1dwq, socket: {folder}/dsa}}\n"
    )


def begin(control: ControlClient, mode: str, folder: Path) -> None:
    for name in ("card", "dsa"):
        file = folder / f"{name}.rec"
        file.unlink(missing_ok=True)
        control.call("stop", name=name)
        if mode == MODES[0]:
            control.call("start", name=name)
        else:
            control.call("record", name=name, file=str(file))


def timed(act: Callable[[], object], count: int) -> float:
    """Median µs."""
    samples = []
    for _ in range(count):
        start = time.perf_counter_ns()
        act()
        samples.append(time.perf_counter_ns() - start)
    return median(samples) / 1e3


def used(folder: Path, count: int) -> dict[str, float]:
    """Median µs by what is done."""
    with Client(folder / "card") as card:
        found = {
            "card: read": timed(lambda: card.read(Region.BAR2, 0, 1), count),
            "card: write": timed(lambda: card.write(Region.BAR2, 0, 1, 1), count),
        }
    with DsaClient(folder / "dsa") as dsa:
        dsa.start()
        found["DSA: read"] = timed(lambda: dsa.read(GENCFG), count)
        found["DSA: write"] = timed(lambda: dsa.write(0x98, 0), count)

        def descriptor() -> None:
            dsa.memory.rewind()
            assert dsa.run(0, NOOP).status == 1, "no success"

        found["DSA: no-op, until it is completed"] = timed(descriptor, count)
    return found


def measure(server: Daemon, rounds: int, count: int) -> Samples:
    samples: Samples = {}
    with server.connect() as control:
        for number in range(rounds):
            for mode in MODES if number % 2 else MODES[::-1]:
                begin(control, mode, server.folder)
                for row, us in used(server.folder, count).items():
                    samples.setdefault(row, {one: [] for one in MODES})[mode].append(us)
    return samples


def table(samples: Samples) -> str:
    lines = [f"| median, µs | {' | '.join(MODES)} | more |", "|---|---|---|---|"]
    for row, modes in samples.items():
        pairs: list[tuple[Any, ...]] = list(zip(*(modes[mode] for mode in MODES), strict=True))
        more = median(b - a for a, b in pairs)
        cells = [f"{median(modes[mode]):.0f}" for mode in MODES]
        lines.append(f"| {row} | {' | '.join(cells)} | {more:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser("ci/bench record", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--count", type=int, default=2000)
    options = parser.parse_args()
    steal = steal_seconds()
    cpus = sorted(os.sched_getaffinity(0))
    with TemporaryDirectory(prefix="vdcm-bench-") as name:
        folder = Path(name)
        with daemon(folder, definition(folder), cpus[-1]) as server:
            os.sched_setaffinity(0, {cpus[0]})
            samples = measure(server, options.rounds, options.count)
    steal = steal_seconds() - steal
    path = keep("record", {"steal_seconds": steal, "samples": samples})
    print(table(samples))
    print(f"steal time {steal:.1f} s; all samples in {path}")


if __name__ == "__main__":
    main()
