"""What a trace costs: accesses and the direct path with none, with one to a file, being counted.

    ci/bench trace [--rounds N] [--reads N] [--seconds S]

One ``vdcm serve`` on one CPU has a DSA whose register is read by a C client, another one whose
direct portal takes 64-byte and 4 KiB moves, and a card whose outputs are written by
``vdcm.client``. In turns nobody looks; ``vdcm trace -o FILE`` has all events of all of them; it has
those that are no accesses; somebody reads all counters four times a second. Whoever looks runs on
the other CPU, which in the rows with two CPUs is the client's, too. What is printed are medians
over the rounds, and the median of each round's ratio to the same round's row with nobody; all
samples go to ``build/bench/trace.json``.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

from tests.bench.common import (
    BUILD,
    Daemon,
    build_programs,
    daemon,
    keep,
    percentile,
    steal_seconds,
)
from tests.bench.dsa import DEPTH, SMALL, driven, ffi
from tests.bench.latency import read_loop
from vdcm.client import Client, Region
from vdcm.environment import load_environment

MODES: Final = ("nobody", "trace to a file", "trace without accesses", "counters")
OTHERS: Final = "reset,dma,interrupt,mailbox,adi,queue,client,device,hint"
READ: Final = ("mean_ns", "median_ns", "p99_ns")
Samples = dict[str, dict[str, list[float]]]

POLL = """
import sys, time
from pathlib import Path
from vdcm.control import ControlClient
with ControlClient(Path(sys.argv[1])) as client:
    while True:
        client.call("counters")
        time.sleep(0.25)
"""


def definition(folder: Path) -> str:
    return (
        "parents: {dsa0: {model: dsa, swqs: 0}}\nvdevs:\n"
        f"  read: {{parent: dsa0, type: dsa-1dwq, portals: intercepted, socket: {folder}/read}}\n"
        f"  moved: {{parent: dsa0, type: dsa-1dwq, portals: direct, socket: {folder}/moved}}\n"
        f"  written: {{type: pcie-idio-16, socket: {folder}/written}}\n"
    )


@contextmanager
def looking(mode: str, server: Daemon, cpu: int) -> Iterator[dict[str, float]]:
    """Somebody looks, or nobody; what has become of a trace is in the dictionary afterwards."""
    found: dict[str, float] = {}
    output = server.folder / "trace.txt"
    vdcm = [sys.executable, "-m", "vdcm", "trace", "--control", str(server.control)]
    commands = {
        "trace to a file": [*vdcm, "-o", str(output), "--size", "1G"],
        "trace without accesses": [
            *vdcm,
            *(word for kind in OTHERS.split(",") for word in ("-k", kind)),
            *("-o", str(output)),
        ],
        "counters": [sys.executable, "-c", POLL, str(server.control)],
    }
    if mode not in commands:
        yield found
        return
    output.unlink(missing_ok=True)
    process = subprocess.Popen(["taskset", "-c", str(cpu), *commands[mode]])
    try:
        deadline = time.monotonic() + 20
        while mode != "counters" and not output.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        if process.poll() is not None:
            sys.exit(f"{mode}: it has ended")
        yield found
        time.sleep(0.5)  # what waits
    finally:
        process.send_signal(signal.SIGTERM if mode == "counters" else signal.SIGINT)
        process.wait()
    if output.exists():
        lines = output.read_text().splitlines()
        dropped = [line for line in lines if "events dropped" in line]
        found["lines"] = len(lines)
        found["dropped"] = sum(int(line.split("... ")[1].split()[0]) for line in dropped)


def writes(path: Path, cpu: int, count: int) -> float:
    """Median ns of a write that is answered."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    samples = []
    try:
        with Client(path) as client:
            for n in range(count):
                start = time.perf_counter_ns()
                client.write(Region.BAR2, 0, 1, n & 0xFF)
                samples.append(time.perf_counter_ns() - start)
    finally:
        os.sched_setaffinity(0, before)
    return median(samples)


def rates(lib: Any, path: Path, cpu: int, near: int, seconds: float) -> dict[str, float]:
    """Millions of moves a second by size, of a driver on ``cpu``: what the fastest tenth of short
    runs reaches, in which nothing else has wanted the two CPUs."""
    before = os.sched_getaffinity(0)
    found = {}
    try:
        with driven(lib, path, cpu, near) as driver:
            for name, size in (("64 B", SMALL), ("4 KiB", 4096)):
                work = [driver.move(i, size) for i in range(DEPTH)]
                count = 256 * DEPTH
                end = time.monotonic() + seconds
                runs = []
                while time.monotonic() < end:
                    runs.append(count / driver.stream(work, count) / 1e6)
                found[f"direct moves, {name}"] = percentile(runs, 0.9)
    finally:
        os.sched_setaffinity(0, before)
    return found


def measure(lib: Any, rounds: int, reads: int, seconds: float) -> tuple[Samples, Samples]:
    """Rows by mode, one figure a round; and what traces have written and dropped."""
    samples: Samples = {}
    traces: Samples = {}
    cpus = sorted(os.sched_getaffinity(0))
    near, far = cpus[-1], cpus[0]
    with TemporaryDirectory(prefix="vdcm-bench-") as name:
        folder = Path(name)
        with daemon(folder, definition(folder), near) as server:
            for number in range(rounds):
                turn = number % len(MODES)
                for mode in MODES[turn:] + MODES[:turn]:
                    print(f"round {number + 1}/{rounds}: {mode}", file=sys.stderr, flush=True)

                    def note(row: str, figure: float, mode: str = mode) -> None:
                        samples.setdefault(row, {one: [] for one in MODES})[mode].append(figure)

                    with looking(mode, server, far) as found:
                        for where, cpu in (("one CPU", near), ("two CPUs", far)):
                            report = read_loop(cpu, "socket", folder / "read", reads)
                            for key in READ:
                                what = key.removesuffix("_ns")
                                note(f"read, C client, {where}, {what}, µs", report[key] / 1e3)
                            took = writes(folder / "written", cpu, reads // 4)
                            note(f"write, vdcm.client, {where}, median, µs", took / 1e3)
                        moved = rates(lib, folder / "moved", far, near, seconds)
                        for row, rate in moved.items():
                            note(f"{row}, two CPUs, millions a second", rate)
                    for what, figure in found.items():
                        traces.setdefault(mode, {}).setdefault(what, []).append(figure)
    return samples, traces


def table(samples: Samples) -> str:
    lines = [f"| | {' | '.join(MODES)} |", "|---" * (len(MODES) + 1) + "|"]
    for row, modes in samples.items():
        cells = []
        for mode in MODES:
            ratio = median(a / b for a, b in zip(modes[mode], modes[MODES[0]], strict=True))
            tail = "" if mode == MODES[0] else f" ({ratio:.2f})"
            cells.append(f"{median(modes[mode]):.3g}{tail}")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser("ci/bench trace", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--reads", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each rate, about")
    options = parser.parse_args()
    build_programs(load_environment().libvfio_user)
    lib = ffi.dlopen(str(BUILD / "libdsa_loop.so"))
    steal = steal_seconds()
    samples, traces = measure(lib, options.rounds, options.reads, options.seconds)
    steal = steal_seconds() - steal
    path = keep("trace", {"steal_seconds": steal, "samples": samples, "traces": traces})
    print(f"medians of {options.rounds} rounds (and of the ratios to nobody in the same round)")
    print(table(samples))
    for mode, counted in traces.items():
        print(mode, {what: median(found) for what, found in counted.items()})
    print(f"steal time {steal:.1f} s; all samples in {path}")


if __name__ == "__main__":
    main()
