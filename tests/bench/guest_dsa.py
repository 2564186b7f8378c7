"""Copies in a guest by Linux's own idxd, beside those of the guest's own CPUs; and what they cost.

    ci/bench guest-dsa [--rounds N] [--scale F]

One guest, one module (tests/guest/dmacopy), three ways to copy in turns: the software DSA through
the kernel's dmaengine, the thread's own memcpy, and a memcpy handed to a kernel workqueue, which
like the device says later that it is done, but has no device and no exit from the guest. Every
64th copy is compared. Of the DSA's runs also: vfio-user messages, CPU time of vdcm and of QEMU,
and, in a second guest with a plugin that counts, the guest's instructions; for each copy, without
what a run of no copies costs, and not told where that is more than the copies cost.

What is printed are medians over the rounds, ratios those of each round; all samples go to
``build/bench/guest-dsa.json``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

from tests.bench.common import BUILD, Daemon, build_programs, daemon, keep, spent, steal_seconds
from tests.guest import copies, idxd
from vdcm.environment import Environment, load_environment
from vdcm.testing import GuestError, Machine, vfio_user

SIZES: Final = {
    "64 B": 64,
    "4 KiB": 4 << 10,
    "64 KiB": 64 << 10,
    "1 MiB": 1 << 20,
    "4 MiB - 16 KiB": (4 << 20)
    - (16 << 10),  # and what lies around it: an x86 kernel's largest piece
}
CASES: Final = ((1, 1), (4, 1), (16, 1), (4, 15))
"""Threads, and copies that each has under way."""
METHODS: Final = {"DSA": 0, "memcpy": 1, "workqueue": 2}
ENTRIES: Final = 64
COMPARED: Final = 64
CPUS: Final = 4
PLUGIN: Final = "libinsn_count.so"

Row = tuple[str, int, int]
"""Size, threads, copies under way of each."""


@dataclass(frozen=True)
class Lab:
    """A guest whose work queue is enabled, and the daemon that serves it."""

    daemon: Daemon
    machine: Machine

    def messages(self) -> int:
        with self.daemon.connect() as control:
            return int(control.call("show", name="dsa0")["counters"]["messages"])

    def copy(self, row: Row, method: str, scale: float) -> copies.Counts:
        """One run; how many copies depends on their size, so that none takes long. None at all
        with ``scale`` 0."""
        name, threads, depth = row
        size = SIZES[name]
        number = int(scale * max(4 * threads * depth, min(6000, (192 << 20) // size)))
        if method != "DSA" and size <= 4096:
            number *= 4
        counts = copies.copy(
            self.machine,
            limit=300,
            method=METHODS[method],
            threads=threads,
            depth=depth,
            copies=number,
            min_size=size,
            max_size=size,
            every=COMPARED,
        )
        if not counts.flawless(number):
            sys.exit(f"{method}, {row}: {counts!r}")
        return counts


@contextmanager
def lab(environment: Environment, files: dict[str, Path], plugin: str = "") -> Iterator[Lab]:
    """With the arguments of ``-plugin``, if there are any."""
    with TemporaryDirectory(prefix="vdcm-bench-") as name:
        folder = Path(name)
        definition = (
            f"parents:\n  dsas: {{model: dsa, dwq_size: {ENTRIES}}}\nvdevs:\n"
            f"  dsa0: {{parent: dsas, type: dsa-1dwq, socket: {folder}/dsa0.sock}}\n"
        )
        devices = vfio_user(folder / "dsa0.sock")
        if plugin:
            devices += ["-plugin", plugin]
        with (
            daemon(folder, definition) as served,
            Machine(
                environment,
                log_dir=folder / "guest",
                devices=devices,
                memory="1G",
                cpus=CPUS,
                modules=idxd.MODULES,
                files=files,
            ) as machine,
        ):
            idxd.load(machine)
            device = idxd.IdxdDevice(machine)
            device.configure(size=ENTRIES, max_transfer_size=4 << 20)
            device.enable()
            device.enable_wq()
            yield Lab(served, machine)


def rates(guest: Lab, rounds: int, scale: float) -> dict[str, list[dict[str, Any]]]:
    """Samples of each row and method, and of the DSA's what they cost."""
    found: dict[str, list[dict[str, Any]]] = {}
    for number in range(rounds):
        print(f"round {number + 1}/{rounds}", file=sys.stderr, flush=True)
        for name in SIZES:
            for threads, depth in CASES:
                row = (name, threads, depth)
                start = spent(guest.daemon.pid, guest.machine.pid)
                guest.copy(row, "DSA", 0)
                nothing = difference(start, spent(guest.daemon.pid, guest.machine.pid))
                for method in list(METHODS)[:: 1 if number % 2 == 0 else -1]:
                    messages, start = guest.messages(), spent(guest.daemon.pid, guest.machine.pid)
                    counts = guest.copy(row, method, scale)
                    costs = difference(
                        nothing, difference(start, spent(guest.daemon.pid, guest.machine.pid))
                    )
                    sample: dict[str, Any] = {
                        "copies_s": counts.done * 1e9 / counts.nanoseconds,
                        "bytes_s": counts.bytes * 1e9 / counts.nanoseconds,
                    }
                    if method == "DSA":
                        sample["messages"] = (guest.messages() - messages) / counts.done
                        for part, seconds in costs.items():
                            if seconds > nothing[part]:
                                sample[f"{part}_us"] = seconds * 1e6 / counts.done
                    found.setdefault(label(row, method), []).append(sample)
    return found


def difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {part: seconds - before[part] for part, seconds in after.items()}


def label(row: Row, method: str) -> str:
    return f"{method}, {row[0]}, {row[1]} x {row[2]}"


def instructions(guest: Lab, counts: Path, scale: float) -> dict[str, float]:
    """The guest's for each copy, of every method."""

    def counted() -> int:
        data = counts.read_bytes()
        return sum(int.from_bytes(data[at : at + 8], "little") for at in range(0, 64 * CPUS, 64))

    found = {}
    for name in ("64 B", "64 KiB"):
        for threads, depth in CASES:
            for method in METHODS:
                row, ends = (name, threads, depth), []
                for factor in (0, scale):
                    before = counted()
                    done = guest.copy(row, method, factor).done
                    ends.append(counted() - before)
                found[label(row, method)] = (ends[1] - ends[0]) / done
    return found


def tables(samples: dict[str, list[dict[str, Any]]], executed: dict[str, float]) -> str:
    def middle(key: str, figure: str) -> float:
        return median(sample[figure] for sample in samples[key])

    def ratio(row: Row, method: str) -> float:
        pairs = zip(samples[label(row, "DSA")], samples[label(row, method)], strict=True)
        return median(ours["bytes_s"] / theirs["bytes_s"] for ours, theirs in pairs)

    lines = [
        "| copies of | threads x under way | DSA, 1/s | DSA, MB/s | memcpy, MB/s | workqueue, MB/s "
        "| DSA / memcpy | DSA / workqueue |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [(name, threads, depth) for name in SIZES for threads, depth in CASES]
    for row in rows:
        cells = [f"{middle(label(row, 'DSA'), 'copies_s'):.0f}"]
        cells += [f"{middle(label(row, method), 'bytes_s') / 1e6:.1f}" for method in METHODS]
        cells += [f"{ratio(row, method):.2f}" for method in ("memcpy", "workqueue")]
        lines.append(f"| {row[0]} | {row[1]} x {row[2]} | {' | '.join(cells)} |")
    lines += [
        "",
        "| one copy of | threads x under way | messages | vdcm: event loop, µs | vdcm: sweep, µs "
        "| QEMU: virtual CPUs, µs | QEMU: rest, µs | guest instructions | of a workqueue's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours = label(row, "DSA")
        cells = [f"{middle(ours, 'messages'):.1f}"]
        for part in ("loop", "sweep", "vcpus", "qemu"):
            told = all(f"{part}_us" in sample for sample in samples[ours])
            cells.append(f"{middle(ours, f'{part}_us'):.1f}" if told else "")
        for key in (ours, label(row, "workqueue")):
            cells.append(f"{executed[key]:.0f}" if key in executed else "")
        lines.append(f"| {row[0]} | {row[1]} x {row[2]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser("ci/bench guest-dsa", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="copies, of what is usual")
    options = parser.parse_args()
    environment = load_environment()
    build_programs(environment.libvfio_user)
    executed: dict[str, float] = {}
    steal = steal_seconds()
    with TemporaryDirectory(prefix="vdcm-bench-") as name:
        folder = Path(name)
        files = {**idxd.movdir64b(environment, folder), **copies.dmacopy(environment, folder)}
        with lab(environment, files) as guest:
            samples = rates(guest, options.rounds, options.scale)
        counts = folder / "counts"
        counts.write_bytes(bytes(4096))
        try:
            with lab(environment, files, f"file={BUILD / PLUGIN},counts={counts}") as guest:
                executed = instructions(guest, counts, options.scale)
        except GuestError as error:
            print(f"no instructions counted: {str(error).splitlines()[0]}", file=sys.stderr)
    steal = steal_seconds() - steal
    result = {"steal_seconds": steal, "cpus": os.cpu_count(), "samples": samples}
    path = keep("guest-dsa", {**result, "instructions": executed})
    print(f"medians of {options.rounds} rounds; a guest of {CPUS} CPUs on {os.cpu_count()}")
    print(tables(samples, executed))
    print(f"steal time {steal:.1f} s; all samples in {path}")


if __name__ == "__main__":
    main()
