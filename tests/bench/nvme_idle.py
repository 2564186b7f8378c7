"""What idle NVMe VDEVs cost, and how long the first command after a pause takes.

    ci/bench nvme-idle [--rounds N] [--samples N] [--seconds S] [--docs]

One ``vdcm serve`` with so many VDEVs, all of one parent, each with a client that has an I/O queue,
has read from it and now does nothing. Server and clients have a CPU each. CPU time is that of the
whole server. Then one of the clients after the other reads 4 KiB, each a second after the one
before. Rounds go through all cases; printed are medians. All samples go to
``build/bench/nvme-idle.json``; ``--docs`` puts the table into docs/nvme.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

from nvme_client import NvmeClient
from nvme_host import READ

from tests.bench.common import Daemon, daemon, keep, publish, steal_seconds
from vdcm.serving import raise_descriptor_limit

CASES: Final = [
    (mode, count, wake_us)
    for mode, wakes in (("direct", (20_000, 1_000, 100)), ("shadow", (20_000,)))
    for count in (1, 256)
    for wake_us in wakes
]
"""Doorbells, VDEVs, and the parent's ``wake_us``."""
MEMORY: Final = 1 << 20
"""Bytes of guest memory of each client."""
SETTLE: Final = 1.0
"""Seconds without commands before anything is measured."""
PATIENCE: Final = 20.0


def definition(folder: Path, mode: str, count: int, wake_us: int) -> str:
    lines = [f"parents:\n  nvme0: {{model: nvme, store: 'ram:1G', wake_us: {wake_us}}}\nvdevs:"]
    for n in range(count):
        lines.append(
            f"  v{n}: {{parent: nvme0, type: nvme, size: 1M, doorbells: {mode}, queues: 1, "
            f"socket: {folder}/v{n}.sock}}"
        )
    return "\n".join([*lines, ""])


def read(nvme: NvmeClient, address: int) -> float:
    """Microseconds from the doorbell to the completion of a read."""
    cid = nvme.put(nvme.queue, READ, nsid=1, prp1=address, cdw12=7)
    begin = time.perf_counter()
    nvme.ring(2 * nvme.queue.sqid, nvme.queue.tail)
    while not nvme.reap(nvme.queue):  # no message is sent meanwhile
        if time.perf_counter() - begin > PATIENCE:
            sys.exit("a command does not end")
    elapsed = time.perf_counter() - begin
    if nvme.wait(nvme.queue, cid).status:
        sys.exit("a command did not succeed")
    return elapsed * 1e6


def measure(server: Daemon, count: int, seconds: float, samples: int) -> dict[str, Any]:
    with ExitStack() as stack:
        clients = []
        for n in range(count):
            nvme = stack.enter_context(NvmeClient(server.folder / f"v{n}.sock", MEMORY))
            nvme.start(16)
            clients.append((nvme, nvme.take(4096)))
            read(*clients[-1])
        time.sleep(SETTLE)
        cpu, first = server.cpu_share(seconds), []
        for n in range(samples):
            time.sleep(SETTLE)
            first.append(read(*clients[n * 37 % count]))
        return {"cpu": cpu, "first": first, "busy": [read(*clients[0]) for _ in range(200)]}


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "| doorbells | idle VDEVs | `wake_us` | CPU of the server, % | first command, µs: median | "
        "longest | of many, µs |",
        "|---|---|---|---|---|---|---|",
    ]
    for mode, count, wake_us in CASES:
        found = results[f"{mode} {count} {wake_us}"]
        first = [us for one in found for us in one["first"]]
        lines.append(
            f"| {mode} | {count} | {wake_us if mode == 'direct' else '-'} | "
            f"{100 * median(one['cpu'] for one in found):.2f} | {median(first):.0f} | "
            f"{max(first):.0f} | {median(us for one in found for us in one['busy']):.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser("ci/bench nvme-idle", description=(__doc__ or "")[:80])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=10, help="first commands of a round")
    parser.add_argument("--seconds", type=float, default=5, help="of idling, for one figure")
    parser.add_argument("--docs", action="store_true", help="into docs/nvme.md")
    options = parser.parse_args()
    raise_descriptor_limit()
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[0]})
    results: dict[str, list[dict[str, Any]]] = {}
    steal = steal_seconds()
    for number in range(options.rounds):
        for mode, count, wake_us in CASES:
            name = f"{mode} {count} {wake_us}"
            print(f"round {number + 1}/{options.rounds}: {name}", file=sys.stderr, flush=True)
            with TemporaryDirectory(prefix="vdcm-bench-") as temporary:
                folder = Path(temporary)
                with daemon(folder, definition(folder, mode, count, wake_us), cpus[-1]) as server:
                    found = measure(server, count, options.seconds, options.samples)
            results.setdefault(name, []).append(found)
    steal = steal_seconds() - steal
    path = keep("nvme-idle", {**vars(options), "steal_seconds": steal, "samples": results})
    print(f"{table(results)}\n\nsteal time {steal:.1f} s; all samples in {path}")
    if options.docs:
        publish("nvme.md", "nvme-idle", table(results))


if __name__ == "__main__":
    main()
