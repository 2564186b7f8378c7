"""The NIC's switch without a VM: frames a second, and how that falls with the number of VDEVs.

    ci/bench avf [--rounds N] [--frames N]

User-space drivers (this process, their hot loops in ``avf_loop.c``) share rings, buffers and tails
with ports of a switch on a sweep thread of this process; each sends UDP frames, whose checksums
the switch makes, to the next one. No message is sent and no interrupt raised: this is the direct
path alone, one CPU for all drivers together and one for the sweep. memcpy moves as many bytes
between the same buffers in turns with it. Printed are medians over the rounds; all samples go to
``build/bench/avf.json``. "A core" is CPU time of the sweep's thread, in which it also looks at
rings where nothing is; whatever else wants the two CPUs takes part in the rest.
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
from typing import Any, Final

import avf_net as net
from cffi import FFI

from tests.bench.common import BUILD, build_programs, keep, steal_seconds
from vdcm.dma import SecondLevel
from vdcm.environment import load_environment
from vdcm.pasid import PasidTable
from vdcm.sweep import QueueState, Sweep
from vdcm.transport import GuestMemory
from vdcm_devices.avf.datapath import Filters, Offloads, Rss, RxQueue, TxQueue
from vdcm_devices.avf.native import FASTPATH, Port, Switch

ENTRIES: Final = 512
TX, RX, FROM, TO, SIZE = 0, 0x4000, 0x10100, 0x40000, 0x140000
# FROM is not at a page's beginning, as buffers with headroom are not.
PATIENCE: Final = 10_000
"""Looks in vain before the drivers give their CPU away."""
PORTS: Final = (2, 8, 32, 128, 256)
SIZES: Final = (64, 1500)
CPUS: Final = sorted(os.sched_getaffinity(0))

ffi = FFI()
ffi.cdef(
    """
    struct station { uint8_t *memory; uint64_t tx, rx, to, from; uint32_t *tx_tail, *rx_tail;
                     uint64_t flags; uint32_t entries, patience; uint64_t sent, cleaned, received,
                     goal, wrong; };
    void avf_prepare(struct station *);
    uint64_t avf_stream(struct station *, uint32_t n, uint32_t size, uint64_t count);
    uint64_t avf_memcpy(struct station *, uint32_t n, uint32_t size, uint64_t count);
    """
)


def threads() -> set[Path]:
    """Of this process."""
    return set(Path("/proc/self/task").iterdir())


def address(number: int) -> bytes:
    return b"\2\0\0\0" + number.to_bytes(2, "big")


def frame(number: int, to: int, size: int) -> bytes:
    """A UDP datagram of this size, CRC not counted, without its checksum."""
    here, there = (b"\x0a\0" + n.to_bytes(2, "big") for n in (number, to))
    packet = net.udp(here, there, bytes(size - 42), seed=True)
    return net.ethernet(address(to), address(number), net.ip(here, there, net.UDP, packet), 0x0800)


class Bench:
    """``count`` stations at one switch."""

    def __init__(self, lib: Any, count: int, size: int) -> None:
        before = threads()
        os.sched_setaffinity(0, {CPUS[-1]})
        self.sweep = Sweep()  # its thread stays there
        os.sched_setaffinity(0, {CPUS[0]})
        (self._thread,) = threads() - before
        self.switch, self.table = Switch(), PasidTable()
        self.lib, self.count, self.size = lib, count, size
        self.stations = ffi.new("struct station[]", count)
        self._held = [self._station(number) for number in range(count)]

    def _station(self, number: int) -> tuple[Any, ...]:
        fd = os.memfd_create("vdcm-bench")
        os.ftruncate(fd, SIZE)
        buffer, pages = mmap.mmap(fd, SIZE), mmap.mmap(-1, 0x4000)
        guest, space = GuestMemory(), SecondLevel()
        guest.map(0, SIZE, fd)
        space.attach(guest)
        pasid = self.table.allocate(space)
        path = self.sweep.adi(lambda _path: None)
        path.set_pasids(pasid, None)
        path.set_bus_master(True)
        port = Port(self.switch)
        queue = path.queue(FASTPATH, port.address, doorbells=True, keep=port)
        port.attach(memoryview(pages))
        port.set_offloads(Offloads())
        port.set_filters(Filters(address(number), frozenset({address(number)})))
        port.set_rss(Rss(bytes(range(52)), bytes(64), (1 << 64) - 1))
        port.set_link(True)
        port.configure_tx(TxQueue(0, TX, ENTRIES))
        port.configure_rx(RxQueue(0, RX, ENTRIES, 2048, 1522))
        tails = ffi.cast("uint32_t *", ffi.from_buffer(pages))
        self.stations[number] = (
            ffi.from_buffer(buffer), TX, RX, TO, FROM, tails, tails + 0x800,
            net.IPV4 | net.UDP_SUM | net.offsets(14, 20, 8), ENTRIES, PATIENCE,
        )  # fmt: skip
        content = frame(number, (number + 1) % self.count, self.size)
        for index in range(64):
            at = FROM + 2048 * index
            buffer[at : at + len(content)] = content
        self.lib.avf_prepare(self.stations + number)
        port.enable(1, 1)
        queue.state = QueueState.RUNNING
        return path, port, pasid, guest, fd, buffer, pages

    def close(self) -> None:
        for path, port, pasid, guest, fd, _, _ in self._held:
            path.close()
            port.close()
            self.table.release(pasid)
            guest.disconnect()
            os.close(fd)
        self.sweep.close()

    def cpu_seconds(self) -> float:
        """Of the sweep's thread (proc(5), schedstat)."""
        return int((self._thread / "schedstat").read_text().split()[0]) / 1e9

    def stream(self, count: int) -> tuple[float, float]:
        """Seconds, and those of the sweep's CPU."""
        before = self.cpu_seconds()
        ns = self.lib.avf_stream(self.stations, self.count, self.size, count)
        if not ns:
            found = [port.statistics() for _, port, *_ in self._held]
            sys.exit(f"a frame is lost or wrong: {found[:2]}")
        return ns / 1e9, self.cpu_seconds() - before

    def memcpy(self, count: int) -> float:
        return float(self.lib.avf_memcpy(self.stations, self.count, self.size, count)) / 1e9


