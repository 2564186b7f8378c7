"""How long one 4-byte read takes: vdcm beside a minimal C server on the same libvfio-user.

    ci/bench latency [--rounds N] [--reads N] [--no-guest]

Rows: the C client and the Python client, client and server on one CPU and on two; the same reads
from inside a guest; and a page of shared memory, which nobody is asked for. Both servers run in the
same call and take turns; what is printed is the median over the rounds of each round's mean, median
and 99th percentile, and the ratio vdcm / C. All samples go to ``build/bench/latency.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.bench.common import BUILD, build_programs, keep, steal_seconds
from vdcm.client import Client
from vdcm.environment import load_environment
from vdcm.testing import Machine, vfio_user

SERVERS = ("C", "vdcm")
Samples = dict[str, dict[str, list[dict[str, float]]]]


@contextmanager
def server(kind: str, path: Path, cpu: int) -> Iterator[None]:
    """One of the two servers, pinned."""
    command = {
        "C": [str(BUILD / "baseline_server"), str(path)],
        "vdcm": [sys.executable, str(Path(__file__).with_name("bench_server.py")), str(path)],
    }[kind]
    process = subprocess.Popen(
        ["taskset", "-c", str(cpu), *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 20
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the {kind} server did not start")
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait()
        path.unlink(missing_ok=True)


def read_loop(cpu: int, *arguments: object) -> dict[str, float]:
    """Run the C client; its report."""
    command = ["taskset", "-c", str(cpu), str(BUILD / "read_loop"), *map(str, arguments)]
    report: dict[str, float] = json.loads(subprocess.check_output(command, text=True))
    return report


def python_reads(path: Path, cpu: int, count: int) -> dict[str, float]:
    """The same reads through vdcm.client in this process, pinned."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        with Client(path) as client:
            samples = []
            for turn in range(count + count // 10):
                start = time.perf_counter_ns()
                client.read(0, 0, 4)
                if turn >= count // 10:
                    samples.append(time.perf_counter_ns() - start)
    finally:
        os.sched_setaffinity(0, before)
    samples.sort()
    return {
        "reads": count,
        "mean_ns": statistics.fmean(samples),
        "median_ns": samples[count // 2],
        "p99_ns": samples[count * 99 // 100],
    }


def guest_reads(machine: Machine, device: str, count: int) -> dict[str, dict[str, float]]:
    """Trapped, mapped and plain reads in the guest, of the PCI device with this id."""
    find = f"lspci -D -d 1234:{device} | cut -d' ' -f1"
    resource = f"/sys/bus/pci/devices/$({find})"
    machine.check(f"echo 1 > {resource}/enable")
    return {
        name: json.loads(machine.check(f"read_loop {arguments}", timeout=120))
        for name, arguments in (
            ("guest, trapped read", f"file {resource}/resource0 {count}"),
            ("guest, direct page", f"file {resource}/resource0 1000 0x1000"),
            ("guest, plain memory", "memory - 1000"),
        )
    }


def measure(rounds: int, reads: int, guest: bool) -> Samples:
    """All rows: row -> server -> one report per round."""
    samples: Samples = {}

    def note(row: str, kind: str, report: dict[str, float]) -> None:
        samples.setdefault(row, {name: [] for name in SERVERS})[kind].append(report)

    cpus = sorted(os.sched_getaffinity(0))
    near, far = cpus[-1], cpus[0]
    for number in range(rounds):
        # Take turns in who is first: the machine's speed drifts.
        for kind in SERVERS if number % 2 == 0 else SERVERS[::-1]:
            print(f"round {number + 1}/{rounds}: {kind}", file=sys.stderr, flush=True)
            with TemporaryDirectory() as folder:
                path = Path(folder) / "s.sock"
                with server(kind, path, near):
                    for where, cpu in (("one CPU", near), ("two CPUs", far)):
                        note(f"C client, {where}", kind, read_loop(cpu, "socket", path, reads))
                        note(f"vdcm.client, {where}", kind, python_reads(path, cpu, reads // 4))
                    note("direct page", kind, read_loop(far, "socket-page", path, 1000))
                if guest:
                    with (
                        server(kind, path, near),
                        Machine(
                            load_environment(),
                            log_dir=Path(folder) / "guest",
                            devices=vfio_user(path),
                            files={"bin/read_loop": BUILD / "read_loop"},
                        ) as machine,
                    ):
                        device = {"C": "be7c", "vdcm": "be7d"}[kind]
                        for row, report in guest_reads(machine, device, reads // 10).items():
                            note(row, kind, report)
            note("plain shared memory", kind, read_loop(far, "memory", "-", 1000))
    return samples


def guard_cost(count: int) -> dict[str, float]:
    """Nanoseconds to receive and check a message, and of libvfio-user's calls to receive it."""
    report: dict[str, float] = json.loads(
        subprocess.check_output([str(BUILD / "guard_cost"), str(count)], text=True)
    )
    return report


def median_of(reports: list[dict[str, float]], key: str) -> float:
    """The median over the rounds of one figure."""
    return statistics.median(report[key] for report in reports)


def table(samples: Samples) -> str:
    """Medians over the rounds, in microseconds, and the ratio of the means."""
    lines = [
        "| read | C mean | C p99 | vdcm mean | vdcm p99 | vdcm / C |",
        "|---|---|---|---|---|---|",
    ]
    for row, by_server in samples.items():
        cells = []
        means = []
        for kind in SERVERS:
            figures = {key: median_of(by_server[kind], key) for key in ("mean_ns", "p99_ns")}
            means.append(figures["mean_ns"])
            cells += [f"{figures[key] / 1000:.4g}" for key in ("mean_ns", "p99_ns")]
        lines.append(f"| {row} | {' | '.join(cells)} | {means[1] / means[0]:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser("ci/bench latency", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reads", type=int, default=20_000)
    parser.add_argument("--no-guest", action="store_true")
    options = parser.parse_args()
    environment = load_environment()
    build_programs(environment.libvfio_user)
    steal = steal_seconds()
    samples = measure(options.rounds, options.reads, not options.no_guest)
    steal = steal_seconds() - steal
    guard = guard_cost(options.reads)
    result: dict[str, Any] = {
        "unit": "ns",
        "steal_seconds": steal,
        "samples": samples,
        "guard": guard,
    }
    path = keep("latency", result)
    print("microseconds; medians of", options.rounds, "rounds")
    print(table(samples))
    for page, plain in (
        ("direct page", "plain shared memory"),
        ("guest, direct page", "guest, plain memory"),
    ):
        if page in samples:
            ours, theirs = (median_of(samples[row]["vdcm"], "median_ns") for row in (page, plain))
            print(f"{page} / {plain}: {ours / theirs:.2f}")
    print(
        f"to receive and check a message: {guard['alone_ns']:.0f} ns, one of eight that wait: "
        f"{guard['burst_ns']:.0f} ns; libvfio-user's calls to receive one: "
        f"{guard['receive_ns']:.0f} ns"
    )
    print(f"steal time {steal:.1f} s; all samples in {path}")


if __name__ == "__main__":
    main()
