"""fio in a guest, on Linux's own drivers: NVMe VDEVs, QEMU's own NVMe, and virtio-blk.

    ci/bench guest-nvme [--rounds N] [--seconds S] [--cpus N] [--docs]

One guest has all of them at once, each of the same size and in memory, filled, without an I/O
scheduler: a VDEV in each doorbell mode (``ram:``), QEMU's own two in a file on tmpfs, and once more
before ``null-co``, which stores nothing and is the most that they can do. fio runs on one after the
other, in turns. What is printed are medians over the rounds, with the spread from the least to the
greatest; ratios are those of each round. Beside it what a command costs: interrupts in the guest,
vfio-user messages, CPU time of vdcm and of QEMU, without what a run of one command costs.

All samples go to ``build/bench/guest-nvme.json``; ``--docs`` puts them into docs/nvme.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Final

from tests.bench.common import (
    ROOT,
    Daemon,
    about,
    daemon,
    keep,
    publish,
    spent,
    steal_seconds,
    turns,
)
from tests.bench.plot import bars
from vdcm.environment import load_environment
from vdcm.testing import Machine, vfio_user

SIZE: Final = 128
"""MiB of each device."""
DEVICES: Final = {
    "vdcm, direct": "direct",
    "vdcm, shadow": "shadow",
    "QEMU nvme": "nvme-file",
    "virtio-blk": "virtio-file",
    "QEMU nvme, null": "nvme-null",
    "virtio-blk, null": "virtio-null",
}
"""Title and serial number of each."""
WORKLOADS: Final = {
    "4 KiB random read, depth 1": ("randread", "4k", 1),
    "4 KiB random read, depth 32": ("randread", "4k", 32),
    "4 KiB random write, depth 1": ("randwrite", "4k", 1),
    "4 KiB random write, depth 32": ("randwrite", "4k", 32),
    "128 KiB sequential read, depth 8": ("read", "128k", 8),
    "128 KiB sequential write, depth 8": ("write", "128k", 8),
}
PARTS: Final = {
    "loop": "event loop",
    "sweep": "sweep",
    "vcpus": "virtual CPUs",
    "qemu": "QEMU's rest",
}
FIO: Final = (
    "fio --name=x --filename={path} --direct=1 --ioengine=libaio --rw={rw} --bs={bs} "
    "--iodepth={depth} --thread --norandommap --randrepeat=0 --gtod_reduce=1 "
    "--output-format=json {limit}"
)
_MODULES: Final = ("nvme", "virtio_pci", "virtio_blk")

Samples = dict[str, dict[str, list[dict[str, float]]]]
"""By workload and by device, one of each round."""


@dataclass(frozen=True)
class Lab:
    """The guest, with the path of each device in it, and the daemon that serves two of them."""

    daemon: Daemon
    machine: Machine
    paths: dict[str, str]

    def messages(self) -> int:
        with self.daemon.connect() as control:
            shown = [control.call("show", name=name) for name in ("direct", "shadow")]
        return sum(int(one["counters"]["messages"]) for one in shown)

    def fio(self, device: str, workload: str, limit: str) -> dict[str, float]:
        """One run: ``commands`` and their ``rate``, and what was spent meanwhile."""
        rw, bs, depth = WORKLOADS[workload]
        command = FIO.format(path=self.paths[device], rw=rw, bs=bs, depth=depth, limit=limit)
        before, messages, steal = (
            spent(self.daemon.pid, self.machine.pid),
            self.messages(),
            steal_seconds(),
        )
        text = self.machine.check(
            f"cat /proc/interrupts; echo ===; {command}; echo ===; cat /proc/interrupts", 120
        )
        first, result, last = text.split("===\n")
        kind = "write" if "write" in rw else "read"
        (job,) = json.loads(result[result.index("{") :])["jobs"]
        if job["error"]:
            sys.exit(f"{device}, {workload}: {result}")
        return {
            "commands": job[kind]["total_ios"],
            "rate": job[kind]["iops"],
            "interrupts": interrupts(last) - interrupts(first),
            "messages": self.messages() - messages,
            "steal": steal_seconds() - steal,
            **{
                part: seconds - before[part]
                for part, seconds in spent(self.daemon.pid, self.machine.pid).items()
            },
        }

    def measure(
        self, device: str, workload: str, seconds: float, nothing: dict[str, float]
    ) -> dict[str, float]:
        """``rate``: commands a second; and for each of them ``interrupts``, ``messages``, and the
        microseconds of ``PARTS``, without those of ``nothing``: a run of one command."""
        found = self.fio(device, workload, f"--time_based --runtime={seconds:g}")
        costs = {
            name: max(0.0, found[name] - nothing[name]) / found["commands"]
            for name in ("interrupts", "messages", *PARTS)
        }
        for part in PARTS:
            costs[part] *= 1e6
        return {"rate": found["rate"], "steal": found["steal"], **costs}


def interrupts(text: str) -> int:
    """Message-signalled ones in the text of /proc/interrupts."""
    lines = [line.split() for line in text.splitlines() if "PCI-MSI" in line]
    return sum(int(word) for line in lines for word in line[1:] if word.isdigit())


def devices(folder: Path, files: dict[str, Path]) -> Iterator[str]:
    """QEMU's arguments."""
    for serial in DEVICES.values():
        kind, _, store = serial.partition("-")
        if not store:
            yield from vfio_user(folder / f"{serial}.sock")
            continue
        if store == "file":
            options = f"driver=file,filename={files[serial]},cache.direct=off,aio=threads"
        else:
            options = f"driver=null-co,size={SIZE << 20},read-zeroes=off"
        driver = "nvme" if kind == "nvme" else "virtio-blk-pci"
        yield from ("-blockdev", f"node-name={serial},{options}")
        yield from ("-device", f"{driver},serial={serial},drive={serial}")


