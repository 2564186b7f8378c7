"""The software DSA beside memcpy: bytes and descriptors a second, and latencies.

    ci/bench dsa [--rounds N] [--seconds S]

A user-space driver (this process, its hot loop in ``dsa_loop.c``) shares memory with a VDEV of a
``vdcm serve`` of its own, on the same CPU and on another one. memcpy copies between the same
buffers, on the device's CPU and in turns with it. Latency is that of one small move at a time, from
its doorbell to its completion record or its interrupt, back to back and after 20 ms of idling. What
is printed are medians over the rounds; all samples go to ``build/bench/dsa.json``. At last the
executor alone, without portals and other threads (``dsa_executor.c``). Whatever else wants these
two CPUs takes part in what is measured.
"""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

from cffi import FFI
from dsa_client import BATCH, INTERRUPT, MOVE, REQUEST, VALID, DsaClient
from dsa_machine import descriptor

from tests.bench.common import BUILD, build_programs, daemon, keep, percentile, steal_seconds
from vdcm.environment import load_environment

SIZES: Final = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20]
DEPTH: Final = 16
"""Descriptors under way when bytes count."""
QUEUE: Final = 128
"""Entries of the work queue, and descriptors under way when descriptors count."""
BATCHED: Final = 64
"""Descriptors of a batch."""
SMALL: Final = 64
LISTS, SOURCE, TARGET, ARENA = 1 << 20, 2 << 20, 18 << 20, 34 << 20
PAUSE_US: Final = 20_000
PATIENCE: Final = 10_000
"""Looks in vain before the driver gives its CPU away, where that is not the device's."""
HANDLE: Final = 1
INTERCEPTED_PORTAL: Final = 0x1000

ffi = FFI()
ffi.cdef(
    """
    struct driver { uint64_t *portal; uint32_t slot, patience; uint8_t *memory; };
    uint64_t dsa_stream(struct driver *, const uint64_t *words, uint32_t depth, uint64_t count);
    uint64_t dsa_memcpy(struct driver *, uint64_t from, uint64_t to, uint64_t size, uint32_t depth,
                        uint64_t count);
    int dsa_latency(struct driver *, const uint64_t *words, uint64_t count, uint32_t pause_us,
                    int eventfd, uint64_t *samples);
    int dsa_message_latency(struct driver *, const uint64_t *words, uint64_t count,
                            uint32_t pause_us, int socket, uint32_t region, uint64_t offset,
                            uint64_t *samples);
    """
)

Samples = dict[str, list[float]]


class Driver:
    """One client's hot loop, on ``cpu``, the device being on ``device_cpu``."""

    def __init__(self, lib: Any, dsa: DsaClient, cpu: int, device_cpu: int) -> None:
        self.lib = lib
        self.dsa = dsa
        self.cpus = (cpu, device_cpu)
        self.iova = dsa.memory.base
        memory = ffi.from_buffer(dsa.memory.buffer.view, require_writable=True)
        self._held = [memory]
        portal = ffi.NULL
        if dsa.direct:
            ring = dsa.areas[0]
            page = ffi.from_buffer(ring.view, require_writable=True)
            self._held.append(page)
            portal = ffi.cast("uint64_t *", page)
        patience = 0 if cpu == device_cpu else PATIENCE
        self.native = ffi.new(
            "struct driver *", (portal, 0, patience, ffi.cast("uint8_t *", memory))
        )
        os.sched_setaffinity(0, {cpu})

    def close(self) -> None:
        for memory in self._held:
            ffi.release(memory)

    def move(self, index: int, size: int, flags: int = VALID | REQUEST, **fields: int) -> bytes:
        """Buffer ``index`` of the sources to that of the targets, with record ``index``."""
        return descriptor(
            MOVE,
            flags,
            completion=self.iova + 64 * index if flags & VALID else 0,
            source=self.iova + SOURCE + index * size,
            destination=self.iova + TARGET + index * size,
            size=size,
            **fields,
        )

    def batch(self, index: int, size: int) -> bytes:
        """A batch with its list in guest memory and one record, ``index``, for all of it."""
        at = self.iova + LISTS + index * BATCHED * 64
        self.dsa.memory.write(at, b"".join(self.move(i, size, flags=0) for i in range(BATCHED)))
        record = self.iova + 64 * index
        return descriptor(BATCH, VALID | REQUEST, completion=record, source=at, size=BATCHED)

    def stream(self, descriptors: list[bytes], count: int) -> float:
        """Seconds."""
        words = words_of(*descriptors)
        ns = self.lib.dsa_stream(self.native, words, len(descriptors), count)
        if not ns:
            sys.exit("a descriptor did not succeed")
        return ns / 1e9

    def memcpy(self, size: int, count: int) -> float:
        """Seconds, on the device's CPU."""
        cpu, device_cpu = self.cpus
        os.sched_setaffinity(0, {device_cpu})
        ns = self.lib.dsa_memcpy(self.native, SOURCE, TARGET, size, DEPTH, count)
        os.sched_setaffinity(0, {cpu})
        return ns / 1e9

    def latency(
        self, call: Callable[..., int], data: bytes, count: int, pause_us: int, *rest: int
    ) -> list[float]:
        """Microseconds of each."""
        samples = ffi.new("uint64_t[]", count)
        if call(self.native, words_of(data), count, pause_us, *rest, samples):
            sys.exit("a descriptor did not succeed")
        return [ns / 1000 for ns in samples]


