"""Many VDEVs of one daemon: what starting one costs, what an idle one holds, and what is left.

    ci/python -m tests.bench.scale [--vdevs 1024] [--type pcie-idio-16]

Each VDEV gets a client that makes it work and waits for its interrupt (``WORK`` says how, by type).
Prints each figure with its aim; all of them go to ``build/bench/scale.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vdcm.client import Client, Irq, Region
from vdcm.control import ControlClient
from vdcm.serving import raise_descriptor_limit

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "build" / "bench" / "scale.json"
IDLE_SECONDS = 5.0
DEADLINE = 60.0


def input_change(control: ControlClient, name: str, device: Client) -> float:
    """PCIe-IDIO-16: an input changes. Seconds until its interrupt is here, and acknowledged."""
    control.call("set", name=name, values={"inputs": 0})
    (line,) = device.irq_enable(Irq.INTX)
    device.read(Region.BAR2, 2, 1)  # enables it
    begin = time.perf_counter()
    control.call("set", name=name, values={"inputs": 1})
    line.wait(DEADLINE)
    passed = time.perf_counter() - begin
    assert device.read(Region.BAR2, 6, 1) & 4
    device.write(Region.BAR2, 1, 1, 0)
    return passed


WORK: dict[str, Callable[[ControlClient, str, Client], float]] = {"pcie-idio-16": input_change}


class Process:
    """What the kernel says of the daemon."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    @property
    def memory(self) -> int:
        """Bytes resident."""
        return int((self._folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    @property
    def descriptors(self) -> int:
        return len(list((self._folder / "fd").iterdir()))

    def idle_cpu(self) -> float:
        """Percent of a core over some seconds."""
        before = self._ticks()
        time.sleep(IDLE_SECONDS)
        return (self._ticks() - before) / os.sysconf("SC_CLK_TCK") / IDLE_SECONDS * 100

    def _ticks(self) -> int:
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])


@contextmanager
def daemon(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "vdcm", "serve", "--state", str(folder / "state")]
    process = subprocess.Popen(
        [*command, "--control", str(folder / "control"), "--log-level", "warning"],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + DEADLINE
        while not (folder / "control").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("the daemon did not start")
            time.sleep(0.02)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE)


def timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure(count: int, kind: str, folder: Path) -> dict[str, Any]:
    names = [f"v{number}" for number in range(count)]
    definitions = [{"type": kind, "name": n, "socket": str(folder / n)} for n in names]
    work = WORK[kind]
    found: dict[str, Any] = {"type": kind, "vdevs": count}
    with daemon(folder) as process, ControlClient(folder / "control", DEADLINE) as control:
        kernel = Process(process.pid)
        found["define_ms"] = (
            timed(lambda: control.call("define", definitions=definitions)) / count * 1e3
        )
        control.call("start", name=names[0])  # what is made once for all is made now
        with Client(folder / names[0]) as client:
            work(control, names[0], client)
        control.call("stop", name=names[0])
        descriptors, memory = kernel.descriptors, kernel.memory
        starts = [timed(lambda n=n: control.call("start", name=n)) * 1e3 for n in names]  # type: ignore[misc]
        tenth = max(1, count // 10)
        found["start_ms_p50"] = statistics.median(starts)
        found["start_ms_p50_first_tenth"] = statistics.median(starts[:tenth])
        found["start_ms_p50_last_tenth"] = statistics.median(starts[-tenth:])
        found["idle_kib_each"] = (kernel.memory - memory) / count / 1024
        found["idle_cpu_percent"] = kernel.idle_cpu()
        found["list_ms"] = timed(lambda: control.call("list")) * 1e3

        clients = [Client(folder / name) for name in names]
        waits = [work(control, n, c) * 1e6 for n, c in zip(names, clients, strict=True)]
        found["interrupt_us_p50"] = statistics.median(waits)
        found["attached_kib_each"] = (kernel.memory - memory) / count / 1024
        found["attached_descriptors_each"] = (kernel.descriptors - descriptors) / count
        found["attached_idle_cpu_percent"] = kernel.idle_cpu()
        for client in clients:
            client.close()

        found["stop_ms_p50"] = statistics.median(
            [timed(lambda n=n: control.call("stop", name=n)) * 1e3 for n in names]  # type: ignore[misc]
        )
        found["descriptors_left"] = kernel.descriptors - descriptors
        found["sockets_left"] = len([name for name in names if (folder / name).exists()])
    return found


AIMS = {
    "start_ms_p50": 5.0,
    "idle_kib_each": 256.0,
    "idle_cpu_percent": 2.0,
    "descriptors_left": 0.0,
    "sockets_left": 0.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Many VDEVs of one daemon.")
    parser.add_argument("--vdevs", type=int, default=1024)
    parser.add_argument("--type", default="pcie-idio-16", choices=sorted(WORK))
    options = parser.parse_args()
    raise_descriptor_limit()
    with TemporaryDirectory(prefix="vdcm-") as folder:
        found = measure(options.vdevs, options.type, Path(folder))
    for key, value in found.items():
        aim = f"  (aim: at most {AIMS[key]:g})" if key in AIMS else ""
        print(
            f"{key:28} {value:.2f}{aim}" if isinstance(value, float) else f"{key:28} {value}{aim}"
        )
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