@contextmanager
def lab(cpus: int) -> Iterator[Lab]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="vdcm-bench-")))
        files = {}
        for serial in DEVICES.values():
            if serial.endswith("-file"):
                file = stack.enter_context(NamedTemporaryFile(dir="/dev/shm"))
                file.truncate(SIZE << 20)
                files[serial] = Path(file.name)
        lines = ["parents:", f"  store: {{model: nvme, store: 'ram:{4 * SIZE}M'}}", "vdevs:"]
        for mode in ("direct", "shadow"):
            lines.append(
                f"  {mode}: {{parent: store, type: nvme, size: {SIZE}M, doorbells: {mode}, "
                f"serial: {mode}, socket: {folder}/{mode}.sock}}"
            )
        served = stack.enter_context(daemon(folder, "\n".join([*lines, ""])))
        machine = stack.enter_context(
            Machine(
                load_environment(),
                log_dir=folder / "guest",
                devices=list(devices(folder, files)),
                cpus=cpus,
                modules=_MODULES,
                tools=("fio",),
            )
        )
        yield Lab(served, machine, prepare(machine))


def prepare(machine: Machine) -> dict[str, str]:
    """Load the drivers, fill the devices; the path of each."""
    machine.check("modprobe nvme_core multipath=0")
    machine.check("; ".join(f"modprobe {name}" for name in _MODULES))
    deadline = time.monotonic() + 20
    while True:
        text = machine.check(
            "for disk in /sys/block/*; do echo $disk "
            "$(cat $disk/serial $disk/device/serial 2>/dev/null); done"
        )
        found = dict(line.split()[::-1] for line in text.splitlines() if len(line.split()) == 2)
        if found.keys() == set(DEVICES.values()):
            break
        if time.monotonic() > deadline:
            sys.exit(f"the guest has only {found}\n{machine.console()}")
        time.sleep(0.1)
    for disk in found.values():
        name = Path(disk).name
        machine.check(f"echo none > {disk}/queue/scheduler")
        machine.check(
            f"tr '\\0' Z < /dev/zero | dd of=/dev/{name} bs=1M count={SIZE} "
            "iflag=fullblock conv=fsync 2>/dev/null",
            60,
        )
    return {title: f"/dev/{Path(found[serial]).name}" for title, serial in DEVICES.items()}