def words_of(*descriptors: bytes) -> Any:
    """``uint64_t[]`` of descriptors."""
    words = struct.unpack(f"<{8 * len(descriptors)}Q", b"".join(descriptors))
    return ffi.new("uint64_t[]", list(words))


def name_of(size: int) -> str:
    return f"{size >> 10} KiB" if size < 1 << 20 else f"{size >> 20} MiB"


def check(driver: Driver) -> None:
    """What counts as a move is one."""
    memory, size = driver.dsa.memory, SIZES[-1]
    memory.write(memory.base + TARGET, bytes(size))
    driver.stream([driver.move(0, size)], 1)
    if memory.read(memory.base + TARGET, size) != memory.read(memory.base + SOURCE, size):
        sys.exit("the DSA has moved something else")


def bytes_a_second(
    driver: Driver, seconds: float, *, memcpy_first: bool
) -> Iterator[tuple[str, float]]:
    """GB/s for each size, of memcpy and of the DSA."""
    for size in SIZES:
        work = [driver.move(i, size) for i in range(DEPTH)]
        driver.stream(work, 2 * DEPTH)
        driver.memcpy(size, 2 * DEPTH)
        count = max(DEPTH, int(seconds / driver.memcpy(size, 4 * DEPTH) * 4 * DEPTH))
        turns = [
            (f"memcpy {name_of(size)}", lambda n, size=size: driver.memcpy(size, n)),
            (f"DSA {name_of(size)}", lambda n, work=work: driver.stream(work, n)),
        ]
        for row, turn in turns if memcpy_first else turns[::-1]:
            yield row, count * size / turn(count) / 1e9
        if size == SIZES[0]:
            lists = [driver.batch(i, size) for i in range(4)]
            batches = max(8, count // BATCHED)
            moved = batches * BATCHED * size
            yield f"DSA, batches {name_of(size)}", moved / driver.stream(lists, batches) / 1e9


def descriptors_a_second(driver: Driver, seconds: float) -> Iterator[tuple[str, float]]:
    """Millions a second."""
    work = [driver.move(i, SMALL) for i in range(QUEUE)]
    once = driver.stream(work, 10 * QUEUE) / 10 / QUEUE
    count = int(seconds / once)
    yield "descriptors", count / driver.stream(work, count) / 1e6
    lists = [driver.batch(i, SMALL) for i in range(DEPTH)]
    count = count // BATCHED
    yield "descriptors in batches", count * BATCHED / driver.stream(lists, count) / 1e6


def latencies(driver: Driver, seconds: float) -> Iterator[tuple[str, list[float]]]:
    """Microseconds."""
    many, few = 10_000, max(20, int(seconds * 1e6 / PAUSE_US))
    direct, message = driver.lib.dsa_latency, driver.lib.dsa_message_latency
    polled = driver.move(0, SMALL)
    if driver.dsa.direct:
        signalled = driver.move(0, SMALL, VALID | REQUEST | INTERRUPT, handle=HANDLE)
        eventfd = driver.dsa.events[HANDLE].fileno()
        os.set_blocking(eventfd, True)
        for name, count, pause in (("busy", many, 0), ("idle", few, PAUSE_US)):
            yield f"direct, {name}", driver.latency(direct, polled, count, pause, -1)
            yield (
                f"direct, interrupt, {name}",
                driver.latency(direct, signalled, count, pause, eventfd),
            )
        return
    place = (driver.dsa.client.fileno(), 2, INTERCEPTED_PORTAL)
    for name, count, pause in (("busy", many, 0), ("idle", few, PAUSE_US)):
        yield f"intercepted, {name}", driver.latency(message, polled, count, pause, *place)


def definition(folder: Path) -> str:
    lines = ["parents:", f"  dsa0: {{model: dsa, dwq_size: {QUEUE}, swqs: 0}}", "vdevs:"]
    for name in ("direct", "intercepted"):
        lines.append(
            f"  {name}: {{parent: dsa0, type: dsa-1dwq, portals: {name}, "
            f"socket: {folder / name}.sock}}"
        )
    return "\n".join([*lines, ""])


@contextmanager
def driven(lib: Any, path: Path, cpu: int, device_cpu: int) -> Iterator[Driver]:
    """A driver of the VDEV behind ``path``, its work queue enabled."""
    with DsaClient(path, ARENA) as dsa:
        dsa.start()
        dsa.enable_interrupts()
        dsa.memory.write(dsa.memory.base + SOURCE, bytes(range(256)) * ((ARENA - SOURCE) >> 8))
        driver = Driver(lib, dsa, cpu, device_cpu)
        try:
            yield driver
        finally:
            driver.close()


def measure(lib: Any, rounds: int, seconds: float) -> tuple[Samples, dict[str, list[list[float]]]]:
    """Rates by row, one figure a round; and latencies by row, all samples of each round."""
    rates: Samples = {}
    times: dict[str, list[list[float]]] = {}
    cpus = sorted(os.sched_getaffinity(0))
    near, far = cpus[-1], cpus[0]
    with TemporaryDirectory(prefix="vdcm-bench-") as name:
        folder = Path(name)
        with daemon(folder, definition(folder), near):
            for number in range(rounds):
                print(f"round {number + 1}/{rounds}", file=sys.stderr, flush=True)
                for where, cpu in (("two CPUs", far), ("one CPU", near)):
                    with driven(lib, folder / "direct.sock", cpu, near) as driver:
                        check(driver)
                        for row, rate in (
                            *bytes_a_second(driver, seconds, memcpy_first=number % 2 == 0),
                            *descriptors_a_second(driver, seconds),
                        ):
                            rates.setdefault(f"{row}, {where}", []).append(rate)
                    for kind in ("direct", "intercepted"):
                        with driven(lib, folder / f"{kind}.sock", cpu, near) as driver:
                            for row, found in latencies(driver, seconds):
                                times.setdefault(f"{row}, {where}", []).append(found)
    return rates, times


def tables(rates: Samples, times: dict[str, list[list[float]]]) -> str:
    """Three tables."""
    lines = ["| memory move, GB/s | memcpy | DSA | DSA / memcpy |", "|---|---|---|---|"]
    for where in ("two CPUs", "one CPU"):
        for size in SIZES:
            rows = [("DSA", name_of(size))]
            if size == SIZES[0]:
                rows.append(("DSA, batches", f"{name_of(size)}, batches of {BATCHED}"))
            for kind, title in rows:
                plain = rates[f"memcpy {name_of(size)}, {where}"]
                ours = rates[f"{kind} {name_of(size)}, {where}"]
                ratio = median(ours[i] / plain[i] for i in range(len(plain)))
                lines.append(
                    f"| {title}, {where} | {median(plain):.2f} | {median(ours):.2f} | {ratio:.2f} |"
                )
    lines += ["", f"| {SMALL}-byte moves | millions a second |", "|---|---|"]
    for row, found in rates.items():
        if row.startswith("descriptors"):
            lines.append(f"| {row} | {median(found):.2f} |")
    lines += ["", "| doorbell to completion | p50, µs | p99, µs |", "|---|---|---|"]
    for row, series in times.items():
        middle, high = (median(percentile(one, part) for one in series) for part in (0.5, 0.99))
        lines.append(f"| {row} | {middle:.1f} | {high:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser("ci/bench dsa", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="of each figure, about")
    options = parser.parse_args()
    build_programs(load_environment().libvfio_user)
    lib = ffi.dlopen(str(BUILD / "libdsa_loop.so"))
    steal = steal_seconds()
    rates, times = measure(lib, options.rounds, options.seconds)
    executor = subprocess.check_output([str(BUILD / "dsa_executor")], text=True)
    steal = steal_seconds() - steal
    result = {"rates": rates, "microseconds": times, "executor": executor.splitlines()}
    path = keep("dsa", {"steal_seconds": steal, **result})
    print(f"medians of {options.rounds} rounds")
    print(tables(rates, times))
    print(f"\nthe executor alone:\n{executor}")
    print(f"steal time {steal:.1f} s; all samples in {path}")


if __name__ == "__main__":
    main()
