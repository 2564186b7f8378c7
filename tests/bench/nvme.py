"""The NVMe data path without a VM: commands and bytes a second beside memcpy, and latencies.

    ci/bench nvme [--rounds N] [--commands N] [--docs]

A user-space driver (``vdcm.client``, its hot loop in ``nvme_loop.c``) shares queues, data and the
page of doorbells with a VDEV of a server, whose store is memory. While it measures, no message is
sent and no interrupt raised: this is the direct path alone, one CPU for the driver and one for the
server.

In turns with it the same loop runs against a thread of this process that does nothing but fetch,
memcpy and complete, on plain memory: the limit. And memcpy alone moves as many bytes. Printed are
medians over the rounds; all samples go to ``build/bench/nvme.json``. Whatever else wants the two
CPUs takes part in what is measured.
"""

from __future__ import annotations

import argparse
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, Final

from cffi import FFI
from nvme_client import BUS_MASTER, NvmeClient
from nvme_host import DOORBELLS

from tests.bench.common import (
    BUILD,
    build_programs,
    daemon,
    keep,
    percentile,
    publish,
    steal_seconds,
)
from vdcm.environment import load_environment

READ, WRITE = 2, 1
ENTRIES: Final = 256
QUEUES: Final = 2
STORE: Final = 256 << 20
MEMORY: Final = 64 << 20
DEEPEST, LIST, DATA_OF_ONE = 128, 4096, 24 << 20
SPARE: Final = 4096
"""Behind each completion queue: room for the queues of the limit."""
CONTIGUOUS: Final = 1
"""Of a completion queue (Create I/O Completion Queue, dword 11), without interrupts."""
PATIENCE: Final = 10_000
"""Looks in vain before the driver gives its CPU away."""
ROWS: Final = [
    (title, opcode, size, depth, queues)
    for size, name in ((4 << 10, "4 KiB"), (128 << 10, "128 KiB"))
    for opcode, title_of in ((READ, "reads"), (WRITE, "writes"))
    for depth, queues in (((1, 1), (32, 1), (128, 1), (32, 2)) if size < 1 << 16 else ((8, 1),))
    for title in [f"{name} {title_of}, depth {depth}, {queues} queue{'s' * (queues > 1)}"]
]

NEAR, *_, FAR = sorted(os.sched_getaffinity(0))

Samples = dict[str, list[float]]

ffi = FFI()
ffi.cdef(
    """
    struct queue { uint8_t *memory; uint64_t sq, cq, lists, data; uint32_t *tail, *head;
                   uint32_t entries, sq_tail, cq_head, phase, patience; };
    void nvme_lists(struct queue *, uint32_t depth, uint32_t size);
    uint64_t nvme_stream(struct queue *, uint32_t n, uint8_t opcode, uint32_t size, uint64_t blocks,
                         uint32_t depth, uint64_t count);
    uint64_t nvme_memcpy(struct queue *, uint8_t opcode, uint32_t size, uint8_t *store,
                         uint64_t blocks, uint32_t depth, uint64_t count);
    void nvme_bare(struct queue *, uint32_t n, uint32_t size, uint8_t *store, const int *stop);
    int nvme_latency(struct queue *, uint8_t opcode, uint32_t size, uint64_t count,
                     uint32_t pause_us, uint64_t *samples);
    """
)


def fill(host: NvmeClient) -> None:
    queue, content = host.create_queue(QUEUES + 1, 64), os.urandom(128 << 10)
    for block in range(0, STORE >> 9, len(content) >> 9):
        with host.borrowed():
            host.write(queue, block, content)
    host.delete_queue(queue)


@contextmanager
def driver() -> Iterator[Any]:
    """The driver's queues. The namespace has no holes, which are read faster."""
    definition = (
        f"parents:\n  nvme0: {{model: nvme, store: 'ram:{STORE >> 20}M'}}\n"
        f"vdevs:\n  v: {{parent: nvme0, type: nvme, size: {STORE >> 20}M, doorbells: direct, "
    )
    with TemporaryDirectory() as name:
        path = Path(name, "v.sock")
        with (
            daemon(Path(name), f"{definition}socket: {path}}}\n", FAR),
            NvmeClient(path, MEMORY) as host,
        ):
            os.sched_setaffinity(0, {NEAR})
            host.client.config.write(4, 2, BUS_MASTER)
            host.enable()
            bus = host.bus
            memory = ffi.cast("uint8_t *", ffi.from_buffer(bus.memory)) - bus.base
            (area,) = (one for one in bus.areas if one.offset == DOORBELLS)
            doorbells = ffi.cast("uint32_t *", ffi.from_buffer(area.view))
            queues = ffi.new("struct queue[]", QUEUES)
            for n in range(QUEUES):
                cq = host.create_cq(n + 1, ENTRIES, flags=CONTIGUOUS)
                host.take(80 * ENTRIES)  # SPARE
                sq = host.create_queue(n + 1, ENTRIES, cqid=n + 1).sq
                lists, data = host.take(DEEPEST * LIST), host.take(DATA_OF_ONE)
                at = doorbells + 2 * n + 2
                queues[n] = (memory, sq, cq, lists, data, at, at + 1, ENTRIES, 0, 0, 1, PATIENCE)
            fill(host)
            yield queues