def measure(guest: Lab, rounds: int, seconds: float) -> Samples:
    samples: Samples = {name: {title: [] for title in DEVICES} for name in WORKLOADS}
    for number in range(rounds):
        nothing = {
            title: guest.fio(title, next(iter(WORKLOADS)), "--number_ios=1") for title in DEVICES
        }
        for name in WORKLOADS:
            print(f"round {number + 1}/{rounds}: {name}", file=sys.stderr, flush=True)
            for title in turns(DEVICES, number):
                sample = guest.measure(title, name, seconds, nothing[title])
                samples[name][title].append(sample)
    return samples


def series(samples: Samples, workload: str, title: str, figure: str) -> list[float]:
    return [sample[figure] for sample in samples[workload][title]]


def ratio(samples: Samples, workload: str, title: str, other: str) -> float:
    ours, theirs = (series(samples, workload, name, "rate") for name in (title, other))
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def tables(samples: Samples) -> str:
    ours, theirs = list(DEVICES)[:2], list(DEVICES)[2:4]
    heads = [f"{a.split(', ')[1]} / {b}" for a in ours for b in theirs]
    lines = [
        f"| commands a second | {' | '.join([*DEVICES, *heads])} |",
        f"|---{'|---' * (len(DEVICES) + len(heads))}|",
    ]
    for name in WORKLOADS:
        cells = []
        for title in DEVICES:
            cells.append(about(series(samples, name, title, "rate")))
        cells += [f"{ratio(samples, name, a, b):.2f}" for a in ours for b in theirs]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "| of each command | device | interrupts | messages | "
        f"{', µs | '.join(PARTS.values())}, µs |",
        f"|---|---|---|---{'|---' * len(PARTS)}|",
    ]
    for name in WORKLOADS:
        for title in [*ours, *theirs]:
            cells = [
                f"{median(series(samples, name, title, figure)):.{digits}f}"
                for figure, digits in (("interrupts", 2), ("messages", 2), *((p, 1) for p in PARTS))
            ]
            lines.append(f"| {name} | {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(samples: Samples) -> str:
    return bars(
        "fio in a guest, commands a second, as parts of QEMU's nvme",
        [re.sub("(random|sequential) ", "", name) for name in WORKLOADS],
        {
            title: [ratio(samples, name, title, "QEMU nvme") for name in WORKLOADS]
            for title in list(DEVICES)[:4]
        },
        "",
    )


def main() -> None:
    parser = argparse.ArgumentParser("ci/bench guest-nvme", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each run of fio")
    parser.add_argument("--cpus", type=int, default=1, help="of the guest")
    parser.add_argument("--docs", action="store_true", help="into docs/nvme.md")
    options = parser.parse_args()
    steal, start = steal_seconds(), time.monotonic()
    with lab(options.cpus) as guest:
        samples = measure(guest, options.rounds, options.seconds)
    steal, elapsed = steal_seconds() - steal, time.monotonic() - start
    path = keep("guest-nvme", {**vars(options), "steal_seconds": steal, "samples": samples})
    heading = (
        f"Medians of {options.rounds} rounds of {options.seconds:g} s, ± half of the spread; a "
        f"guest of {options.cpus} CPU on {os.cpu_count()}, steal time {steal / elapsed:.1%} of one:"
    )
    text = f"{heading}\n\n{tables(samples)}"
    print(f"{text}\n\nall samples in {path}")
    if options.docs:
        publish("nvme.md", "guest-nvme", f"{text}\n\n![](nvme-guest.svg)")
        (ROOT / "docs" / "nvme-guest.svg").write_text(plot(samples))


if __name__ == "__main__":
    main()
