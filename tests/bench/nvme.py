"""The NVMe data path without a VM: commands and bytes a second beside memcpy, and latencies.

    ci/bench nvme [--rounds N] [--commands N]

A user-space driver (this process, its hot loop in ``nvme_loop.c``) shares queues, data and a page
of doorbells with a controller on a sweep thread of this process; the store is memory. No message
is sent and no interrupt raised: this is the direct path alone, one CPU for the driver and one for
the sweep. memcpy moves the same bytes between the same places in turns with it. Printed are medians
over the rounds; all samples go to ``build/bench/nvme.json``. Whatever else wants the two CPUs takes
part in what is measured.
"""

from __future__ import annotations

import argparse
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, Final

from cffi import FFI

from tests.bench.common import BUILD, build_programs, keep, percentile, steal_seconds
from vdcm.dma import SecondLevel
from vdcm.environment import load_environment
from vdcm.pasid import PasidTable
from vdcm.sweep import QueueState, Sweep, services
from vdcm.transport import GuestMemory
from vdcm_devices.nvme._fastpath import ffi as nvme_ffi
from vdcm_devices.nvme._fastpath import lib as nvme

READ, WRITE = 2, 1
ENTRIES: Final = 256
QUEUES: Final = 2
STORE: Final = 256 << 20
MEMORY: Final = 64 << 20
LISTS, DATA, DATA_OF_ONE = 1 << 20, 2 << 20, 24 << 20
PATIENCE: Final = 10_000
"""Looks in vain before the driver gives its CPU away."""
ROWS: Final = [
    (title, opcode, size, depth, queues)
    for size, name in ((4 << 10, "4 KiB"), (128 << 10, "128 KiB"))
    for opcode, title_of in ((READ, "reads"), (WRITE, "writes"))
    for depth, queues in (((1, 1), (32, 1), (128, 1), (32, 2)) if size < 1 << 16 else ((8, 1),))
    for title in [f"{name} {title_of}, depth {depth}, {queues} queue{'s' * (queues > 1)}"]
]

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
    int nvme_latency(struct queue *, uint8_t opcode, uint32_t size, uint64_t count,
                     uint32_t pause_us, uint64_t *samples);
    """
)


@contextmanager
def controller() -> Iterator[tuple[Any, Any]]:
    """The driver's queues, and the address of the store."""
    fd = os.memfd_create("vdcm-bench")
    os.ftruncate(fd, MEMORY)
    buffer, page = mmap.mmap(fd, MEMORY), mmap.mmap(-1, mmap.PAGESIZE)
    memory = ffi.from_buffer(buffer)
    doorbells = ffi.cast("uint32_t *", ffi.from_buffer(page))
    guest, space, table = GuestMemory(), SecondLevel(), PasidTable()
    space.attach(guest)
    guest.map(0, MEMORY, fd, 0)
    pasid = table.allocate(space)
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[-1]})
    sweep = Sweep()  # its thread stays there
    os.sched_setaffinity(0, {cpus[0]})
    native = nvme.nvme_controller_new(services())
    store = nvme.nvme_store_ram(STORE)
    content = ffi.cast("uint8_t *", int(nvme.nvme_store_memory(store)))
    ffi.memmove(content, os.urandom(1 << 20) * (STORE >> 20), STORE)
    nvme.nvme_doorbells_set(native, int(ffi.cast("uintptr_t", doorbells)))
    nvme.nvme_namespace_set(native, 1, store, 0, STORE >> 9, 9, False)
    queues = ffi.new("struct queue[]", QUEUES)
    made = []
    for n in range(QUEUES):
        sq, cq = 0x20000 * n, 0x20000 * n + 0x10000
        completions = nvme.nvme_cq_new(native, n + 1, cq, ENTRIES, False)
        submissions = nvme.nvme_sq_new(native, n + 1, sq, ENTRIES, completions)
        path = sweep.adi(lambda _path: None)
        path.set_pasids(pasid, None)
        path.set_bus_master(True)
        device = int(nvme_ffi.cast("uintptr_t", submissions))
        path.queue(nvme.nvme_fastpath(), device, doorbells=True).state = QueueState.RUNNING
        made.append((path, submissions, completions))
        queues[n] = (
            memory, sq, cq, LISTS + (n << 19), DATA + DATA_OF_ONE * n,
            doorbells + 2 * n + 2, doorbells + 2 * n + 3, ENTRIES, 0, 0, 1, PATIENCE,
        )  # fmt: skip
    try:
        yield queues, content
    finally:
        for path, submissions, completions in made:
            path.close()
            nvme.nvme_sq_free(submissions)
            nvme.nvme_cq_free(completions)
        nvme.nvme_controller_free(native)
        nvme.nvme_store_free(store)
        sweep.close()
        table.release(pasid)
        guest.disconnect()
        os.close(fd)


def seconds(ns: int) -> float:
    if not ns:
        sys.exit("a command did not succeed")
    return ns / 1e9


def main() -> None:
    parser = argparse.ArgumentParser("ci/bench nvme", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commands", type=int, default=400_000, help="of 4 KiB, for one figure")
    options = parser.parse_args()
    build_programs(load_environment().libvfio_user)
    lib = ffi.dlopen(str(BUILD / "libnvme_loop.so"))
    rates: dict[str, list[float]] = {}
    copies: dict[str, list[float]] = {}
    times: dict[str, list[list[float]]] = {}
    steal = steal_seconds()
    with controller() as (queues, store):
        for number in range(options.rounds):
            print(f"round {number + 1}/{options.rounds}", file=sys.stderr, flush=True)
            for title, opcode, size, depth, n in ROWS:
                count = max(1000, options.commands * 4096 // size)
                for k in range(n):
                    lib.nvme_lists(queues + k, depth, size)
                work = (size, STORE >> 9, depth, count)
                ours = seconds(lib.nvme_stream(queues, n, opcode, *work))
                plain = seconds(
                    lib.nvme_memcpy(queues, opcode, size, store, STORE >> 9, depth, count)
                )
                rates.setdefault(title, []).append(count / ours)
                copies.setdefault(title, []).append(count / plain)
            for name, count, pause in (("busy", 20_000, 0), ("after 20 ms", 30, 20_000)):
                samples = ffi.new("uint64_t[]", count)
                if lib.nvme_latency(queues, READ, 4096, count, pause, samples):
                    sys.exit("a command did not succeed")
                times.setdefault(f"4 KiB read, {name}", []).append([ns / 1000 for ns in samples])
    steal = steal_seconds() - steal
    path = keep("nvme", {"steal_seconds": steal, "rates": rates, "memcpy": copies, "us": times})
    print("| | thousands a second (least to most) | GB/s | memcpy, GB/s |\n|---|---|---|---|")
    for title, _, size, _, _ in ROWS:
        found = rates[title]
        print(
            f"| {title} | {median(found) / 1e3:.0f} ({min(found) / 1e3:.0f}-{max(found) / 1e3:.0f})"
            f" | {median(found) * size / 1e9:.1f} | {median(copies[title]) * size / 1e9:.1f} |"
        )
    print("\n| latency | p50, µs | p99, µs |\n|---|---|---|")
    for title, series in times.items():
        middle, high = (median(percentile(one, part) for one in series) for part in (0.5, 0.99))
        print(f"| {title} | {middle:.2f} | {high:.2f} |")
    print(f"\nsteal time {steal:.1f} s; all samples in {path}")


if __name__ == "__main__":
    main()