@contextmanager
def bench(lib: Any, count: int, size: int) -> Iterator[Bench]:
    made = Bench(lib, count, size)
    try:
        yield made
    finally:
        made.close()


def main() -> None:
    parser = argparse.ArgumentParser("ci/bench avf", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=2_000_000, help="for one figure")
    options = parser.parse_args()
    build_programs(load_environment().libvfio_user)
    lib = ffi.dlopen(str(BUILD / "libavf_loop.so"))
    found: dict[str, list[dict[str, float]]] = {}
    steal = steal_seconds()
    for number in range(options.rounds):
        print(f"round {number + 1}/{options.rounds}", file=sys.stderr, flush=True)
        for size in SIZES:
            for ports in PORTS:
                with bench(lib, ports, size) as made:
                    made.stream(options.frames // 10)
                    wall, cpu = made.stream(options.frames)
                    plain = made.memcpy(options.frames)
                rates = {"wall": wall, "cpu": cpu, "memcpy": plain}
                found.setdefault(f"{size} bytes, {ports} VDEVs", []).append(
                    {key: options.frames / seconds for key, seconds in rates.items()}
                )
    steal = steal_seconds() - steal
    path = keep("avf", {"steal_seconds": steal, "frames_per_second": found})
    print("| | M frames/s (least to most) | of a core | GB/s of a core | memcpy, GB/s |")
    print("|---|---|---|---|---|")
    for title, samples in found.items():
        size = int(title.split()[0])
        wall = [one["wall"] / 1e6 for one in samples]
        core, plain = (median(one[key] for one in samples) / 1e6 for key in ("cpu", "memcpy"))
        print(
            f"| {title} | {median(wall):.2f} ({min(wall):.2f}-{max(wall):.2f}) | {core:.2f}"
            f" | {core * size / 1e3:.2f} | {plain * size / 1e3:.1f} |"
        )
    print(f"\nsteal time {steal:.1f} s; all samples in {path}")


if __name__ == "__main__":
    main()