@contextmanager
def bare(lib: Any, queues: Any, n: int, size: int, store: Any) -> Iterator[Any]:
    """The driver's queues against a thread of ours; nobody looks at those doorbells else."""
    mine, its = ffi.new("struct queue[]", QUEUES), ffi.new("struct queue[]", QUEUES)
    doorbells = ffi.new("uint32_t[]", 2 * QUEUES)
    for k in range(n):
        q = queues[k]
        ffi.memmove(q.memory + q.cq + SPARE, bytes(80 * ENTRIES), 80 * ENTRIES)
        for one in mine, its:
            one[k] = (
                q.memory, q.cq + SPARE, q.cq + SPARE + 64 * ENTRIES, q.lists, q.data,
                doorbells + 2 * k, doorbells + 2 * k + 1, ENTRIES, 0, 0, 1, PATIENCE,
            )  # fmt: skip
    stop = ffi.new("int *")

    def answer() -> None:
        os.sched_setaffinity(0, {FAR})
        lib.nvme_bare(its, n, size, store, stop)

    thread = Thread(target=answer)
    thread.start()
    try:
        yield mine
    finally:
        stop[0] = 1
        thread.join()


def seconds(ns: int) -> float:
    if not ns:
        sys.exit("a command did not succeed")
    return ns / 1e9


def main() -> None:
    parser = argparse.ArgumentParser("ci/bench nvme", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commands", type=int, default=400_000, help="of 4 KiB, for one figure")
    parser.add_argument("--docs", action="store_true", help="into docs/nvme.md")
    options = parser.parse_args()
    build_programs(load_environment().libvfio_user)
    lib = ffi.dlopen(str(BUILD / "libnvme_loop.so"))
    rates: Samples = {}
    limits: Samples = {}
    copies: Samples = {}
    times: dict[str, list[list[float]]] = {}
    steal = steal_seconds()
    store = ffi.from_buffer("uint8_t[]", mmap.mmap(-1, STORE))
    ffi.memmove(store, os.urandom(1 << 20) * (STORE >> 20), STORE)
    with driver() as queues:
        for number in range(options.rounds):
            print(f"round {number + 1}/{options.rounds}", file=sys.stderr, flush=True)
            for title, opcode, size, depth, n in ROWS:
                count = max(1000, options.commands * 4096 // size)
                for k in range(n):
                    lib.nvme_lists(queues + k, depth, size)
                work = (size, STORE >> 9, depth, count)
                ours = seconds(lib.nvme_stream(queues, n, opcode, *work))
                with bare(lib, queues, n, size, store) as others:
                    limit = seconds(lib.nvme_stream(others, n, opcode, *work))
                plain = seconds(
                    lib.nvme_memcpy(queues, opcode, size, store, STORE >> 9, depth, count)
                )
                for found, time in ((rates, ours), (limits, limit), (copies, plain)):
                    found.setdefault(title, []).append(count / time)
            for name, count, pause in (("busy", 20_000, 0), ("after 20 ms", 30, 20_000)):
                samples = ffi.new("uint64_t[]", count)
                if lib.nvme_latency(queues, READ, 4096, count, pause, samples):
                    sys.exit("a command did not succeed")
                times.setdefault(f"4 KiB read, {name}", []).append([ns / 1000 for ns in samples])
    steal = steal_seconds() - steal
    kept = {"steal_seconds": steal, "rates": rates, "limits": limits, "memcpy": copies, "us": times}
    path = keep("nvme", kept)
    print(
        f"{table(rates, limits, copies, times)}\n\nsteal time {steal:.1f} s; all samples in {path}"
    )
    if options.docs:
        publish("nvme.md", "nvme", table(rates, limits, copies, times))


def table(rates: Samples, limits: Samples, copies: Samples, times: dict[str, Any]) -> str:
    lines = [
        "| | thousands a second (least to most) | of the limit | GB/s | memcpy, GB/s |",
        "|---|---|---|---|---|",
    ]
    for title, _, size, _, _ in ROWS:
        found, most = rates[title], median(limits[title])
        lines.append(
            f"| {title} | {median(found) / 1e3:.0f} ({min(found) / 1e3:.0f}-{max(found) / 1e3:.0f})"
            f" | {median(found) / most:.2f} | {median(found) * size / 1e9:.1f}"
            f" | {median(copies[title]) * size / 1e9:.1f} |"
        )
    lines += ["", "| latency | p50, µs | p99, µs |", "|---|---|---|"]
    for title, series in times.items():
        middle, high = (median(percentile(one, part) for one in series) for part in (0.5, 0.99))
        lines.append(f"| {title} | {middle:.2f} | {high:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
